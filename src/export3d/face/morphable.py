"""A linear face model, S = mean + identity . a + expression . b, and its fit to the landmarks of one image.

The model is the face region of ICT-FaceKit (Li et al. 2020, MIT licence). Its expression modes have ARKit's names, so
the tracker's 52 scores are its coefficients. Units are centimetres. Axes are OpenCV's (x right, y down, z away from a
frontal camera), so a rotation and a translation place the face in front of the crop's camera.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from export3d.camera import FOCAL
from export3d.errors import InputError, MissingExtra, ShapeError
from export3d.face import pose
from export3d.face.mesh import VERTICES
from export3d.motion.arkit import ARKIT52

Array = NDArray[np.float64]

_ROUNDS = 6
_STIFFNESS = 40.0
"""Strength of the identity prior: cost of one standard deviation, in squared pixels of a 256-pixel crop."""
_LARGEST_IDENTITY = 3.0
_PULL = 10.0
"""Weight of a landmark relative to a mesh edge when residuals are spread over the mesh."""


@dataclass(frozen=True, eq=False)
class MorphableFace:
    """The face model, with V vertices and 468 landmarks.

    Attributes:
        vertices: (V, 3) average face, cm.
        triangles: (T, 3) int64.
        identity: (A, V, 3) displacements per standard deviation, cm.
        expression: (52, V, 3) displacements at score 1, in the order of `motion.arkit.ARKIT52`, cm.
        corners, weights: (468, 3) each: for each MediaPipe landmark, the vertices of the triangle that contains it, and
            its barycentric weights.
    """

    vertices: Array
    triangles: NDArray[np.int64]
    identity: NDArray[np.float32]
    expression: NDArray[np.float32]
    corners: NDArray[np.int64]
    weights: Array

    @classmethod
    def load(cls, face_model: Path | str, landmark_map: Path | str) -> MorphableFace:
        """Read the model (`ict_face.npz`) and the positions of the landmarks on it (`mediapipe_to_ict.npz`).

        Raises:
            InputError: a file is missing, damaged, or of another kind.
        """
        model = _read(face_model, "vertices", "triangles", "identity", "expression", "expression_names")
        places = _read(landmark_map, "tri", "bary")
        flip = np.array([1.0, -1.0, -1.0])
        sides = {
            name: [name, name.replace("Left", "_L").replace("Right", "_R"), f"{name}_L", f"{name}_R"]
            for name in ARKIT52
        }
        known = {str(name): number for number, name in enumerate(model["expression_names"])}
        try:
            modes = model["expression"].astype(np.float32) * flip.astype(np.float32)
            expression = np.stack(
                [
                    sum((modes[known[n]] for n in names if n in known), np.zeros_like(modes[0]))
                    for names in sides.values()
                ]
            )
            face = cls(
                model["vertices"].astype(np.float64) * flip,
                model["triangles"].astype(np.int64),
                model["identity"].astype(np.float32) * flip.astype(np.float32),
                expression,
                places["tri"].astype(np.int64),
                places["bary"].astype(np.float64),
            )
            count = len(face.vertices)
            if face.corners.shape != (VERTICES, 3) or max(face.corners.max(), face.triangles.max()) >= count:
                raise ValueError(f"{face.corners.shape[0]} landmarks on {count} vertices")
        except (ValueError, TypeError, IndexError) as error:
            raise InputError(
                f"{face_model} and {landmark_map} do not fit together ({error}); give the two files of one model"
            ) from error
        return face

    def shape(self, identity: ArrayLike, scores: ArrayLike) -> Array:
        """The face with identity coefficients (A,) and scores (52,): (V, 3), cm."""
        return (
            self.vertices
            + np.tensordot(np.asarray(identity), self.identity, 1)
            + np.tensordot(np.asarray(scores), self.expression, 1)
        )

    def at_landmarks(self, values: NDArray[Any]) -> Array:
        """Interpolate vertex values (..., V, K) at the 468 landmarks: (..., 468, K)."""
        return np.asarray((values[..., self.corners, :] * self.weights[..., None]).sum(-2), dtype=np.float64)

    def spread(self, values: ArrayLike) -> Array:
        """Extend values at the landmarks (468, K) to all vertices (V, K): close to them there, smooth in between.

        The values are smooth along the surface, so one lip does not affect the other.
        """
        return np.asarray(self._factor.solve(self._pull.T @ np.asarray(values, dtype=np.float64) * _PULL))

    @cached_property
    def _pull(self) -> Any:
        sparse = _scipy_sparse()
        rows = np.repeat(np.arange(len(self.corners)), 3)
        return sparse.csr_matrix(
            (self.weights.ravel(), (rows, self.corners.ravel())), (len(self.corners), len(self.vertices))
        )

    @cached_property
    def _factor(self) -> Any:
        from scipy.sparse.linalg import splu

        sparse = _scipy_sparse()
        edges = np.unique(np.sort(self.triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1), axis=0)
        i, j = edges.T
        count = len(self.vertices)
        links = sparse.coo_matrix((np.ones(len(i)), (i, j)), (count, count))
        links = (links + links.T).tocsr()
        laplacian = sparse.diags(np.asarray(links.sum(1)).ravel()) - links
        return splu((laplacian + _PULL * self._pull.T @ self._pull).tocsc())


@dataclass(frozen=True, eq=False)
class FaceFit:
    """The face model fitted to one image.

    Attributes:
        identity: (A,) coefficients in standard deviations.
        scores: (52,) as given.
        rotation, translation: (3, 3), and (3,) in cm: from model axes to camera axes of the crop.
        residual: (468, 2) landmarks minus their projections, pixels.
    """

    identity: Array
    scores: Array
    rotation: Array
    translation: Array
    residual: Array

    @property
    def error_px(self) -> float:
        """Mean absolute residual per coordinate, pixels."""
        return float(np.abs(self.residual).mean())

    def place(self, points: ArrayLike) -> Array:
        """Model points (..., 3) to camera axes, cm."""
        return np.asarray(points, dtype=np.float64) @ self.rotation.T + self.translation


def fit_face(face: MorphableFace, landmarks_px: ArrayLike, scores: ArrayLike, size: int) -> FaceFit:
    """Fit identity (by ridge regression) and pose alternately; the expression is given.

    Args:
        face: the model.
        landmarks_px: (478, 2) or (468, 2), pixels of the crop.
        scores: (52,) ARKit scores of the same image.
        size: width of the crop, pixels.

    Raises:
        ShapeError: landmarks or scores of another shape.
    """
    points = np.asarray(landmarks_px, dtype=np.float64)[:VERTICES, :2]
    scores = np.asarray(scores, dtype=np.float64)
    if points.shape != (VERTICES, 2) or scores.shape != (len(ARKIT52),):
        raise ShapeError(f"landmarks (478, 2) and scores (52,) are needed, got {points.shape} and {scores.shape}")
    plane = (points / size - 0.5) / FOCAL
    weights = np.full(VERTICES, 1.0 / VERTICES)
    mean = face.at_landmarks(face.vertices + np.tensordot(scores, face.expression, 1))
    modes = face.at_landmarks(face.identity)
    identity = np.zeros(len(modes))
    prior = _STIFFNESS * (size / 256.0) ** 2 * np.eye(len(modes))
    start = None
    for _ in range(_ROUNDS):
        shape = mean + np.tensordot(identity, modes, 1)
        start = rotation, translation = pose.solve(shape, plane[None], weights, start)
        seen = shape @ rotation[0].T + translation[0]
        scale = FOCAL * size / seen[:, 2:]
        residual = points - (seen[:, :2] * scale + size / 2)
        jacobian = np.moveaxis((modes @ rotation[0].T)[..., :2] * scale, 0, -1).reshape(-1, len(modes))
        step = np.linalg.solve(jacobian.T @ jacobian + prior, jacobian.T @ residual.ravel() - 0.02 * prior @ identity)
        fitted = identity
        identity = np.clip(identity + step, -_LARGEST_IDENTITY, _LARGEST_IDENTITY)
    return FaceFit(fitted, scores, rotation[0], translation[0], residual)


def _scipy_sparse() -> Any:
    try:
        import scipy.sparse
    except ModuleNotFoundError as error:
        raise MissingExtra("pseudo", "scipy") from error
    return scipy.sparse


def _read(path: Path | str, *names: str) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path) as archive:
            return {name: archive[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise InputError(
            f"{path} is not a face model for export3d ({error}); give the .npz made for export3d"
        ) from error
