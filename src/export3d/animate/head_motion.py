"""Where the head moves in relative motion, and how it passes from one shot of the driving video to the next.

The face of a driving video moves through the picture because the head sways, but also because the person walks, the
camera zooms or shakes, or a cut shows another framing. The photo has one framing. So the place of the *neck*, the point
about which the head turns, follows that of the driving face in one of three ways:

- steady: from the portrait's own place on, and gently. Fast shaking is smoothed, what lasts dies away (drift, zoom, a
  new seat), and what remains is limited.
- full: as filmed, measured from the reference frame, and limited only so that the head stays in the picture.
- rotation: the neck stays where it is; the head turns about it.

A head that only moves aside is seen from another side, by up to 13 degrees per crop width. Rotations are therefore
taken as seen along the ray to the neck, and do not change with what becomes of its place.

Places are the neck's image coordinates in crop widths and the logarithm of its distance, (T, 3). Shoulders are moved
beside the neck in the same way.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from export3d import camera
from export3d.errors import ConfigError
from export3d.face.smooth import smooth
from export3d.motion.motion import AWAY, Motion

Array = NDArray[np.floating]
HeadMotion = Literal["steady", "full", "rotation"]
"""Names of what becomes of the head's place."""

_NECK = np.array(camera.NECK)
_LIMITS = {"steady": (0.1, 0.06), "full": (0.25, 0.25)}
"""Largest displacement across the picture, crop widths, and of the logarithm of the distance."""
PLACE_AND_SIZE = [0, 1, 4]
"""The shoulders' numbers that are moved beside the neck as the neck is."""
SHOULDERS_TURN = 0.3
"""Radians by which shoulders turn at most."""
_SHAKE_S, _RETURN_S = 0.16, 2.0
"""Standard deviation of the smoothing, and the time in which a displacement falls to 1 / e, seconds."""
_SETTLED_S = 1.0
"""A face that comes into the frame is in its place after so many seconds."""
_TOLD = 0.1
"""Displacements that differ by more from what was filmed are reported, crop widths."""
_EASE_S, _CUT_EXPRESSION_S = 0.5, 0.2
"""Duration of a passage, and of the expression's at a cut, seconds."""


def check_head_motion(name: str) -> None:
    """Raise `ConfigError` unless this is one of `HeadMotion`."""
    if name not in get_args(HeadMotion):
        raise ConfigError(f"there is no head motion {name!r}; use {', '.join(get_args(HeadMotion))}")


def runs(shot: NDArray[np.int32]) -> list[slice]:
    """The frames between changes of `shot` (T,): uninterrupted shots, and where the face is away."""
    starts = [0, *(np.flatnonzero(np.diff(shot)) + 1).tolist()]
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(shot)])]


def neck_place(labels: ArrayLike) -> Array:
    """The place (..., 3) of the neck in the view of camera labels (..., 25)."""
    labels = np.asarray(labels, dtype=np.float64)
    cam2world, intrinsics = camera.unpack(labels)
    x, y, z = np.moveaxis(camera.head_position(labels) + _NECK @ cam2world[..., :3, :3], -1, 0)
    z = np.maximum(z, 1e-6)
    return np.stack([x / z * intrinsics[..., 0, 0], y / z * intrinsics[..., 1, 1], np.log(z)], axis=-1)


def seen_rotation(labels: ArrayLike) -> Array:
    """World-to-camera rotations (..., 3, 3) of labels (..., 25), of a camera that looks straight at the neck."""
    labels = np.asarray(labels, dtype=np.float64)
    cam2world, intrinsics = camera.unpack(labels)
    toward = _toward(neck_place(labels), intrinsics)
    return np.swapaxes(cam2world[..., :3, :3] @ toward, -1, -2)


