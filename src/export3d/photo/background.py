"""What is behind the people of a photo: filled in once per photo, kept, blurred or replaced."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
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
    grown,
    in_rows,
    on_grid,
    strips,
)
from export3d.photo.matte import foreground
from export3d.photo.options import check_background, colour

_MARGIN = 0.012
"""Width of the margin around the people whose pixels are filled in too, over the mean of height and width."""
_FOUND = 0.04
"""Opacity from which a pixel of a detailed background counts as one of a person."""
_DETAIL = 0.02, 0.05
"""Standard deviation of a background over two margins, 0..1, from which its details matter, and wholly."""
_BESIDE = 6.0
"""Around the margin, in margins: what lies there hardly counts as detail if the background goes on beyond it."""
_NEIGHBOURS = 5
"""Cells around a cell from which a detailed background goes on."""
_HAIR = 0.06
"""Difference from the wall, 0..1, of loose hair."""
_STRAND = 0.12
"""Crop sides that loose hair reaches beyond the matte at most."""
_REACH = 0.4
"""Crop sides around a crop, less than those over which `photo.compositor` fades its motion out."""
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
    person, small = _people(image, matte)
    return _blended(image, torch.cat([_behind(small, person), person], 1))


def apart(
    image: Pixels,
    matte: Pixels,
    boxes: Sequence[CropBox],
    photo: tuple[slice, slice] = (slice(None), slice(None)),
) -> tuple[Pixels, Pixels]:
    """What is behind the people, as `plate` has it, and what moves with them.

    Before a plain wall a margin of surroundings and loose hair beyond it move with the people, so that no hair is cut
    off; nobody sees the wall move. Before a background with details, which would be seen to move, the matte alone
    decides, as far as heads reach.

    Args:
        image: uint8 (H, W, 3) RGB.
        matte: uint8 (H, W), opacity of the people.
        boxes: crops of their faces; the margin is 1.5 % of the smallest.
        photo: rows and columns that lie in the photo; what lies beyond says nothing of details.

    Returns:
        uint8 (H, W, 3), and uint8 (H, W, 4) colours and opacity. The latter laid over the former is the photo, before a
        plain wall to the bit.
    """
    check_photo(image, matte)
    height, width = matte.shape
    person, small = _people(image, matte)
    shown = np.zeros_like(matte)
    shown[photo] = 255
    inside = (on_grid(shown, *person.shape[-2:]) >= 1.0).float()
    fill = _behind(small, person, inside)
    detail = _detailed(small, person, inside)
    side = min(box.side for box in boxes) * person.shape[-2] / height
    loose = _loose_hair(small, person, detail, _STRAND * side)
    if bool(((loose > 0) & (person < 1)).any()):
        person = torch.maximum(person, _widened(loose, max(0.3 * _margin(*person.shape[-2:]), 3.0)))
        fill = _behind(small, person, inside)
    margin = 0.015 * side
    near = _widened((person > 0).float(), max(margin, 4.0)) * torch.maximum(inside, on_grid(matte, *inside.shape[-2:]))
    plain, colours = 1.0 - detail * _reached(boxes, image, person.shape[-2:]), image
    if bool(((plain < 1.0) & (near > 0.0)).any()):
        colours = foreground(image, matte)
        close = _widened(_found(on_grid(matte, *person.shape[-2:]), _FOUND), 2.0)
        fringe = _widened((close > 0).float(), 3.0)  # has the people's colours
        fill = torch.lerp(_continued(small, fringe), fill, plain)
        person = torch.lerp(close, person, plain)
    fields = torch.cat([fill, person, near * plain, plain], 1)
    behind, moving = np.empty_like(image), np.empty((height, width, 4), np.uint8)
    for rows in strips(height, width):
        own, values = in_rows(image, rows), at_pixels(fields, rows, (0, width), height, width)
        part = slice(*rows)
        behind[part] = as_pixels(torch.lerp(own, values[:3], values[3:4]))
        close = in_rows(matte, rows)
        opacity = torch.maximum(values[4:5], close)
        share = torch.where(opacity > 0.0, close / opacity, 1.0) * (1.0 - values[5:])
        moved = torch.lerp(own, in_rows(colours, rows), share)  # the margin has the wall's colours
        moving[part] = np.concatenate([as_pixels(moved), as_pixels(opacity)], axis=2)
    return behind, moving


def _people(image: Pixels, matte: Pixels) -> tuple[Tensor, Tensor]:
    """On a photo's grid: where people and a margin around them are filled in, and the photo."""
    height, width = matte.shape
    rows, columns = grid_size(height, width)
    person = _widened(_found(on_grid(matte, rows, columns), 0.02), _margin(rows, columns))
    return person, on_grid(image, rows, columns)


def _behind(small: Tensor, person: Tensor, photo: Tensor | None = None) -> Tensor:
    """What fills the people in: what is around them, in the photo (1, 1, h, w) if that is anything."""
    rest = (person <= 0).float()
    known = rest if photo is None else rest * photo
    return filled(small, known if bool(known.any()) else rest)


