"""Head pose from landmarks: perspective-n-point on the canonical mesh with a fixed long lens.

The unknowns are the world-to-camera rotation R and translation t of x = f * (R X + t)_xy / (R X + t)_z, with X the mesh
in world axes and f = `camera.FOCAL` crop widths. A weighted scaled-orthographic fit initialises Levenberg-Marquardt,
which minimises the weighted squared distances of the 33 pose landmarks. Whole clips are solved at once.

Expressions move some of the 33 pose landmarks, and the landmark network predicts a slight nod when the jaw or the brows
move. Two linear maps, fitted by benchmarks/pose_steady.py, predict how far the fitted head moved with the expression:

- `scores_map` takes the 52 ARKit scores. Its prediction is subtracted from cameras, since a model driven by the scores
  can reproduce this part of the motion itself.
- `steady_map` takes the offsets of all 468 landmarks from the fitted mesh. It predicts more, but much of that is
  specific to the person, or noise. It is used to measure whether a head is still in images of one face
  (`still_cameras`).
"""

from __future__ import annotations

import functools
import itertools
from importlib import resources

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

import export3d.camera as camera
from export3d.errors import Export3DError, ShapeError
from export3d.face.mesh import VERTICES, canonical_mesh
from export3d.motion.arkit import ARKIT52

Array = NDArray[np.floating]

STEADY_FILE = "pose_steady.safetensors"
_ITERATIONS = 20
_PIECE = 64
"""Frames fitted at once, which bounds the memory use."""
_SHAPE_FRAMES = 64
_SHAPE_ROUNDS = 6
_SHAPE_SPREAD_CM = 0.4
"""Standard deviation of a person's landmarks from those of the average face, centimetres."""
_LANDMARK_NOISE = 1.0 / 256.0
"""Standard deviation of a landmark, crop widths."""


def fit_cameras(
    landmarks_px: ArrayLike, size: float, shape: Array | None = None, scores: ArrayLike | None = None
) -> tuple[Array, Array]:
    """The cameras that project the canonical mesh onto the landmarks, one per frame of a clip.

    Args:
        landmarks_px: (T, 478, 2) or (T, 468, 2) crop pixels, finite; or only the 33 pose landmarks (T, 33, 2).
        size: crop width in pixels.
        shape: (468, 3) the person's own mesh in world units (`person_shape`); by default the canonical mesh.
        scores: (T, 52) ARKit scores of the frames, 0..1, not smoothed. If given, the head motion that they predict
            (`scores_map`) is subtracted.

    Returns:
        Labels (T, 25), and the mean distance (T,) in pixels between landmarks and projections (`reprojection`).

    Raises:
        ShapeError: landmarks or scores of another shape.
    """
    image, points = _pose_image(landmarks_px, size), _vertices(shape)[canonical_mesh().pose_landmarks]
    rotation, translation = solve(points, image, canonical_mesh().pose_weights)
    if scores is not None:
        given = np.asarray(scores, dtype=np.float64)
        if given.shape != (len(image), len(ARKIT52)):
            raise ShapeError(f"scores must have shape ({len(image)}, {len(ARKIT52)}), got {given.shape}")
        rotation, translation = moved(rotation, translation, np.einsum("te,je->tj", given, scores_map()))
    return _cameras(image, points, rotation, translation, size)


def still_cameras(landmarks_px: ArrayLike, size: float, shape: Array | None = None) -> tuple[Array, Array]:
    """`fit_cameras` for measuring whether a head is still: subtracts all motion that the landmarks predict.

    Args:
        landmarks_px: (T, 478, 2) or (T, 468, 2) crop pixels, finite.
        size: crop width in pixels.
        shape: (468, 3) as for `fit_cameras`. Expression that it contains, such as a constant smile, is not subtracted.

    Returns:
        Labels (T, 25) and reprojection (T,) in pixels.
    """
    image, vertices = _image(landmarks_px, size), _vertices(shape)
    mesh = canonical_mesh()
    points, pose_image = vertices[mesh.pose_landmarks], image[:, mesh.pose_landmarks]
    rotation, translation = solve(points, pose_image, mesh.pose_weights)
    twist = np.einsum("tnk,jnk->tj", beside_mesh(image, vertices, rotation, translation), steady_map())
    return _cameras(pose_image, points, *moved(rotation, translation, twist), size)


