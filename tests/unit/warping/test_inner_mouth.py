"""What is drawn of mouths because the source does not show it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from export3d.camera import Camera
from export3d.camera import turned as turned_labels
from export3d.config import variant
from export3d.warping.detail import Views
from export3d.warping.flows import mouth_mask
from export3d.warping.inner_mouth import SIDE, InnerMouth, Square, Teeth, filled, opening, with_above
from export3d.warping.source_warp import SourceMotion
from export3d.warping.teeth import hidden
from tests.tiny_models import PARTS, awake, cameras, inputs, landmarks, matte, warped

SIZE = 128
FRONT = torch.from_numpy(Camera.orbit().label[None]).float()
LIPS = (13, 312, 311, 310, 415, 82, 81, 80, 191), (14, 317, 402, 318, 324, 87, 178, 88, 95)
"""Inner lips, the upper one first, without the corners."""
NO_TEETH = torch.zeros(1, 1, SIZE, SIZE)
NO_ARCH = torch.tensor([[9.0, 9.0, 0.004, 0.0, 0.0, 0.004, 0.0, 0.0, 9.0, 9.0, 0.0]])
"""An arch far below the image."""

ONE = torch.ones(1, 1, 1, 1)


def opened(places: Tensor, gap: float) -> Tensor:
    """Landmarks (B, 478, 2 or 3) with the lower lip so far below the upper one."""
    out = places.clone()
    upper, lower = (out[:, list(lip)] for lip in LIPS)
    upper[..., 1] = lower[..., 1] = out[:, 13:14, 1]
    lower[..., 1] += gap
    out[:, list(LIPS[0])], out[:, list(LIPS[1])] = upper, lower
    return out


def turned(places: Tensor, degrees: float, zoom: float, shift: tuple[float, float]) -> Tensor:
    """Landmarks (B, 478, 2), turned clockwise about the image's middle, enlarged and shifted."""
    angle = torch.tensor(degrees).deg2rad()
    c, s = angle.cos(), angle.sin()
    return zoom * (places - 0.5) @ torch.stack([torch.stack([c, s]), torch.stack([-s, c])]) + 0.5 + torch.tensor(shift)


def test_the_square_goes_where_the_face_goes() -> None:
    """What it shows of a picture of its own pixels' places is the same face at every place, size and angle."""
    places = landmarks(FRONT)
    moved = turned(places, 25.0, 1.3, (0.06, -0.04))
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    here = torch.stack([x, y]).div(SIZE)[None]
    seen, also = (Square(one).seen(here).flatten(2).mT for one in (places, moved))
    torch.testing.assert_close(turned(seen, 25.0, 1.3, (0.06, -0.04)), also, atol=2e-3, rtol=0)
    mouth = Square(places).inside(places[:, [78, 308, 13, 14]])
    assert mouth.min() > 0.2
    assert mouth.max() < 0.8


def test_half_precision_does_not_round_where_the_square_is() -> None:
    places = turned(landmarks(FRONT), 25.0, 1.0, (0.0, 0.0))
    with torch.autocast("cpu", torch.bfloat16):
        found = Square(places).inside(places)
    torch.testing.assert_close(found, Square(places).inside(places))


def test_a_square_shown_and_spread_again_is_where_it_was() -> None:
    picture = torch.nn.functional.interpolate(torch.rand(1, 3, 9, 9), SIZE, mode="bicubic")
    square = Square(landmarks(FRONT))
    found = square.spread(torch.cat([square.seen(picture), torch.ones(1, 1, SIDE, SIDE)], dim=1), SIZE)
    inside = found[:, 3:] > 0.999
    assert 0.03 < inside.float().mean() < 0.5
    assert ((found[:, :3] - picture).abs() * inside).max() < 0.02


def test_the_hole_is_what_lies_between_the_lips() -> None:
    places = landmarks(FRONT)
    square = Square(places)
    closed, ajar, wide = (opening(square, opened(places, gap)).sum() for gap in (0.0, 0.02, 0.06))
    assert closed < ajar < wide < 0.3 * SIDE**2


def test_however_wide_a_mouth_opens_it_lies_in_the_square() -> None:
    for gap in (0.1, 0.2, 0.4):
        places = opened(landmarks(FRONT), gap)
        square = Square(places)
        inside = square.inside(places[:, [n for lip in LIPS for n in lip]])
        assert inside.min() > 0.05
        assert inside.max() <= 0.91
        assert opening(square, places)[..., -2:, :].sum() == 0.0


