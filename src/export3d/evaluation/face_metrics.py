"""What a tracker and a descriptor see in driven frames: AKD, CSIM, AED and APD (Sec. 4.1, 6.4), correlations in time.

A picture is read once (`FaceScorer.read`): face, 478 landmarks and ARKit scores by MediaPipe, 68 points, expression,
head pose and identity. Readings are then compared, so that a target that several methods share is read once. Each
picture is read by itself: a reading depends on no other picture, nothing is smoothed, and equal pictures have equal
readings. The head pose is therefore the canonical mesh's, and refers to the picture as it is, not to a crop around the
face that was found: a shifted face counts as shifted.

The paper's figures are made of face-alignment's points, Deep3DFaceRecon's coefficients and an ArcFace network. Here the
points are MediaPipe's at the places of the 68 and the expression is that of 52 ARKit scores, unless networks are named:
definitions are the paper's, units and absolute values are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from export3d.camera import head_angles, head_position
from export3d.errors import CheckpointError, ConfigError, ShapeError, check_shape
from export3d.evaluation.identity import PACKAGED, csim, face_chip, load_identity
from export3d.evaluation.metrics import Measure
from export3d.evaluation.networks import OnnxNetwork, by_name_or_file
from export3d.face import pose
from export3d.face.crop import CROP_SIZE, CropBox
from export3d.face.landmarks import Face, FaceLandmarker, Landmarker
from export3d.face.mesh import LANDMARKS, canonical_mesh
from export3d.image import resize, to_tensor, to_uint8
from export3d.motion import ARKIT52, pearson

Picture = NDArray[np.uint8]
Array = NDArray[np.float64]
Float = NDArray[np.floating[Any]]

IBUG68: tuple[int, ...] = (
    *(162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389),
    *(71, 63, 105, 66, 107, 336, 296, 334, 293, 301),
    *(168, 197, 5, 4, 75, 97, 2, 326, 305),
    *(33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380),
    *(61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181),
    *(78, 82, 13, 312, 308, 317, 14, 87),
)
"""MediaPipe's landmark at each of the 68 points of iBUG's scheme (300-W): jaw 0-16, brows 17-26, nose 27-35, eyes
36-47, outer lips 48-59, inner lips 60-67; each from the left of the picture of a frontal face."""

_ARKIT = "arkit52"
_MEDIAPIPE = "mediapipe"
_CURVES = ("yaw", "jawOpen", "eyeBlink")
_FEWEST = 3
"""Frames below which a correlation says nothing: two points always lie on a line."""
_WIDER = 2.0
"""Where no face is seen, the picture is looked at once more within a margin, this many times as wide."""

_FAN_SIDE, _FAN_UP = 200.0 / 195.0, 0.12
"""face-alignment's square around a face's box: this many times (width + height), raised by a part of the height."""
_FAN_SIZE = 256
_POINTS = "a network of 68 points"

_DEEP3D = "a Deep3DFaceRecon network"
_DEEP3D_SIZE = 224
_DEEP3D_SCALE = 102.0
"""Pixels of the chip to a unit (10 cm) of Deep3DFaceRecon's face."""
_DEEP3D_WIDTH = 257
_DEEP3D_EXPRESSION, _DEEP3D_ANGLE, _DEEP3D_TRANS = slice(80, 144), slice(224, 227), slice(254, 257)
_DEEP3D_POINTS = ((33, 133), (362, 263), (4,), (61,), (291,))
"""Eyes (mean of the corners), tip of the nose, corners of the mouth; left to right in the picture."""
_MESH_ORIGIN = np.array([0.0, 0.0, -0.207])
"""The canonical mesh's origin in units of Deep3DFaceRecon's face (as in `motion.load_bfm64`)."""


# --- distances --------------------------------------------------------------------------------------------------------


def akd(a: Float, b: Float) -> Array:
    """Average key-point distance (Sec. 6.4): mean over the points of |dx| + |dy|, the L1 distance of 68 points.

    Args:
        a, b: (T, 68, 2) pixels of a picture of 256.

    Returns:
        (T,) pixels, from 0, lower is better.

    >>> akd(np.zeros((1, 68, 2)), np.full((1, 68, 2), [3.0, -4.0])).tolist()
    [7.0]
    """
    return np.asarray(_difference(a, b, "T 68 2").sum(axis=-1).mean(axis=-1))


def aed(a: Float, b: Float) -> Array:
    """Average expression distance (Sec. 6.4): mean |difference| of expression values.

    Args:
        a, b: (T, E).

    Returns:
        (T,) in the values' own unit, from 0, lower is better.
    """
    return np.asarray(_difference(a, b, "T E").mean(axis=-1))


