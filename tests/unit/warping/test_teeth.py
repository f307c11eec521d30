"""Teeth that keep their size when a mouth opens."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from export3d.camera import Camera, projected
from export3d.config import variant
from export3d.face.landmark_sets import INNER_LIPS
from export3d.warping.average_head import seen_places, turned_flow
from export3d.warping.flow_field import pixel_grid
from export3d.warping.flows import mouth_mask
from export3d.warping.landmark_motion import average_landmarks
from export3d.warping.source_warp import SourceMotion
from export3d.warping.teeth import (
    around,
    chosen,
    closed,
    off_teeth,
    opened,
    shown,
    smoothed,
    stirred,
    taken_along,
    unstretched,
    upper_row,
    upper_teeth,
)
from tests.tiny_models import PARTS, awake, cameras, inputs, matte, warped

WHOLE = variant(warped(*PARTS), "no_inside")
LOWER = INNER_LIPS[11:]


def gaping(gap: float) -> Tensor:
    """(1, 478, 3) the average face with such a gap between its lips, in distances of the outer eye corners."""
    points = average_landmarks().clone().reshape(1, -1, 3)
    upper, lower = list(INNER_LIPS[1:10]), list(reversed(LOWER))
    points[:, lower] = points[:, upper]
    down = torch.tensor([0.0, -1.0 if points[0, 10, 1] > points[0, 152, 1] else 1.0, 0.0])
    points[:, lower] += gap * (points[0, 33] - points[0, 263]).norm() * down
    return points


def gap(points: Tensor) -> float:
    """Between the lips of (1, 478, 3), in distances of the outer eye corners."""
    return float((points[0, 13] - points[0, 14]).norm() / (points[0, 33] - points[0, 263]).norm())


def masks(driving: slice, source: slice) -> Tensor:
    """(1, 2, 256, 256): mouths across the middle, open in these rows."""
    mouth = torch.zeros(1, 2, 256, 256)
    mouth[:, 0, driving, 64:192] = 1.0
    mouth[:, 1, source, 64:192] = 1.0
    return mouth


@pytest.mark.parametrize(
    ("own", "driven", "share"),
    [
        (0.0, 0.4, 0.0),  # the source shows no teeth
        (0.05, 0.4, 0.0),
        (0.065, 0.4, 0.5),
        (0.12, 0.12, 0.0),
        (0.12, 0.125, 0.0),  # as good as not wider
        (0.12, 0.1325, 0.5),
        (0.12, 0.14, 1.0),
        (0.12, 0.08, 0.0),  # closing a little
        (0.3, 0.1, 1.0),  # closing: a lip has moved far
    ],
)
def test_a_mouth_counts_as_opened_where_it_gets_wider_than_one_that_shows_teeth(
    own: float, driven: float, share: float
) -> None:
    found = opened(gaping(driven), gaping(own))
    assert found.shape == (1, 2, 1, 1)
    assert float(found[0, 0]) == pytest.approx(share, abs=1e-3)


@pytest.mark.parametrize(
    ("own", "driven", "share"),
    [(0.0, 0.1, 0.0), (0.0, 0.14, 0.5), (0.0, 0.2, 1.0), (0.065, 0.3, 0.5), (0.08, 0.3, 0.0)],
)
def test_closed_lips_count_where_they_open_wide(own: float, driven: float, share: float) -> None:
    assert float(opened(gaping(driven), gaping(own))[0, 1]) == pytest.approx(share, abs=1e-3)


def test_teeth_are_where_both_mouths_are_open_and_the_hollow_is_below() -> None:
    here, inside = upper_teeth(torch.ones(1, 1, 1, 1), masks(slice(88, 180), slice(80, 120)))[0]
    assert (here[89:179, 65:191] == 1.0).all()
    assert here[:87].count_nonzero() == here[181:].count_nonzero() == 0
    assert (inside[84:112, 74:182] == 1.0).all()
    assert inside[122:].count_nonzero() == inside[:74].count_nonzero() == 0
    assert inside[100, 65] < 0.5  # the edge of the source's mouth is lip,
    assert inside[118, 128] < 0.5  # most of all the lower one
    assert inside[81, 128] > 0.5


def square(*rows: tuple[slice, float]) -> tuple[Tensor, Tensor]:
    """A square (1, 3, 64, 64) of skin with an open mouth in rows 20 to 44, dark but for rows of such brightness.

    And where the mouth is.
    """
    seen = torch.full((1, 3, 64, 64), -0.2)
    hole = torch.zeros(1, 1, 64, 64)
    hole[..., 20:44, 12:52] = 1.0
    seen[..., 20:44, 12:52] = -0.9
    for where, colour in rows:
        seen[..., where, 12:52] = colour
    return seen, hole


TOP = slice(22, 30)


@pytest.mark.parametrize(
    ("rows", "last"),
    [
        ([(TOP, 0.6)], 30),
        ([(TOP, 0.6), (slice(38, 44), 0.6)], 30),  # lower teeth are not upper ones
        ([(TOP, 0.6), (slice(26, 27), -0.2)], 30),  # the shade of one pixel ends nothing
        ([(slice(20, 44), 0.6)], 44),
        ([(slice(36, 44), 0.6)], None),
        ([(TOP, -0.25)], None),  # no whiter than the lips
        ([], None),
    ],
)
def test_upper_teeth_reach_from_the_upper_lip_to_where_it_gets_dark(
    rows: list[tuple[slice, float]], last: int | None
) -> None:
    seen, hole = square(*rows)
    found = upper_row(seen, hole)
    assert not (found > hole).any()
    reached = found[0, 0].sum(dim=0)[20:44]
    assert (reached - (0.0 if last is None else last - 20)).abs().max() <= 1.0


def test_red_below_white_teeth_is_a_tongue() -> None:
    seen, hole = square((TOP, 0.6))
    seen[:, 0, 30:44, 12:52] = 0.6
    seen[:, 1:, 30:44, 12:52] = -0.3
    assert (upper_row(seen, hole)[0, 0].sum(dim=0)[20:44] - 10.0).abs().max() <= 1.0


def test_dark_corners_beside_the_teeth_count_as_far_down() -> None:
    seen, hole = square()
    seen[:, :, TOP, 24:40] = 0.6
    reached = upper_row(seen, hole)[0, 0].sum(dim=0)
    assert (reached[12:52] - 10.0).abs().max() <= 1.0
    assert reached[:12].sum() == reached[52:].sum() == 0.0


def test_upper_teeth_are_shown_to_their_edges() -> None:
    mouth, row = masks(slice(88, 180), slice(80, 120)), torch.zeros(1, 1, 128, 128)
    row[..., 40:60, 32:96] = 1.0
    with_row, without = (upper_teeth(torch.ones(1, 1, 1, 1), mouth, part)[0] for part in (row, None))
    assert torch.equal(with_row[0], without[0])
    assert (with_row[1] >= without[1]).all()
    assert (with_row[1, 84:116, 68:188] > 0.99).all()
    assert without[1, 118, 128] < 0.5


@pytest.mark.parametrize(("gap", "share"), [(0.0, 0.0), (0.05, 0.0), (0.065, 0.5), (0.12, 1.0)])
def test_lips_show_teeth_from_a_gap_on(gap: float, share: float) -> None:
    assert float(shown(gaping(gap))) == pytest.approx(share, abs=1e-3)


def test_the_moved_source_loses_its_stretched_teeth() -> None:
    teeth = torch.zeros(1, 2, 8, 8)
    teeth[:, 0, 2:6], teeth[:, 1, 2:4] = 1.0, 1.0
    moved, stretched, turned = torch.rand(1, 3, 8, 8), torch.rand(1, 1, 8, 8), torch.rand(1, 3, 8, 8)
    image, far = unstretched(teeth, moved, stretched, turned)
    assert torch.equal(image[:, :, :2], moved[:, :, :2])
    assert torch.equal(far[:, :, 6:], stretched[:, :, 6:])
    assert torch.equal(image[:, :, 2:4], turned[:, :, 2:4])
    assert far[:, :, 2:4].count_nonzero() == 0
    assert (image[:, :, 4:6] < -0.5).all()
    assert (far[:, :, 4:6] == 1.0).all()


def test_bars_in_the_mouth_are_smoothed_across_and_nothing_else_changes() -> None:
    mouth = torch.zeros(2, 1, 64, 64)
    mouth[:, :, 20:40, 16:48] = 1.0
    moved = torch.rand(2, 3, 64, 64)
    bars = moved.clone()
    bars[:, :, 20:40, ::2] = 1.0
    made = smoothed(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), mouth, bars)
    assert torch.equal(made[0], bars[0])
    assert torch.equal(made[1][:, mouth[1, 0] == 0], bars[1][:, mouth[1, 0] == 0])
    before, after = (image[1, :, 20:40, 16:48].diff(dim=-1).abs().mean() for image in (bars, made))
    assert after < 0.2 * before
    torch.testing.assert_close(made[1, :, 20:40, 16:48].mean(), bars[1, :, 20:40, 16:48].mean(), atol=0.02, rtol=0)


def test_the_choice_is_the_turned_source_at_teeth_and_rendered_in_the_hollow() -> None:
    share = torch.rand(2, 4, 8, 8).softmax(dim=1)
    teeth = torch.zeros(2, 2, 8, 8)
    teeth[:, 0, 2:6], teeth[:, 0, 6], teeth[:, 1, 2:4], teeth[:, 1, 6] = 1.0, 0.5, 1.0, 1.0
    made = chosen(teeth, share)
    torch.testing.assert_close(made.sum(dim=1), torch.ones(2, 8, 8))
    assert torch.equal(made[:, :, :2], share[:, :, :2])
    assert (made[:, 3, 2:4] == 1.0).all()
    assert (made[:, 0, 4:6] == 1.0).all()
    torch.testing.assert_close(made[:, :3, 6], share[:, :3, 6] / 2)


@pytest.mark.parametrize("driven", [0.8, 1.4])
def test_a_picture_changes_only_in_a_mouth_that_opens(driven: float) -> None:
    """With its own expression, and outside the mouth, every pixel stays as it is without the part."""
    own, camera = gaping(0.8), cameras(1)
    source, expression, _ = inputs(1)
    made = {}
    with torch.no_grad():
        model = awake(WHOLE)
        for name in ("teeth", "no_teeth"):
            other = awake(variant(WHOLE, name))
            other.load_state_dict(model.state_dict())
            encoded = other.encode(source, camera, expression, projected(own, camera)[0], matte(source))
            points = gaping(driven) if driven > 0.8 else encoded.view.face.points
            made[name] = other.warp.views(encoded.view, SourceMotion(points), camera)
    with_teeth, without = made["teeth"], made["no_teeth"]
    assert without.teeth is None
    changed = (with_teeth.moved - without.moved).abs().amax(dim=1)[0]
    if driven == 0.8:
        assert changed.count_nonzero() == 0
        return
    mouth = mouth_mask(projected(gaping(driven), camera)[0], 64)[0, 0]
    near = torch.nn.functional.max_pool2d(mouth[None], 7, 1, 3)[0]
    shift = (with_teeth.offset - without.offset).norm(dim=1)  # of the upper lip, see `off_teeth`
    assert float(shift[0][near == 0].max()) <= 2.0 / 128 + 1e-6
    near = torch.maximum(near, torch.nn.functional.max_pool2d((shift > 0).float(), 3, 1, 1)[0])
    assert changed[mouth > 0].max() > 0.1
    assert changed[near == 0].count_nonzero() == 0
    kept = with_teeth.teeth[0].amin(dim=0) == 1.0
    assert kept.any()
    torch.testing.assert_close(with_teeth.moved[0][:, kept], with_teeth.turned[0][:, kept])
    torch.testing.assert_close(with_teeth.offset[0][:, kept], with_teeth.turn[0][:, kept])


DOWN = torch.tensor([0.0, 1.0, 0.0])
UPPER = list(INNER_LIPS[:11])


def test_lips_that_move_far_count_as_opened_too() -> None:
    """In distances of the outer eye corners; the gap becomes narrower."""
    own = gaping(0.12)
    corners = float((own[0, 33] - own[0, 263]).norm())
    for way, share in ((0.05, 0.0), (0.075, 0.5), (0.1, 1.0)):
        points = own.clone()
        points[:, INNER_LIPS[5]] += way * corners * DOWN
        found = opened(points, own)
        assert found[0, 0, 0, 0] == pytest.approx(share, abs=1e-3)
        assert found[0, 1, 0, 0] == 0.0
    assert (opened(points, gaping(0.05)) == 0.0).all()  # whose source shows no teeth


@pytest.mark.parametrize("roll", [0.0, 30.0])
def test_an_upper_lip_that_comes_down_takes_the_teeth_along(roll: float) -> None:
    """Along the head's own down, as far as the lip is above or below the pixel; beside the mouth as at its corner."""
    own = gaping(0.12)
    camera = torch.from_numpy(Camera.orbit(0.0, 0.0).label).float()[None]
    turn = torch.tensor(np.radians(roll), dtype=torch.float32)
    camera[:, :16] = (torch.block_diag(_rotated(turn), torch.eye(2)).T @ camera[0, :16].view(4, 4)).view(1, 16)
    lowered = own.clone()
    lowered[:, UPPER] += torch.linspace(0.01, 0.03, 11)[:, None] * DOWN
    found = taken_along(lowered, own, camera, 256)
    there, before = (projected(points[:, UPPER], camera)[0][0] for points in (lowered, own))
    for place, way in zip(there[1:-1], (there - before)[1:-1]):
        x, y = (256 * place).long().tolist()
        torch.testing.assert_close(found[0, :, y, x], way, atol=1e-3, rtol=0.0)
    assert found.abs().max() < 1.2 * (there - before).norm(dim=-1).max()
    for points in (own, own - 0.02 * DOWN):
        assert taken_along(points, own, camera, 256).abs().max() < 1e-6


