"""What weights and training states are stored as: safetensors bytes, whole or in parts, and JSON with a checksum.

A *blob* is the bytes of one safetensors file, or of the parts it was cut into. Its *entry*, kept in a JSON file beside
it, is `{"size": bytes, "sha256": hex}`, and for parts `"parts": [{"name": …, "size": bytes}, …]`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from export3d.errors import CheckpointError, OutputError
from export3d.files import kind_at, reading, sniff, write_bytes

Json = dict[str, Any]
FORMAT_VERSION = 1
"""Version of every JSON file written here."""
MODEL_FILE = "model.safetensors"
MOST_PARTS = 1000
"""Largest number of parts of a file."""
_MB = 1_000_000


# --- tensors to bytes and back ----------------------------------------------------------------------------------------


def serialise(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> bytes:
    """Safetensors bytes of tensors, moved to the CPU; `dtype` converts those of a floating-point type.

    Raises `CheckpointError` where a finite value is infinite in `dtype`.
    """
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


def deserialise(data: bytes, path: Path) -> dict[str, Tensor]:
    """Tensors of the safetensors bytes read from `path`; raises `CheckpointError`."""
    try:
        return dict(safetensors.torch.load(data))
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not a safetensors file ({error}); fetch or save it again") from error


def refuse_pickle(path: Path) -> None:
    """Raise `CheckpointError` if `path` is a file that begins like a pickle or a zip archive."""
    if kind_at(path, CheckpointError) != "file":
        return
    with reading(path, CheckpointError):
        head = sniff(path, 9)
    # A safetensors file begins with eight bytes of its header's length, the first of which may be 0x80 too, and then {.
    if head[:2] == b"PK" or (head[:1] == b"\x80" and head[8:] != b"{"):
        raise CheckpointError(
            f"{path} is a pickle or a zip of pickles, which could execute code when loaded; only safetensors are read"
        )


# --- bytes to disk and back -------------------------------------------------------------------------------------------


def sidecar_of(path: Path) -> Path:
    """Where the JSON of the weights `path` is."""
    return path.with_name("config.json") if path.name == MODEL_FILE else path.with_suffix(".json")


def files_of(path: Path, sidecar: Json) -> list[str]:
    """Names of the files that hold the weights `path`: its own, or those of its parts.

    Raises `CheckpointError` for a name that is not plainly that of a part.
    """
    names = [part["name"] for part in sidecar["file"].get("parts", [])] or [path.name]
    for name in names:
        if name != path.name and not re.fullmatch(re.escape(path.name) + r"\.part\d{2,}", name):
            raise CheckpointError(f"the JSON of {path} names {name!r}, which is not a plain file name; fetch it again")
    return names


def write_blob(path: Path, data: bytes, part_size_mb: float | None) -> Json:
    """Write `data` whole or in parts, each atomically; returns its entry for the JSON beside it."""
    entry: Json = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    size = int(part_size_mb * _MB) if part_size_mb else 0
    if part_size_mb is not None and size < 1:
        raise OutputError(f"cannot cut {path.name} into parts of {part_size_mb} MB; give a positive size")
    if size and len(data) > MOST_PARTS * size:
        raise OutputError(
            f"cannot cut {path.name} ({len(data) / _MB:g} MB) into more than {MOST_PARTS} parts; give a size above "
            f"{part_size_mb:g} MB"
        )
    if not size or len(data) <= size:
        write_bytes(path, data)
        return entry
    entry["parts"] = []
    for number, start in enumerate(range(0, len(data), size)):
        part = path.with_name(f"{path.name}.part{number:02d}")
        piece = data[start : start + size]
        write_bytes(part, piece)
        entry["parts"].append({"name": part.name, "size": len(piece)})
    return entry


def read_blob(path: Path, entry: Json) -> bytes:
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


def blob_is_whole(folder: Path, name: str, entry: Json) -> bool:
    """Whether every file of the blob `folder / name` is there and has its size; contents are not read."""
    parts = entry.get("parts") or [{"name": name, "size": entry["size"]}]
    try:
        return all((folder / part["name"]).stat().st_size == part["size"] for part in parts)
    except OSError:
        return False


def is_entry(entry: Any) -> bool:
    """Whether `entry` tells size and SHA-256 of a file, and names and sizes of its parts if it has any."""
    if not isinstance(entry, dict) or not isinstance(entry.get("size"), int):
        return False
    parts = entry.get("parts", [])
    return (
        isinstance(entry.get("sha256"), str)
        and isinstance(parts, list)
        and all(isinstance(part, dict) and isinstance(part.get("name"), str) for part in parts)
    )


# --- JSON beside them -------------------------------------------------------------------------------------------------


def json_bytes(content: Json) -> bytes:
    """JSON text of `content` with a checksum of its own; raises `CheckpointError` for what JSON cannot hold."""
    try:
        content = json.loads(json.dumps(content, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"a configuration or counter cannot be written as JSON: {error}") from error
    return (json.dumps({**content, "checksum": _checksum(content)}, indent=1) + "\n").encode()


def read_json(path: Path, expected_format: str) -> Json:
    """Content of a JSON file that `json_bytes` made.

    Raises `CheckpointError` when it is missing, damaged, edited, or of another format or version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(content, allow_nan=False)  # NaN and numbers beyond a float are no JSON
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; it belongs beside the weights, fetch both") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged or not JSON; fetch or save it again") from error
    if not isinstance(content, dict) or content.get("format") != expected_format:
        raise CheckpointError(f"{path} is not an {expected_format} file; fetch the one that belongs to the weights")
    checksum = content.pop("checksum", None)
    if content.get("version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {content.get('version')}, version {FORMAT_VERSION} is needed; update export3d"
        )
    if checksum != _checksum(content):
        raise CheckpointError(f"{path} is damaged or was edited (its checksum does not match); fetch or save it again")
    return content


def _checksum(content: Json) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def package_versions() -> dict[str, str]:
    """Versions of the packages that a file is written with."""
    return {name: _version(name) for name in ("export3d", "torch", "safetensors")}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