def beside_mesh(image: Array, vertices: Array, rotation: Array, translation: Array) -> Array:
    """Offsets of all landmarks from the mesh of a fitted head, along the head's own x and y axes.

    Args:
        image: (T, 468, 2) landmarks in the image plane at depth 1, 0 at the centre of the crop.
        vertices: (468, 3) world units.
        rotation, translation: (T, 3, 3) and (T, 3) from `solve`.

    Returns:
        (T, 468, 2) world units; offsets of a side that is turned away are foreshortened.
    """
    local = vertices @ np.swapaxes(rotation, 1, 2) + translation[:, None]
    return np.asarray((image * local[..., 2:] - local[..., :2]) @ rotation[:, :2, :2])


def moved(rotation: Array, translation: Array, twist: Array) -> tuple[Array, Array]:
    """Apply twists (T, 6) to poses (T, 3, 3) and (T, 3): a rotation vector and a shift, along the head's own axes."""
    translation = translation + np.einsum("tij,tj->ti", rotation, twist[:, 3:])
    return rotation @ _turn(twist[:, :3]), translation


@functools.lru_cache(maxsize=1)
def scores_map() -> Array:
    """(6, 52) map from ARKit scores to the correction of a fitted pose: a rotation vector and a shift.

    The rotation is in radians and the shift in world units, each per score of 1, along the head's own axes. They
    multiply the fitted pose from the right (`moved`).

    Raises:
        Export3DError: the packaged file is missing or damaged.
    """
    return _packaged("scores", 6, len(ARKIT52))


@functools.lru_cache(maxsize=1)
def steady_map() -> Array:
    """(6, 468, 2) map from `beside_mesh` to a rotation vector and a shift as in `scores_map`, each per world unit.

    Raises:
        Export3DError: the packaged file is missing or damaged.
    """
    return _packaged("map", 6, VERTICES, 2)


def _packaged(name: str, *shape: int) -> Array:
    try:
        data = (resources.files("export3d") / "assets" / STEADY_FILE).read_bytes()
        return np.asarray(load(data)[name].reshape(shape), dtype=np.float64)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise Export3DError(f"the packaged {STEADY_FILE} cannot be read ({error}); reinstall export3d") from error


def reprojection(landmarks_px: ArrayLike, labels: ArrayLike, size: float, shape: Array | None = None) -> Array:
    """Mean Euclidean distance of the 33 pose landmarks from their projections.

    Args:
        landmarks_px: (T, 478, 2), or the pose landmarks (T, 33, 2), crop pixels.
        labels: (T, 25).
        size: crop width in pixels.
        shape: (468, 3) as for `fit_cameras`.

    Returns:
        (T,) pixels.
    """
    points = _vertices(shape)[canonical_mesh().pose_landmarks]
    labels = np.asarray(labels, dtype=np.float64)
    image = _pose_image(landmarks_px, size)
    distance = np.empty(len(labels))
    for p in pieces(len(labels)):
        seen = camera.project(np.broadcast_to(points, (p.stop - p.start, *points.shape)), labels[p])
        difference = seen - 0.5 - image[p] * camera.FOCAL
        distance[p] = np.linalg.norm(difference, axis=-1).mean(-1) * size
    return distance


def project(points: ArrayLike, label: ArrayLike, size: float) -> Array:
    """Project world points (..., N, 3) through labels (..., 25) to crop pixels (..., N, 2)."""
    return camera.project(np.asarray(points, dtype=np.float64), np.asarray(label, dtype=np.float64)) * size


def person_shape(landmarks_px: ArrayLike, size: float, labels: ArrayLike | None = None) -> Array:
    """The person's own mesh, from the frames of one clip.

    Poses and shape are fitted alternately, with a Gaussian prior that keeps the shape near the canonical one. Only
    deviations on which all frames agree change the shape; what the frames do not determine (depth, if the head never
    turns) keeps its canonical value. Position, rotation and scale of the mesh do not change, since the poses account
    for them.

    Args:
        landmarks_px: (T, 478, 2) crop pixels.
        size: crop width in pixels.
        labels: (T, 25) known cameras; if given, only the shape is fitted.

    Returns:
        (468, 3) world units.
    """
    some = shape_frames(len(np.asarray(landmarks_px)))
    image = _image(np.asarray(landmarks_px)[some], size)
    mesh = canonical_mesh()
    canonical, pose_landmarks = mesh.vertices, mesh.pose_landmarks
    stiffness = (_LANDMARK_NOISE / camera.FOCAL / (_SHAPE_SPREAD_CM * camera.UNITS_PER_CM)) ** 2
    shape = canonical
    start = known = None if labels is None else _unpack(np.asarray(labels, dtype=np.float64)[some])
    for _ in range(_SHAPE_ROUNDS):
        start = known or solve(shape[pose_landmarks], image[:, pose_landmarks], mesh.pose_weights, start)
        rotation, translation = start
        turned = shape @ np.swapaxes(rotation, 1, 2)
        jacobian = _by_point(turned + translation[:, None]) @ rotation[:, None]
        residual = image - _project(shape, rotation, translation)
        hessian = np.einsum("tnki,tnkj->nij", jacobian, jacobian) + stiffness * np.eye(3)
        gradient = np.einsum("tnki,tnk->ni", jacobian, residual) - stiffness * (shape - canonical)
        shape = shape + np.linalg.solve(hessian, gradient[..., None])[..., 0]
    return shape


