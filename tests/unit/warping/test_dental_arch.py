"""Teeth of average width in mouths that are drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from export3d.camera import Camera, projected
from export3d.camera import turned as turned_labels
from export3d.warping import dental_arch
from export3d.warping.dental_arch import dental_arches, lacking, with_teeth
from export3d.warping.landmark_motion import average_landmarks

FRONT = torch.from_numpy(Camera.orbit().label[None]).float()
HEAD = average_landmarks()[None]
UNIT = float((HEAD[0, 33] - HEAD[0, 263]).norm()) / 88.0
"""A millimetre in scene units."""
ALL = torch.ones(1, 1, 1, 1)
SKIN = torch.full((1, 3, 1, 1), 0.2)


def view(yaw: float = 0.0, pitch: float = 0.0) -> Tensor:
    return torch.from_numpy(turned_labels(FRONT.numpy(), np.array([[yaw, pitch, 0.0]]))).float()


def grid(middle: Tensor, size: int, reach: float = 0.08) -> Tensor:
    """Places (1, size, size, 2) around a place (2,) of the image."""
    at = (torch.arange(size) + 0.5) / size * 2.0 * reach - reach
    y, x = torch.meshgrid(at, at, indexing="ij")
    return (middle + torch.stack([x, y], dim=-1))[None]


def dropped(points: Tensor, by: float) -> Tensor:
    """Landmarks with chin and lower lip so many millimetres lower."""
    out = points.clone()
    out[:, [152, 14], 1] += by * UNIT
    return out


@pytest.mark.parametrize(("yaw", "pitch"), [(0.0, 0.0), (30.0, 0.0), (-30.0, 0.0), (15.0, 20.0)])
def test_a_point_of_the_arch_is_found_where_the_camera_sees_it(yaw: float, pitch: float) -> None:
    """The angle that is found for a place leads to that place, as far as the arch is seen without perspective."""
    camera = view(yaw, pitch)
    arches = dental_arches(HEAD, HEAD, ALL, camera)
    angles = torch.tensor([-0.5, 0.0, 0.4])
    x, z = 27.0 * torch.sin(angles), 34.0 * (1.0 - torch.cos(angles))
    left, down, inward = arches[0, 2:4], arches[0, 4:6], arches[0, 6:8]
    for height in (0.0, 4.0):
        places = arches[0, :2] + x[:, None] * left + z[:, None] * inward - height * down
        (_, cover, _, _) = dental_arch._shown(
            dental_arch._UPPER, arches[:, :2], arches[:, 2:8], places[None, None] + 2.0 * down, 0
        )
        assert (cover > 0.9).all() == (height > 2.0)
        assert (cover < 0.1).all() == (height < 2.0)


def test_the_upper_edges_move_with_the_skull_and_the_lower_ones_with_the_jaw() -> None:
    closed, ajar = (dental_arches(one, HEAD, ALL, FRONT)[0] for one in (HEAD, dropped(HEAD, 10.0)))
    torch.testing.assert_close(closed[:8], ajar[:8])
    assert closed[9] < closed[1], "the lower edges lie above the upper ones: the bite"
    assert ajar[9] - closed[9] > 5.0 * closed[5]
    there, _ = projected(HEAD[:, [2, 13, 152]], FRONT)
    assert there[0, 1, 1] < closed[1] < there[0, 2, 1], "between the upper lip and the chin"
    assert abs(float(closed[0] - there[0, 0, 0])) < 1e-3


def test_pale_mouths_get_teeth_and_dark_ones_none() -> None:
    arches = dental_arches(HEAD, HEAD, ALL, FRONT)
    places, mask = grid(arches[0, :2], 64), torch.ones(1, 1, 64, 64)
    made, maps = with_teeth(torch.full((1, 3, 64, 64), -0.9), mask, arches, places, SKIN)
    torch.testing.assert_close(made, torch.full_like(made, -0.9), atol=1e-5, rtol=0)
    assert maps[:, :2].max() == 0.0
    made, maps = with_teeth(torch.full((1, 3, 64, 64), 0.4), mask, arches, places, SKIN)
    above, below = made[..., 16:30, 28:36].mean(), made[..., 50:, 28:36].mean()
    assert above > below + 0.1, "teeth above the edges, a darker tongue below"
    assert maps.min() >= 0.0
    assert maps[:, :2].max() == 1.0


def test_a_source_that_shows_its_upper_teeth_gets_no_others() -> None:
    arches = dental_arches(dropped(HEAD, 10.0), HEAD, 0.0 * ALL, FRONT)
    middle = (arches[0, :2] + arches[0, 8:10]) / 2.0
    _, maps = with_teeth(torch.full((1, 3, 64, 64), 0.4), torch.ones(1, 1, 64, 64), arches, grid(middle, 64), SKIN)
    assert maps[:, 0].max() == 0.0
    assert maps[:, 1].max() > 0.9


def test_grey_mouths_stay_grey_and_coloured_ones_get_a_red_tongue() -> None:
    arches = dental_arches(dropped(HEAD, 12.0), HEAD, ALL, FRONT)
    places, mask, drawn = grid(arches[0, :2], 64), torch.ones(1, 1, 64, 64), torch.full((1, 3, 64, 64), 0.4)
    made, _ = with_teeth(drawn, mask, arches, places, SKIN)
    assert (made - made.mean(dim=1, keepdim=True)).abs().max() < 1e-5
    made, _ = with_teeth(drawn, mask, arches, places, torch.tensor([0.4, 0.0, -0.2]).view(1, 3, 1, 1))
    red = made[:, 0] - made[:, 1:].amax(dim=1)
    assert red.max() > 0.1


def test_what_a_larger_image_lacks_are_lines_and_edges_alone() -> None:
    """Added to the model's teeth it gives those of a finer texture; their mean brightness hardly changes."""
    arches = dental_arches(HEAD, HEAD, ALL, FRONT)
    places = grid(arches[0, :2], 256)
    mask = torch.ones(1, 1, 256, 256)
    _, maps = with_teeth(torch.full((1, 3, 256, 256), 0.4), mask, arches, places, SKIN)
    assert lacking(arches, maps, places, 256.0).abs().max() < 0.01, "nothing, in an image of the model's size"
    fine = lacking(arches, maps, places, 1024.0)
    assert fine.abs().max() > 0.05
    assert fine.abs().mean() > 5.0 * fine.mean().abs()
    assert (
        lacking(arches, maps * torch.tensor([1, 1, 1, 1, 1, 1, 0]).view(1, 7, 1, 1), places, 1024.0).abs().max() == 0.0
    )


def test_textures_serve_training_after_inference_in_half_precision() -> None:
    dental_arch._textures.clear()
    arches = dental_arches(HEAD, HEAD, ALL, FRONT)
    places, mask = grid(arches[0, :2], 32), torch.ones(1, 1, 32, 32)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        with_teeth(torch.full((1, 3, 32, 32), 0.4), mask, arches, places, SKIN)
    drawn = torch.full((1, 3, 32, 32), 0.4, requires_grad=True)
    with_teeth(drawn, mask, arches, places, SKIN)[0].sum().backward()
    assert drawn.grad is not None
    assert drawn.grad.isfinite().all()
