"""animate/orbit.py: where the camera goes, and that planes are computed once for a still expression."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from export3d.animate.animator import Animator, Source
from export3d.animate.drive import rebase
from export3d.animate.orbit import CameraPath, orbit_motion, path_angles
from export3d.camera import Camera, head_angles, head_position, turned
from export3d.errors import BadMotionFile, ConfigError, ShapeError
from export3d.motion.arkit import ARKIT52
from export3d.motion.motion import Motion
from export3d.pretrained import load_pretrained

PATHS: tuple[CameraPath, ...] = ("circle", "swing", "spiral")
OWN = turned(Camera.orbit(yaw_deg=7.0, pitch_deg=-4.0).label, np.array([0.0, 0.0, 3.0]))
NEUTRAL = np.full(52, 0.1, np.float32)


@pytest.fixture(scope="module")
def animator(tiny_weights: Path) -> Animator:
    return Animator(load_pretrained(tiny_weights), "cpu")


@pytest.fixture(scope="module")
def source(animator: Animator, astronaut_path: Path) -> Source:
    return animator.encode(astronaut_path)


@pytest.mark.parametrize("path", PATHS)
def test_a_path_reaches_its_angles_and_no_further(path: CameraPath) -> None:
    yaw, pitch = path_angles(path, 400, 30.0, 15.0).T
    assert np.abs(yaw).max() == pytest.approx(30.0, rel=1e-3)
    assert np.abs(pitch).max() <= 15.0 + 1e-9
    assert np.abs(pitch).max() > 13.0


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("rounds", [1, 3])
def test_a_path_closes(path: CameraPath, rounds: int) -> None:
    """The step from the last frame to the first is no longer than the others, and steps have no jumps."""
    angles = path_angles(path, 240, 30.0, 15.0, rounds)
    steps = np.linalg.norm(np.diff(angles, axis=0, append=angles[:1]), axis=-1)
    assert steps[-1] <= steps[:-1].max() + 1e-9
    assert np.abs(np.diff(steps)).max() < 0.25 * steps.max() + 1e-9
    np.testing.assert_allclose(angles, np.tile(path_angles(path, 240 // rounds, 30.0, 15.0), (rounds, 1)), atol=1e-9)


@pytest.mark.parametrize("path", ["swing", "spiral"])
def test_swing_and_spiral_start_at_the_own_view(path: CameraPath) -> None:
    np.testing.assert_allclose(path_angles(path, 50)[0], 0.0, atol=1e-12)


def test_a_swing_goes_sideways_and_then_up_and_down() -> None:
    yaw, pitch = path_angles("swing", 100, 30.0, 15.0).T
    np.testing.assert_array_equal(pitch[:50], 0.0)
    np.testing.assert_array_equal(yaw[50:], 0.0)
    assert yaw.min() == pytest.approx(-yaw.max())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"path": "line"}, "no camera path 'line'; the paths are circle, swing, spiral"),
        ({"yaw_deg": float("nan")}, "yaw of nan"),
        ({"yaw_deg": 90.0}, "yaw of 90 degrees; stay between"),
        ({"yaw_deg": "30"}, "yaw must be a number, got '30'"),
        ({"pitch_deg": float("-inf")}, "pitch of -inf"),
        ({"frames": 0}, "at least one frame"),
        ({"rounds": 0}, "one round"),
    ],
)
def test_impossible_paths_are_refused(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        path_angles(**({"path": "circle", "frames": 10} | arguments))  # type: ignore[arg-type]


def test_the_camera_keeps_its_distance_and_the_head_its_place_and_tilt() -> None:
    views = orbit_motion(OWN, NEUTRAL, "arkit52", seconds=2.0)
    assert len(views) == 50
    assert views.fps == 25.0
    np.testing.assert_allclose(head_position(views.camera), np.tile(head_position(OWN), (50, 1)), atol=1e-5)
    expected = head_angles(OWN) + np.pad(path_angles("circle", 50), ((0, 0), (0, 1)))
    np.testing.assert_allclose(head_angles(views.camera), expected, atol=1e-3)
    np.testing.assert_array_equal(views.expression, np.tile(NEUTRAL, (50, 1)))


def test_a_motion_gives_expressions_and_length_but_no_pose(motion_file: Path) -> None:
    motion = Motion.load(motion_file)
    views = orbit_motion(OWN, NEUTRAL, "arkit52", motion, seconds=0.2)
    assert len(views) == len(motion) == 12
    np.testing.assert_array_equal(views.expression, rebase(motion, OWN, NEUTRAL).expression)
    np.testing.assert_allclose(
        head_angles(views.camera)[:, :2], head_angles(OWN)[:2] + path_angles("circle", 12, rounds=2), atol=1e-3
    )
    turning = replace(motion, camera=motion.camera[::-1])
    np.testing.assert_array_equal(orbit_motion(OWN, NEUTRAL, "arkit52", turning, seconds=0.2).camera, views.camera)


def test_scores_are_held(motion_file: Path) -> None:
    for motion in (None, Motion.load(motion_file)):
        views = orbit_motion(OWN, NEUTRAL, "arkit52", motion, scores={"jawOpen": 0.8})
        np.testing.assert_allclose(views.expression[:, ARKIT52.index("jawOpen")], 0.8)


def test_other_spaces_are_refused(motion_file: Path) -> None:
    with pytest.raises(BadMotionFile, match="arkit52"):
        orbit_motion(OWN, np.zeros(64), "bfm64", Motion.load(motion_file))
    with pytest.raises(ConfigError, match="take expressions in bfm64, which has no ARKit scores"):
        orbit_motion(OWN, np.zeros(64), "bfm64", scores={"jawOpen": 0.8})


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), 601.0])
def test_impossible_times_are_refused(seconds: float) -> None:
    with pytest.raises(ConfigError, match=r"cannot take .* give 0\.1 to 600"):
        orbit_motion(OWN, NEUTRAL, "arkit52", seconds=seconds)


def test_a_still_expression_is_computed_once(
    animator: Animator, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the frames are those that `render` makes one by one."""
    views = orbit_motion(source.camera, source.expression, "arkit52", path="spiral", seconds=0.2)
    singly = [animator.render(source, source.expression, camera) for camera in views.camera]
    calls, planes = [], animator.engine.planes
    monkeypatch.setattr(animator.engine, "planes", lambda *given: calls.append(1) or planes(*given))
    frames = list(animator.orbit(source, path="spiral", seconds=0.2))
    assert len(calls) == 1
    assert len(frames) == 5, "a whole batch and a frame"
    np.testing.assert_allclose(np.array(frames, np.int16), np.array(singly, np.int16), atol=1)
    assert frames[2].tobytes() != frames[0].tobytes()


