"""Reads the frames of animated WebP and PNG files with Pillow.

FFmpeg reads still WebP images only, and it decompresses the texts of a PNG without a limit.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from export3d import files
from export3d.errors import BadVideo

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

log = logging.getLogger(__name__)

_PNG = b"\x89PNG\r\n\x1a\n"
_MOST_CHUNKS = 1000
"""Chunks of a PNG before its pixels."""
_ANIMATED, _TRANSPARENT = 0x02, 0x10
"""Flags in byte 20 of a WebP."""
_SHORTEST_S, _USUAL_S = Fraction(10, 1000), Fraction(100, 1000)
"""Durations of at most 10 ms become 100 ms, as in browsers."""


def is_animated(path: Path) -> bool:
    """Whether a file is an animated WebP, or a PNG with animation control (acTL) before its pixels (IDAT)."""
    with path.open("rb") as file:
        head = file.read(30)
        if head[:8] != _PNG:
            return len(head) == 30 and head[:4] + head[8:16] == b"RIFFWEBPVP8X" and bool(head[20] & _ANIMATED)
        file.seek(len(_PNG))
        for _ in range(_MOST_CHUNKS):
            chunk = file.read(8)
            if len(chunk) < 8 or chunk[4:] in (b"acTL", b"IDAT"):
                return chunk[4:] == b"acTL"
            file.seek(int.from_bytes(chunk[:4], "big") + 4, io.SEEK_CUR)
    return False


def frames(path: Path, max_side: int) -> Iterator[tuple[NDArray[np.uint8], Fraction]]:
    """Frames of an animated WebP or PNG, composed one at a time; only the compressed file may be held in memory.

    Args:
        path: a file that `is_animated`.
        max_side: longest side, pixels.

    Yields:
        uint8 (H, W, 3) RGB over white, and the frame's duration in seconds.

    Raises:
        BadVideo: on the first `next`, if the images are too large or no frame can be decoded.
    """
    width, height = _size(files.sniff(path, 30))
    if max(width, height) > max_side:
        raise BadVideo(f"{path} is {width} x {height}; make it at most {max_side} pixels a side")
    image: ImageFile | None = None
    number = count = 0
    end = 1
    try:
        while number < end:
            try:
                if image is None:
                    image = _opened(path)
                    end = getattr(image, "n_frames", 1)
                    number = int(image.info.get("default_image", False))  # a PNG for readers that show no animation
                image.seek(number)
                pixels = _over_white(image)
                duration = Fraction(image.info.get("duration", 0)).limit_denominator(1000) / 1000
            except Exception as problem:  # Pillow's plugins raise what their parsing happens to raise
                if count == 0:
                    raise BadVideo(
                        f"{path} holds no frame that can be decoded ({files.reason(problem)}): it is damaged or "
                        "incomplete; copy it again"
                    ) from problem
                log.warning("%s is damaged: only %d of %d frames could be decoded", path, count, end - number + count)
                return
            number, count = number + 1, count + 1
            yield pixels, duration if duration > _SHORTEST_S else _USUAL_S
    finally:
        if image is not None:
            image.close()


def _over_white(image: ImageFile) -> NDArray[np.uint8]:
    from PIL import Image

    if not image.has_transparency_data:
        return np.array(image.convert("RGB"))
    pixels = image.convert("RGBA")
    return np.array(Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels).convert("RGB"))


def _size(head: bytes) -> tuple[int, int]:
    """Width and height, pixels, from the first 30 bytes."""
    if head[:8] == _PNG:
        return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
    return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1


def _opened(path: Path) -> ImageFile:
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size is checked before
        if files.sniff(path, 8) == _PNG:
            return Image.open(path, formats=["PNG"])
        data = bytearray(path.read_bytes())
        data[20] |= _TRANSPARENT  # some writers omit it although frames are transparent
        return Image.open(io.BytesIO(data), formats=["WEBP"])
