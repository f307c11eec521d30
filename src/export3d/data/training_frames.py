"""Decodes the splits of a prepared folder for training: clips, pseudo-clips, and held-out clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from export3d.data.frame_window import Rotation, rows_of_block
from export3d.data.frames import FrameStore
from export3d.data.shards import has_split
from export3d.errors import ConfigError, InputError
from export3d.files import make_folder
from export3d.locations import as_place, inside


def load_frames(
    data: Path | str,
    size: int,
    pseudo: Sequence[Path | str] = (),
    cache: Path | None = None,
    memory: float | None = None,
) -> tuple[FrameStore | Rotation, FrameStore | None]:
    """Decode the frames of a prepared folder at `size` pixels: split `train`, and split `val` (None if missing).

    Args:
        data: prepared folder or its URL, or a folder of packed frames (`data.packing`).
        size: side of the frames, pixels.
        pseudo: splits of pseudo-clips (`export3d pseudo-clips`) to add to the training frames.
        cache: folder that keeps decoded frames between runs.
        memory: GB of decoded training frames held at once, see `frame_window`; None holds all.

    Raises:
        InputError: the folder is not prepared, or damaged.  ConfigError: both `cache` and `memory` are given.
    """
    place = as_place(data)
    if cache is not None and memory is not None:
        raise ConfigError(
            "--cache keeps all frames on disk and data.memory holds a part of them in memory; leave one out"
        )

    def frames(split: Path | str, name: str) -> FrameStore:
        kept = None if cache is None else make_folder(cache) / f"{name}-{size}.safetensors"
        return FrameStore.load(split, size, cache=kept)

    if not has_split(place, "train"):
        raise InputError(f"{data} has no split 'train'; make one with: export3d prepare CLIPS -o DIR")
    train = inside(place, "train")
    rows = None if memory is None else rows_of_block(memory, [train, *pseudo], size)
    val = frames(inside(place, "val"), "val") if has_split(place, "val") else None
    if rows is not None:
        return Rotation([train], size, rows, pseudo=pseudo), val
    made = [frames(folder, f"pseudo{number}").as_pseudo() for number, folder in enumerate(pseudo)]
    clips = frames(train, "train")
    return FrameStore.join([clips, *made]) if made else clips, val
