"""Reads the frames of an animated WebP with Pillow, since FFmpeg reads still WebP images only."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export3d import files
from export3d.errors import BadVideo

log = logging.getLogger(__name__)

ANIMATED = 0x02
"""Bit of byte 20 (flags of the VP8X chunk) that marks an animation."""
_TRANSPARENT = 0x10
"""Bit of the same byte that announces transparency. Some writers omit it although frames are transparent."""
_SHORTEST_MS, _USUAL_MS = 10, 100
"""Durations of at most 10 ms become 100 ms, as in browsers."""


def frames(path: Path, max_side: int) -> Iterator[tuple[NDArray[np.uint8], Fraction]]:
    """Frames of an animated WebP, composed one at a time; only the compressed file is held in memory.

    Args:
        path: a file that begins with RIFF, WEBP and VP8X.
        max_side: longest side, pixels.

    Yields:
        uint8 (H, W, 4) RGBA, and the frame's duration in seconds.

    Raises:
        BadVideo: on the first `next`, if the canvas is too large or no frame can be decoded.
    """
    from PIL import Image

    data = bytearray(path.read_bytes())
    width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    if max(width, height) > max_side:
        raise BadVideo(f"{path} is {width} x {height}; make it at most {max_side} pixels a side")
    data[20] |= _TRANSPARENT
    count = expected = 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size is checked above
            image = Image.open(io.BytesIO(data), formats=["WEBP"])
        with image:
            expected = getattr(image, "n_frames", 1)
            for number in range(expected):
                image.seek(number)
                pixels = np.array(image.convert("RGBA"))
                duration = int(image.info.get("duration", 0))
                count += 1
                yield pixels, Fraction(duration if duration > _SHORTEST_MS else _USUAL_MS, 1000)
    except (OSError, EOFError, ValueError, SyntaxError, Image.DecompressionBombError) as problem:
        if count == 0:
            raise BadVideo(
                f"{path} holds no frame that can be decoded ({files.reason(problem)}): it is damaged or incomplete; "
                "copy it again"
            ) from problem
        log.warning("%s is damaged: only %d of %d frames could be decoded", path, count, expected)