def shape_frames(count: int) -> NDArray[np.int64]:
    """Numbers of the frames that `person_shape` uses: at most 64 of `count`, evenly spaced."""
    return np.linspace(0, count - 1, min(count, _SHAPE_FRAMES)).round().astype(np.int64)


def _image(landmarks_px: ArrayLike, size: float) -> Array:
    """(T, 468, 2) landmarks in the image plane at depth 1, 0 at the centre of the crop."""
    landmarks = np.asarray(landmarks_px, dtype=np.float64)
    if landmarks.ndim != 3 or landmarks.shape[1] < VERTICES or landmarks.shape[2] < 2:
        raise ShapeError(f"landmarks must have shape (T, 478, 2), got {landmarks.shape}")
    return (landmarks[:, :VERTICES, :2] / size - 0.5) / camera.FOCAL


def _pose_image(landmarks_px: ArrayLike, size: float) -> Array:
    """`_image` of the 33 pose landmarks only: (T, 33, 2)."""
    landmarks = np.asarray(landmarks_px)
    pose_landmarks = canonical_mesh().pose_landmarks
    if landmarks.ndim == 3 and landmarks.shape[1] == len(pose_landmarks) and landmarks.shape[2] >= 2:
        return (landmarks[..., :2].astype(np.float64) / size - 0.5) / camera.FOCAL
    return _image(landmarks, size)[:, pose_landmarks]


def _vertices(shape: Array | None) -> Array:
    return canonical_mesh().vertices if shape is None else np.asarray(shape, dtype=np.float64)


def _cameras(image: Array, points: Array, rotation: Array, translation: Array, size: float) -> tuple[Array, Array]:
    """Labels (T, 25) and reprojection (T,) in pixels, from the pose landmarks' image (T, 33, 2) and points (33, 3)."""
    residual = _project(points, rotation, translation) - image
    return _labels(rotation, translation), np.linalg.norm(residual, axis=-1).mean(-1) * (camera.FOCAL * size)


def _labels(rotation: Array, translation: Array) -> Array:
    cam2world = np.zeros((len(rotation), 4, 4))
    cam2world[:, :3, :3] = np.swapaxes(rotation, 1, 2)
    cam2world[:, :3, 3] = -np.einsum("tji,tj->ti", rotation, translation)
    cam2world[:, 3, 3] = 1.0
    return camera.pack(cam2world, np.broadcast_to(camera.default_intrinsics(), (len(rotation), 3, 3)))


def _unpack(labels: Array) -> tuple[Array, Array]:
    """Inverse of `_labels`."""
    rotation = np.swapaxes(camera.unpack(labels)[0][:, :3, :3], 1, 2)
    return rotation, camera.head_position(labels)


def _project(points: Array, rotation: Array, translation: Array) -> Array:
    local = points @ np.swapaxes(rotation, 1, 2) + translation[:, None]
    return local[..., :2] / local[..., 2:]


def _orthographic(points: Array, image: Array, weights: Array) -> tuple[Array, Array]:
    """Scaled-orthographic pose in closed form: an affine camera whose two rows are orthonormalised."""
    centre = weights @ points
    middle = np.einsum("n,tnk->tk", weights, image)
    spread = (points - centre) * weights[:, None]
    affine = np.einsum("tni,nj->tij", image - middle[:, None], spread) @ np.linalg.inv((points - centre).T @ spread)
    left, scale, right = np.linalg.svd(affine, full_matrices=False)
    rows = left @ right
    rotation = np.concatenate([rows, np.cross(rows[:, 0], rows[:, 1])[:, None]], axis=1)
    depth = 1.0 / np.maximum(scale.mean(-1), 1e-3)
    translation = np.concatenate([middle * depth[:, None], depth[:, None]], axis=1) - rotation @ centre
    return rotation, translation


