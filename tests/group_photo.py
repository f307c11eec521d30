"""A group photo composed of the bundled portrait: heads of several sizes, tones and directions on one background."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

GROUND = (208, 198, 200)
"""Colour of the background, near that of the portrait."""
THREE = ((110, 110, 200), (290, 115, 160), (450, 110, 180))
"""The left face is the largest, the middle one the smallest."""


def group_photo(
    portrait: np.ndarray, places: Sequence[tuple[int, int, int]] = THREE, size: tuple[int, int] = (220, 560)
) -> np.ndarray:
    """uint8 (H, W, 3): the astronaut's head `width` pixels wide with its face at each (x, y, width).

    Every second head is mirrored, and each is darker than the one before. Heads fade into the background.
    """
    head = Image.fromarray(portrait[:256, 96:352])
    photo = Image.new("RGB", size[::-1], GROUND)
    for number, (x, y, width) in enumerate(places):
        seen = ImageOps.mirror(head) if number % 2 else head
        seen = seen.point(lambda value, tone=0.92**number: round(value * tone))
        seen = seen.resize((width, width), Image.Resampling.LANCZOS)
        middle = 0.504 if number % 2 == 0 else 0.496  # the face's centre in the head
        photo.paste(seen, (round(x - middle * width), round(y - 0.487 * width)), _fade(width))
    return np.asarray(photo)


def _fade(width: int) -> Image.Image:
    """An oval window with soft borders."""
    across = np.linspace(-1.0, 1.0, width)
    radius = np.hypot(*np.meshgrid(across, across))
    return Image.fromarray((np.clip((1.0 - radius) / 0.15, 0.0, 1.0) * 255).astype(np.uint8))
