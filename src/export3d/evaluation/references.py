"""Methods to stand beside ours: what doing nothing gives, what two simple methods give, and the most ours could.

- `copy`: the source itself.
- `warp`: the source as an elastic sheet whose landmarks lie where the driving frame has them. These are the truth's own
  landmarks: it is told far more than a driven model is.
- `mesh`: the same sheet, moved by what drives our model too: the tracked camera and some of the scores.
- `oracle`: the driving frame itself as the source of our own model, shown by its own camera and expression.

No simple method invents what the source hides: skin and background are stretched there, and a mouth that opens is dark.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

import export3d.camera as cameras
from export3d.errors import check_shape
from export3d.face.mesh import LANDMARKS, VERTICES, canonical_mesh
from export3d.face.repose import FACE_OVAL, INNER_LIPS
from export3d.model import Export3D
from export3d.motion import ARKIT52

if TYPE_CHECKING:
    from export3d.evaluation.driven import DrivenClip, Method, Predict, Rows

Array = NDArray[np.float64]
Numbers = NDArray[np.int64]
Faces = Callable[[int], tuple[Array, Array]]
"""A frame's number to its face: (F, 2) places of the vertices in pixels, and (F,) how far they are from the camera."""

_UPPER_LIDS = ((246, 161, 160, 159, 158, 157, 173), (466, 388, 387, 386, 385, 384, 398))
_LOWER_LIDS = ((7, 163, 144, 145, 153, 154, 155), (249, 390, 373, 374, 380, 381, 382))
_EYE_CORNERS = ((33, 133), (263, 362))
"""Landmarks of the right and the left eye, each from its outer corner inward."""
_IRISES = (468, 473)
_FACE = VERTICES + len(_IRISES)
"""F: the mesh's vertices, then the middle of each iris."""

_RINGS = np.geomspace(0.02, 1.0, 12)
"""Where the rings lie between the face's outline and the sheet's edge."""
_EDGE = 1.8
"""Radius of the sheet, in widths of the picture."""
_REACH = (0.5, 0.25, 0.35)
"""How far from the outline the head's motion is felt above, beside and below it: where it is 1/e, in face heights.

Close to the best PSNR on training clips.
"""
_STEEPNESS = 2.0
_JUMP = 1.0 / 64.0
"""A sheet that jumps by so many widths of the picture from one pixel to the next hides part of itself: an edge."""
_MOUTH_OPENS = (0.008, 0.024)
"""It gets dark between the lips from the first to the second change of their distance, in widths of the picture."""
_SHADE, _DARKNESS = 0.8, 0.35
"""How much of the dark colour there is at most, and how bright that is, in parts of the face's own colour."""

_CLOSED = 0.8
"""The eyes' opening falls in proportion to the blink score, to nothing at this score."""
_MOVES: dict[str, dict[int, tuple[float, float]]] = {
    "jawOpen": {0: (0.0, 0.2), 14: (0.0, 3.0), 61: (0.2, 0.95), 291: (-0.2, 0.95), 152: (0.0, 1.75)},
    "mouthLowerDownRight": {0: (0.0, -0.15), 14: (0.0, 0.95), 61: (-0.35, 0.2), 152: (0.0, 0.3)},
    "mouthLowerDownLeft": {0: (0.0, -0.15), 14: (0.0, 0.95), 291: (0.35, 0.2), 152: (0.0, 0.3)},
    "mouthSmileRight": {0: (0.0, -0.1), 61: (-0.8, -0.6)},
    "mouthSmileLeft": {0: (0.0, -0.1), 291: (0.8, -0.6)},
    "mouthPucker": {0: (0.0, 0.1), 61: (0.5, 0.2), 291: (-0.5, 0.2), 152: (0.0, 0.2)},
    "browInnerUp": {105: (-0.1, -0.75), 334: (0.1, -0.75)},
}
"""Centimetres right and down by which a score of 1 moves landmarks: least squares on training clips, rounded."""
_STILL = (4, 168, 33, 263, 205, 425, 234, 454)
"""Landmarks that no score moves."""


class Copy:
    """The source frame itself, whatever drives: what any method has to beat."""

    def __call__(self, clip: DrivenClip, device: torch.device) -> Predict:
        source = clip.images([clip.source], device)
        return lambda rows: source.expand(len(rows), -1, -1, -1)


class LandmarkWarp:
    """The source warped so that its landmarks lie on the driving frame's true ones.

    Piecewise affine over the face mesh, smooth outside it (`Sheet`). The tracked camera only says which parts of the
    face hide others.
    """

    def __call__(self, clip: DrivenClip, device: torch.device) -> Predict:
        size = clip.frames.shape[-1]
        world = _canonical_face()
        return _predictor(clip, device, lambda row: (_face(clip, row, size), _distance(world, _camera(clip, row))))


