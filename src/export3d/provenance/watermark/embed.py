"""Writing the mark: the payload's tile is added to luminance, stronger where the image is busy.

Every channel of a pixel gets the same whole number of grey levels. The mark's local rms follows local activity, the
masking of M. Maes, T. Kalker, J.-P. Linnartz, J. Talstra, G. Depovere, J. Haitsma, "Digital watermarking for DVD video
copy protection", IEEE Signal Processing Magazine 17 (2000), and the whole is reduced where it would exceed
LARGEST_ERROR. Rounding keeps the pattern in flat areas: about half of the pixels change there, most by one level.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export3d.errors import ShapeError
from export3d.provenance.watermark import code, pattern

FLAT_STRENGTH = 0.5
"""Local rms of the mark where the image is flat, grey levels."""
STRENGTH_PER_ACTIVITY = 0.25
"""What a mean step of one grey level between neighbouring canonical pixels adds to it."""
STRONGEST = 5.0
LARGEST_ERROR = 255.0**2 / 10**4.36
"""Mean squared difference before rounding, which adds 1/12 at most: the PSNR is at least 43.3 dB. At 42.6 dB, smooth
skin and walls of small frames look grainy beside the original."""
_CELL = 8
"""Side of the squares in which activity is measured, canonical pixels."""


def check_frame(frame: Any) -> NDArray[np.uint8]:
    """`frame` if it is uint8 (H, W, 3) and not empty; otherwise raises ShapeError."""
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        kind = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise ShapeError(f"a frame for the watermark is {kind}; give uint8 (H, W, 3), RGB")
    if not frame.size:
        raise ShapeError(f"a frame for the watermark is empty, {frame.shape}; give uint8 (H, W, 3), RGB")
    return frame


class Watermark:
    """The invisible mark of one payload of 32 bits, for frames of any size; raises ConfigError for other payloads.

    The pattern depends on payload and size alone, so it is static in a video. Those of the last four sizes are kept.
    """

    def __init__(self, payload: int) -> None:
        code.encode(payload)
        self.payload = payload
        self._pattern = lru_cache(maxsize=4)(partial(pattern.over_image, payload))

    def apply(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A marked copy of a frame uint8 (H, W, 3), RGB; its PSNR is at least 43.3 dB.

        Frames of fewer than about 100 pixels on their shorter side keep no readable mark.
        """
        check_frame(frame)
        added = strength(frame) * self._pattern(*frame.shape[:2])
        values = added.ravel()
        error = float(values @ values) / values.size
        if error > LARGEST_ERROR:
            added *= np.float32(math.sqrt(LARGEST_ERROR / error))
        marked = np.rint(added).astype(np.int16)[:, :, None] + frame
        return np.asarray(np.clip(marked, 0, 255, out=marked), np.uint8)


def strength(frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(H, W) local rms of the mark, grey levels, before the limit on the whole image.

    Activity is the squared mean square root of the steps between neighbouring pixels: an edge in a flat area counts
    less than texture, since it masks less.
    """
    height, width = frame.shape[:2]
    luminance = Image.fromarray(frame).convert("L")
    rows, columns = pattern.canonical_size(height, width)
    size = (max(1, round(columns)), max(1, round(rows)))
    if luminance.size != size:
        luminance = luminance.resize(size, Image.Resampling.BOX, reducing_gap=1.0)
    grey = np.asarray(luminance, np.float32)
    steps = np.zeros_like(grey)
    steps[:, :-1] += np.abs(np.diff(grey, axis=1))
    steps[:-1] += np.abs(np.diff(grey, axis=0))
    cells = (max(1, size[0] // _CELL), max(1, size[1] // _CELL))
    roots = np.asarray(Image.fromarray(np.sqrt(steps)).resize(cells, Image.Resampling.BOX))
    rms = np.minimum(FLAT_STRENGTH + STRENGTH_PER_ACTIVITY * roots * roots, STRONGEST)
    return np.asarray(Image.fromarray(rms).resize((width, height), Image.Resampling.BILINEAR))
