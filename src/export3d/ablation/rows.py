"""The rows of Table 3: their settings, and their training one after another with equal budgets."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from export3d.config import ModelConfig
from export3d.data.shards import read_index
from export3d.errors import ConfigError, InputError, TrainingError, counted
from export3d.evaluation.reports.paper_tables import TABLES
from export3d.files import check_input, kind_at, make_folder, write_bytes
from export3d.model import Export3D
from export3d.pretrained import PACKAGED_ENCODER, load_encoder, save_pretrained
from export3d.training.loop_config import LoopConfig
from export3d.training.reconstruction import ReconstructionConfig, run
from export3d.training.state import latest_state
from export3d.weights.file import load_weights
from export3d.weights.hub import locate

Row = Literal["direct_3dmm", "e2e_lebs_n25", "e2e_lebs_n10", "e2e_lebs_n5", "clebs"]
ROWS: tuple[Row, ...] = get_args(Row)
"""The variants in the order of Table 3; the last is the paper's full model."""
PAPER = dict(zip(ROWS, TABLES[2].rows))
"""Row to its name in the paper."""
WEIGHTS = "weights.safetensors"
_SETTINGS = "row.json"
_NO_MATTER = frozenset({
    "max_minutes", "log_every", "sheet_every", "validate_every", "save_every", "keep", "cpu", "tensorboard",
    "progress", "sheet_pairs", "variants",
})  # fmt: skip
"""Settings that do not affect the weights, and `variants`, in which the rows differ."""


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
    """Train each unfinished row into `out/ROW`.

    Args:
        data: folder of prepared shards with `train` and `val` in it.
        out: folder for the rows; created if missing.
        config: shared by all rows; its variants apply to all of them.
        loop: with `max_images`, the budget of each row.
        rows: to train; several processes may share the rows and one output folder.
        from_pretrained: weights that every row starts from, see `pretrained.inherit`. Weights trained with one row's
            encoder favour that row.
        pseudo, cache: as in `training.reconstruction.run`.

    Returns:
        Row to the file of its weights.

    Raises:
        ConfigError: no budget in images, rows that cannot be compared, or a folder trained with other settings.
        TrainingError: a row was stopped early, or diverged.
        InputError, CheckpointError, OutputError: as `training.reconstruction.run`.
    """
    check_settings(data, config, loop, rows)
    assert loop.max_images is not None
    make_folder(out)
    start = _start(out, config) if from_pretrained is None else locate(from_pretrained)[0]
    wanted = {row: _settings(row, data, config, loop, start, pseudo) for row in rows}
    for row in rows:  # check all of them before spending hours on the first
        _check_row(out / row, wanted[row])
    for row in rows:
        if count_images(out / row) >= loop.max_images:
            continue
        make_folder(out / row)
        write_bytes(out / row / _SETTINGS, (json.dumps(wanted[row], indent=1) + "\n").encode())
        encoder = config.expression or PACKAGED_ENCODER  # not the one in the starting weights
        changed = replace(config, expression=encoder, variants=(*config.variants, row))
        result = run(data, out / row, changed, loop, from_pretrained=start, pseudo=pseudo, cache=cache)
        if result.reason != "max_images":
            told = f"after {result.images_seen} of {loop.max_images} images"
            raise TrainingError(f"row {row} was stopped {told}; the same command goes on")
    return {row: out / row / WEIGHTS for row in rows}


def check_settings(data: Path, config: ReconstructionConfig, loop: LoopConfig, rows: Sequence[Row]) -> None:
    """Refuse settings under which the rows could not be compared.

    Raises:
        ConfigError: no budget in images, a schedule by the clock, or wrong rows or variants.
        InputError: a split is missing.  CheckpointError: the expression encoder is missing.
    """
    if loop.max_images is None:
        raise ConfigError("the rows must see equally many images, which minutes do not tell; set loop.max_images")
    if loop.decay == "clock":
        raise ConfigError("a learning rate by the clock differs from row to row; set loop.decay to images or none")
    if not rows or len(set(rows)) != len(rows) or not set(rows) <= set(ROWS):
        raise ConfigError(f"the rows must be different ones of {', '.join(ROWS)}")
    taken = sorted(set(config.variants) & set(ROWS))
    if taken:
        raise ConfigError(f"{taken[0]} is a row of the table, not a change to all of them; name it in --rows")
    config.model_config()
    for split in ("train", "val"):
        if kind_at(data / split) != "folder":
            raise InputError(f"{data} has no folder '{split}'; make one with: export3d prepare CLIPS -o {data}")
    if "clebs" in rows:
        load_encoder(config.expression)


