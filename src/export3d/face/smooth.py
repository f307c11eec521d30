"""Smoothing without delay: removes jitter, keeps blinks and head turns.

Every value is replaced by that of a parabola fitted to its neighbours with Gaussian weights (local quadratic
regression, after Savitzky and Golay). The window is symmetric, so there is no lag. A parabola follows peaks that a
moving average would flatten. No pose is smoothed across a cut. Widths are in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

import export3d.camera as camera
from export3d.errors import ConfigError

Array = NDArray[np.floating]

_GLITCH_DEG = 4.0
_GLITCH_FRAMES = 3
_CUT = np.array([8.0, 8.0, 8.0, 0.02, 0.02, 0.08])
"""Minimum change between two frames at a cut: degrees, direction (a twelfth of the crop), log distance."""
_CUT_RATIO = 3.0
_LOST_S = 0.4
"""A face that is lost for longer is away."""
_RESIZED = 1.15
"""A face that comes back so much larger or smaller was filmed anew."""
_PIECE = 256
"""Frames fitted at once, which bounds the memory use."""


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """Standard deviations of the Gaussian weights, seconds; 0 disables smoothing.

    Attributes:
        pose_s: head angles and position in the image.
        distance_s: distance along the optical axis. With a long lens it is poorly determined and fluctuates by 1-3 %.
        expression_s: expression scores; short, because a blink lasts a tenth of a second.
    """

    pose_s: float = 0.08
    distance_s: float = 0.4
    expression_s: float = 0.04

    def __post_init__(self) -> None:
        if not min(self.pose_s, self.distance_s, self.expression_s) >= 0:
            raise ConfigError("smoothing widths must be zero or positive seconds")


def smooth_cameras(
    labels: ArrayLike, fps: float, smoothing: Smoothing | None = None, shot: NDArray[np.int32] | None = None
) -> Array:
    """Smooth camera labels: (T, 25) to (T, 25); intrinsics become those of the face crop.

    Head angles and the direction to the head are smoothed lightly, the distance more. A turn by more than 4 degrees
    that returns within one to three frames is treated as a detector glitch and removed. The two sides of a cut are
    smoothed separately: where `shot` (T,) changes (see `shots`), by default at the `cuts`.
    """
    widths = smoothing or Smoothing()
    labels = np.asarray(labels, dtype=np.float64)
    if len(labels) < 2:
        return labels.copy()
    angles, position = pose_numbers(labels)
    if widths.pose_s > 0:
        angles = remove_glitches(angles, _GLITCH_DEG)
    sigma = np.array([widths.pose_s] * 5 + [widths.distance_s]) * fps
    numbers = np.concatenate([angles, position], axis=1)
    pieces = np.split(numbers, cuts(numbers) if shot is None else np.flatnonzero(np.diff(shot)) + 1)
    numbers = np.concatenate([np.stack([smooth(p[:, i], s) for i, s in enumerate(sigma)], axis=1) for p in pieces])
    return from_pose_numbers(numbers[:, :3], numbers[:, 3:])


def smooth_expression(expression: ArrayLike, fps: float, smoothing: Smoothing | None = None) -> NDArray[np.float32]:
    """Smooth expression scores: (T, 52) to (T, 52) float32 in 0..1."""
    width = (smoothing or Smoothing()).expression_s * fps
    return smooth(np.asarray(expression, dtype=np.float64), width).clip(0.0, 1.0).astype(np.float32)


def smooth_shoulders(
    shoulders: ArrayLike, labels: ArrayLike, fps: float, smoothing: Smoothing, shot: NDArray[np.int32]
) -> Array:
    """What `Motion.shoulders` says, from `Shoulders.step` with places in the crop, crop widths: (T, 6) to (T, 5).

    They are smoothed as head poses are, measured from the neck of smooth cameras (T, 25), and then from their median
    over the frames of one shot (T,) and one origin. Another origin in the same shot goes on where the last one ended,
    and for less than `_LOST_S` it is held.
    """
    values, origin = np.split(np.array(shoulders, dtype=np.float64), [-1], axis=1)
    held: Array | None = None
    for part in np.split(np.arange(len(values)), np.flatnonzero(np.diff(shot) | (np.diff(origin[:, 0]) != 0)) + 1):
        if part[0] == 0 or shot[part[0]] != shot[part[0] - 1]:
            held = None
        sure = values[part, 2] > 0.0
        if not sure.any() or shot[part[0]] < 0:
            values[part] = 0.0
            continue
        if held is not None and len(part) < _LOST_S * fps:
            values[part] = held
            continue
        sureness = smooth(values[part, 2], smoothing.pose_s * fps, order=0)
        beside = beside_neck(smooth(values[part], smoothing.pose_s * fps), np.asarray(labels)[part])
        values[part] = beside - (np.median(beside[sure], axis=0) if held is None else beside[sure][0] - held)
        values[part, 2] = sureness
        held = values[part[-1]].copy()
    return values


def beside_neck(shoulders: Array, labels: Array) -> Array:
    """Shoulders (T, 5) in the crop, crop widths, as they are beside the neck of cameras (T, 25)."""
    neck = camera.neck(labels)
    out = np.array(shoulders, dtype=np.float64)
    out[:, :2] -= neck[:, :2]
    out[:, 4] += neck[:, 2]
    return out


def pose_numbers(labels: ArrayLike) -> tuple[Array, Array]:
    """Convert labels (T, 25) to numbers that can be averaged.

    Returns:
        Head angles (T, 3) in degrees, unwrapped; and (T, 3): the head's direction x/z, y/z, and log z.
    """
    labels = np.asarray(labels, dtype=np.float64)
    angles = np.unwrap(camera.head_angles(labels), axis=0, period=360.0)
    position = camera.head_position(labels)
    distance = np.maximum(position[:, 2:], 1e-6)
    return angles, np.concatenate([position[:, :2] / distance, np.log(distance)], axis=1)


def from_pose_numbers(angles: Array, position: Array) -> Array:
    """Inverse of `pose_numbers`, with the intrinsics of the face crop."""
    distance = np.exp(position[:, 2:])
    return camera.from_pose(angles, np.concatenate([position[:, :2] * distance, distance], axis=1))


def cuts(numbers: ArrayLike) -> list[int]:
    """Frame numbers at which a new shot begins, from the concatenated `pose_numbers` (T, 6).

    A cut is a large change between two frames that is also more than three times as large as the two changes before it
    and the two after it. A fast head turn does not qualify: it accelerates and slows down over several frames.
    """
    numbers = np.asarray(numbers, dtype=np.float64)
    change = (np.abs(np.diff(numbers, axis=0)) / _CUT).max(axis=1)
    padded = np.pad(change, 2)
    around = np.max([padded[:-4], padded[1:-3], padded[3:-1], padded[4:]], axis=0)
    return [int(frame) + 1 for frame in np.flatnonzero((change > 1.0) & (change > _CUT_RATIO * around))]


def shots(labels: ArrayLike, found: NDArray[np.bool_], fps: float) -> NDArray[np.int32]:
    """The shot that each frame of a clip belongs to, as `Motion.shot` has it.

    A new shot begins at a cut (`cuts`). A face that is lost for a moment may have moved meanwhile: there the change
    that makes a cut grows with the number of frames. A face that is lost for longer than `_LOST_S` is away. When it
    comes back, the shot goes on, unless the face's size differs by more than `_RESIZED`.

    Args:
        labels: (N, 25), not smoothed, of the N frames in which the face was found; at least one.
        found: (T,).
        fps: frames per second.

    Returns:
        (T,) int32: 0, 1, ... and -1 where the face is away.
    """
    angles, position = pose_numbers(labels)
    numbers = np.concatenate([remove_glitches(angles, _GLITCH_DEG), position], axis=1)
    seen, steps = np.flatnonzero(found), np.abs(np.diff(numbers, axis=0))
    gap = np.diff(seen) - 1
    new = np.zeros(len(seen), dtype=np.int32)
    new[cuts(numbers)] = 1
    new[1:] &= (steps / _CUT).max(axis=1) > 1.0 + gap / 4.0
    new[1:] = np.where(gap > _LOST_S * fps, steps[:, 5] > np.log(_RESIZED), new[1:])
    number = np.cumsum(new, dtype=np.int32)
    frames = np.arange(len(found))
    before = (np.searchsorted(seen, frames, side="right") - 1).clip(0)
    after = np.searchsorted(seen, frames).clip(0, len(seen) - 1)
    lost = np.where(frames < seen[0], seen[0], np.where(frames > seen[-1], len(found) - 1 - seen[-1], 0))
    lost = np.maximum(lost, seen[after] - seen[before] - 1)
    return np.where(lost > _LOST_S * fps, -1, number[before]).astype(np.int32)


def smooth(values: ArrayLike, sigma: float, order: int = 2) -> Array:
    """Local polynomial regression along the first axis: (T, ...) to (T, ...).

    Args:
        sigma: standard deviation of the Gaussian weights, frames; below a third of a frame, values are unchanged.
        order: degree of the polynomial.

    At the ends the window is truncated, not padded. Constant values are returned bit for bit.
    """
    values = np.asarray(values, dtype=np.float64)
    count, radius = len(values), int(3.0 * sigma)
    if radius < 1 or count < 3:
        return values.copy()
    order = min(order, count - 1)
    moved = (values - values[:1]).reshape(count, -1)
    fitted = np.empty_like(moved)
    index = np.arange(order + 1)
    for first in range(0, count, _PIECE):
        last = min(first + _PIECE, count)
        powers = np.zeros((last - first, 2 * order + 1))
        moments = np.zeros((last - first, order + 1, moved.shape[1]))
        for offset in range(-min(radius, count - 1), min(radius, count - 1) + 1):
            weight = np.exp(-0.5 * (offset / sigma) ** 2) * (offset / sigma) ** np.arange(2 * order + 1)
            begin, end = max(first, -offset), min(last, count - offset)
            if begin < end:
                powers[begin - first : end - first] += weight
                moments[begin - first : end - first] += (
                    weight[: order + 1, None] * moved[begin + offset : end + offset, None]
                )
        fitted[first:last] = np.linalg.solve(powers[:, index[:, None] + index], moments)[:, 0]
    return np.asarray(values[:1] + fitted.reshape(values.shape))


def remove_glitches(values: ArrayLike, limit: float) -> Array:
    """Replace outliers by the median of their 7-frame neighbourhood.

    An outlier differs from that median by more than `limit` and by more than three robust standard deviations.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 3:
        return values.copy()
    padded = np.pad(values, ((_GLITCH_FRAMES, _GLITCH_FRAMES), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * _GLITCH_FRAMES + 1, axis=0)
    median = np.median(windows, axis=-1)
    spread = 1.4826 * np.median(np.abs(windows - median[..., None]), axis=-1)
    return np.where(np.abs(values - median) > np.maximum(limit, 3.0 * spread), median, values)
