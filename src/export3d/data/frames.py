"""All frames of a split, decoded once and held as one tensor.

A split of tens of thousands of face crops fits in memory as uint8, and training steps then never wait for a video
decoder. There are three ways to make a `FrameStore`:

    FrameStore.load(split, 128)                    decodes the shards (PyAV and Pillow, one clip per thread)
    FrameStore.load(split, 128, cache="128.st")    also keeps the result in a memory-mapped file for the next run
    FrameStore.load_packed(folder)                 reads JPEG frames that `save` wrote; needs Pillow, not PyAV

`load` recognises a folder of packed frames, so that they can stand wherever a split does.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from export3d.data.decoding import decode, decoders
from export3d.data.frame_layout import Arrays, Clip, clips_from_json, layout
from export3d.data.packed_frames import (
    DAMAGE,
    MASKS,
    PACKED_FORMAT,
    PACKED_INDEX,
    TRACKS,
    VERSION,
    decode_packed,
    is_packed,
    read_packed_index,
)
from export3d.data.shards import Index, Record, has_split, read_index, read_shards
from export3d.errors import ConfigError, InputError, check_shape
from export3d.files import kind_at, make_folder, replacing, write_bytes, write_failure
from export3d.locations import Place, inside
from export3d.motion.motion import SHOULDERS

CACHE_FORMAT = "export3d.frames"
MAX_PART_BYTES = 50 * 10**6


@dataclass(frozen=True)
class FrameStore:
    """N frames of some clips, with the tracker's results for each.

    Attributes:
        frames: (N, 3, R, R) uint8 RGB.
        expression: (N, E) float32 in `space`.
        camera: (N, 25) float32 labels.
        shoulders: (N, 5) float32, see `Motion`; zeros where they are not known.
        landmarks: (N, 478, 2) float16, 0..1 across the crop.
        found: (N,) bool; False where the face was lost and the track is interpolated.
        clip: (N,) int64, number of the clip in `clips`.
        clips: names, kinds ("video", "image" or "pseudo"), people, terms and rows.
        space: name of the expression space.
        masks: (N, 1, m, m) uint8, where people are, 255 for certain (`photo.matte.person_masks`); None: not known.
    """

    frames: Tensor
    expression: Tensor
    camera: Tensor
    shoulders: Tensor
    landmarks: Tensor
    found: Tensor
    clip: Tensor
    clips: tuple[Clip, ...]
    space: str
    masks: Tensor | None = None

    def __post_init__(self) -> None:
        n = sum(clip.frames for clip in self.clips)
        check_shape(self.frames, f"{n} 3 R R", "frames")
        check_shape(self.expression, f"{n} E", "expression")
        check_shape(self.camera, f"{n} 25", "camera")
        check_shape(self.shoulders, f"{n} {SHOULDERS}", "shoulders")
        check_shape(self.landmarks, f"{n} L 2", "landmarks")
        check_shape(self.found, f"{n}", "found")
        check_shape(self.clip, f"{n}", "clip")
        if self.masks is not None:
            check_shape(self.masks, f"{n} 1 m m", "masks")

    def __len__(self) -> int:
        return len(self.clip)

    @property
    def resolution(self) -> int:
        """R."""
        return int(self.frames.shape[-1])

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.frames.device

    @property
    def names(self) -> list[str]:
        """The key of each clip."""
        return [clip.name for clip in self.clips]

    @property
    def kinds(self) -> list[str]:
        """The kind of each clip: "video", "image" or "pseudo"."""
        return [clip.kind for clip in self.clips]

    @property
    def people(self) -> list[str]:
        """The person of each clip."""
        return [clip.person for clip in self.clips]

    @property
    def terms(self) -> list[str]:
        """The terms of use of each clip."""
        return [clip.terms for clip in self.clips]

    def to(self, device: torch.device | str) -> FrameStore:
        """The same store with its tensors on `device`."""
        masks = None if self.masks is None else self.masks.to(device)
        return replace(self, **{name: getattr(self, name).to(device) for name in _TENSORS}, masks=masks)

    @staticmethod
    def join(stores: Sequence[FrameStore]) -> FrameStore:
        """Concatenate the clips of several stores into one store.

        Raises:
            InputError: the stores differ in resolution or expression space.
        """
        first, starts = stores[0], np.cumsum([0, *map(len, stores)])
        for store in stores[1:]:
            if (store.resolution, store.space) != (first.resolution, first.space):
                raise InputError(
                    f"frames of {store.resolution} px in {store.space} cannot join frames of {first.resolution} px in "
                    f"{first.space}; prepare them alike"
                )
        moved = [replace(c, start=c.start + int(at)) for at, store in zip(starts, stores) for c in store.clips]
        numbers = np.cumsum([0, *(len(store.clips) for store in stores)])
        tensors = {name: torch.cat([getattr(store, name) for store in stores]) for name in _TENSORS if name != "clip"}
        clip = torch.cat([store.clip + int(at) for at, store in zip(numbers, stores)])
        known = [store.masks for store in stores if store.masks is not None]
        masks = torch.cat(known) if len(known) == len(stores) else None
        return FrameStore(**tensors, clip=clip, clips=tuple(moved), space=first.space, masks=masks)

    def as_pseudo(self) -> FrameStore:
        """The same store with its videos marked as pseudo-clips (see `data.pseudo_clips`)."""
        return replace(self, clips=tuple(replace(c, kind="pseudo") if c.kind == "video" else c for c in self.clips))

    @classmethod
    def load(
        cls,
        folder: Path | str,
        resolution: int = 256,
        device: torch.device | str = "cpu",
        *,
        max_clips: int | None = None,
        cache: Path | str | None = None,
        threads: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> FrameStore:
        """Decode a split.

        Args:
            folder: a split (the folder that holds `index.json`, or its URL), or packed frames.
            resolution: R; if smaller than the stored crops, they are downsampled with antialiasing.
            device: device of the tensors.
            max_clips: take only this many records from the start of the index.
            cache: file that keeps the decoded arrays. It is used if it was made from these shards at this resolution,
                otherwise it is rebuilt. On the CPU it stays memory-mapped. It replaces both PyAV and the tars.
            threads: number of parallel decoders (default: one per core).
            progress: called with (records done, records).

        Raises:
            InputError: the split is not prepared, or damaged.
            ConfigError: the crops are smaller than R, or a cache is named for packed frames.
        """
        if is_packed(folder):
            if cache is not None:
                raise ConfigError(f"{folder} holds packed frames, which need no cache; leave the cache out")
            return cls.load_packed(folder, device, resolution=resolution, threads=threads)
        index = read_index(folder)
        entries = index.entries[:max_clips]
        if not entries:
            raise InputError(f"{folder} holds no records; see the report of its preparation")
        digest = _digest(index, resolution, max_clips)
        if cache is not None:
            store = _open_cache(Path(cache), digest)
            if store is not None:
                return store.to(device)
        clips: list[Clip] = []
        start = 0
        for entry in entries:
            clips.append(Clip.of(entry, start))
            start += entry.frames
        records = _take(read_shards(folder, index), len(clips))
        if cache is None:
            arrays = {
                name: np.empty(shape, dtype)
                for name, (shape, dtype) in layout(start, resolution, index.expression_size).items()
            }
            _fill(arrays, records, clips, resolution, threads, progress)
            return _from_arrays(arrays, tuple(clips), index.space).to(device)
        header = {"format": CACHE_FORMAT, "version": str(VERSION), "digest": digest, "space": index.space}
        header["clips"] = json.dumps([vars(clip) for clip in clips])
        with replacing(Path(cache)) as temporary:
            arrays = _mapped_safetensors(temporary, layout(start, resolution, index.expression_size), header)
            _fill(arrays, records, clips, resolution, threads, progress)
            for array in arrays.values():
                array.flush()  # type: ignore[attr-defined]
        store = _open_cache(Path(cache), digest)
        assert store is not None
        return store.to(device)

    def save(self, folder: Path | str, quality: int = 95, max_bytes: int = MAX_PART_BYTES) -> None:
        """Write the store as JPEG frames in parts, to be copied to another machine and read by `load_packed`.

        Args:
            folder: created if missing; existing parts in it are replaced.
            quality: JPEG quality (4:4:4 chroma), 1 to 100; 95 takes about 8 kB per frame at R = 128, 25 kB at 256.
            max_bytes: maximum size of a part.

        Raises:
            OutputError: the folder cannot be written.
        """
        from safetensors.numpy import save

        folder = Path(folder)
        try:
            make_folder(folder)
            for stale in [folder / PACKED_INDEX, *folder.glob("part-*.safetensors")]:
                stale.unlink(missing_ok=True)
        except OSError as error:
            raise write_failure(folder, error) from error
        parts: list[dict[str, Any]] = []
        with ThreadPoolExecutor(decoders(None)) as pool:
            for first, images in self._jpeg_runs(pool, quality, max_bytes):
                last = first + len(images)
                part = {
                    "jpeg": np.frombuffer(b"".join(images), dtype=np.uint8),
                    "offsets": np.cumsum([0, *map(len, images)], dtype=np.int64),
                }
                for name in TRACKS:
                    part[name] = np.ascontiguousarray(getattr(self, name)[first:last].cpu().numpy())
                if self.masks is not None:
                    part[MASKS] = np.ascontiguousarray(self.masks[first:last].cpu().numpy())
                name = f"part-{len(parts):04d}.safetensors"
                write_bytes(folder / name, save(part))
                parts.append({"file": name, "frames": last - first})
        value = {
            "format": PACKED_FORMAT,
            "version": VERSION,
            "space": self.space,
            "resolution": self.resolution,
            "parts": parts,
            "clips": [vars(clip) for clip in self.clips],
        }
        write_bytes(folder / PACKED_INDEX, (json.dumps(value, indent=1) + "\n").encode())

    @classmethod
    def load_packed(
        cls,
        folder: Path | str,
        device: torch.device | str = "cpu",
        *,
        resolution: int | None = None,
        threads: int | None = None,
    ) -> FrameStore:
        """Read what `save` wrote; needs Pillow, not PyAV.

        Args:
            resolution: R; if smaller than the packed frames, they are downsampled with antialiasing. None: their own.

        Raises:
            InputError: the folder is missing, damaged or of another version.
            ConfigError: the packed frames are smaller than R.
        """
        folder = Path(folder)
        try:
            packed = read_packed_index(folder)
            size = resolution or packed.resolution
            if size <= packed.resolution:
                with ThreadPoolExecutor(decoders(threads)) as pool:
                    arrays = decode_packed(folder, packed, size, pool)
        except DAMAGE as error:
            raise InputError(f"cannot read packed frames from {folder} ({error}); pack them again") from error
        if size > packed.resolution:
            raise ConfigError(
                f"{folder} holds frames of {packed.resolution} px, but {size} px are needed; pack larger ones"
            )
        return _from_arrays(arrays, packed.clips, packed.space).to(device)

    def thinned(self, every: int) -> FrameStore:
        """Every `every`-th frame of each video (neighbours are near-duplicates); the rest stays whole."""
        kept, clips, at = [], [], 0
        for clip in self.clips:
            rows = torch.arange(
                clip.start, clip.start + clip.frames, min(every, clip.frames) if clip.kind == "video" else 1
            )
            kept.append(rows)
            clips.append(replace(clip, start=at, frames=len(rows)))
            at += len(rows)
        rows = torch.cat(kept)
        masks = None if self.masks is None else self.masks[rows]
        return replace(self, **{name: getattr(self, name)[rows] for name in _TENSORS}, clips=tuple(clips), masks=masks)

    def _jpeg_runs(self, pool: ThreadPoolExecutor, quality: int, max_bytes: int) -> Iterator[tuple[int, list[bytes]]]:
        """(first row, JPEG of each frame) of consecutive parts of at most `max_bytes` (tracks included)."""
        per_frame = sum(getattr(self, name)[:1].nbytes for name in TRACKS) + 8
        per_frame += 0 if self.masks is None else self.masks[:1].nbytes
        first, images, size = 0, list[bytes](), 0
        for begin in range(0, len(self), 256):
            chunk = self.frames[begin : begin + 256].permute(0, 2, 3, 1).cpu().numpy()
            for image in pool.map(lambda picture: _encode_jpeg(picture, quality), chunk):
                if images and size + len(image) + per_frame > max_bytes - 4096:
                    yield first, images
                    first, images, size = first + len(images), [], 0
                images.append(image)
                size += len(image) + per_frame
        yield first, images


_TENSORS = tuple(f.name for f in fields(FrameStore) if f.name not in ("clips", "space", MASKS))


def space_of(data: Place) -> str | None:
    """Expression space of split `train` of prepared or packed data; None if there is no such split.

    Raises:
        InputError: the split is not prepared, or damaged.
    """
    if not has_split(data, "train"):
        return None
    split = inside(data, "train")
    if not isinstance(split, Path) or not is_packed(split):
        return read_index(split).space
    try:
        return read_packed_index(split).space
    except DAMAGE as error:
        raise InputError(f"cannot read packed frames from {split} ({error}); pack them again") from error


def _fill(
    arrays: Arrays,
    records: Iterator[Record],
    clips: list[Clip],
    resolution: int,
    threads: int | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Decode records into the rows of their clips; per thread, at most two further records are waiting."""
    workers = decoders(threads)
    room = threading.Semaphore(3 * workers)
    done = 0
    lock = threading.Lock()

    def work(number: int, clip: Clip, record: Record) -> None:
        nonlocal done
        try:
            if (record.key, record.frames) != (clip.name, clip.frames):
                raise InputError(f"record {record.key} does not match the index ({clip.name}); prepare the data again")
            arrays["frames"][clip.rows] = decode(record, resolution)
            for name in ("expression", "camera", "shoulders", "landmarks", "found"):
                arrays[name][clip.rows] = getattr(record, name)
            arrays["clip"][clip.rows] = number
            with lock:
                done += 1
                if progress is not None:
                    progress(done, len(clips))
        finally:
            room.release()

    with ThreadPoolExecutor(workers) as pool:
        futures: list[Future[None]] = []
        for number, clip in enumerate(clips):
            room.acquire()
            record = next(records, None)
            if record is None:
                raise InputError(f"the shards end before {clip.name}; prepare the data again")
            futures.append(pool.submit(work, number, clip, record))
        for future in futures:
            future.result()


