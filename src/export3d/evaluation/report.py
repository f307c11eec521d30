"""What an evaluation found: scores of every clip, means with intervals, as JSON and as tables.

Means are over clips, each clip counting once however long it is. Intervals are 95 % bootstrap intervals: percentiles of
the mean over 10,000 draws of as many clips with replacement, all methods and metrics on the same draws. With a dozen
clips they are wide, and that is the point of showing them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export3d.evaluation.metrics import Metric

Array = NDArray[np.float64]

MOVING_DB = 20.0
"""A clip moves if copying its source frame scores less PSNR than this."""
GROUPS = ("moving", "still", "all")
BASELINE = "copy"
RETRACKED = ("yaw", "jawOpen", "eyeBlink")

_DRAWS = 10_000
_COVERAGE = 0.95
_SEED = 0


@dataclass(frozen=True)
class Estimate:
    """A mean over clips and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class ClipResult:
    """One clip's scores.

    Attributes:
        key: of the record.
        person, terms, origin: from its provenance.
        frames: driven frames scored.
        source_frame: number of the frame used as source.
        identical_frames: further frames equal to the source pixel for pixel, which are left out.
        scores: method to metric to the mean over the frames.
        retracked: method to name to correlation of the tracked result with the driving motion; `tracker` is the driving
            crop itself tracked again, the best that can be hoped for. Empty where it was not asked for.
        note: anything odd, a sentence.
    """

    key: str
    person: str
    terms: str
    origin: str
    frames: int
    source_frame: int
    identical_frames: int
    scores: dict[str, dict[str, float]]
    retracked: dict[str, dict[str, float]] = field(default_factory=dict)
    note: str = ""

    @property
    def group(self) -> str:
        """Either "moving" or "still", by the PSNR of the copy."""
        return "moving" if self.scores[BASELINE]["psnr"] < MOVING_DB else "still"


