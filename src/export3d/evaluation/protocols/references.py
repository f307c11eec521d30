"""Reference methods: a copy, two simple methods, and an upper bound of ours.

- `copy`: the source itself.
- `warp`: the source as an elastic mesh whose landmarks lie where the driving frame has them. These landmarks come from
  the ground truth: a far stronger input than a driven model gets.
- `mesh`: the same mesh, moved by the inputs that our model gets too: the tracked camera and some of the scores.
- `oracle`: our own model with the driving frame as source, rendered with its own camera and expression.

The simple methods do not inpaint what the source hides: skin and background are stretched, and an open mouth is dark.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

import export3d.camera as cameras
from export3d.errors import check_shape
from export3d.evaluation.protocols.driven import DrivenClip, Method, Predict, Prediction, Rows
from export3d.face.landmark_sets import EYE_CORNERS, INNER_LIPS, LOWER_LIDS, UPPER_LIDS
from export3d.face.mesh import LANDMARKS, VERTICES, canonical_mesh
from export3d.image import to_tensor
from export3d.model import Export3D
from export3d.motion.arkit import ARKIT52
from export3d.photo.matte import crop_mattes
from export3d.warping.elastic_mesh import FACE, ElasticMesh, show, softened

Array = NDArray[np.float64]
Numbers = NDArray[np.int64]
Faces = Callable[[int], tuple[Array, Array]]
"""A frame's number to its face: (F, 2) positions of the mesh's vertices, 0..1, and (F,) distances from the camera."""

_MOUTH_OPENS = (0.008, 0.024)
"""Changes of the distance between the lips, in image widths, at which darkening starts and is complete."""
_SHADE, _DARKNESS = 0.8, 0.35
"""Largest share of the dark colour, and its brightness relative to the face's colour."""

_CLOSED = 0.8
"""The opening of the eyes falls linearly with the blink score and vanishes at this score."""
_MOVES: dict[str, dict[int, tuple[float, float]]] = {
    "jawOpen": {0: (0.0, 0.2), 14: (0.0, 3.0), 61: (0.2, 0.95), 291: (-0.2, 0.95), 152: (0.0, 1.75)},
    "mouthLowerDownRight": {0: (0.0, -0.15), 14: (0.0, 0.95), 61: (-0.35, 0.2), 152: (0.0, 0.3)},
    "mouthLowerDownLeft": {0: (0.0, -0.15), 14: (0.0, 0.95), 291: (0.35, 0.2), 152: (0.0, 0.3)},
    "mouthSmileRight": {0: (0.0, -0.1), 61: (-0.8, -0.6)},
    "mouthSmileLeft": {0: (0.0, -0.1), 291: (0.8, -0.6)},
    "mouthPucker": {0: (0.0, 0.1), 61: (0.5, 0.2), 291: (-0.5, 0.2), 152: (0.0, 0.2)},
    "browInnerUp": {105: (-0.1, -0.75), 334: (0.1, -0.75)},
}
"""Motion of landmarks at a score of 1, centimetres right and down: least squares on training clips, rounded."""
_STILL = (4, 168, 33, 263, 205, 425, 234, 454)
"""Landmarks that no score moves."""


class Copy:
    """The source frame itself: the least that any method must beat."""

    def __call__(self, clip: DrivenClip, device: torch.device) -> Predict:
        source = to_tensor(clip.source_picture)[None].to(device)
        return lambda rows: Prediction(source.expand(len(rows), -1, -1, -1))


class LandmarkWarp:
    """The source warped so that its landmarks lie on the driving frame's true ones.

    Piecewise affine over the face mesh, smooth outside it (`ElasticMesh`). The tracked camera only decides which parts
    of the face occlude others.
    """

    def __call__(self, clip: DrivenClip, device: torch.device) -> Predict:
        world = _canonical_face()
        return _predictor(clip, device, lambda row: (_face(clip, row), _distance(world, _camera(clip, row))))


