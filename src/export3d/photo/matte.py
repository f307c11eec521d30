"""Which pixels of a photo show a person: an opacity per pixel at the photo's own resolution.

A network of 256 x 256 pixels (MediaPipe's selfie segmentation) sees the whole photo and squares around the face, twice
as fine each. Its mask places the contour to a few pixels; the photo's colours do the rest. With F and B the colours of
person and background continued into the band around the contour, of variances vF and vB, a pixel I = a F + (1 - a) B
gives

    a = (I - B) . (F - B) / |F - B|^2,   variance (a^2 vF + (1 - a)^2 vB + 2 |I - a F - (1 - a) B|^2 + v0) / |F - B|^2.

That estimate is combined with the mask's, refined by a guided filter, each in inverse proportion to its variance:
before a plain wall single hairs appear, and where the background is as restless as the hair the mask decides.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from export3d.face.crop import FACE_HEIGHTS, CropBox
from export3d.face.segmenter import PersonSegmenter
from export3d.image import to_uint8
from export3d.model import Export3D
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
    mean,
    on_grid,
    strips,
)

_CROP_ON_GRID = 512
"""Cells of the grid along a side of the crop."""
_FACE = (0.22 / FACE_HEIGHTS, 0.36 / FACE_HEIGHTS)
_HAIR = (0.65, 0.65)
"""Half axes of ellipses, in sides of the crop: inside every face, and around all but the longest hair."""


def person_matte(image: Pixels, *boxes: CropBox) -> Pixels:
    """Opacity of all people in a photo; the same photo always gives the same matte.

    Args:
        image: uint8 (H, W, 3) RGB.
        boxes: crops of the faces (`face.crop.crop_box`), one or more; around them the matte is finest, and a face is
            opaque whatever the network says.

    Returns:
        uint8 (H, W): 0 background, 255 person.

    Raises:
        MissingExtra: mediapipe is not installed.
    """
    check_photo(image)
    height, width = image.shape[:2]
    side = min((box.side for box in boxes), default=float(max(height, width)))
    rows, columns = grid_size(height, width, _CROP_ON_GRID / side)
    with PersonSegmenter() as segmenter:
        mask = _mask(segmenter, image, boxes, rows, columns)
    face, hair = torch.zeros_like(mask), torch.zeros_like(mask)
    for box in boxes:
        face = torch.maximum(face, _ellipse(box, _FACE, rows, columns, height / rows))
        hair = torch.maximum(hair, _ellipse(box, _HAIR, rows, columns, height / rows))
    mask = torch.maximum(mask, face)
    return _refined(image, on_grid(image, rows, columns), mask, face, hair, side * rows / height)


def crop_mattes(model: Export3D, crops: Tensor, masks: Tensor | None = None) -> Tensor | None:
    """Opacity of the people in face crops, for `Export3D.encode`; found in as many threads as PyTorch uses.

    It takes less time than `person_matte`, and lacks the single hairs that the model's pixels do not show.

    Args:
        model: None is returned if it has no use for it.
        crops: (B, 3, H, H) in [-1, 1].
        masks: (B, 1, h, h) in 0..1, where the people are (`person_masks`); None: they are looked for.

    Returns:
        (B, 1, H, H), 0 to 1, on the crops' device: the masks, steeper, refined by a guided filter of a pixel in 85.

    Raises:
        MissingExtra: mediapipe is not installed, and there are no masks.
    """
    if model.warp is None or not model.warp.config.matte:
        return None
    size, crops = crops.shape[-1], crops.detach().float()
    masks = (person_masks(crops) if masks is None else masks).to(crops.device)
    with torch.no_grad():
        steep = F.interpolate(masks, (size, size), mode="bilinear", align_corners=False)
        steep = ((steep - 0.35) / 0.3).clamp(0, 1)
        small = (crops + 1) / 2
        field = _guided(small, steep, max(size // 85, 1))
        opacity = ((field[:, :3] * small).sum(1, True) + field[:, 3:]).clamp(0, 1)
        return ((opacity - 0.04) / 0.92).clamp(0, 1)


def person_masks(crops: Tensor) -> Tensor:
    """Probability of a person in face crops, as the network gives it.

    Args:
        crops: (B, 3, H, H) in [-1, 1].

    Returns:
        (B, 1, 256, 256) in 0..1, on the CPU.

    Raises:
        MissingExtra: mediapipe is not installed.
    """
    parts = torch.tensor_split(crops.detach().float().cpu(), min(torch.get_num_threads(), len(crops)))
    with ThreadPoolExecutor(len(parts)) as pool:
        return torch.cat(list(pool.map(_person_masks, parts)))


def _person_masks(crops: Tensor) -> Tensor:
    whole = (0.0, 0.0, float(crops.shape[-1]), float(crops.shape[-1]))
    with PersonSegmenter() as segmenter:
        return torch.stack([torch.from_numpy(segmenter.mask(to_uint8(crop), whole))[None] for crop in crops])


def person_share(image: Pixels, box: CropBox) -> float:
    """Share of the face that the network takes for a person, 0..1; below about a half, the matte is of no use."""
    check_photo(image)
    rows, columns = grid_size(image.shape[0], image.shape[1], _CROP_ON_GRID / box.side)
    with PersonSegmenter() as segmenter:
        mask = _mask(segmenter, image, (box,), rows, columns)
    face = _ellipse(box, _FACE, rows, columns, image.shape[0] / rows) > 0.5
    return float(mask[face].mean()) if bool(face.any()) else 0.0


def foreground(image: Pixels, matte: Pixels) -> Pixels:
    """Colours of the people without what the background adds at soft edges; anywhere else, their smooth continuation.

    Forte 2021, *Approximate Fast Foreground Colour Estimation* (blur fusion): with F and B the colours of person and
    background continued smoothly, here by pull-push, the colour is F + a (I - a F - (1 - a) B).

    Args:
        image: uint8 (H, W, 3) RGB.
        matte: uint8 (H, W).

    Returns:
        uint8 (H, W, 3); equal to the image where the matte is 255.
    """
    check_photo(image, matte)
    height, width = image.shape[:2]
    grid = grid_size(height, width)
    small, alpha = on_grid(image, *grid), on_grid(matte, *grid)
    near = torch.cat([filled(small, alpha**4), filled(small, (1 - alpha) ** 4)], 1)
    out = image.copy()
    for rows in strips(height, width):
        alpha = in_rows(matte, rows)
        colours = at_pixels(near, rows, (0, width), height, width)
        person, behind = colours[:3], colours[3:]
        out[rows[0] : rows[1]] = as_pixels(
            person + alpha * (in_rows(image, rows) - alpha * person - (1 - alpha) * behind)
        )
    return out


def _mask(
    segmenter: PersonSegmenter,
    image: Pixels,
    boxes: tuple[CropBox, ...],
    rows: int,
    columns: int,
) -> Tensor:
    """Probability of a person on a grid, (1, 1, rows, columns): coarse windows first, finer ones laid over them."""
    height, width = image.shape[:2]
    down, right = height / rows, width / columns
    mask = torch.zeros(1, 1, rows, columns)
    for left, top, across, tall in _windows(boxes, rows, columns, down):
        region = (left * right, top * down, min((left + across) * right, width), min((top + tall) * down, height))
        seen = torch.from_numpy(segmenter.mask(image, region))[None, None]
        seen = F.interpolate(seen, (tall, across), mode="bilinear", align_corners=False, antialias=True)
        x = _ramp(across, left > 0, left + across < columns)
        y = _ramp(tall, top > 0, top + tall < rows)
        part = mask[..., top : top + tall, left : left + across]
        part.lerp_(seen, y[:, None] * x)
    return mask


def _windows(boxes: tuple[CropBox, ...], rows: int, columns: int, cell: float) -> list[tuple[int, int, int, int]]:
    """Left, top, width and height in cells: the whole in pieces no longer than 1.5 times their width, then squares
    around the faces, each half as large as the one before, down to the crop."""
    short, long = min(rows, columns), max(rows, columns)
    piece = min(round(1.5 * short), long)
    count = int(np.ceil(2 * (long - piece) / piece)) + 1
    windows = []
    for start in np.linspace(0, long - piece, count).round().astype(int).tolist():
        windows.append((start, 0, piece, rows) if columns >= rows else (0, start, columns, piece))
    squares: list[tuple[float, CropBox]] = []
    for box in boxes:
        side = box.side / cell
        while side < 0.75 * short or not squares:
            squares.append((side, box))
            side *= 2
    for side, box in sorted(squares, key=lambda square: -square[0]):
        across, tall = min(round(side), columns), min(round(side), rows)
        left = min(max(round(box.centre[0] / cell - across / 2), 0), columns - across)
        top = min(max(round(box.centre[1] / cell - tall / 2), 0), rows - tall)
        windows.append((left, top, across, tall))
    return windows


def _ramp(length: int, first: bool, last: bool) -> Tensor:
    """Weights along a window: 0 at its ends, 1 from a sixth inwards; 1 throughout at an end that is the photo's."""
    place = (torch.arange(length) + 0.5) / length
    up = (place * 6).clamp(max=1) if first else torch.ones(length)
    down = ((1 - place) * 6).clamp(max=1) if last else torch.ones(length)
    ramp = torch.minimum(up, down)
    return ramp * ramp * (3 - 2 * ramp)


