"""Distances between readings of two faces."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from export3d.errors import ShapeError
from export3d.evaluation.measures.face_distances import aed, akd, apd, apd6


def test_akd_is_the_sum_of_both_coordinates_and_the_mean_of_the_points() -> None:
    a, b = np.zeros((2, 68, 2)), np.zeros((2, 68, 2))
    b[0] += [3.0, -4.0]
    b[1, 0] = [-68.0, 0.0]
    np.testing.assert_allclose(akd(a, b), [7.0, 1.0])
    np.testing.assert_allclose(akd(b, a), [7.0, 1.0])


def test_aed_is_the_mean_over_the_values_whatever_their_number() -> None:
    np.testing.assert_allclose(aed(np.zeros((1, 4)), np.array([[0.4, -0.4, 0.0, 0.8]])), [0.4])
    np.testing.assert_allclose(aed(np.zeros((2, 64)), np.full((2, 64), 0.25)), [0.25, 0.25])


def test_angles_go_the_short_way_round() -> None:
    np.testing.assert_allclose(apd(np.array([[179.0, 0.0, 359.0]]), np.array([[-179.0, 3.0, 1.0]])), [7 / 3])
    a, b = np.zeros((1, 6)), np.array([[2 * np.pi - 0.3, 0.1, 0.0, 0.2, 0.0, -0.6]])
    np.testing.assert_allclose(apd6(a, b), [0.2])


def test_what_was_not_found_is_not_zero() -> None:
    a = np.zeros((2, 3))
    a[1] = np.nan
    assert apd(a, np.zeros((2, 3)))[0] == 0.0
    assert np.isnan(apd(a, np.zeros((2, 3)))[1])


@pytest.mark.parametrize(
    ("distance", "a", "b"),
    [(akd, (2, 68, 2), (1, 68, 2)), (akd, (2, 478, 2), (2, 478, 2)), (aed, (2, 52), (2, 64)), (apd, (2, 6), (2, 6))],
)
def test_arrays_of_other_shapes_are_refused(distance: Callable, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError):
        distance(np.zeros(a), np.zeros(b))
