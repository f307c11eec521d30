"""Writing the mark: the payload's tile is added to luminance with a strength that follows local activity."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export3d.errors import ShapeError
from export3d.provenance.watermark import code, pattern

FLAT_STRENGTH = 0.7
"""Local rms of the mark where the image is flat, grey levels."""
STRENGTH_PER_ACTIVITY = 0.3
"""What a mean step of one grey level between neighbouring canonical pixels adds to it."""
STRONGEST = 5.0
LARGEST_ERROR = 255.0**2 / 10**4.25
"""Mean squared error of a marked frame at most: 42.5 dB. At 41 dB, magnified skin looks grainy."""


def check_frame(frame: Any) -> NDArray[np.uint8]:
    """`frame` if it is uint8 (H, W, 3) and not empty; otherwise raises ShapeError."""
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        kind = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise ShapeError(f"a frame for the watermark is {kind}; give uint8 (H, W, 3), RGB")
    if not frame.size:
        raise ShapeError(f"a frame for the watermark is empty, {frame.shape}; give uint8 (H, W, 3), RGB")
    return frame


class Watermark:
    """The invisible mark of one payload, for frames of any size."""

    def __init__(self, payload: int) -> None:
        code.encode(payload)
        self.payload = payload
        self._pattern = lru_cache(maxsize=4)(lambda height, width: pattern.over_image(payload, height, width))

    def apply(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A marked copy of a frame uint8 (H, W, 3)."""
        check_frame(frame)
        height, width = frame.shape[:2]
        added = strength(frame) * self._pattern(height, width)
        flat = added.ravel()
        error = float(flat @ flat) / added.size
        if error > LARGEST_ERROR:
            added *= np.float32((LARGEST_ERROR / error) ** 0.5)
        marked = np.rint(added).astype(np.int16)[:, :, None] + frame
        return np.asarray(np.clip(marked, 0, 255, out=marked), np.uint8)


def strength(frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(H, W) local rms of the mark, grey levels."""
    height, width = frame.shape[:2]
    luminance = Image.fromarray(frame).convert("L")
    rows, columns = pattern.canonical_size(height, width)
    size = (max(1, round(columns)), max(1, round(rows)))
    if luminance.size != size:
        luminance = luminance.resize(size, Image.Resampling.BOX, reducing_gap=1.0)
    grey = np.asarray(luminance, np.float32)
    steps = np.zeros_like(grey)
    steps[:, :-1] += np.abs(np.diff(grey, axis=1))
    steps[:-1, :] += np.abs(np.diff(grey, axis=0))
    grid = (max(1, size[0] // 4), max(1, size[1] // 4))
    activity = np.asarray(Image.fromarray(steps).resize(grid, Image.Resampling.BOX))
    rms = np.minimum(FLAT_STRENGTH + STRENGTH_PER_ACTIVITY * activity, STRONGEST)
    return np.asarray(Image.fromarray(rms).resize((width, height), Image.Resampling.BILINEAR))
