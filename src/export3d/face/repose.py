"""Renders a portrait with another expression or head pose: the photo is the texture of a fitted face mesh.

There are two layers. The ground layer is the whole photo as a height field: the depth of the face, extended smoothly
over hair, neck and background. The face layer on top is the fitted mesh, deformed by the change of expression and
textured with the photo at the original positions of its vertices. The residuals of the fit are first added to the
vertices. The mesh's eyelids and lips therefore match the landmarks, and a change of zero reproduces the portrait. The
mesh has holes at eyes and mouth. Behind the eyelids lies the eye of the photo. Behind the lips lies what the photo
shows between them (upper teeth stay with the skull), and a dark colour elsewhere: the inside of an opened mouth is
invented.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from export3d.camera import FOCAL
from export3d.errors import MissingExtra
from export3d.face.landmark_sets import CHEEKS, FACE_OVAL, INNER_LIPS, LID_MIDDLES
from export3d.face.morphable import FaceFit, MorphableFace, fit_face
from export3d.motion.arkit import ARKIT52

Array = NDArray[np.float64]
Pixels = NDArray[np.uint8]

_GRID = 113
_MARGIN = 0.12
"""The ground extends this far beyond the image, image widths; the image's edge is repeated there."""
_EDGE_CM = 6.0
"""The edge of the image lies this far behind the farthest part of the face."""
_PIVOT_CM = 6.0
"""The head turns about a point this far behind the centre of the mesh."""
_GROUND_FOLLOWS = 0.06
"""Distance from the face outline within which the ground follows the face's motion, image widths."""
_CLOSED = 1.15
"""Travel of the eyelids in a blink, relative to the opening of the eye."""
_BLINK = 0.55
"""Increase of MediaPipe's blink score from an open to a closed eye; it grows as the square of the eyelid's travel."""
_HIDDEN_CM = 1.0
"""Parts of the mesh this far behind other parts do not belong to the face (the inside of the lips is closer)."""
_OUTLINE = 0.06
"""Within this distance from the outline, image widths, parts that face away do not belong to the face either."""
_RIM_PX = 1.5
"""Pixels (of 256) by which the inside of the mouth extends under the lips."""


