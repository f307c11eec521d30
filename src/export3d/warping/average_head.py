"""An average head as a smooth surface: it aligns the source with the planes and turns whole images (not in the paper).

The paper feeds the source as it is. The transformer must learn to move features from image pixels to the head's own
axes, in which the tri-plane lives; with little data it learns that late and blurrily. Here the source's camera, which
the tracker gives anyway, moves the pixels: each point (x, y) of the xy plane gets the depth of an average head and is
looked up in the source image. The network only has to learn how this head differs from the average.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from export3d.camera import LABEL_SIZE, projected, unpack
from export3d.errors import check_shape
from export3d.layers import enlarge
from export3d.warping.flow_field import pixel_grid

_BACK, _RISE = 0.08, 0.19
_WIDTH, _HEIGHT = 0.12, 0.15


def proxy_depth(x: Tensor, y: Tensor) -> Tensor:
    """z of an average head's front, scene units: a Gaussian bump, -0.11 at the middle of the face, 0.08 far from it.

    Nine in ten vertices of the canonical face mesh lie within 0.034 of it, all within 0.065.
    """
    bump = torch.exp(-0.5 * ((x / _WIDTH).square() + (y / _HEIGHT).square()))
    return _BACK - _RISE * bump


def frontal_view(image: Tensor, label: Tensor, half_extent: float) -> Tensor:
    """The image resampled onto the xy plane through the average head.

    Args:
        image: (B, C, H, H).
        label: (B, 25) cameras of the images.
        half_extent: the plane covers [-half_extent, half_extent] along x and y, scene units.

    Returns:
        (B, C, H, H): columns along x, rows along y; outside the image its border pixels repeat.
    """
    check_shape(image, "B C H H", "image")
    check_shape(label, f"{image.shape[0]} {LABEL_SIZE}", "source camera")
    size = image.shape[-1]
    x, y = (pixel_grid(size, image.device)[0] * half_extent).unbind()
    points = torch.stack([x, y, proxy_depth(x, y)], dim=-1).reshape(1, -1, 3)
    grid = (projected(points, label)[0] * 2 - 1).reshape(-1, size, size, 2).to(image.dtype)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)


def plane_positions(points: Tensor, label: Tensor, half_extent: float, depth: Tensor | None = None) -> Tensor:
    """Where points of an image lie on the xy plane: the inverse of the lookup in `frontal_view`.

    Args:
        points: (B, L, 2), 0..1 across the image.
        label: (B, 25) cameras of the images.
        half_extent: of the planes, scene units.
        depth: (L,) or (B, L) z of each point, scene units; None: on the average head (`proxy_depth`).

    Returns:
        (B, L, 2) in [-1, 1] grid units of the plane, x first.
    """
    check_shape(points, "B L 2", "points")
    cam2world, intrinsics = unpack(label.float())
    with torch.autocast(points.device.type, enabled=False):  # bf16 would round places to an eighth of a pixel
        u, v = points.float().unbind(-1)
        fx, skew, cx, fy, cy = (intrinsics[:, a, b, None] for a, b in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2)))
        y = (v - cy) / fy
        rays = torch.stack([(u - cx - skew * y) / fx, y, torch.ones_like(y)], dim=-1) @ cam2world[:, :3, :3].mT
    origin = cam2world[:, :3, 3, None].unbind(1)
    towards = [(rays[..., axis] / rays[..., 2]) for axis in (0, 1)]
    z = torch.full_like(towards[0], _BACK - _RISE) if depth is None else depth.to(rays).expand_as(towards[0])
    for _ in range(1 if depth is not None else 12):  # converges in a few steps: the bump's slope is below 1
        away = z - origin[2]
        x, y = (torch.addcmul(start, way, away) for start, way in zip(origin, towards))
        if depth is None:
            z = proxy_depth(x, y)
    return torch.stack([x, y], dim=-1) / half_extent


def seen_places(label: Tensor, size: int) -> Tensor:
    """The pixels of cameras (B, 25) on the average head, of every fourth row and column: (B, size/4, size/4, 2).

    Args:
        size: H, pixels across the view, a multiple of 4.

    Returns:
        x and y, scene units.
    """
    coarse = size // 4
    pixels = ((pixel_grid(coarse, label.device) + 1.0) / 2.0).flatten(2).mT.expand(label.shape[0], -1, -1)
    return plane_positions(pixels, label, 1.0).view(-1, coarse, coarse, 2)


def head_nearness(seen: Tensor) -> Tensor:
    """Nearness of each pixel to the middle of the average head's face, as a camera sees it.

    Args:
        seen: (B, H/4, H/4, 2), see `seen_places`.

    Returns:
        (B, 1, H, H): 1 at the middle, falling linearly to 0 at four widths of the head's bump.
    """
    x, y = seen.unbind(-1)
    away = ((x / _WIDTH).square() + (y / _HEIGHT).square()).sqrt()
    return enlarge((1.0 - away / 4.0).clamp(0.0, 1.0)[:, None], 4)


def turned_flow(label: Tensor, seen: Tensor) -> Tensor:
    """The flow from a driving view to the source if the whole image, hair and background too, lay on the average head.

    Args:
        label: (B, 25) the source's camera.
        seen: (B, H/4, H/4, 2) the pixels of the driving view, see `seen_places`.

    Returns:
        (B, 2, H, H), offsets to places of the source, x first, in [-1, 1] grid units.
    """
    points = torch.cat([seen, proxy_depth(seen[..., :1], seen[..., 1:])], dim=-1).flatten(1, 2)
    lookup = (projected(points, label)[0] * 2 - 1).view(-1, *seen.shape[1:]).permute(0, 3, 1, 2)
    return enlarge((lookup - pixel_grid(seen.shape[1], lookup.device)).contiguous(), 4)
