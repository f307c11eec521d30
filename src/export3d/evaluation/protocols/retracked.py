"""What the tracker and identity networks see in generated frames across identities, and the measures made of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export3d.camera import head_angles, head_position
from export3d.data.shards import FPS
from export3d.evaluation.measures import facial_motion, sharpness, temporal
from export3d.evaluation.measures.face_distances import aed, apd, apd6
from export3d.evaluation.measures.face_readers import Expression
from export3d.evaluation.measures.identity import Identity
from export3d.evaluation.measures.image import Measure
from export3d.evaluation.protocols.scoring import enlarged
from export3d.face import pose
from export3d.face.crop import CROP_SIZE
from export3d.face.tracker import Tracker
from export3d.motion.compare import compare
from export3d.motion.motion import Motion

Picture = NDArray[np.uint8]

RETRACKED = ("yaw", "jawOpen", "eyeBlink")
"""Curves that are tracked again and correlated with the requested motion."""


class SeenFrames:
    """Frames (K, R, R, 3) with their track and identities, read at 256 pixels; frames without a face are interpolated.

    Attributes:
        pictures: the frames, uint8.
        track: of the frames.
        landmarks: (K, 478, 2) pixels at 256.
        identity: per descriptor (K, D).
        curves: (K, 8) of the face, see `facial_motion.curves`; NaN without a face.
        read: expression (K, E), angles (K, 3) and position (K, 3) by `reader`, NaN without a face; None without it.
    """

    def __init__(
        self,
        pictures: Picture,
        name: str,
        tracker: Tracker,
        identities: Sequence[Identity],
        reader: Expression | None = None,
    ) -> None:
        large = enlarged(pictures)
        self.pictures = pictures
        self.track = tracker.track_frames(large, FPS, name)
        self.landmarks = self.track.crop.from_crop(self.track.landmarks)
        self.identity = [who.many(large, self.landmarks) for who in identities]
        seen = np.where(self.track.found[:, None, None], self.landmarks, np.nan)
        scores = np.asarray(self.track.motion.expression, dtype=np.float64)
        self.curves = facial_motion.curves(seen, scores)
        self.read = None if reader is None else reader(list(large), seen, scores)


def movement_scores(asked: Motion, seen: SeenFrames) -> dict[str, float]:
    """AED, APD and correlations of frames with the requested motion, and the share in which a face was found."""
    tracked = seen.track.motion
    agreement = compare(asked, tracked)
    labels, _ = pose.fit_cameras(seen.landmarks, CROP_SIZE, scores=tracked.expression)
    return {
        "aed": float(np.abs(asked.expression - tracked.expression).mean()),
        "apd": float(np.mean([agreement["mean_abs_difference"][name] for name in ("yaw", "pitch", "roll")])),
        "apd6": float(apd6(_pose6(asked.camera), _pose6(labels)).mean()),
        **{name: agreement["correlation"][name] for name in RETRACKED},
        "found": float(seen.track.found.mean()),
    }


def read_scores(ours: SeenFrames, driving: SeenFrames) -> dict[str, float]:
    """AED and APD of generated and driving frames by the same network (Sec. 6.4), over frames with a face in both."""
    assert ours.read is not None
    assert driving.read is not None
    both = ours.track.found & driving.track.found
    if not both.any():
        return dict.fromkeys(("aed", "apd", "apd6"), float("nan"))
    (e1, a1, p1), (e2, a2, p2) = ([part[both] for part in seen.read] for seen in (ours, driving) if seen.read)
    six = (np.concatenate([np.radians(angles), place], axis=1) for angles, place in ((a1, p1), (a2, p2)))
    return {"aed": float(aed(e1, e2).mean()), "apd": float(apd(a1, a2).mean()), "apd6": float(apd6(*six).mean())}


def _pose6(cameras: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Labels (K, 25) to (K, 6): angles in radians, then the position of the head."""
    return np.concatenate([np.radians(head_angles(cameras)), head_position(cameras)], axis=-1)


def cross_measures(identities: Sequence[Identity], network: bool = False, named: bool = True) -> tuple[Measure, ...]:
    """The measures of the protocol, in the order of the tables.

    Args:
        identities: descriptors for CSIM.
        network: a network reads expression and pose, in generated and driving frames.
        named: the requested expressions are ARKit scores; if not, their place is taken by those tracked in the driving
            frames.
    """
    measures = []
    for who in identities:
        csim_of = "cosine of identity, generated frames and source frame"
        measures += [
            Measure(f"csim_{who.name}", f"CSIM {who.name}", True, 3, csim_of),
            Measure(f"leak_{who.name}", f"leak {who.name}", False, 3, "the same, generated frames and driving frames"),
        ]
    compared = "tracked again, from the requested motion"
    values, unit = "52 ARKit scores", "scene units (54 cm)"
    if network:
        compared = "read by the named network in generated and driving frames"
        values, unit = "64 expression coefficients", "units of 10 cm"
    position = f"mean |difference| of three angles in radians and position in {unit}, {compared}"
    curves = {name: "the requested motion" if named or name == "yaw" else "the driving frames" for name in RETRACKED}
    return (
        *measures,
        Measure("aed", "AED", False, 4, f"mean |difference| of {values}, {compared}"),
        Measure("apd", "APD (degrees)", False, 2, f"mean |difference| of yaw, pitch and roll, {compared}"),
        Measure("apd6", "APD (6 numbers)", False, 4, position),
        *(
            Measure(name, name, True, 2, f"Pearson correlation of {name}, tracked again, with {wanted}")
            for name, wanted in curves.items()
        ),
        Measure("found", "face found", True, 3, "share of the frames in which the tracker finds a face"),
        *facial_motion.MEASURES,
        *temporal.MEASURES,
        sharpness.MEASURE,
    )
