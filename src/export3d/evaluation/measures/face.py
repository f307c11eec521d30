"""Face measures of driven frames: AKD, CSIM, AED and APD (Sec. 4.1, 6.4), and correlations in time.

`FaceScorer.read` reads an image once: face, 478 landmarks and ARKit scores by MediaPipe, 68 points, expression, head
pose and identity. Readings are then compared, so a target that several methods share is read once. Every image is read
independently: nothing is smoothed, and equal images have equal readings. The head pose is that of the canonical mesh in
the full image, not in a crop around the detected face, so a shifted face counts as shifted.

The paper uses face-alignment's points, Deep3DFaceRecon's coefficients and an ArcFace network. Here the points are
MediaPipe's at the 68 locations and the expression is 52 ARKit scores, unless other networks are named: definitions are
the paper's; units and absolute values are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export3d.errors import ConfigError, ShapeError
from export3d.evaluation.measures.face_distances import aed, akd, apd, apd6
from export3d.evaluation.measures.face_readers import (
    ARKIT,
    MEDIAPIPE,
    Expression,
    LandmarkDetector,
    TrackedExpression,
    frames_with_landmarks,
    load_expression,
    load_landmarks,
)
from export3d.evaluation.measures.identity import csim, load_identity
from export3d.evaluation.measures.image import Measure
from export3d.face.crop import CROP_SIZE, CropBox
from export3d.face.identity import PACKAGED
from export3d.face.landmarks import Face, FaceLandmarker, Landmarker
from export3d.face.mesh import LANDMARKS
from export3d.image import resize, to_tensor, to_uint8
from export3d.motion.arkit import ARKIT52
from export3d.motion.compare import pearson

Picture = NDArray[np.uint8]
Array = NDArray[np.float64]
Float = NDArray[np.floating[Any]]

_CURVES = ("yaw", "jawOpen", "eyeBlink")
_FEWEST = 3
"""Fewest frames of a correlation; two points always lie on a line."""
_WIDER = 2.0
"""If no face is found, the image is searched again with a margin that makes it this many times as wide."""


@dataclass(frozen=True, eq=False)
class Reading:
    """What was read from T images; NaN wherever `found` is False.

    Attributes:
        found: (T,) bool, whether a face was found.
        landmarks68: (T, 68, 2) pixels of the image at 256 x 256.
        landmarks: (T, 478, 2) MediaPipe's, in the same pixels.
        expression: (T, E), of the expression reader.
        angles_deg: (T, 3) yaw, pitch and roll, degrees.
        position: (T, 3) of the head, scene units (Deep3DFaceRecon: units of 10 cm).
        scores: (T, 52) ARKit scores, whatever the expression reader; jawOpen and eyeBlink are taken from them.
        identity: descriptor to (T, D) unit vectors; empty if identity was not read.
    """

    found: NDArray[np.bool_]
    landmarks68: Array
    landmarks: Array
    expression: Array
    angles_deg: Array
    position: Array
    scores: Array
    identity: dict[str, Array]

    def __len__(self) -> int:
        return len(self.found)

    def at(self, rows: NDArray[np.integer[Any]]) -> Reading:
        """The readings of some images, by number (N,)."""
        parts = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "identity"}
        identity = {name: vectors[rows] for name, vectors in self.identity.items()}
        return Reading(**{name: value[rows] for name, value in parts.items()}, identity=identity)

    @property
    def pose6(self) -> Array:
        """(T, 6) angles in radians, then position: the input of `apd6`."""
        return np.concatenate([np.radians(self.angles_deg), self.position], axis=1)

    @property
    def curves(self) -> Array:
        """(T, 3): yaw in degrees, jawOpen, and eyeBlink, the mean of both sides."""
        jaw, *lids = (ARKIT52.index(name) for name in ("jawOpen", "eyeBlinkLeft", "eyeBlinkRight"))
        return np.stack([self.angles_deg[:, 0], self.scores[:, jaw], self.scores[:, lids].mean(axis=1)], axis=-1)


class FaceScorer:
    """Reads faces and compares the readings; close it, or use it in a `with` statement.

    Args:
        landmarks: detector of the 68 points behind AKD, see `load_landmarks`.
        identities: descriptors behind CSIM, see `identity.load_identity`.
        expression: reader of expression and pose behind AED and APD, see `load_expression`.
        motion: whether `measures` includes those of `Movement`, whose frames must be neighbours.
        landmarker: face detector; by default MediaPipe's.

    Attributes:
        measures: all measures of `frame_scores` and `Movement`, in the order of the tables.

    Raises:
        MissingExtra: mediapipe, or onnxruntime for an ONNX file, is not installed.
        CheckpointError, ConfigError: as the `load_` functions.
    """

    measures: tuple[Measure, ...]

    def __init__(
        self,
        landmarks: str | Path = MEDIAPIPE,
        identities: Sequence[str | Path] = (PACKAGED,),
        expression: str | Path = ARKIT,
        motion: bool = True,
        *,
        landmarker: Landmarker | None = None,
    ) -> None:
        self._points = load_landmarks(landmarks)
        self._identities = [load_identity(name) for name in identities]
        names = [who.name for who in self._identities]
        if len(set(names)) != len(names):
            raise ConfigError(f"two identity descriptors are called {', '.join(names)}; rename a file or leave one out")
        self._expression = load_expression(expression)
        self.measures = _measures(self._points, self._identities, self._expression, motion)
        self._landmarker: Landmarker = FaceLandmarker() if landmarker is None else landmarker

    def __enter__(self) -> FaceScorer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the networks; may be called twice."""
        self._landmarker.close()

    @property
    def description(self) -> dict[str, str]:
        """The networks, for a report's settings."""
        return {
            "landmarks": self._points.description,
            "identity": "; ".join(who.description for who in self._identities),
            "expression and pose": self._expression.description,
        }

    def read(
        self, pictures: Sequence[Picture] | Picture, name: str = "the images", *, identity: bool = True
    ) -> Reading:
        """Read T images. Of several faces only the largest is read; equal images are read once.

        Args:
            pictures: uint8 (R, R, 3) RGB each, or an array (T, R, R, 3); resized to 256.
            name: of the images in messages.
            identity: whether to read the identity; CSIM does not need that of targets.

        Returns:
            T readings; an image without a face is not an error.

        Raises:
            ShapeError: not square 8-bit RGB images.
        """
        seen: dict[bytes, int] = {}
        which = np.array(
            [seen.setdefault(_check_square_rgb(p, name).tobytes(), len(seen)) for p in pictures], dtype=np.int64
        )
        _, first = np.unique(which, return_index=True)
        reading = self._read([_at_256(pictures[int(t)]) for t in first], identity)
        return reading.at(which)

    def frame_scores(self, prediction: Reading, target: Reading, source: Reading) -> dict[str, Array]:
        """Compare T predicted frames with their targets, and their faces with the source's.

        Args:
            prediction, target: of T images.
            source: of one image, or of T.

        Returns:
            (T,) by name of `akd`, `csim_...`, `aed`, `apd` and `apd6`; NaN if either face is missing.

        Raises:
            ShapeError: readings of different lengths.
        """
        count = len(prediction)
        if len(target) != count or len(source) not in (1, count):
            raise ShapeError(
                f"{count} predictions need as many targets and one source, got {len(target)} and {len(source)}"
            )
        scores = {"akd": akd(prediction.landmarks68, target.landmarks68)}
        both = prediction.found & source.found
        for who in self._identities:
            scores[f"csim_{who.name}"] = cosine = np.full(count, np.nan)
            if both.any():
                ours, theirs = prediction.identity[who.name], source.identity[who.name]
                cosine[both] = csim(ours, theirs)[both]
        scores["aed"] = aed(prediction.expression, target.expression)
        scores["apd"] = apd(prediction.angles_deg, target.angles_deg)
        scores["apd6"] = apd6(prediction.pose6, target.pose6)
        return scores

    def _read(self, pictures: list[Picture], identity: bool) -> Reading:
        faces = [self._face(picture) for picture in pictures]
        landmarks, scores = (np.full((len(faces), *shape), np.nan) for shape in ((LANDMARKS, 2), (len(ARKIT52),)))
        for t, face in enumerate(faces):
            if face is not None:
                landmarks[t], scores[t] = face.landmarks[:, :2], face.scores
        expression, angles, position = self._expression(pictures, landmarks, scores)
        return Reading(
            found=np.array([face is not None for face in faces], dtype=bool),
            landmarks68=self._points(pictures, landmarks),
            landmarks=landmarks,
            expression=expression,
            angles_deg=angles,
            position=position,
            scores=scores,
            identity=self._describe(pictures, landmarks) if identity else {},
        )

    def _face(self, picture: Picture) -> Face | None:
        """The largest face. The second search, with a margin, finds a face that fills the image."""
        faces = self._landmarker.detect(picture)
        if not faces:
            middle = CROP_SIZE / 2
            faces = self._landmarker.detect(picture, CropBox((middle, middle), _WIDER * CROP_SIZE))
        return faces[0] if faces else None

    def _describe(self, pictures: Sequence[Picture], landmarks: Array) -> dict[str, Array]:
        out, seen = {}, frames_with_landmarks(landmarks)
        for who in self._identities:
            vectors = who.many([pictures[int(t)] for t in seen], landmarks[seen])
            out[who.name] = np.full((len(pictures), vectors.shape[1]), np.nan)
            out[who.name][seen] = vectors
        return out


