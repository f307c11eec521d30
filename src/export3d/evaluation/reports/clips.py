"""The figures of one clip, and the names of the methods that are scored on it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

OURS = "ours"
BASELINE = "copy"
ENLARGED = "ours at 256"
"""At other sizes: the model's own frames, enlarged."""
SIMPLE = ("copy", "warp", "mesh")
"""References without a network: the least that any method should beat."""
ORACLE = "oracle"
"""The reference whose input is the true frame: the upper bound of our representation."""
REAL = "real pictures"
"""The driver's own frames across identities: two strangers, or the tracker's own error. They do not compete."""
MOVING_DB = 20.0
"""A clip moves if copying its source frame scores less PSNR than this."""


@dataclass(frozen=True)
class ClipResult:
    """One clip's scores.

    Attributes:
        key: of the record, or the name of the clip.
        person, terms, origin: from its provenance; empty if unknown.
        frames: number of driven frames that were scored.
        source_frame: number of the source frame; None if the source is not a frame of the clip.
        identical_frames: number of other frames that equal the source pixel for pixel; they are left out.
        scores: method to measure to the clip's figure; NaN or absent if undefined.
        worst_frame: number of the driven frame with the first method's worst score; -1 if unknown.
        note: a sentence about anything unusual.
    """

    key: str
    person: str
    terms: str
    origin: str
    frames: int
    source_frame: int | None
    identical_frames: int
    scores: dict[str, dict[str, float]]
    worst_frame: int = -1
    note: str = ""

    @property
    def group(self) -> str:
        """The clip's group, "moving" or "still", by the PSNR of the copy; empty if the copy was not scored."""
        copied = self.value(BASELINE, "psnr")
        if math.isnan(copied):
            return ""
        return "moving" if copied < MOVING_DB else "still"

    def value(self, method: str, measure: str) -> float:
        """A figure; NaN where it is not defined."""
        return self.scores.get(method, {}).get(measure, math.nan)


def clip_result(value: dict[str, Any]) -> ClipResult:
    """A clip's result from its fields in strict JSON.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: the value is something else.
    """
    fields = {name: item for name, item in value.items() if name not in ("group", "scores")}
    return ClipResult(
        scores={method: figures_from_json(figures) for method, figures in value["scores"].items()}, **fields
    )


def figures_from_json(figures: dict[str, Any]) -> dict[str, float]:
    """Figures of strict JSON, as `tables.strict` writes it, as numbers."""
    return {name: math.nan if value is None else float(value) for name, value in figures.items()}