def test_teeth_at_the_sides_of_a_round_mouth_go_no_farther_than_those_in_the_middle() -> None:
    own, camera = gaping(0.12), torch.from_numpy(Camera.orbit(0.0, 0.0).label).float()[None]
    wide = gaping(0.5)
    wide[:, UPPER] += 0.01 * (1.0 + torch.linspace(-1.5, 1.5, 11).abs()[:, None]) * DOWN
    there, before = (projected(points[:, UPPER], camera)[0][0] for points in (wide, own))
    found = taken_along(wide, own, camera, 256)
    middle = (there - before)[5, 1]
    for place in there:
        x, y = (256 * place).long().tolist()
        assert found[0, 1, y, x] == pytest.approx(float(middle), abs=1e-3)
    assert (there - before)[0, 1] > 2.0 * middle


def _rotated(angle: Tensor) -> Tensor:
    return torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])


def test_teeth_that_are_taken_along_are_those_of_the_source_higher_up() -> None:
    own, camera = gaping(0.8), cameras(1)
    source, expression, _ = inputs(1)
    points = gaping(1.4)
    points[:, list(INNER_LIPS)] += 0.03 * DOWN
    with torch.no_grad():
        model = awake(WHOLE)
        encoded = model.encode(source, camera, expression, projected(own, camera)[0], matte(source))
        assert model.warp is not None
        views = model.warp.views(encoded.view, SourceMotion(points), camera)
        way = 2.0 * taken_along(points, encoded.view.face.points, camera, source.shape[-1])
        rigid = turned_flow(camera, seen_places(camera, source.shape[-1]))
    kept = views.teeth[0].amin(dim=0) == 1.0
    assert kept.any()
    expected = (rigid - way)[0][:, kept]
    assert (way[0, 1][kept] > 0.01).all()
    torch.testing.assert_close(views.turn[0][:, kept], expected, atol=1e-5, rtol=0.0)
    torch.testing.assert_close(views.offset[0][:, kept], expected, atol=1e-5, rtol=0.0)
    torch.testing.assert_close(views.moved[0][:, kept], views.turned[0][:, kept])
    far = ~around(views.teeth[:, :1])[0, 0]
    torch.testing.assert_close(views.turn[0][:, far], rigid[0][:, far])