class Movement:
    """Whether a clip moves as its target: correlations of yaw, jawOpen and eyeBlink.

    Frames are added chunk by chunk; only three numbers per frame are kept.
    """

    def __init__(self) -> None:
        self._ours: list[Array] = []
        self._theirs: list[Array] = []

    def add(self, prediction: Reading, target: Reading) -> None:
        """The next T frames.

        Raises:
            ShapeError: readings of different lengths.
        """
        if len(prediction) != len(target):
            raise ShapeError(f"{len(prediction)} predictions need as many targets, got {len(target)}")
        self._ours.append(prediction.curves)
        self._theirs.append(target.curves)

    def result(self) -> dict[str, float]:
        """The clip's figures.

        Returns:
            `yaw`, `jawOpen`, `eyeBlink`: Pearson correlation over the frames in which both faces were found, -1 to 1;
            NaN for fewer than three such frames and for constant curves. `found`: share of the frames with a face in
            the target that also have one in the prediction; NaN if the target never has one.
        """
        ours, theirs = (np.concatenate([np.zeros((0, len(_CURVES))), *curves]) for curves in (self._ours, self._theirs))
        asked = ~np.isnan(theirs).any(axis=1)
        both = asked & ~np.isnan(ours).any(axis=1)
        enough = int(both.sum()) >= _FEWEST
        out = {
            name: pearson(ours[both, i], theirs[both, i]) if enough else float("nan") for i, name in enumerate(_CURVES)
        }
        return {**out, "found": float(both.sum() / asked.sum()) if asked.any() else float("nan")}


