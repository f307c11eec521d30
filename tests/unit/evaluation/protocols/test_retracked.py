"""Measures of generated frames, tracked again."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from export3d.camera import from_pose
from export3d.evaluation.protocols.retracked import cross_measures, movement_scores, read_scores
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


def test_readings_of_a_network_are_compared_where_both_show_a_face() -> None:
    """AED is the mean over 64 coefficients, APD over three angles in degrees or six numbers in radians and 10 cm."""

    def seen(expression: float, yaw: float, x: float, found: tuple[bool, ...]) -> SimpleNamespace:
        read = np.full((3, 64), expression), np.tile([yaw, 5.0, 0.0], (3, 1)), np.tile([x, 0.0, 0.1], (3, 1))
        for part in read:
            part[~np.array(found)] = np.nan
        return SimpleNamespace(read=read, track=SimpleNamespace(found=np.array(found)))

    ours, driving = seen(0.5, 179.0, 0.0, (True, True, False)), seen(0.2, -178.0, 0.3, (False, True, True))
    scores = read_scores(ours, driving)
    assert scores["aed"] == pytest.approx(0.3)
    assert scores["apd"] == pytest.approx(1.0)
    assert scores["apd6"] == pytest.approx((np.radians(3.0) + 0.3) / 6)
    assert all(np.isnan(value) for value in read_scores(ours, seen(0.2, 0.0, 0.0, (False, False, True))).values())


def test_the_definitions_say_what_is_compared() -> None:
    words = {m.name: m.definition for m in cross_measures(())}
    assert "52 ARKit scores, tracked again, from the requested motion" in words["aed"]
    words = {m.name: m.definition for m in cross_measures((), network=True, named=False)}
    assert "64 expression coefficients, read by the named network in generated and driving frames" in words["aed"]
    assert "units of 10 cm" in words["apd6"]
    assert words["jawOpen"].endswith("with the driving frames")
    assert words["yaw"].endswith("with the requested motion")