class MeshRepose:
    """The source on a 3D face mesh, seen by the driving camera; the driving landmarks are not used.

    The canonical mesh gives each of the source's landmarks its depth. Where the expressions are ARKit's scores some of
    them move the mesh too, by rules that are the same for everyone (jaw, lower lip, corners of the mouth, brows, lids:
    `expression_motion`). For all else, such as gaze, and in other expression spaces the face is rigid.
    """

    def __call__(self, clip: DrivenClip, device: torch.device) -> Predict:
        size = clip.frames.shape[-1]
        label = _camera(clip, clip.source)
        cam2world, intrinsics = cameras.unpack(label)
        pixels = np.concatenate([_face(clip, clip.source, size) / size, np.ones((_FACE, 1))], axis=1)
        rays = pixels @ np.linalg.inv(intrinsics).T
        world = rays * _distance(_canonical_face(), label)[:, None] @ cam2world[:3, :3].T + cam2world[:3, 3]
        scores = np.asarray(clip.motion.expression, dtype=np.float64) if clip.motion.space == "arkit52" else None

        def face(row: int) -> tuple[Array, Array]:
            moved = world if scores is None else world + expression_motion(world, scores[clip.source], scores[row])
            label = _camera(clip, row)
            return np.asarray(cameras.project(moved, label) * size, dtype=np.float64), _distance(moved, label)

        return _predictor(clip, device, face)


class Oracle:
    """Each driving frame as the source of our own model, shown by its own expression and camera.

    What is missing to the truth is what encoder, tri-plane and renderer cannot show, as they are trained; nothing has
    to be guessed that the source hides.
    """

    def __init__(self, model: Export3D) -> None:
        self.model = model

    def __call__(self, clip: DrivenClip, device: torch.device) -> Predict:
        expression = torch.from_numpy(np.array(clip.motion.expression)).to(device)
        camera = torch.from_numpy(np.array(clip.motion.camera)).to(device)

        def predict(rows: Rows) -> Tensor:
            at = torch.from_numpy(rows).to(device)
            features = self.model.encode(clip.images(rows, device), camera[at], expression[at])
            return self.model.frame(self.model.planes(features, expression[at]), camera[at])

        return predict


REFERENCES: dict[str, Callable[[Export3D], Method]] = {
    "copy": lambda model: Copy(),
    "warp": lambda model: LandmarkWarp(),
    "mesh": lambda model: MeshRepose(),
    "oracle": Oracle,
}
"""Every reference by name; the model is ours, for those that need it."""


class Sheet:
    """A portrait as one sheet of triangles: the face mesh, and rings around it to beyond the picture's edge.

    Where the face goes the rings follow: near its outline as that moves, farther off as the whole face does (the
    similarity that fits it best), ever less, down to nothing. What differs from the similarity fades as a harmonic
    function does, the finer the sooner. The sheet has no holes, its edge stays, and under it lies the source as it is:
    whatever moves, the picture is covered. Where the sheet folds, the face lies over the rings, the inner rings over
    the outer ones.

    Args:
        face: (F, 2) the vertices of the face in the source, pixels.
        size: R.
    """

    def __init__(self, face: Array, size: int) -> None:
        self.size = size
        oval, count = face[list(FACE_OVAL)], len(FACE_OVAL)
        centre = oval.mean(axis=0)
        outward = oval - centre
        outward /= np.maximum(np.linalg.norm(outward, axis=1, keepdims=True), 1e-9)
        rings = oval + _RINGS[:, None, None] * (centre + _EDGE * size * outward - oval)
        height = max(float(np.linalg.norm(face[10] - face[152])), 1.0)
        away = np.linalg.norm(rings - oval, axis=-1) / height
        steep = outward[:, 1] ** 2
        reach = np.where(outward[:, 1] < 0, _REACH[0], _REACH[2]) * steep + _REACH[1] * (1.0 - steep)
        follow = np.exp(-((away / reach) ** _STEEPNESS))
        follow[-1] = 0.0
        radius = np.linalg.norm(rings - centre, axis=-1).mean(axis=1) / np.linalg.norm(oval - centre, axis=-1).mean()
        waves = np.minimum(np.arange(count), count - np.arange(count))
        fading = np.fft.ifft(radius[:, None, None] ** -waves[None, :, None] * np.fft.fft(np.eye(count), axis=0), axis=1)
        self._rings = rings.reshape(-1, 2)
        self._follow = follow.reshape(-1, 1)
        self._fading = self._follow * fading.real.reshape(-1, count)
        self._face = face
        self._corners = size * np.array([[-1.0, -1.0], [2.0, -1.0], [-1.0, 2.0], [2.0, 2.0]])
        self.source = np.concatenate([face, self._rings, self._corners])
        """(V, 2) where each vertex lies in the source: the face's, the rings', the corners of what lies under them."""

    def place(self, face: Array) -> Array:
        """(V, 2) all vertices where those of the face are at (F, 2)."""
        scale, shift = _similarity(self._face, face)
        oval = list(FACE_OVAL)
        beyond = face[oval] - _moved(self._face[oval], scale, shift)
        with_head = _moved(self._rings, scale, shift) - self._rings
        rings = self._rings + self._follow * with_head + self._fading @ beyond
        return np.concatenate([face, rings, self._corners])

    def look(self, face: Array, depth: Array) -> tuple[Array, NDArray[np.bool_]]:
        """What the moved sheet shows: (R, R, 2) pixels of the source, (R, R) whether it is between the lips.

        Args:
            face: (F, 2) places of the face's vertices, pixels.
            depth: (F,) smaller is nearer.
        """
        triangles, mouth = _face_triangles()
        order = np.argsort(-depth[triangles].mean(axis=1), kind="stable")
        stack = np.concatenate([_ground_triangles(), triangles[order]])
        between = np.concatenate([np.zeros(len(stack) - len(order), dtype=bool), mouth[order]])
        source, number = paint(self.place(face), self.source, stack, self.size)
        return source, between[number]


