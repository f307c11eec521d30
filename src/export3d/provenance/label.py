"""The visible label: "AI-generated" in the lower right corner of a frame, where a contact sheet has its last image."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels = NDArray[np.uint8]

TEXT = "AI-generated"
_HEIGHT = 0.042
"""Size of the font, parts of the frame's shorter side."""
_SMALLEST_PX = 9
"""Below this size the font cannot be read."""
_WIDEST = 0.9
"""Part of the frame's width that the label takes at most; in narrower frames it shrinks and stops being readable."""
_PLATE, _PLATE_ALPHA, _INK = 16, 0.6, 255


def with_label(frame: Pixels) -> Pixels:
    """A copy of a frame, uint8 (H, W, 3), with the label: white on a dark plate, away from where faces are.

    The label's height follows the shorter side; it is readable from 128 pixels on. Frames of one size have it at the
    same place, so it stands still in a video.
    """
    out = frame.copy()
    height, width = frame.shape[:2]
    ink, keep, top, left = _plate(height, width)
    part = out[top : top + ink.shape[0], left : left + ink.shape[1]]
    part[:] = (part * keep[..., None] + ink[..., None] + 0.5).astype(np.uint8)
    return out


@lru_cache(maxsize=8)
def _plate(height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32], int, int]:
    """For a frame of this size: what to add, what share of the frame to keep (h, w), and the plate's top and left."""
    size = max(_HEIGHT * min(height, width), _SMALLEST_PX)
    text_width = ImageFont.load_default(size).getlength(TEXT)
    size *= min(1.0, _WIDEST * width / (text_width + size), _WIDEST * height / (1.5 * size))
    font = ImageFont.load_default(max(size, 1.0))
    box = font.getbbox(TEXT)
    pad = max(1, round(0.4 * size))
    shape = (round(box[3] - box[1]) + 2 * pad, round(box[2] - box[0]) + 2 * pad)
    canvas = Image.new("L", shape[::-1], 0)
    ImageDraw.Draw(canvas).text((pad - box[0], pad - box[1]), TEXT, fill=255, font=font)
    letters = np.asarray(canvas, np.float32) / 255.0
    margin = max(1, round(0.5 * size)) if min(height, width) > max(shape) else 0
    top, left = max(height - shape[0] - margin, 0), max(width - shape[1] - margin, 0)
    letters = letters[: height - top, : width - left]
    keep = (1.0 - _PLATE_ALPHA) * (1.0 - letters)
    ink = _INK * letters + _PLATE_ALPHA * _PLATE * (1.0 - letters)
    return ink.astype(np.float32), keep.astype(np.float32), top, left
