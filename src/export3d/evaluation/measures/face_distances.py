"""Distances between readings of two faces: AKD, AED and APD (Sec. 6.4)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from export3d.errors import check_shape

Array = NDArray[np.float64]
Float = NDArray[np.floating[Any]]


def akd(a: Float, b: Float) -> Array:
    """Average key-point distance (Sec. 6.4): mean over the points of |dx| + |dy|, the L1 distance of 68 points.

    Args:
        a, b: (T, 68, 2) pixels of an image of 256 x 256.

    Returns:
        (T,) pixels, at least 0, lower is better.

    >>> akd(np.zeros((1, 68, 2)), np.full((1, 68, 2), [3.0, -4.0])).tolist()
    [7.0]
    """
    return np.asarray(_difference(a, b, "T 68 2").sum(axis=-1).mean(axis=-1))


def aed(a: Float, b: Float) -> Array:
    """Average expression distance (Sec. 6.4): mean |difference| of expression values.

    Args:
        a, b: (T, E).

    Returns:
        (T,) in the unit of the values, at least 0, lower is better.
    """
    return np.asarray(_difference(a, b, "T E").mean(axis=-1))


def apd(a: Float, b: Float) -> Array:
    """Average pose distance of the three angles: mean |difference| of yaw, pitch and roll.

    Args:
        a, b: (T, 3) degrees; 359 and 1 differ by 2.

    Returns:
        (T,) degrees, 0 to 180, lower is better.
    """
    return np.asarray(_turned(_difference(a, b, "T 3"), 360.0).mean(axis=-1))


def apd6(a: Float, b: Float) -> Array:
    """Average pose distance of six numbers, as in the paper (Sec. 6.4): mean |difference| of angles and position.

    Args:
        a, b: (T, 6), three angles in radians and the position in scene units of 54 cm (`Reading.pose6`).

    Returns:
        (T,) in mixed units, at least 0, lower is better.
    """
    difference = _difference(a, b, "T 6")
    difference[:, :3] = _turned(difference[:, :3], 2.0 * np.pi)
    return np.asarray(difference.mean(axis=-1))


def _difference(a: Float, b: Float, pattern: str) -> Array:
    """|a - b| of arrays of one shape."""
    check_shape(a, pattern, "the first of two")
    check_shape(b, " ".join(map(str, np.shape(a))), "the second of two")
    return np.asarray(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)))


def _turned(difference: Array, turn: float) -> Array:
    """Differences of angles, from 0 to half a turn."""
    rest = difference % turn
    return np.asarray(np.minimum(rest, turn - rest))
