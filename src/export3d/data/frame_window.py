"""Training frames that do not fit into memory: a window of decoded frames that moves through all clips endlessly.

All frames of the splits form one endless sequence. Each epoch contains every clip once; its shards are shuffled anew
and their clips are mixed four shards at a time. The sequence is cut into blocks of equal size, even within a clip. In
turn t, the window holds blocks t to t + 7, while a thread reads and decodes block t + 8. That block replaces the oldest
one when turn t + 1 begins. A turn lasts for as many pairs as a block has frames.

The contents of the window depend only on the index, the seed and the number of images seen, never on timing. A resumed
run therefore sees the same pairs as an uninterrupted one, and several processes see the same pairs as a single one. If
decoding is slower than training, training waits.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from export3d.data.decoding import decode, decoders
from export3d.data.frame_layout import Arrays, Clip, layout
from export3d.data.frames import FrameStore
from export3d.data.packed_frames import is_packed
from export3d.data.pairs import share_of
from export3d.data.shards import Record, Shard, read_index, read_shard
from export3d.errors import ConfigError, InputError
from export3d.locations import Place, as_place

PARTS = 8
"""Blocks in the window."""
_MIXED = 4
"""Shards whose clips are mixed; they are held compressed in memory, at most 64 MB each."""
_MIN_BLOCK = 256


@dataclass(frozen=True)
class _Tar:
    """A shard, its location, and the numbers of its clips."""

    folder: Place
    shard: Shard
    clips: tuple[int, ...]


class Rotation:
    """A window on the frames of some splits; `store` holds its current contents.

    Args:
        splits: folders or URLs of prepared splits.
        resolution: see `FrameStore.load`.
        rows: frames per block; the window holds eight blocks, and one more is decoded ahead.
        pseudo: further splits, of pseudo-clips.
        seed: determines the order of the clips.
        threads: number of parallel decoders (default: one per core); each holds one clip outside the window.

    Raises:
        InputError: a split is not prepared or is empty, or the splits differ in expression space.
    """

    def __init__(
        self,
        splits: Sequence[Path | str],
        resolution: int,
        rows: int,
        *,
        pseudo: Sequence[Path | str] = (),
        seed: int = 0,
        threads: int | None = None,
    ) -> None:
        self.rows, self.resolution, self.seed = rows, resolution, seed
        self._threads = decoders(threads)
        self._clips: list[Clip] = []
        self._tars: list[list[_Tar]] = []
        self.space, expression_size = self._list(splits, pseudo)
        self.frames = sum(clip.frames for clip in self._clips)
        shapes = layout(rows, resolution, expression_size)
        self._next = {name: np.empty(shape, dtype) for name, (shape, dtype) in shapes.items() if name != "clip"}
        self._window = {n: torch.from_numpy(np.concatenate([array] * PARTS)) for n, array in self._next.items()}
        self._pieces: list[list[Clip]] = [[]] * PARTS
        self._turn = 0
        self._blocks: Iterator[list[Clip]] = iter(())
        self._worker: threading.Thread | None = None
        self._outcome: list[Clip] | Exception = []
        self._fill(0)

    @property
    def store(self) -> FrameStore:
        """The window. The next turn changes its tensors in place."""
        at = enumerate(self._pieces)
        clips = [replace(piece, start=piece.start + slot * self.rows) for slot, pieces in at for piece in pieces]
        lengths = torch.tensor([clip.frames for clip in clips])
        number = torch.repeat_interleave(torch.arange(len(clips)), lengths).to(self._window["found"].device)
        return FrameStore(**self._window, clip=number, clips=tuple(clips), space=self.space)

    @property
    def expression(self) -> Tensor:
        """(8 x `rows`, E) expressions in the window."""
        return self._window["expression"]

    def at(self, turn: int) -> FrameStore:
        """The window of a turn. The next turn is decoded ahead; any other turn is read from the shards.

        Raises:
            InputError: a shard cannot be read, or does not match the index.
        """
        if turn == self._turn + 1:
            self._put(turn + PARTS - 1, self._finish())
            self._turn = turn
            self._begin()
        elif turn != self._turn:
            self._fill(turn)
        return self.store

    def to(self, device: torch.device | str) -> Rotation:
        """Move the window to `device`; returns this rotation."""
        self._window = {name: tensor.to(device) for name, tensor in self._window.items()}
        return self

    def _list(self, splits: Sequence[Path | str], pseudo: Sequence[Path | str]) -> tuple[str, int]:
        """Collect all clips and shards; returns the expression space and its size."""
        indices = [read_index(split) for split in (*splits, *pseudo)]
        first = indices[0]
        for at, (split, index) in enumerate(zip((*splits, *pseudo), indices)):
            if not index.entries:
                raise InputError(f"{split} holds no records; see the report of its preparation")
            if (index.space, index.expression_size) != (first.space, first.expression_size):
                raise InputError(f"clips in {first.space} and in {index.space} cannot be mixed; prepare them alike")
            numbers: dict[str, list[int]] = {shard.file: [] for shard in index.shards}
            for entry in index.entries:
                numbers[entry.shard].append(len(self._clips))
                kind = "pseudo" if at >= len(splits) and entry.kind == "video" else entry.kind
                self._clips.append(Clip.of(entry, 0, kind))
            folder = as_place(split)
            self._tars.append([_Tar(folder, shard, tuple(numbers[shard.file])) for shard in index.shards])
        return first.space, first.expression_size

    # ---- blocks into the window --------------------------------------------------------------------------------------

    def _fill(self, turn: int) -> None:
        """Read all blocks of a turn."""
        if self._worker is not None:
            self._worker.join()
        self._blocks = self._decoded_blocks(turn)
        for number in range(turn, turn + PARTS):
            self._put(number, next(self._blocks))
        self._turn = turn
        self._begin()

    def _put(self, number: int, pieces: list[Clip]) -> None:
        """Put the block that was decoded last in the place of the block eight before it."""
        slot = number % PARTS
        for name, tensor in self._window.items():
            tensor[slot * self.rows : (slot + 1) * self.rows].copy_(torch.from_numpy(self._next[name]))
        self._pieces[slot] = pieces

    def _begin(self) -> None:
        """Start decoding the next block in a thread."""
        # A daemon, so that the interpreter does not wait for it: at the end of a run the block is not needed.
        self._worker = threading.Thread(target=self._work, name="export3d-rotation", daemon=True)
        self._worker.start()

    def _work(self) -> None:
        try:
            self._outcome = next(self._blocks)
        except Exception as error:  # raised where the block is awaited
            self._outcome = error

    def _finish(self) -> list[Clip]:
        assert self._worker is not None
        self._worker.join()
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    # ---- the sequence ------------------------------------------------------------------------------------------------

    def _decoded_blocks(self, first: int) -> Iterator[list[Clip]]:
        """Decode blocks from number `first` on into `_next`; yields the clips and pieces of clips in each."""
        epoch, skipped = divmod(first * self.rows, self.frames)
        pieces: list[Clip] = []
        filled = 0
        for number, arrays in self._decoded_clips(epoch, skipped):
            used, length = 0, len(arrays["found"])
            while used < length:
                count = min(length - used, self.rows - filled)
                for name, array in arrays.items():
                    self._next[name][filled : filled + count] = array[used : used + count]
                pieces.append(replace(self._clips[number], start=filled, frames=count))
                filled, used = filled + count, used + count
                if filled == self.rows:
                    yield pieces
                    pieces, filled = [], 0

    def _decoded_clips(self, epoch: int, skipped: int) -> Iterator[tuple[int, Arrays]]:
        """The clips of `_records`, decoded a few ahead: number, and the rows that are not skipped."""

        def decoded(number: int, record: Record, skipped: int) -> tuple[int, Arrays]:
            tracks = {name: getattr(record, name)[skipped:] for name in self._next if name != "frames"}
            return number, {"frames": decode(record, self.resolution)[skipped:], **tracks}

        with ThreadPoolExecutor(self._threads) as pool:
            waiting: deque[Future[tuple[int, Arrays]]] = deque()
            for found in self._records(epoch, skipped):
                waiting.append(pool.submit(decoded, *found))
                if len(waiting) >= self._threads:
                    yield waiting.popleft().result()

    def _records(self, epoch: int, skipped: int) -> Iterator[tuple[int, Record, int]]:
        """Clips after the first `skipped` frames of an epoch, endlessly: number, record, and its rows to skip."""
        for number in itertools.count(epoch):
            for place, group in enumerate(self._epoch(number)):
                clips = [clip for tar in group for clip in tar.clips]
                frames = sum(self._clips[clip].frames for clip in clips)
                if skipped >= frames:
                    skipped -= frames
                    continue
                records = self._read(group)
                order = np.random.default_rng([self.seed, number, 1 + place]).permutation(clips)
                for clip in map(int, order):
                    record = records.pop(clip)
                    if skipped < record.frames:
                        yield clip, record, skipped
                    skipped = max(0, skipped - record.frames)

    def _epoch(self, number: int) -> list[list[_Tar]]:
        """The shards of an epoch in groups; the shards of each split are spread evenly over the epoch."""
        rng = np.random.default_rng([self.seed, number])
        placed = [
            ((place + 0.5) / len(tars), split, tars[which])
            for split, tars in enumerate(self._tars)
            for place, which in enumerate(rng.permutation(len(tars)))
        ]
        ordered = [tar for _, _, tar in sorted(placed, key=lambda found: found[:2])]
        return [ordered[start : start + _MIXED] for start in range(0, len(ordered), _MIXED)]

    def _read(self, group: list[_Tar]) -> dict[int, Record]:
        """All records of a group of shards, by clip number."""
        records: dict[int, Record] = {}
        for tar in group:
            found = {record.key: record for record in read_shard(tar.folder, tar.shard)}
            for number in tar.clips:
                clip = self._clips[number]
                record = found.get(clip.name)
                if record is None or record.frames != clip.frames:
                    raise InputError(f"{tar.shard.file} does not match the index at {clip.name}; prepare it again")
                records[number] = record
        return records


Batch = TypeVar("Batch", covariant=True)


class Sampler(Protocol[Batch]):
    """Samples by number from one store."""

    def batch(self, images_seen: int, batch_size: int) -> Batch:
        """Samples `images_seen` to `images_seen + batch_size`."""


class Windows(Generic[Batch]):
    """An endless sequence of samples from a rotation, by number; a sample also depends on the size of the window.

    Args:
        rotation: the window; the number of a sample determines its turn.
        sampler: makes the sampler of one window.
        frames: frames per sample that count toward the length of a turn.
    """

    def __init__(self, rotation: Rotation, sampler: Callable[[FrameStore], Sampler[Batch]], frames: int = 1) -> None:
        self.rotation, self._make = rotation, sampler
        self._length, self._turn = max(1, rotation.rows // frames), -1

    @property
    def store(self) -> FrameStore:
        """The current window."""
        return self.rotation.store

    def parts(self, numbers: range) -> list[Batch]:
        """Batches of the samples `numbers`, one per window."""
        runs = ((turn, list(run)) for turn, run in itertools.groupby(numbers, lambda n: n // self._length))
        return [self._at(turn).batch(run[0], len(run)) for turn, run in runs]

    def _at(self, turn: int) -> Sampler[Batch]:
        if turn != self._turn:
            self._sampler, self._turn = self._make(self.rotation.at(turn)), turn
        return self._sampler


class RotatingSampler(Windows[dict[str, Tensor]]):
    """An endless sequence of training pairs from a rotation, as `PairSampler` gives from a store."""

    def batch(self, images_seen: int, batch_size: int, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
        """As `PairSampler.batch`."""
        parts = self.parts(share_of(images_seen, batch_size, rank, world))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def rows_of_block(memory: float, splits: Sequence[Path | str], resolution: int) -> int | None:
    """Frames per block of a rotation that takes `memory` GB (1e9 bytes); None if all frames fit.

    Raises:
        ConfigError: too little memory: pairs would come from only a handful of clips; or packed frames.
    """
    packed = [split for split in splits if is_packed(split)]
    if packed:
        raise ConfigError(
            f"data.memory reads shards, but {packed[0]} holds packed frames, which are held whole; leave it out"
        )
    indices = [read_index(split) for split in splits]
    shapes = layout(1, resolution, indices[0].expression_size).values()
    size = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in shapes)
    if size * sum(index.frames for index in indices) <= memory * 1e9:
        return None
    rows = int(memory * 1e9 / size / (PARTS + 1))
    if rows < _MIN_BLOCK:
        least = _MIN_BLOCK * (PARTS + 1) * size / 1e9
        raise ConfigError(f"memory {memory} GB is too little for frames of {resolution} px; give at least {least:.2f}")
    return rows
