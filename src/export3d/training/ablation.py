"""Table 3: how the expression is encoded, one variant a row, all else equal.

Every row is the same preset with one change, trained by `training.reconstruction` in `OUT/ROW` on the same pairs in the
same order, for the same number of images, from the same start: all but the expression encoder and what reads it begins
with the weights in `OUT/start.safetensors`, or with those that were named. Equal images, not equal minutes: the rows
differ a little in speed, and a clock would measure that too.

A row's folder says what it was trained with (`row.json`). A finished row is left as it is, a cut one goes on, and a row
of other settings is refused, so that the same command may be started again until the table stands. Scores are kept too.

    OUT/ablation.md, ablation.json, sheet.png
    OUT/ROW/            a run's folder (`training.record`), with row.json and weights.safetensors
    OUT/ROW/same, OUT/ROW/cross     what `export3d evaluate` writes
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.distributed as distributed
from numpy.typing import NDArray

from export3d.animate.animator import pick_device
from export3d.animate.export import check_output, make_folder, write_sheet
from export3d.camera import head_angles
from export3d.checkpoint import latest_state, load_weights
from export3d.config import ModelConfig
from export3d.data.frames import decode
from export3d.data.shards import Record, read_index, read_shards
from export3d.errors import ConfigError, InputError, TrainingError
from export3d.evaluation.cross import FRAMES, Pair, asked_motion, choose_pairs, cross_identity, read_pairs
from export3d.evaluation.driven import FPS, most_frontal
from export3d.evaluation.figures import publishable
from export3d.evaluation.identity import PACKAGED
from export3d.evaluation.paper_tables import CAVEAT, COLUMNS, TABLES
from export3d.evaluation.protocol import OURS, origin_of, same_identity
from export3d.evaluation.report import (
    BASELINE,
    Estimate,
    bootstrap,
    cell,
    number,
    paired_difference,
    strict,
    table,
    titled,
)
from export3d.evaluation.scoring import ClipScorer, Scoring
from export3d.files import check_input, write_bytes
from export3d.hub import locate
from export3d.image import resize, to_tensor, to_uint8
from export3d.model import Export3D
from export3d.motion import Motion
from export3d.pretrained import PACKAGED_ENCODER, load_encoder, load_pretrained, save_pretrained
from export3d.training.loop import LoopConfig
from export3d.training.reconstruction import ReconstructionConfig, run
from export3d.training.record import read_log

Picture = NDArray[np.uint8]
Progress = Callable[[str, int, int], None]

Row = Literal["direct_3dmm", "e2e_lebs_n25", "e2e_lebs_n10", "e2e_lebs_n5", "clebs"]
ROWS: tuple[Row, ...] = get_args(Row)
"""In the order of Table 3; the last one is the paper's full model."""
PAPER = dict(zip(ROWS, TABLES[2].rows))
"""What the paper calls them."""