def with_neck(rotation: Array, place: Array, intrinsics: Array) -> Array:
    """Labels (T, 25) from (`seen_rotation`, `neck_place`): (T, 3, 3) and (T, 3).

    Args:
        intrinsics: (3, 3), of all labels.
    """
    z = np.exp(place[:, 2:])
    neck = np.concatenate([place[:, :2] / np.diag(intrinsics)[:2] * z, z], axis=1)
    cam2world = np.tile(np.eye(4), (len(place), 1, 1))
    cam2world[:, :3, :3] = np.swapaxes(_toward(place, intrinsics) @ rotation, -1, -2)
    cam2world[:, :3, 3] = _NECK - (cam2world[:, :3, :3] @ neck[:, :, None])[:, :, 0]
    return camera.pack(cam2world, np.broadcast_to(intrinsics, (len(place), 3, 3)))


def angles_deg(rotation: Array) -> Array:
    """(T, 3) yaw, pitch and roll of rotations (T, 3, 3): inverse of `camera.head_rotation`."""
    return camera.head_angles(with_neck(rotation, np.zeros((len(rotation), 3)), camera.default_intrinsics()))


def _toward(place: Array, intrinsics: Array) -> Array:
    """The shortest rotations (..., 3, 3) of the optical axis to a place (..., 3) in the view."""
    x, y = place[..., 0] / intrinsics[..., 0, 0], place[..., 1] / intrinsics[..., 1, 1]
    z = 1.0 / np.sqrt(1.0 + x * x + y * y)
    x, y, bend = x * z, y * z, 1.0 / (1.0 + z)
    rows = [[1.0 - x * x * bend, -x * y * bend, x], [-x * y * bend, 1.0 - y * y * bend, y], [-x, -y, z]]
    return np.moveaxis(np.array(rows), (0, 1), (-2, -1))


def displacement(motion: Motion, references: NDArray[np.int64], how: HeadMotion, filmed: Array | None = None) -> Array:
    """How far (T, 3) the neck is moved from its place in the portrait.

    Args:
        motion: the driving motion.
        references: (T,) the frame of its run (`runs`) that "full" measures each frame from.
        how: see above.
        filmed: (T, 3) where something else was filmed that is moved in the same way; None: the neck.
    """
    moved = np.zeros((len(motion), 3))
    if how == "rotation":
        return moved
    filmed = neck_place(motion.camera) if filmed is None else filmed
    for run in runs(motion.shot):
        if motion.shot[run.start] == AWAY:
            continue
        part = filmed[run] - filmed[references[run.start]]
        if how == "steady":
            part = smooth(part, _SHAKE_S * motion.fps, order=0)  # a mean does not overshoot at the ends
        for axes, limit in zip((slice(0, 2), slice(2, 3)), _LIMITS[how]):
            values = part[:, axes]
            if how == "steady":
                values = _returning(values, motion.fps, limit, _settled(motion, run))
            moved[run, axes] = limited(values, limit)
    return moved


def _settled(motion: Motion, run: slice) -> Array:
    """(T,) 0 where a face comes into the frame or leaves it, 1 from a second away from there."""
    frames = np.arange(run.start, run.stop)
    into = frames - run.start if run.start > 0 and motion.shot[run.start - 1] == AWAY else np.inf
    out = run.stop - 1 - frames if run.stop < len(motion) and motion.shot[run.stop] == AWAY else np.inf
    t = np.minimum(np.minimum(into, out) / (_SETTLED_S * motion.fps), np.ones(len(frames)))
    return np.asarray(t * t * (3.0 - 2.0 * t))


def _returning(values: Array, fps: float, limit: float, share: Array) -> Array:
    """Values (T, N) from 0 on, which change as they do by a share (T,) and meanwhile return to 0 (a high-pass filter).

    They do not go beyond twice the limit, so that the way back is never long.
    """
    out, keep = np.zeros_like(values), np.exp(-1.0 / (_RETURN_S * fps))
    for k, step in enumerate(np.diff(values, axis=0), 1):
        out[k] = _next(keep * out[k - 1] + share[k] * step, limit)
    return out


def _next(there: Array, limit: float) -> Array:
    return there * min(1.0, 2.0 * limit / max(float(np.linalg.norm(there)), 1e-12))