def _encode_jpeg(picture: NDArray[np.uint8], quality: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="JPEG", quality=quality, subsampling=0)
    return stream.getvalue()


def _from_arrays(arrays: Arrays, clips: tuple[Clip, ...], space: str) -> FrameStore:
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return FrameStore(**tensors, clips=clips, space=space)


def _mapped_safetensors(path: Path, specs: dict[str, tuple[tuple[int, ...], str]], metadata: dict[str, str]) -> Arrays:
    """Create a safetensors file of zeros and map its tensors writable, to decode gigabytes straight to disk."""
    names = {"<i8": "I64", "<f4": "F32", "<f2": "F16", "|b1": "BOOL", "|u1": "U8"}
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    offsets: dict[str, int] = {}
    for name, (shape, dtype) in specs.items():
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        header[name] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
        offsets[name] = at
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + at)
        if hasattr(os, "posix_fallocate"):  # writing to a map on a full disk kills the process
            os.posix_fallocate(stream.fileno(), 0, 8 + len(text) + at)
    return {
        name: np.memmap(path, dtype, "r+", offset=8 + len(text) + offsets[name], shape=shape)
        for name, (shape, dtype) in specs.items()
    }


def _open_cache(path: Path, digest: str) -> FrameStore | None:
    """The store in `path`, memory-mapped; None if the file is missing or its digest differs."""
    if kind_at(path) != "file":
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            known = (header.get("format"), header.get("version"), header.get("digest"))
            if known != (CACHE_FORMAT, str(VERSION), digest):
                return None
            clips = clips_from_json(json.loads(header["clips"]))
            return FrameStore(**{name: file.get_tensor(name) for name in _TENSORS}, clips=clips, space=header["space"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None


def _digest(index: Index, resolution: int, max_clips: int | None) -> str:
    parts = [CACHE_FORMAT, str(VERSION), str(resolution), str(max_clips), *(shard.sha256 for shard in index.shards)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _take(records: Iterator[Record], count: int) -> Iterator[Record]:
    for _, record in zip(range(count), records):
        yield record
