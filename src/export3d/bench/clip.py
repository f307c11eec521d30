"""A driving clip made of the packaged portrait, so that tracking and decoding need no file of the user."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export3d.animate.drive import FPS, bundled_portrait
from export3d.animate.export import write_video
from export3d.image import read_image

PERIOD_S = 4.0
_ROLL_DEG = 6.0
_SWAY = 0.12
"""Of the frame's height: how far the face moves to each side."""


def portrait_frames(count: int, width: int = 1280, height: int = 720) -> Iterator[NDArray[np.uint8]]:
    """Frames of the packaged portrait that sways, nods and tilts before a still, blurred copy of itself.

    Yields uint8 (height, width, 3) at 25 fps; the face is about half as high as the frame.
    """
    photo = Image.fromarray(read_image(bundled_portrait()))
    behind = photo.resize((16, 16), Image.Resampling.BOX).resize((width, height), Image.Resampling.BICUBIC)
    shown = photo.resize((height, height), Image.Resampling.LANCZOS)
    for number in range(count):
        phase = 2.0 * np.pi * number / (PERIOD_S * FPS)
        turned = shown.rotate(_ROLL_DEG * np.sin(phase), Image.Resampling.BILINEAR)
        mask = Image.new("L", shown.size, 255).rotate(_ROLL_DEG * np.sin(phase), Image.Resampling.BILINEAR)
        frame = behind.copy()
        left = (width - height) // 2 + round(_SWAY * height * np.sin(phase))
        frame.paste(turned, (left, round(_SWAY * height * (1.0 - np.cos(2.0 * phase)) / 2.0)), mask)
        yield np.asarray(frame)


def write_clip(path: Path, seconds: float, width: int = 1280, height: int = 720) -> Path:
    """Write `portrait_frames` of a duration as an H.264 .mp4; raises `OutputError`."""
    write_video(path, portrait_frames(round(seconds * FPS), width, height), FPS)
    return path