def apd(a: Float, b: Float) -> Array:
    """Average pose distance of the three angles: mean |difference| of yaw, pitch and roll.

    Args:
        a, b: (T, 3) degrees; 359 and 1 differ by 2.

    Returns:
        (T,) degrees, 0 to 180, lower is better.
    """
    return np.asarray(_turned(_difference(a, b, "T 3"), 360.0).mean(axis=-1))


def apd6(a: Float, b: Float) -> Array:
    """Average pose distance of six numbers, as the paper counts (Sec. 6.4): mean |difference| of angles and position.

    Args:
        a, b: (T, 6), three angles in radians and three of position in scene units of 54 cm (`Reading.pose6`).

    Returns:
        (T,) in the mixed unit, from 0, lower is better.
    """
    difference = _difference(a, b, "T 6")
    difference[:, :3] = _turned(difference[:, :3], 2.0 * np.pi)
    return np.asarray(difference.mean(axis=-1))


def _difference(a: Float, b: Float, pattern: str) -> Array:
    """|a - b| of arrays of one shape."""
    check_shape(a, pattern, "the first of two")
    check_shape(b, " ".join(map(str, np.shape(a))), "the second of two")
    return np.asarray(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)))


def _turned(difference: Array, turn: float) -> Array:
    """Angles from 0 to half a turn."""
    rest = difference % turn
    return np.asarray(np.minimum(rest, turn - rest))


# --- landmarks --------------------------------------------------------------------------------------------------------


class LandmarkDetector(Protocol):
    """Finds the 68 points.

    Attributes:
        name: of the detector.
        description: network and file, for the report.
    """

    name: str
    description: str

    def __call__(self, pictures: Sequence[Picture], landmarks: Array) -> Array:
        """The 68 points of T pictures.

        Args:
            pictures: uint8 (256, 256, 3) RGB.
            landmarks: (T, 478, 2) MediaPipe's, pixels; NaN where there is no face.

        Returns:
            (T, 68, 2) pixels; NaN where there is no face.
        """
        ...


def load_landmarks(name: str | Path = _MEDIAPIPE) -> LandmarkDetector:
    """The detector of a name (`mediapipe`) or of a 68-point network's `.onnx` file.

    Raises:
        ConfigError: neither.  CheckpointError: the file is missing or no such network.
        MissingExtra: onnxruntime is not installed.
    """
    return by_name_or_file(name, "landmark detector", (_MEDIAPIPE, MediaPipeLandmarks), (_POINTS, OnnxLandmarks))


class MediaPipeLandmarks:
    """MediaPipe's landmarks at the places of the 68 points (`IBUG68`); costs nothing more."""

    name = _MEDIAPIPE
    description = "68 of MediaPipe's 478 landmarks at iBUG's places"

    def __call__(self, pictures: Sequence[Picture], landmarks: Array) -> Array:
        """See `LandmarkDetector.__call__`."""
        return np.asarray(landmarks[:, list(IBUG68)], dtype=np.float64)


class OnnxLandmarks:
    """A network of 68 points from an ONNX file, such as an exported FAN of face-alignment, run on a face chip.

    The chip is upright, framed as face-alignment frames a face's box (here that of MediaPipe's landmarks), of the
    network's own input size (256 where the file leaves it open), RGB from 0 to 1. Of several fitting outputs the last
    one counts. Heatmaps (1, 68, h, w) are read as face-alignment reads them: the highest cell, a quarter of a cell
    towards its higher neighbour. Coordinates (1, 68, 2) or (1, 136) as x, y pairs may be pixels of the chip, 0 to 1
    across it, or -1 to 1.

    Raises:
        MissingExtra: onnxruntime is not installed.
        CheckpointError: the file is missing, or does not take (1, 3, S, S) and give 68 points.
    """

    def __init__(self, path: Path) -> None:
        self._network = OnnxNetwork(path, _POINTS, _FAN_SIZE, any_size=True)
        self.name = path.stem
        self._points(self._network.outputs(torch.zeros(3, self._network.size, self._network.size)))
        self.description = f"68-point network {self._network.description}, {self._network.size} px chip"

    def __call__(self, pictures: Sequence[Picture], landmarks: Array) -> Array:
        """See `LandmarkDetector.__call__`."""
        out = np.full((len(pictures), len(IBUG68), 2), np.nan)
        size = self._network.size
        for t in _known(landmarks):
            low, high = landmarks[t].min(axis=0), landmarks[t].max(axis=0)
            width, height = high - low
            centre = (low + high) / 2 - [0.0, _FAN_UP * height]
            box = CropBox((float(centre[0]), float(centre[1])), max(_FAN_SIDE * float(width + height), 1.0))
            out[t] = box.from_crop(self._points(self._network.outputs(_square_chip(pictures[t], box, size))), size)
        return out

    def _points(self, outputs: list[NDArray[np.float32]]) -> Array:
        """(68, 2) pixels of the chip."""
        size = self._network.size
        for output in reversed(outputs):
            if output.ndim == 4 and output.shape[:2] == (1, 68):
                return _peaks(output[0].astype(np.float64)) * (size / np.array(output.shape[:1:-1], dtype=np.float64))
            if output.shape in ((1, 68, 2), (1, 136)):
                points = output.reshape(68, 2).astype(np.float64)
                if np.abs(points).max() > 2.0:
                    return points
                return points * size if points.min() > -0.25 else (points + 1.0) * (size / 2)
        shapes = ", ".join(str(output.shape) for output in outputs)
        raise CheckpointError(
            f"{self._network.path} gives {shapes}, not heatmaps (1, 68, h, w) or coordinates (1, 68, 2); "
            "name a network of 68 points"
        )


