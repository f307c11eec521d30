"""What a crop shows beyond the photo's border: the photo's edges, repeated and increasingly blurred.

Nothing is known there. Edges that are only repeated give stripes; mirrored ones give a second ear or fringe, also when
blurred. Blurred in proportion to the distance from the border, shoulders go on as shoulders and a wall as a wall, and
hair that the border cuts off fades out.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from export3d.face.crop import CropBox, crop, patch
from export3d.photo.fields import Pixels, as_pixels, at_pixels, blur, grid_size, on_grid, strips

_BLUR = 0.8
"""Standard deviation of the blur over the distance from the photo's border."""
_GRID = 512
"""Most cells of the blurred field along a side."""


def share_outside(photo: Pixels, box: CropBox) -> float:
    """Share of a square's area that lies beyond the photo's border, 0 to 1."""
    limits = np.array(photo.shape[1::-1])
    inside = np.minimum(box.corner + box.side, limits) - np.maximum(box.corner, 0.0)
    return float(1.0 - np.prod(inside.clip(0.0) / box.side))


def extended_crop(photo: Pixels, box: CropBox, size: int, around: float = 0.0) -> Pixels:
    """As `face.crop.crop`, but beyond the photo's border its edges go on increasingly blurred.

    Args:
        photo: uint8 (H, W, 3).
        box: the square. If it lies inside the photo, the result is that of `crop`, to the bit.
        size: pixels across the result.
        around: sides of the square by which the blur sees beyond it; squares that reach equally far match.

    Returns:
        uint8 (size, size, 3).
    """
    height, width = photo.shape[:2]
    if (box.corner >= 0.0).all() and (box.corner + box.side <= (width, height)).all():
        return crop(photo, box, size)
    pixels, (x, y) = patch(photo, CropBox(box.centre, box.side * (1.0 + 2.0 * around)))
    places = np.arange(len(pixels), dtype=np.float64) + 0.5
    pixels = _blurred(pixels, _beyond(places + x, width), _beyond(places + y, height))
    return crop(pixels, CropBox((box.centre[0] - x, box.centre[1] - y), box.side), size)


def _beyond(places: NDArray[np.floating], limit: int) -> NDArray[np.floating]:
    """How far places on an axis lie outside 0 to limit."""
    return np.maximum(-places, places - limit).clip(0.0)


def _blurred(pixels: Pixels, across: NDArray[np.floating], down: NDArray[np.floating]) -> Pixels:
    """Pixels (h, h, 3) blurred in proportion to their distance from the photo, (h,) along each axis; equal inside."""
    size = len(pixels)
    grid = grid_size(size, size, _GRID / size)
    scale = grid[0] / size
    cells = ((np.arange(grid[0]) + 0.5) / scale).astype(np.int64)
    distance = np.hypot(across[None, cells], down[cells, None])
    deviation = torch.from_numpy(distance * (_BLUR * scale)).float()
    sharp = field = on_grid(pixels, *grid)
    below, above = 0.0, 1.0
    while below < float(deviation.max()):
        field = torch.lerp(field, blur(sharp, above), ((deviation - below) / (above - below)).clamp(0.0, 1.0))
        below, above = above, 2.0 * above
    out = pixels.copy()
    for rows in strips(size, size):
        beyond = (down[slice(*rows), None] > 0.0) | (across[None, :] > 0.0)
        out[slice(*rows)][beyond] = as_pixels(at_pixels(field, rows, (0, size), size, size))[beyond]
    return out
