"""Table 3: variants of the expression encoding, one per row, all else equal.

Every row is the same preset with one change, trained by `training.reconstruction` in `OUT/ROW` on the same pairs in the
same order, for the same number of images, from the same start: everything but the expression encoder and its readers
starts from the weights in `OUT/start.safetensors`, or from named ones. The budget is images, not minutes, because the
rows differ slightly in speed.

A row's folder records its settings (`row.json`). Finished rows are kept, stopped rows continue, and a row with other
settings is refused, so the same command can be repeated until the table is complete. Scores are kept too.

    OUT/ablation.md, ablation.json, sheet.png
    OUT/ROW/            a run's folder (`training.record`), with row.json and weights.safetensors
    OUT/ROW/same, OUT/ROW/cross     reports of `export3d evaluate same` and `export3d evaluate cross`
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as distributed
from numpy.typing import NDArray

from export3d.ablation.rows import (
    ROWS,
    WEIGHTS,
    Row,
    check_settings,
    count_images,
    digest,
    read_settings,
    split_digest,
    train_rows,
)
from export3d.ablation.sheet import write_ablation_sheet
from export3d.ablation.table import Ablation, Column, RowResult
from export3d.animate.animator import pick_device
from export3d.animate.export import check_output
from export3d.data.shards import read_index
from export3d.errors import ConfigError, InputError
from export3d.evaluation.protocols.cross import FRAMES, cross_identity
from export3d.evaluation.protocols.pairs import choose_pairs, read_pairs
from export3d.evaluation.protocols.same import same_identity
from export3d.evaluation.protocols.scoring import ClipScorer
from export3d.evaluation.protocols.settings import Backbone, RunSettings, Scoring
from export3d.evaluation.reports.clips import BASELINE, OURS
from export3d.evaluation.reports.cross import Pair
from export3d.evaluation.reports.tables import strict, titled
from export3d.face.identity import PACKAGED
from export3d.files import make_folder, write_bytes
from export3d.pretrained import PACKAGED_ENCODER, load_pretrained
from export3d.training.loop_config import LoopConfig
from export3d.training.reconstruction import ReconstructionConfig
from export3d.training.record import read_log

Picture = NDArray[np.uint8]
Progress = Callable[[str, int, int], None]

EVERY = 5


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
    identity: Sequence[str] = (PACKAGED,),
    frames: int = FRAMES,
    every: int = EVERY,
    progress: Progress | None = None,
) -> Ablation | None:
    """Train the rows (`train_rows`), score them on `data/val` and write `ablation.md`, `ablation.json` and `sheet.png`.

    LPIPS uses the backbone that the rows are trained with; without one it is left out.

    Args:
        data, out, loop, rows, from_pretrained, pseudo, cache: see `train_rows`.
        config: see `train_rows`; landmarks move by beta', which is what the rows compare (variant `no_scores`).
        pairs, identity, frames: of the cross-identity scores, see `protocols.cross.cross_identity`.
        every: the same-identity scores drive every N-th frame.
        progress: called with (what is scored, frames done, frames).

    Returns:
        The comparison; None in every process but the first.

    Raises:
        What `train_rows`, `cross_identity` and `same_identity` raise, as far as possible before training.
    """
    config = replace(config, variants=("no_scores", *config.variants))
    check_settings(data, config, loop, rows)
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
    credits = write_ablation_sheet(out / "sheet.png", split, listed, trained, device)
    settings = {
        **{
            name: value
            for name, value in read_settings(out / rows[-1]).items()
            if name not in ("expression", "variants") and not name.startswith("model.")  # weights.json has the model
        },
        "variants": list(config.variants),
        "expression": digest(config.expression or PACKAGED_ENCODER),
        "scored_on": split_digest(split),
        "pairs": "by rule: each clip drives the next two people" if pairs is None else pairs.name,
        "frames_of_a_driving_clip": f"at most {frames}, evenly spaced",
        "same_identity": "every further found frame" if every == 1 else f"one in {every} of the further found frames",
    }
    found = _side_by_side(settings, out, scored, credits)
    write_bytes(out / "ablation.json", found.to_json().encode())
    write_bytes(out / "ablation.md", found.markdown().encode())
    return found


@dataclass(frozen=True)
class _Scores:
    """One row's figures under one protocol."""

    columns: tuple[Column, ...]
    values: dict[str, dict[str, float]]
    reference: dict[str, dict[str, float]]
    note: str = ""