def paint(places: Array, texture: Array, triangles: Numbers, size: int) -> tuple[Array, Numbers]:
    """Paint triangles over one another in their order, the last one on top.

    Args:
        places: (V, 2) where the vertices are, pixels.
        texture: (V, 2) what they carry, linear inside a triangle.
        triangles: (N, 3), together covering the picture.
        size: R.

    Returns:
        (R, R, 2) what each pixel centre carries, and (R, R) the number of its triangle.
    """
    corners, carried = places[triangles], texture[triangles]
    edge, change = corners[:, 1:] - corners[:, :1], carried[:, 1:] - carried[:, :1]
    area = edge[:, 0, 0] * edge[:, 1, 1] - edge[:, 0, 1] * edge[:, 1, 0]
    solid = np.abs(area) > 1e-6
    share = (1.0 / np.where(solid, area, 1.0))[:, None]
    by_x = (change[:, 0] * edge[:, 1, 1:] - change[:, 1] * edge[:, 0, 1:]) * share
    by_y = (change[:, 1] * edge[:, 0, :1] - change[:, 0] * edge[:, 1, :1]) * share
    start = carried[:, 0] - by_x * corners[:, 0, :1] - by_y * corners[:, 0, 1:]

    # Every row of pixel centres that a triangle crosses, between its long side and the upper or lower short one.
    # Neighbours compute their common side from the same two ends, so that no pixel falls between them.
    downward = np.argsort(corners[..., 1], axis=1, kind="stable")
    (x0, x1, x2), (y0, y1, y2) = np.take_along_axis(corners, downward[..., None], axis=1).transpose(2, 1, 0)
    top, end = (np.ceil(y - 0.5).clip(0, size).astype(np.int64) for y in (y0, y2))
    rows = np.where(solid, np.maximum(end - top, 0), 0)
    t = np.repeat(np.arange(len(triangles)), rows)
    row = np.arange(len(t)) - np.repeat(np.cumsum(rows) - rows - top, rows)
    y = row + 0.5

    def crossing(xa: Array, ya: Array, xb: Array, yb: Array) -> Array:
        slope = (xb - xa) / np.where(yb > ya, yb - ya, 1.0)
        return np.asarray(xa[t] + (y - ya[t]) * slope[t])

    one = crossing(x0, y0, x2, y2)
    other = np.where(y < y1[t], crossing(x0, y0, x1, y1), crossing(x1, y1, x2, y2))
    left, right = (
        np.ceil(x - 0.5).clip(0, size).astype(np.int64) for x in (np.minimum(one, other), np.maximum(one, other))
    )
    count = right - left
    total = np.cumsum(count)
    pixel = np.arange(total[-1]) + np.repeat(row * size + left - (total - count), count)
    number = np.zeros(size * size, dtype=np.int64)
    number[pixel] = np.repeat(t, count)  # of several the last one stays
    column, line = np.tile(np.arange(size) + 0.5, size)[:, None], np.repeat(np.arange(size) + 0.5, size)[:, None]
    shown = start[number] + by_x[number] * column + by_y[number] * line
    return shown.reshape(size, size, 2), number.reshape(size, size)


