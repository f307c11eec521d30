"""Relative motion frame by frame, for a camera: the causal counterpart of `drive.rebase`.

Nothing is known of what follows, so these things differ from a clip's motion:

- The neutral face, from which changes are measured, is that of one second: the first in which the face is seen, and
  another one whenever `Follower.calibrate` asks for it. Its pose is the median, its expression, also where it looks,
  that of the frames in which the face is nearest to rest.
- Scores and pose are smoothed by the One-Euro filter (Casiez et al. 2012, *1 Euro Filter: A Simple Speed-based
  Low-pass Filter for Noisy Input in Interactive Systems*): a low-pass filter whose cut-off frequency rises with speed,
  so a still face does not jitter and a blink is hardly delayed.
- Lips have the driver's scores when a mouth has begun to move, not before (`Lately`).
- Whatever changes abruptly (the face is lost or comes back, a new neutral face) passes over in half a second, from
  what was shown last.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from export3d import camera
from export3d.animate.drive import restlessness
from export3d.animate.head_motion import (
    PLACE_AND_SIZE,
    SHOULDERS_TURN,
    Displacement,
    HeadMotion,
    angles_deg,
    check_head_motion,
    limited,
    neck_place,
    seen_rotation,
    with_neck,
)
from export3d.animate.rest import EASED_S, HELD_S, at_rest, changed, moving
from export3d.errors import ConfigError, check_shape
from export3d.face import pose
from export3d.face.crop import CROP_SIZE, CropBox, crop_box
from export3d.face.landmarks import Face
from export3d.face.shoulders import UNKNOWN, in_crop
from export3d.face.smooth import beside_neck, from_pose_numbers, pose_numbers
from export3d.motion.arkit import ARKIT52
from export3d.motion.motion import SHOULDERS

Array = NDArray[np.floating]

CALIBRATION_S = 1.0
"""Seconds of the face that make the neutral face."""
_FEWEST = 5
"""Frames that make it at least, however slow the camera is."""
_MOST = 64
_CALM = 3
"""Of the frames, the one in so many whose face is nearest to rest makes the neutral expression: people speak."""
HOLD_S = 0.4
"""A face that is lost for longer is away: the portrait returns to rest."""
_EASE_S = 0.5
_SPEED_CUTOFF_HZ = 1.0
"""Cut-off frequency of the speed's own low-pass filter, as in the paper."""
_SCORES = (2.0, 4.0)
"""Cut-off frequency at rest, Hz, and what is added to it at a speed of 1 per second.

On four filmed clips a blink is delayed by 18 ms, a jaw by 25 and a head turn by 33, and the frame-to-frame jitter of
scores (second differences) falls to 0.6 of the tracker's, as in `export3d.face.smooth`.
"""
_SHOULDERS = ([2.0] * 5, [14.0, 14.0, 0.0, 7.0, 7.0])
"""The same of the shoulders' numbers, see `Shoulders.step`, with places in crop widths."""
_POSE = np.array([[2.0, 0.1]] * 3 + [[2.0, 60.0]] * 2 + [[0.4, 2.0]])
"""The same of head angles (degrees), direction (x / z) and log distance, which fluctuates most."""


class OneEuro:
    """A One-Euro filter of N numbers.

    Args:
        rest_hz: (N,) cut-off frequency of values that do not change, Hz.
        slope: (N,) what a speed of 1 per second adds to it, Hz.
    """

    def __init__(self, rest_hz: ArrayLike, slope: ArrayLike) -> None:
        self._rest, self._slope = np.asarray(rest_hz, dtype=np.float64), np.asarray(slope, dtype=np.float64)
        self._before: tuple[Array, Array, float] | None = None

    def reset(self) -> None:
        """The next values come out unchanged."""
        self._before = None

    def step(self, values: Array, time_s: float) -> Array:
        """Filter values (N,) that were measured at a time; a time that does not advance changes nothing."""
        if self._before is None:
            self._before = (values, np.zeros_like(values), time_s)
            return values
        smooth, speed, before_s = self._before
        seconds = time_s - before_s
        if seconds <= 0.0:
            return smooth
        speed = speed + _share(_SPEED_CUTOFF_HZ, seconds) * ((values - smooth) / seconds - speed)
        smooth = smooth + _share(self._rest + self._slope * np.abs(speed), seconds) * (values - smooth)
        self._before = (smooth, speed, time_s)
        return smooth


