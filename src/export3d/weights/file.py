"""Weights on disk: `NAME.safetensors`, and beside it `NAME.json`, its sidecar.

The sidecar holds configuration, counters, versions and the file's SHA-256. That of `model.safetensors` is called
`config.json`: such a folder has the layout of a Hugging Face repository. A file larger than `part_size_mb` is cut into
`NAME.safetensors.part00`, `.part01`, …; reading joins the parts. Each file is written whole or not at all, the weights
before the sidecar. Nothing in them can execute.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export3d.errors import CheckpointError
from export3d.files import kind_at, output_file, write_bytes, writing_to
from export3d.weights.blob import (
    FORMAT_VERSION,
    Json,
    deserialise,
    is_entry,
    json_bytes,
    package_versions,
    read_blob,
    read_json,
    refuse_pickle,
    serialise,
    sidecar_of,
    write_blob,
)

_WEIGHTS_FORMAT = "export3d.weights"


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
    output_file(path)
    data = serialise(tensors, dtype)
    with writing_to(path):
        entry = write_blob(path, data, part_size_mb)
        sidecar = {
            "format": _WEIGHTS_FORMAT,
            "version": FORMAT_VERSION,
            "config": dict(config),
            "info": dict(info),
            "dtype": str(dtype).removeprefix("torch.") if dtype else "as trained",
            "versions": package_versions(),
            "file": entry,
        }
        write_bytes(sidecar_of(path), json_bytes(sidecar))
        _remove_stale_parts(path, entry)
    return path


def load_weights(path: Path | str) -> tuple[dict[str, Tensor], Json, Json]:
    """Read weights on the CPU: (tensors as stored, config, info).

    Raises `CheckpointError` when the file or its sidecar is missing, truncated, altered (SHA-256), not safetensors, or
    a pickle: nothing in the file is executed, ever.
    """
    path = _weights_path(path)
    data, sidecar = _read_weights(path)
    return deserialise(data, path), sidecar["config"], sidecar["info"]


def has_weights(path: Path) -> bool:
    """Whether there is a file `path`, or the first of its parts."""
    return "file" in (kind_at(p, CheckpointError) for p in (path, path.with_name(path.name + ".part00")))


def read_sidecar(path: Path) -> Json:
    """What is written about the weights `path`, which need not be there; raises `CheckpointError`.

    Keys: `config`, `info`, `dtype`, `versions`, and `file` with `size` (bytes), `sha256` and perhaps `parts`.
    """
    sidecar = read_json(sidecar_of(path), _WEIGHTS_FORMAT)
    tells = all(isinstance(sidecar.get(key), dict) for key in ("config", "info"))
    if not tells or not is_entry(sidecar.get("file")):
        raise CheckpointError(f"{sidecar_of(path)} lacks what it should tell of the weights; fetch or save it again")
    return sidecar


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
    deserialise(data, source)
    with writing_to(target):
        entry = write_blob(target, data, None)
        words = {**sidecar, "info": {**sidecar["info"], **(info or {})}, "file": entry}
        write_bytes(sidecar_of(target), json_bytes(words))
        _remove_stale_parts(target, entry)
    return target


def _read_weights(path: Path) -> tuple[bytes, Json]:
    """The verified bytes and the sidecar of weights."""
    if kind_at(path, CheckpointError) == "folder":
        raise CheckpointError(f"{path} is a folder; name the .safetensors file inside it")
    refuse_pickle(path)
    if not has_weights(path):
        raise CheckpointError(f"no weights at {path}; check the path, or download or train them first")
    sidecar = read_sidecar(path)
    return read_blob(path, sidecar["file"]), sidecar


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


def _remove_stale_parts(path: Path, entry: Json) -> None:
    """After an overwrite: parts, or the whole file, of the previous version that the new JSON no longer names."""
    names = {part["name"] for part in entry.get("parts", [])} or {path.name}
    for other in [path, *path.parent.glob(f"{path.name}.part[0-9]*")]:
        if other.name not in names:
            other.unlink(missing_ok=True)


def _weights_path(path: Path | str) -> Path:
    path = Path(path)
    if path.suffix != ".safetensors" and kind_at(path, CheckpointError) != "folder":
        raise CheckpointError(f"{path} does not end in .safetensors; weights are read and written in that format only")
    return path


def _both_floating(a: Tensor, b: Tensor) -> bool:
    return a.is_floating_point() and b.is_floating_point()


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
