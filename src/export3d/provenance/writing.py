"""The one place that encodes generated images and videos, and marks them.

Every output carries, unless `NO_MARKS` says otherwise and the policy allows that:

- the visible label, if asked for (`label`),
- the invisible mark (`watermark`), whose payload is the statement's digest,
- plain metadata, and metadata signed by C2PA where c2pa-python is installed (`signing`).

Where several frames are laid out in one image, the image is marked, not its parts. The pixels of the same input are
always the same. A signature holds its time, so the bytes of signed files differ; without marks they are the same.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export3d import files
from export3d.errors import OutputError, PolicyError, ShapeError, check_shape
from export3d.image import encode_png
from export3d.policy import current_policy
from export3d.provenance import signing
from export3d.provenance.label import with_label
from export3d.provenance.statement import XMP_KEYWORD, Statement
from export3d.provenance.watermark.embed import Watermark
from export3d.video import VideoWriter

Pixels = NDArray[np.uint8]
Painter = Callable[[Pixels], Pixels]

UNMARKED = {
    "predictions": "images that `evaluate --save` keeps to be scored, in which marks would count as errors",
    "chart": "a drawing of numbers, which shows nobody",
}
"""What is written without marks although nobody asked for that, and why."""


@dataclass(frozen=True)
class Marks:
    """How an output is marked.

    Attributes:
        statement: what it was made from; without one the output still says that it was generated.
        label: whether it carries the visible label; the policy can ask for it too.
        wanted: False for `NO_MARKS` only.
    """

    statement: Statement = field(default_factory=Statement)
    label: bool = False
    wanted: bool = True

    def about(self, statement: Statement) -> Marks:
        """These marks with what a statement knows; what it does not know stays."""
        known = {name: value for name, value in asdict(statement).items() if value is not None}
        return replace(self, statement=replace(self.statement, **known))

    def agreed(self) -> Marks:
        """These marks, with what the policy adds.

        Raises:
            PolicyError: no marks, and the policy requires them; or the policy cannot be read.
        """
        policy = current_policy()
        if not self.wanted and policy.forbids_unmarked:
            raise PolicyError("the policy of this machine requires marks on every output; leave out --no-mark")
        return replace(self, label=self.wanted and (self.label or policy.label))


MARKED = Marks()
"""Metadata and the invisible mark, without saying what the output was made from."""
NO_MARKS = Marks(wanted=False)
"""No label, no invisible mark and no metadata; refused where the policy requires marks."""


def painter(marks: Marks) -> Painter | None:
    """What marks the pixels of frames, uint8 (H, W, 3), and returns new ones; None where nothing is to be done.

    Raises:
        PolicyError: as `Marks.agreed`.
    """
    marks = marks.agreed()
    if not marks.wanted:
        return None
    mark = _watermark(marks.statement.payload).apply
    return (lambda frame: mark(with_label(frame))) if marks.label else mark


@lru_cache(maxsize=8)
def _watermark(payload: int) -> Watermark:
    """Kept, because the pattern of a new payload takes longer than marking a frame."""
    return Watermark(payload)


def painted(image: Pixels, marks: Marks = MARKED) -> Pixels:
    """An image, uint8 (H, W, 3), as `write_image` writes its pixels; raises `PolicyError` as `Marks.agreed`."""
    paint = painter(marks)
    return image if paint is None else paint(image)


def video_writer(
    path: str | os.PathLike[str],
    fps: float | Fraction,
    size: tuple[int, int] | int,
    audio_from: str | os.PathLike[str] | None = None,
    *,
    audio_start_s: float = 0.0,
    timed: bool = False,
    marks: Marks = MARKED,
) -> VideoWriter:
    """A `VideoWriter` that marks its frames in the encoding thread and signs the file before it appears.

    Args:
        path, fps, size, audio_from, audio_start_s, timed: see `VideoWriter`.
        marks: what the video says about itself.

    Raises:
        PolicyError: as `Marks.agreed`.
        ConfigError: the certificate that signs cannot be used; known here, before the frames are made.
    """
    paint = painter(marks)
    if paint is not None and signing.available():
        signing.check()
    return VideoWriter(
        path,
        fps,
        size,
        audio_from,
        audio_start_s=audio_start_s,
        timed=timed,
        metadata=marks.statement.tags() if marks.wanted else None,
        paint=paint,
        seal=partial(_sign, statement=marks.statement, shown=Path(path)) if marks.wanted else None,
    )


def write_image(path: str | os.PathLike[str], image: Pixels, marks: Marks = MARKED) -> None:
    """Write one uint8 (H, W, 3) image as PNG, whole or not at all.

    Raises:
        OutputError: it cannot be written.  PolicyError: as `Marks.agreed`.
    """
    paint = painter(marks)
    _check(image)
    if paint is None:
        data = encode_png(image)
    else:
        data = encode_png(paint(image), {XMP_KEYWORD: marks.statement.xmp()})
        if signing.available():
            data = signing.signed(data, ".png", marks.statement)
    files.write_bytes(path, data)


def encoded_webp(image: Pixels, quality: int, marks: Marks = MARKED) -> bytes:
    """One uint8 (H, W, 3) image as the bytes of a WebP file, for pages that hold their images themselves.

    It is not signed: a page holds hundreds of such images, and the same results give the same page.

    Raises:
        PolicyError: as `Marks.agreed`.
    """
    return _encoded(image, marks, "WEBP", quality=quality, method=2)


def encoded_jpeg(image: Pixels, quality: int, marks: Marks = MARKED) -> bytes:
    """As `encoded_webp`, for a JPEG file: larger, and encoded several times as fast, for what is shown live."""
    return _encoded(image, marks, "JPEG", quality=quality, subsampling=0)


def _encoded(image: Pixels, marks: Marks, kind: str, **options: Any) -> bytes:
    from PIL import Image

    paint = painter(marks)
    _check(image)
    picture = Image.fromarray(np.ascontiguousarray(image if paint is None else paint(image)))
    if paint is not None:
        options["xmp"] = marks.statement.xmp().encode()
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def write_unmarked(path: str | os.PathLike[str], image: Pixels, *, reason: str, level: int = 6) -> None:
    """Write one uint8 (H, W, 3) image as PNG without marks.

    Args:
        path: the file.
        image: the pixels.
        reason: a key of `UNMARKED`.
        level: PNG's compression, 0 to 9.

    Raises:
        KeyError: another reason.  OutputError: it cannot be written.
        PolicyError: the image shows people, and the policy requires marks.
    """
    check_unmarked(reason)
    _check(image)
    files.write_bytes(path, encode_png(image, {}, level))


def check_unmarked(reason: str) -> None:
    """Refuse before any work what `write_unmarked` would refuse; raises `PolicyError`."""
    UNMARKED[reason]
    if reason != "chart" and current_policy().forbids_unmarked:
        raise PolicyError(f"the policy of this machine requires marks on every output, and {reason} have none")


def _check(image: Pixels) -> None:
    check_shape(image, "H W 3", "a picture")
    if image.dtype != np.uint8:
        raise ShapeError(f"a uint8 picture is needed, got {image.dtype}")


def _sign(made: Path, statement: Statement, shown: Path) -> None:
    """Sign a complete file in its place, if that is possible here; on failure the file is left as it was.

    Args:
        made: the file, which has a temporary name.
        statement: what is said of it.
        shown: how messages call it.
    """
    if not signing.available():
        return
    handle, name = tempfile.mkstemp(prefix=f"{made.stem}.", suffix=made.suffix, dir=made.parent)
    os.close(handle)
    signed = Path(name)
    try:
        signing.sign(made, signed, statement)
        signed.replace(made)
    except OutputError as problem:
        raise OutputError(str(problem).replace(str(signed), str(shown))) from problem
    finally:
        signed.unlink(missing_ok=True)
