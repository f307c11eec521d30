"""The report of the cross-identity protocol; `--against` reads one back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from export3d.errors import InputError
from export3d.evaluation.reports.clips import OURS, REAL, clip_result
from export3d.evaluation.reports.report import Report
from export3d.evaluation.reports.statistics import Estimate, paired_difference
from export3d.evaluation.reports.tables import cell, strict, table, titled
from export3d.files import check_input

_NAME_JOINT = " by "
_MUST_AGREE = ("split", "identity", "expression and pose", "motion", "frames")
"""Settings that two runs must share if their pairs are compared."""


@dataclass(frozen=True)
class Pair:
    """Keys of the record that is animated and of the clip that drives it."""

    source: str
    driver: str

    @property
    def name(self) -> str:
        """The pair's name in reports; keys have no spaces."""
        return f"{self.source}{_NAME_JOINT}{self.driver}"

    @property
    def folder(self) -> str:
        """The folder of its saved images."""
        return self.name.replace(" ", "_")

    @classmethod
    def from_name(cls, name: str) -> Pair:
        """The pair that has this name."""
        return cls(*name.split(_NAME_JOINT))


@dataclass(frozen=True)
class PairResult:
    """The figures of one pair.

    Attributes:
        pair: source and driver.
        frames: number of generated frames.
        found: share of the generated frames in which the tracker found a face.
        source_frame: number of the source's frame.
        values: measure to the mean over the frames, or the correlation; NaN if undefined.
        reference: the same for real images: for identity the driving frames against the source, for motion the driving
            frames tracked again.
    """

    pair: Pair
    frames: int
    found: float
    source_frame: int | None
    values: dict[str, float]
    reference: dict[str, float]


@dataclass(frozen=True)
class CrossReport(Report):
    """A cross-identity evaluation: clips are pairs; methods are ours and the driving frames.

    Attributes:
        other: an earlier run that this one is compared with.
    """

    other: Report | None = None

    @property
    def pairs(self) -> tuple[PairResult, ...]:
        """The results, pair by pair."""
        return tuple(
            PairResult(
                Pair.from_name(clip.key),
                clip.frames,
                clip.value(OURS, "found"),
                clip.source_frame,
                clip.scores[OURS],
                clip.scores[REAL],
            )
            for clip in self.clips
        )

    def difference(self, measure: str) -> Estimate:
        """Ours minus the other run's, over common pairs; NaN if there are none."""
        theirs = () if self.other is None else self.other.clips
        ours, others = ({clip.key: clip.value(OURS, measure) for clip in clips} for clips in (self.clips, theirs))
        return paired_difference(ours, others)

    def to_json(self) -> str:
        """The whole report as strict JSON; undefined figures are null. `--against` reads it."""
        names = [m.name for m in self.measures]
        value = {
            "title": self.title,
            "settings": self.settings,
            "measures": {m.name: m.definition for m in self.measures},
            "summary": {
                name: {"mean": asdict(self.mean("all", OURS, name)), "reference": asdict(self.mean("all", REAL, name))}
                for name in names
            },
            "pairs": [asdict(result) for result in self.pairs],
            "skipped": self.skipped,
            "sheet": list(self.credits),
        }
        if self.other is not None:
            value["against"] = {"report": weights_name(self.other), **{n: asdict(self.difference(n)) for n in names}}
        return json.dumps(strict(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def summary_table(self) -> str:
        """Markdown: a row per measure."""
        rows = [["measure", *self.methods]]
        rows[0] += [] if self.other is None else [f"{OURS} minus {weights_name(self.other)}"]
        for m in self.measures:
            row = [titled(m), *(cell(self.mean("all", method, m.name), m.digits) for method in self.methods)]
            rows.append(row if self.other is None else [*row, cell(self.difference(m.name), m.digits, "+")])
        return table(rows)

    @property
    def remark(self) -> str:
        """Explains the second method."""
        return (
            "A clip is a pair: one person's image, driven by another person's clip. Real pictures are the driving "
            "frames: for CSIM and leak compared with the source (two strangers), for the rest tracked again (the "
            "tracker's own error); what is compared with these frames themselves is left out."
        )


def read_cross_report(path: Path, settings: Mapping[str, Any]) -> Report:
    """The figures of another run's `report.json`, to compare pair by pair.

    Args:
        path: of the file.
        settings: of the run it is compared with.

    Raises:
        InputError: the file is something else, or its run had other settings of `_MUST_AGREE`.
    """
    text = check_input(path, InputError, "a report of a cross-identity run").read_bytes()
    try:
        value = json.loads(text)
        clips = [
            clip_result({
                "key": Pair(**pair["pair"]).name, "person": "", "terms": "", "origin": "", "identical_frames": 0,
                "frames": pair["frames"], "source_frame": pair["source_frame"],
                "scores": {OURS: {"found": pair["found"], **pair["values"]}},
            })
            for pair in value["pairs"]
        ]  # fmt: skip
        differing = [name for name in _MUST_AGREE if value["settings"].get(name) != settings.get(name)]
        other = Report(str(value["title"]), dict(value["settings"]), (OURS,), (), tuple(clips))
        weights_name(other)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not the report.json of a cross-identity run; make one with export3d evaluate cross"
        ) from error
    if differing:
        raise InputError(f"{path} was made with other settings ({', '.join(differing)}); repeat that run with these")
    return other


def weights_name(report: Report) -> str:
    """A run's name in tables: that of its weights."""
    return str(report.settings["weights"]).split(",")[0]