def _peaks(maps: Array) -> Array:
    """(68, h, w) to (68, 2): x, y of the highest cell's centre, a quarter of a cell towards the higher neighbour."""
    count, height, width = maps.shape
    row, column = np.unravel_index(maps.reshape(count, -1).argmax(axis=1), (height, width))
    n, padded = np.arange(count), np.pad(maps, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    dx = np.sign(padded[n, row + 1, column + 2] - padded[n, row + 1, column])
    dy = np.sign(padded[n, row + 2, column + 1] - padded[n, row, column + 1])
    return np.stack([column + 0.5 + 0.25 * dx, row + 0.5 + 0.25 * dy], axis=-1)


# --- expression and pose ----------------------------------------------------------------------------------------------


class Expression(Protocol):
    """Finds expression and head pose.

    Attributes:
        description: network and file, units, for the report.
    """

    description: str

    def __call__(self, pictures: Sequence[Picture], landmarks: Array, scores: Array) -> tuple[Array, Array, Array]:
        """Expression, angles and position in T pictures.

        Args:
            pictures: uint8 (256, 256, 3) RGB.
            landmarks: (T, 478, 2) MediaPipe's, pixels; NaN where there is no face.
            scores: (T, 52) ARKit scores, likewise.

        Returns:
            expression (T, E), yaw, pitch and roll (T, 3) in degrees, position (T, 3); NaN where there is no face.
        """
        ...


def load_expression(name: str | Path = _ARKIT) -> Expression:
    """What measures expression and pose: `arkit52`, or the `.onnx` file of a Deep3DFaceRecon network.

    Raises:
        ConfigError: neither.  CheckpointError: the file is missing or no such network.
        MissingExtra: onnxruntime is not installed.
    """
    return by_name_or_file(name, "expression", (_ARKIT, TrackedExpression), (_DEEP3D, Deep3dExpression))


class TrackedExpression:
    """MediaPipe's ARKit scores, and the canonical mesh's pose under the face crop's lens (`face.pose`)."""

    description = "52 ARKit scores of MediaPipe; head pose of the canonical mesh on 33 landmarks, focal length 4.2647"

    def __call__(self, pictures: Sequence[Picture], landmarks: Array, scores: Array) -> tuple[Array, Array, Array]:
        """See `Expression.__call__`; the position is the head's origin in camera axes, scene units."""
        angles, position = (np.full((len(landmarks), 3), np.nan) for _ in range(2))
        seen = _known(landmarks)
        if len(seen):
            labels, _ = pose.fit_cameras(landmarks[seen], CROP_SIZE, scores=scores[seen])
            angles[seen], position[seen] = head_angles(labels), head_position(labels)
        return scores, angles, position


class Deep3dExpression:
    """The paper's own extractor, brought by the user: a Deep3DFaceRecon network (Deng et al. 2019) as an ONNX file.

    It takes (1, 3, 224, 224) RGB from 0 to 1 and gives 257 coefficients: identity 80, expression 64, texture 80, angle
    3 (radians), lighting 27, translation 3 (units of 10 cm). The chip is its own preprocessing's: scale and place of a
    weak-perspective fit of five points, 102 pixels to a unit. The points of the standard face are those of the
    canonical mesh, which agree with it on average only. The translation is relative to that chip, so it says little of
    where the face is in the picture; the paper's APD has the same limit.

    Raises:
        MissingExtra: onnxruntime is not installed.
        CheckpointError: the file is missing, or does not take (1, 3, 224, 224) and give (1, 257).
    """

    def __init__(self, path: Path) -> None:
        self._network = OnnxNetwork(path, _DEEP3D, _DEEP3D_SIZE)
        self._coefficients(torch.zeros(3, _DEEP3D_SIZE, _DEEP3D_SIZE))
        self.description = (
            f"64 expression coefficients and pose of the Deep3DFaceRecon network {self._network.description}; "
            "position in units of 10 cm"
        )

    def __call__(self, pictures: Sequence[Picture], landmarks: Array, scores: Array) -> tuple[Array, Array, Array]:
        """See `Expression.__call__`."""
        found = np.full((len(pictures), _DEEP3D_WIDTH), np.nan)
        for t in _known(landmarks):
            chip = _square_chip(pictures[t], deep3d_box(landmarks[t]), _DEEP3D_SIZE)
            found[t] = self._coefficients(chip)
        x, y, z = np.degrees(found[:, _DEEP3D_ANGLE]).T
        return found[:, _DEEP3D_EXPRESSION], np.stack([y, -x, -z], axis=-1), found[:, _DEEP3D_TRANS]

    def _coefficients(self, chip: torch.Tensor) -> Array:
        outputs = self._network.outputs(chip)
        for output in outputs:
            if output.shape == (1, _DEEP3D_WIDTH):
                return np.asarray(output[0], dtype=np.float64)
        raise CheckpointError(
            f"{self._network.path} gives {', '.join(str(output.shape) for output in outputs)}, not (1, 257); "
            "name a Deep3DFaceRecon network whose coefficients are one vector"
        )


def deep3d_box(landmarks: Float) -> CropBox:
    """The square that Deep3DFaceRecon's preprocessing cuts out: (478, 2) MediaPipe's landmarks, pixels of the picture.

    Five points of the standard face are fitted to the picture by an affine map; the mean length of its rows is the
    scale, the image of the face's origin the centre, and the chip of 224 pixels has 102 to a unit.
    """
    points = np.asarray(landmarks, dtype=np.float64)
    check_shape(points, f"{LANDMARKS} 2", "landmarks")
    face = canonical_mesh().vertices_cm / 10.0 + _MESH_ORIGIN
    standard = np.stack([face[list(group)].mean(axis=0) for group in _DEEP3D_POINTS])
    there = np.stack([points[list(group)].mean(axis=0) for group in _DEEP3D_POINTS])
    affine = np.linalg.lstsq(np.concatenate([standard, np.ones((5, 1))], axis=1), there, rcond=None)[0]
    scale = float(np.linalg.norm(affine[:3], axis=0).mean())
    return CropBox((float(affine[3, 0]), float(affine[3, 1])), max(_DEEP3D_SIZE * scale / _DEEP3D_SCALE, 1.0))


# --- readings ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Reading:
    """What is seen in T pictures; NaN wherever `found` is False.

    Attributes:
        found: (T,) bool, whether there is a face.
        landmarks68: (T, 68, 2) pixels of the picture at 256.
        landmarks: (T, 478, 2) MediaPipe's, likewise.
        expression: (T, E), of what measures the expression.
        angles_deg: (T, 3) yaw, pitch and roll, degrees.
        position: (T, 3) of the head, scene units (Deep3DFaceRecon: units of 10 cm).
        scores: (T, 52) ARKit scores, whatever measures the expression; behind jawOpen and eyeBlink.
        identity: by descriptor (T, D) unit vectors, empty where it was not asked for.
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
        """The readings of some pictures, by their numbers (N,)."""
        parts = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "identity"}
        identity = {name: vectors[rows] for name, vectors in self.identity.items()}
        return Reading(**{name: value[rows] for name, value in parts.items()}, identity=identity)

    @property
    def pose6(self) -> Array:
        """(T, 6) angles in radians, then position: what `apd6` takes."""
        return np.concatenate([np.radians(self.angles_deg), self.position], axis=1)

    @property
    def curves(self) -> Array:
        """(T, 3): yaw in degrees, jawOpen, and eyeBlink, the mean of both sides."""
        jaw, *lids = (ARKIT52.index(name) for name in ("jawOpen", "eyeBlinkLeft", "eyeBlinkRight"))
        return np.stack([self.angles_deg[:, 0], self.scores[:, jaw], self.scores[:, lids].mean(axis=1)], axis=-1)


class FaceScorer:
    """Reads faces and compares the readings; close it, or use it in a `with` statement.

    Args:
        landmarks: what finds the 68 points behind AKD, see `load_landmarks`.
        identities: descriptors behind CSIM, see `identity.load_identity`.
        expression: what measures expression and pose behind AED and APD, see `load_expression`.
        motion: whether `measures` has the figures of `Movement`, for which frames must be neighbours.
        landmarker: what finds faces; MediaPipe's by default.

    Attributes:
        measures: every figure that `frame_scores` and `Movement` give, in the order of tables.

    Raises:
        MissingExtra: mediapipe, or onnxruntime for an ONNX file, is not installed.
        CheckpointError, ConfigError: as the `load_` functions.
    """

    measures: tuple[Measure, ...]

    def __init__(
        self,
        landmarks: str | Path = _MEDIAPIPE,
        identities: Sequence[str | Path] = (PACKAGED,),
        expression: str | Path = _ARKIT,
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
        """Free the networks; harmless to call twice."""
        self._landmarker.close()

    @property
    def description(self) -> dict[str, str]:
        """What reads what, for a report's settings."""
        return {
            "landmarks": self._points.description,
            "identity": "; ".join(who.description for who in self._identities),
            "expression and pose": self._expression.description,
        }

    def read(
        self, pictures: Sequence[Picture] | Picture, name: str = "the pictures", *, identity: bool = True
    ) -> Reading:
        """Read T pictures; where there are several faces the largest counts. Equal pictures are read once.

        Args:
            pictures: uint8 (R, R, 3) RGB each, or an array (T, R, R, 3); drawn at 256 where R differs.
            name: how messages call them.
            identity: whether to describe who it is; CSIM does not need it of targets.

        Returns:
            T readings; a picture without a face is not an error.

        Raises:
            ShapeError: not square 8-bit RGB pictures.
        """
        seen: dict[bytes, int] = {}
        which = np.array([seen.setdefault(_checked(p, name).tobytes(), len(seen)) for p in pictures], dtype=np.int64)
        _, first = np.unique(which, return_index=True)
        reading = self._read([_at_256(pictures[int(t)]) for t in first], identity)
        return reading.at(which)

    def frame_scores(self, prediction: Reading, target: Reading, source: Reading) -> dict[str, Array]:
        """Compare T predicted frames with their targets, and their faces with the source's.

        Args:
            prediction, target: of T pictures.
            source: of one picture, or of T.

        Returns:
            (T,) by name of `akd`, `csim_...`, `aed`, `apd` and `apd6`; NaN where one of the two faces is missing.

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
        """The largest face, looked for once more within a margin: one that fills the picture is missed otherwise."""
        faces = self._landmarker.detect(picture)
        if not faces:
            middle = CROP_SIZE / 2
            faces = self._landmarker.detect(picture, CropBox((middle, middle), _WIDER * CROP_SIZE))
        return faces[0] if faces else None

    def _describe(self, pictures: Sequence[Picture], landmarks: Array) -> dict[str, Array]:
        out, seen = {}, _known(landmarks)
        for who in self._identities:
            vectors = who.many([pictures[int(t)] for t in seen], landmarks[seen])
            out[who.name] = np.full((len(pictures), vectors.shape[1]), np.nan)
            out[who.name][seen] = vectors
        return out


class Movement:
    """Whether a clip moves as its target: correlations of yaw, jawOpen and eyeBlink, read in both.

    Add a clip's frames chunk by chunk; only three numbers a frame are kept.
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
            NaN for fewer than three of them and where a curve is constant. `found`: of the frames in which the target
            shows a face, the share in which the prediction does, too; NaN where the target never does.
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


# --- pictures --------------------------------------------------------------------------------------------


def _square_chip(picture: Picture, box: CropBox, size: int) -> torch.Tensor:
    """(3, size, size) float32, 0 to 1: a square of the picture, its edge repeated beyond it."""
    corners = np.array([[0.0, 0.0], [1.0, 1.0]])
    return face_chip(picture, box.corner + corners * box.side, corners * size, size) / 255.0


def _checked(picture: Picture, name: str) -> Picture:
    if picture.ndim != 3 or picture.shape[0] != picture.shape[1] or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise ShapeError(f"{name} must be square uint8 RGB pictures, got {picture.dtype} {picture.shape}")
    return picture


def _at_256(picture: Picture) -> Picture:
    if picture.shape[0] == CROP_SIZE:
        return np.ascontiguousarray(picture)
    return np.asarray(to_uint8(resize(to_tensor(picture), CROP_SIZE)))


def _known(landmarks: Array) -> NDArray[np.int64]:
    """The frames that have landmarks."""
    return np.flatnonzero(~np.isnan(landmarks).any(axis=(1, 2)))
