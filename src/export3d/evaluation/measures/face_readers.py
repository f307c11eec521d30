"""Networks that read 68 landmarks, expression and head pose from images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from export3d.camera import head_angles, head_position
from export3d.errors import CheckpointError, check_shape
from export3d.evaluation.measures.networks import OnnxNetwork, by_name_or_file
from export3d.face import pose
from export3d.face.crop import CROP_SIZE, CropBox
from export3d.face.identity import face_chip
from export3d.face.landmark_sets import EYE_CORNERS, IBUG68, MOUTH_CORNERS, NOSE_TIP
from export3d.face.mesh import LANDMARKS, canonical_mesh

Picture = NDArray[np.uint8]
Array = NDArray[np.float64]
Float = NDArray[np.floating[Any]]

ARKIT = "arkit52"
MEDIAPIPE = "mediapipe"
_FAN_SIDE, _FAN_UP = 200.0 / 195.0, 0.12
"""face-alignment's square around a face's box: side per (width + height), and shift upwards per height."""
_FAN_SIZE = 256
_POINTS = "a network of 68 points"
_DEEP3D = "a Deep3DFaceRecon network"
_DEEP3D_SIZE = 224
_DEEP3D_SCALE = 102.0
"""Pixels of the chip per unit (10 cm) of Deep3DFaceRecon's face."""
_DEEP3D_WIDTH = 257
_DEEP3D_EXPRESSION, _DEEP3D_ANGLE, _DEEP3D_TRANS = slice(80, 144), slice(224, 227), slice(254, 257)
_DEEP3D_POINTS = (*EYE_CORNERS, (NOSE_TIP,), *((corner,) for corner in MOUTH_CORNERS))
"""Eyes (mean of the corners), tip of the nose, corners of the mouth; left to right in the image."""
_MESH_ORIGIN = np.array([0.0, 0.0, -0.207])
"""The canonical mesh's origin in units of Deep3DFaceRecon's face (as in `motion.bfm64.load_bfm64`)."""


class LandmarkDetector(Protocol):
    """Finds the 68 points.

    Attributes:
        name: of the detector.
        description: network and file, for the report.
    """

    name: str
    description: str

    def __call__(self, pictures: Sequence[Picture], landmarks: Array) -> Array:
        """The 68 points of T images.

        Args:
            pictures: uint8 (256, 256, 3) RGB.
            landmarks: (T, 478, 2) MediaPipe's, pixels; NaN without a face.

        Returns:
            (T, 68, 2) pixels; NaN without a face.
        """
        ...


def load_landmarks(name: str | Path = MEDIAPIPE) -> LandmarkDetector:
    """The detector of a name (`mediapipe`) or of a 68-point network's `.onnx` file.

    Raises:
        ConfigError: neither.  CheckpointError: the file is missing or no such network.
        MissingExtra: onnxruntime is not installed.
    """
    return by_name_or_file(name, "landmark detector", (MEDIAPIPE, MediaPipeLandmarks), (_POINTS, OnnxLandmarks))


class MediaPipeLandmarks:
    """MediaPipe's landmarks at the places of the 68 points (`IBUG68`); they cost nothing extra."""

    name = MEDIAPIPE
    description = "68 of MediaPipe's 478 landmarks at iBUG's places"

    def __call__(self, pictures: Sequence[Picture], landmarks: Array) -> Array:
        """See `LandmarkDetector.__call__`."""
        return np.asarray(landmarks[:, list(IBUG68)], dtype=np.float64)