@pytest.mark.parametrize(
    ("own", "driven", "left"),
    [
        (0.12, 0.015, 0.0),  # the motion seldom closes a smile wholly
        (0.12, 0.03, 0.0064),
        (0.12, 0.06, 0.06),
        (0.12, 0.12, 0.12),
        (0.01, 0.015, 0.015),  # as far closed as its source
        (0.03, 0.03, 0.03),
    ],
)
def test_almost_closed_lips_meet_if_the_sources_are_open(own: float, driven: float, left: float) -> None:
    found = closed(gaping(driven), gaping(own))
    assert gap(found) == pytest.approx(left, abs=5e-4)
    others = [n for n in range(478) if n not in INNER_LIPS]
    assert torch.equal(found[:, others], gaping(driven)[:, others])
    assert torch.equal(found[:, [78, 308]], gaping(driven)[:, [78, 308]])


def test_lips_that_close_do_so_evenly() -> None:
    gaps = [gap(closed(gaping(step / 500.0), gaping(0.12))) for step in range(40)]
    assert all(-1e-5 <= after - before < 0.008 for before, after in itertools.pairwise(gaps))


# ---- no teeth on lips ------------------------------------------------------------------------------------------------


ALL = torch.ones(1, 1, 1, 1)


def smile(roll: float = 0.0) -> tuple[Tensor, Tensor]:
    """Landmarks (1, 478, 2) whose lips lie along a line through the middle, and their mouth, 24 of 256 pixels high."""
    turn = torch.tensor([[np.cos(roll), np.sin(roll)], [-np.sin(roll), np.cos(roll)]], dtype=torch.float32)
    across, height = torch.linspace(-0.25, 0.25, 11), 12 / 256
    upper = torch.stack([across, -height * (across.abs() < 0.24)], dim=-1)
    own = torch.full((1, 478, 2), 0.5)
    own[0, list(INNER_LIPS[:11])] = upper @ turn + 0.5
    own[0, list(LOWER)] = (upper * torch.tensor([1.0, -1.0])).flip(0)[1:-1] @ turn + 0.5
    return own, torch.nn.functional.avg_pool2d(mouth_mask(own, 256), 2)