def test_only_the_hole_is_drawn_by_its_share_and_counts_as_rendered() -> None:
    torch.manual_seed(0)
    image, share = torch.rand(2, 3, SIZE, SIZE), torch.rand(2, 4, SIZE, SIZE).softmax(dim=1)
    places = opened(landmarks(FRONT), 0.05).expand(2, -1, -1)
    part = torch.tensor([1.0, 0.5]).view(2, 1, 1, 1)
    with torch.no_grad():
        drawn, shares, _ = filled(
            InnerMouth(), image, share, places, part, NO_TEETH.expand(2, -1, -1, -1), NO_ARCH.expand(2, -1)
        )
    changed = (drawn != image).any(dim=1)
    square = Square(places)
    hole = square.spread(opening(square, places), SIZE)[:, 0] > 0.0
    assert changed.any(dim=(1, 2)).all()
    assert not (changed & ~hole).any()
    torch.testing.assert_close(shares.sum(dim=1), torch.ones_like(shares[:, 0]))
    middle = (places[0, 13] + places[0, 14]) / 2.0 * SIZE
    at = (..., int(middle[1]), int(middle[0]))
    torch.testing.assert_close(shares[0][at], torch.tensor([1.0, 0.0, 0.0, 0.0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(shares[1][at], (shares[0][at] + share[1][at]) / 2.0, atol=1e-4, rtol=0)


def test_a_mask_is_filled_upwards() -> None:
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., 20, 10], mask[..., 5, 11] = 1.0, 0.5
    found = with_above(mask)[0, 0]
    assert (found[:21, 10] == 1.0).all()
    assert (found[:6, 11] == 0.5).all()
    assert found.sum() == 21 + 6 * 0.5


def test_teeth_and_what_is_above_them_stay_and_what_is_below_is_drawn() -> None:
    torch.manual_seed(0)
    image, share = torch.rand(1, 3, SIZE, SIZE), torch.rand(1, 4, SIZE, SIZE).softmax(dim=1)
    places = opened(landmarks(FRONT), 0.15)
    upper, lower = (places[0, lip] * SIZE for lip in (13, 14))
    middle, column = int((upper[1] + lower[1]) / 2.0), int(upper[0])
    teeth = torch.zeros_like(NO_TEETH)
    teeth[..., middle - 3 : middle, column - 8 : column + 8] = 1.0
    holes = []

    def draw(seen: Tensor, hole: Tensor) -> Tensor:
        holes.append(hole)
        return torch.full_like(seen, -1.0)

    with torch.no_grad():
        drawn, shares, _ = filled(draw, image, share, places, ONE, teeth, NO_ARCH)
        filled(draw, image, share, places, ONE, NO_TEETH, NO_ARCH)
    above = (..., slice(middle - 1), slice(column - 4, column + 4))
    assert torch.equal(drawn[above], image[above])
    below = (..., slice(middle + 3, int(lower[1]) - 1), column)
    assert (drawn[below] < -0.99).all()
    torch.testing.assert_close(shares[below][:, 0], torch.ones_like(shares[below][:, 0]))
    assert holes[0].sum() < holes[1].sum()
    assert not (holes[0] > holes[1]).any()


def test_what_is_drawn_gets_darker_but_for_white() -> None:
    places = opened(landmarks(FRONT), 0.15)
    middle = (places[0, 13] + places[0, 14]) / 2.0 * SIZE
    at = (0, slice(None), int(middle[1]), int(middle[0]))
    image, share = torch.zeros(1, 3, SIZE, SIZE), torch.full((1, 4, SIZE, SIZE), 0.25)
    shown = [
        filled(lambda seen, _, value=value: torch.full_like(seen, value), image, share, places, ONE, NO_TEETH, NO_ARCH)[
            0
        ][at]
        for value in (-1.0, 0.0, 1.0)
    ]
    torch.testing.assert_close(torch.stack(shown)[:, 0], torch.tensor([-1.0, -0.129, 1.0]), atol=1e-3, rtol=0)


def test_what_is_drawn_does_not_depend_on_what_lies_within_or_on_the_edge() -> None:
    torch.manual_seed(0)
    places = opened(landmarks(FRONT), 0.06)
    hole = opening(Square(places), places)
    seen = torch.rand(1, 3, SIDE, SIDE)
    edge = torch.nn.functional.max_pool2d(hole, 5, 1, 2)
    network = InnerMouth()
    with torch.no_grad():
        other = torch.lerp(seen, torch.rand_like(seen), edge)
        assert torch.equal(network(seen, hole), network(other, hole))


def test_a_square_that_does_not_stand_on_the_face_draws_nothing() -> None:
    """Where a face is turned to a side and up or down, down in the picture is not across to its eyes."""
    places = opened(landmarks(FRONT), 0.06)
    assert float(Square(places).upright) == 1.0
    assert float(Square(turned(places, 70.0, 1.0, (0.0, 0.0))).upright) == 1.0
    for slope, drawn in ((0.2, 1.0), (0.5, 0.5), (0.9, 0.0)):
        skewed = places.clone()
        skewed[..., 1] += slope * (skewed[..., 0] - 0.5)
        assert float(Square(skewed).upright) == pytest.approx(drawn, abs=0.3)
    image, share = torch.rand(1, 3, SIZE, SIZE), torch.rand(1, 4, SIZE, SIZE)
    assert torch.equal(filled(InnerMouth(), image, share, skewed, ONE, NO_TEETH, NO_ARCH)[0], image)


def test_closed_mouths_are_left_alone() -> None:
    image, share = torch.rand(1, 3, SIZE, SIZE), torch.rand(1, 4, SIZE, SIZE)
    made = filled(InnerMouth(), image, share, landmarks(FRONT), torch.zeros(1, 1, 1, 1), NO_TEETH, NO_ARCH)
    assert made[0] is image
    assert made[1] is share
    assert Teeth(NO_ARCH, landmarks(FRONT), made[2]).box() is None


@pytest.mark.parametrize(
    ("own", "driven", "drawn"),
    [
        (0.0, 0.1, 1.0),
        (0.0, 0.036, 1.0),  # the line between closed lips must not be stretched
        (0.0, 0.012, 0.0),
        (0.0, 0.0, 0.0),
        (0.065, 0.1225, 0.5),  # half shows teeth
        (0.1, 0.16, 0.0),  # teeth of the source are still all there is
        (0.1, 0.2, 0.5),
        (0.1, 0.24, 1.0),
        (0.2, 0.1, 0.0),
    ],
)
def test_a_mouth_is_drawn_as_far_as_it_opens_beyond_its_source(own: float, driven: float, drawn: float) -> None:
    points = torch.zeros(1, 478, 3)
    points[:, 263, 0] = 1.0  # the outer eye corners
    before, after = points.clone(), points.clone()
    before[:, 14, 1], after[:, 14, 1] = own, driven
    assert hidden(after, before).item() == pytest.approx(drawn, abs=1e-4)


def test_frames_change_only_where_a_hidden_mouth_opens() -> None:
    model = awake(warped(*PARTS))
    without = awake(variant(warped(*PARTS), "no_inside"))
    without.load_state_dict({name: x for name, x in model.state_dict().items() if not name.startswith("warp.inner.")})
    source, expression, camera = inputs(2)
    own = torch.zeros(2, 52)
    places = opened(landmarks(camera), 0.0)
    with torch.no_grad():
        planes = model.planes(model.encode(source, camera, own, places, matte(source)), expression)
        assert planes.motion is not None
        for gap, drawn in ((0.0, False), (0.15, True)):
            assert planes.motion.points is not None
            still = planes.source.view.face.points
            points = still.clone()
            points[:, list(LIPS[1]), 1] += gap * (-1.0 if still[0, 152, 1] < still[0, 10, 1] else 1.0)
            asked = replace(planes, motion=replace(planes.motion, points=points))
            made, plain = (one.frame(asked, cameras(2)) for one in (model, without))
            assert torch.equal(made, plain) != drawn
            assert (made != plain).any(dim=1).float().mean() < 0.2


def mouth_views(gap: float, turned_by: float = 0.0) -> tuple[Views, Tensor]:
    """How a mouth that is white above its middle and dark below is seen when it opens farther; and what is below."""
    model, camera = awake(warped(*PARTS)), cameras(1)
    assert model.warp is not None
    places = opened(landmarks(camera), gap)
    size = inputs(1)[0].shape[-1]
    below = torch.arange(size).view(-1, 1) > size * places[0, [13, 14], 1].mean()
    mouth = mouth_mask(places, size) > 0.0
    source = torch.where(mouth, torch.where(below, -1.0, 1.0), -0.3).expand(1, 3, -1, -1)
    away = torch.from_numpy(turned_labels(camera.numpy(), np.array([[turned_by, 0.0, 0.0]]))).float()
    with torch.no_grad():
        view = model.encode(source, camera, torch.zeros(1, 52), places, matte(source)).view
        assert view is not None
        assert view.face is not None
        points = view.face.points.clone()
        points[:, list(LIPS[1]), 1] += 0.1 * (-1.0 if points[0, 152, 1] < points[0, 10, 1] else 1.0)
        return model.warp.views(view, SourceMotion(points), away), below


@pytest.mark.parametrize(("gap", "shown"), [(0.0, False), (0.1, True)])
def test_the_upper_teeth_of_a_source_that_shows_them_are_kept(gap: float, shown: bool) -> None:
    views, below = mouth_views(gap)
    assert views.kept is not None
    kept = torch.nn.functional.interpolate(views.kept, len(below)) > 0.5
    assert kept.any() == shown
    assert not (kept & below).any()
    assert float(views.hidden) > 0.9


@pytest.mark.parametrize(("gap", "drawn"), [(0.0, True), (0.1, False)])
def test_nothing_is_drawn_below_teeth_that_are_seen_from_the_side(gap: float, drawn: bool) -> None:
    assert (float(mouth_views(gap, 40.0)[0].hidden) > 0.9) == drawn