def _measures(
    points: LandmarkDetector, identities: Sequence[Any], expression: Expression, motion: bool
) -> tuple[Measure, ...]:
    unit = "" if isinstance(expression, TrackedExpression) else ", of the named network"
    values = "52 ARKit scores" if isinstance(expression, TrackedExpression) else "64 expression coefficients"
    place = "scene units (54 cm)" if isinstance(expression, TrackedExpression) else "units of 10 cm"
    frame = [
        Measure("akd", "AKD (px)", False, 2, f"mean of |dx| + |dy| over 68 points at 256 px; {points.description}"),
        *(
            Measure(
                f"csim_{who.name}",
                f"CSIM {who.name}",
                True,
                3,
                f"cosine of identity, frame and source; {who.description}",
            )
            for who in identities
        ),
        Measure("aed", "AED", False, 4, f"mean |difference| of {values}, read in frame and target"),
        Measure("apd", "APD (degrees)", False, 2, f"mean |difference| of yaw, pitch and roll{unit}"),
        Measure(
            "apd6", "APD (6 numbers)", False, 4, f"mean |difference| of three angles in radians and position in {place}"
        ),
    ]
    clip = [
        Measure(name, f"{name} (r)", True, 2, f"Pearson correlation of {name}, read in frames and targets")
        for name in _CURVES
    ]
    share = "share of the frames whose target shows a face in which the tracker finds one"
    clip.append(Measure("found", "face found", True, 3, share))
    return (*frame, *(clip if motion else ()))


def _check_square_rgb(picture: Picture, name: str) -> Picture:
    if picture.ndim != 3 or picture.shape[0] != picture.shape[1] or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise ShapeError(f"{name} must be square uint8 RGB images, got {picture.dtype} {picture.shape}")
    return picture


def _at_256(picture: Picture) -> Picture:
    """(256, 256, 3), resized if need be."""
    if picture.shape[0] == CROP_SIZE:
        return np.ascontiguousarray(picture)
    return np.asarray(to_uint8(resize(to_tensor(picture), CROP_SIZE)))
