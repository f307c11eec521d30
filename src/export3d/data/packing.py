"""Packs prepared splits as JPEG frames, to train on a machine without a video decoder or a copy of the shards."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch

from export3d.data.frames import FrameStore
from export3d.data.packed_frames import is_packed
from export3d.data.shards import INDEX_NAME, has_split
from export3d.errors import ConfigError, InputError
from export3d.files import kind_at, write_failure
from export3d.image import resize
from export3d.locations import as_place, inside
from export3d.photo.matte import person_masks

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "pseudo/train")
"""Splits of a prepared folder that are packed, where they exist."""
_MASK_SIZE = 64
"""Side of the masks of people, pixels."""
_AT_ONCE = 64
"""Frames whose people are looked for at once."""


def pack(
    data: Path | str,
    out: Path,
    size: int,
    *,
    every: int = 1,
    quality: int = 92,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, tuple[int, int]]:
    """Pack a prepared folder, or a single split, as `FrameStore.save` writes it.

    Args:
        data: the folder or its URL. A folder with `train` and `val` is packed split by split, into folders of the same
            names; a single split goes into `out` itself.
        out: created if missing; existing packed frames in it are replaced.
        size: side of the frames, pixels.
        every: keep every so many-th frame of a video.
        quality: of the JPEG images, 1 to 100.
        progress: called with (records done, records) of each split.

    Returns:
        Frames and bytes of each packed split, by name.

    Raises:
        ConfigError: `size`, `every` or `quality` is out of range, or `out` holds shards, whose place packed frames
            would take, or a packed split that the data lack.
        InputError: nothing prepared is there, or it is damaged, or packed already.
        OutputError: `out` cannot be written.
    """
    if size < 32 or size % 32:
        raise ConfigError(f"frames cannot have a size of {size} pixels; give a multiple of 32")
    if every < 1:
        raise ConfigError(f"one of every {every} frames cannot be kept; give 1 or more")
    if not 1 <= quality <= 100:
        raise ConfigError(f"JPEG images cannot have a quality of {quality}; give 1 to 100")
    place = as_place(data)
    single = isinstance(place, Path) and kind_at(place / INDEX_NAME) == "file"
    names = ("",) if single else tuple(name for name in SPLITS if has_split(place, name))
    if not names:
        raise InputError(f"{data} has no split train or val to pack; make them with: export3d prepare CLIPS -o DIR")
    for name in names:
        if kind_at(out / name / INDEX_NAME):
            raise ConfigError(f"{out / name} holds prepared shards, which stay as they are; choose another folder")
        if is_packed(inside(place, name) if name else place):
            raise InputError(f"{data} holds packed frames already; pack the prepared shards that they were made from")
    stale = [] if single else [name for name in SPLITS if name not in names and is_packed(out / name)]
    if stale:
        raise ConfigError(
            f"{out} has a packed split {stale[0]} but {data} has none; choose another folder or remove it"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_failure(out, error) from error
    packed = {}
    for name in names:
        folder = out / name
        with tempfile.TemporaryDirectory(dir=out, prefix=".packing-") as room:  # decoded frames stay on disk
            split = inside(place, name) if name else place
            store = FrameStore.load(split, size, cache=Path(room) / "frames.safetensors", progress=progress)
            store = _with_masks(store.thinned(every) if every > 1 else store)
            store.save(folder, quality)
        packed[name or out.name] = len(store), sum(part.stat().st_size for part in folder.glob("part-*.safetensors"))
    return packed


def _with_masks(store: FrameStore) -> FrameStore:
    """The store with `masks`, for models that tell them from the background; as it is where MediaPipe is missing."""
    if find_spec("mediapipe") is None:
        log.warning("without MediaPipe (extra face) the packed frames do not say where people are, which base needs")
        return store
    masks = []
    for start in range(0, len(store), _AT_ONCE):
        found = resize(person_masks(store.frames[start : start + _AT_ONCE].float() / 127.5 - 1.0), _MASK_SIZE)
        masks.append((found * 255.0).round().to(torch.uint8))
    return replace(store, masks=torch.cat(masks))