def stretching(times: float, roll: float) -> Tensor:
    """The flow that stretches the image across the line of `smile`, and is still along it."""
    up = torch.tensor([np.sin(roll), -np.cos(roll)], dtype=torch.float32).view(1, 2, 1, 1)
    grid = pixel_grid(256, up.device)
    return (1.0 / times - 1.0) * (grid * up).sum(dim=1, keepdim=True) * up


@pytest.mark.parametrize("roll", [0.0, 0.5])
def test_a_stretched_upper_lip_is_looked_up_farther_from_the_teeth(roll: float) -> None:
    own, mouth = smile(roll)
    up = torch.tensor([np.sin(roll), -np.cos(roll)], dtype=torch.float32)
    flow = stretching(2.5, roll)
    moved = 128.0 * (off_teeth(flow, ALL, own, own, mouth, torch.zeros(1, 1, 256, 256)) - flow)[0]
    above, below = ((128.0 + way * 34.0 * up).round().long().tolist() for way in (1.0, -1.0))
    assert float(moved[:, above[1], above[0]] @ up) == pytest.approx(2.0, abs=0.5)
    assert float(moved[:, below[1], below[0]].abs().max()) < 0.05
    assert float(moved[:, :40].abs().max()) < 0.05
    still = torch.zeros(1, 2, 256, 256)
    assert torch.equal(off_teeth(still, ALL, own, own, mouth, torch.zeros(1, 1, 256, 256)), still)


