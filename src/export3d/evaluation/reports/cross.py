"""The report of the cross-identity protocol."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from export3d.evaluation.protocols.pairs import BY_CLIP, Pair
from export3d.evaluation.protocols.same import OURS
from export3d.evaluation.reports.report import REAL, Report
from export3d.evaluation.reports.statistics import Estimate, paired_difference
from export3d.evaluation.reports.tables import cell, strict, table, titled


@dataclass(frozen=True)
class PairResult:
    """What was found for one pair.

    Attributes:
        pair: who was driven by whom.
        frames: generated.
        found: share of the generated frames in which the tracker saw a face.
        source_frame: number of the source's frame.
        values: measure to the mean over the frames, or the correlation; NaN where it is not defined.
        reference: the same of real pictures: for identity the real driving frames against the source, for motion the
            real driving frames tracked again.
    """

    pair: Pair
    frames: int
    found: float
    source_frame: int | None
    values: dict[str, float]
    reference: dict[str, float]


@dataclass(frozen=True)
class CrossReport(Report):
    """A cross-identity evaluation: clips are pairs, methods are ours and the real pictures.

    Attributes:
        other: an earlier run that this one is compared with.
    """

    other: Report | None = None

    @property
    def pairs(self) -> tuple[PairResult, ...]:
        """The results, pair by pair."""
        return tuple(
            PairResult(
                Pair(*clip.key.split(BY_CLIP)),
                clip.frames,
                clip.value(OURS, "found"),
                clip.source_frame,
                clip.scores[OURS],
                clip.scores[REAL],
            )
            for clip in self.clips
        )

    def difference(self, measure: str) -> Estimate:
        """Ours minus the other run's, over common pairs; NaN without one."""
        theirs = () if self.other is None else self.other.clips
        ours, others = ({clip.key: clip.value(OURS, measure) for clip in clips} for clips in (self.clips, theirs))
        return paired_difference(ours, others)

    def to_json(self) -> str:
        """Everything, as strict JSON; what is not defined is null. It is what `--against` reads."""
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
            value["against"] = {"report": name_of_weights(self.other), **{n: asdict(self.difference(n)) for n in names}}
        return json.dumps(strict(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def summary_table(self) -> str:
        """Markdown: a row for each measure."""
        rows = [["measure", *self.methods]]
        rows[0] += [] if self.other is None else [f"{OURS} minus {name_of_weights(self.other)}"]
        for m in self.measures:
            row = [titled(m), *(cell(self.mean("all", method, m.name), m.digits) for method in self.methods)]
            rows.append(row if self.other is None else [*row, cell(self.difference(m.name), m.digits, "+")])
        return table(rows)

    @property
    def remark(self) -> str:
        """What the second method is."""
        return (
            "A clip is a pair: one person's picture, driven by another person's clip. Real pictures: for CSIM and leak "
            "the real driving frames against the source, two strangers; for the rest the real driving frames tracked "
            "again, the best that can be hoped for."
        )


def name_of_weights(report: Report) -> str:
    """How a table calls a run."""
    return str(report.settings["weights"]).split(",")[0]