def _start(out: Path, config: ReconstructionConfig) -> Path:
    """The weights that all rows start from; sampled once, then kept."""
    path = out / "start.safetensors"
    if kind_at(path.with_suffix(".json")) != "file":  # written last
        torch.manual_seed(0)
        # A frozen encoder that no row has: every row keeps its own and inherits all the rest.
        drawn = replace(config, variants=(*config.variants, "clebs"))
        save_pretrained(Export3D(drawn.model_config()), path, {"images_seen": 0})
    return path


def _settings(
    row: Row, data: Path, config: ReconstructionConfig, loop: LoopConfig, start: Path, pseudo: Sequence[Path]
) -> dict[str, Any]:
    """Everything that decides a row's weights, as JSON; files and splits by their contents."""
    words = {name: value for name, value in (asdict(config) | asdict(loop)).items() if name not in _NO_MATTER}
    words |= {"expression": (config.expression or PACKAGED_ENCODER) if row == "clebs" else None}
    words |= {"from_pretrained": start, "variants": [*config.variants, row]}
    words = {name: digest(value) if isinstance(value, Path) else value for name, value in words.items()}
    words |= {"data": split_digest(data / "train"), "pseudo": [split_digest(split) for split in pseudo]}
    words |= {"model": replace(config, variants=(*config.variants, row)).model_config().to_dict()}
    return _plain(words)


def _defaults() -> dict[str, Any]:
    """Values of settings for rows that were started before those settings existed."""
    words = asdict(ReconstructionConfig()) | asdict(LoopConfig()) | {"model": ModelConfig().to_dict()}
    return _plain({name: None if isinstance(value, Path) else value for name, value in words.items()})


def _plain(words: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as JSON has them, names of nested settings joined by dots."""
    return dict(_flat(json.loads(json.dumps(words))))


def _check_row(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Refuse a row that was trained, even in part, with other settings."""
    if kind_at(folder / _SETTINGS) != "file":
        if kind_at(folder / "checkpoints"):
            raise ConfigError(f"{folder} holds a run of another command; choose another output folder")
        return
    before = _defaults() | read_settings(folder)
    differing = [name for name, value in wanted.items() if before.get(name) != value]
    if "max_images" in differing and wanted["decay"] == "none" and _progress(folder) <= wanted["max_images"]:
        differing.remove("max_images")  # the same run, only longer
    if differing:
        told = ", ".join(f"{name} {before.get(name)} there, {wanted[name]} here" for name in differing[:3])
        raise ConfigError(f"{folder} was trained with other settings ({told}); repeat those or choose another folder")


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings that a row was trained with.

    Raises:
        InputError: the file is damaged.
    """
    try:
        return dict(json.loads((folder / _SETTINGS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{folder / _SETTINGS} is damaged; delete {folder} and train this row again") from error


def count_images(folder: Path) -> float:
    """Images that a row's weights have seen; minus infinity if there are no weights."""
    if kind_at(folder / WEIGHTS) != "file":
        return -math.inf
    return int(load_weights(folder / WEIGHTS)[2].get("images_seen", 0))


def _progress(folder: Path) -> float:
    """Most images that a row has seen, in its weights or its checkpoints."""
    state = latest_state(folder / "checkpoints")
    return max(count_images(folder), -math.inf if state is None else int(state.name.rpartition("-")[2]))


def _flat(value: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, item in value.items():
        if isinstance(item, Mapping):
            yield from _flat(item, f"{before}{name}.")
        else:
            yield before + name, item


def digest(path: Path) -> str:
    """A file's name and the first digits of its SHA-256."""
    data = check_input(path, InputError, "a file of weights").read_bytes()
    return f"{path.name} {hashlib.sha256(data).hexdigest()[:12]}"


def split_digest(split: Path) -> str:
    """Records, frames and contents of a split."""
    index = read_index(split)
    contents = hashlib.sha256("\n".join(shard.sha256 for shard in index.shards).encode()).hexdigest()[:12]
    return f"{counted(len(index.entries), 'record')}, {counted(index.frames, 'frame')}, {contents}"