def _ellipse(box: CropBox, axes: tuple[float, float], rows: int, columns: int, cell: float) -> Tensor:
    """1 around the centre of a crop, 0 beyond an ellipse of these half axes in sides of the crop: (1, 1, h, w)."""
    y = (torch.arange(rows) + 0.5 - box.centre[1] / cell) / (axes[1] * box.side / cell)
    x = (torch.arange(columns) + 0.5 - box.centre[0] / cell) / (axes[0] * box.side / cell)
    return (4 - 4 * (y[:, None] ** 2 + x**2).sqrt()).clamp(0, 1)[None, None]


def _enclosed(mask: Tensor, background: Tensor) -> Tensor:
    """1 where no path through the background leads from sure background to a cell: (1, 1, h, w).

    Spots of a suit or a hat that the network takes for background are enclosed; the gap below an arm is wide enough to
    be sure itself.
    """
    step = max(mask.shape[-1] // 128, 1)
    free = F.max_pool2d((mask < 0.5).float(), step, ceil_mode=True)
    reached = F.max_pool2d(grown(F.max_pool2d(background, step, ceil_mode=True), free), 3, 1, 1)
    return 1 - F.interpolate(reached, mask.shape[-2:], mode="bilinear", align_corners=False)


def _decided(mask: Tensor, crop: float) -> Tensor:
    """The mask, but background where the network hesitates over a wide area and mostly takes it for background.

    Contours and hair are unsure over a few cells. Wide areas are things behind the person, as flags, or dark clothes.
    """
    unsure = ((mask > 0.2) & (mask < 0.9)).float()
    reach = max(round(0.02 * crop), 1)
    wide = F.max_pool2d(1 - F.max_pool2d(1 - unsure, 2 * reach + 1, 1, reach), 4 * reach + 1, 1, 2 * reach) * unsure
    average = blur(mask * wide, 0.05 * crop) / blur(wide, 0.05 * crop).clamp_min(1e-6)
    return torch.lerp(mask, mask.clamp(max=0.1), wide * ((0.58 - average) / 0.04).clamp(0, 1))


def _refined(image: Pixels, small: Tensor, mask: Tensor, face: Tensor, hair: Tensor, crop: float) -> Pixels:
    """The matte at the photo's pixels from fields on the grid.

    It is nowhere below `face`. Where the mask is sure of a person, colours may open gaps to a plain background, but
    skin of nearly its colour stays opaque. Colours count for less away from `hair`; `crop` is the side of the crop in
    cells.
    """
    height, width = image.shape[:2]
    mask = _decided(mask, crop)
    steep = ((mask - 0.35) / 0.3).clamp(0, 1)
    sure_background = ((blur(steep, 0.02 * crop) < 0.03) & (mask < 0.1)).float()
    steep = torch.maximum(steep, _enclosed(mask, sure_background))
    near = blur(steep, 0.02 * crop)
    behind, behind_variance = _colours(small, sure_background, 0.02 * crop)
    unlike = ((small - behind) ** 2).sum(1, True) / (2 * behind_variance + 2e-3)
    through = torch.exp(-unlike - 50 * behind_variance)  # shows a plain background
    sure_person = ((near > 0.97) & (mask > 0.9) & (through < 0.5)).float()
    person, person_variance = _colours(small, sure_person, 0.01 * crop)
    wide = blur(steep, 0.03 * crop)
    unsure = blur(((mask > 0.15) & (mask < 0.97)).float(), 0.01 * crop)
    clear = (3 * blur(through, 0.012 * crop)).clamp(max=1)
    doubt = torch.maximum(clear, 1 - steep) * torch.maximum((1 + 3 * hair) * wide * (1 - wide), unsure * hair)
    prior_variance = 0.3**2 * doubt + 1e-5
    opaque = torch.maximum(face, _core(mask) * (1 - through))
    linear = _guided(small, steep, max(round(0.012 * crop), 1))
    fields = torch.cat([person, behind, linear, person_variance, behind_variance, prior_variance, opaque], 1)
    out = np.empty((height, width), np.uint8)
    for rows in strips(height, width):
        values = at_pixels(fields, rows, (0, width), height, width)
        alpha = _solved(in_rows(image, rows), values)
        out[rows[0] : rows[1]] = (alpha * 255).round().byte().numpy()
    return out


def _core(mask: Tensor) -> Tensor:
    """1 where the mask is sure of a person here and in the cells around, 0 elsewhere: (1, 1, h, w)."""
    return -F.max_pool2d(-((mask - 0.95) / 0.04).clamp(0, 1), 3, 1, 1)


def _solved(own: Tensor, values: Tensor) -> Tensor:
    """Opacity (h, w) of pixels (3, h, w) from the fields at them; the module's docstring has the equation."""
    person, behind, slope = values[:3], values[3:6], values[6:9]
    offset, person_variance, behind_variance, prior_variance, opaque = values[9:]
    prior = ((slope * own).sum(0) + offset).clamp(0, 1)
    apart = person - behind
    contrast = (apart * apart).sum(0) + 1e-4
    seen = (((own - behind) * apart).sum(0) / contrast).clamp(0, 1)
    rest = own - behind - seen * apart
    noise = 2 * (rest * rest).sum(0) + seen**2 * person_variance + (1 - seen) ** 2 * behind_variance + 1e-3
    variance = noise / contrast
    alpha = (prior * variance + seen * prior_variance) / (variance + prior_variance)
    return torch.maximum(((alpha - 0.04) / 0.92).clamp(0, 1), opaque)


def _colours(small: Tensor, sure: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Mean (1, 3, h, w) and variance (1, 1, h, w) of the sure cells near each cell."""
    weight = blur(sure, sigma)
    inside = weight > 0.02
    moments = blur(torch.cat([small, (small * small).sum(1, True)], 1) * sure, sigma) / weight.clamp_min(1e-6)
    moments = filled(moments, inside.float())
    average, square = moments[:, :3], moments[:, 3:]
    return average, (square - (average * average).sum(1, True)).clamp_min(0)


def _guided(guide: Tensor, values: Tensor, radius: int) -> Tensor:
    """Slope (3) and offset (1) of the values as a linear function of the guide's colours near each cell: (1, 4, h, w).

    He, Sun, Tang 2010, *Guided Image Filtering*, eq. 14-15 with a colour guide; epsilon 1e-4.
    """
    r, g, b = guide.unbind(1)
    products = torch.stack([r * r, r * g, r * b, g * g, g * b, b * b], 1)
    means = mean(torch.cat([guide, values, guide * values, products], 1), radius)
    average, value = means[:, :3], means[:, 3:4]
    x, y, z = (means[:, 4:7] - average * value).unbind(1)
    r, g, b = average.unbind(1)
    squares = means[:, 7:] - torch.stack([r * r, r * g, r * b, g * g, g * b, b * b], 1)
    rr, rg, rb, gg, gb, bb = squares.unbind(1)
    rr, gg, bb = rr + 1e-4, gg + 1e-4, bb + 1e-4
    c00, c01, c02 = gg * bb - gb * gb, rb * gb - rg * bb, rg * gb - rb * gg  # cofactors of the covariance
    c11, c12, c22 = rr * bb - rb * rb, rg * rb - rr * gb, rr * gg - rg * rg
    solved = torch.stack([c00 * x + c01 * y + c02 * z, c01 * x + c11 * y + c12 * z, c02 * x + c12 * y + c22 * z], 1)
    slope = solved / (rr * c00 + rg * c01 + rb * c02).clamp_min(1e-14)[:, None]
    return mean(torch.cat([slope, value - (slope * average).sum(1, True)], 1), radius)
