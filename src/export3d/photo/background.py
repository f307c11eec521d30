"""What is behind the people of a photo: filled in once per photo, kept, blurred or replaced."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from export3d.face.crop import CropBox
from export3d.image import read_image
from export3d.photo.fields import (
    Pixels,
    as_pixels,
    at_pixels,
    blur,
    check_photo,
    filled,
    grid_size,
    in_rows,
    on_grid,
    strips,
)
from export3d.photo.options import check_background, colour

_MARGIN = 0.012
"""Width of the margin around the people whose pixels are filled in too, over the mean of height and width."""
_BLUR = 0.02
"""Standard deviation of the blur, over the mean of height and width."""


def plate(image: Pixels, matte: Pixels) -> Pixels:
    """The photo without its people: what is around them, continued smoothly into their place.

    Args:
        image: uint8 (H, W, 3) RGB.
        matte: uint8 (H, W), opacity of the people (`photo.matte.person_matte`).

    Returns:
        uint8 (H, W, 3); equal to the image farther than 2 % of its size, or 8 pixels, from any person. The same photo
        and matte always give the same plate.
    """
    check_photo(image, matte)
    height, width = matte.shape
    rows, columns = grid_size(height, width)
    margin = max(_MARGIN * (rows + columns) / 2, 2.0)
    person = _widened((on_grid(matte, rows, columns) > 0.02).float(), margin)
    small = on_grid(image, rows, columns)
    fill = filled(small, (person <= 0).float())
    return _blended(image, torch.cat([fill, person], 1))


def surrounding(changed: NDArray[np.bool_], boxes: Sequence[CropBox]) -> Pixels:
    """Opacity uint8 (H, W) of these pixels (H, W) and of what is near them: full on them, none farther than a margin.

    The margin is 1.5 % of the smallest face crop.
    """
    height, width = changed.shape
    rows, columns = grid_size(height, width)
    margin = 0.015 * min(box.side for box in boxes) * rows / height
    near = _widened((on_grid(changed.astype(np.uint8) * 255, rows, columns) > 0).float(), max(margin, 4.0))
    out = np.empty((height, width), np.uint8)
    for first, last in strips(height, width):
        part = at_pixels(near, (first, last), (0, width), height, width)
        out[first:last] = as_pixels(part)[..., 0]
    out[changed] = 255
    return out


def replaced(
    image: Pixels, matte: Pixels, background: str, window: tuple[slice, slice] = (slice(None), slice(None))
) -> Pixels:
    """The background alone, of the photo's size: to be laid behind its people.

    Args:
        image: uint8 (H, W, 3) RGB.
        matte: uint8 (H, W), opacity of the people.
        background: `keep` (the `plate`), `blur` (the plate, blurred: nothing of the people bleeds into it), a colour
            `#rrggbb`, or an image file, which is scaled to cover the window and cut at its centre. A file that is
            called like one of the words is written `./blur`.
        window: rows and columns that frames show; by default all.

    Returns:
        uint8 (H, W, 3).

    Raises:
        ConfigError: another text.
        BadImage: the file cannot be read.
    """
    check_photo(image, matte)
    check_background(background)
    height, width = image.shape[:2]
    if background == "keep":
        return plate(image, matte)
    if background == "blur":
        return _blurred(plate(image, matte))
    wanted = colour(background)
    if wanted is not None:
        return np.broadcast_to(np.array(wanted, np.uint8), (height, width, 3)).copy()
    picture = Image.fromarray(read_image(background))
    (top, bottom, _), (left, right, _) = (part.indices(length) for part, length in zip(window, matte.shape))
    shown = np.asarray(ImageOps.fit(picture, (right - left, bottom - top), Image.Resampling.LANCZOS))
    return np.pad(shown, ((top, height - bottom), (left, width - right), (0, 0)), "edge")


def _widened(person: Tensor, margin: float) -> Tensor:
    """1 within half the margin of a person, falling to 0 at the margin: (1, 1, h, w)."""
    reach = max(round(margin * 0.75), 1)
    wide = F.max_pool2d(person, (2 * reach + 1, 1), 1, (reach, 0))
    wide = F.max_pool2d(wide, (1, 2 * reach + 1), 1, (0, reach))
    soft = blur(wide, max(margin / 8, 0.5))
    return ((soft - 0.02) / 0.96).clamp(0, 1)


def _blended(image: Pixels, fields: Tensor) -> Pixels:
    """The image with colours (fields 0-2) over it, by an opacity (field 3)."""
    height, width = image.shape[:2]
    out = np.empty_like(image)
    for rows in strips(height, width):
        values = at_pixels(fields, rows, (0, width), height, width)
        out[rows[0] : rows[1]] = as_pixels(torch.lerp(in_rows(image, rows), values[:3], values[3:]))
    return out


def _blurred(image: Pixels) -> Pixels:
    """Gaussian blur of 2 % of the size."""
    height, width = image.shape[:2]
    rows, columns = grid_size(height, width, 4 / (_BLUR * (height + width) / 2))
    colours = blur(on_grid(image, rows, columns), _BLUR * (rows + columns) / 2)
    return _blended(image, torch.cat([colours, torch.ones_like(colours[:, :1])], 1))
