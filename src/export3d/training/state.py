"""Training states on disk: network, average, optimisers and counters.

A state is a folder `checkpoint-00001234` (images seen): `model`, `ema` and `optimizer` as safetensors, and
`state.json`, which lists every file with its size and SHA-256. Where two networks are trained against each other,
`opponent` and `opponent_optimizer` are beside them. The folder gets its final name only when complete: a process killed
at any moment leaves the last state loadable. Nothing in a state can execute.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from export3d.errors import CheckpointError, OutputError
from export3d.files import kind_at, paths_in, sync_folder, write_bytes, writing_to
from export3d.weights.blob import (
    FORMAT_VERSION,
    MODEL_FILE,
    Json,
    blob_is_whole,
    deserialise,
    json_bytes,
    package_versions,
    read_blob,
    read_json,
    refuse_pickle,
    serialise,
    write_blob,
)

_STATE_FORMAT = "export3d.state"
_EMA, _OPTIMIZER = "ema.safetensors", "optimizer.safetensors"
_OPPONENT, _OPPONENT_OPTIMIZER = "opponent.safetensors", "opponent_optimizer.safetensors"
_STATE_NAME = re.compile(r"checkpoint-(\d{8,})")


@dataclass(frozen=True)
class State:
    """A training state as read from disk.

    Attributes:
        path: the folder it came from.
        model: tensors of the module (parameters and buffers).
        ema: tensors of the averaged module.
        optimizer: what `torch.optim.Optimizer.load_state_dict` takes.
        counters: `images_seen`, `step`, `minutes` and whatever else was handed to `save_state`.
        config: the run's resolved configuration.
        opponent: tensors of the second network and its optimiser's state; None where one network was trained alone.
    """

    path: Path
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: Json
    counters: Json
    config: Json
    opponent: tuple[dict[str, Tensor], Json] | None = None


def save_state(
    folder: Path | str,
    *,
    model: Mapping[str, Tensor],
    ema: Mapping[str, Tensor],
    optimizer: Mapping[str, Any],
    counters: Mapping[str, Any],
    config: Mapping[str, Any],
    opponent: tuple[Mapping[str, Tensor], Mapping[str, Any]] | None = None,
    keep: int = 2,
    part_size_mb: float | None = None,
) -> Path:
    """Write `folder/checkpoint-<images_seen>` and delete all but the newest `keep` states.

    Args:
        folder: created if needed.
        model, ema: state dictionaries (parameters and buffers).
        optimizer: `Optimizer.state_dict()` of any optimiser whose state is tensors, numbers, strings and booleans.
        counters: JSON-able, with at least `images_seen`.
        config: JSON-able resolved configuration.
        opponent: state dictionaries of a second network and of its optimiser, if there is one.
        keep: how many states stay, at least 1.
        part_size_mb: as in `save_weights`.

    Returns:
        The state's folder. A sound state of the same name is left as it is.

    Raises:
        OutputError: it cannot be written (permission, full disk); earlier states are untouched.
    """
    folder = Path(folder)
    final = folder / f"checkpoint-{int(counters['images_seen']):08d}"
    optimizer_tensors, optimizer_words = _flatten_optimizer(optimizer)
    contents: dict[str, Mapping[str, Tensor]] = {MODEL_FILE: model, _EMA: ema, _OPTIMIZER: optimizer_tensors}
    words: Json = {"optimizer": optimizer_words}
    if opponent is not None:
        contents[_OPPONENT] = opponent[0]
        contents[_OPPONENT_OPTIMIZER], words["opponent_optimizer"] = _flatten_optimizer(opponent[1])
    with writing_to(final):
        folder.mkdir(parents=True, exist_ok=True)
        _remove_debris(folder)
        if kind_at(final, OutputError):
            if _is_sound(final):
                return final
            _discard(final)
        temporary = folder / f".{final.name}.tmp-{os.getpid()}"
        try:
            temporary.mkdir()
            files = {
                name: write_blob(temporary / name, serialise(tensors, None), part_size_mb)
                for name, tensors in contents.items()
            }
            state = {
                "format": _STATE_FORMAT,
                "version": FORMAT_VERSION,
                "counters": dict(counters),
                "config": dict(config),
                **words,
                "versions": package_versions(),
                "files": files,
            }
            write_bytes(temporary / "state.json", json_bytes(state))
            sync_folder(temporary)
            temporary.rename(final)
            sync_folder(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        for old in states(folder)[: -max(keep, 1)]:
            _discard(old)
    return final


def states(folder: Path | str) -> list[Path]:
    """The complete training states in `folder`, oldest (fewest images) first; empty if there is no such folder.

    Complete means: `state.json` is sound and every file it lists has its size. Contents are verified by `load_state`.
    """
    folder = Path(folder)
    if kind_at(folder, CheckpointError) != "folder":
        return []
    found = sorted(
        (int(match[1]), path)
        for path in paths_in(folder, CheckpointError)
        if (match := _STATE_NAME.fullmatch(path.name)) and kind_at(path, CheckpointError) == "folder"
    )
    return [path for _, path in found if _is_complete(path)]


def latest_state(folder: Path | str) -> Path | None:
    """The complete training state with the most images seen, or None."""
    found = states(folder)
    return found[-1] if found else None


def load_state(path: Path | str) -> State:
    """Read one training state (a `checkpoint-…` folder), verifying every file; raises `CheckpointError`."""
    path = Path(path)
    if kind_at(path, CheckpointError) != "folder":
        raise CheckpointError(f"no training state at {path}; name a checkpoint-… folder")
    words = read_json(path / "state.json", _STATE_FORMAT)

    def read(name: str) -> dict[str, Tensor]:
        file = path / name
        refuse_pickle(file)
        return deserialise(read_blob(file, words["files"][name]), file)

    opponent = None
    if _OPPONENT in words["files"]:
        optimizer = _unflatten_optimizer(read(_OPPONENT_OPTIMIZER), words["opponent_optimizer"])
        opponent = (read(_OPPONENT), optimizer)
    return State(
        path=path,
        model=read(MODEL_FILE),
        ema=read(_EMA),
        optimizer=_unflatten_optimizer(read(_OPTIMIZER), words["optimizer"]),
        counters=words["counters"],
        config=words["config"],
        opponent=opponent,
    )


def _flatten_optimizer(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], Json]:
    """`Optimizer.state_dict()` as tensors named `<parameter>.<key>` and a JSON-able rest."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value
            else:
                scalars.setdefault(str(index), {})[key] = value
    return tensors, {"groups": state["param_groups"], "scalars": scalars}  # JSON writes tuples as lists


