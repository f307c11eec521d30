"""Whether eyes and mouth move as far and in the same direction as the driving face's.

A curve has one number per frame, read from landmarks in pixels and from ARKit scores. Lengths are divided by the
distance of the outer eye corners, so neither the face's size in the image nor a tilted head changes them:

- *lip gap*: from the inner middle of the upper lip to that of the lower lip.
- *lip width*: between the corners of the mouth.
- *lid gap*: from the middle of the upper eyelid to that of the lower, mean of both eyes.
- *gaze yaw* and *gaze pitch*: the iris centre's offset from the middle of the eye's corners, along their line (to the
  right in an upright image) and across it (downward), in widths of that eye, mean of both eyes. These are positions of
  the irises between the eyelids, not angles: a head that turns moves them too, in both faces alike.
- *mouthLeft*, *mouthRight*, *mouthPucker*: the scores.

Directions are compared by Pearson's r. How far the mouth and the eyelids move is compared by the slope of the
regression of our curve on the driving one, cov(ours, driving) / var(driving): 1 follows fully, 0.5 half way; a curve
that moves far but at other times has a slope near 0.

The tracker's noise lowers r and flattens a slope, so a measure is defined only if the driving curve moves: its standard
deviation over the clip is at least `LEAST`. The noise was measured by reading every eighth frame of 19 clips twice, in
two framings (difference over the square root of 2). For slopes the limit is five times the noise, which then flattens
them by 4% at most. For correlations it is at least three times, which costs up to 0.1. The noise of a score grows with
the score.

                  noise, median (90% of the clips below)   `LEAST`
    gaze yaw      0.006 (0.008)                            0.02     eye widths
    gaze pitch    0.004 (0.006)                            0.015
    mouthLeft     0.0005 (0.002)                           0.005    score units
    mouthRight    0.0005 (0.004)                           0.005
    mouthPucker   0.013 (0.04)                             0.06
    lip gap       0.004 (0.006)                            0.02     distances of the outer eye corners
    lip width     0.005 (0.007)                            0.025
    lid gap       0.002 (0.003)                            0.01
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export3d.errors import ShapeError, check_shape
from export3d.evaluation.measures.image import Measure
from export3d.face.landmark_sets import EYE_CORNERS, INNER_LIP_MIDDLES, IRISES, LID_MIDDLES, MOUTH_CORNERS
from export3d.face.mesh import LANDMARKS
from export3d.motion.arkit import ARKIT52
from export3d.motion.compare import pearson

Array = NDArray[np.float64]
Floats = NDArray[np.floating[Any]]

LEAST = {
    "gaze_yaw": 0.02,
    "gaze_pitch": 0.015,
    "mouthLeft": 0.005,
    "mouthRight": 0.005,
    "mouthPucker": 0.06,
    "lip_gap": 0.02,
    "lip_width": 0.025,
    "lid_gap": 0.01,
}
"""Smallest standard deviation of a driving curve, in its unit."""
CURVES = tuple(LEAST)
"""The curves, in the order of `curves`."""
_FOLLOWED = ("lip_gap", "lip_width", "lid_gap")
"""Curves that are compared by slope, the others by correlation."""
_SCORES = ("mouthLeft", "mouthRight", "mouthPucker")
_FEWEST = 3
"""Fewest frames of a correlation; two points always lie on a line."""
_EYES = ((*EYE_CORNERS[0], IRISES[0][0]), (*EYE_CORNERS[1][::-1], IRISES[1][0]))
"""Corners and iris centre of each eye; in the image of a frontal face the first corner is on the left."""

MEASURES = tuple(
    Measure(
        name,
        f"{name.replace('_', ' ')} (slope)",
        None,
        2,
        f"slope of the regression of the {name.replace('_', ' ')} in frames on that in driving frames, in distances of "
        "the outer eye corners; 1 is ideal, below 1 moves less",
    )
    if name in _FOLLOWED
    else Measure(
        name,
        f"{name.replace('_', ' ')} (r)",
        True,
        2,
        f"Pearson correlation of {name.replace('_', ' ')}, read in frames and driving frames",
    )
    for name in CURVES
)


def curves(landmarks: Floats, scores: Floats) -> Array:
    """The curves of T frames.

    Args:
        landmarks: (T, 478, 2) MediaPipe's, pixels; NaN without a face.
        scores: (T, 52) ARKit scores.

    Returns:
        (T, 8) in the order of `CURVES`; all NaN without a face.

    Raises:
        ShapeError: other shapes.
    """
    check_shape(landmarks, f"T {LANDMARKS} 2", "landmarks")
    check_shape(scores, f"{len(landmarks)} {len(ARKIT52)}", "scores")
    points = np.asarray(landmarks, dtype=np.float64) @ np.array([1.0, 1.0j])
    size = _distance(points, (EYE_CORNERS[0][0], EYE_CORNERS[1][0]))
    gaze = np.zeros(len(points), dtype=np.complex128)
    with np.errstate(invalid="ignore"):  # NaN divided by NaN
        for left, right, iris in _EYES:
            middle, width = (points[:, left] + points[:, right]) / 2, points[:, right] - points[:, left]
            gaze += (points[:, iris] - middle) / width / 2
    lids = sum(_distance(points, middles) for middles in LID_MIDDLES.values()) / 2
    found = {
        "gaze_yaw": gaze.real,
        "gaze_pitch": gaze.imag,
        **{name: np.asarray(scores[:, ARKIT52.index(name)]) for name in _SCORES},
        "lip_gap": _distance(points, INNER_LIP_MIDDLES) / size,
        "lip_width": _distance(points, MOUTH_CORNERS) / size,
        "lid_gap": lids / size,
    }
    out = np.stack([found[name] for name in CURVES], axis=-1).astype(np.float64)
    out[np.isnan(out).any(axis=1)] = np.nan
    return out


class FacialMotion:
    """How one prediction of one clip follows its driving frames.

    Frames are added chunk by chunk; only their curves are kept.
    """

    def __init__(self) -> None:
        self._ours: list[Array] = []
        self._theirs: list[Array] = []

    def add(self, ours: Array, theirs: Array) -> None:
        """The next T frames: `curves` (T, 8) of ours and of the driving frames.

        Raises:
            ShapeError: other shapes.
        """
        if ours.shape != theirs.shape:
            raise ShapeError(f"{len(ours)} predictions need as many driving frames, got {len(theirs)}")
        self._ours.append(ours)
        self._theirs.append(theirs)

    def result(self) -> dict[str, float]:
        """The clip's figures, over the frames with a face in both.

        Returns:
            `MEASURES` by name: correlations, -1 to 1, and slopes, ideally 1. NaN for fewer than three such frames,
            where the driving curve moves less than `LEAST`, and for the correlation of a constant curve of ours.
        """
        return follows(*(np.concatenate([np.zeros((0, len(CURVES))), *parts]) for parts in (self._ours, self._theirs)))


def follows(ours: Array, theirs: Array) -> dict[str, float]:
    """The figures of whole curves (T, 8) of ours and of the driving frames, see `FacialMotion.result`."""
    both = ~np.isnan(ours).any(axis=1) & ~np.isnan(theirs).any(axis=1)
    return {name: _follows(name, x, y) for name, x, y in zip(CURVES, ours[both].T, theirs[both].T)}


def _follows(name: str, ours: Array, theirs: Array) -> float:
    """A curve's slope or correlation; NaN where it is not defined."""
    if len(theirs) < _FEWEST or theirs.std() < LEAST[name]:
        return math.nan
    if name not in _FOLLOWED:
        return pearson(ours, theirs)
    away = theirs - theirs.mean()
    return float(away @ ours / (away @ away))


def _distance(points: NDArray[np.complex128], ends: tuple[int, int]) -> Array:
    """(T,) pixels between two landmarks."""
    return np.asarray(np.abs(points[:, ends[0]] - points[:, ends[1]]))
