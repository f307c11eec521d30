"""Identity of a face as a unit vector, and CSIM, the cosine between two of them (Sec. 4.1).

`dlib` is packaged: dlib's ResNet-29 (King 2017), 128 numbers from a chip of 150 pixels. A path that ends in `.onnx` is
any ArcFace network (Deng et al. 2019): a chip of 112 pixels on ArcFace's five points, RGB as (x - 127.5) / 127.5. CSIMs
of different descriptors cannot be compared: for strangers, dlib's are high too (see docs/evaluation.md) and ArcFace's
are near 0. Every report names the descriptor.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export3d.errors import CheckpointError
from export3d.evaluation.measures.networks import OnnxNetwork, by_name_or_file
from export3d.face.identity import PACKAGED, DlibIdentity, Picture, Vector, checked_landmarks, face_chip, unit
from export3d.face.landmark_sets import EYE_CORNERS, MOUTH_CORNERS, NOSE_TIP

_ARCFACE = "an ArcFace network"
_ARCFACE_SIZE = 112
_ARCFACE_POINTS = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""ArcFace's template: eyes, tip of the nose, corners of the mouth, pixels of the chip."""


class Identity(Protocol):
    """A descriptor of identity.

    Attributes:
        name: key in reports.
        description: network and file, for the report.
    """

    name: str
    description: str

    def __call__(self, picture: Picture, landmarks: NDArray[np.floating[Any]]) -> Vector:
        """Describe a face.

        Args:
            picture: uint8 (H, W, 3) RGB.
            landmarks: (478, 2) MediaPipe's, pixels of the image.

        Returns:
            (D,) float32 of length 1.
        """
        ...

    def many(self, pictures: Sequence[Picture], landmarks: NDArray[np.floating[Any]]) -> Vector:
        """Describe B faces at once, which is faster: landmarks (B, 478, 2) to (B, D)."""
        ...


def load_identity(name: str | Path = PACKAGED) -> Identity:
    """The descriptor of a name (`dlib`) or of an ArcFace network's `.onnx` file.

    Raises:
        ConfigError: neither.  CheckpointError: the file is missing or no such network.
        MissingExtra: onnxruntime is not installed.
    """
    return by_name_or_file(name, "identity descriptor", (PACKAGED, DlibIdentity), (_ARCFACE, ArcFaceIdentity))


def csim(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Cosine similarity of unit vectors (..., D) and (..., D): (...), -1 to 1, 1 for equal ones."""
    return np.asarray((np.asarray(a, np.float64) * np.asarray(b, np.float64)).sum(axis=-1))


class ArcFaceIdentity:
    """A network of the ArcFace kind from an ONNX file, run by onnxruntime on one thread.

    Raises:
        MissingExtra: onnxruntime is not installed.
        CheckpointError: the file is missing, or does not take (1, 3, 112, 112) and give (1, D).
    """

    def __init__(self, path: Path) -> None:
        self._network = OnnxNetwork(path, _ARCFACE, _ARCFACE_SIZE)
        found = self._run(torch.zeros(3, _ARCFACE_SIZE, _ARCFACE_SIZE))
        if found.ndim != 2 or len(found) != 1:
            raise CheckpointError(f"{path} gives {found.shape}, not one vector for each face; name {_ARCFACE}")
        self.name = path.stem
        self._length = found.shape[1]
        self.description = f"ArcFace network {self._network.description}, 112 px chip of five points"

    def __call__(self, picture: Picture, landmarks: NDArray[np.floating[Any]]) -> Vector:
        """See `Identity.__call__`."""
        points = checked_landmarks(landmarks)
        eyes = [points[list(corners)].mean(axis=0) for corners in EYE_CORNERS]  # not the irises: they follow the gaze
        five = np.stack([*eyes, points[NOSE_TIP], *points[list(MOUTH_CORNERS)]])
        return unit(self._run(face_chip(picture, five, _ARCFACE_POINTS, _ARCFACE_SIZE))[0])

    def many(self, pictures: Sequence[Picture], landmarks: NDArray[np.floating[Any]]) -> Vector:
        """See `Identity.many`; one by one, because such files take one image."""
        points = checked_landmarks(landmarks, len(pictures))
        vectors = [self(picture, at) for picture, at in zip(pictures, points)]
        return np.stack(vectors) if vectors else np.empty((0, self._length), dtype=np.float32)

    def _run(self, chip: Tensor) -> NDArray[np.float32]:
        return self._network.outputs((chip - 127.5) / 127.5)[0]