def _unflatten_optimizer(tensors: Mapping[str, Tensor], words: Json) -> Json:
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    for number, entries in words["scalars"].items():
        state.setdefault(int(number), {}).update(entries)
    groups = [
        {key: tuple(v) if isinstance(v, list) and key != "params" else v for key, v in group.items()}
        for group in words["groups"]
    ]
    return {"state": dict(sorted(state.items())), "param_groups": groups}


def _discard(path: Path) -> None:
    """Delete a folder so that no half-deleted state ever carries a state's name."""
    trash = path.with_name(f".{path.name}.trash-{os.getpid()}")
    path.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)


def _remove_debris(folder: Path) -> None:
    """What a killed process left behind: unfinished and half-deleted states."""
    for path in folder.iterdir():
        if re.fullmatch(r"\.checkpoint-\d+\.(tmp|trash)-\d+", path.name):
            shutil.rmtree(path, ignore_errors=True)


def _is_complete(path: Path) -> bool:
    try:
        files = read_json(path / "state.json", _STATE_FORMAT)["files"]
    except CheckpointError:
        return False
    return all(blob_is_whole(path, name, entry) for name, entry in files.items())


def _is_sound(path: Path) -> bool:
    try:
        load_state(path)
    except CheckpointError:
        return False
    return True