class MeshRepose:
    """The source on a 3D face mesh, seen by the driving camera; driving landmarks are not used.

    The canonical mesh gives the source's landmarks their depth. Some ARKit scores move the mesh by the same rules for
    everyone (jaw, lower lip, corners of the mouth, brows, eyelids: `expression_motion`). Everything else, such as gaze,
    is rigid, and so is the whole face in other expression spaces.
    """

    def __call__(self, clip: DrivenClip, device: torch.device) -> Predict:
        world = lifted(_face(clip, clip.source), _camera(clip, clip.source))
        scores = np.asarray(clip.motion.expression, dtype=np.float64) if clip.motion.space == "arkit52" else None

        def face(row: int) -> tuple[Array, Array]:
            moved = world if scores is None else world + expression_motion(world, scores[clip.source], scores[row])
            return seen(moved, _camera(clip, row))

        return _predictor(clip, device, face)


class Oracle:
    """Our own model with each driving frame as its source, rendered with that frame's expression and camera.

    Its error is what the trained encoder, tri-plane and renderer cannot represent; no hidden part has to be guessed.
    """

    def __init__(self, model: Export3D) -> None:
        self.model = model

    def __call__(self, clip: DrivenClip, device: torch.device) -> Predict:
        expression = torch.from_numpy(np.array(clip.motion.expression)).to(device)
        camera = torch.from_numpy(np.array(clip.motion.camera)).to(device)
        landmarks = torch.from_numpy(np.array(clip.record.landmarks, dtype=np.float32)).to(device)

        def predict(rows: Rows) -> Prediction:
            at = torch.from_numpy(rows).to(device)
            images = clip.images(rows, device)
            known = (camera[at], expression[at], landmarks[at], crop_mattes(self.model, images))
            features = self.model.encode(images, *known)
            return Prediction(self.model.frame(self.model.planes(features, expression[at]), camera[at]))

        return predict


REFERENCES: dict[str, Callable[[Export3D], Method]] = {
    "copy": lambda model: Copy(),
    "warp": lambda model: LandmarkWarp(),
    "mesh": lambda model: MeshRepose(),
    "oracle": Oracle,
}
"""References by name; the argument is our model, for those that need it."""


def lifted(face: Array, label: Array) -> Array:
    """(F, 3) world positions of a face's vertices (F, 2), 0..1, that a camera (25,) sees at the canonical depth."""
    cam2world, intrinsics = cameras.unpack(label)
    rays = np.concatenate([face, np.ones((len(face), 1))], axis=1) @ np.linalg.inv(intrinsics).T
    depth = _distance(_canonical_face(), label)
    return np.asarray(rays * depth[:, None] @ cam2world[:3, :3].T + cam2world[:3, 3], dtype=np.float64)


def seen(world: Array, label: Array) -> tuple[Array, Array]:
    """Places (F, 2), 0..1, of vertices (F, 3) as a camera (25,) sees them, and their distances (F,) from it."""
    return np.asarray(cameras.project(world, label), dtype=np.float64), _distance(world, label)


def expression_motion(face: Array, scores: Array, driving: Array) -> Array:
    """Displacement (F, 3), world units, of a face (F, 3) between two sets of (52,) scores; irises stay.

    Some scores pull a few landmarks, the eyelids close in proportion to the blink score, and the face in between bends
    like a thin plate that is cut between the lips.
    """
    controls, spread = _bending()
    pull = np.zeros((VERTICES, 3))
    for name, landmarks in _MOVES.items():
        number = ARKIT52.index(name)
        for landmark, way in landmarks.items():
            pull[landmark, :2] += (driving[number] - scores[number]) * cameras.UNITS_PER_CM * np.array(way)
    for side, upper, lower in zip(("Right", "Left"), UPPER_LIDS, LOWER_LIDS):
        number = ARKIT52.index(f"eyeBlink{side}")
        before, after = (max(1.0 - s[number] / _CLOSED, 0.1) for s in (scores, driving))
        closing = max(1.0 - after / before, -1.0)
        pull[list(upper)] = closing * (face[list(lower)] - face[list(upper)])
    return np.concatenate([spread @ pull[controls], np.zeros((len(FACE) - VERTICES, 3))])


