"""Cameras that travel around a head: novel views (Fig. 9, 14) as a motion."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from export3d.animate.drive import FPS, hold, rebase
from export3d.camera import turned
from export3d.errors import ConfigError
from export3d.motion.motion import Motion

CameraPath = Literal["circle", "swing", "spiral"]
"""Names of the paths, see `path_angles`."""

LONGEST_S = 600.0
"""Longest round, seconds."""
_TURNS = 2.5
"""Turns of a spiral; half a turn more than a whole number, so that its widest point is exactly the asked-for yaw."""


def path_angles(
    path: CameraPath, frames: int, yaw_deg: float = 30.0, pitch_deg: float = 15.0, rounds: int = 1
) -> NDArray[np.float64]:
    """Yaw and pitch of a head around which a camera travels, relative to where it starts.

    With t from 0 to 1 over a round:

    - circle: (yaw sin 2 pi t, pitch cos 2 pi t).
    - swing: (yaw s, 0) in the first half, (0, pitch s) in the second, s = sin(pi (1 - cos 2 pi t)): to both sides, then
      up and down, at rest wherever it changes direction between the two.
    - spiral: the circle, run through two and a half times, with a radius (1 - cos 2 pi t) / 2.

    Args:
        path: the shape.
        frames: number of frames T, all rounds together; frame T would be frame 0 again.
        yaw_deg, pitch_deg: largest angles, each between -90 and 90; signs as in `camera.head_angles`.
        rounds: how many times the path is run through.

    Returns:
        float64 (T, 2), degrees.

    Raises:
        ConfigError: an unknown path, an angle that is no number or reaches 90 degrees, or no frames or rounds.

    >>> path_angles("circle", 4).round(6).tolist()
    [[0.0, 15.0], [30.0, 0.0], [0.0, -15.0], [-30.0, -0.0]]
    """
    if path not in get_args(CameraPath):
        raise ConfigError(f"there is no camera path {path!r}; the paths are {', '.join(get_args(CameraPath))}")
    for name, angle in (("yaw", yaw_deg), ("pitch", pitch_deg)):
        if not abs(_number(name, angle)) < 90.0:  # also refuses NaN
            raise ConfigError(f"the camera cannot travel to a {name} of {angle:g} degrees; stay between -90 and 90")
    if frames < 1 or rounds < 1:
        raise ConfigError(f"a camera path needs at least one frame and one round, got {frames} and {rounds}")
    t = np.arange(frames) * rounds / frames % 1.0
    if path == "swing":
        sideways = t < 0.5
        s = np.sin(np.pi * (1.0 - np.cos(2.0 * np.pi * t)))
        unit = np.stack([np.where(sideways, s, 0.0), np.where(sideways, 0.0, s)], axis=-1)
    elif path == "spiral":
        radius, phase = (1.0 - np.cos(2.0 * np.pi * t)) / 2.0, 2.0 * np.pi * _TURNS * t
        unit = np.stack([radius * np.sin(phase), radius * np.cos(phase)], axis=-1)
    else:
        unit = np.stack([np.sin(2.0 * np.pi * t), np.cos(2.0 * np.pi * t)], axis=-1)
    return unit * (yaw_deg, pitch_deg)


def orbit_motion(
    source_camera: NDArray[np.floating],
    source_expression: NDArray[np.floating],
    space: str,
    motion: Motion | None = None,
    *,
    path: CameraPath = "circle",
    yaw_deg: float = 30.0,
    pitch_deg: float = 15.0,
    seconds: float = 4.0,
    scores: Mapping[str, float] | None = None,
) -> Motion:
    """A camera that travels around a portrait's head, from the portrait's own camera, at the head's own distance.

    Args:
        source_camera: (25,) label of the source portrait.
        source_expression: (E,) of the source portrait.
        space: its expression space.
        motion: gives the expressions, relative to its most neutral frame (see `rebase`), and the number of frames; its
            head motion is not used. None: the portrait's own expression throughout.
        path, yaw_deg, pitch_deg: see `path_angles`.
        seconds: one round, 0.1 to 600. With a motion, the whole number of rounds that comes closest to it.
        scores: ARKit scores held at a value in every frame, see `drive.hold`.

    Returns:
        T frames at 25 fps, or at the motion's; frame T would be frame 0's camera again.

    Raises:
        ConfigError: as in `path_angles` and `drive.hold`, seconds out of range, or scores in a `space` without
            names.
        BadMotionFile: the motion is of another expression space.
    """
    if scores and space != "arkit52":
        raise ConfigError(f"these weights take expressions in {space}, which has no ARKit scores to set")
    fps = FPS if motion is None else motion.fps
    per_round = round_frames(seconds, fps)
    if motion is None:
        frames, rounds = per_round, 1
        expression = np.broadcast_to(np.asarray(source_expression), (frames, len(source_expression)))
    else:
        motion.require_space(space)
        frames, rounds = len(motion), max(1, round(len(motion) / per_round))
        expression = rebase(motion, source_camera, source_expression).expression
    angles = np.pad(path_angles(path, frames, yaw_deg, pitch_deg, rounds), ((0, 0), (0, 1)))
    cameras = turned(np.asarray(source_camera), angles)
    made = Motion(expression, cameras, fps, space)
    return hold(made, scores) if scores else made


def round_frames(seconds: float, fps: float = FPS) -> int:
    """Frames of one round, at least 1; raises `ConfigError` for seconds outside 0.1 to 600."""
    if not 0.1 <= _number("seconds", seconds) <= LONGEST_S:
        raise ConfigError(f"a round of the camera cannot take {seconds:g} seconds; give 0.1 to {LONGEST_S:g}")
    return max(1, round(seconds * fps))


def _number(name: str, value: float) -> float:
    if not isinstance(value, Real):
        raise ConfigError(f"{name} must be a number, got {value!r}")
    return value