def test_lips_of_a_face_that_comes_nearer_and_an_open_mouth_keep_their_flow() -> None:
    own, mouth = smile()
    shut, flow = torch.zeros(1, 1, 256, 256), stretching(1.5, 0.0)
    corners = torch.tensor([33, 263])
    own[0, corners, 0] = torch.tensor([0.35, 0.65])
    nearer = 1.5 * (own - 0.5) + 0.5
    assert (off_teeth(flow, ALL, own, own, mouth, shut) - flow).abs().max() > 0.005
    torch.testing.assert_close(off_teeth(flow, ALL, nearer, own, mouth, shut), flow, atol=1e-6, rtol=0)
    assert torch.equal(off_teeth(flow, ALL, own, own, mouth, torch.ones_like(shut)), flow)


def test_a_thin_lip_is_looked_up_less_far() -> None:
    own, mouth = smile()
    flow, shut = stretching(2.5, 0.0), torch.zeros(1, 1, 256, 256)
    wide = (off_teeth(flow, ALL, own, own, mouth, shut) - flow).abs().max()
    own[0, 0] = own[0, 13] - torch.tensor([0.0, 2.0 / 256])
    thin = (off_teeth(flow, ALL, own, own, mouth, shut) - flow).abs().max()
    assert float(thin / wide) == pytest.approx(0.5, abs=0.02)


def test_the_shift_gives_no_gradient_and_lips_that_do_not_move_have_none() -> None:
    own, mouth = smile()
    flow, places = stretching(2.5, 0.0).requires_grad_(), own.clone().requires_grad_()
    off_teeth(flow, ALL, places, own, mouth, torch.zeros(1, 1, 256, 256)).sum().backward()
    assert flow.grad is not None
    torch.testing.assert_close(flow.grad, torch.ones_like(flow.grad))
    assert places.grad is None
    face = gaping(0.2)
    assert float(stirred(face, face)) == 0.0
    assert float(stirred(gaping(0.5), face)) == 1.0
