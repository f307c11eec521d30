"""Measures of generated frames, tracked again."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from export3d.camera import from_pose
from export3d.evaluation.protocols.retracked import movement_scores
from export3d.face import pose
from export3d.face.mesh import canonical_mesh
from export3d.motion.motion import Motion


def made_motion(yaws: tuple[float, ...] = (5, 25, -10), shift: float = 0.1) -> Motion:
    angles = np.array([(yaw, 3.0, -2.0) for yaw in yaws])
    places = np.array([(0.01 * i + shift, shift, 2.4 + 0.02 * i) for i in range(len(yaws))])
    return Motion(np.random.default_rng(0).random((len(yaws), 52)), from_pose(angles, places), 25.0)


def test_poses_of_the_pictures_are_fitted_as_the_tracker_fits_them() -> None:
    motion = made_motion((0.0, 10.0, -15.0))
    landmarks = pose.project(np.broadcast_to(canonical_mesh().vertices, (3, 468, 3)), motion.camera, 256)
    tracked = replace(motion, camera=pose.fit_cameras(landmarks, 256, scores=motion.expression)[0])
    seen = SimpleNamespace(landmarks=landmarks, track=SimpleNamespace(motion=tracked, found=np.ones(3, bool)))
    assert movement_scores(tracked, seen)["apd6"] == pytest.approx(0.0, abs=1e-5)
    assert movement_scores(motion, seen)["apd6"] > 0.01
