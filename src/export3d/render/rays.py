"""Camera labels to rays (the o + t d of Eq. 9).

Letters: B cameras, R rays (R = resolution², row-major from the image's top left).
"""

from __future__ import annotations

import torch
from torch import Tensor

import export3d.camera as camera
from export3d.errors import check_shape


def camera_rays(label: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    """Rays through the pixel centres (i + 0.5) / resolution of each camera.

    Args:
        label: (B, 25) camera labels.
        resolution: rays along each side.

    Returns:
        origins (B, R, 3) and unit directions (B, R, 3) in world axes, float32.
    """
    check_shape(label, f"B {camera.LABEL_SIZE}", "camera label")
    cam2world, intrinsics = camera.unpack(label.float())
    centre = (torch.arange(resolution, device=label.device, dtype=torch.float32) + 0.5) / resolution
    v, u = torch.meshgrid(centre, centre, indexing="ij")
    u, v = u.reshape(1, -1), v.reshape(1, -1)
    fx, fy = intrinsics[:, 0, 0, None], intrinsics[:, 1, 1, None]
    cx, cy, skew = intrinsics[:, 0, 2, None], intrinsics[:, 1, 2, None], intrinsics[:, 0, 1, None]
    y = (v - cy) / fy
    x = (u - cx - skew * y) / fx
    directions = torch.stack([x, y, torch.ones_like(x)], dim=-1) @ cam2world[:, :3, :3].transpose(1, 2)
    directions = directions / directions.norm(dim=-1, keepdim=True)
    origins = cam2world[:, None, :3, 3].expand_as(directions)
    return origins, directions


def ray_limits(label: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    """Near and far limits of sampling, (B,) each: the camera's distance from the origin minus and plus `reach`.

    The limits follow the distance so that they enclose the volume wherever the camera is. Near is at least 0.001.
    """
    cam2world, _ = camera.unpack(label.float())
    distance = cam2world[:, :3, 3].norm(dim=-1)
    return (distance - reach).clamp_min(1e-3), distance + reach
