"""Saves predictions as `predictions.read_predictions` reads them, without marks, since they are to be scored."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export3d.errors import OutputError, ShapeError, check_shape
from export3d.evaluation.protocols.file_names import hidden, printable, unprintable
from export3d.evaluation.protocols.png import MAX_SIDE, MIN_SIDE
from export3d.evaluation.protocols.predictions import DRAFT, PREDICTION, SOURCE, TARGET, frame_name
from export3d.files import kind_at, make_folder, write_failure
from export3d.provenance.writing import check_unmarked, write_unmarked

Picture = NDArray[np.uint8]

_COMPRESSION = 1
"""PNG level; higher ones are slower and save little."""


class PredictionWriter:
    """Saves clips of predictions; each clip is complete or absent.

    A clip is written under a hidden name and renamed when it is complete. Leftovers of a killed run are removed when
    the clip is written again. Several processes may write different clips to one folder.

    Args:
        folder: created if missing.

    Raises:
        OutputError: the folder cannot be created.
        PolicyError: the policy requires marks.
    """

    def __init__(self, folder: Path | str) -> None:
        check_unmarked("predictions")
        self.folder = make_folder(folder)

    def has(self, name: str) -> bool:
        """Whether a complete clip is there."""
        return kind_at(self.folder / name / SOURCE, OutputError) == "file"

    @contextmanager
    def clip(self, name: str, source: Picture) -> Iterator[ClipWriter]:
        """Write one clip: `with writer.clip(name, source) as clip: clip.add(targets, predictions)`.

        Args:
            name: of its folder, in any script; every file system must accept it.
            source: uint8 (R, R, 3) RGB.

        Raises:
            OutputError: an unsafe name, an existing clip of that name, no frame, or a write failure; nothing is left
                behind.
            ShapeError: images of other shapes or types.
        """
        wrong = _unsafe(name)
        if wrong:
            raise OutputError(f"{printable(name)} cannot name a folder of predictions: it {wrong}; rename the clip")
        place, draft = self.folder / name, self.folder / f".{name}{DRAFT}"
        if os.path.lexists(place):
            raise OutputError(f"{place} is there already; choose another folder or delete it")
        try:
            shutil.rmtree(draft, ignore_errors=True)
            for part in (TARGET, PREDICTION):
                (draft / part).mkdir(parents=True)
            writer = ClipWriter(draft, source)
            yield writer
            if writer.count == 0:
                raise OutputError(f"there are no frames to save of {name}; leave the clip out")
            draft.rename(place)
        except OSError as error:
            raise write_failure(place, error) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)


class ClipWriter:
    """The images of one clip, made by `PredictionWriter.clip`.

    Attributes:
        count: number of frames written.
    """

    def __init__(self, folder: Path, source: Picture) -> None:
        self.count = 0
        self._folder, self._size = folder, len(source)
        _check_picture(source, self._size, "the source")
        write_unmarked(folder / SOURCE, source, reason="predictions", level=_COMPRESSION)

    def add(self, targets: Picture | Sequence[Picture], predictions: Picture | Sequence[Picture]) -> None:
        """Append frames: as many predictions as targets, uint8 (N, R, R, 3) RGB, R being the source's.

        Raises:
            ShapeError: anything else.  OutputError: a write failure.
        """
        if len(targets) != len(predictions):
            raise ShapeError(f"{len(targets)} targets need as many predictions, got {len(predictions)}")
        for target, prediction in zip(targets, predictions):
            for picture, part in ((target, TARGET), (prediction, PREDICTION)):
                _check_picture(picture, self._size, f"an image of the {part}")
                place = self._folder / part / frame_name(self.count)
                write_unmarked(place, picture, reason="predictions", level=_COMPRESSION)
            self.count += 1


def _check_picture(picture: Picture, size: int, name: str) -> None:
    check_shape(picture, f"{size} {size} 3", name)
    if picture.dtype != np.uint8:
        raise ShapeError(f"{name} must be uint8, got {picture.dtype}")
    if not MIN_SIDE <= size <= MAX_SIDE:
        raise ShapeError(f"{name} has {size} px a side; {MIN_SIDE} to {MAX_SIDE} can be scored")


def _unsafe(name: str) -> str | None:
    """Why a name is unsuitable for a folder: some file system refuses it, or reading would ignore it."""
    if not name or name.strip(" .") != name or hidden(name):
        return "is empty, hidden, or begins or ends with a dot or a space"
    if any(letter in '<>:"/\\|?*' for letter in name):
        return 'has one of < > : " / \\ | ? *'
    if len(name.encode("utf-8", "replace")) > 200:
        return "is longer than 200 bytes"
    return "has characters that cannot be printed" if unprintable(name) else None
