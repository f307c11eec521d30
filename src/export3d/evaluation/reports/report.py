"""What an evaluation found: scores of every clip, means with intervals, as JSON and as tables.

Means are over clips, each clip counting once however long it is. Intervals are 95 % bootstrap intervals: percentiles of
the mean over 10,000 draws of as many clips with replacement, all methods and measures on the same draws. With a dozen
clips they are wide, and that is the point of showing them.

A measure need not be defined on every clip (no identity where no face was found): a mean is over the clips on which the
method has a value, and tables state their number where it differs. Whatever compares two methods uses only the clips on
which both have a value.
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
from export3d.evaluation.reports.tables import cell, gain_cell, number, strict, table, titled

Array = NDArray[np.float64]

GROUPS = ("moving", "still", "all")


@dataclass(frozen=True)
class Report:
    """An evaluation.

    Attributes:
        title: what was done.
        settings: everything that decides the numbers.
        methods: names, the one in question first; with `copy` among them clips are told apart by how much they move.
        measures: what was measured on each clip.
        clips: results, in the order of the split.
        overall: method to figure of all clips together (a Fréchet distance), by the names in `overall_measures`.
        overall_measures: what those are.
        skipped: records that were not scored, and why.
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
        """The groups worth a table: those with clips, and "all" unless it would say the same again."""
        named = tuple(name for name in GROUPS[:-1] if self.group(name))
        return named if len(named) == 1 and len(self.group(named[0])) == len(self.clips) else (*named, "all")

    def group(self, name: str) -> tuple[ClipResult, ...]:
        """The clips of "moving", "still" or "all"."""
        return self._grouped[name]

    def mean(self, group: str, method: str, measure: str) -> Estimate:
        """Mean of a measure over the group's clips on which it is defined; NaN if there is none."""
        return self._means[group][method, measure]

    def defined(self, group: str, method: str, measure: str) -> int:
        """On how many of the group's clips the method has a value."""
        return int((~np.isnan(self._values(group, method, measure))).sum())

    def gain(self, group: str, method: str, measure: Measure) -> Estimate:
        """How much better than the copy: the difference of the means, or for distances the share that they fall by.

        Positive is better. PSNR and SSIM in their own units; LPIPS 0.1 means that its mean is 10 % below the copy's.
        Where neither way is better, the method's mean less the copy's.
        """
        return self._gains[group].get((method, measure.name), UNDEFINED)

    def standing(self, group: str) -> tuple[Standing, ...]:
        """Where the first method stands between the best simple reference and the oracle.

        One for each measure of which one way is good, if ours and a reference have a value on some clip. A reference
        with a value on fewer than half of the clips on which ours has one is not compared.
        """
        return self._standings[group]

    def worst_first(self) -> tuple[ClipResult, ...]:
        """The clips by how badly the first method did: by its PSNR, else by the first measure; undefined ones last."""
        by = next((m for m in self.measures if m.name == "psnr"), self.measures[0] if self.measures else None)
        if by is None:
            return self.clips
        sign = -1.0 if by.higher_is_better is False else 1.0

        def badness(clip: ClipResult) -> tuple[bool, float]:
            value = clip.value(self.methods[0], by.name)
            return math.isnan(value), 0.0 if math.isnan(value) else sign * value

        return tuple(sorted(self.clips, key=badness))

    def summary(self) -> dict[str, Any]:
        """Group to clips, means (with the number of clips behind each), gains over the copy and standings."""
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
        """Everything, as strict JSON: infinity is the string "inf", what is not defined is null."""
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
        """The report that `to_json` wrote; its measures can no longer score anything.

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
        """Markdown: for each group a table with a row for each method, and ours over the copy."""
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
        """Markdown: for each group where the first method stands; empty without references."""
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
        """Markdown: figures of all clips together, a row for each method; empty where there are none."""
        if not self.overall_measures:
            return ""
        rows = [["all clips together", *(titled(m) for m in self.overall_measures)]]
        for method in self.methods:
            found = self.overall.get(method, {})
            rows.append([method, *(number(found.get(m.name, math.nan), m.digits) for m in self.overall_measures)])
        return table(rows)

    def clip_table(self) -> str:
        """Markdown: a row for each clip with the first method's scores, the clip that moves most first."""
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
                "Best simple: the best of the references that need no network. Oracle: the truth itself, shown by our "
                "own representation. Only clips on which all that are compared have a value.",
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
        parts += ["\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in self.settings.items())]
        if self.credits:
            shown = "; ".join(f"{c['clip']} ({c['terms']}, {c['source']})" for c in self.credits)
            parts += ["## Contact sheet", f"Left to right, top to bottom: {shown}."]
        return "\n\n".join(parts) + "\n"

    @property
    def explanation(self) -> str:
        """What stands under a table of means."""
        words = "Means over clips, 95 % bootstrap intervals over clips."
        if any(clip.group for clip in self.clips):
            words += (
                f" A clip moves if copying its source frame scores under {MOVING_DB:g} dB; on still clips a copy is "
                "nearly perfect and proves nothing."
            )
        return f"{words} {self.remark}".strip()

    @property
    def remark(self) -> str:
        """What else must be known to read a table of means."""
        return ""

    def _values(self, group: str, method: str, measure: str) -> Array:
        """The clips' figures (N,), NaN where not defined."""
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
            # A copy that does not move has no correlation with anything: such a reference is left out, not the measure.
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
    """Sorts clips from the one that moves most; those of which it is not known last, in the order they have."""
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
