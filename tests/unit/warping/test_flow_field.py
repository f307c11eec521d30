"""Flow fields: pixel grids, lookup by a flow, how far a flow stretches, and polygon masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from export3d.warping.flow_field import covered, longest_stretch, look_up, pixel_grid, stretch


def test_the_grid_has_the_middles_of_pixels_and_x_first() -> None:
    grid = pixel_grid(4, torch.device("cpu"))
    centres = torch.tensor([-0.75, -0.25, 0.25, 0.75])
    assert torch.equal(grid, torch.stack([centres.expand(4, 4), centres.expand(4, 4).T])[None])


@pytest.mark.parametrize("size", [8, 37, 256])
def test_whoever_looks_at_its_own_place_sees_the_image(size: int) -> None:
    image = torch.rand(2, 3, size, size)
    torch.testing.assert_close(look_up(image, torch.zeros(2, 2, size, size)), image, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("x", "y"), [(2, 0), (0, 2), (-3, 1)])
def test_whoever_looks_some_pixels_beside_sees_what_lies_there_and_the_border_goes_on(x: int, y: int) -> None:
    image = torch.rand(2, 3, 16, 16)
    flow = (2.0 / 16 * torch.tensor([x, y], dtype=torch.float32))[None, :, None, None].expand(2, 2, 16, 16)
    columns, rows = ((torch.arange(16) + step).clamp(0, 15) for step in (x, y))
    torch.testing.assert_close(look_up(image, flow), image[:, :, rows][..., columns], atol=1e-5, rtol=0)


def test_a_flow_by_a_constant_shifts_features_also_where_width_and_height_differ() -> None:
    """In grid units a pixel is 2 / W: every place shows what lies so far to its right, or below it."""
    features = torch.randn(2, 3, 8, 16)
    x, y = torch.meshgrid((torch.arange(16) + 0.5) / 8 - 1, (torch.arange(8) + 0.5) / 4 - 1, indexing="xy")
    centres = torch.stack([x, y])[None]
    right, down = torch.zeros(2, 2, 8, 16), torch.zeros(2, 2, 8, 16)
    right[:, 0], down[:, 1] = 3 * 2 / 16, 2 * 2 / 8

    def shifted(flow: Tensor) -> Tensor:
        return look_up(features, flow, centres)

    torch.testing.assert_close(shifted(torch.zeros(2, 2, 8, 16)), features, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(shifted(right)[..., :-3], features[..., 3:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(shifted(right)[..., -3:], features[..., -1:].expand(2, 3, 8, 3))  # the border
    torch.testing.assert_close(shifted(down)[..., :-2, :], features[..., 2:, :], rtol=1e-5, atol=1e-5)


def test_centres_of_ones_own_take_the_place_of_the_pixels() -> None:
    image, flow = torch.rand(1, 3, 16, 16), 0.1 * torch.randn(1, 2, 16, 16)
    grid, aside = pixel_grid(16, torch.device("cpu")), torch.full((1, 2, 1, 1), 0.25)
    assert torch.equal(look_up(image, flow, grid), look_up(image, flow))
    torch.testing.assert_close(look_up(image, flow, grid + aside), look_up(image, flow + aside), atol=1e-5, rtol=0)
    assert not torch.allclose(look_up(image, flow, grid + aside), look_up(image, flow), atol=1e-2)


def test_a_flow_finer_than_its_image_looks_between_pixels() -> None:
    ramp = pixel_grid(16, torch.device("cpu"))  # shows each place where it is
    flow = 0.2 * torch.randn(3, 2, 48, 48)
    wanted = (pixel_grid(48, torch.device("cpu")) + flow).clamp(-15 / 16, 15 / 16)
    torch.testing.assert_close(look_up(ramp.expand(3, -1, -1, -1), flow), wanted, atol=1e-5, rtol=0)


def test_under_bfloat16_autocast_places_keep_their_precision() -> None:
    image, flow = torch.rand(1, 3, 64, 64), 0.2 * torch.randn(1, 2, 64, 64)
    wanted = look_up(image, flow)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(look_up(image, flow), wanted)
        assert look_up(image.bfloat16(), flow).dtype == torch.float32


# ---- stretch ---------------------------------------------------------------------------------------------------------


def zoom(x: float, y: float, size: int = 32) -> Tensor:
    """The flow (1, 2, size, size) that looks up x and y at these multiples of the place."""
    places = torch.linspace(-1 + 1 / size, 1 - 1 / size, size)
    return torch.stack([((x - 1) * places).expand(size, size), ((y - 1) * places)[:, None].expand(size, size)])[None]


@pytest.mark.parametrize(
    ("x", "y", "wanted"), [(1.0, 1.0, 0.0), (0.5, 1.0, 0.5), (0.5, 0.5, 0.75), (2.0, 1.0, 0.0), (0.0, 1.0, 1.0)]
)
def test_stretch_is_the_share_of_a_place_that_the_source_does_not_cover(x: float, y: float, wanted: float) -> None:
    inner = stretch(zoom(x, y))[..., 1:-1, 1:-1]
    torch.testing.assert_close(inner, torch.full_like(inner, wanted), atol=1e-5, rtol=0)


def test_turning_the_source_does_not_stretch_it() -> None:
    size, angle = 32, 0.3
    y, x = torch.meshgrid(*(torch.linspace(-1 + 1 / size, 1 - 1 / size, size),) * 2, indexing="ij")
    cos, sin = np.cos(angle), np.sin(angle)
    flow = torch.stack([cos * x - sin * y - x, sin * x + cos * y - y])[None]
    assert stretch(flow)[..., 1:-1, 1:-1].max() < 1e-5


@pytest.mark.parametrize(("x", "y", "wanted"), [(1.0, 1.0, 0.0), (2.0, 0.4, 0.6), (0.4, 2.0, 0.6), (3.0, 2.0, 0.0)])
def test_the_longest_stretch_is_that_of_one_direction(x: float, y: float, wanted: float) -> None:
    flow = zoom(x, y)
    inner = longest_stretch(flow)[..., 1:-1, 1:-1]
    torch.testing.assert_close(inner, torch.full_like(inner, wanted), atol=1e-5, rtol=0)
    grid, half = pixel_grid(32, flow.device), 0.5**0.5
    turn = torch.tensor([[half, -half], [half, half]])
    turned = torch.einsum("ij,bjhw->bihw", turn, grid + flow) - grid
    torch.testing.assert_close(longest_stretch(turned)[..., 1:-1, 1:-1], inner, atol=1e-4, rtol=0)


# ---- polygons --------------------------------------------------------------------------------------------------------


def test_a_polygon_covers_the_pixels_whose_middles_lie_in_it() -> None:
    box = torch.tensor([[0.25, 0.125], [0.75, 0.125], [0.75, 0.5], [0.25, 0.5]])
    wanted = torch.zeros(8, 8)
    wanted[1:4, 2:6] = 1.0
    assert torch.equal(covered(torch.stack([box, box.flip(0)]), 8), wanted.expand(2, 1, 8, 8))


@pytest.mark.parametrize("size", [16, 40])
def test_a_polygon_may_be_bent_inward_and_lie_partly_or_wholly_outside(size: int) -> None:
    x, y = ((pixel_grid(size, torch.device("cpu")) + 1.0) / 2.0)[0]
    arrow = torch.tensor([[0.1, 0.1], [0.9, 0.1], [0.9, 0.9], [0.5, 0.3]])  # what is under both lower edges is out
    lower_left = y - 0.1 > (x - 0.1) * 0.5
    lower_right = (y - 0.3) > (x - 0.5) * 1.5
    wanted = (x < 0.9) & (y > 0.1) & ~torch.where(x < 0.5, lower_left, lower_right)
    assert torch.equal(covered(arrow[None], size)[0, 0].bool(), wanted)
    beyond = torch.tensor([[-1.0, -1.0], [0.5, -1.0], [0.5, 2.0], [-1.0, 2.0]])
    assert torch.equal(covered(beyond[None], size)[0, 0].bool(), x < 0.5)
    assert not covered(arrow[None] + 2.0, size).any()


def test_a_polygon_without_an_inside_covers_nothing() -> None:
    line = torch.tensor([[0.1, 0.3], [0.9, 0.3], [0.9, 0.3], [0.1, 0.3]])
    assert not covered(torch.stack([line, torch.full((4, 2), 0.5)]), 32).any()
