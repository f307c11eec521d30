"""Head pose from landmarks: perspective-n-point on the canonical mesh under a fixed long lens.

The unknowns are the world-to-camera rotation R and translation t of x = f * (R X + t)_xy / (R X + t)_z, with X the mesh
in world axes and f = `camera.FOCAL` crop widths. A weighted scaled-orthographic fit starts Levenberg-Marquardt, which
ends at the minimum of the weighted squared distances on the 33 pose landmarks. Whole clips are solved at once.

Expressions move some of the 33, and the landmark network itself nods a little with a jaw or the brows. Two linear maps,
fitted by benchmarks/pose_steady.py, tell by how much the fitted head moved with the face:

- `scores_map`, of the 52 ARKit scores. Cameras have this taken off: it is what anything driven by scores can follow.
- `steady_map`, of how all 468 landmarks lie beside the fitted mesh. It tells more, but much of that is particular to
  the person, or noise. It serves to see whether a head is still in pictures of one face (`still_cameras`).
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
"""Frames fitted at once, to bound the memory that takes."""
_SHAPE_FRAMES = 64
_SHAPE_ROUNDS = 6
_SHAPE_SPREAD_CM = 0.4
"""How far a person's landmarks lie from the average face's (standard deviation, centimetres)."""
_LANDMARK_NOISE = 1.0 / 256.0
"""Standard deviation of a landmark, crop widths."""


def fit_cameras(
    landmarks_px: ArrayLike, size: float, shape: Array | None = None, scores: ArrayLike | None = None
) -> tuple[Array, Array]:
    """The cameras that see the canonical mesh where the landmarks are, one per frame of a clip.

    Args:
        landmarks_px: (T, 478, 2) or (T, 468, 2) crop pixels, finite; the 33 pose landmarks (T, 33, 2) are enough.
        size: crop width in pixels.
        shape: (468, 3) the person's own mesh in world units (`person_shape`); the canonical one by default.
        scores: (T, 52) ARKit scores of the frames, 0..1, not smoothed: their share (`scores_map`) is taken off.

    Returns:
        labels (T, 25) and the mean distance (T,) in pixels between landmarks and projections (`reprojection`).
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
    """`fit_cameras` for telling whether a head is still: all that the landmarks tell of the face is taken off.

    Args:
        landmarks_px: (T, 478, 2) or (T, 468, 2) crop pixels, finite.
        size: crop width in pixels.
        shape: (468, 3) as for `fit_cameras`. What it shows itself, such as a smile that lasts, is not taken off.

    Returns:
        labels (T, 25) and reprojection (T,) in pixels.
    """
    image, vertices = _image(landmarks_px, size), _vertices(shape)
    mesh = canonical_mesh()
    points, pose_image = vertices[mesh.pose_landmarks], image[:, mesh.pose_landmarks]
    rotation, translation = solve(points, pose_image, mesh.pose_weights)
    twist = np.einsum("tnk,jnk->tj", beside_mesh(image, vertices, rotation, translation), steady_map())
    return _cameras(pose_image, points, *moved(rotation, translation, twist), size)


def beside_mesh(image: Array, vertices: Array, rotation: Array, translation: Array) -> Array:
    """How all landmarks lie beside the mesh of a fitted head, along the head's own x and y.

    Args:
        image: (T, 468, 2) landmarks in the image plane at depth 1, 0 in the middle of the crop.
        vertices: (468, 3) world units.
        rotation, translation: (T, 3, 3) and (T, 3) of `solve`.

    Returns:
        (T, 468, 2) world units; a side that is turned away counts for less.
    """
    local = vertices @ np.swapaxes(rotation, 1, 2) + translation[:, None]
    return np.asarray((image * local[..., 2:] - local[..., :2]) @ rotation[:, :2, :2])


def moved(rotation: Array, translation: Array, twist: Array) -> tuple[Array, Array]:
    """Poses (T, 3, 3) and (T, 3) after twists (T, 6): a rotation vector and a shift, along the head's own axes."""
    translation = translation + np.einsum("tij,tj->ti", rotation, twist[:, 3:])
    return rotation @ _turn(twist[:, :3]), translation


@functools.lru_cache(maxsize=1)
def scores_map() -> Array:
    """(6, 52) from ARKit scores to what takes their share off a pose: a turn and a shift.

    Both are along the head's axes and go to the right of the fitted pose: radians (as a rotation vector) and world
    units, each for a score of 1.

    Raises:
        Export3DError: the installation lacks the packaged file.
    """
    return _packaged("scores", 6, len(ARKIT52))


@functools.lru_cache(maxsize=1)
def steady_map() -> Array:
    """(6, 468, 2) from `beside_mesh` to a turn and a shift as in `scores_map`, each for one world unit.

    Raises:
        Export3DError: the installation lacks the packaged file.
    """
    return _packaged("map", 6, VERTICES, 2)


def _packaged(name: str, *shape: int) -> Array:
    try:
        data = (resources.files("export3d") / "assets" / STEADY_FILE).read_bytes()
        return np.asarray(load(data)[name].reshape(shape), dtype=np.float64)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise Export3DError(f"the packaged {STEADY_FILE} cannot be read ({error}); reinstall export3d") from error


def reprojection(landmarks_px: ArrayLike, labels: ArrayLike, size: float, shape: Array | None = None) -> Array:
    """Mean Euclidean distance over the 33 pose landmarks: (T, 478, 2) or (T, 33, 2), and (T, 25), to (T,) pixels."""
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
    """World points (..., N, 3) through labels (..., 25) to crop pixels (..., N, 2)."""
    return camera.project(np.asarray(points, dtype=np.float64), np.asarray(label, dtype=np.float64)) * size


def person_shape(landmarks_px: ArrayLike, size: float, labels: ArrayLike | None = None) -> Array:
    """The person's own mesh, from the frames of one clip.

    Poses and shape in turn, the shape held near the canonical one by a Gaussian prior: what all frames agree on moves,
    what they cannot tell (depth, where the head never turns) stays. Position, turn and scale of the head stay too,
    since the poses explain those for free.

    Args:
        landmarks_px: (T, 478, 2) crop pixels.
        size: crop width in pixels.
        labels: (T, 25) cameras that are known; then the shape alone is sought, as they see it.

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
    """Numbers of the frames that `person_shape` looks at: at most 64 of `count`, evenly spaced."""
    return np.linspace(0, count - 1, min(count, _SHAPE_FRAMES)).round().astype(np.int64)


def _image(landmarks_px: ArrayLike, size: float) -> Array:
    """(T, 468, 2) landmarks in the image plane at depth 1: 0 in the middle of the crop."""
    landmarks = np.asarray(landmarks_px, dtype=np.float64)
    if landmarks.ndim != 3 or landmarks.shape[1] < VERTICES or landmarks.shape[2] < 2:
        raise ShapeError(f"landmarks must have shape (T, 478, 2), got {landmarks.shape}")
    return (landmarks[:, :VERTICES, :2] / size - 0.5) / camera.FOCAL


def _pose_image(landmarks_px: ArrayLike, size: float) -> Array:
    """`_image` of the 33 pose landmarks alone: (T, 33, 2)."""
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
    """Scaled-orthographic pose, in closed form: an affine camera, its two rows made orthonormal."""
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

    `image` is the image plane at depth 1, 0 in the middle of the crop: (pixel / size - 0.5) / `camera.FOCAL`. The
    translation is in the points' units; `weights` are positive, with sum 1.
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
    """A damped Gauss-Newton step of every frame: (T, 6), a left turn (rotation vector) and a shift."""
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
    """`count` frames in runs of nearly equal length, each at most `_PIECE`."""
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