class Lately:
    """How far a mouth has moved in the last moments (`rest.moving`), without jumps: the causal `rest.around`."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, float]] = []
        self._level, self._time_s = 0.0, -np.inf

    def step(self, moves: float, time_s: float) -> float:
        """The level, 0 to 1, after a frame in which the mouth moves so far."""
        self._seen = [(at, value) for at, value in self._seen if 0.0 <= time_s - at < HELD_S] + [(time_s, moves)]
        most = float(np.clip((time_s - self._time_s) / EASED_S, 0.0, 1.0))
        self._level += float(np.clip(max(value for _, value in self._seen) - self._level, -most, most))
        self._time_s = time_s
        return self._level


def _share(cutoff_hz: float | Array, seconds: float) -> float | Array:
    """The share of a new value in an exponential mean with this cut-off frequency."""
    turn = 2.0 * np.pi * cutoff_hz * seconds
    return turn / (turn + 1.0)


@dataclass(frozen=True, eq=False)
class Pose:
    """What the portrait does: an expression (E,), a camera label (25,) and shoulders (5,) as in `Motion`, float32."""

    expression: NDArray[np.float32]
    camera: NDArray[np.float32]
    shoulders: NDArray[np.float32] = field(default_factory=lambda: np.zeros(SHOULDERS, np.float32))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Pose)
            and np.array_equal(self.expression, other.expression)
            and np.array_equal(self.camera, other.camera)
            and np.array_equal(self.shoulders, other.shoulders)
        )

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class _Neutral:
    """The face that changes are measured from: its crop in the frames, mesh, scores, head rotation and shoulders."""

    crop: CropBox
    shape: Array
    scores: Array
    rotation: Array
    shoulders: Array


class Follower:
    """Moves a portrait by the faces of a camera, one at a time.

    Args:
        source_camera: (25,) label of the portrait.
        source_expression: (52,) ARKit scores of the portrait.
        head_motion: how its head moves through the frame, see `export3d.animate.head_motion`.

    Attributes:
        rest: the portrait's own pose, with its mouth and eyes `at_rest`; shown while there is nothing to follow.
        calibrating: whether the neutral face is being measured.

    Raises:
        ConfigError: another `head_motion`.
        ShapeError: a source of other shapes.
    """

    def __init__(
        self, source_camera: ArrayLike, source_expression: ArrayLike, head_motion: HeadMotion = "steady"
    ) -> None:
        check_head_motion(head_motion)
        label, scores = np.asarray(source_camera, np.float64), np.asarray(source_expression, np.float64)
        check_shape(label, str(camera.LABEL_SIZE), "source_camera")
        check_shape(scores, str(len(ARKIT52)), "source_expression")
        self._head_motion = head_motion
        self._expression, self._rotation = at_rest(scores), seen_rotation(label)
        self._place, self._intrinsics = neck_place(label), camera.unpack(label)[1]
        self._at_rest = self._numbers(self._rotation, self._expression, np.zeros(3), np.zeros(SHOULDERS))
        self.rest = self._pose(self._at_rest)
        self.calibrating = True
        self._seen: list[tuple[Array, Array, Array, float]] = []
        self._neutral: _Neutral | None = None
        self._scores, self._lately = OneEuro(*_SCORES), Lately()
        self._head = OneEuro(*_POSE.T)
        self._shoulders, self._origin = OneEuro(*_SHOULDERS), 0.0
        self._last_seen, self._missed = -np.inf, True
        self._following = False
        self._target, self._shown = self._at_rest, self._at_rest
        self._passage: tuple[Array, float] | None = None

    def calibrate(self) -> None:
        """Measure the neutral face anew from the next second; until then the old one is followed."""
        self._seen, self.calibrating = [], True

    def step(self, face: Face | None, time_s: float, shoulders: NDArray[np.float32] = UNKNOWN) -> Pose:
        """What the portrait does in the next frame of the camera.

        Args:
            face: in a frame of the camera, None where there is none.
            time_s: when the frame was captured, seconds; ascending.
            shoulders: (6,) of that face, see `Shoulders.step`.
        """
        if face is not None:
            if self._missed and time_s - self._last_seen > HOLD_S:
                self._restart()
            self._last_seen = time_s
            if self.calibrating:
                self._collect(face, shoulders, time_s)
            if self._neutral is not None:
                self._target = self._followed(face, shoulders, self._neutral, time_s)
        self._missed = face is None
        follows = self._neutral is not None and not (self._missed and time_s - self._last_seen > HOLD_S)
        if follows != self._following:
            self._following, self._passage = follows, (self._shown, time_s)
        target = self._target if follows else self._at_rest
        if self._passage is not None:
            before, since = self._passage
            t = min((time_s - since) / _EASE_S, 1.0)
            target = before + t * t * (3.0 - 2.0 * t) * (target - before)
            if t == 1.0:
                self._passage = None
        self._shown = target
        return self._pose(target)

    def _restart(self) -> None:
        self._scores.reset()
        self._head.reset()
        self._shoulders.reset()
        if self._neutral is not None:
            self._displacement.restart()
            self._beside.restart()
        self._seen = []

    def _collect(self, face: Face, shoulders: Array, time_s: float) -> None:
        self._seen.append((face.landmarks[:, :2], face.scores, shoulders, time_s))
        if len(self._seen) < _FEWEST or time_s - self._seen[0][3] < CALIBRATION_S:
            return
        landmarks, scores, known = (np.stack([one[part] for one in self._seen[-_MOST:]]) for part in (0, 1, 2))
        self._origin = known[-1, -1]
        same = known[:, -1] == self._origin
        box = crop_box(landmarks)
        shape = pose.person_shape(box.to_crop(landmarks), CROP_SIZE)
        labels = pose.fit_cameras(box.to_crop(landmarks), CROP_SIZE, shape, scores)[0]
        angles, position = pose_numbers(labels)
        label = from_pose_numbers(np.median(angles, axis=0)[None], np.median(position, axis=0)[None])[0]
        calm = scores[np.argsort(restlessness(scores))[: max(_FEWEST, len(scores) // _CALM)]]
        places = np.median(beside_neck(in_crop(known[same], box)[:, :-1], labels[same]), axis=0)
        self._neutral = _Neutral(box, shape, np.median(calm, axis=0), seen_rotation(label), places)
        self._displacement = Displacement(self._head_motion, neck_place(label))
        self._beside = Displacement(self._head_motion, places[PLACE_AND_SIZE])
        self._scores.reset()
        self._head.reset()
        self._shoulders.reset()
        self._lately = Lately()
        self._passage = (self._shown, time_s)
        self._seen, self.calibrating = [], False

    def _followed(self, face: Face, shoulders: Array, neutral: _Neutral, time_s: float) -> Array:
        points = neutral.crop.to_crop(face.landmarks[None, :, :2])
        label = pose.fit_cameras(points, CROP_SIZE, neutral.shape, face.scores[None])[0]
        numbers = self._head.step(np.concatenate(pose_numbers(label), axis=1)[0], time_s)
        label = from_pose_numbers(numbers[None, :3], numbers[None, 3:])[0]
        rotation = seen_rotation(label) @ neutral.rotation.T @ self._rotation
        scores = self._scores.step(face.scores.astype(np.float64), time_s)
        moved = self._displacement.step(neck_place(label), time_s)
        if shoulders[-1] != self._origin:  # followed anew
            self._shoulders.reset()
        seen = self._shoulders.step(in_crop(shoulders[None], neutral.crop)[0, :-1], time_s)
        beside = beside_neck(seen[None], label[None])[0]
        if shoulders[-1] != self._origin:
            self._origin, self._passage = shoulders[-1], (self._shown, time_s)
            neutral = self._neutral = replace(neutral, shoulders=beside)
            self._beside = Displacement(self._head_motion, beside[PLACE_AND_SIZE])
        sure, turn = min(beside[2], neutral.shoulders[2]), beside[3:4] - neutral.shoulders[3]
        x, y, size = self._beside.step(beside[PLACE_AND_SIZE], time_s)
        moves = self._lately.step(float(moving(scores - neutral.scores)), time_s)
        expression = changed(self._expression, scores, neutral.scores, moves)
        return self._numbers(rotation, expression, moved, np.array([x, y, sure, *limited(turn, SHOULDERS_TURN), size]))

    @staticmethod
    def _numbers(rotation: Array, expression: Array, moved: Array, shoulders: Array) -> Array:
        """Head angles, displacement, shoulders and expression as (63,) numbers between which one can pass over."""
        return np.concatenate([angles_deg(rotation[None])[0], moved, shoulders, expression])

    def _pose(self, numbers: Array) -> Pose:
        rotation, place = camera.head_rotation(numbers[None, :3]), self._place + numbers[None, 3:6]
        label = with_neck(rotation, place, self._intrinsics)[0]
        return Pose(*(part.astype(np.float32) for part in (numbers[11:], label, numbers[6:11])))


def check_space(space: str) -> None:
    """Raise `ConfigError` unless a camera can move a model of this expression space."""
    if space != "arkit52":
        raise ConfigError(f"these weights take expressions in {space}, which no camera gives; use weights of arkit52")
