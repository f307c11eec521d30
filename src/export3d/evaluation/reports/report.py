"""The report of an evaluation: scores of every clip, means with intervals, as JSON and as tables.

Means are over clips; each clip counts once, whatever its length. Intervals are 95 % bootstrap intervals: percentiles of
the mean over 10,000 draws of as many clips with replacement, with the same draws for all methods and measures. With a
dozen clips they are wide.

A measure may be undefined on a clip (no identity without a face). A mean is over the clips where the method has a
value, and tables state their number if it differs. Methods are compared on the clips where all of them have a value.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export3d.errors import InputError
from export3d.evaluation.measures.image import Measure
from export3d.evaluation.reports.clips import (
    BASELINE,
    MOVING_DB,
    ORACLE,
    SIMPLE,
    ClipResult,
    clip_result,
    figures_from_json,
)
from export3d.evaluation.reports.standing import Standing, standing_of
from export3d.evaluation.reports.statistics import (
    UNDEFINED,
    Estimate,
    difference_of_means,
    estimate,
    resampled_rows,
    share_of_means,
    where_both,
)
from export3d.evaluation.reports.tables import cell, gain_cell, in_words, number, strict, table, titled

Array = NDArray[np.float64]

GROUPS = ("moving", "still", "all")


@dataclass(frozen=True)
class Report:
    """An evaluation.

    Attributes:
        title: what was done.
        settings: everything that decides the figures.
        methods: names, the evaluated one first; with `copy` among them, clips are grouped by how much they move.
        measures: of each clip.
        clips: results, in the order of the split.
        overall: method to figures of all clips together (Fréchet distances), by the names in `overall_measures`.
        overall_measures: of all clips together.
        skipped: records that were not scored, with the reason.
        credits: the clips that the contact sheet shows, with their terms and sources.
    """

    title: str
    settings: dict[str, Any]
    methods: tuple[str, ...]
    measures: tuple[Measure, ...]
    clips: tuple[ClipResult, ...]
    overall: dict[str, dict[str, float]] = field(default_factory=dict)
    overall_measures: tuple[Measure, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)
    credits: tuple[dict[str, str], ...] = ()

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that get a table: those with clips, and "all" unless it would be a repetition."""
        named = tuple(name for name in GROUPS[:-1] if self.group(name))
        return named if len(named) == 1 and len(self.group(named[0])) == len(self.clips) else (*named, "all")

    def group(self, name: str) -> tuple[ClipResult, ...]:
        """The clips of "moving", "still" or "all"."""
        return self._grouped[name]

    def mean(self, group: str, method: str, measure: str) -> Estimate:
        """Mean of a measure over the group's clips where it is defined; NaN if there is none."""
        return self._means[group][method, measure]

    def defined(self, group: str, method: str, measure: str) -> int:
        """Number of the group's clips where the method has a value."""
        return int((~np.isnan(self._values(group, method, measure))).sum())

    def gain(self, group: str, method: str, measure: Measure) -> Estimate:
        """Gain over the copy: the difference of the means, or for distances the relative reduction; positive is better.

        PSNR and SSIM are in their own units; 0.1 for LPIPS means that its mean is 10 % below the copy's. For measures
        without a better direction, the method's mean minus the copy's.
        """
        return self._gains[group].get((method, measure.name), UNDEFINED)

    def standing(self, group: str) -> tuple[Standing, ...]:
        """Where the first method stands between the best simple reference and the oracle.

        One per measure with a better direction, if ours and a reference have a value on some clip. A reference is not
        compared if it has a value on fewer than half of the clips where ours has one.
        """
        return self._standings[group]

    def worst_first(self) -> tuple[ClipResult, ...]:
        """The clips from the first method's worst: by its PSNR, else by the first measure; undefined ones last."""
        by = next((m for m in self.measures if m.name == "psnr"), self.measures[0] if self.measures else None)
        if by is None:
            return self.clips
        sign = -1.0 if by.higher_is_better is False else 1.0

        def badness(clip: ClipResult) -> tuple[bool, float]:
            value = clip.value(self.methods[0], by.name)
            return math.isnan(value), 0.0 if math.isnan(value) else sign * value

        return tuple(sorted(self.clips, key=badness))

    def summary(self) -> dict[str, Any]:
        """Group to number of clips, means (with the number of clips behind each), gains over the copy and standings."""
        out: dict[str, Any] = {}
        for group in GROUPS:
            out[group] = {
                "clips": len(self.group(group)),
                "mean": {
                    method: {
                        m.name: {
                            **asdict(self.mean(group, method, m.name)),
                            "clips": self.defined(group, method, m.name),
                        }
                        for m in self.measures
                    }
                    for method in self.methods
                },
                "gain": {
                    method: {m.name: asdict(self.gain(group, method, m)) for m in self.measures}
                    for method in self.methods
                    if method != BASELINE and BASELINE in self.methods
                },
                "standing": {
                    s.measure.name: {
                        "clips": s.clips,
                        "simple": s.simple_name,
                        "margin": None if s.margin is None else asdict(s.margin),
                        "way": s.way,
                        "place": s.place,
                    }
                    for s in self.standing(group)
                },
            }
        return out

    def to_json(self) -> str:
        """The whole report as strict JSON: infinity is the string "inf", undefined figures are null."""
        value = {
            "title": self.title,
            "settings": self.settings,
            "methods": self.methods,
            "measures": {m.name: _described(m) for m in self.measures},
            "summary": self.summary(),
            "overall_measures": {m.name: _described(m) for m in self.overall_measures},
            "overall": self.overall,
            "clips": [{**asdict(clip), "group": clip.group} for clip in self.clips],
            "skipped": self.skipped,
            "sheet": list(self.credits),
        }
        return json.dumps(strict(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report that `to_json` wrote; its measures are descriptions only.

        Raises:
            InputError: the text is something else.
        """
        try:
            value = json.loads(text)
            ours, *others = value["methods"]
            return cls(
                str(value["title"]),
                dict(value["settings"]),
                (ours, *others),
                _measures(value["measures"]),
                tuple(clip_result(clip) for clip in value["clips"]),
                {method: figures_from_json(figures) for method, figures in value["overall"].items()},
                _measures(value["overall_measures"]),
                dict(value["skipped"]),
                tuple(value["sheet"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                "the text is not a report of export3d evaluate as this version writes it; evaluate again"
            ) from error

    def summary_table(self) -> str:
        """Markdown: a table per group, with a row per method and ours over the copy."""
        parts = []
        for group in self.groups:
            clips = len(self.group(group))
            rows = [[f"{group} ({clips})", *(titled(m) for m in self.measures)]]
            for method in self.methods:
                cells = []
                for m in self.measures:
                    count = self.defined(group, method, m.name)
                    shown = cell(self.mean(group, method, m.name), m.digits)
                    cells.append(shown if count in (0, clips) else f"{shown} (of {count})")
                rows.append([method, *cells])
            ours = self.methods[0]
            if ours != BASELINE and BASELINE in self.methods:
                gains = [gain_cell(self.gain(group, ours, m), m) for m in self.measures]
                rows.append([f"{ours} against {BASELINE}", *gains])
            parts.append(table(rows))
        return "\n\n".join(parts)

    def standing_table(self) -> str:
        """Markdown: per group, where the first method stands; empty without references."""
        parts = []
        for group in self.groups:
            rows = [[f"{group} ({len(self.group(group))})", self.methods[0], "best simple", ORACLE, "stands"]]
            for s in self.standing(group):
                simple = "–" if s.simple is None else f"{number(s.simple.mean, s.measure.digits)} ({s.simple_name})"
                oracle = "–" if s.oracle is None else number(s.oracle.mean, s.measure.digits)
                rows.append([titled(s.measure), number(s.ours.mean, s.measure.digits), simple, oracle, s.place])
            if len(rows) > 1:
                parts.append(table(rows))
        return "\n\n".join(parts)

    def overall_table(self) -> str:
        """Markdown: figures of all clips together, a row per method; empty if there are none."""
        if not self.overall_measures:
            return ""
        rows = [["all clips together", *(titled(m) for m in self.overall_measures)]]
        for method in self.methods:
            found = self.overall.get(method, {})
            rows.append([method, *(number(found.get(m.name, math.nan), m.digits) for m in self.overall_measures)])
        return table(rows)

    def clip_table(self) -> str:
        """Markdown: the first method's scores, a row per clip, from the clip that moves most."""
        ours, grouped = self.methods[0], any(clip.group for clip in self.clips)
        copied = [m for m in self.measures if m.name == "psnr" and BASELINE in self.methods and ours != BASELINE]
        heads = [f"{titled(m)} {BASELINE}" for m in copied] + [titled(m) for m in self.measures]
        rows = [["clip", *(["group"] if grouped else []), "frames", "source frame", *heads]]
        for clip in sorted(self.clips, key=_movement):
            cells = [number(clip.value(BASELINE, m.name), m.digits) for m in copied]
            cells += [number(clip.value(ours, m.name), m.digits) for m in self.measures]
            source = "–" if clip.source_frame is None else str(clip.source_frame)
            rows.append([clip.key, *([clip.group or "–"] if grouped else []), str(clip.frames), source, *cells])
        return table(rows)

    def markdown(self) -> str:
        """The whole report as a page."""
        parts = [f"# {self.title}", self.summary_table(), self.explanation]
        if self.overall_measures:
            parts += [self.overall_table()]
        if standing := self.standing_table():
            parts += [
                "## Between the references",
                "Best simple: the best of the references without a network. Oracle: the true frame, rendered by our "
                "own representation. Only clips where every compared method has a value.",
                standing,
            ]
        parts += ["## Clips", f"Scores of {self.methods[0]}; `report.json` holds those of all methods."]
        parts += [self.clip_table()]
        notes = [f"- {clip.key}: {clip.note}" for clip in self.clips if clip.note]
        notes += [f"- {key} was left out: {reason}" for key, reason in self.skipped.items()]
        if notes:
            parts += ["## Notes", "\n".join(notes)]
        parts += ["## Definitions"]
        parts += ["\n".join(f"- {m.title}: {m.definition}" for m in (*self.measures, *self.overall_measures))]
        parts += ["\n".join(f"- {name.replace('_', ' ')}: {in_words(value)}" for name, value in self.settings.items())]
        if self.credits:
            shown = "; ".join(f"{c['clip']} ({c['terms']}, {c['source']})" for c in self.credits)
            parts += ["## Contact sheet", f"Left to right, top to bottom: {shown}."]
        return "\n\n".join(parts) + "\n"

    @property
    def explanation(self) -> str:
        """The explanation under a table of means."""
        words = "Means over clips, 95 % bootstrap intervals over clips."
        if any(clip.group for clip in self.clips):
            words += (
                f" A clip moves if copying its source frame scores under {MOVING_DB:g} dB; on still clips a copy is "
                "nearly perfect and proves nothing."
            )
        return f"{words} {self.remark}".strip()

    @property
    def remark(self) -> str:
        """A further explanation of the table of means."""
        return ""

    def _values(self, group: str, method: str, measure: str) -> Array:
        """The clips' figures (N,), NaN where undefined."""
        return self._columns[method, measure][self._members[group]]

    @cached_property
    def _members(self) -> dict[str, NDArray[np.int64]]:
        names = [clip.group for clip in self.clips]
        at = {group: [i for i, name in enumerate(names) if group in (name, "all")] for group in GROUPS}
        return {group: np.array(rows, dtype=np.int64) for group, rows in at.items()}

    @cached_property
    def _grouped(self) -> dict[str, tuple[ClipResult, ...]]:
        return {group: tuple(self.clips[i] for i in rows) for group, rows in self._members.items()}

    @cached_property
    def _columns(self) -> dict[tuple[str, str], Array]:
        return {
            (method, m.name): np.array([clip.value(method, m.name) for clip in self.clips], dtype=np.float64)
            for method in self.methods
            for m in self.measures
        }

    @cached_property
    def _means(self) -> dict[str, dict[tuple[str, str], Estimate]]:
        out = {}
        names = [(method, m.name) for method in self.methods for m in self.measures]
        for group in GROUPS:
            found = resampled_rows([self._values(group, *name) for name in names])
            out[group] = {name: estimate(column) for name, column in zip(names, found)}
        return out

    @cached_property
    def _gains(self) -> dict[str, dict[tuple[str, str], Estimate]]:
        if BASELINE not in self.methods:
            return {group: {} for group in GROUPS}
        out = {}
        pairs = [(method, m) for method in self.methods if method != BASELINE for m in self.measures]
        for group in GROUPS:
            columns = []
            for method, m in pairs:
                columns += where_both(self._values(group, method, m.name), self._values(group, BASELINE, m.name))
            found = resampled_rows(columns)
            out[group] = {
                (method, m.name): (share_of_means if m.higher_is_better is False else difference_of_means)(
                    found[2 * i], found[2 * i + 1]
                )
                for i, (method, m) in enumerate(pairs)
            }
        return out

    @cached_property
    def _standings(self) -> dict[str, tuple[Standing, ...]]:
        return {group: tuple(self._stand(group)) for group in GROUPS}

    def _stand(self, group: str) -> Iterator[Standing]:
        ours = self.methods[0]
        rows: list[tuple[Measure, list[str]]] = []
        columns: list[Array] = []
        for m in self.measures:
            # A copy does not move and has no correlation with anything: leave out such a reference, not the measure.
            enough = max(1, -(-self.defined(group, ours, m.name) // 2))
            others = [
                method
                for method in self.methods[1:]
                if method in (*SIMPLE, ORACLE) and self.defined(group, method, m.name) >= enough
            ]
            if m.higher_is_better is not None and others:
                rows.append((m, [ours, *others]))
                columns += where_both(*(self._values(group, method, m.name) for method in (ours, *others)))
        found = iter(zip(columns, resampled_rows(columns)))
        for m, compared in rows:
            part = {method: next(found) for method in compared}
            clips = int((~np.isnan(part[ours][0])).sum())
            if clips:
                yield standing_of(m, clips, ours, {method: drawn for method, (_, drawn) in part.items()})


def _movement(clip: ClipResult) -> tuple[bool, float]:
    """Key that sorts clips from the one that moves most; unknown ones last, in their order."""
    copied = clip.value(BASELINE, "psnr")
    return math.isnan(copied), 0.0 if math.isnan(copied) else copied


def _described(measure: Measure) -> dict[str, Any]:
    return {
        "title": measure.title,
        "higher_is_better": measure.higher_is_better,
        "digits": measure.digits,
        "definition": measure.definition,
    }


def _measures(described: dict[str, dict[str, Any]]) -> tuple[Measure, ...]:
    return tuple(
        Measure(name, str(d["title"]), d["higher_is_better"], int(d["digits"]), str(d["definition"]))
        for name, d in described.items()
    )