@dataclass(frozen=True)
class Report:
    """An evaluation.

    Attributes:
        title: what was done.
        settings: everything that decides the numbers.
        methods: names, the one in question first; `copy` is among them.
        metrics: what was measured.
        clips: results, in the order of the split.
        skipped: records that were not scored, and why.
        credits: the clips that the contact sheet shows, with their terms and sources.
    """

    title: str
    settings: dict[str, Any]
    methods: tuple[str, ...]
    metrics: tuple[Metric, ...]
    clips: tuple[ClipResult, ...]
    skipped: dict[str, str] = field(default_factory=dict)
    credits: tuple[dict[str, str], ...] = ()

    def group(self, name: str) -> tuple[ClipResult, ...]:
        """The clips of "moving", "still" or "all"."""
        return tuple(clip for clip in self.clips if name in (clip.group, "all"))

    def mean(self, group: str, method: str, metric: str) -> Estimate:
        """Mean of a metric over a group's clips; NaN for an empty group."""
        values = self._values(group, method, metric)
        return bootstrap(len(values), lambda draws: values[draws].mean(axis=-1))

    def gain(self, group: str, method: str, metric: Metric) -> Estimate:
        """How much better than the copy: the difference of the means, or for distances the share that they fall by.

        Positive is better. PSNR and SSIM in their own units; LPIPS 0.1 means that its mean is 10 % below the copy's.
        """
        ours, copy = self._values(group, method, metric.name), self._values(group, BASELINE, metric.name)

        def better(draws: NDArray[np.int64]) -> Array:
            a, b = ours[draws].mean(axis=-1), copy[draws].mean(axis=-1)
            with np.errstate(invalid="ignore", divide="ignore"):
                return np.asarray(a - b if metric.higher_is_better else 1.0 - a / b)

        return bootstrap(len(ours), better)

    def retracked(self, group: str, method: str, name: str) -> Estimate:
        """Mean correlation of a tracked result with its driving motion, over the clips where it is defined."""
        found = np.array([clip.retracked.get(method, {}).get(name, math.nan) for clip in self.group(group)])
        found = found[~np.isnan(found)]
        return bootstrap(len(found), lambda draws: found[draws].mean(axis=-1))

    def summary(self) -> dict[str, Any]:
        """Group to clips, means, gains over the copy and mean correlations."""
        out: dict[str, Any] = {}
        for group in GROUPS:
            out[group] = {
                "clips": len(self.group(group)),
                "mean": {
                    method: {metric.name: asdict(self.mean(group, method, metric.name)) for metric in self.metrics}
                    for method in self.methods
                },
                "gain": {
                    method: {metric.name: asdict(self.gain(group, method, metric)) for metric in self.metrics}
                    for method in self.methods
                    if method != BASELINE
                },
                "retracked": {
                    method: {name: asdict(self.retracked(group, method, name)) for name in RETRACKED}
                    for method in self._tracked()
                },
            }
        return out

    def to_json(self) -> str:
        """Everything, as strict JSON: infinity is the string "inf", what is not defined is null."""
        value = {
            "title": self.title,
            "settings": self.settings,
            "metrics": {
                metric.name: {"higher_is_better": metric.higher_is_better, "definition": metric.definition}
                for metric in self.metrics
            },
            "summary": self.summary(),
            "clips": [{**asdict(clip), "group": clip.group} for clip in self.clips],
            "skipped": self.skipped,
            "sheet": list(self.credits),
        }
        return json.dumps(strict(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def summary_table(self) -> str:
        """Markdown: a row for each group and method, and ours over the copy."""
        rows = [["clips", "method", *(metric.title for metric in self.metrics)]]
        for group in GROUPS:
            count = len(self.group(group))
            if count == 0:
                continue
            name = f"{group} ({count})"
            for method in self.methods:
                cells = [cell(self.mean(group, method, metric.name), metric.digits) for metric in self.metrics]
                rows.append([name, method, *cells])
                name = ""
            for method in self.methods:
                if method != BASELINE:
                    cells = [_gain_cell(self.gain(group, method, metric), metric) for metric in self.metrics]
                    rows.append(["", f"{method} against {BASELINE}", *cells])
        return table(rows)

    def clip_table(self) -> str:
        """Markdown: a row for each clip."""
        heads = [f"{metric.title} {method}" for metric in self.metrics for method in self.methods]
        rows = [["clip", "group", "frames", "source frame", *heads]]
        for clip in sorted(self.clips, key=lambda c: c.scores[BASELINE]["psnr"]):
            cells = [number(clip.scores[method][m.name], m.digits) for m in self.metrics for method in self.methods]
            rows.append([clip.key, clip.group, str(clip.frames), str(clip.source_frame), *cells])
        return table(rows)

    def retracked_table(self) -> str:
        """Markdown: correlations of tracked results with their driving motion; empty where nothing was tracked."""
        tracked = self._tracked()
        if not tracked:
            return ""
        rows = [["clip", "group", *(f"{name} {method}" for name in RETRACKED for method in tracked)]]
        for clip in sorted(self.clips, key=lambda c: c.scores[BASELINE]["psnr"]):
            cells = [
                number(clip.retracked.get(method, {}).get(name, math.nan), 2)
                for name in RETRACKED
                for method in tracked
            ]
            rows.append([clip.key, clip.group, *cells])
        for group in GROUPS:
            if self.group(group):
                means = [self.retracked(group, method, name) for name in RETRACKED for method in tracked]
                rows.append([f"mean of {group}", "", *(cell(mean, 2) for mean in means)])
        return table(rows)

    def markdown(self) -> str:
        """The whole report as a page."""
        parts = [f"# {self.title}", self.summary_table()]
        parts.append(
            f"Means over clips, 95 % bootstrap intervals over clips. A clip moves if copying its source frame scores "
            f"under {MOVING_DB:g} dB; on still clips a copy is nearly perfect and proves nothing."
        )
        parts += ["## Clips", self.clip_table()]
        if self._tracked():
            parts += [
                "## Tracked again",
                "Correlation of the tracked result with the motion that drove it; `tracker` is the real clip tracked "
                "again, which bounds what can be hoped for.",
                self.retracked_table(),
            ]
        notes = [f"- {clip.key}: {clip.note}" for clip in self.clips if clip.note]
        notes += [f"- {key} was left out: {reason}" for key, reason in self.skipped.items()]
        if notes:
            parts += ["## Notes", "\n".join(notes)]
        parts += ["## Definitions"]
        parts += ["\n".join(f"- {metric.title}: {metric.definition}" for metric in self.metrics)]
        parts += ["\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in self.settings.items())]
        if self.credits:
            shown = "; ".join(f"{c['clip']} ({c['terms']}, {c['source']})" for c in self.credits)
            parts += ["## Contact sheet", f"Left to right, top to bottom: {shown}."]
        return "\n\n".join(parts) + "\n"

    def _values(self, group: str, method: str, metric: str) -> Array:
        return np.array([clip.scores[method][metric] for clip in self.group(group)], dtype=np.float64)

    def _tracked(self) -> list[str]:
        return list(dict.fromkeys(method for clip in self.clips for method in clip.retracked))


def bootstrap(clips: int, statistic: Callable[[NDArray[np.int64]], Array]) -> Estimate:
    """A statistic of some clips and its percentile bootstrap interval; always the same draws for as many clips.

    Args:
        clips: how many there are.
        statistic: of clip numbers (..., N) to values (...).
    """
    if clips == 0:
        return Estimate(math.nan, math.nan, math.nan)
    draws = np.random.default_rng(_SEED).integers(clips, size=(_DRAWS, clips))
    # Sorted, not interpolated: a quantile between infinite values would not be a number.
    ordered = np.sort(statistic(draws))
    tail = round((1.0 - _COVERAGE) / 2.0 * _DRAWS)
    return Estimate(float(statistic(np.arange(clips))), float(ordered[tail]), float(ordered[_DRAWS - 1 - tail]))


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


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown of rows of cells, the first one the heads."""
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *body])


def number(value: float, digits: int, sign: str = "") -> str:
    """A value as tables show it; a dash for what is not defined."""
    if math.isnan(value):
        return "–"
    return f"{value:{sign}.{digits}f}"


def cell(estimate: Estimate, digits: int, sign: str = "") -> str:
    """A mean and its interval as tables show them."""
    if math.isnan(estimate.mean):
        return "–"
    mean, low, high = (number(value, digits, sign) for value in (estimate.mean, estimate.low, estimate.high))
    return f"{mean} [{low}, {high}]"


def _gain_cell(gain: Estimate, metric: Metric) -> str:
    if math.isnan(gain.mean):
        return "–"
    if metric.higher_is_better:
        return cell(gain, metric.digits, "+")
    # A distance that falls by a tenth is shown as -10 %.
    return f"{-100 * gain.mean:+.1f} % [{-100 * gain.high:+.1f}, {-100 * gain.low:+.1f}]"


def strict(value: Any) -> Any:
    """A value for strict JSON: infinity becomes a string, NaN null."""
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
