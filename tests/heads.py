"""Heads that differ by millimetres, as cameras see them, and landmark motions of random weights."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export3d.camera import UNITS_PER_CM, Camera, projected
from export3d.warping.landmark_motion import Face, LandmarkMotion, average_landmarks

HALF = 0.36
EMBEDDING = 12
CAMERAS = torch.from_numpy(
    np.stack(
        [
            camera.label
            for camera in (
                Camera.orbit(),
                Camera.orbit(20.0, -10.0),
                Camera.orbit(-30.0, 15.0, radius=2.2),
                Camera.look_at((0.3, -0.2, -2.4), (0.05, 0.0, 0.0), roll_rad=0.3),
            )
        ]
    )
).float()
NAMES = ["frontal", "turned", "near", "rolled"]
FRONT = (4, 9, 13, 14, 61, 159, 291, 386, 468, 473)
"""Landmarks that no camera above hides: of nose, brow, lips, lids and irises."""


def people(count: int) -> Tensor:
    """(count, 478, 3) heads that differ from the average by millimetres."""
    return bent(average_landmarks().expand(count, -1, -1))


def bent(points: Tensor) -> Tensor:
    """Points (B, 478, 3) moved by some millimetres, smoothly."""
    slopes = torch.randn(len(points), 3, 3)
    return points + UNITS_PER_CM * (0.2 * torch.randn(len(points), 1, 3) + 3.0 * points @ slopes)


def restless(std: float = 0.3) -> LandmarkMotion:
    """A motion whose weights are all random: each landmark moves by itself."""
    motion = LandmarkMotion(EMBEDDING)
    for parameter in motion.parameters():
        nn.init.normal_(parameter, std=std)
    return motion


def at_rest(motion: LandmarkMotion | None = None, camera: Tensor = CAMERAS, points: Tensor | None = None) -> Face:
    """People as cameras see them, with random expressions."""
    points = people(len(camera)) if points is None else points
    own = torch.randn(len(camera), EMBEDDING)
    return (motion or LandmarkMotion(EMBEDDING)).face(own, projected(points, camera)[0], camera, HALF)


def places(size: int) -> Tensor:
    """(1, 2, size, size): each pixel's own x and y, 0..1."""
    centre = (torch.arange(size) + 0.5) / size
    return torch.stack(torch.meshgrid(centre, centre, indexing="xy"))[None]


def read(picture: Tensor, at: Tensor) -> Tensor:
    """Pictures (B, 2, R, R) at places (B, N, 2), 0..1, to (B, N, 2)."""
    return F.grid_sample(picture, (at * 2 - 1)[:, :, None], align_corners=False)[..., 0].mT