WEIGHTS = "weights.safetensors"
EVERY = 5
_SETTINGS = "row.json"
_NO_MATTER = frozenset({
    "max_minutes", "log_every", "sheet_every", "validate_every", "save_every", "keep", "part_size_mb", "cpu",
    "tensorboard", "progress", "sheet_pairs", "variants",
})  # fmt: skip
"""Settings that change nothing in the weights, and the one in which the rows differ."""
_SHOWN = {
    "same": ("psnr", "ssim", "lpips", "lpips_uniform", "akd", "csim_", "aed", "apd"),
    "cross": ("csim_", "leak_", "aed", "apd", "yaw", "jawOpen", "eyeBlink"),
}
"""Measures that the table has room for; ablation.json has all. A trailing `_` stands for any ending."""
_SHEET_PEOPLE = 4
_SHEET_PX = 128
_ANGLE_SCALE_DEG = 15.0


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
    """What became of one variant.

    Attributes:
        name: of the variant.
        images, minutes: seen and spent in training.
        parameters, trained: of the whole model, and those that were trained.
        psnr: of the run's own validation pairs at its end, dB; NaN where there was none.
        values: column to case (a clip, or a pair) to its mean over the frames; NaN where it is not defined.
        note: what could not be scored, a sentence.
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
    """The rows side by side; the last one is what the others are compared with.

    Attributes:
        settings: what all rows share, and how they were scored.
        columns: everything that was measured.
        rows: results.
        reference: column to case to value of what needs no model: the copied source (same identity), and real pictures
            of the driver (cross identity; see `evaluation.cross`).
        credits: what the contact sheet shows, a line for each of its rows.
    """

    settings: dict[str, Any]
    columns: tuple[Column, ...]
    rows: tuple[RowResult, ...]
    reference: dict[str, dict[str, float]]
    credits: tuple[str, ...] = ()

    def mean(self, row: RowResult, column: Column) -> Estimate:
        """Mean over the cases in which the measure is defined, with its interval."""
        return _mean(row.values.get(column.key, {}))

    def difference(self, row: RowResult, column: Column) -> Estimate:
        """The row less the last row, over the cases in which both are defined."""
        return paired_difference(row.values.get(column.key, {}), self.rows[-1].values.get(column.key, {}))

    def to_json(self) -> str:
        """Everything, as strict JSON; what is not defined is null."""
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
        """Markdown: a row for each variant, a column for each measure, and the references below."""
        shown = [column for column in self.columns if column.shown]
        lines = [["variant", *(f"{c.protocol}: {c.title}" for c in shown)]]
        for row in self.rows:
            lines.append([PAPER[row.name], *(_cell(row.values.get(c.key, {}), c.digits) for c in shown)])
        lines.append(["*no model*", *(_cell(self.reference.get(c.key, {}), c.digits) for c in shown)])
        return table(lines)

    def difference_table(self) -> str:
        """Markdown: each row less the last one; bold where the interval leaves out zero."""
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
        """Markdown: what each row cost."""
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
            "real pictures (cross: CSIM and leak are those of two strangers, the rest is the tracker's own error). "
            "Read CSIM and leak together with AED and the correlations: a model that does not move keeps its "
            "identity. One training run a row: the intervals know of the clips, not of what another seed would give.",
        ]
        parts += [f"{PAPER[row.name]}: {row.note}" for row in self.rows if row.note]
        if len(self.rows) > 1:
            parts += [
                f"## Less {last}, case by case",
                self.difference_table(),
                "Paired differences and their intervals, bold where the interval leaves out zero; with so many cells "
                "some do by chance.",
            ]
        parts += ["## Budget", self.budget_table(), "## The paper's Table 3", self.paper_table(), CAVEAT]
        parts += [
            "## Settings",
            "\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in self.settings.items()),
        ]
        parts += ["## Definitions", "\n".join(f"- {c.protocol}: {c.title}: {c.definition}" for c in self.columns)]
        if self.credits:
            shown = "\n".join(f"{i}. {credit}" for i, credit in enumerate(self.credits, 1))
            parts += ["## Contact sheet", "![source, driving, and every variant](sheet.png)", shown]
        return "\n\n".join(parts) + "\n"


def ablate(
    data: Path,
    out: Path,
    config: ReconstructionConfig,
    loop: LoopConfig,
    rows: Sequence[Row] = ROWS,
    *,
    from_pretrained: Path | str | None = None,
    pseudo: Sequence[Path] = (),
    cache: Path | None = None,
    pairs: Path | None = None,
    identity: Sequence[str | Path] = (PACKAGED,),
    frames: int = FRAMES,
    every: int = EVERY,
    progress: Progress | None = None,
) -> Ablation | None:
    """Train the rows (`train_rows`), score them on `data/val` and write `ablation.md`, `ablation.json` and `sheet.png`.

    LPIPS is scored with the backbone that the rows are trained with; without one it is left out.

    Args:
        data, out, config, loop, rows, from_pretrained, pseudo, cache: see `train_rows`.
        pairs, identity, frames: of the cross-identity scores, see `evaluation.cross.cross_identity`.
        every: the same-identity scores drive every N-th frame.
        progress: called with (what is scored, frames done, frames).

    Returns:
        The comparison; None on all processes but the first.

    Raises:
        What `train_rows`, `cross_identity` and `same_identity` raise; what can be known beforehand is raised before
        anything is trained.
    """
    _check(data, config, loop, rows)
    scoring = _scoring(config, identity)
    device = pick_device("cpu" if loop.cpu else "auto")
    listed = _check_scoring(data / "val", pairs, scoring, min(frames, every))
    make_folder(out)
    for name in ("ablation.md", "ablation.json", "sheet.png"):
        check_output(out / name)
    trained = train_rows(data, out, config, loop, rows, from_pretrained=from_pretrained, pseudo=pseudo, cache=cache)
    if distributed.is_initialized() and distributed.get_rank() != 0:
        return None
    split = data / "val"
    scored = {
        row: (
            _same(split, out / row, weights, scoring, every, device, _titled(progress, f"{row}, same identity")),
            _cross(
                split, out / row, weights, pairs, identity, frames, device, _titled(progress, f"{row}, cross identity")
            ),
        )
        for row, weights in trained.items()
    }
    credits = _draw_sheet(out / "sheet.png", split, listed, trained, device)
    settings = {
        **{
            name: value
            for name, value in _read_settings(out / rows[-1]).items()
            if name not in ("expression", "variants") and not name.startswith("model.")  # weights.json has the model
        },
        "variants": list(config.variants),
        "expression": _digest(config.expression or PACKAGED_ENCODER),
        "scored_on": _split_digest(split),
        "pairs": "by rule: each clip drives the next two people" if pairs is None else pairs.name,
        "frames_of_a_driving_clip": f"at most {frames}, evenly spaced",
        "same_identity": "every further found frame" if every == 1 else f"one in {every} of the further found frames",
    }
    both = [scores for pair in scored.values() for scores in pair]
    columns = {column.key: column for scores in both for column in scores.columns}
    reference: dict[str, dict[str, float]] = {}
    for scores in both:  # a pair may have been skipped in one row and scored in another
        for key, cases in scores.reference.items():
            reference[key] = reference.get(key, {}) | cases
    results = tuple(_row_result(row, out / row, scores, reference) for row, scores in scored.items())
    found = Ablation(settings, tuple(columns.values()), results, reference, credits)
    write_bytes(out / "ablation.json", found.to_json().encode())
    write_bytes(out / "ablation.md", found.markdown().encode())
    return found


# ---- training --------------------------------------------------------------------------------------------------------


def train_rows(
    data: Path,
    out: Path,
    config: ReconstructionConfig,
    loop: LoopConfig,
    rows: Sequence[Row] = ROWS,
    *,
    from_pretrained: Path | str | None = None,
    pseudo: Sequence[Path] = (),
    cache: Path | None = None,
) -> dict[Row, Path]:
    """Train each row into `out/ROW` as far as that is not done yet; the weights of each.

    Args:
        data: folder of prepared shards with `train` and `val` in it.
        out: made if missing.
        config: what all rows share; its variants are changes to all of them.
        loop: with `max_images`, the budget of each row.
        rows: which ones; several processes may share them and one output folder.
        from_pretrained: weights that every row begins with, see `pretrained.inherit`; those that were trained with one
            row's encoder favour that row.
        pseudo, cache: as in `training.reconstruction.run`.

    Raises:
        ConfigError: no budget in images, rows that cannot be compared, or a folder trained with other settings.
        TrainingError: a row was stopped before its end, or diverged.
        InputError, CheckpointError, OutputError: as `training.reconstruction.run`.
    """
    _check(data, config, loop, rows)
    assert loop.max_images is not None
    make_folder(out)
    start = _start(out, config) if from_pretrained is None else locate(from_pretrained)[0]
    wanted = {row: _settings(row, data, config, loop, start, pseudo) for row in rows}
    for row in rows:  # all of them, before hours go into the first
        _check_row(out / row, wanted[row])
    for row in rows:
        if _images_seen(out / row) >= loop.max_images:
            continue
        make_folder(out / row)
        write_bytes(out / row / _SETTINGS, (json.dumps(wanted[row], indent=1) + "\n").encode())
        encoder = config.expression or PACKAGED_ENCODER  # not that of the weights to begin with
        changed = replace(config, expression=encoder, variants=(*config.variants, row))
        result = run(data, out / row, changed, loop, from_pretrained=start, pseudo=pseudo, cache=cache)
        if result.reason != "max_images":
            told = f"after {result.images_seen} of {loop.max_images} images"
            raise TrainingError(f"row {row} was stopped {told}; the same command goes on")
    return {row: out / row / WEIGHTS for row in rows}


def _check(data: Path, config: ReconstructionConfig, loop: LoopConfig, rows: Sequence[Row]) -> None:
    """Refuse what would not be an ablation."""
    if loop.max_images is None:
        raise ConfigError("the rows must see equally many images, and minutes do not tell how many; give --max-images")
    if loop.decay == "clock":
        raise ConfigError("a learning rate that follows the clock differs from row to row; set --decay images or none")
    if not rows or len(set(rows)) != len(rows) or not set(rows) <= set(ROWS):
        raise ConfigError(f"the rows must be different ones of {', '.join(ROWS)}")
    taken = sorted(set(config.variants) & set(ROWS))
    if taken:
        raise ConfigError(f"{taken[0]} is a row of the table, not a change to all of them; name it in --rows")
    config.model_config()
    for split in ("train", "val"):
        if not (data / split).is_dir():
            raise InputError(f"{data} has no folder '{split}'; make one with: export3d prepare CLIPS -o {data}")
    if "clebs" in rows:
        load_encoder(config.expression)


def _start(out: Path, config: ReconstructionConfig) -> Path:
    """The weights that all rows begin with, drawn once and then kept."""
    path = out / "start.safetensors"
    if not path.with_suffix(".json").is_file():  # written last
        torch.manual_seed(0)
        # A frozen encoder that no row has, so that every row keeps its own and takes over all the rest.
        drawn = replace(config, variants=(*config.variants, "clebs"))
        save_pretrained(Export3D(drawn.model_config()), path, {"images_seen": 0})
    return path


def _settings(
    row: Row, data: Path, config: ReconstructionConfig, loop: LoopConfig, start: Path, pseudo: Sequence[Path]
) -> dict[str, Any]:
    """All that decides a row's weights, as JSON; files and splits by their contents."""
    words = {name: value for name, value in (asdict(config) | asdict(loop)).items() if name not in _NO_MATTER}
    words |= {"expression": (config.expression or PACKAGED_ENCODER) if row == "clebs" else None}
    words |= {"from_pretrained": start, "variants": [*config.variants, row]}
    words = {name: _digest(value) if isinstance(value, Path) else value for name, value in words.items()}
    words |= {"data": _split_digest(data / "train"), "pseudo": [_split_digest(split) for split in pseudo]}
    words |= {"model": replace(config, variants=(*config.variants, row)).model_config().to_dict()}
    return _plain(words)


