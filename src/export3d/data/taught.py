"""Training samples from taught groups (`data.teacher`), and their mixture with real pairs.

Samples have numbers, as in `data.pairs`. Four consecutive samples are either four expressions of one source at one
camera, or four real pairs; their number alone decides.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from export3d.data.frame_layout import Clip
from export3d.data.frame_window import RotatingSampler, Rotation, rows_of_block
from export3d.data.frames import FrameStore
from export3d.data.packed_frames import is_packed
from export3d.data.pairs import Draw, PairSampler, share_of
from export3d.data.shards import Entry, has_split, read_index
from export3d.errors import ConfigError, InputError
from export3d.locations import Place, as_place, inside

GROUP = 4
"""Consecutive samples that show one source at one camera."""
KEY = re.compile(r"[A-Za-z0-9_-]+-taught\d{2,}")
"""Form of a taught record's key."""


def load_taught(
    folders: Sequence[Path | str], resolution: int, memory: float | None = None, cache: Path | None = None
) -> tuple[FrameStore | Rotation, FrameStore | None]:
    """Decode taught folders: their splits `train`, and their splits `val` (None if no folder has one).

    Args:
        folders: outputs of `data.teacher.teach`, their URLs, or these folders packed (`data.packing`).
        resolution: side of the frames, pixels.
        memory: GB of decoded training frames held at once, see `frame_window`; None holds all.
        cache: folder that keeps decoded frames between runs.

    Raises:
        InputError: a folder is not prepared, is damaged, or holds other clips, or its groups differ in size.
        ConfigError: `memory` is too little, or is given for packed frames.
    """
    places = [as_place(folder) for folder in folders]
    splits = [inside(place, "train") for place in places]
    held_out = [inside(place, "val") for place in places if has_split(place, "val")]
    val = _load(held_out, "val", resolution, cache) if held_out else None
    if memory is not None:
        if any(map(is_packed, splits)):
            raise ConfigError("data.memory reads shards, but taught frames are packed and held whole; leave it out")
        size = _frames_per_group([entry for split in splits for entry in read_index(split).entries], splits)
        rows = rows_of_block(memory, splits, resolution)
        if rows is not None:
            return Rotation(splits, resolution, rows - rows % size), val  # blocks of whole groups
    return _load(splits, "train", resolution, cache), val


def _load(splits: Sequence[Place], name: str, resolution: int, cache: Path | None) -> FrameStore:
    """All frames of taught splits."""
    stores = []
    for number, split in enumerate(splits):
        file = f"taught{number}-{name}-{resolution}.safetensors"
        kept = None if cache is None or is_packed(split) else cache / file
        stores.append(FrameStore.load(split, resolution, cache=kept))
    store = FrameStore.join(stores)
    _frames_per_group(store.clips, splits)
    return store


def _frames_per_group(clips: Sequence[Clip | Entry], splits: Sequence[Place]) -> int:
    """Number of frames in each taught group; `InputError` if they differ or the clips are others."""
    where = " and ".join(map(str, splits))
    for clip in clips:
        name = clip.name if isinstance(clip, Clip) else clip.key
        if not KEY.fullmatch(name):
            raise InputError(f"{where} holds the clip {name}; name folders that export3d teach made")
    sizes = sorted({clip.frames for clip in clips})
    if len(sizes) != 1 or sizes[0] <= GROUP:
        raise InputError(
            f"{where} holds groups of {' and '.join(map(str, sizes)) or 'no'} frames; teach all with the same number "
            f"of expressions, at least {GROUP}"
        )
    return sizes[0]


class TaughtSampler(PairSampler):
    """An endless sequence of taught pairs: the source is a real frame, the driving frame a render of it.

    The `GROUP` samples of a group share source, camera, mirroring, geometry and colour; their expressions differ.

    Args:
        store, seed, mirror, augment: see `PairSampler`; each clip of the store is a taught group.
    """

    def __init__(self, store: FrameStore, seed: int = 0, mirror: bool = True, augment: bool = True) -> None:
        super().__init__(store, seed, mirror, augment, still_fraction=0.0, pseudo_fraction=0.0)

    def _draw(self, number: int) -> Draw:
        first, member = number - number % GROUP, number % GROUP
        common = super()._draw(first)
        clip = self.store.clips[common.clip]
        order = np.random.default_rng([self.seed, first, GROUP]).permutation(clip.frames - 1)
        rows = (clip.start, clip.start + 1 + int(order[member]))
        return replace(common, rows=rows, geometry=np.tile(common.geometry[0], (2, 1)))


class MixedSampler:
    """Taught groups among real pairs.

    Args:
        real: sampler of real pairs.
        taught: sampler of taught groups.
        share: share of the groups that are taught, 0..1; they are spread evenly.
    """

    def __init__(
        self, real: PairSampler | RotatingSampler, taught: PairSampler | RotatingSampler, share: float
    ) -> None:
        self.real, self.taught, self.share = real, taught, share

    def batch(self, images_seen: int, batch_size: int, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
        """As `PairSampler.batch`, with `taught` (b,) bool; a real pair is that of its number among real pairs alone.

        Raises:
            ConfigError: the batch cannot be shared evenly in whole groups.
        """
        numbers = share_of(images_seen, batch_size, rank, world)
        if numbers.start % GROUP or len(numbers) % GROUP:
            raise ConfigError(
                f"with taught clips, batches are made of groups of {GROUP}, but a process gets {len(numbers)} images "
                f"after {numbers.start}; make batch_size a multiple of {GROUP * world} per part of accumulate"
            )
        parts, places = [], list[int]()
        for taught, sampler in ((False, self.real), (True, self.taught)):  # one batch each: a GPU gets few, large ones
            chosen = [number for number in numbers if self._is_taught(number) == taught]
            if chosen:
                part = _samples(sampler, chosen)
                parts.append({**part, "taught": torch.full((len(chosen),), taught, device=part["source"].device)})
                places += [number - numbers.start for number in chosen]
        if len(parts) == 1:
            return parts[0]
        order = torch.from_numpy(np.argsort(places)).to(parts[0]["source"].device)
        common = [name for name in parts[0] if name in parts[1]]
        return {name: torch.cat([part[name] for part in parts])[order] for name in common}

    def _is_taught(self, number: int) -> bool:
        group = number // GROUP
        return int((group + 1) * self.share) > int(group * self.share)


def _samples(sampler: PairSampler | RotatingSampler, numbers: Sequence[int]) -> dict[str, Tensor]:
    """The samples of ascending numbers; of a window, which has turns, run by run."""
    if isinstance(sampler, PairSampler):
        return sampler.samples(numbers)
    runs = [
        [number for _, number in run]
        for _, run in itertools.groupby(enumerate(numbers), lambda found: found[1] - found[0])
    ]
    parts = [sampler.batch(run[0], len(run)) for run in runs]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
