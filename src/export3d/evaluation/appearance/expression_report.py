"""How much of a person's appearance expressions carry, as a report.

Every representation of beta (`representations`) gets the same figures (`probes`). Whatever is fitted is fitted on the
training split's videos, without the people who are probed.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export3d.animate.export import check_output
from export3d.data.shards import Record, read_shards
from export3d.errors import InputError
from export3d.evaluation.appearance.probes import (
    SEAM_FRAMES,
    Array,
    Statistic,
    effective_rank,
    halves,
    held_expression,
    probe,
    spread_frames,
)
from export3d.evaluation.appearance.representations import Representation, baselines, coefficients_of, read_encoder
from export3d.evaluation.appearance.tsne import tsne_figure
from export3d.evaluation.reports.statistics import bootstrap
from export3d.expression.encoder import ExpressionEncoder
from export3d.files import check_input, make_folder, write_bytes
from export3d.provenance.writing import write_unmarked

SPLITS = ("train", "val")
HELD_OUT = "val"
MIN_HALF_FRAMES = 10
TSNE_PEOPLE = 10
TSNE_FRAMES = 10
FIGURES = {
    "linear": "linear probe",
    "neighbour": "1-NN probe",
    "held": "held expression",
    "held_val": "held expression, val",
    "rank": "effective rank",
}
"""Key of a figure to its heading; for all but the last, lower is less appearance."""


@dataclass(frozen=True)
class Figure:
    """A number with its 95 % bootstrap interval over people and its standard deviation over seeds, if it has them."""

    value: float
    low: float | None = None
    high: float | None = None
    deviation: float | None = None

    def cell(self) -> str:
        """Markdown."""
        text = f"{self.value:.2f}" + (f" ± {self.deviation:.2f}" if self.deviation is not None else "")
        return text + (f" [{self.low:.2f}, {self.high:.2f}]" if self.low is not None else "")


@dataclass(frozen=True)
class ExpressionReport:
    """The figures of all representations.

    Attributes:
        settings: everything that decides the figures.
        rows: representation to key of `FIGURES` to number.
    """

    settings: dict[str, Any]
    rows: dict[str, dict[str, Figure]]

    def to_json(self) -> str:
        """Everything, as strict JSON; undefined figures are null."""
        rows = {name: {key: asdict(value) for key, value in row.items()} for name, row in self.rows.items()}
        value = {"settings": self.settings, "figures": FIGURES, "rows": rows}
        text = json.dumps(value, indent=1, ensure_ascii=False)
        return json.dumps(json.loads(text, parse_constant=lambda _: None), indent=1, ensure_ascii=False) + "\n"

    def markdown(self) -> str:
        """The table and its settings."""
        keys = [key for key in FIGURES if any(key in row for row in self.rows.values())]
        lines = ["# Appearance left in the expression", ""]
        lines += [f"| representation | {' | '.join(FIGURES[key] for key in keys)} |", "| --- " * (len(keys) + 1) + "|"]
        lines += [f"| {name} | {' | '.join(row[key].cell() for key in keys)} |" for name, row in self.rows.items()]
        lines += ["", "Brackets: 95 % bootstrap intervals over people; ±: standard deviation over seeds.", ""]
        lines += [f"- {name.replace('_', ' ')}: {value}" for name, value in self.settings.items()]
        return "\n".join(lines) + "\n"


def evaluate_expression(
    data: Path | str,
    output: Path | str,
    encoders: Sequence[Path | str] = (),
    *,
    pairs: Path | str | None = None,
    people: Sequence[str] = (),
) -> ExpressionReport:
    """Measure the baselines and some encoders; write expression.json, expression.md and tsne.png.

    Args:
        data: folder that `export3d prepare` wrote, with the splits train and val.
        output: folder for the results; created if missing.
        encoders: weights of encoders, or of whole models; each becomes a row named after its file.
        pairs: CSV with the columns person, neutral, smiling (keys of records); without it, no held expression.
        people: the people whose clips are probed, from either split; by default everyone with a clip in val.

    Raises:
        InputError: the data, the pairs or the people cannot be used.  CheckpointError: an encoder cannot be read.
        OutputError: the folder cannot be written.  MissingExtra: scikit-learn or matplotlib is missing.
    """
    output = make_folder(output)
    for name in ("expression.json", "expression.md", "tsne.png"):
        check_output(output / name)
    named = dict(zip(_row_names([Path(path) for path in encoders]), map(read_encoder, encoders)))
    records = {split: list(read_shards(Path(data) / split)) for split in SPLITS}
    values = {record.expression.shape[1] for found in records.values() for record in found}
    for name, encoder in named.items():
        if values - {encoder.config.inputs}:
            raise InputError(
                f"{data} holds {min(values)} expression values, but the encoder {name} takes {encoder.config.inputs}; "
                "name encoders that were trained on such data"
            )
    report, embeddings = _measure(records, named, None if pairs is None else read_portrait_pairs(pairs), people)
    write_unmarked(output / "tsne.png", tsne_figure(embeddings, TSNE_FRAMES), reason="chart")
    write_bytes(output / "expression.json", report.to_json().encode())
    write_bytes(output / "expression.md", report.markdown().encode())
    return report


def read_portrait_pairs(path: Path | str) -> list[tuple[str, str]]:
    """Keys of a neutral and a smiling record of each person, from a CSV with the columns person, neutral, smiling.

    Raises:
        InputError: it cannot be read or lacks a column.
    """
    path = check_input(path, InputError, "a CSV of portrait pairs")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            found = [(row["neutral"], row["smiling"]) for row in csv.DictReader(file)]
    except (UnicodeDecodeError, csv.Error, KeyError) as error:
        raise InputError(f"{path} is no CSV with the columns person, neutral, smiling ({error}); correct it") from error
    if len(found) < 2:
        raise InputError(f"{path} has {len(found)} rows; held expression needs two people or more")
    return found


def _measure(
    records: Mapping[str, Sequence[Record]],
    encoders: Mapping[str, ExpressionEncoder],
    pairs: Sequence[tuple[str, str]] | None,
    people: Sequence[str],
) -> tuple[ExpressionReport, dict[str, Array]]:
    """The report, and the features of the t-SNE's panels."""
    clips = [record for split in SPLITS for record in records[split] if record.kind == "video"]
    held_out = {str(record.info["person"]) for record in records[HELD_OUT] if record.kind == "video"}
    probed, left_out = _probed(clips, set(people) or held_out)
    names = sorted({str(record.info["person"]) for record in probed})
    asked = {*names, *(people or held_out)}
    fitted = [r for r in records["train"] if r.kind == "video" and r.info["person"] not in asked]
    if not fitted:
        raise InputError("no training video is left to fit the baselines on; probe fewer people")
    parts = [halves(record.found) for record in probed]
    numbers = [names.index(str(record.info["person"])) for record in probed]
    first, second = (np.concatenate([r.expression[half[i]] for r, half in zip(probed, parts)]) for i in (0, 1))
    who = [np.repeat(numbers, [len(half[i]) for half in parts]) for i in (0, 1)]
    shown = [next(r for r in probed if r.info["person"] == name) for name in names[:TSNE_PEOPLE]]
    shown_beta = np.concatenate([r.expression[spread_frames(r.found, TSNE_FRAMES)] for r in shown])
    portraits = _portraits(records, pairs) if pairs is not None else {}

    representations = baselines(np.concatenate([r.expression[r.found] for r in fitted]))
    representations += [Representation(name, (coefficients_of(encoder),)) for name, encoder in encoders.items()]
    rows: dict[str, dict[str, Figure]] = {}
    for representation in representations:
        statistics: dict[str, list[Statistic]] = {}
        ranks = []
        for encode in representation.encoders:
            a, b = encode(first), encode(second)
            for key, accuracy in zip(("linear", "neighbour"), probe(a, who[0], b, who[1])):
                statistics.setdefault(key, []).append(_mean_statistic(accuracy))
            for key, (neutral, smiling) in portraits.items():
                statistics.setdefault(key, []).append(held_expression(encode(neutral), encode(smiling)))
            ranks.append(effective_rank(np.concatenate([a, b])))
        row = {k: _figure(len(portraits[k][0]) if k in portraits else len(names), s) for k, s in statistics.items()}
        rows[representation.name] = row | {"rank": Figure(float(np.mean(ranks)), deviation=_deviation(ranks))}
    trained = representations[-len(encoders) :] if encoders else []
    panels = [representations[0], representations[4], *trained]
    settings: dict[str, Any] = {
        "probed_people": len(names),
        "chance": round(1.0 / len(names), 4),
        "clips": ", ".join(record.key for record in probed),
        "left_out": ", ".join(left_out) or "none",
        "training_frames": len(first),
        "test_frames": len(second),
        "frames_left_out_at_the_seam": SEAM_FRAMES,
        "people_neutral_and_smiling": len(portraits["held"][0]) if portraits else 0,
        "of_them_in_val": len(portraits["held_val"][0]) if "held_val" in portraits else 0,
        "baselines_fitted_on": f"{sum(int(r.found.sum()) for r in fitted)} frames of {len(fitted)} training videos",
        "shown_in_the_figure": ", ".join(record.key for record in shown),
    }
    return ExpressionReport(settings, rows), {r.name: r.encoders[0](shown_beta) for r in panels}


