"""Writes generated images: videos, contact sheets and stills.

Every command writes through here, so that the same holds for all outputs: the path is checked before the work starts,
no partial file is left behind, the output is marked (`export3d.provenance.writing`), and the same input gives the same
pixels. With `NO_MARKS` it gives the same bytes; a signature holds its time.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from export3d.animate.drive import reference_frame
from export3d.animate.head_motion import HeadMotion
from export3d.errors import ConfigError, OutputError
from export3d.files import kind_at, make_folder, output_file, write_failure
from export3d.image import contact_sheet, fitted
from export3d.memory import give_back_memory
from export3d.provenance.writing import MARKED, Marks, encoded_webp, video_writer, write_image

if TYPE_CHECKING:
    from export3d.animate.animator import Animator, Source
    from export3d.animate.drive import Driving
    from export3d.photo.options import Frame, Size

Picture = NDArray[np.uint8]

VIDEO_SUFFIXES = (".mp4",)
STILL_SUFFIXES = (".png",)
SHEET_COLUMNS = 8
"""Moments shown on a contact sheet."""
SHEET_HEIGHT = 320
"""Height of the frames shown on it at most, pixels."""


def check_output(
    path: str | Path,
    suffixes: Sequence[str] = (),
    inputs: Sequence[str | Path] = (),
    outputs: Sequence[str | Path] = (),
) -> Path:
    """Refuse an output path that cannot be written, before any work is done.

    Args:
        path: the file to be written.
        suffixes: allowed endings, lower case; empty allows all.
        inputs: files that are read meanwhile and must not be overwritten.
        outputs: files that are written as well and must be others, symbolic links followed.

    Returns:
        the path. Raises `OutputError` for a wrong ending, an input, one of the outputs, a missing or unwritable
        folder, and as `files.output_file`.
    """
    path = Path(path)
    if suffixes and path.suffix.lower() not in suffixes:
        raise OutputError(f"the output {path} must end in {' or '.join(suffixes)}; change its name")
    target, _ = output_file(path)
    for source in inputs:
        with suppress(OSError, ValueError):
            if os.path.samefile(path, source):
                raise OutputError(f"the output {path} would overwrite the input; choose another name")
    for other in outputs:
        if target == output_file(other)[0]:
            raise OutputError(f"the outputs {other} and {path} are the same file; choose another name for one of them")
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise write_failure(path, error) from error
    return path


def write_video(
    path: str | Path,
    frames: Iterable[Picture],
    fps: float = 25.0,
    audio_from: str | Path | None = None,
    audio_start_s: float = 0.0,
    marks: Marks = MARKED,
) -> int:
    """Write an H.264 MP4 that browsers play, streaming; returns the number of frames.

    Args:
        path: ends in .mp4.
        frames: uint8 (H, W, 3) RGB, all of one even size, at least one.
        fps: frames per second.
        audio_from: a video whose sound is carried over, if it has any.
        audio_start_s: seconds to skip at the start of that sound.
        marks: what the video says about its origin: `Marks(animator.statement(source, "driving.mp4"))`.

    Raises:
        OutputError: the file cannot be written; nothing is left at `path`.
        PolicyError: `NO_MARKS`, where the policy requires marks.
    """
    path = check_output(path, VIDEO_SUFFIXES, [audio_from] if audio_from else [])
    stream = iter(frames)
    first = next(stream, None)
    if first is None:
        raise OutputError(f"there are no frames to write to {path}; the motion is empty")
    give_back_memory()  # of tracing and compiling, before the first frame
    height, width = first.shape[:2]
    count = 1
    with video_writer(path, fps, (width, height), audio_from, audio_start_s=audio_start_s, marks=marks) as writer:
        writer.write(first)
        for frame in stream:
            writer.write(frame)
            count += 1
    return count


def write_animation(
    animator: Animator,
    source: Source | Sequence[Source],
    driving: Driving,
    output: str | Path,
    sheet: str | Path | None = None,
    *,
    relative: bool = True,
    batch: int = 6,
    head_motion: HeadMotion = "steady",
    scores: Mapping[str, float] | None = None,
    size: Size | None = None,
    frame: Frame = "crop",
    background: str = "keep",
    marks: Marks = MARKED,
    watch: Callable[[Iterable[Picture]], Iterable[Picture]] = iter,
) -> int:
    """Animate and write: the video, with the driving sound, and on request a contact sheet.

    The sheet shows the source in its first column (the photo above, as we render it at rest below), then
    moments evenly spaced in time: the driving face above, where it is known, ours below. Large frames are
    scaled down.

    Args:
        animator, source, relative, batch, head_motion, scores, size, frame, background: see `Animator.animate`.
        driving: from `export3d.animate.drive`.
        output: the video, .mp4.
        sheet: the contact sheet, .png.
        marks: of both files, see `write_video`.
        watch: wraps the frames as they are made, for a progress bar.

    Returns:
        the number of frames. Where anything fails, neither file is left.
    """
    heard = driving.sound or driving.video
    output = check_output(output, VIDEO_SUFFIXES, [heard] if heard else [])
    if sheet is not None:
        check_output(sheet, STILL_SUFFIXES, outputs=[output])
    numbers = sheet_frames(len(driving.motion))
    kept: dict[int, Picture] = {}

    def frames() -> Iterator[Picture]:
        for number, made in enumerate(watch(moving)):
            if number in numbers:
                kept[number] = fitted(made, SHEET_HEIGHT)
            yield made

    moving = animator.animate(
        source,
        driving.motion,
        relative,
        batch,
        head_motion=head_motion,
        scores=scores,
        size=size,
        frame=frame,
        background=background,
    )
    existed = kind_at(output, OutputError)
    count = write_video(output, frames(), driving.motion.fps, heard, driving.start_s, marks)
    if sheet is not None:
        first = source[0] if isinstance(source, Sequence) else source
        shown = fitted(first.photo if frame == "photo" else first.image, SHEET_HEIGHT)
        # a motion of one frame shows the source at rest, in the layers that are there already
        still = driving.motion[reference_frame(driving.motion)]
        own = animator.animate(source, still, size=size, frame=frame, background=background)
        ours = [fitted(next(own), SHEET_HEIGHT), *(kept[number] for number in numbers)]
        theirs = driving.pictures(numbers, animator.size)
        rows = [[shown, *theirs], ours] if theirs else [[shown, *ours[1:]]]
        labels = ["source", *(f"{number / driving.motion.fps:.2f} s" for number in numbers)]
        try:
            write_sheet(sheet, rows, [labels], marks)
        except OutputError:
            if not existed:
                output.resolve().unlink(missing_ok=True)
            raise
    return count


def sheet_frames(frames: int, columns: int = SHEET_COLUMNS) -> list[int]:
    """Frame numbers for a sheet: `columns` of them (or all, if fewer), evenly spaced, first and last included.

    >>> sheet_frames(101, 5)
    [0, 25, 50, 75, 100]
    >>> sheet_frames(2)
    [0, 1]
    """
    return sorted({round(float(at)) for at in np.linspace(0, frames - 1, min(columns, frames))})


def write_sheet(
    path: str | Path,
    rows: Sequence[Sequence[Picture]],
    labels: Sequence[str | Sequence[str]] | None = None,
    marks: Marks = MARKED,
) -> Path:
    """Write a contact sheet as PNG: rows of uint8 (H, W, 3) images, headings as `image.contact_sheet` has them.

    The sheet is marked as a whole; the images are those without marks.
    """
    return write_still(path, contact_sheet(rows, labels), marks)


def sheet_paths(prefix: str, portraits: Sequence[str | Path], folder: str | Path) -> list[Path]:
    """`PREFIX_NAME.png` in a folder, made if missing, for every portrait file; NAME is the portrait's.

    Raises `ConfigError` for two portraits of one name, and `OutputError` where a sheet cannot be written.
    """
    names = [Path(portrait).stem for portrait in portraits]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two portraits are called {name}; rename one, since the sheets are named after them")
    folder = make_folder(folder)
    return [check_output(folder / f"{prefix}_{name}.png", STILL_SUFFIXES, portraits) for name in names]


def write_still(path: str | Path, picture: Picture, marks: Marks = MARKED) -> Path:
    """Write one uint8 (H, W, 3) image as PNG; `marks`: what it says about its origin, see `write_video`."""
    path = check_output(path, STILL_SUFFIXES)
    write_image(path, picture, marks)
    return path


def encode_webp(picture: Picture, quality: int = 82, marks: Marks = MARKED) -> bytes:
    """One uint8 (H, W, 3) image as the bytes of a WebP file, for pages that hold their images themselves."""
    return encoded_webp(picture, quality, marks)