def _by_point(local: Array) -> Array:
    """d(x/z, y/z) / d(x, y, z): (..., 3) to (..., 2, 3)."""
    x, y, z = np.moveaxis(local, -1, 0)
    out = np.zeros((*x.shape, 2, 3))
    out[..., 0, 0] = out[..., 1, 1] = 1.0 / z
    out[..., 0, 2], out[..., 1, 2] = -x / z**2, -y / z**2
    return out


def solve(points: Array, image: Array, weights: Array, start: tuple[Array, Array] | None = None) -> tuple[Array, Array]:
    """Levenberg-Marquardt over (rotation, translation) of every frame: (N, 3), (T, N, 2), (N,) -> (T, 3, 3), (T, 3).

    `image` is in the image plane at depth 1, 0 at the centre of the crop: (pixel / size - 0.5) / `camera.FOCAL`. The
    translation is in the units of the points; `weights` are positive and sum to 1.
    """
    rotation, translation = start or _orthographic(points, image, weights)
    damping = np.full(len(image), 1e-4)
    cost = _cost(points, rotation, translation, image, weights)
    for _ in range(_ITERATIONS):
        step = np.concatenate(
            [_step(points, rotation[p], translation[p], image[p], weights, damping[p]) for p in pieces(len(image))]
        )
        new_rotation, new_translation = _turn(step[:, :3]) @ rotation, translation + step[:, 3:]
        new_cost = _cost(points, new_rotation, new_translation, image, weights)
        better = new_cost <= cost
        rotation = np.where(better[:, None, None], new_rotation, rotation)
        translation = np.where(better[:, None], new_translation, translation)
        cost = np.where(better, new_cost, cost)
        damping = np.clip(np.where(better, damping * 0.1, damping * 10.0), 1e-12, 1e6)
        if np.abs(step).max() < 1e-10:
            break
    return rotation, translation


def _step(points: Array, rotation: Array, translation: Array, image: Array, weights: Array, damping: Array) -> Array:
    """A damped Gauss-Newton step for every frame: (T, 6), a rotation vector (applied from the left) and a shift."""
    turned = points @ np.swapaxes(rotation, 1, 2)
    by_point = _by_point(turned + translation[:, None])
    jacobian = np.concatenate([-by_point @ _cross_matrix(turned), by_point], axis=-1)
    residual = _project(points, rotation, translation) - image
    weighted = jacobian * weights[:, None, None]
    hessian = np.einsum("tnki,tnkj->tij", weighted, jacobian)
    gradient = np.einsum("tnki,tnk->ti", weighted, residual)
    damped = hessian + damping[:, None, None] * hessian * np.eye(6)
    return np.asarray(-np.linalg.solve(damped, gradient[..., None])[..., 0])


def pieces(count: int) -> list[slice]:
    """Split `count` frames into runs of nearly equal length, each at most `_PIECE` long."""
    ends = np.linspace(0, count, -(-count // _PIECE) + 1).round().astype(int).tolist()
    return [slice(first, last) for first, last in itertools.pairwise(ends)]


def _cost(points: Array, rotation: Array, translation: Array, image: Array, weights: Array) -> Array:
    ahead, squares = [], []
    for p in pieces(len(image)):
        local = points @ np.swapaxes(rotation[p], 1, 2) + translation[p, None]
        ahead.append((local[..., 2] > 0).all(-1))
        squares.append(((local[..., :2] / local[..., 2:] - image[p]) ** 2).sum(-1))
    return np.asarray(np.where(np.concatenate(ahead), np.concatenate(squares) @ weights, np.inf))


def _cross_matrix(v: Array) -> Array:
    """(..., 3) to (..., 3, 3) with m @ u = v x u."""
    out = np.zeros((*v.shape, 3))
    x, y, z = np.moveaxis(v, -1, 0)
    out[..., 0, 1], out[..., 0, 2], out[..., 1, 2] = -z, y, -x
    out[..., 1, 0], out[..., 2, 0], out[..., 2, 1] = z, -y, x
    return out


def _turn(vector: Array) -> Array:
    """Rodrigues' formula: rotation vectors (..., 3), radians, to matrices (..., 3, 3)."""
    angle = np.linalg.norm(vector, axis=-1)[..., None, None]
    safe = np.maximum(angle, 1e-12)
    k = _cross_matrix(vector)
    return np.asarray(np.eye(3) + np.sin(angle) / safe * k + (1.0 - np.cos(angle)) / safe**2 * (k @ k))