def expression_motion(face: Array, scores: Array, driving: Array) -> Array:
    """How a face moves from (52,) scores to others: (F, 3) world units to the same, the irises still.

    Rules of thumb: some scores pull a few landmarks, the lids close in proportion to the blink score, and the face
    between bends as a thin plate does, cut between the lips.
    """
    controls, spread = _bending()
    pull = np.zeros((VERTICES, 3))
    for name, landmarks in _MOVES.items():
        number = ARKIT52.index(name)
        for landmark, way in landmarks.items():
            pull[landmark, :2] += (driving[number] - scores[number]) * cameras.UNITS_PER_CM * np.array(way)
    for side, upper, lower in zip(("Right", "Left"), _UPPER_LIDS, _LOWER_LIDS):
        number = ARKIT52.index(f"eyeBlink{side}")
        before, after = (max(1.0 - s[number] / _CLOSED, 0.1) for s in (scores, driving))
        closing = max(1.0 - after / before, -1.0)
        pull[list(upper)] = closing * (face[list(lower)] - face[list(upper)])
    return np.concatenate([spread @ pull[controls], np.zeros((len(_IRISES), 3))])


def _predictor(clip: DrivenClip, device: torch.device, faces: Faces) -> Predict:
    """Pictures of the source's sheet, its face where `faces` says."""
    size = clip.frames.shape[-1]
    image = clip.images([clip.source], device)
    at_rest = _face(clip, clip.source, size)
    sheet = Sheet(at_rest, size)
    dark = _DARKNESS * (_mean_inside(image, at_rest) + 1.0) - 1.0

    def predict(rows: Rows) -> Tensor:
        sources, shades = [], []
        for row in rows:
            face, depth = faces(int(row))
            source, mouth = sheet.look(face, depth)
            sources.append(torch.from_numpy(source.astype(np.float32)))
            shades.append(torch.from_numpy(mouth * np.float32(_shade(at_rest, face, size))))
        return _show(image, torch.stack(sources).to(device), torch.stack(shades).to(device), dark)

    return predict


def _show(image: Tensor, source: Tensor, shade: Tensor, dark: Tensor) -> Tensor:
    """What moved sheets show, (B, 3, R, R).

    Args:
        image: (1, 3, R, R); its border is repeated beyond it.
        source: (B, R, R, 2) pixels of it that are looked up, between pixels and where they lie denser from its half
            size.
        shade: (B, R, R) share of the colour `dark`.
        dark: (1, 3, 1, 1).
    """
    count, size = source.shape[:2]
    grid = source * (2.0 / size) - 1.0
    fine, coarse = (
        F.grid_sample(level.expand(count, -1, -1, -1), grid, "bilinear", "border", align_corners=False)
        for level in (image, F.avg_pool2d(image, 2))
    )
    across, down = source[:, :, 1:] - source[:, :, :-1], source[:, 1:] - source[:, :-1]
    a, b = F.pad(across, (0, 0, 0, 1)), F.pad(down, (0, 0, 0, 0, 0, 1))
    area = (a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]).abs()
    picture = fine + (0.5 * area.clamp(1.0, 4.0).log2())[:, None] * (coarse - fine)
    picture = picture + _softened(_softened(shade[:, None])) * (dark - picture)
    jump = torch.zeros_like(shade, dtype=torch.bool)
    jumps_across, jumps_down = (step.abs().amax(dim=-1) > _JUMP * size for step in (across, down))
    jump[:, :, 1:] |= jumps_across
    jump[:, :, :-1] |= jumps_across
    jump[:, 1:] |= jumps_down
    jump[:, :-1] |= jumps_down
    return torch.where(jump[:, None], _softened(picture), picture).clamp(-1.0, 1.0)


def _softened(picture: Tensor) -> Tensor:
    """The mean of 3 x 3 pixels around each, weights 1 2 1."""
    channels = picture.shape[1]
    line = picture.new_tensor([0.25, 0.5, 0.25])
    kernel = (line[:, None] * line).expand(channels, 1, 3, 3)
    return F.conv2d(F.pad(picture, (1, 1, 1, 1), "replicate"), kernel, groups=channels)


def _mean_inside(image: Tensor, face: Array) -> Tensor:
    """Mean colour (1, 3, 1, 1) of the image at the face's vertices."""
    at = torch.from_numpy((face * (2.0 / image.shape[-1]) - 1.0).astype(np.float32)).to(image.device)
    colours = F.grid_sample(image, at[None, None], "nearest", "border", align_corners=False)
    return colours.mean(dim=(2, 3), keepdim=True)


