"""Reads frames packed as JPEG images (`FrameStore.save`); needs Pillow, not PyAV.

`packed.json` lists the clips and the parts. A part is a safetensors file: the JPEG images in one array of bytes, their
offsets, and the tracks of the same frames.
"""

from __future__ import annotations

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from export3d.data.decoding import decode_exactly
from export3d.data.frame_layout import Arrays, Clip, clips_from_json, layout
from export3d.errors import InputError
from export3d.files import kind_at
from export3d.locations import as_place
from export3d.motion.motion import SPACES, five_numbers

PACKED_FORMAT = "export3d.packed"
VERSION = 1
PACKED_INDEX = "packed.json"
TRACKS = tuple(name for name in layout(1, 1, 1) if name != "frames")
SHOULDERS = "shoulders"
"""Left out by earlier versions."""
MASKS = "masks"
"""Where people are (`FrameStore.masks`), if that was known when the frames were packed."""
DAMAGE = (
    *(InputError, OSError, ValueError, LookupError, TypeError, AttributeError),
    *(MemoryError, RecursionError, SafetensorError),
)
"""What reading a damaged or hostile file can raise."""


def is_packed(folder: Path | str) -> bool:
    """Whether a folder holds frames that `FrameStore.save` wrote."""
    place = as_place(folder)
    return isinstance(place, Path) and kind_at(place / PACKED_INDEX) == "file"


@dataclass(frozen=True)
class Packed:
    """The index of packed frames."""

    space: str
    resolution: int
    clips: tuple[Clip, ...]
    parts: tuple[tuple[str, int], ...]


def read_packed_index(folder: Path) -> Packed:
    """The index of packed frames, checked against itself; raises `ValueError` and what broken JSON leads to."""
    value = json.loads((folder / PACKED_INDEX).read_text(encoding="utf-8"))
    if (value["format"], value["version"]) != (PACKED_FORMAT, VERSION):
        raise ValueError(f"{PACKED_INDEX} is of another format or version")
    clips = clips_from_json(value["clips"])
    starts = list(itertools.accumulate((clip.frames for clip in clips), initial=0))
    if not clips or [clip.start for clip in clips] != starts[:-1] or min(clip.frames for clip in clips) < 1:
        raise ValueError("its clips do not add up")
    if any(clip.kind not in ("video", "image", "pseudo") for clip in clips):
        raise ValueError("a clip is neither a video nor an image")
    parts = tuple((str(part["file"]), int(part["frames"])) for part in value["parts"])
    if sum(frames for _, frames in parts) != starts[-1] or any(Path(file).name != file for file, _ in parts):
        raise ValueError("its parts do not add up")
    if type(value["resolution"]) is not int or value["resolution"] < 1:
        raise ValueError(f"the resolution {value['resolution']!r} is not a number of pixels")
    if value["space"] not in SPACES:
        raise ValueError(f"the expression space {value['space']!r} is unknown")
    return Packed(value["space"], value["resolution"], clips, parts)


def decode_packed(folder: Path, packed: Packed, size: int, pool: ThreadPoolExecutor) -> Arrays:
    """All arrays of packed frames, at `size` pixels; raises `ValueError` if a part is not what the index says."""
    from safetensors.numpy import load_file

    shapes = layout(1, packed.resolution, SPACES[packed.space])
    tracks: dict[str, list[NDArray[Any]]] = {name: [] for name in TRACKS}
    masks: list[NDArray[np.uint8]] = []
    pictures = np.empty((sum(frames for _, frames in packed.parts), 3, size, size), np.uint8)
    at = 0
    for file, frames in packed.parts:
        part = load_file(folder / file)
        for name in TRACKS:
            (_, *shape), dtype = shapes[name]
            if name == SHOULDERS:
                part[name] = five_numbers(part.get(name, np.zeros(0, dtype)), frames)
            if part[name].shape != (frames, *shape) or part[name].dtype != np.dtype(dtype):
                raise ValueError(f"{name} in {file} has shape {part[name].shape} and type {part[name].dtype}")
            if part[name].dtype.kind == "f" and not np.isfinite(part[name]).all():
                raise ValueError(f"{name} in {file} is not finite")
            tracks[name].append(part[name])
        if MASKS in part:
            if part[MASKS].shape[:2] != (frames, 1) or part[MASKS].dtype != np.uint8:
                raise ValueError(f"{MASKS} in {file} has shape {part[MASKS].shape} and type {part[MASKS].dtype}")
            masks.append(part[MASKS])
        offsets, blob = part["offsets"], part["jpeg"].tobytes()
        if offsets.shape != (frames + 1,):
            raise ValueError(f"{file} holds {len(offsets) - 1} frames, not {frames}")
        pieces = [blob[first:last] for first, last in itertools.pairwise(offsets.tolist())]
        decoded = pool.map(lambda piece: decode_exactly(piece, packed.resolution, size), pieces)
        for row, picture in enumerate(decoded, at):
            pictures[row] = picture[0]
        at += frames
    arrays = {"frames": pictures, **{name: np.concatenate(rows) for name, rows in tracks.items()}}
    if masks and len(masks) == len(packed.parts):
        arrays[MASKS] = np.concatenate(masks)
    arrays["clip"] = np.repeat(np.arange(len(packed.clips)), [clip.frames for clip in packed.clips])
    return arrays
