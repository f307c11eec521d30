"""Sampling of the three planes xy, yz and zx."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from export3d.errors import ShapeError
from export3d.render.planes import PLANE_AXES, plane_features
from tests import reference

HALF = 0.45


def one_at_a_time(planes: torch.Tensor, points: torch.Tensor) -> list[torch.Tensor]:
    """The contribution of each of the three planes."""
    alone = []
    for plane in range(3):
        kept = torch.zeros_like(planes)
        kept[:, plane] = planes[:, plane]
        alone.append(plane_features(kept, points, HALF))
    return alone


@pytest.mark.parametrize(("axis", "changed"), [(0, {0, 2}), (1, {0, 1}), (2, {1, 2})], ids=["x", "y", "z"])
def test_a_moved_point_changes_exactly_the_two_planes_that_contain_its_axis(axis: int, changed: set[int]) -> None:
    planes = torch.randn(1, 3, 4, 16, 16)
    points = torch.rand(1, 20, 3) * 0.5 - 0.25
    moved = points.clone()
    moved[..., axis] += 0.1
    before, after = one_at_a_time(planes, points), one_at_a_time(planes, moved)
    for plane in range(3):
        same = (before[plane] == after[plane]).all(dim=-1)
        assert (not same.any()) if plane in changed else same.all()


def test_the_three_planes_are_three_different_pairs_of_axes() -> None:
    assert {frozenset(axes) for axes in PLANE_AXES} == {frozenset({0, 1}), frozenset({1, 2}), frozenset({0, 2})}


@pytest.mark.parametrize(
    ("plane", "column_axis", "row_axis"), [(0, 0, 1), (1, 1, 2), (2, 2, 0)], ids=["xy", "yz", "zx"]
)
def test_a_plane_has_its_first_axis_along_columns_and_its_second_along_rows(
    plane: int, column_axis: int, row_axis: int
) -> None:
    planes = torch.zeros(1, 3, 1, 8, 8)
    planes[0, plane, 0, 2, 6] = 1.0
    point = torch.zeros(1, 1, 3)
    point[0, 0, column_axis] = ((6 + 0.5) / 8 * 2 - 1) * HALF
    point[0, 0, row_axis] = ((2 + 0.5) / 8 * 2 - 1) * HALF
    assert float(plane_features(planes, point, HALF)) == pytest.approx(1 / 3, rel=1e-5)
    assert float(plane_features(planes, -point, HALF)) == 0.0


def test_look_ups_agree_with_the_slow_twin_inside_at_the_border_and_outside() -> None:
    planes = torch.randn(2, 3, 5, 6, 9, dtype=torch.float64)
    points = torch.rand(2, 60, 3, dtype=torch.float64) * 1.2 - 0.6
    found = plane_features(planes, points, HALF).numpy()
    for b in range(2):
        for p in range(60):
            expected = reference.plane_feature(planes[b].numpy(), points[b, p].numpy(), HALF)
            np.testing.assert_allclose(found[b, p], expected, rtol=1e-9, atol=1e-12)


def test_features_are_the_mean_of_the_planes() -> None:
    planes = torch.stack([torch.full((1, 2, 8, 8), value) for value in (1.0, 2.0, 6.0)], dim=1)
    torch.testing.assert_close(plane_features(planes, torch.zeros(1, 1, 3), HALF), torch.full((1, 1, 2), 3.0))


def test_features_are_zero_outside_the_cube() -> None:
    planes = torch.ones(1, 3, 2, 8, 8)
    points = torch.tensor([[[1.0, 1.0, 1.0], [-0.6, 0.7, -0.8]]])
    assert plane_features(planes, points, HALF).count_nonzero() == 0


def test_gradients_are_exact_for_planes_and_for_points() -> None:
    planes = torch.randn(1, 3, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    points = (torch.rand(1, 6, 3, dtype=torch.float64) * 1.0 - 0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: plane_features(a, b, HALF), (planes, points))


def test_items_of_a_batch_see_their_own_planes() -> None:
    planes, points = torch.randn(3, 3, 2, 8, 8), torch.rand(3, 7, 3) - 0.5
    together = plane_features(planes, points, HALF)
    for b in range(3):
        torch.testing.assert_close(together[b : b + 1], plane_features(planes[b : b + 1], points[b : b + 1], HALF))


def test_two_planes_are_refused() -> None:
    with pytest.raises(ShapeError, match="planes"):
        plane_features(torch.zeros(1, 2, 4, 8, 8), torch.zeros(1, 1, 3), HALF)