def test_an_orbit_follows_a_motion(animator: Animator, source: Source, motion_file: Path) -> None:
    motion = Motion.load(motion_file)[:3]
    frames = list(animator.orbit(source, motion, yaw_deg=20, batch=1))
    views = orbit_motion(source.camera, source.expression, "arkit52", motion, yaw_deg=20)
    singly = [animator.render(source, *frame) for frame in zip(views.expression, views.camera)]
    np.testing.assert_array_equal(frames, singly)


def test_refusals_come_before_the_first_frame(animator: Animator, source: Source) -> None:
    with pytest.raises(ConfigError, match="yaw of 120"):
        animator.orbit(source, yaw_deg=120.0)
    with pytest.raises(ConfigError, match="batch"):
        animator.orbit(source, batch=0)
    with pytest.raises(ShapeError, match="cameras"):
        animator.views(source, source.expression, source.camera)


def test_depth_comes_from_the_renderer(animator: Animator, source: Source) -> None:
    (image, depth), (_, other) = animator.views(
        source, source.expression, [source.camera, turned(source.camera, np.array([20.0, 0.0, 0.0]))]
    )
    np.testing.assert_array_equal(image, animator.render(source, source.expression, source.camera))
    with torch.no_grad():
        expression, camera = (torch.tensor(value)[None] for value in (source.expression, source.camera))
        rendered = animator.engine.render(animator.engine.planes(source.features, expression), camera)
    np.testing.assert_array_equal(depth, rendered.depth[0, 0].numpy())
    assert (other != depth).any()
