"""A portrait as an elastic mesh of triangles that deforms when its face moves. Nothing here is learned.

The mesh is the face mesh plus rings around it that reach beyond the image border. The rings follow the face: near its
outline they move like the outline, farther away like the whole face, and less with distance, down to nothing. The mesh
has no holes, its outer edge is fixed, and the unmoved image lies under it, so that every pixel is covered.

With lashes, the mesh has one more loop of vertices around each eye, which moves with the edges of the lids. Without it
the dark band of the lashes is stretched over the whole lid where an eye closes.

Letters: B meshes, F = 470 vertices of the face, V of the whole mesh, R pixels per side. Places are 0..1 across the
image, x first.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from export3d.errors import check_shape
from export3d.face.landmark_sets import AROUND_EYES, EYE_CORNERS, EYE_LOOPS, FACE_OVAL, INNER_LIPS
from export3d.face.mesh import VERTICES, canonical_mesh
from export3d.layers import constant

_IRISES = (468, 473)
FACE = (*range(VERTICES), *_IRISES)
"""The landmarks (of 478) that are the F vertices of the face: those of the face mesh, then each iris's middle."""

_LID_EDGES = tuple(n for loop in EYE_LOOPS for n in loop)
_LID_FOLDS = tuple(n for loop in AROUND_EYES for n in loop)
_LASHES = 0.12
"""Width of the lashes, in widths of the eye."""
_MOST_LASHES = 0.6
"""Largest part of the way from the edge of the lid to its fold that lashes take."""

_RINGS = tuple(math.exp(math.log(0.02) * (1 - i / 11)) for i in range(12))
"""Positions of the rings between the face's outline (0) and the mesh's outer edge (1)."""
_COUNT = len(FACE_OVAL)
_WAVES = tuple(tuple(math.cos(2.0 * math.pi * k * n / _COUNT) / _COUNT for n in range(_COUNT)) for k in range(_COUNT))
"""Wave k around the outline at its vertex n: the inverse Fourier transform of an even spectrum."""
_AWAY = tuple(tuple((a - b) % _COUNT for b in range(_COUNT)) for a in range(_COUNT))
"""Steps around the outline from vertex b to a."""
_EDGE = 1.8
"""Radius of the mesh, in image widths."""
_CORNERS = ((-1.0, -1.0), (4.0, -1.0), (-1.0, 4.0))
"""Of a triangle that covers the image, under the mesh."""
_REACH = (0.5, 0.25, 0.35)
"""Distances above, beside and below the outline at which the rings follow the head's motion by 1/e, in face heights.

Chosen by PSNR on training clips.
"""
SLIVER = 1e-8
"""Triangles of a smaller area, in image areas, are not painted: their texture coordinates are undefined."""
_ROWS = 160
"""Room for the rows that the triangles cross, in image heights. Faces take 75, those that fill the image about 110."""
_SHARPNESS = 0.5
"""How far what is looked up is from bilinear, which blurs pixels that land between others, to bicubic, which sharpens.

Chosen by LPIPS of moving clips.
"""
_JUMP = 1.0 / 64.0
"""A lookup that jumps by so many image widths from one pixel to the next marks an occlusion edge.

In small images a jump is at least two pixels.
"""


