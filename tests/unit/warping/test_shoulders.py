"""Shoulders that go where the driving ones went."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from export3d.camera import COLLAR, NECK, Camera, projected
from export3d.config import variant
from export3d.warping.shoulders import following, leaning_at_shoulders
from tests.tiny_models import PARTS, awake, inputs, landmarks, warped

SIZE = 256
OWN = torch.from_numpy(Camera.orbit().label[None]).float()
PLACES = landmarks(OWN)
STILL = torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0]])
CHIN = float(PLACES[0, 152, 1])


def person() -> Tensor:
    """Opacity of somebody whose body fills the middle half of the picture."""
    opacity = torch.zeros(1, 1, SIZE, SIZE)
    opacity[..., SIZE // 4 : -SIZE // 4] = 1.0
    return opacity


def face() -> Tensor:
    """Where the face is: the rectangle around its landmarks."""
    left, top, right, bottom = (SIZE * torch.cat([PLACES[0].amin(0), PLACES[0].amax(0)])).round().int().tolist()
    shown = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    shown[:, top:bottom, left:right] = True
    return shown


def moved(
    x: float,
    y: float,
    sure: float = 1.0,
    flow: Tensor | None = None,
    camera: Tensor = OWN,
    turn: float = 0.0,
    size: float = 0.0,
) -> Tensor:
    """The change of a flow, crop widths, by shoulders that went so far."""
    before = torch.zeros(1, 2, SIZE, SIZE) if flow is None else flow
    asked = torch.tensor([[x, y, sure, turn, size]])
    return (following(before, asked, OWN, camera, PLACES, PLACES, face(), person())[0] - before) / 2.0


def test_below_the_chin_the_person_is_looked_up_where_it_came_from() -> None:
    change = moved(0.1, -0.04)
    low = change[0, :, -16:, SIZE // 2 - 16 : SIZE // 2 + 16].mean(dim=(1, 2))
    assert low[0] / -0.1 == pytest.approx(0.95, abs=0.03)  # what is measured is trusted so far
    assert low[1] / 0.04 == pytest.approx(0.95, abs=0.03)


def test_face_upper_head_and_background_stay() -> None:
    change = moved(0.1, 0.1).abs()
    assert change[0, :, : int((CHIN - 0.5) * SIZE)].max() == 0.0
    assert change[:, :, face()[0]].max() < 0.03  # at its edge
    assert change[..., :8].max() < 1e-3


def test_shoulders_move_as_one_piece_whatever_was_learned_about_places() -> None:
    flow = 0.05 * torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    flow = torch.nn.functional.interpolate(flow, SIZE, mode="bilinear")
    part = (0, slice(None), slice(-16, None), slice(SIZE // 2 - 16, SIZE // 2 + 16))
    before, after = flow[part].std(), (flow + 2.0 * moved(0.05, 0.0, flow=flow))[part]
    assert (after - after.mean(dim=(1, 2), keepdim=True)).std() < 0.15 * before


@pytest.mark.parametrize(("turn", "size"), [(0.2, 0.0), (0.0, 0.15), (-0.1, -0.1)])
def test_they_turn_and_grow_about_the_collar(turn: float, size: float) -> None:
    collar = SIZE * projected(torch.tensor(COLLAR).view(1, 1, 3), OWN)[0][0, 0]
    x, y = SIZE // 2 + 40, SIZE - 12
    from_x, from_y = (torch.tensor([x, y]) + 0.5 - collar).tolist()
    # clockwise, y down: the place that is seen at (x, y) was turned there, and enlarged
    shrunk, cos, sin = (torch.tensor(v) for v in (-size, turn, turn))
    k, c, s = float(shrunk.exp()), float(cos.cos()), float(sin.sin())
    wanted = torch.tensor([k * (c * from_x + s * from_y) - from_x, k * (c * from_y - s * from_x) - from_y]) / SIZE
    torch.testing.assert_close(moved(0.0, 0.0, turn=turn, size=size)[0, :, y, x], 0.95 * wanted, atol=3e-3, rtol=0.0)


def test_shoulders_of_a_head_that_comes_nearer_grow_with_it() -> None:
    near = torch.from_numpy(Camera.orbit(radius=2.4).label[None]).float()
    own, grown = moved(0.0, 0.0, camera=near), moved(0.0, 0.0, camera=near, size=-0.1178)
    row = slice(SIZE // 2 - 40, SIZE // 2 + 40)
    spread = [change[0, 0, -8, row].diff().mean() * SIZE for change in (own, grown)]
    assert spread[0] == pytest.approx(0.95 * (2.4 / 2.7 - 1.0), abs=0.02)
    assert spread[1] == pytest.approx(0.0, abs=0.02)


def test_shoulders_go_with_the_neck_where_they_do_not_move_beside_it() -> None:
    camera = torch.from_numpy(Camera.orbit(yaw_deg=20.0).label[None]).float()
    neck = torch.tensor(NECK).view(1, 1, 3)
    way = (projected(neck, camera)[0] - projected(neck, OWN)[0])[0, 0]
    low = moved(0.0, 0.0, camera=camera)[0, :, -16:, SIZE // 2 - 16 : SIZE // 2 + 16].mean(dim=(1, 2))
    torch.testing.assert_close(low, -0.95 * way, atol=2e-3, rtol=0.0)


def test_a_head_that_rises_shows_no_second_chin() -> None:
    """Nothing of the source's face is looked up with the still shoulders: the neck that rises is seen there."""
    up, raised = PLACES - torch.tensor([0.0, 0.12]), torch.roll(face(), -round(0.12 * SIZE), dims=1)
    flow = torch.zeros(1, 2, SIZE, SIZE)
    flow[:, 1] = 0.24
    risen = following(flow, STILL, OWN, OWN, up, PLACES, raised, person())[0][0, 1, :, SIZE // 2]
    assert risen[: round((CHIN - 0.02) * SIZE)].min() > 0.239
    assert risen[-4:].max() < 0.03


def test_how_sure_it_is_decides_how_far_they_go() -> None:
    torch.testing.assert_close(moved(0.1, 0.0, 0.5), 0.5 * moved(0.1, 0.0))
    assert not moved(0.1, 0.0, 0.0).any()


def test_where_shoulders_came_the_moved_image_is_chosen_and_where_they_left_the_still_one_is_not() -> None:
    share = following(torch.zeros(1, 2, SIZE, SIZE), STILL, OWN, OWN, PLACES, PLACES, face(), person())[1]
    assert share[..., -4:, SIZE // 8].min() == pytest.approx(0.95, abs=0.01)
    assert not share[..., : SIZE // 16, :].any()
    still = person()
    came = torch.roll(still, 16, dims=3)
    logits = torch.zeros(1, 4, SIZE // 4, SIZE // 4)
    found = leaning_at_shoulders(logits, share, torch.cat([came, still, still], dim=1))[0, :, -2]
    right, left, middle = 3 * SIZE // 16 + 1, SIZE // 16 + 1, SIZE // 8
    assert found[1, right] > 5.0
    assert found[2, left] < -5.0
    assert not found[:, middle].any()
    assert not found[[0, 3]].any()
    assert not found[2, right]
    assert not found[1, left]


def test_a_picture_that_ends_at_the_chin_is_left_alone() -> None:
    low = PLACES + torch.tensor([0.0, 1.0 - CHIN])
    flow = torch.zeros(1, 2, SIZE, SIZE)
    asked = torch.tensor([[0.1, 0.1, 1.0, 0.0, 0.0]])
    found, share = following(flow, asked, OWN, OWN, low, low, face(), person())
    assert torch.equal(found, flow)
    assert not share.any()


def test_a_model_moves_them_only_with_the_part_and_where_they_are_known() -> None:
    whole = awake(warped(*PARTS))
    without = awake(variant(warped(*PARTS), "no_shoulders"))
    without.load_state_dict(whole.state_dict())
    source, expression, camera = inputs(2)
    known = torch.tensor([[0.2, 0.1, 1.0, 0.1, 0.1], [0.2, 0.1, 0.0, 0.1, 0.1]])
    frames = []
    for model, told in ((whole, False), (whole, True), (without, True)):
        with torch.no_grad():
            encoded = model.encode(source, camera, expression, landmarks(camera), torch.ones_like(source[:, :1]))
            planes = model.planes(encoded, expression)
            frames.append(model.frame(planes.with_shoulders(known) if told else planes, camera))
    resting, following_, off = frames
    assert torch.equal(resting, off)
    assert not torch.equal(resting[0], following_[0])
    assert torch.equal(resting[1], following_[1])
