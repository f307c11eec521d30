"""Smooth fields over a photo: computed on a coarse grid, read at the photo's own pixels strip by strip.

Colours, opacities and their variances change slowly. A grid of about a megapixel holds them, and only the photo itself
needs memory in proportion to its size. Fields are float32 (1, C, h, w); colours are in [0, 1]; pixel centres lie at
+0.5, as everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from export3d.errors import ShapeError

Pixels = NDArray[np.uint8]
MOST_PIXELS = 1_000_000
"""Pixels of a grid at most."""
_STRIP = 200_000


def check_photo(image: Pixels, matte: Pixels | None = None) -> None:
    """`ShapeError` unless the image is uint8 (H, W, 3) and the matte uint8 (H, W)."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ShapeError(f"an image must be uint8 (H, W, 3), got {image.dtype} {image.shape}")
    if matte is not None and (matte.dtype != np.uint8 or matte.shape != image.shape[:2]):
        raise ShapeError(f"the matte of this image must be uint8 {image.shape[:2]}, got {matte.dtype} {matte.shape}")


def grid_size(height: int, width: int, scale: float = 1.0) -> tuple[int, int]:
    """Rows and columns of the grid of a photo: by this scale of it, and of at most a megapixel."""
    scale = min(1.0, scale, (MOST_PIXELS / (height * width)) ** 0.5)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def on_grid(image: Pixels, height: int, width: int) -> Tensor:
    """uint8 (H, W) or (H, W, 3) to a field of h x w: the mean of the pixels that each cell covers."""
    small = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))
    return torch.from_numpy(small.reshape(height, width, -1)).permute(2, 0, 1)[None].float() / 255


def in_rows(image: Pixels, rows: tuple[int, int]) -> Tensor:
    """Rows of a uint8 (H, W, 3) or (H, W) image: float32 (C, rows, W) in [0, 1]."""
    part = image[rows[0] : rows[1]].astype(np.float32)
    return torch.from_numpy(part.reshape(*part.shape[:2], -1)).permute(2, 0, 1) / 255


def as_pixels(colours: Tensor) -> Pixels:
    """Float (3, h, w) in [0, 1] to uint8 (h, w, 3), rounded."""
    return np.asarray((colours.clamp(0, 1) * 255).round().byte().permute(1, 2, 0))


def strips(height: int, width: int) -> Iterator[tuple[int, int]]:
    """First and last row (exclusive) of strips of about 0.2 megapixels."""
    rows = max(_STRIP // width, 1)
    for first in range(0, height, rows):
        yield first, min(first + rows, height)


def at_pixels(field: Tensor, rows: tuple[int, int], columns: tuple[int, int], height: int, width: int) -> Tensor:
    """A field at pixels of the photo of height x width, bilinear: (C, rows, columns)."""
    y = (torch.arange(*rows, dtype=torch.float32) + 0.5) * (2 / height) - 1
    x = (torch.arange(*columns, dtype=torch.float32) + 0.5) * (2 / width) - 1
    places = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None]
    return F.grid_sample(field, places, mode="bilinear", padding_mode="border", align_corners=False)[0]


def mean(field: Tensor, radius: int) -> Tensor:
    """Mean over squares of 2 radius + 1; at borders over what lies inside."""
    return _mean_along_rows(_mean_along_rows(field, radius).mT, radius).mT.contiguous()


def _mean_along_rows(field: Tensor, radius: int) -> Tensor:
    count = field.shape[-1]
    sums = F.pad(field, (radius + 1, radius)).cumsum(-1)
    place = torch.arange(count)
    span = (place + radius).clamp(max=count - 1) - (place - radius).clamp(min=0) + 1
    return (sums[..., 2 * radius + 1 :] - sums[..., :count]) / span


def blur(field: Tensor, sigma: float) -> Tensor:
    """Close to a Gaussian of this standard deviation: three means."""
    radius = max(round(((4 * sigma * sigma + 1) ** 0.5 - 1) / 2), 1)
    for _ in range(3):
        field = mean(field, radius)
    return field


def grown(begin: Tensor, free: Tensor) -> Tensor:
    """`begin` and the free cells to which a path of at most 64 free cells leads from it, (1, 1, h, w), all 0 or 1."""
    for _ in range(64):
        begin = torch.minimum(F.max_pool2d(begin, 3, 1, 1), free)
    return begin


def filled(field: Tensor, weight: Tensor) -> Tensor:
    """The field where the weight (1, 1, h, w) in [0, 1] is 1, continued smoothly where it is 0 (pull-push).

    Gortler et al. 1996, *The Lumigraph*, section 3.4: weighted means on coarser and coarser grids fill what finer ones
    leave open. Two relaxation steps per level remove the traces of the grids.
    """
    height, width = field.shape[-2:]
    if min(height, width) <= 1:
        return field * weight + (1 - weight) * (field * weight).mean((2, 3), True) / weight.mean().clamp_min(1e-6)
    stacked = F.pad(torch.cat([field * weight, weight], 1), (1, 1 + width % 2, 1, 1 + height % 2), mode="replicate")
    binomial = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    kernel = (binomial[:, None] * binomial).expand(stacked.shape[1], 1, 4, 4)
    coarse = F.conv2d(stacked, kernel, stride=2, groups=stacked.shape[1])
    total = coarse[:, -1:]
    coarse = filled(coarse[:, :-1] / total.clamp_min(1e-6), (4 * total).clamp(max=1))
    enlarged = F.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)[..., :height, :width]
    out = torch.lerp(enlarged, field, weight)
    for _ in range(2):
        out = torch.lerp(mean(out, 1), field, weight)
    return out
