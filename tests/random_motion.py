"""Motion that wanders smoothly and at random."""

from __future__ import annotations

import numpy as np

from export3d import camera
from export3d.motion.motion import SPACES, Motion


def random_motion(rng: np.random.Generator, frames: int = 50, space: str = "arkit52", fps: float = 25.0) -> Motion:
    """A motion that wanders smoothly."""
    angles = np.cumsum(rng.normal(0, 1, (frames, 3)), axis=0)
    position = np.array([0, 0, 2.7]) + np.cumsum(rng.normal(0, 0.01, (frames, 3)), axis=0)
    return Motion(rng.random((frames, SPACES[space])), camera.from_pose(angles, position), fps, space)
