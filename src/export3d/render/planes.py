"""Sampling the tri-plane at points (Eq. 7).

Letters: B batch, P points, C channels. Planes come in the order xy, yz, zx, each (C, rows, columns): the first
axis indexes columns, the second rows. These are the planes of the paper's text. (EG3D's released code samples xy, xz
and zx, so that no plane contains both y and z.)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from export3d.errors import check_shape

PLANE_AXES = ((0, 1), (1, 2), (2, 0))
"""(column axis, row axis) of the planes xy, yz, zx."""


def plane_features(planes: Tensor, points: Tensor, half_extent: float) -> Tensor:
    """F(x, y, z) = mean of the three planes, sampled bilinearly (Eq. 7).

    Args:
        planes: (B, 3, C, H, W).
        points: (B, P, 3) world coordinates.
        half_extent: the planes cover the cube [-half_extent, half_extent]^3; outside it features are 0.

    Returns:
        (B, P, C).
    """
    check_shape(planes, "B 3 C H W", "planes")
    check_shape(points, "B P 3", "points")
    b, _, c, height, width = planes.shape
    at = points.unbind(-1)
    grid = torch.stack([torch.stack([at[a], at[b]], dim=-1) for a, b in PLANE_AXES], dim=1)
    grid = grid.div(half_extent).to(planes.dtype)
    # One call for all planes: gradients of separate calls would each be zero-padded to the size of all three.
    maps, grid = planes.reshape(3 * b, c, height, width), grid.view(3 * b, 1, -1, 2)
    found = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return found.view(b, 3, c, -1).sum(dim=1).transpose(1, 2) / 3.0
