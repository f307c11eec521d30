"""Weights and training states on disk: safetensors for numbers, JSON for words, nothing that can execute.

Two kinds of thing are stored:

* **Weights**: `NAME.safetensors` and beside it `NAME.json` (configuration, counters, versions, SHA-256), its sidecar.
  That of `model.safetensors` is called `config.json`: such a folder has the shape that the Hugging Face Hub knows.
* **A training state**: a folder `checkpoint-00001234` (images seen) with `model`, `ema` and `optimizer` as safetensors
  and `state.json`, which lists every file with its size and SHA-256. Where two networks are trained against each other,
  `opponent` and `opponent_optimizer` are beside them.

Every write goes to a temporary name on the same file system, is flushed to the disk and then renamed; a state folder
appears under its final name only when complete. A process that is killed at any moment leaves the last state loadable.
A file larger than `part_size_mb` is cut into `NAME.safetensors.part00`, `.part01`, …; reading joins the parts again.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from export3d.errors import CheckpointError, OutputError

Json = dict[str, Any]

_WEIGHTS_FORMAT = "export3d.weights"
_STATE_FORMAT = "export3d.state"
_VERSION = 1
_MODEL, _EMA, _OPTIMIZER = "model.safetensors", "ema.safetensors", "optimizer.safetensors"
_OPPONENT, _OPPONENT_OPTIMIZER = "opponent.safetensors", "opponent_optimizer.safetensors"
_STATE_NAME = re.compile(r"checkpoint-(\d{8,})")
_MB = 1_000_000


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


# ---------------------------------------------------------------------------------------------------------------------
# Weights


def save_weights(
    path: Path | str,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    info: Mapping[str, Any],
    *,
    dtype: torch.dtype | None = None,
    part_size_mb: float | None = None,
) -> Path:
    """Write `path` (`….safetensors`) and its sidecar `….json`, each atomically, the weights first.

    Args:
        path: ends in `.safetensors`; its folder must exist.
        tensors: name to tensor, any device; what `Module.state_dict()` returns.
        config: JSON-able; what is needed to build the module again.
        info: JSON-able; counters and provenance (images seen, terms of the data, …).
        dtype: store floating-point tensors in this type (`torch.float16` halves the file); integers stay.
        part_size_mb: cut the file into parts of at most this many megabytes (10^6 bytes).

    Returns:
        `path`.

    Raises:
        OutputError: the folder is missing, not writable or the disk is full.
        CheckpointError: a value does not fit into `dtype`.
    """
    path = _weights_path(path)
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: the folder {path.parent} does not exist; create it first")
    data = _serialise(tensors, dtype)
    with _writing(path):
        entry = _write_blob(path, data, part_size_mb)
        sidecar = {
            "format": _WEIGHTS_FORMAT,
            "version": _VERSION,
            "config": dict(config),
            "info": dict(info),
            "dtype": str(dtype).removeprefix("torch.") if dtype else "as trained",
            "versions": _versions(),
            "file": entry,
        }
        _write_atomic(sidecar_of(path), _to_json(sidecar))
        _remove_stale_parts(path, entry)
    return path


def load_weights(path: Path | str) -> tuple[dict[str, Tensor], Json, Json]:
    """Read weights on the CPU: (tensors as stored, config, info).

    Raises `CheckpointError` when the file or its sidecar is missing, truncated, altered (SHA-256), not safetensors, or
    a pickle: nothing in the file is executed, ever.
    """
    path = _weights_path(path)
    data, sidecar = _read_weights(path)
    return _parse(data, path), sidecar["config"], sidecar["info"]


def has_weights(path: Path) -> bool:
    """Whether there is a file `path`, or the first of its parts."""
    return path.is_file() or path.with_name(path.name + ".part00").is_file()


def sidecar_of(path: Path) -> Path:
    """Where the JSON of the weights `path` is."""
    return path.with_name("config.json") if path.name == _MODEL else path.with_suffix(".json")


def read_sidecar(path: Path) -> Json:
    """What is written about the weights `path`, which need not be there; raises `CheckpointError`.

    Keys: `config`, `info`, `dtype`, `versions`, and `file` with `size` (bytes), `sha256` and perhaps `parts`.
    """
    sidecar = _read_json(sidecar_of(path), _WEIGHTS_FORMAT)
    tells = all(isinstance(sidecar.get(key), dict) for key in ("config", "info"))
    if not tells or not _is_entry(sidecar.get("file")):
        raise CheckpointError(f"{sidecar_of(path)} lacks what it should tell of the weights; fetch or save it again")
    return sidecar


def files_of(path: Path, sidecar: Json) -> list[str]:
    """Names of the files that hold the weights `path`: its own, or those of its parts.

    Raises `CheckpointError` for a name that is not plainly that of a part.
    """
    names = [part["name"] for part in sidecar["file"].get("parts", [])] or [path.name]
    for name in names:
        if name != path.name and not re.fullmatch(re.escape(path.name) + r"\.part\d{2,}", name):
            raise CheckpointError(f"the JSON of {path} names {name!r}, which is not a plain file name; fetch it again")
    return names


def copy_weights(source: Path | str, target: Path | str, info: Mapping[str, Any] | None = None) -> Path:
    """Write verified weights once more, under another name; parts are joined, and the bytes keep their SHA-256.

    Args:
        source, target: end in `.safetensors`.
        info: added to what the sidecar tells.

    Raises:
        CheckpointError: as `load_weights`.  OutputError: as `save_weights`.
    """
    source, target = _weights_path(source), _weights_path(target)
    data, sidecar = _read_weights(source)
    _parse(data, source)
    with _writing(target):
        entry = _write_blob(target, data, None)
        words = {**sidecar, "info": {**sidecar["info"], **(info or {})}, "file": entry}
        _write_atomic(sidecar_of(target), _to_json(words))
        _remove_stale_parts(target, entry)
    return target


def _read_weights(path: Path) -> tuple[bytes, Json]:
    """The verified bytes and the sidecar of weights."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; name the .safetensors file inside it")
    _refuse_pickle(path)
    if not has_weights(path):
        raise CheckpointError(f"no weights at {path}; check the path, or download or train them first")
    sidecar = read_sidecar(path)
    return _read_blob(path, sidecar["file"]), sidecar


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], what: str = "the weights") -> None:
    """Copy `tensors` into `module`, all of them or none.

    Names and shapes must agree exactly; a floating-point type is converted to the module's. Raises `CheckpointError`
    that lists up to five missing, unexpected and mismatched names each; `what` is how the message calls the tensors.
    """
    own = module.state_dict()
    missing = [name for name in own if name not in tensors]
    unexpected = [name for name in tensors if name not in own]
    mismatched = [
        f"{name} {_described(tensors[name])}, expected {_described(value)}"
        for name, value in own.items()
        if name in tensors
        and (
            tensors[name].shape != value.shape
            or (tensors[name].dtype != value.dtype and not _both_floating(tensors[name], value))
        )
    ]
    problems = [
        f"{len(names)} {kind} ({'; '.join(names[:5])}{'; …' if len(names) > 5 else ''})"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("mismatched", mismatched))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{what} do not fit this architecture: {', '.join(problems)}; use the configuration they were saved with"
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])


