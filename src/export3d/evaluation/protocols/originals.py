"""The files that records were made from, for scores at sizes above that of the shards (256 pixels).

Shards hold face crops of 256 pixels; the crop's place and the file's name are in their provenance. At another size the
source's and the true pixels are read from that file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export3d.data.prepare import prepared_from
from export3d.data.shards import FPS, Entry, Record, read_tar
from export3d.errors import ConfigError, InputError
from export3d.face.crop import CropBox, crop
from export3d.files import kind_at
from export3d.image import read_image
from export3d.locations import Place, inside
from export3d.model import Export3D
from export3d.photo.options import LARGEST, SMALLEST
from export3d.video import read_frames

Picture = NDArray[np.uint8]

_SAME = 20.0
"""Mean absolute difference, grey levels, above which a record's image and the file's show different things."""


class Original:
    """The frames of the file that a record was made from.

    Args:
        record: of a video or a still image.
        size: of the images that it shall give, pixels across the face crop.
        folders: where the file is looked for, see `folders_of`.

    Attributes:
        size: the same.
        box: the face crop, pixels of the frames.

    Raises:
        InputError: the file has fewer pixels, is no longer there, or the record does not name it.
    """

    def __init__(self, record: Record, size: int, folders: Sequence[Path] = (Path(),)) -> None:
        try:
            place, start_s = record.info["crop"], float(record.info["start_s"])
            self.box = CropBox((float(place["centre"][0]), float(place["centre"][1])), float(place["side"]))
            name = str(record.info["file"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise InputError(
                f"record {record.key} does not tell where its pixels come from; prepare it again"
            ) from error
        self.size = size
        if self.box.side < size:
            raise InputError(f"its face crop has {int(self.box.side)} pixels, {size} are needed")
        found = _find(name, folders)
        if found is None:
            raise InputError(f"{name}, which it was made from, is not there; give its folder with --clips")
        self._path = found
        self._still = record.kind == "image"
        self._first = round(start_s * FPS)
        self._frames: Iterator[Picture] = iter(())
        self._next: int | None = None

    def frame(self, row: int) -> Picture:
        """Frame number `row` of the record, uint8 (H, W, 3); fast in ascending order.

        Raises:
            InputError: the file cannot be read or is too short.
        """
        if self._still:
            return read_image(self._path)
        if self._next is None or row < self._next:
            self._frames, self._next = iter(read_frames(self._path, FPS)), -self._first
        found = next(islice(self._frames, row - self._next, None), None)
        if found is None:
            raise InputError(f"{self._path} has fewer frames than when it was prepared; prepare it again")
        self._next = row + 1
        return found

    def crops(self, rows: NDArray[np.int64]) -> Picture:
        """The face crops of frames, uint8 (N, R, R, 3)."""
        return np.stack([crop(self.frame(int(row)), self.box, self.size) for row in rows])

    def check(self, row: int, prepared: Picture) -> Picture:
        """The frame number `row`, if it shows what was prepared from it, uint8 (h, h, 3).

        Raises:
            InputError: the file has changed.
        """
        frame = self.frame(row)
        away = np.abs(crop(frame, self.box, len(prepared)).astype(np.int16) - prepared).mean()
        if away > _SAME:
            raise InputError(f"{self._path} has changed since it was prepared; prepare it again")
        return frame


def folders_of(split: Place, given: Path | str | None = None) -> tuple[Path, ...]:
    """The folders in which the files of a split's records are looked for.

    Records name a file relative to the folder or the manifest that was prepared. `prepare` keeps these folders in its
    report. If that is not there, files are looked for here, beside the splits, and beside the folder of splits.

    Args:
        split: a folder of shards or its URL.
        given: a folder that the user names; it comes first.

    Raises:
        InputError: `given` is no folder, or empty.
    """
    first = [] if given is None else [Path(given)]
    if first and kind_at(first[0]) != "folder":
        raise InputError(f"{given} is no folder; give the folder of the videos that the data was prepared from")
    with suppress(OSError):  # a folder that cannot be listed may still hold the files
        if first and not any(first[0].iterdir()):
            raise InputError(f"{given} is empty; give the folder of the videos that the data was prepared from")
    if isinstance(split, Path):
        data = split.absolute().parent
        first += [Path(os.path.normpath(data / name)) for name in prepared_from(data)]
        return (*first, Path.cwd(), data, data.parent)
    return (*first, Path.cwd())


def _find(name: str, folders: Sequence[Path]) -> Path | None:
    """A record's file: by its name, which may have folders in it, else by the last part of the name."""
    paths = [folder / each for each in (name, Path(name).name) for folder in folders]
    return next((path for path in paths if kind_at(path) == "file"), None)


def check_size(size: int | None, model: Export3D) -> None:
    """`ConfigError` unless frames can be scored at a size, pixels across the face crop; None: the model's own."""
    if size is None:
        return
    if not SMALLEST <= size <= LARGEST or size % 2:
        raise ConfigError(f"the size {size} is not possible; give an even number from {SMALLEST} to {LARGEST}")
    if not model.moves_pixels:
        raise ConfigError(
            f"these weights render {model.config.image_size} x {model.config.image_size} pixels and take none from "
            "the source; leave out --size"
        )


def with_pixels(
    split: Place, entries: Sequence[Entry], size: int, folders: Sequence[Path] = (Path(),)
) -> tuple[list[Entry], dict[str, str]]:
    """The records whose files, in these folders, can be read at a size; the reason for each of the others by key.

    Raises:
        InputError: there are none.
    """
    known: dict[str, str] = {}
    wanted = {entry.key for entry in entries}
    largest = 0
    for shard in sorted({entry.shard for entry in entries}):
        for record in read_tar(inside(split, shard)):
            if record.key not in wanted:
                continue
            try:
                largest = max(largest, int(Original(record, 1, folders).box.side))
                Original(record, size, folders)
            except InputError as error:
                known[record.key] = str(error)
    usable = [entry for entry in entries if entry.key not in known]
    if entries and not usable:
        if 0 < largest < size:
            raise InputError(
                f"nothing in {split} has {size} pixels across the face crop, the most are {largest}; give --size "
                f"{largest // 2 * 2} or less, or larger clips"
            )
        raise InputError(f"nothing in {split} can be scored at {size} pixels: {next(iter(known.values()))}")
    return usable, {entry.key: known[entry.key] for entry in entries if entry.key in known}


def resized(pictures: Picture, size: int) -> Picture:
    """(N, R, R, 3) to (N, size, size, 3) by the filter that makes face crops: antialiased bicubic."""
    return np.stack(
        [np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC)) for picture in pictures]
    )