class Displacement:
    """`displacement` frame by frame, from what is known at the time; nothing is smoothed, which is the caller's.

    Args:
        how: see `displacement`.
        reference: (3,) the `neck_place` that "full" measures from.
    """

    def __init__(self, how: HeadMotion, reference: Array) -> None:
        check_head_motion(how)
        self._how, self._reference = how, reference
        self._before: tuple[Array, float] | None = None
        self._since, self._moved = 0.0, np.zeros(3)

    def restart(self) -> None:
        """The next frame is the first in which the face is back: the neck is in its place there."""
        self._before = None

    def step(self, filmed: Array, time_s: float) -> Array:
        """The displacement (3,) of the next frame, whose neck is at a place (3,) at this time."""
        if self._how == "rotation":
            return np.zeros(3)
        if self._how == "full":
            self._moved = filmed - self._reference
        elif self._before is None:
            self._since, self._moved = time_s, np.zeros(3)
        else:
            seconds = time_s - self._before[1]
            t = min((time_s - self._since) / _SETTLED_S, 1.0)
            step = t * t * (3.0 - 2.0 * t) * (filmed - self._before[0])
            self._moved = np.exp(-seconds / _RETURN_S) * self._moved + step
        self._before = (filmed, time_s)
        parts = []
        for axes, limit in zip((slice(0, 2), slice(2, 3)), _LIMITS[self._how]):
            if self._how == "steady":
                self._moved[axes] = _next(self._moved[axes], limit)
            parts.append(limited(self._moved[None, axes], limit)[0])
        return np.concatenate(parts)


def limited(values: Array, limit: float) -> Array:
    """Vectors (T, N) of at most this length: unchanged up to half of it, then shortened smoothly.

    >>> limited(np.array([[0.3, 0.4], [30.0, 40.0]]), 1.0).tolist()
    [[0.3, 0.4], [0.6, 0.8]]
    """
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    half = limit / 2
    beyond = half + half * np.tanh(np.maximum(length - half, 0.0) / half)
    return np.where(length > half, values * beyond / np.maximum(length, half), values)


def eased(values: Array, shot: NDArray[np.int32], fps: float, cut_s: float = _EASE_S) -> Array:
    """Values (T, N) that pass smoothly from one run to the next: the jump between them dies away after the change.

    It takes `_EASE_S` where the face goes away or comes back, and `cut_s` at a cut.
    """
    out = values.copy()
    for run in runs(shot)[1:]:
        before, first = run.start - 1, run.start
        seconds = _EASE_S if AWAY in (shot[before], shot[first]) else cut_s
        t = np.minimum(np.arange(1, run.stop - first + 1) / (seconds * fps + 1.0), 1.0)
        left = 1.0 - t * t * (3.0 - 2.0 * t)
        out[run] += left[:, None] * (out[before] - out[first])
    return out


def eased_expression(values: Array, shot: NDArray[np.int32], fps: float) -> Array:
    """`eased` for expressions, which at a cut soon follow the sound again."""
    return eased(values, shot, fps, _CUT_EXPRESSION_S)


def report(motion: Motion, references: NDArray[np.int64], how: HeadMotion) -> str:
    """What was done to the framing of a driving motion, in a sentence; empty where there was nothing to do."""
    total, away = len(motion), int((motion.shot == AWAY).sum())
    cuts = len(set(motion.shot.tolist()) - {AWAY}) - 1
    parts = []
    if cuts > 0:
        parts.append(f"{cuts} cut{'s' if cuts > 1 else ''}: each shot moves from the portrait's own pose")
    if away:
        parts.append(f"the face is away in {away} of {total} frames: the portrait returns to rest")
    apart = neck_place(motion.camera) - displacement(motion, references, how)
    for run in runs(motion.shot):
        apart[run] -= apart[references[run.start] if how == "full" else run.start].copy()
    held = int((np.abs(apart).max(axis=1) > _TOLD)[motion.shot != AWAY].sum())
    if held and how != "rotation":
        remedy = "; --head-motion full follows farther" if how == "steady" else ""
        parts.append(f"the head is kept near its place in {held} of {total} frames{remedy}")
    return "; ".join(parts)