def _scoring(config: ReconstructionConfig, identity: Sequence[str]) -> Scoring:
    if config.backbone == "none":
        return Scoring(backbone="none", identity=tuple(identity))
    return Scoring(
        backbone=cast(Backbone, config.backbone),
        backbone_file=config.backbone_file,
        heads_file=config.heads_file,
        identity=tuple(identity),
    )


def _check_scoring(split: Path, pairs: Path | None, scoring: Scoring, least: int) -> tuple[Pair, ...]:
    """The pairs of the cross-identity scores. Refuses, before hours of training, what could not be scored."""
    if least < 1 or not scoring.identity:
        raise ConfigError("frames and every must be at least 1, and identity needs a descriptor")
    index = read_index(split)
    if index.space != "arkit52":
        raise InputError(f"{split} holds expressions in {index.space}; the rows are compared by tracked arkit52 scores")
    listed = choose_pairs(index) if pairs is None else read_pairs(pairs)
    keys = {entry.key for entry in index.entries}
    unknown = [key for pair in listed for key in (pair.source, pair.driver) if key not in keys]
    if unknown or not listed:
        problem = (
            f"does not hold {unknown[0]}, which the pairs name" if unknown else "holds no clip that could drive another"
        )
        raise InputError(f"{split} {problem}; name other pairs or prepare more clips")
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
        run=RunSettings(device=str(device)),
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
    identity: Sequence[str],
    frames: int,
    device: torch.device,
    progress: Callable[[int, int], None] | None,
) -> _Scores:
    """Cross-identity scores, read from disk if they were made from the same inputs."""
    made_of = {
        "weights": digest(weights),
        "split": split_digest(split),
        "pairs": None if pairs is None else digest(pairs),
        "identity": [digest(Path(name)) if str(name).endswith(".onnx") else str(name) for name in identity],
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
            run=RunSettings(device=str(device)),
            progress=progress,
        )
    except InputError as error:  # the inputs were checked before; here, no face was found in the result
        return _Scores((), {}, {}, str(error))
    columns = tuple(Column("cross", m.name, titled(m), m.digits, m.definition) for m in report.measures)
    values = {c.key: {p.pair.name: p.values.get(c.name, math.nan) for p in report.pairs} for c in columns}
    reference = {c.key: {p.pair.name: p.reference.get(c.name, math.nan) for p in report.pairs} for c in columns}
    kept = {"made_of": made_of, "columns": [asdict(c) for c in columns], "values": values, "reference": reference}
    write_bytes(path, (json.dumps(strict(kept), allow_nan=False) + "\n").encode())
    return _Scores(columns, values, reference)


def _side_by_side(
    settings: dict[str, Any], out: Path, scored: Mapping[Row, Sequence[_Scores]], credits: tuple[str, ...]
) -> Ablation:
    """The comparison of all rows from their scores."""
    both = [scores for pair in scored.values() for scores in pair]
    columns = {column.key: column for scores in both for column in scores.columns}
    reference: dict[str, dict[str, float]] = {}
    for scores in both:  # a pair may be skipped in one row and scored in another
        for key, cases in scores.reference.items():
            reference[key] = reference.get(key, {}) | cases
    results = tuple(_row_result(row, out / row, scores, reference) for row, scores in scored.items())
    return Ablation(settings, tuple(columns.values()), results, reference, credits)


def _numbers(values: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, float]]:
    return {
        key: {case: math.nan if value is None else float(value) for case, value in cases.items()}
        for key, cases in values.items()
    }


def _row_result(
    row: Row, folder: Path, scores: Sequence[_Scores], every_case: Mapping[str, Mapping[str, float]]
) -> RowResult:
    """A row's figures, with NaN for cases that only other rows have."""
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
        int(count_images(folder)),
        max((float(line.get("minutes", 0.0)) for line in lines), default=math.nan),
        sum(parameter.numel() for parameter in model.parameters()),
        trained,
        float(validated[-1]) if validated else math.nan,
        values,
        "; ".join(part.note for part in scores if part.note),
    )


def _titled(progress: Progress | None, title: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, frames: progress(title, done, frames)