class OnnxLandmarks:
    """A network of 68 points from an ONNX file, such as an exported FAN of face-alignment, run on a face chip.

    The chip is upright, framed as face-alignment frames a face's box (here that of MediaPipe's landmarks), in the
    network's input size (256 if the file leaves it open), RGB from 0 to 1. Of several suitable outputs the last is
    used. Heatmaps (1, 68, h, w) are read as in face-alignment: the highest cell, a quarter of a cell towards its higher
    neighbour. Coordinates (1, 68, 2) or (1, 136) as x, y pairs may be pixels of the chip, 0 to 1
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
        for t in frames_with_landmarks(landmarks):
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


class Expression(Protocol):
    """Finds expression and head pose.

    Attributes:
        description: network and file, units, for the report.
    """

    description: str

    def __call__(self, pictures: Sequence[Picture], landmarks: Array, scores: Array) -> tuple[Array, Array, Array]:
        """Expression, angles and position in T images.

        Args:
            pictures: uint8 (256, 256, 3) RGB.
            landmarks: (T, 478, 2) MediaPipe's, pixels; NaN without a face.
            scores: (T, 52) ARKit scores; NaN without a face.

        Returns:
            expression (T, E), yaw, pitch and roll (T, 3) in degrees, position (T, 3); NaN without a face.
        """
        ...


def load_expression(name: str | Path = ARKIT) -> Expression:
    """The reader of expression and pose: `arkit52`, or the `.onnx` file of a Deep3DFaceRecon network.

    Raises:
        ConfigError: neither.  CheckpointError: the file is missing or no such network.
        MissingExtra: onnxruntime is not installed.
    """
    return by_name_or_file(name, "expression", (ARKIT, TrackedExpression), (_DEEP3D, Deep3dExpression))


class TrackedExpression:
    """MediaPipe's ARKit scores, and the canonical mesh's pose under the face crop's lens (`face.pose`)."""

    description = "52 ARKit scores of MediaPipe; head pose of the canonical mesh on 33 landmarks, focal length 4.2647"

    def __call__(self, pictures: Sequence[Picture], landmarks: Array, scores: Array) -> tuple[Array, Array, Array]:
        """See `Expression.__call__`; the position is the head's origin in camera axes, scene units."""
        angles, position = (np.full((len(landmarks), 3), np.nan) for _ in range(2))
        seen = frames_with_landmarks(landmarks)
        if len(seen):
            labels, _ = pose.fit_cameras(landmarks[seen], CROP_SIZE, scores=scores[seen])
            angles[seen], position[seen] = head_angles(labels), head_position(labels)
        return scores, angles, position


class Deep3dExpression:
    """The paper's extractor, from the user's file: a Deep3DFaceRecon network (Deng et al. 2019) as ONNX.

    It takes (1, 3, 224, 224) RGB from 0 to 1 and gives 257 coefficients: identity 80, expression 64, texture 80, angle
    3 (radians), lighting 27, translation 3 (units of 10 cm). The chip is that of its preprocessing: scale and
    position of a weak-perspective fit of five points, 102 pixels per unit. The points of the standard face are those of
    the canonical mesh, which agree with it only on average. The translation is relative to that chip, so it says little
    about where the face is in the image; the paper's APD has the same limit.

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
        for t in frames_with_landmarks(landmarks):
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
    """The square that Deep3DFaceRecon's preprocessing crops, from landmarks (478, 2) of MediaPipe, pixels of the image.

    An affine map fits five points of the standard face to the image. The mean length of its rows is the scale, the
    mapped origin the centre; the chip of 224 pixels has 102 pixels per unit.
    """
    points = np.asarray(landmarks, dtype=np.float64)
    check_shape(points, f"{LANDMARKS} 2", "landmarks")
    face = canonical_mesh().vertices_cm / 10.0 + _MESH_ORIGIN
    standard = np.stack([face[list(group)].mean(axis=0) for group in _DEEP3D_POINTS])
    there = np.stack([points[list(group)].mean(axis=0) for group in _DEEP3D_POINTS])
    affine = np.linalg.lstsq(np.concatenate([standard, np.ones((5, 1))], axis=1), there, rcond=None)[0]
    scale = float(np.linalg.norm(affine[:3], axis=0).mean())
    return CropBox((float(affine[3, 0]), float(affine[3, 1])), max(_DEEP3D_SIZE * scale / _DEEP3D_SCALE, 1.0))


def _square_chip(picture: Picture, box: CropBox, size: int) -> torch.Tensor:
    """(3, size, size) float32, 0 to 1: a square of the image; edge pixels are repeated outside it."""
    corners = np.array([[0.0, 0.0], [1.0, 1.0]])
    return face_chip(picture, box.corner + corners * box.side, corners * size, size) / 255.0


def frames_with_landmarks(landmarks: Array) -> NDArray[np.int64]:
    """The frames that have landmarks."""
    return np.flatnonzero(~np.isnan(landmarks).any(axis=(1, 2)))