Painter = Callable[[Tensor, Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""As `paint`."""


class ElasticMesh:
    """Meshes at rest, given the places of their faces.

    The rings follow the similarity that fits the face's motion best. What remains of the outline's motion fades with
    distance like a harmonic function: higher frequencies fade sooner. Where the mesh folds, the face covers the rings
    and inner rings cover outer ones.

    Args:
        face: (B, F, 2).
        lashes: whether lashes move with the edges of the lids.

    Attributes:
        source: (B, V, 2) vertices at rest: the face's, the lashes', the rings', and the corners of the triangle under
            them.
        ground: number of triangles under and around the face, which come first.
    """

    ground = 1 + 2 * len(FACE_OVAL) * len(_RINGS)

    def __init__(self, face: Tensor, lashes: bool = False) -> None:
        check_shape(face, f"B {len(FACE)} 2", "face of the mesh")
        oval = face[:, constant(FACE_OVAL, face.device)]
        centre = oval.mean(dim=1, keepdim=True)
        outward = F.normalize(oval - centre, dim=-1, eps=1e-9)
        part = constant(_RINGS, face.device, face.dtype).view(1, -1, 1, 1)
        rings = oval[:, None] + part * (centre + _EDGE * outward - oval)[:, None]
        height = (face[:, 10] - face[:, 152]).norm(dim=-1).clamp_min(4e-3)
        far = (rings - oval[:, None]).norm(dim=-1) / height[:, None, None]
        above, beside, below = _REACH
        steep = outward[..., 1].square()
        reach = torch.where(outward[..., 1] < 0, above, below) * steep + beside * (1.0 - steep)
        follow = torch.exp(-((far / reach[:, None]).square()))
        follow[:, -1].zero_()
        radius = (rings - centre[:, None]).norm(dim=-1).mean(-1) / (oval - centre).norm(dim=-1).mean(-1, keepdim=True)
        waves, away = torch.arange(_COUNT, device=face.device), constant(_AWAY, face.device)
        fading = radius.clamp_min(1.0)[..., None] ** -torch.minimum(waves, _COUNT - waves)
        # (B, rings, vertices, outline): how far each vertex of the outline moves those of the rings
        self._fading = (fading @ constant(_WAVES, face.device, face.dtype))[..., away]
        self._follow, self._rings, self._face = follow[..., None], rings, face
        self._corners = constant(_CORNERS, face.device, face.dtype).expand(face.shape[0], -1, -1)
        self._lashes: Tensor | None = None
        if lashes:
            outer, inner = face[:, constant(EYE_CORNERS, face.device)].unbind(2)
            width = _LASHES * (outer - inner).norm(dim=-1).repeat_interleave(len(EYE_LOOPS[0]), dim=1)
            self._lashes = torch.minimum(width, _MOST_LASHES * _lids(face)[1].norm(dim=-1))
        self.source = self._vertices(face, rings)

    def place(self, face: Tensor) -> Tensor:
        """(B, V, 2) all vertices when those of the face are at (B, F, 2)."""
        turn, shift = similarity(self._face, face)
        oval = constant(FACE_OVAL, face.device)
        beyond = face[:, oval] - (self._face[:, oval] @ turn + shift)
        faded = self._fading @ beyond[:, None]
        with_head = self._rings @ turn[:, None] + shift[:, None] - self._rings
        scale = (turn[:, :1, 0].square() + turn[:, :1, 1].square()).sqrt()
        return self._vertices(face, self._rings + self._follow * (with_head + faded), scale)

    def _vertices(self, face: Tensor, rings: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        """(B, V, 2) all vertices: those of the lashes lie as far from the edges of the lids as at rest."""
        lashes = []
        if self._lashes is not None:
            edge, out = _lids(face)
            part = scale * self._lashes / out.norm(dim=-1).clamp_min(1e-6)
            lashes = [edge + part.clamp_max(_MOST_LASHES)[..., None] * out]
        return torch.cat([face, *lashes, rings.flatten(1, 2), self._corners], dim=1)

    def lookup(self, face: Tensor, depth: Tensor, size: int, painter: Painter | None = None) -> tuple[Tensor, Tensor]:
        """The rest places that the moved meshes show at each pixel.

        Args:
            face: (B, F, 2) places of the face's vertices; differentiable.
            depth: (B, F); smaller is nearer.
            size: R.
            painter: `paint`, or another function that does the same.

        Returns:
            (B, R, R, 2) the rest place at each pixel, and (B, R, R) whether it lies between the lips.
        """
        source, number = self.painted(face, depth, size, painter)
        return source, constant(_triangles(self._lashes is not None)[1], face.device)[number]

    def painted(
        self, face: Tensor, depth: Tensor, size: int, painter: Painter | None = None, rest: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `lookup`, with the number (B, R, R) of the triangle at each pixel; the face's begin at `ground`.

        `rest` (B, V, 2) are other rest places than `source`.
        """
        triangles = constant(_triangles(self._lashes is not None)[0], face.device)
        if self._lashes is not None:
            edge, out = _lids(depth[..., None])
            depth = torch.cat([depth, (edge + 0.5 * out)[..., 0]], dim=1)
        far = depth[:, triangles[self.ground :]].mean(dim=-1)
        order = self.ground + far.argsort(dim=1, descending=True, stable=True)
        order = torch.cat([torch.arange(self.ground, device=face.device).expand(face.shape[0], -1), order], dim=1)
        return (painter or paint)(self.place(face), self.source if rest is None else rest, triangles, order, size)


def paint(places: Tensor, texture: Tensor, triangles: Tensor, order: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Paint triangles in an order, the last one on top.

    Args:
        places: (B, V, 2) where the vertices are.
        texture: (B, V, 2) what they carry, linear inside a triangle.
        triangles: (T, 3).
        order: (B, T) numbers of triangles; the first one covers the image.
        size: R.

    Returns:
        (B, R, R, 2) the texture at each pixel centre, differentiable in places and texture, and (B, R, R) its triangle.
    """
    batch, count = places.shape[0], triangles.shape[0]
    corners = places[:, triangles].reshape(-1, 3, 2)
    with torch.no_grad():
        rank = torch.empty_like(order).scatter_(1, order, torch.arange(count, device=order.device).expand(batch, -1))
        top = _topmost(corners.detach().float() * size, rank, size)
        number = order.gather(1, top)
    flat = (number + torch.arange(batch, device=number.device)[:, None] * count).view(-1)
    edge, carried = corners[:, 1:] - corners[:, :1], texture[:, triangles].view(-1, 3, 2)
    change = carried[:, 1:] - carried[:, :1]
    area = edge[:, 0, 0] * edge[:, 1, 1] - edge[:, 0, 1] * edge[:, 1, 0]
    solid = area.abs() > SLIVER
    share = torch.where(solid, 1.0 / torch.where(solid, area, 1.0), 0.0)
    table = torch.cat(
        [corners[:, 0], carried[:, 0], (edge * share[:, None, None]).flatten(1), change.flatten(1)], dim=1
    )
    x, y, u, v, ax, ay, bx, by, au, av, bu, bv = table.mT.contiguous().index_select(1, flat).view(12, batch, size, size)
    centre = (torch.arange(size, device=places.device) + 0.5) / size
    x, y = centre - x, centre[:, None] - y
    first, second = _within(x * by - y * bx), _within(y * ax - x * ay)
    shown = torch.stack([u + first * au + second * bu, v + first * av + second * bv], dim=1)
    return shown.permute(0, 2, 3, 1), number.view(batch, size, size)


def _within(share: Tensor) -> Tensor:
    """Shares of a triangle's edges, kept in 0..1: rounding must not leave the triangle. The gradient stays."""
    if not share.requires_grad:
        return share.clamp(0.0, 1.0)
    return share + (share.clamp(0.0, 1.0) - share).detach()


def _topmost(corners: Tensor, rank: Tensor, size: int) -> Tensor:
    """Rank of the last painted triangle at each pixel centre.

    Args:
        corners: (B T, 3, 2) pixels.
        rank: (B, T) of each triangle, from 0. What no other triangle covers is of rank 0.

    Returns:
        (B, R R).
    """
    batch = rank.shape[0]
    line = (torch.arange(batch, device=rank.device)[:, None] * size).expand_as(rank).reshape(-1)
    rank = rank.reshape(-1)
    edge = corners[:, 1:] - corners[:, :1]
    solid = (edge[:, 0, 0] * edge[:, 1, 1] - edge[:, 0, 1] * edge[:, 1, 0]).abs() > SLIVER * size**2
    # Each row of pixel centres that a triangle crosses, between its long edge and the upper or lower short one.
    # Neighbours compute their shared edge from the same two ends, so that no pixel falls between them.
    downward = corners[..., 1].argsort(dim=1, stable=True)[..., None].expand(-1, -1, 2)
    (x0, y0), (x1, y1), (x2, y2) = (c.unbind(-1) for c in corners.gather(1, downward).unbind(1))
    first, end = ((y - 0.5).ceil().clamp(0, size).long() for y in (y0, y2))
    rows = torch.where(solid & (rank > 0), (end - first).clamp_min(0), 0)

    def slope(xa: Tensor, ya: Tensor, xb: Tensor, yb: Tensor) -> Tensor:
        return (xb - xa) / torch.where(yb > ya, yb - ya, 1.0)

    slopes = slope(x0, y0, x2, y2), slope(x0, y0, x1, y1), slope(x1, y1, x2, y2)
    t, number = _repeated(rows, batch * _ROWS * size)
    shift, line, rank = _taken((first - rows.cumsum(0) + rows, line, rank), t)
    x0, y0, x1, y1, long, upper, lower = _taken((x0, y0, x1, y1, *slopes), t)
    row = number + shift
    y = row + 0.5
    one = x0 + (y - y0) * long
    other = torch.where(y < y1, x0 + (y - y0) * upper, x1 + (y - y1) * lower)
    left, right = (
        (x - 0.5).ceil().clamp(0, size).long() for x in (torch.minimum(one, other), torch.maximum(one, other))
    )
    # A run of pixels is two runs of a power of two that overlap. Long runs are handed down to runs half as long.
    levels = size.bit_length()
    power = constant(tuple(max(n, 1).bit_length() - 1 for n in range(size + 1)), rank.device)[right - left]
    start = (power * batch * size + line + row) * size
    reached = torch.zeros(levels * batch * size * size, dtype=torch.int32, device=rank.device)
    height = torch.where(right > left, rank, 0).int()
    for column in (left, right - constant(tuple(2**k for k in range(levels)), rank.device)[power]):
        reached.scatter_reduce_(0, (start + column).clamp(0, reached.shape[0] - 1), height, "amax")
    *runs, top = reached.view(levels, batch * size, size).unbind()
    for k, run in zip(range(levels - 2, -1, -1), reversed(runs)):
        top = torch.maximum(run, torch.maximum(top, top.roll(2**k, dims=-1)))
    return top.view(batch, -1).long()


def _repeated(counts: Tensor, room: int) -> tuple[Tensor, Tensor]:
    """Each of N items as often as its count (N,) says, in their order.

    Eager on a CPU, there are as many entries as the counts sum up to. Elsewhere there are `room`, whatever the data, so
    that shapes are known in advance: what exceeds it is cut off, and what is left over belongs to an item N.

    Returns:
        The item of each entry, and the entry's own number.
    """
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    size = room if traced or counts.device.type != "cpu" else int(counts.sum())
    ends = torch.zeros(size + 1, dtype=torch.long, device=counts.device)
    ends.scatter_add_(0, counts.cumsum(0).clamp_max(size), torch.ones_like(counts))
    return ends[:-1].cumsum(0), torch.arange(size, device=counts.device)


def _taken(values: tuple[Tensor, ...], item: Tensor) -> tuple[Tensor, ...]:
    """Of values (N,) each those of the items (M,) that `_repeated` gives; 0 for item N."""
    return F.pad(torch.stack(values, dim=1), (0, 0, 0, 1)).index_select(0, item).unbind(1)


def show(image: Tensor, lookup: Tensor, half: Tensor | None = None) -> Tensor:
    """Images resampled by moved meshes.

    Args:
        image: (B, C, H, W), or one for all; its border is repeated beyond it.
        lookup: (B, R, R, 2) places of it, from `ElasticMesh.lookup`. Where they lie
            denser than the pixels, the image at half its size is blended in; edges where the mesh jumps are softened.
        half: (B, C, H/2, W/2) the image at half its size, if it is there already.

    Returns:
        (B, C, R, R).
    """
    fine, coarse = levels(image, lookup, half)
    across, down = lookup[:, :, 1:] - lookup[:, :, :-1], lookup[:, 1:] - lookup[:, :-1]
    a, b = F.pad(across, (0, 0, 0, 1)), F.pad(down, (0, 0, 0, 0, 0, 1))
    area = (a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]).abs() * image.shape[-1] ** 2
    shown = fine + (0.5 * area.clamp(1.0, 4.0).log2())[:, None] * (coarse - fine)
    limit = jump(lookup.shape[1])
    side, below = ((step[..., 0].abs() > limit) | (step[..., 1].abs() > limit) for step in (across, down))
    torn = F.pad(side, (1, 0)) | F.pad(side, (0, 1)) | F.pad(below, (0, 0, 1, 0)) | F.pad(below, (0, 0, 0, 1))
    return torch.where(torn[:, None], softened(shown), shown)


def levels(image: Tensor, lookup: Tensor, half: Tensor | None) -> tuple[Tensor, Tensor]:
    """The image and the image at half its size, looked up as of `show`; (B, C, R, R) both."""

    def looked_up(level: Tensor, mode: str) -> Tensor:
        level = level.expand(lookup.shape[0], -1, -1, -1)
        return F.grid_sample(level, lookup * 2.0 - 1.0, mode, "border", align_corners=False)

    fine = torch.lerp(looked_up(image, "bilinear"), looked_up(image, "bicubic"), _SHARPNESS)
    return fine, looked_up(F.avg_pool2d(image, 2) if half is None else half, "bilinear")


def jump(size: int) -> float:
    """The change of a lookup from one of `size` pixels to the next that marks an occlusion edge."""
    return max(_JUMP, 2.0 / size)


def softened(image: Tensor) -> Tensor:
    """Weighted mean of 3 x 3 pixels, weights 1 2 1 per axis; (B, C, H, W) to the same shape."""
    image = F.pad(image, (1, 1, 1, 1), "replicate")
    for _ in range(2):  # 1 2 1 is 1 1 twice; a convolution of so few channels is slow
        image = image[..., 1:] + image[..., :-1]
        image = image[..., 1:, :] + image[..., :-1, :]
    return image / 16.0


def similarity(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Least-squares similarity between point sets (B, N, 2): matrix (B, 2, 2) for row vectors, and shift (B, 1, 2)."""
    a, b = before - before.mean(dim=1, keepdim=True), after - after.mean(dim=1, keepdim=True)
    size = a.square().sum(dim=(1, 2)).clamp_min(1e-12)
    cosine = (a * b).sum(dim=(1, 2)) / size
    sine = (a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]).sum(dim=1) / size
    turn = torch.stack([cosine, sine, -sine, cosine], dim=-1).view(-1, 2, 2)
    return turn, after.mean(dim=1, keepdim=True) - before.mean(dim=1, keepdim=True) @ turn


def _lids(face: Tensor) -> tuple[Tensor, Tensor]:
    """Of (B, F, C) the edges of the lids and what leads from there to the folds, (B, 32, C) each."""
    edge, fold = (face[:, constant(numbers, face.device)] for numbers in (_LID_EDGES, _LID_FOLDS))
    return edge, fold - edge


@functools.lru_cache(maxsize=2)
def _face_triangles(lashes: bool) -> tuple[list[list[int]], list[bool]]:
    """The mesh's triangles, each eye's replaced by a fan around its iris, and which of them lie between the lips.

    With lashes, each triangle between the edge and the fold of a lid becomes two, on this and that side of them.
    """
    kept = [list(map(int, corners)) for corners in canonical_mesh().triangles]
    for number, loop in enumerate(EYE_LOOPS):
        kept = [corners for corners in kept if not set(corners) <= set(loop)]
        kept += [[a, b, VERTICES + number] for a, b in zip(loop, loop[1:] + loop[:1])]
    if lashes:
        edges, folds = ({n: len(FACE) + k for k, n in enumerate(numbers)} for numbers in (_LID_EDGES, _LID_FOLDS))
        lids = [corners for corners in kept if set(corners) <= edges.keys() | folds.keys()]
        kept = [corners for corners in kept if corners not in lids]
        kept += [[moved.get(n, n) for n in corners] for corners in lids for moved in (edges, folds)]
    return kept, [set(corners) <= set(INNER_LIPS) for corners in kept]


@functools.lru_cache(maxsize=2)
def _triangles(lashes: bool) -> tuple[tuple[tuple[int, int, int], ...], tuple[bool, ...]]:
    """(T, 3): one that covers the image, the rings' from the outermost inward, the face's; and (T,) which are mouth."""
    count, before = len(FACE_OVAL), len(FACE) + (len(_LID_EDGES) if lashes else 0)
    loops = [list(FACE_OVAL)] + [[before + ring * count + n for n in range(count)] for ring in range(len(_RINGS))]
    first = before + len(_RINGS) * count
    cells = []
    for inner, outer in zip(loops[-2::-1], loops[:0:-1]):
        cells += [(outer[n], inner[n], outer[n - count + 1], inner[n - count + 1]) for n in range(count)]
    ground = [[first, first + 1, first + 2]]
    ground += [list(corners) for a, b, c, d in cells for corners in ((a, b, c), (d, c, b))]
    face, mouth = _face_triangles(lashes)
    between = [False] * len(ground) + mouth
    return tuple((a, b, c) for a, b, c in ground + face), tuple(between)