# ---------------------------------------------------------------------------------------------------------------------
# Training states


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
    contents: dict[str, Mapping[str, Tensor]] = {_MODEL: model, _EMA: ema, _OPTIMIZER: optimizer_tensors}
    words: Json = {"optimizer": optimizer_words}
    if opponent is not None:
        contents[_OPPONENT] = opponent[0]
        contents[_OPPONENT_OPTIMIZER], words["opponent_optimizer"] = _flatten_optimizer(opponent[1])
    with _writing(final):
        folder.mkdir(parents=True, exist_ok=True)
        _remove_debris(folder)
        if final.exists():
            if _is_sound(final):
                return final
            _discard(final)
        temporary = folder / f".{final.name}.tmp-{os.getpid()}"
        try:
            temporary.mkdir()
            files = {
                name: _write_blob(temporary / name, _serialise(tensors, None), part_size_mb)
                for name, tensors in contents.items()
            }
            state = {
                "format": _STATE_FORMAT,
                "version": _VERSION,
                "counters": dict(counters),
                "config": dict(config),
                **words,
                "versions": _versions(),
                "files": files,
            }
            _write_atomic(temporary / "state.json", _to_json(state))
            _sync_folder(temporary)
            temporary.rename(final)
            _sync_folder(folder)
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
    if not folder.is_dir():
        return []
    found = sorted(
        (int(match[1]), path)
        for path in folder.iterdir()
        if (match := _STATE_NAME.fullmatch(path.name)) and path.is_dir()
    )
    return [path for _, path in found if _is_complete(path)]


