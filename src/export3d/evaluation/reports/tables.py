"""Markdown tables and number formats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from export3d.evaluation.measures.image import Measure
from export3d.evaluation.reports.statistics import Estimate


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown of rows of cells; the first row holds the heads."""
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *body])


def titled(measure: Measure) -> str:
    """A measure's title with an arrow in the better direction.

    >>> titled(Measure("psnr", "PSNR (dB)", True, 2, ""))
    'PSNR (dB) ↑'
    """
    return measure.title + {True: " ↑", False: " ↓", None: ""}[measure.higher_is_better]


def number(value: float, digits: int, sign: str = "") -> str:
    """A value as tables show it, zero without a minus; a dash if undefined.

    >>> number(-0.0001, 2), number(0.5, 1, "+")
    ('0.00', '+0.5')
    """
    if math.isnan(value):
        return "–"
    return f"{value:{sign}z.{digits}f}"


def cell(estimate: Estimate, digits: int, sign: str = "") -> str:
    """A mean and its interval as tables show them."""
    if math.isnan(estimate.mean):
        return "–"
    mean, low, high = (number(value, digits, sign) for value in (estimate.mean, estimate.low, estimate.high))
    return f"{mean} [{low}, {high}]"


def gain_cell(gain: Estimate, measure: Measure) -> str:
    """A gain as tables show it; for distances the change in per cent, so that a fall by a tenth is -10 %."""
    if math.isnan(gain.mean) or measure.higher_is_better is not False:
        return cell(gain, measure.digits, "+")
    return f"{-100 * gain.mean:+z.1f} % [{-100 * gain.high:+z.1f}, {-100 * gain.low:+z.1f}]"


def strict(value: Any) -> Any:
    """A value for strict JSON: infinity becomes a string, NaN becomes null."""
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def in_words(value: Any) -> str:
    """A setting in words.

    >>> in_words({"stage": "refine", "steps": [100, None], "frozen": True})
    'stage: refine; steps: 100; –; frozen: yes'
    """
    value = strict(value)
    if value is None:
        return "–"
    if isinstance(value, dict):
        return "; ".join(f"{name}: {in_words(item)}" for name, item in value.items())
    if isinstance(value, list):
        return "; ".join(in_words(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