def _shade(source: Array, face: Array, size: int) -> float:
    """How dark it is between the lips: 0 where they are at most twice as far apart as in the source."""
    before, after = (float(np.linalg.norm(points[13] - points[14])) / size for points in (source, face))
    first, full = _MOUTH_OPENS
    opened = min(max((after - before - first) / (full - first), 0.0), 1.0)
    return min(opened * max(1.0 - 2.0 * before / max(after, 1e-9), 0.0), _SHADE)


def _face(clip: DrivenClip, row: int, size: int) -> Array:
    """(F, 2) the face's vertices in a frame, pixels."""
    landmarks = clip.record.landmarks
    check_shape(landmarks, f"T {LANDMARKS} 2", f"landmarks of {clip.record.key}")
    numbers = [*range(VERTICES), *_IRISES]
    return np.asarray(landmarks[row][numbers], dtype=np.float64) * size


def _camera(clip: DrivenClip, row: int) -> Array:
    return np.asarray(clip.motion.camera[row], dtype=np.float64)


def _distance(world: Array, label: Array) -> Array:
    """How far in front of a camera (25,) points (N, 3) are, scene units."""
    cam2world, _ = cameras.unpack(label)
    return np.asarray((world - cam2world[:3, 3]) @ cam2world[:3, 2])


def _similarity(before: Array, after: Array) -> tuple[complex, complex]:
    """The turn and scale, and the shift, nearest to what moves points (N, 2) to others; numbers x + iy."""
    a, b = before @ (1.0, 1j), after @ (1.0, 1j)
    scale = np.vdot(a - a.mean(), b - b.mean()) / max(np.vdot(a - a.mean(), a - a.mean()).real, 1e-9)
    return complex(scale), complex(b.mean() - scale * a.mean())


def _moved(points: Array, scale: complex, shift: complex) -> Array:
    z = scale * (points @ (1.0, 1j)) + shift
    return np.stack([z.real, z.imag], axis=-1)


@lru_cache(maxsize=1)
def _canonical_face() -> Array:
    """(F, 3) the canonical mesh and irises, world units."""
    vertices = canonical_mesh().vertices
    return np.concatenate([vertices, [vertices[list(corners)].mean(axis=0) for corners in _EYE_CORNERS]])


@lru_cache(maxsize=1)
def _face_triangles() -> tuple[Numbers, NDArray[np.bool_]]:
    """(N, 3) the mesh's triangles, each eye's replaced by a fan around its iris; (N,) which lie between the lips."""
    kept = canonical_mesh().triangles.astype(np.int64)
    fans = []
    for number, ((outer, inner), upper, lower) in enumerate(zip(_EYE_CORNERS, _UPPER_LIDS, _LOWER_LIDS)):
        loop = np.array([outer, *upper, inner, *reversed(lower)])
        kept = kept[~np.isin(kept, loop).all(axis=1)]
        iris = np.full(len(loop), VERTICES + number)
        fans.append(np.stack([loop, np.roll(loop, -1), iris], axis=1))
    triangles = np.concatenate([kept, *fans])
    return triangles, np.asarray(np.isin(triangles, INNER_LIPS).all(axis=1))


@lru_cache(maxsize=1)
def _ground_triangles() -> Numbers:
    """(N, 3) two that cover the picture, then the rings from the outermost inward."""
    count = len(FACE_OVAL)
    rings = np.concatenate([[FACE_OVAL], _FACE + np.arange(len(_RINGS) * count).reshape(-1, count)])[::-1]
    outer, inner = rings[:-1], rings[1:]
    beside = np.stack([outer, inner, np.roll(outer, -1, 1), np.roll(inner, -1, 1)], axis=-1)
    corners = _FACE + len(_RINGS) * count + np.arange(4)
    cells = np.concatenate([corners[None], beside.reshape(-1, 4)])
    return np.asarray(cells[:, [[0, 1, 2], [3, 2, 1]]].reshape(-1, 3))


@lru_cache(maxsize=1)
def _bending() -> tuple[Numbers, Array]:
    """(C,) landmarks that are held, and (468, C) how all follow them: least bending of the mesh, cut at the lips."""
    mesh = canonical_mesh()
    held = {*_STILL, *(n for way in _MOVES.values() for n in way), *np.ravel(_EYE_CORNERS)}
    controls = np.array(sorted(held.union(*_UPPER_LIDS, *_LOWER_LIDS)), dtype=np.int64)
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