def latest_state(folder: Path | str) -> Path | None:
    """The complete training state with the most images seen, or None."""
    found = states(folder)
    return found[-1] if found else None


def load_state(path: Path | str) -> State:
    """Read one training state (a `checkpoint-…` folder), verifying every file; raises `CheckpointError`."""
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(f"no training state at {path}; name a checkpoint-… folder")
    words = _read_json(path / "state.json", _STATE_FORMAT)

    def read(name: str) -> dict[str, Tensor]:
        file = path / name
        _refuse_pickle(file)
        return _parse(_read_blob(file, words["files"][name]), file)

    opponent = None
    if _OPPONENT in words["files"]:
        optimizer = _unflatten_optimizer(read(_OPPONENT_OPTIMIZER), words["opponent_optimizer"])
        opponent = (read(_OPPONENT), optimizer)
    return State(
        path=path,
        model=read(_MODEL),
        ema=read(_EMA),
        optimizer=_unflatten_optimizer(read(_OPTIMIZER), words["optimizer"]),
        counters=words["counters"],
        config=words["config"],
        opponent=opponent,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Optimisers without pickles


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


# ---------------------------------------------------------------------------------------------------------------------
# Tensors to bytes and back


def _serialise(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> bytes:
    stored: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu()
        if dtype is not None and value.is_floating_point():
            value = _narrowed(name, value, dtype)
        value = value.contiguous()
        if value.untyped_storage().data_ptr() in seen:  # tied weights and views: safetensors wants each on its own
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        stored[name] = value
    return bytes(safetensors.torch.save(stored, metadata={"format": "pt"}))


def _narrowed(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    narrow = value.to(dtype)
    if not torch.equal(torch.isfinite(narrow), torch.isfinite(value)):
        largest = value.abs().max().item()
        raise CheckpointError(f"{name} reaches {largest:.3g}, which {dtype} cannot hold; store it in float32 instead")
    return narrow


def _parse(data: bytes, path: Path) -> dict[str, Tensor]:
    try:
        return dict(safetensors.torch.load(data))
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not a safetensors file ({error}); fetch or save it again") from error


def _refuse_pickle(path: Path) -> None:
    if not path.is_file():
        return
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; check its permissions") from error
    # A safetensors file begins with eight bytes of its header's length, the first of which may be 0x80 too, and then {.
    if head[:2] == b"PK" or (head[:1] == b"\x80" and head[8:] != b"{"):
        raise CheckpointError(
            f"{path} is a pickle or a zip of pickles, which could execute code when loaded; only safetensors are read"
        )


# ---------------------------------------------------------------------------------------------------------------------
# Bytes to disk and back


def _write_blob(path: Path, data: bytes, part_size_mb: float | None) -> Json:
    """Write `data` whole or in parts, each atomically; returns its entry for the JSON beside it."""
    entry: Json = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    size = int(part_size_mb * _MB) if part_size_mb else 0
    if part_size_mb is not None and size < 1:
        raise OutputError(f"cannot cut {path.name} into parts of {part_size_mb} MB; give a positive size")
    if not size or len(data) <= size:
        _write_atomic(path, data)
        return entry
    entry["parts"] = []
    for number, start in enumerate(range(0, len(data), size)):
        part = path.with_name(f"{path.name}.part{number:02d}")
        piece = data[start : start + size]
        _write_atomic(part, piece)
        entry["parts"].append({"name": part.name, "size": len(piece)})
    return entry


def _read_blob(path: Path, entry: Json) -> bytes:
    """The bytes of a file or of its parts, verified against the size and SHA-256 in `entry`."""
    pieces = []
    for name in files_of(path, {"file": entry}):
        file = path.with_name(name)
        try:
            pieces.append(file.read_bytes())
        except FileNotFoundError as error:
            raise CheckpointError(f"{file} is missing; fetch or save it again") from error
        except OSError as error:
            raise CheckpointError(f"cannot read {file}: {error.strerror}; check its permissions") from error
    data = b"".join(pieces)
    if len(data) != entry["size"]:
        raise CheckpointError(
            f"{path} is truncated: {len(data)} bytes instead of {entry['size']}; fetch or save it again"
        )
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one in its JSON; fetch or save it again")
    return data


def _entry_is_whole(folder: Path, name: str, entry: Json) -> bool:
    parts = entry.get("parts") or [{"name": name, "size": entry["size"]}]
    return all((folder / p["name"]).is_file() and (folder / p["name"]).stat().st_size == p["size"] for p in parts)


def _write_atomic(path: Path, data: bytes) -> None:
    """Write to a temporary name in the same folder, flush to the disk, rename, flush the folder."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):  # Windows cannot open folders; its rename is durable enough
        return
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        cause = error.strerror or error
        raise OutputError(f"cannot write {path}: {cause}; free space or choose another folder") from error


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


def _remove_stale_parts(path: Path, entry: Json) -> None:
    """After an overwrite: parts, or the whole file, of the previous version that the new JSON no longer names."""
    names = {part["name"] for part in entry.get("parts", [])} or {path.name}
    for other in [path, *path.parent.glob(f"{path.name}.part[0-9]*")]:
        if other.name not in names:
            other.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------------------
# JSON with a checksum of its own


def _to_json(content: Json) -> bytes:
    try:
        content = json.loads(json.dumps(content, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"a configuration or counter cannot be written as JSON: {error}") from error
    return (json.dumps({**content, "checksum": _checksum(content)}, indent=1) + "\n").encode()


def _read_json(path: Path, expected_format: str) -> Json:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; it belongs beside the weights, fetch both") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged or not JSON; fetch or save it again") from error
    if not isinstance(content, dict) or content.get("format") != expected_format:
        raise CheckpointError(f"{path} is not an {expected_format} file; fetch the one that belongs to the weights")
    checksum = content.pop("checksum", None)
    if content.get("version") != _VERSION:
        raise CheckpointError(
            f"{path} has format version {content.get('version')}, but version {_VERSION} is needed; update export3d"
        )
    if checksum != _checksum(content):
        raise CheckpointError(f"{path} is damaged or was edited (its checksum does not match); fetch or save it again")
    return content


def _checksum(content: Json) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _is_complete(path: Path) -> bool:
    try:
        files = _read_json(path / "state.json", _STATE_FORMAT)["files"]
    except CheckpointError:
        return False
    return all(_entry_is_whole(path, name, entry) for name, entry in files.items())


def _is_sound(path: Path) -> bool:
    try:
        load_state(path)
    except CheckpointError:
        return False
    return True


# ---------------------------------------------------------------------------------------------------------------------
# Small words


def _weights_path(path: Path | str) -> Path:
    path = Path(path)
    if path.suffix != ".safetensors" and not path.is_dir():
        raise CheckpointError(f"{path} does not end in .safetensors; weights are read and written in that format only")
    return path


def _is_entry(entry: Any) -> bool:
    """Whether `entry` tells size and SHA-256 of a file, and names and sizes of its parts if it has any."""
    if not isinstance(entry, dict) or not isinstance(entry.get("size"), int):
        return False
    parts = entry.get("parts", [])
    return (
        isinstance(entry.get("sha256"), str)
        and isinstance(parts, list)
        and all(isinstance(part, dict) and isinstance(part.get("name"), str) for part in parts)
    )


def _versions() -> dict[str, str]:
    return {name: _version(name) for name in ("export3d", "torch", "safetensors")}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _both_floating(a: Tensor, b: Tensor) -> bool:
    return a.is_floating_point() and b.is_floating_point()


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
