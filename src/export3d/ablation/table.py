"""The scores of the rows of Table 3 as one table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from export3d.ablation.rows import PAPER, Row
from export3d.evaluation.reports.paper_tables import CAVEAT, COLUMNS, TABLES
from export3d.evaluation.reports.statistics import Estimate, bootstrap, paired_difference
from export3d.evaluation.reports.tables import cell, in_words, number, strict, table

_SHOWN = {
    "same": ("psnr", "ssim", "lpips", "lpips_uniform", "akd", "csim_", "aed", "apd"),
    "cross": ("csim_", "leak_", "aed", "apd", "yaw", "jawOpen", "eyeBlink"),
}
"""Measures in the tables; ablation.json has all. A trailing `_` stands for any ending."""


@dataclass(frozen=True)
class Column:
    """A measure of the table.

    Attributes:
        protocol: "same" or "cross".
        name: of the measure in the protocol's own report.
        title: with unit and an arrow that says which way is good.
        digits: after the decimal point.
        definition: one line.
    """

    protocol: str
    name: str
    title: str
    digits: int
    definition: str

    @property
    def key(self) -> str:
        """Its name in `RowResult.values`."""
        return f"{self.protocol} {self.name}"

    @property
    def shown(self) -> bool:
        """Whether the tables have it."""
        return any(
            self.name.startswith(name) if name.endswith("_") else self.name == name for name in _SHOWN[self.protocol]
        )


@dataclass(frozen=True)
class RowResult:
    """The results of one variant.

    Attributes:
        name: of the variant.
        images, minutes: of training.
        parameters, trained: number in the whole model, and of those that were trained.
        psnr: of the run's last validation, dB; NaN if there was none.
        values: column to case (a clip, or a pair) to its mean over the frames; NaN if undefined.
        note: a sentence about what could not be scored.
    """

    name: Row
    images: int
    minutes: float
    parameters: int
    trained: int
    psnr: float
    values: dict[str, dict[str, float]]
    note: str = ""


@dataclass(frozen=True)
class Ablation:
    """The rows side by side; the others are compared with the last.

    Attributes:
        settings: shared by all rows, and how they were scored.
        columns: all measures.
        rows: results.
        reference: column to case to value without a model: the copied source (same identity), or the driver's frames
            (cross identity; see `protocols.cross`).
        credits: a line per row of the contact sheet.
    """

    settings: dict[str, Any]
    columns: tuple[Column, ...]
    rows: tuple[RowResult, ...]
    reference: dict[str, dict[str, float]]
    credits: tuple[str, ...] = ()

    def mean(self, row: RowResult, column: Column) -> Estimate:
        """Mean over the cases where the measure is defined, with its interval."""
        return _mean(row.values.get(column.key, {}))

    def difference(self, row: RowResult, column: Column) -> Estimate:
        """The row minus the last row, over the cases where both are defined."""
        return paired_difference(row.values.get(column.key, {}), self.rows[-1].values.get(column.key, {}))

    def to_json(self) -> str:
        """Everything, as strict JSON; undefined figures are null."""
        rows = [
            {
                **asdict(row),
                "mean": {c.key: asdict(self.mean(row, c)) for c in self.columns},
                "difference": {c.key: asdict(self.difference(row, c)) for c in self.columns},
            }
            for row in self.rows
        ]
        value = {
            "title": "Ablation of the expression encoding",
            "settings": self.settings,
            "columns": {c.key: {"title": c.title, "definition": c.definition} for c in self.columns},
            "compared_with": self.rows[-1].name,
            "rows": rows,
            "reference": self.reference,
            "paper": {
                name: dict(zip((f"{c.setting} {c.title}" for c in COLUMNS), figures))
                for name, figures in TABLES[2].rows.items()
            },
            "sheet": list(self.credits),
        }
        return json.dumps(strict(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def table(self) -> str:
        """Markdown: a row per variant, a column per measure, and the references below."""
        shown = [column for column in self.columns if column.shown]
        lines = [["variant", *(f"{c.protocol}: {c.title}" for c in shown)]]
        for row in self.rows:
            lines.append([PAPER[row.name], *(_cell(row.values.get(c.key, {}), c.digits) for c in shown)])
        lines.append(["*no model*", *(_cell(self.reference.get(c.key, {}), c.digits) for c in shown)])
        return table(lines)

    def difference_table(self) -> str:
        """Markdown: each row minus the last; bold where the interval excludes zero."""
        shown = [column for column in self.columns if column.shown]
        lines = [["variant", *(f"{c.protocol}: {c.title}" for c in shown)]]
        for row in self.rows[:-1]:
            found = [self.difference(row, column) for column in shown]
            cells = [cell(estimate, column.digits, "+") for estimate, column in zip(found, shown)]
            bold = [estimate.low > 0 or estimate.high < 0 for estimate in found]
            lines.append(
                [PAPER[row.name], *(f"**{text}**" if is_clear else text for text, is_clear in zip(cells, bold))]
            )
        return table(lines)

    def budget_table(self) -> str:
        """Markdown: the budget of each row."""
        lines = [["variant", "`--rows`", "images", "minutes", "parameters", "trained", "PSNR of the run's pairs (dB)"]]
        for row in self.rows:
            counts = [f"{row.images:,}", f"{row.minutes:.0f}", f"{row.parameters:,}", f"{row.trained:,}"]
            lines.append([PAPER[row.name], row.name, *counts, number(row.psnr, 2)])
        return table(lines)

    def paper_table(self) -> str:
        """Markdown: the same rows in the paper."""
        lines = [
            ["variant", *(f"{c.setting.split()[0]}: {c.title} {'↑' if c.higher_is_better else '↓'}" for c in COLUMNS)]
        ]
        for row in self.rows:
            lines.append([PAPER[row.name], *(f"{figure:.3f}" for figure in TABLES[2].rows[PAPER[row.name]])])
        return table(lines)

    def markdown(self) -> str:
        """The whole comparison as a page."""
        last = PAPER[self.rows[-1].name]
        cases = {c.protocol: len(self.rows[-1].values.get(c.key, {})) for c in self.columns}
        parts = [
            "# Ablation of the expression encoding",
            self.table(),
            f"Means over {cases.get('same', 0)} clips (same identity) and {cases.get('cross', 0)} pairs (cross "
            "identity), with 95 % bootstrap intervals over them. *No model*: the source copied (same), the driver's "
            "real frames (cross: CSIM and leak are those of two strangers, the rest is the tracker's own error). "
            "Read CSIM and leak together with AED and the correlations: a model that does not move keeps its "
            "identity. One training run per row: the intervals cover the clips, not the seed of the training.",
        ]
        parts += [f"{PAPER[row.name]}: {row.note}" for row in self.rows if row.note]
        if len(self.rows) > 1:
            parts += [
                f"## Differences from {last}, case by case",
                self.difference_table(),
                "Paired differences and their intervals, bold where the interval excludes zero; with so many cells "
                "some do by chance.",
            ]
        parts += ["## Budget", self.budget_table(), "## The paper's Table 3", self.paper_table(), CAVEAT]
        parts += [
            "## Settings",
            "\n".join(f"- {name.replace('_', ' ')}: {in_words(value)}" for name, value in self.settings.items()),
        ]
        parts += ["## Definitions", "\n".join(f"- {c.protocol}: {c.title}: {c.definition}" for c in self.columns)]
        if self.credits:
            shown = "\n".join(f"{i}. {credit}" for i, credit in enumerate(self.credits, 1))
            parts += ["## Contact sheet", "![source, driving, and every variant](sheet.png)", shown]
        return "\n\n".join(parts) + "\n"


def _mean(values: Mapping[str, float]) -> Estimate:
    known = np.array([value for value in values.values() if not math.isnan(value)])
    return bootstrap(len(known), lambda draws: known[draws].mean(axis=-1))


def _cell(values: Mapping[str, float], digits: int) -> str:
    """A mean and its interval, and the number of cases behind it if some lack a value."""
    count = sum(not math.isnan(value) for value in values.values())
    shown = cell(_mean(values), digits)
    return shown if count in (0, len(values)) else f"{shown} (of {count})"
