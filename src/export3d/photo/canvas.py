"""Which pixels a frame has: the whole photo or the face crop, at the photo's own resolution or at a given size."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export3d.errors import ConfigError
from export3d.face.crop import CropBox, reaches_beyond
from export3d.photo.extension import extended, extended_crop
from export3d.photo.options import NATIVE, Frame, Size, parse_size

log = logging.getLogger(__name__)

Picture = NDArray[np.uint8]

LONG_SIDE = 1920
"""Longest side of the frames of a video of native size, pixels."""
MOST_PIXELS = 36_000_000
"""Of a frame of the whole photo."""
MARGIN = 0.25
"""What frames may look up around the face crop, and around a photo that ends near it, in crop sides."""
_NEAR = 0.5
"""A photo ends near a face crop if it ends within so many crop sides of it."""


@dataclass(frozen=True)
class Canvas:
    """A part of a photo on the pixel grid of the frames.

    Attributes:
        image: uint8 (H, W, 3), the photo on this grid; beyond its border its colours continue smoothly.
        scale: pixels of the grid per pixel of the photo.
        corner: (x, y) where the grid begins in the photo, pixels of the photo.
        limits: left, top, right and bottom of what may be looked up. Of the whole photo its border, since shoulders
            end there; but above it, where it may cut hair, all of the image.
        window: (rows, columns) of the image that a frame shows: an even number of each.
        photo: (rows, columns) of the image that lie in the photo.
        whole: whether frames show the whole photo, so that the face crop's border must not be seen.
    """

    image: Picture
    scale: float
    corner: tuple[float, float]
    limits: tuple[float, float, float, float]
    window: tuple[slice, slice]
    photo: tuple[slice, slice]
    whole: bool

    def place(self, box: CropBox) -> CropBox:
        """A square of the photo on the grid."""
        x, y = (np.array(box.centre) - self.corner) * self.scale
        return CropBox((float(x), float(y)), box.side * self.scale)


def canvas(
    photo: Picture,
    box: CropBox,
    size: Size = NATIVE,
    frame: Frame = "photo",
    long_side: int | None = LONG_SIDE,
    others: Sequence[CropBox] = (),
) -> Canvas:
    """The pixel grid of a photo's frames.

    Args:
        photo: uint8 (H, W, 3).
        box: the face crop (of several, the largest).
        size: pixels across the face crop; "native": the photo's own. Odd numbers lose one pixel.
        frame: "photo" shows all of it, "crop" the face crop.
        long_side: of frames of native size; larger photos are scaled down. None: no limit.
        others: the other face crops. If the photo ends near one, the image reaches beyond the photo.

    Raises:
        ConfigError: a size or frame that is not possible.

    A size above the photo's own is not reached: the photo's own is used, which the log says. So are frames of the whole
    photo of more than `MOST_PIXELS`, for which memory would not do.
    """
    size = parse_size(size)
    if frame not in ("photo", "crop"):
        raise ConfigError(f"the frame {frame!r} is not possible; give photo or crop")
    height, width = photo.shape[:2]
    shown = max(height, width) if frame == "photo" else box.side
    if size == NATIVE:
        scale = 1.0 if long_side is None else min(1.0, long_side / shown)
    else:
        scale = size / box.side
        if scale > 1.0:
            log.warning(
                "the face crop has %d x %d pixels, fewer than the size of %d; its own size is used",
                *(_even(box.side), _even(box.side), size),
            )
            scale = 1.0
    if frame == "photo":
        most = (MOST_PIXELS / (height * width)) ** 0.5
        if scale > most:
            log.warning("the photo has %d megapixels; frames of it have %d", height * width / 1e6, MOST_PIXELS / 1e6)
        scale = min(scale, most)
        near = any(reaches_beyond(photo, CropBox(one.centre, (1 + 2 * _NEAR) * one.side)) for one in (box, *others))
        return _whole(photo, scale, round(MARGIN * box.side * scale) if near else 0)
    return _cropped(photo, box, scale)


def _whole(photo: Picture, scale: float, margin: int) -> Canvas:
    height, width = (_even(side * scale) for side in photo.shape[:2])
    image = photo
    if scale != 1.0:
        image = np.asarray(
            Image.fromarray(photo).resize(
                (width, height), Image.Resampling.LANCZOS, box=(0, 0, width / scale, height / scale)
            )
        )
    limits = (float(margin), 0.0, photo.shape[1] * scale + margin, photo.shape[0] * scale + margin)
    window = slice(margin, margin + height), slice(margin, margin + width)
    image = extended(image, (margin, margin), (margin, margin)) if margin else image[window]
    return Canvas(image, scale, (-margin / scale, -margin / scale), limits, window, window, True)


def _cropped(photo: Picture, box: CropBox, scale: float) -> Canvas:
    size = _even(box.side * scale)
    margin = round(MARGIN * size)
    corner = box.corner - margin / scale
    if scale == 1.0:
        corner = np.round(corner)  # on the photo's own pixels, so that they are not resampled
    side = (size + 2 * margin) / scale
    centre = corner + side / 2
    image = extended_crop(photo, CropBox((float(centre[0]), float(centre[1])), side), size + 2 * margin)
    shown = slice(margin, margin + size)
    limits = (0.0, 0.0, float(image.shape[1]), float(image.shape[0]))
    x, y = (_inside(first, length, scale, len(image)) for first, length in zip(corner, photo.shape[1::-1]))
    return Canvas(image, scale, (float(corner[0]), float(corner[1])), limits, (shown, shown), (y, x), False)


def _inside(first: float, length: int, scale: float, count: int) -> slice:
    """Of `count` pixels of an axis that begins at `first`, those that lie in the photo."""
    return slice(max(int(np.ceil(-first * scale)), 0), min(int((length - first) * scale), count))


def _even(length: float) -> int:
    return max(int(round(length, 3)) // 2 * 2, 2)