def _defaults() -> dict[str, Any]:
    """What a setting was for rows that were begun before it existed."""
    words = asdict(ReconstructionConfig()) | asdict(LoopConfig()) | {"model": ModelConfig().to_dict()}
    return _plain({name: None if isinstance(value, Path) else value for name, value in words.items()})


def _plain(words: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON has it, names of parts and of what is in them joined by dots."""
    return dict(_flat(json.loads(json.dumps(words))))


def _check_row(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Refuse a row that was trained, or begun, with other settings."""
    if not (folder / _SETTINGS).is_file():
        if (folder / "checkpoints").exists():
            raise ConfigError(f"{folder} holds a run of another command; choose another output folder")
        return
    before = _defaults() | _read_settings(folder)
    differing = [name for name, value in wanted.items() if before.get(name) != value]
    if "max_images" in differing and wanted["decay"] == "none" and _progress(folder) <= wanted["max_images"]:
        differing.remove("max_images")  # the same run, only longer
    if differing:
        told = ", ".join(f"{name} {before.get(name)} there, {wanted[name]} here" for name in differing[:3])
        raise ConfigError(f"{folder} was trained with other settings ({told}); repeat those or choose another folder")


def _read_settings(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / _SETTINGS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{folder / _SETTINGS} is damaged; delete {folder} and train this row again") from error


def _images_seen(folder: Path) -> float:
    """Images that a row's weights have seen; minus infinity where there are none."""
    if not (folder / WEIGHTS).is_file():
        return -math.inf
    return int(load_weights(folder / WEIGHTS)[2].get("images_seen", 0))


def _progress(folder: Path) -> float:
    """Images that a row has seen at most, whether its weights were written or not."""
    state = latest_state(folder / "checkpoints")
    return max(_images_seen(folder), -math.inf if state is None else int(state.name.rpartition("-")[2]))


def _flat(value: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, item in value.items():
        if isinstance(item, Mapping):
            yield from _flat(item, f"{before}{name}.")
        else:
            yield before + name, item


def _digest(path: Path) -> str:
    """A file's name and the beginning of its SHA-256."""
    data = check_input(path, InputError, "a file of weights").read_bytes()
    return f"{path.name} {hashlib.sha256(data).hexdigest()[:12]}"


def _split_digest(split: Path) -> str:
    """Records, frames and contents of a split."""
    index = read_index(split)
    contents = hashlib.sha256("\n".join(shard.sha256 for shard in index.shards).encode()).hexdigest()[:12]
    return f"{len(index.entries)} records, {index.frames} frames, {contents}"


# ---- scores ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scores:
    """One protocol's figures of one row."""

    columns: tuple[Column, ...]
    values: dict[str, dict[str, float]]
    reference: dict[str, dict[str, float]]
    note: str = ""


def _scoring(config: ReconstructionConfig, identity: Sequence[str | Path]) -> Scoring:
    named = tuple(identity)
    if config.backbone == "none":
        return Scoring(backbone="none", identity=named)
    return Scoring(
        backbone=config.backbone,
        backbone_file=config.backbone_file,
        heads_file=config.heads_file,
        identity=named,
    )


def _check_scoring(split: Path, pairs: Path | None, scoring: Scoring, least: int) -> tuple[Pair, ...]:
    """Refuse now what could not be scored after hours of training; the pairs of the cross-identity scores."""
    if least < 1 or not scoring.identity:
        raise ConfigError("frames and every must be at least 1, and identity needs a descriptor")
    index = read_index(split)
    if index.space != "arkit52":
        raise InputError(f"{split} holds expressions in {index.space}; the rows are compared by tracked arkit52 scores")
    listed = choose_pairs(index) if pairs is None else read_pairs(pairs)
    keys = {entry.key for entry in index.entries}
    unknown = [key for pair in listed for key in (pair.source, pair.driver) if key not in keys]
    if unknown or not listed:
        told = (
            f"does not hold {unknown[0]}, which the pairs name" if unknown else "holds no clip that could drive another"
        )
        raise InputError(f"{split} {told}; name other pairs or prepare more clips")
    with ClipScorer(scoring):
        pass
    return listed


def _same(
    split: Path,
    folder: Path,
    weights: Path,
    scoring: Scoring,
    every: int,
    device: torch.device,
    progress: Callable[[int, int], None] | None,
) -> _Scores:
    report = same_identity(
        split,
        folder / "same",
        weights=weights,
        references=(),
        scoring=scoring,
        every=every,
        device=device,
        progress=progress,
    )
    columns = tuple(Column("same", m.name, titled(m), m.digits, m.definition) for m in report.measures)

    def of(method: str) -> dict[str, dict[str, float]]:
        return {c.key: {clip.key: clip.value(method, c.name) for clip in report.clips} for c in columns}

    return _Scores(columns, of(OURS), of(BASELINE))


def _cross(
    split: Path,
    folder: Path,
    weights: Path,
    pairs: Path | None,
    identity: Sequence[str | Path],
    frames: int,
    device: torch.device,
    progress: Callable[[int, int], None] | None,
) -> _Scores:
    """Cross-identity scores, from the disk where they were made of the same things."""
    made_of = {
        "weights": _digest(weights),
        "split": _split_digest(split),
        "pairs": None if pairs is None else _digest(pairs),
        "identity": [_digest(Path(name)) if str(name).endswith(".onnx") else str(name) for name in identity],
        "frames": frames,
    }
    path = folder / "cross" / "scores.json"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["made_of"] == made_of:
            columns = tuple(Column(**column) for column in kept["columns"])
            return _Scores(columns, _numbers(kept["values"]), _numbers(kept["reference"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # never scored, or by an older version
    try:
        report = cross_identity(
            split,
            folder / "cross",
            weights=weights,
            pairs=pairs,
            identity=identity,
            frames=frames,
            device=device,
            progress=progress,
        )
    except InputError as error:  # the inputs were looked at before; what is left is that no face came out
        return _Scores((), {}, {}, str(error))
    columns = tuple(Column("cross", m.name, titled(m), m.digits, m.definition) for m in report.measures)
    values = {c.key: {p.pair.name: p.values.get(c.name, math.nan) for p in report.pairs} for c in columns}
    reference = {c.key: {p.pair.name: p.reference.get(c.name, math.nan) for p in report.pairs} for c in columns}
    kept = {"made_of": made_of, "columns": [asdict(c) for c in columns], "values": values, "reference": reference}
    write_bytes(path, (json.dumps(strict(kept), allow_nan=False) + "\n").encode())
    return _Scores(columns, values, reference)


def _numbers(values: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, float]]:
    return {
        key: {case: math.nan if value is None else float(value) for case, value in cases.items()}
        for key, cases in values.items()
    }


def _row_result(
    row: Row, folder: Path, scores: Sequence[_Scores], every_case: Mapping[str, Mapping[str, float]]
) -> RowResult:
    """A row's figures, with NaN for the cases that other rows have and this one has not."""
    found = {key: cases for part in scores for key, cases in part.values.items()}
    values = {
        key: {case: found.get(key, {}).get(case, math.nan) for case in cases} for key, cases in every_case.items()
    }
    model = load_pretrained(folder / WEIGHTS)
    lines = read_log(folder / "log.jsonl")
    validated = [line["figures"].get("psnr", math.nan) for line in lines if line.get("kind") == "validation"]
    try:
        trained = int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["parameters"])
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder / 'config.json'} is damaged; delete {folder} and train this row again") from error
    return RowResult(
        row,
        int(_images_seen(folder)),
        max((float(line.get("minutes", 0.0)) for line in lines), default=math.nan),
        sum(parameter.numel() for parameter in model.parameters()),
        trained,
        float(validated[-1]) if validated else math.nan,
        values,
        "; ".join(part.note for part in scores if part.note),
    )


def _titled(progress: Progress | None, title: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, frames: progress(title, done, frames)


def _mean(values: Mapping[str, float]) -> Estimate:
    known = np.array([value for value in values.values() if not math.isnan(value)])
    return bootstrap(len(known), lambda draws: known[draws].mean(axis=-1))


def _cell(values: Mapping[str, float], digits: int) -> str:
    """A mean and its interval, and over how many cases where not over all."""
    count = sum(not math.isnan(value) for value in values.values())
    shown = cell(_mean(values), digits)
    return shown if count in (0, len(values)) else f"{shown} (of {count})"


# ---- the contact sheet -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Shot:
    """A picture to be made: one frame of a source, asked to look as one frame of a driver does."""

    source: Record
    frame: int
    driver: Record
    row: int
    asked: Motion
    movement: float

    @property
    def credit(self) -> str:
        told = [f"{r.key} ({origin_of(r.info)}, {r.info.get('terms', '')})" for r in (self.source, self.driver)]
        return told[0] if self.source is self.driver else f"{told[0]} driven by {told[1]}"


def _shots(split: Path, pairs: Iterable[Pair]) -> list[_Shot]:
    """What the sheet shows: publishable people alone; of them those that are moved most, first by themselves, then by
    others, one a driving person. It does not depend on how well anything came out."""
    records = {
        record.key: record
        for record in read_shards(split)
        if record.found.any() and publishable(str(record.info.get("terms")), origin_of(record.info))
    }
    own = [Pair(key, key) for key, record in records.items() if record.kind == "video"]
    chosen: list[_Shot] = []
    for group in (own, pairs):
        best: dict[str, _Shot] = {}
        for pair in group:
            if pair.source in records and pair.driver in records:
                shot = _shot(records[pair.source], records[pair.driver])
                person = str(shot.driver.info.get("person", pair.driver))
                if person not in best or best[person].movement < shot.movement:
                    best[person] = shot
        chosen += sorted(best.values(), key=lambda shot: -shot.movement)[:_SHEET_PEOPLE]
    return chosen


def _shot(source: Record, driver: Record) -> _Shot:
    """The driver's found frame that lies farthest from the source, asked for as the protocols do (absolute motion)."""
    frame = most_frontal(source.camera, source.found)
    camera, expression = source.camera[frame], source.expression[frame]
    asked = Motion(driver.expression, driver.camera, FPS)
    if source is not driver:
        asked = asked_motion(asked, camera, expression, "absolute")
    away = np.abs(asked.angles_deg - head_angles(camera)).sum(axis=-1) / _ANGLE_SCALE_DEG
    away = np.where(driver.found, away + np.abs(asked.expression - expression).sum(axis=-1), -np.inf)
    at = int(away.argmax())
    return _Shot(source, frame, driver, at, asked, float(away[at]))


@torch.inference_mode()
def _draw_sheet(
    path: Path, split: Path, pairs: Iterable[Pair], trained: Mapping[Row, Path], device: torch.device
) -> tuple[str, ...]:
    """Write source, driving frame and every variant's, a row for each shot; what each row shows."""
    shots = _shots(split, pairs)
    if not shots:
        return ()
    rows: list[list[Picture]] = [[] for _ in shots]
    for weights in trained.values():
        model = load_pretrained(weights).to(device)
        for shot, pictures in zip(shots, rows):
            size = model.config.image_size
            source = np.moveaxis(decode(shot.source, size)[shot.frame], 0, -1)
            if not pictures:
                pictures += [_enlarged(source), _enlarged(np.moveaxis(decode(shot.driver, size)[shot.row], 0, -1))]
            motions = [
                ((shot.source.camera, shot.source.expression, shot.source.landmarks), shot.frame),
                ((shot.asked.camera, shot.asked.expression), shot.row),
            ]
            own, (asked_camera, asked) = (
                tuple(torch.from_numpy(np.array(values[row], np.float32))[None].to(device) for values in known)
                for known, row in motions
            )
            features = model.encode(to_tensor(source)[None].to(device), *own)
            pictures.append(_enlarged(to_uint8(model.frame(model.planes(features, asked), asked_camera))[0]))
    write_sheet(path, rows, [["source", "driving", *(PAPER[row] for row in trained)]] * len(rows))
    return tuple(shot.credit for shot in shots)


def _enlarged(picture: Picture) -> Picture:
    """(R, R, 3), large enough to be looked at."""
    return to_uint8(resize(to_tensor(np.ascontiguousarray(picture)), max(len(picture), _SHEET_PX)))
