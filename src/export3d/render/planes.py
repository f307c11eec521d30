"""Looking points up in the tri-plane (Eq. 7).

Letters: B batch, P points, C channels. Planes come in the order xy, yz, zx, each (C, rows, columns): the first named
axis runs along the columns, the second along the rows. (EG3D's released code samples xy, xz and zx, so that no plane
sees y and z together; these are the three planes of the text.)
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from export3d.errors import check_shape

PLANE_AXES = ((0, 1), (1, 2), (2, 0))
"""(column axis, row axis) of the planes xy, yz, zx."""


def plane_features(planes: Tensor, points: Tensor, half_extent: float) -> Tensor:
    """F(x, y, z) = mean of the three bilinear look-ups (Eq. 7).

    Args:
        planes: (B, 3, C, H, W).
        points: (B, P, 3) world coordinates.
        half_extent: the planes cover the cube [-half_extent, half_extent]^3; outside it features are 0.

    Returns:
        (B, P, C).
    """
    check_shape(planes, "B 3 C H W", "planes")
    check_shape(points, "B P 3", "points")
    total: Tensor | None = None
    for plane, axes in zip(planes.unbind(1), PLANE_AXES, strict=True):
        grid = points[..., list(axes)].div(half_extent)[:, None].to(plane.dtype)
        found = F.grid_sample(plane, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[:, :, 0]
        total = found if total is None else total + found
    assert total is not None
    return total.transpose(1, 2) / 3.0
