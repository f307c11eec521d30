"""Means over cases (clips, pairs or people) and their 95 % bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_DRAWS = 10_000
_COVERAGE = 0.95
_SEED = 0
_BLOCK = 4_000_000
"""Clips resampled at once, so that memory does not grow with their number."""


@dataclass(frozen=True)
class Estimate:
    """A mean over clips and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


UNDEFINED = Estimate(math.nan, math.nan, math.nan)


def bootstrap(clips: int, statistic: Callable[[NDArray[np.int64]], Array]) -> Estimate:
    """A statistic of some clips and its percentile bootstrap interval; the draws depend on the number of clips alone.

    Args:
        clips: their number.
        statistic: clip numbers (..., N) to values (...).
    """
    if clips == 0:
        return UNDEFINED
    draws = np.random.default_rng(_SEED).integers(clips, size=(_DRAWS, clips))
    return estimate(np.append(statistic(np.arange(clips)), statistic(draws)))


def paired_difference(a: Mapping[str, float | None], b: Mapping[str, float | None]) -> Estimate:
    """Mean of a - b over the cases where both have a value, and its interval: compares two runs on the same cases.

    Args:
        a, b: case to value; None and NaN are no value.

    >>> paired_difference({"x": 3.0, "y": 5.0, "z": 9.0}, {"x": 1.0, "y": 3.0, "z": None}).mean
    2.0
    """
    both = [(a[key], b[key]) for key in a if key in b]
    known = np.array([p - q for p, q in both if p is not None and q is not None], dtype=np.float64)
    known = known[~np.isnan(known)]
    return bootstrap(len(known), lambda draws: known[draws].mean(axis=-1))


def resampled_rows(columns: Sequence[Array]) -> list[Array]:
    """Mean of each column over the clips where it is defined, and the same mean for every bootstrap draw of N clips.

    All columns use the same draws. A draw without a defined value gives NaN.

    Args:
        columns: each (N,), NaN where undefined.

    Returns:
        Per column (1 + 10,000,): the mean, then the means of the draws.
    """
    clips = len(columns[0]) if columns else 0
    if clips == 0:
        return [np.full(1 + _DRAWS, np.nan) for _ in columns]
    values = np.stack(columns, axis=1)
    known, infinite = ~np.isnan(values), np.isinf(values)
    finite = np.where(known & ~infinite, values, 0.0)
    some_missing = ~known.all(axis=0)
    sums, infinities = np.empty((_DRAWS, len(columns))), np.zeros((_DRAWS, len(columns)))
    counts = np.full((_DRAWS, len(columns)), float(clips))
    random, block = np.random.default_rng(_SEED), max(1, _BLOCK // clips)
    for start in range(0, _DRAWS, block):
        rows = min(block, _DRAWS - start)
        drawn = random.integers(clips, size=(rows, clips)) + clips * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * clips).reshape(rows, clips).astype(np.float64)
        part = slice(start, start + rows)
        sums[part], counts[part, some_missing] = times @ finite, times @ known[:, some_missing].astype(np.float64)
        if infinite.any():  # an infinite score times "not drawn" would not be a number
            infinities[part] = times @ np.where(infinite, np.sign(values), 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.where(infinities == 0.0, sums / counts, np.sign(infinities) * np.inf)
    return [
        np.append(column[is_known].mean() if is_known.any() else np.nan, drawn)
        for column, is_known, drawn in zip(values.T, known.T, means.T)
    ]


def estimate(drawn: Array) -> Estimate:
    """A statistic and its percentile interval from its values (1 + draws,); undefined draws are ignored."""
    # Sorted, not interpolated: a quantile between infinite values would not be a number.
    mean, ordered = float(drawn[0]), np.sort(drawn[1:])
    defined = int((~np.isnan(ordered)).sum())
    if defined == 0 or math.isnan(mean):
        return Estimate(mean, math.nan, math.nan)
    tail = round((1.0 - _COVERAGE) / 2.0 * defined)
    return Estimate(mean, float(ordered[tail]), float(ordered[defined - 1 - tail]))


def difference_of_means(a: Array, b: Array) -> Estimate:
    """a - b of two resampled means."""
    with np.errstate(invalid="ignore"):
        return estimate(a - b)


def share_of_means(a: Array, b: Array) -> Estimate:
    """1 - a / b of two resampled means: the share by which a is smaller."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return estimate(1.0 - a / b)


def where_both(*columns: Array) -> list[Array]:
    """The columns, with NaN wherever any of them is NaN."""
    missing = np.isnan(np.stack(columns)).any(axis=0)
    return [np.where(missing, np.nan, column) for column in columns]
