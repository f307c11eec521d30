"""Where a method stands between the best simple reference and the oracle."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export3d.evaluation.measures.image import Measure
from export3d.evaluation.reports.clips import ORACLE, SIMPLE
from export3d.evaluation.reports.statistics import Estimate, difference_of_means, estimate
from export3d.evaluation.reports.tables import number

Array = NDArray[np.float64]

BEHIND, LEVEL, LEVEL_WITH_ORACLE = "behind the best simple", "level with the best simple", "level with the oracle"
"""Values of `Standing.place`."""


@dataclass(frozen=True)
class Standing:
    """Where the first method stands on one measure, over the clips where every compared method has a value.

    Attributes:
        measure: one with a better direction.
        clips: number of clips compared.
        ours: the first method's mean.
        simple, simple_name: the best of the simple references; None and empty if there is none.
        oracle: its mean; None if it was not scored.
        margin: ours over the best simple reference, a paired difference in the measure's unit; positive is better.
        place: "between", "behind the best simple" or "beyond the oracle"; "ahead of the best simple" without an
            oracle; "behind the oracle" without a simple reference. Figures that are equal as tables show them are
            "level with the best simple" or "level with the oracle".
    """

    measure: Measure
    clips: int
    ours: Estimate
    simple: Estimate | None
    simple_name: str
    oracle: Estimate | None
    margin: Estimate | None
    place: str

    @property
    def way(self) -> float:
        """Position between the best simple reference (0) and the oracle (1); NaN if the oracle is not better."""
        if self.simple is None or self.oracle is None:
            return math.nan
        whole, part = self.oracle.mean - self.simple.mean, self.ours.mean - self.simple.mean
        better = whole > 0 if self.measure.higher_is_better else whole < 0
        return part / whole if better and math.isfinite(whole) else math.nan


def standing_of(measure: Measure, clips: int, ours: str, found: Mapping[str, Array]) -> Standing:
    """Compare a method with the references.

    Args:
        measure: one with a better direction.
        clips: number of clips compared.
        ours: the method's name.
        found: method to its resampled means (1 + draws,), see `statistics.resampled_rows`.
    """
    simple = [method for method in found if method in SIMPLE and method != ours]
    oracle = [method for method in found if method == ORACLE and method != ours]
    sign = 1.0 if measure.higher_is_better else -1.0
    best = max(simple, key=lambda method: sign * found[method][0], default="")
    margin = None
    behind = ahead = beyond = level = level_with_oracle = False
    if best:
        difference = difference_of_means(found[ours], found[best])
        low, high = sorted((sign * difference.low, sign * difference.high))
        margin = Estimate(sign * difference.mean, low, high)
        behind, ahead = sign * found[ours][0] < sign * found[best][0], True
        level = _equal(found[ours][0], found[best][0], measure)
    if oracle:
        beyond = sign * found[ours][0] > sign * found[oracle[0]][0]
        level_with_oracle = _equal(found[ours][0], found[oracle[0]][0], measure)
    if level:
        place = LEVEL
    elif behind:
        place = BEHIND
    elif level_with_oracle:
        place = LEVEL_WITH_ORACLE
    elif beyond:
        place = "beyond the oracle"
    elif ahead:
        place = "between" if oracle else "ahead of the best simple"
    else:
        place = "behind the oracle"
    return Standing(
        measure,
        clips,
        estimate(found[ours]),
        estimate(found[best]) if best else None,
        best,
        estimate(found[oracle[0]]) if oracle else None,
        margin,
        place,
    )


def _equal(one: float, other: float, measure: Measure) -> bool:
    """Whether two means are equal as tables show them."""
    return not math.isnan(one) and number(one, measure.digits) == number(other, measure.digits)