def _continued(small: Tensor, people: Tensor) -> Tensor:
    """The photo on its grid; where people (1, 1, h, w) are, colours and edges go on inwards from their contour.

    Telea 2004, *An Image Inpainting Technique Based on the Fast Marching Method*, by OpenCV. Where that is not
    installed or lacks a library, `filled`, which blurs them.
    """
    try:
        cv2: Any = importlib.import_module("cv2")
    except ImportError:
        return filled(small, (people <= 0).float())
    hole = (people[0, 0] > 0).byte().numpy()
    return on_grid(cv2.inpaint(as_pixels(small[0]), hole, _NEIGHBOURS, cv2.INPAINT_TELEA), *hole.shape)


def _found(opacity: Tensor, least: float) -> Tensor:
    """1 where there is a person of at least this opacity, without specks beside them: (1, 1, h, w)."""
    found, step = (opacity > least).float(), max(opacity.shape[-1] // 128, 1)
    whole, sure = (F.max_pool2d(cells, step, ceil_mode=True) for cells in (found, (opacity > 0.9).float()))
    near = F.interpolate(grown(sure, whole), scale_factor=float(step))
    return found * near[..., : found.shape[-2], : found.shape[-1]]


def _margin(rows: int, columns: int) -> float:
    return max(_MARGIN * (rows + columns) / 2, 2.0)


def _reached(boxes: Sequence[CropBox], image: Pixels, shape: Sequence[int]) -> Tensor:
    """1 in the crops of faces, falling to 0 at `_REACH` crop sides around them: (1, 1, h, w)."""
    (height, width), (rows, columns) = image.shape[:2], shape
    x = (torch.arange(columns) + 0.5) * (width / columns)
    y = (torch.arange(rows) + 0.5) * (height / rows)
    reached = torch.zeros(rows, columns)
    for box in boxes:
        across, down = (((at - centre).abs() / box.side - 0.5).clamp_min(0.0) for at, centre in zip((x, y), box.centre))
        reached = torch.maximum(reached, (1.0 - torch.hypot(across[None, :], down[:, None]) / _REACH).clamp_min(0.0))
    return reached[None, None]


def _detailed(small: Tensor, person: Tensor, photo: Tensor) -> Tensor:
    """Whether the background nearby has details that are seen to move, 0 to 1: (1, 1, h, w).

    Args:
        small: (1, 3, h, w), the photo.
        person: (1, 1, h, w), 0 where nobody is.
        photo: (1, 1, h, w), 1 inside the photo.
    """
    rest, margin = ((person <= 0) & (photo > 0)).float(), _margin(*person.shape[-2:])
    cell = max(round(2 * margin), 2)
    parts = torch.cat([small * rest, small.square() * rest, rest], 1)
    means = F.avg_pool2d(parts, cell, ceil_mode=True, count_include_pad=False)
    share = means[:, 6:]
    colour = means[:, :3] / share.clamp_min(1e-3)
    spread = (means[:, 3:6] / share.clamp_min(1e-3) - colour.square()).clamp_min(0.0).mean(1, True).sqrt()
    beside = F.avg_pool2d(_widened((person > 0).float(), _BESIDE * margin), cell, ceil_mode=True)
    share = share * (1.0 - beside).clamp_min(0.002)  # hair that the matte has missed is no detail of the background
    count = blur(share, 1.5)
    detail = filled(blur(spread * share, 1.5) / count.clamp_min(1e-5), (count / 0.05).clamp(max=1))
    detail = ((detail - _DETAIL[0]) / (_DETAIL[1] - _DETAIL[0])).clamp(0, 1)
    height, width = person.shape[-2:]
    return F.interpolate(detail, scale_factor=float(cell), mode="bilinear")[..., :height, :width]


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


def _loose_hair(small: Tensor, person: Tensor, detail: Tensor, reach: float) -> Tensor:
    """Thin lines before a plain wall that begin at a person: (1, 1, h, w), 0 or 1. The matte misses their ends.

    Args:
        small, person: see `_people`.
        detail: see `_detailed`.
        reach: how far they go, cells of the grid.
    """
    few, near = (F.avg_pool2d(x, 4, ceil_mode=True) for x in (small, (person > 0).float()))
    wall = filled(few, (_widened((near > 0).float(), reach / 4) <= 0).float())
    wall = F.interpolate(wall, scale_factor=4.0, mode="bilinear")[..., : small.shape[-2], : small.shape[-1]]
    differs = ((small - wall).abs().amax(1, True) > _HAIR) & (detail < 0.1)
    lines, begun = (F.max_pool2d(part.float(), 2, ceil_mode=True) for part in (differs, person > 0))
    thick = max(round(_margin(*person.shape[-2:]) / 3), 1)
    thin = lines * (1 - _dilated(1 - _dilated(1 - lines, thick), 2 * thick))
    hair = begun
    for _ in range(max(round(reach / 4), 1)):
        hair = torch.maximum(hair, _dilated(hair, 2) * thin)
    return F.interpolate(hair * thin, scale_factor=2.0)[..., : person.shape[-2], : person.shape[-1]]


def _dilated(mask: Tensor, reach: int) -> Tensor:
    """The largest of (2 reach + 1) x (2 reach + 1) values."""
    wide = F.max_pool2d(mask, (2 * reach + 1, 1), 1, (reach, 0))
    return F.max_pool2d(wide, (1, 2 * reach + 1), 1, (0, reach))


def _widened(person: Tensor, margin: float) -> Tensor:
    """1 within half the margin of a person, falling to 0 at the margin: (1, 1, h, w)."""
    soft = blur(_dilated(person, max(round(margin * 0.75), 1)), max(margin / 8, 0.5))
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
