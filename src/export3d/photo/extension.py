"""What a crop shows beyond the photo's border: the photo's edges, repeated and increasingly blurred.

Nothing is known there. Edges that are only repeated give stripes; mirrored ones give a second ear or fringe, also when
blurred. Blurred in proportion to the distance from the border, shoulders go on as shoulders and a wall as a wall, and
hair that the border cuts off fades out.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export3d.face.crop import CropBox, crop, patch, reaches_beyond, reduced
from export3d.photo.fields import Pixels, as_pixels, at_pixels, blur, grid_size, on_grid, strips

_BLUR = 0.8
"""Standard deviation of the blur over the distance from the photo's border."""
_CELLS = 128
"""Of the blurred field along the farthest distance from the photo's border."""


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
    if not reaches_beyond(photo, box):
        return crop(photo, box, size)
    photo, box = reduced(photo, box, size, 1.0 + 2.0 * around)
    height, width = photo.shape[:2]
    pixels, (x, y) = patch(photo, CropBox(box.centre, box.side * (1.0 + 2.0 * around)))
    places = np.arange(len(pixels), dtype=np.float64) + 0.5
    _blur(pixels, _beyond(places + x, width), _beyond(places + y, height))
    return crop(pixels, CropBox((box.centre[0] - x, box.centre[1] - y), box.side), size)


def extended(photo: Pixels, *margins: tuple[int, int]) -> Pixels:
    """The photo (H, W, 3) and what `extended_crop` shows around it.

    Args:
        margins: pixels above and below, and to the left and right of it.
    """
    pixels = np.pad(photo, (*margins, (0, 0)), "edge")
    down, across = (
        _beyond(np.arange(-before, length + after, dtype=np.float64) + 0.5, length)
        for (before, after), length in zip(margins, photo.shape[:2])
    )
    if any(map(any, margins)):
        _blur(pixels, across, down)
    return pixels


def _beyond(places: NDArray[np.float64], limit: int) -> NDArray[np.float64]:
    """How far places on an axis lie outside 0 to limit."""
    return np.asarray(np.maximum(-places, places - limit).clip(0.0), np.float64)


def _blur(pixels: Pixels, across: NDArray[np.float64], down: NDArray[np.float64]) -> None:
    """Blur pixels (h, w, 3) in place by their distance from the photo, (w,) across and (h,) down, pixels."""
    height, width = pixels.shape[:2]
    grid = grid_size(height, width, _CELLS / float(np.hypot(across.max(), down.max())))
    deviation = torch.hypot(_on_axis(down, grid[0])[:, None], _on_axis(across, grid[1])) * (_BLUR * grid[1] / width)
    sharp = field = on_grid(pixels, *grid)
    below, above = 0.0, 1.0
    while below < float(deviation.max()):
        field = torch.lerp(field, blur(sharp, above), ((deviation - below) / (above - below)).clamp(0.0, 1.0))
        below, above = above, 2.0 * above
    for rows in strips(height, width):
        beyond = (down[slice(*rows), None] > 0.0) | (across > 0.0)
        pixels[slice(*rows)][beyond] = as_pixels(at_pixels(field, rows, (0, width), height, width))[beyond]


def _on_axis(values: NDArray[np.float64], count: int) -> Tensor:
    """Values of an axis' pixels at the centres of its cells."""
    return torch.from_numpy(values[((np.arange(count) + 0.5) * (len(values) / count)).astype(int)]).float()