def rasterise(xy: Array, depth: Array, triangles: NDArray[np.int64], size: int) -> tuple[NDArray[np.int64], Array]:
    """Rasterise a mesh with a z-buffer.

    Args:
        xy: (V, 2) pixels; pixel centres lie at +0.5.
        depth: (V,); smaller is nearer.
        triangles: (T, 3) vertex numbers.
        size: S, width and height of the result, pixels.

    Returns:
        (S, S) number of the nearest triangle at each pixel centre, -1 if there is none; and (S, S, 3) barycentric
        weights of its corners.
    """
    index = np.full(size * size, -1, dtype=np.int64)
    weights = np.zeros((size * size, 3))
    x0, x1, x2 = xy[triangles.T, 0]
    y0, y1, y2 = xy[triangles.T, 1]
    z0, z1, z2 = depth[triangles.T]
    area = (y1 - y2) * (x0 - x2) + (x2 - x1) * (y0 - y2)

    def pixels(a: Array, b: Array, c: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        first = np.ceil(np.minimum(np.minimum(a, b), c) - 0.5).clip(0, size).astype(np.int64)
        last = np.floor(np.maximum(np.maximum(a, b), c) - 0.5).clip(-1, size - 1).astype(np.int64)
        return first, np.maximum(last + 1 - first, 0)

    left, width = pixels(x0, x1, x2)
    top, height = pixels(y0, y1, y2)
    count = np.where(np.abs(area) > 1e-9, width * height, 0)
    # Every pixel of every triangle's bounding box, in one flat list.
    t = np.repeat(np.arange(len(triangles)), count)
    row, column = np.divmod(np.arange(len(t)) - np.repeat(np.cumsum(count) - count, count), width[t])
    column += left[t]
    row += top[t]
    share = 1.0 / np.where(count > 0, area, 1.0)
    dx, dy = column + 0.5 - x2[t], row + 0.5 - y2[t]
    a = ((y1 - y2) * share)[t] * dx + ((x2 - x1) * share)[t] * dy
    b = ((y2 - y0) * share)[t] * dx + ((x0 - x2) * share)[t] * dy
    c = 1.0 - a - b
    inside = np.flatnonzero(np.minimum(np.minimum(a, b), c) >= -1e-6)
    t, pixel, a, b, c = t[inside], row[inside] * size + column[inside], a[inside], b[inside], c[inside]
    far = z0[t] * a + z1[t] * b + z2[t] * c
    nearest = np.full(size * size, np.inf)
    np.minimum.at(nearest, pixel, far)
    seen = np.flatnonzero(far == nearest[pixel])[::-1]  # at equal depth the first triangle wins
    index[pixel[seen]] = t[seen]
    weights[pixel[seen]] = np.stack([a[seen], b[seen], c[seen]], 1)
    return index.reshape(size, size), weights.reshape(size, size, 3)


@dataclass(frozen=True, eq=False)
class View:
    """A reposed portrait: `image` (S, S, 3) uint8; `source` (S, S, 2), the position in the portrait, pixels."""

    image: Pixels
    source: Array


class Puppet:
    """A portrait whose expression and head pose can be changed.

    Args:
        face: the model.
        image: (S, S, 3) uint8, a face crop.
        landmarks_px: (478, 2), pixels of the image.
        scores: (52,) ARKit scores of the image.

    Raises:
        MissingExtra: scipy is not installed.
    """

    def __init__(self, face: MorphableFace, image: Pixels, landmarks_px: ArrayLike, scores: ArrayLike) -> None:
        self._face, self._size = face, image.shape[0]
        landmarks = np.asarray(landmarks_px, dtype=np.float64)[:, :2]
        self.fit: FaceFit = fit_face(face, landmarks, scores, self._size)
        self._photo = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
        placed = self.fit.place(face.shape(self.fit.identity, self.fit.scores))
        per_pixel = placed[:, 2:] / (FOCAL * self._size)
        placed[:, :2] += face.spread(self.fit.residual) * per_pixel
        self._placed = placed
        self._texel = self._project(placed)
        self._pivot = self.fit.translation + self.fit.rotation @ face.vertices.mean(0) + [0.0, 0.0, _PIVOT_CM]
        self._blink = self._blink_gain(landmarks)
        self._lips = _polygon_mask(landmarks[list(INNER_LIPS)], self._size)
        self._triangles = face.triangles[self._in_front(landmarks)]
        self._loop = mouth_loop(face)
        opening = self._opening(self._placed)
        self._parted = int(opening.sum(0).max())
        self._lips_away = _ndimage().distance_transform_edt(~(opening | (self._lips > 0.5)))
        self._make_ground()
        self._cheeks = image[self._pixels(landmarks[list(CHEEKS)])].mean(0)

    def view(self, scores: ArrayLike, turn: ArrayLike | None = None) -> View:
        """Render the portrait with other scores (52,), rotated by `turn` (3, 3) about a point inside the head."""
        change = np.asarray(scores, dtype=np.float64) - self.fit.scores
        for side, travel in self._blink.items():
            number = ARKIT52.index(f"eyeBlink{side}")
            asked = change[number]
            change[number] = travel * (min(np.sqrt(asked / _BLINK), 1.0) if asked > 0 else asked)
        motion = np.tensordot(change, self._face.expression, 1) @ self.fit.rotation.T
        rotation = np.eye(3) if turn is None else np.asarray(turn, dtype=np.float64)

        def turned(points: Array) -> Array:
            return np.asarray((points - self._pivot) @ rotation.T + self._pivot)

        pulled = _blend(motion, self._triangles[self._ground_triangle], self._ground_weights)
        ground = turned(self._ground + pulled * self._follows[:, None])
        source, missing = self._look(ground, self._ground_cells, self._ground_texel)
        if missing.any():
            near = _ndimage().distance_transform_edt(missing, return_distances=False, return_indices=True)
            source = source[tuple(near)]
        moved = turned(self._placed + motion)
        skin_source, bare = self._look(moved, self._triangles, self._texel)
        # What the photo shows between its lips is not skin, even where the lips of the mesh cover it.
        between = self._lips[self._pixels(skin_source)] > 0.5
        skin = _soft(~(bare | between))
        mouth = (self._opening(moved) & bare) | (between & ~bare)
        picture = self._sample(source)
        if mouth.any():
            picture = self._with_mouth(picture, source, mouth)
        picture += skin[..., None] * (self._sample(skin_source) - picture)
        source = np.where((skin > 0.5)[..., None], skin_source, source)
        return View(picture.round().clip(0, 255).astype(np.uint8), source)

    def _project(self, points: Array) -> Array:
        return np.asarray(points[:, :2] * (FOCAL * self._size) / points[:, 2:] + self._size / 2)

    def _pixels(self, places: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row and column of the pixel that contains each position (..., 2)."""
        column, row = np.moveaxis(np.floor(places).clip(0, self._size - 1).astype(np.int64), -1, 0)
        return row, column

    def _look(self, points: Array, triangles: NDArray[np.int64], texel: Array) -> tuple[Array, NDArray[np.bool_]]:
        """(S, S, 2) source positions of a textured mesh, and (S, S) True where the mesh does not cover the pixel."""
        index, weights = rasterise(self._project(points), points[:, 2], triangles, self._size)
        return _blend(texel, triangles[index], weights), index < 0

    def _sample(self, source: Array) -> NDArray[np.float32]:
        """(S, S, 3) float32 colours of the photo at source positions, bicubic, edges repeated."""
        at = torch.from_numpy((source * (2.0 / self._size) - 1.0).astype(np.float32))[None]
        picture = torch.nn.functional.grid_sample(self._photo, at, "bicubic", "border", align_corners=False)
        return np.asarray(picture[0].permute(1, 2, 0).numpy())

    def _in_front(self, landmarks: Array) -> NDArray[np.bool_]:
        """Which triangles belong to the face: inside its outline in the photo, and not on the far side of the head."""
        triangles, texel, depth = self._face.triangles, self._texel, self._placed[:, 2]
        deep = _ndimage().distance_transform_edt(_polygon_mask(landmarks[list(FACE_OVAL)], self._size) > 0.5)
        deep = deep[self._pixels(texel)][triangles].min(1)
        index, weights = rasterise(texel, depth, triangles, self._size)
        front = _blend(depth[:, None], triangles[index], weights)[..., 0]
        hidden = (depth - front[self._pixels(texel)])[triangles].max(1)
        edges = texel[triangles[:, 1:]] - texel[triangles[:, :1]]
        facing = edges[:, 0, 0] * edges[:, 1, 1] - edges[:, 0, 1] * edges[:, 1, 0]
        facing = facing * np.sign(np.median(facing)) > 0
        return np.asarray((deep > 0) & (hidden < _HIDDEN_CM) & (facing | (deep > _OUTLINE * self._size)))

    def _blink_gain(self, landmarks: Array) -> dict[str, float]:
        """For each eye, the coefficient that closes it from its current opening."""
        gains = {}
        down = self.fit.rotation[:, 1] * np.array([1.0, 1.0, 0.0])
        scale = FOCAL * self._size / self._placed[:, 2].mean()
        for side, (upper, lower) in LID_MIDDLES.items():
            number = ARKIT52.index(f"eyeBlink{side}")
            lids = self._face.at_landmarks(self._face.expression[number])[[upper, lower]] @ self.fit.rotation.T
            travel = float((lids[0] - lids[1]) @ down) * scale
            opening = float(np.linalg.norm(landmarks[upper] - landmarks[lower]))
            gains[side] = min(_CLOSED * opening / max(travel, 1e-6), 2.0)
        return gains

    def _opening(self, placed: Array) -> NDArray[np.bool_]:
        """(S, S) True inside the mesh's edge between the lips, filled by a triangle fan."""
        loop = placed[self._loop]
        points = np.concatenate([loop, loop.mean(0, keepdims=True)])
        n = np.arange(len(loop))
        fan = np.stack([n, np.roll(n, -1), np.full_like(n, len(loop))], 1)
        index, _ = rasterise(self._project(points), points[:, 2], fan, self._size)
        return np.asarray(index >= 0)

    def _with_mouth(self, picture: NDArray[np.float32], source: Array, mouth: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Fill the mouth: what the photo shows between the lips stays in place, the rest of the opening is dark."""
        rows = np.flatnonzero(mouth.any(1))
        shade = np.zeros(self._size)
        shade[rows[0] : rows[-1] + 1] = np.linspace(0.5, 1.2, rows[-1] + 1 - rows[0])
        grey = self._cheeks.mean()
        dark = shade[:, None, None] * (0.16 * grey + np.array([0.8 * max(self._cheeks[0] - grey, 0.0), 0.0, 0.0]))
        # Lips that open no further keep the seam of the photo; once they open, the seam would look like a third lip.
        rim = _RIM_PX * self._size / 256
        parted = (mouth.sum(0).max() - self._parted) / rim
        kept = self._lips_away[self._pixels(source)] <= 2.0 * rim * np.clip(2.0 - parted / 2.0, 0.0, 1.0)
        return np.where((_grown(mouth, rim) & ~kept)[..., None], dark, picture).astype(np.float32)

    def _make_ground(self) -> None:
        """Build the ground: the photo as a height field that extends beyond the edge of the image."""
        size, cells = self._size, _GRID - 1
        span = (1.0 + 2.0 * _MARGIN) * size
        steps = (np.arange(_GRID) / cells * span) - _MARGIN * size
        index, weights = rasterise(
            (self._texel + _MARGIN * size) * (cells / span) + 0.5, self._placed[:, 2], self._triangles, _GRID
        )
        face = index >= 0
        depth = (self._placed[self._triangles[index], 2] * weights).sum(-1)
        back = depth[face].max()
        edge = np.zeros_like(face)
        edge[[0, -1]] = edge[:, [0, -1]] = True
        edge &= ~face
        depth = _smooth_fill(np.where(edge, back + _EDGE_CM, depth), face | edge)
        gx, gy = np.meshgrid(steps, steps)
        self._ground_texel = np.stack([gx.ravel(), gy.ravel()], 1)
        plane = (self._ground_texel - size / 2) / (FOCAL * size)
        self._ground = np.concatenate([plane, np.ones((_GRID**2, 1))], 1) * depth.reshape(-1, 1)
        corner = np.arange(_GRID**2).reshape(_GRID, _GRID)
        a, b, c, d = (v.ravel() for v in (corner[:-1, :-1], corner[:-1, 1:], corner[1:, :-1], corner[1:, 1:]))
        self._ground_cells = np.concatenate([np.stack([a, b, c], 1), np.stack([d, b, c], 1)])
        # Outside the face, follow its nearest point, less with distance. Deep inside, stay: eyes and teeth are rigid.
        filled = _ndimage().binary_fill_holes(face)
        away, near = _ndimage().distance_transform_edt(~face, return_indices=True)
        deep = _ndimage().distance_transform_edt(filled)
        near = tuple(near)
        self._ground_triangle = index[near].ravel()
        self._ground_weights = weights[near].reshape(-1, 3)
        reach = _GROUND_FOLLOWS * cells / (1.0 + 2.0 * _MARGIN)
        away = np.where(filled, 0.0, away)
        self._follows = np.exp(-(((away + np.maximum(deep - 1.0, 0.0)) / reach) ** 2)).ravel()


def mouth_loop(face: MorphableFace) -> NDArray[np.int64]:
    """The vertices along the mesh's edge between the lips, in order."""
    edges = face.triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
    _, first, count = np.unique(np.sort(edges, axis=1), axis=0, return_index=True, return_counts=True)
    following = {int(i): int(j) for i, j in edges[first[count == 1]]}
    lip = face.at_landmarks(face.vertices[None])[0][[13, 14]].mean(0)
    start = min(following, key=lambda v: float(np.linalg.norm(face.vertices[v] - lip)))
    loop = [start]
    while following[loop[-1]] != start:
        loop.append(following[loop[-1]])
    return np.array(loop)


def _ndimage() -> Any:
    try:
        import scipy.ndimage
    except ModuleNotFoundError as error:
        raise MissingExtra("pseudo", "scipy") from error
    return scipy.ndimage


def _blend(values: Array, corners: NDArray[np.int64], weights: Array) -> Array:
    """Barycentric means: (V, K), (..., 3) and (..., 3) to (..., K)."""
    first, second, third = (values[corners[..., k]] * weights[..., k, None] for k in range(3))
    return np.asarray(first + second + third)


def _soft(cover: NDArray[np.bool_]) -> NDArray[np.float32]:
    """A mask with soft edges inside the hard mask."""

    soft = 2.0 * _ndimage().gaussian_filter(cover.astype(np.float32), 0.8, mode="nearest") - 1.0
    return np.asarray(np.where(cover, soft.clip(0.0, 1.0), 0.0), dtype=np.float32)


def _grown(mask: NDArray[np.bool_], pixels: float) -> NDArray[np.bool_]:

    return np.asarray(_ndimage().distance_transform_edt(~mask) <= pixels) if mask.any() else mask


def _polygon_mask(points: Array, size: int) -> NDArray[np.float32]:
    from PIL import Image, ImageDraw

    fine = 4
    canvas = Image.new("L", (size * fine, size * fine))
    ImageDraw.Draw(canvas).polygon([(x * fine, y * fine) for x, y in points.tolist()], fill=255)
    return np.asarray(canvas.resize((size, size), Image.Resampling.BOX), dtype=np.float32) / 255.0


def _smooth_fill(values: Array, known: NDArray[np.bool_]) -> Array:
    """Fill the unknown values of a grid so that each is the mean of its neighbours."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.linalg import spsolve

    height, width = values.shape
    number = np.full(values.shape, -1)
    number[~known] = np.arange((~known).sum())
    rows, columns, right = [], [], np.zeros((~known).sum())
    row, column = np.nonzero(~known)
    here = number[row, column]
    for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        y, x = (row + dy).clip(0, height - 1), (column + dx).clip(0, width - 1)
        other = number[y, x]
        rows.append(here[other >= 0])
        columns.append(other[other >= 0])
        right += np.where(other < 0, values[y, x], 0.0)
    off = np.concatenate(rows), np.concatenate(columns)
    count = len(right)
    matrix = coo_matrix(
        (
            np.concatenate([np.full(count, 4.0), np.full(len(off[0]), -1.0)]),
            (np.concatenate([here, off[0]]), np.concatenate([here, off[1]])),
        ),
        (count, count),
    ).tocsc()
    out = values.copy()
    out[~known] = spsolve(matrix, right)
    return out
