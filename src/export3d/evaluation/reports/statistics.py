"""Means with bootstrap confidence intervals, resampled by person."""

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
"""Clips drawn at once: memory does not grow with their number."""


@dataclass(frozen=True)
class Estimate:
    """A mean over clips and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def bootstrap(clips: int, statistic: Callable[[NDArray[np.int64]], Array]) -> Estimate:
    """A statistic of some clips and its percentile bootstrap interval; always the same draws for as many clips.

    Args:
        clips: how many there are.
        statistic: of clip numbers (..., N) to values (...).
    """
    if clips == 0:
        return NO_ESTIMATE()
    draws = np.random.default_rng(_SEED).integers(clips, size=(_DRAWS, clips))
    return estimate(np.append(statistic(np.arange(clips)), statistic(draws)))


def paired_difference(a: Mapping[str, float | None], b: Mapping[str, float | None]) -> Estimate:
    """Mean of a - b over the keys where both have a value, and its interval: two runs on the same cases.

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
    """Means of columns of N clips where they are defined, and the same of every bootstrap draw of N clips.

    All columns see the same draws. A draw that holds no clip with a value gives NaN.

    Args:
        columns: each (N,), NaN where not defined.

    Returns:
        For each column (1 + 10,000,): the mean, then those of the draws.
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
    """A statistic and its percentile interval from its values (1 + draws,); draws without a value do not count."""
    # Sorted, not interpolated: a quantile between infinite values would not be a number.
    mean, ordered = float(drawn[0]), np.sort(drawn[1:])
    defined = int((~np.isnan(ordered)).sum())
    if defined == 0 or math.isnan(mean):
        return Estimate(mean, math.nan, math.nan)
    tail = round((1.0 - _COVERAGE) / 2.0 * defined)
    return Estimate(mean, float(ordered[tail]), float(ordered[defined - 1 - tail]))


def compared_rows(a: Array, b: Array, *, share: bool) -> Estimate:
    """Of two resampled means a - b, or the share 1 - a / b by which a is smaller."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return estimate(1.0 - a / b if share else a - b)


def where_both(*columns: Array) -> list[Array]:
    """Columns with NaN wherever one of them has it."""
    missing = np.isnan(np.stack(columns)).any(axis=0)
    return [np.where(missing, np.nan, column) for column in columns]


def NO_ESTIMATE() -> Estimate:
    return Estimate(math.nan, math.nan, math.nan)
