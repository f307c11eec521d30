"""The canonical face mesh inside MediaPipe's landmark model, and the landmarks that it uses for head pose.

The `.task` file is a zip archive. Its member `geometry_pipeline_metadata_landmarks.binarypb` is a protocol buffer:
field 1 is the mesh (repeated field 3: vertices as x, y, z, u, v; repeated field 4: triangle corners), and field 2
repeats (landmark, weight). It is read here directly, without a protobuf package or a copy of the mesh.
"""

from __future__ import annotations

import functools
import io
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from export3d.camera import UNITS_PER_CM
from export3d.errors import Export3DError

MODEL_FILE = "face_landmarker.task"
LANDMARKS = 478
"""Landmarks of a face: the mesh's 468 vertices, then ten landmarks of the irises."""
VERTICES = 468
# Landmarks 468 to 477: centre, then right, top, left and bottom rim as the viewer sees them, of each iris.
_IRIS_MIRROR = (473, 476, 475, 474, 477, 468, 471, 470, 469, 472)
_MEMBER = "geometry_pipeline_metadata_landmarks.binarypb"


@dataclass(frozen=True)
class CanonicalMesh:
    """The mesh of a neutral average face.

    Attributes:
        vertices_cm: (468, 3) float64, centimetres, x to the viewer's right, y up, z towards the viewer.
        triangles: (898, 3) int32, vertex numbers.
        pose_landmarks: (33,) int32, the landmarks that move least with expression.
        pose_weights: (33,) float64, positive, summing to 1.
    """

    vertices_cm: NDArray[np.float64]
    triangles: NDArray[np.int32]
    pose_landmarks: NDArray[np.int32]
    pose_weights: NDArray[np.float64]

    @property
    def vertices(self) -> NDArray[np.float64]:
        """(468, 3) world points in scene units and OpenCV axes (x right, y down, z away from a frontal camera)."""
        return self.vertices_cm * (UNITS_PER_CM * np.array([1.0, -1.0, -1.0]))


def model_bytes() -> bytes:
    """The packaged landmark model file.

    Raises:
        Export3DError: the file is missing from the installation.
    """
    try:
        return (resources.files("export3d") / "assets" / MODEL_FILE).read_bytes()
    except OSError as error:
        raise Export3DError(f"the packaged {MODEL_FILE} cannot be read ({error}); reinstall export3d") from error


@functools.lru_cache(maxsize=1)
def canonical_mesh() -> CanonicalMesh:
    """The mesh of the packaged model.

    >>> canonical_mesh().vertices_cm.shape, len(canonical_mesh().pose_landmarks)
    ((468, 3), 33)
    """
    with zipfile.ZipFile(io.BytesIO(model_bytes())) as archive:
        return parse_mesh(archive.read(_MEMBER))


def parse_mesh(message: bytes) -> CanonicalMesh:
    """Parse the face geometry message; `Export3DError` if it is damaged."""
    numbers: list[float] = []
    corners: list[int] = []
    landmarks: list[int] = []
    weights: list[float] = []
    try:
        for field, value in _fields(message):
            if field == 1:
                for inner, part in _fields(value):  # type: ignore[arg-type]
                    if inner == 3:
                        numbers.append(_float(part))
                    elif inner == 4:
                        corners.append(int(part))  # type: ignore[arg-type]
            elif field == 2:
                pair = dict(_fields(value))  # type: ignore[arg-type]
                landmarks.append(int(pair[1]))  # type: ignore[arg-type]
                weights.append(_float(pair[2]))
        vertices = np.array(numbers, dtype=np.float64).reshape(VERTICES, 5)[:, :3]
        triangles = np.array(corners, dtype=np.int32).reshape(-1, 3)
        weight = np.array(weights, dtype=np.float64)
        if not len(triangles) or not len(landmarks) or max(landmarks) >= VERTICES or triangles.max() >= VERTICES:
            raise ValueError("numbers out of range")
    except (ValueError, KeyError, IndexError, TypeError, struct.error) as error:
        raise Export3DError(
            f"the face geometry inside {MODEL_FILE} is damaged ({error}); reinstall export3d"
        ) from error
    return CanonicalMesh(vertices, triangles, np.array(landmarks, dtype=np.int32), weight / weight.sum())


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) pairs of a protocol buffer: varints as int, all other values as raw bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at + size > len(message):
            raise ValueError("cut short")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def _float(value: int | bytes) -> float:
    if not isinstance(value, bytes):
        raise ValueError("a float was expected")
    return float(struct.unpack("<f", value)[0])


@functools.lru_cache(maxsize=1)
def landmark_mirror_map() -> NDArray[np.int64]:
    """The landmark that each landmark becomes in a mirrored image: (478,), its own inverse.

    A vertex maps to the vertex at its mirrored position on the canonical mesh, which is exactly symmetric. The irises
    swap, and so do the right and left points of their rims.
    """
    vertices = canonical_mesh().vertices_cm
    gaps = np.linalg.norm(vertices[:, None] * [-1.0, 1.0, 1.0] - vertices[None], axis=-1)
    return np.concatenate([gaps.argmin(1), _IRIS_MIRROR]).astype(np.int64)