def _predictor(clip: DrivenClip, device: torch.device, faces: Faces) -> Predict:
    """Images of the source's mesh with its face at the positions that `faces` returns."""
    image = to_tensor(clip.source_picture)[None].to(device)
    at_rest = _face(clip, clip.source)
    mesh = ElasticMesh(torch.from_numpy(at_rest[None]).float().to(device))
    dark = _DARKNESS * (_mean_inside(image, at_rest) + 1.0) - 1.0

    def predict(rows: Rows) -> Prediction:
        pictures = []
        for row in rows:
            face, depth = faces(int(row))
            places, distance = (torch.from_numpy(x[None]).float().to(device) for x in (face, depth))
            source, mouth = mesh.lookup(places, distance, image.shape[-1])
            shade = softened(softened(mouth[:, None] * _shade(at_rest, face)))
            picture = show(image, source)
            pictures.append((picture + shade * (dark - picture)).clamp(-1.0, 1.0))
        return Prediction(torch.cat(pictures))

    return predict


def _mean_inside(image: Tensor, face: Array) -> Tensor:
    """Mean colour (1, 3, 1, 1) of the image at the face's vertices."""
    at = torch.from_numpy((face * 2.0 - 1.0).astype(np.float32)).to(image.device)
    colours = F.grid_sample(image, at[None, None], "nearest", "border", align_corners=False)
    return colours.mean(dim=(2, 3), keepdim=True)


def _shade(source: Array, face: Array) -> float:
    """Darkness between the lips: 0 if they are at most twice as far apart as in the source."""
    before, after = (float(np.linalg.norm(points[13] - points[14])) for points in (source, face))
    first, full = _MOUTH_OPENS
    opened = min(max((after - before - first) / (full - first), 0.0), 1.0)
    return min(opened * max(1.0 - 2.0 * before / max(after, 1e-9), 0.0), _SHADE)


def _face(clip: DrivenClip, row: int) -> Array:
    """(F, 2) the face's vertices in a frame, 0..1."""
    landmarks = clip.record.landmarks
    check_shape(landmarks, f"T {LANDMARKS} 2", f"landmarks of {clip.record.key}")
    return np.asarray(landmarks[row][list(FACE)], dtype=np.float64)


def _camera(clip: DrivenClip, row: int) -> Array:
    return np.asarray(clip.motion.camera[row], dtype=np.float64)


def _distance(world: Array, label: Array) -> Array:
    """Depth of points (N, 3) in front of a camera (25,), scene units."""
    cam2world, _ = cameras.unpack(label)
    return np.asarray((world - cam2world[:3, 3]) @ cam2world[:3, 2])


@lru_cache(maxsize=1)
def _canonical_face() -> Array:
    """(F, 3) the canonical mesh and irises, world units."""
    vertices = canonical_mesh().vertices
    return np.concatenate([vertices, [vertices[list(corners)].mean(axis=0) for corners in EYE_CORNERS]])


@lru_cache(maxsize=1)
def _bending() -> tuple[Numbers, Array]:
    """(C,) fixed landmarks, and (468, C) weights by which all vertices follow: least bending, cut at the lips."""
    mesh = canonical_mesh()
    held = {*_STILL, *(n for way in _MOVES.values() for n in way), *np.ravel(EYE_CORNERS)}
    controls = np.array(sorted(held.union(*UPPER_LIDS, *LOWER_LIDS)), dtype=np.int64)
    corners = mesh.triangles[~np.isin(mesh.triangles, INNER_LIPS).all(axis=1)]
    laplacian = np.zeros((VERTICES, VERTICES))
    for a, b in ((0, 1), (1, 2), (2, 0)):
        laplacian[corners[:, a], corners[:, b]] = laplacian[corners[:, b], corners[:, a]] = -1.0
    laplacian -= np.diag(laplacian.sum(axis=1))
    energy = laplacian @ laplacian
    free = np.setdiff1d(np.arange(VERTICES), controls)
    spread = np.zeros((VERTICES, len(controls)))
    spread[controls, np.arange(len(controls))] = 1.0
    spread[free] = -np.linalg.solve(energy[np.ix_(free, free)], energy[np.ix_(free, controls)])
    return controls, spread