def _probed(clips: Sequence[Record], people: set[str]) -> tuple[list[Record], list[str]]:
    """The clips of these people with enough frames in each half, and the keys of the others."""
    missing = people - {str(record.info["person"]) for record in clips}
    if missing:
        raise InputError(f"no clip shows {', '.join(sorted(missing))}; name people of the prepared data")
    asked = [record for record in clips if record.info["person"] in people]
    enough = [min(map(len, halves(record.found))) >= MIN_HALF_FRAMES for record in asked]
    good = [record for record, fits in zip(asked, enough) if fits]
    if len({record.info["person"] for record in good}) < 2:
        raise InputError("a probe needs clips of at least two people, each long enough to be halved; name more people")
    return good, [record.key for record, fits in zip(asked, enough) if not fits]


def _portraits(
    records: Mapping[str, Sequence[Record]], pairs: Sequence[tuple[str, str]]
) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Figure to neutral and smiling expressions (P, E): of everyone, and of those in val if they are two or more."""
    beta = {record.key: record.expression[0] for split in SPLITS for record in records[split]}
    held_out = {record.key for record in records[HELD_OUT]}
    missing = [key for pair in pairs for key in pair if key not in beta]
    if missing:
        raise InputError(f"the prepared data lack {len(missing)} of the pairs' portraits, such as {missing[0]}")
    chosen = {"held": pairs, "held_val": [pair for pair in pairs if held_out.issuperset(pair)]}
    stacked = {k: [np.stack([beta[pair[i]] for pair in some]) for i in (0, 1)] for k, some in chosen.items() if some}
    return {key: (neutral, smiling) for key, (neutral, smiling) in stacked.items() if len(neutral) > 1}


def _mean_statistic(values: Array) -> Statistic:
    return lambda draws: np.asarray(values[draws].mean(-1))


def _figure(people: int, statistics: Sequence[Statistic]) -> Figure:
    estimate = bootstrap(people, lambda draws: np.asarray(np.mean([each(draws) for each in statistics], axis=0)))
    single = [float(each(np.arange(people))) for each in statistics]
    return Figure(estimate.mean, estimate.low, estimate.high, _deviation(single))


def _deviation(values: Sequence[float]) -> float | None:
    return float(np.std(values)) if len(values) > 1 else None


def _row_names(paths: Sequence[Path]) -> list[str]:
    """Stems, with their folders where stems repeat."""
    stems = [path.stem for path in paths]
    return [stem if stems.count(stem) == 1 else f"{path.parent.name}/{stem}" for path, stem in zip(paths, stems)]
