"""From moved landmarks to flows: where features of the planes and pixels of the driving frame come from in the source.

Letters: B batch, L = 478 landmarks, H pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from export3d.camera import projected
from export3d.face.landmark_sets import INNER_LIPS
from export3d.face.mesh import landmark_mirror_map
from export3d.image import resize
from export3d.layers import constant
from export3d.warping.elastic_mesh import FACE, ElasticMesh, Painter, similarity, softened
from export3d.warping.flow_field import covered, look_up, pixel_grid
from export3d.warping.irises import at_rest
from export3d.warping.landmark_motion import Face

Mender = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`mended`, or `fused.mended`."""
_SEAM = 64
"""Cells across the image. Around the outline of the face the flow is averaged over 3 x 3 of them where it jumps."""
_SMALL_JUMP = 1.0 / 32.0
"""Farthest jump of a lookup that is mended, in image widths; from half as much again on it stays as it is."""


def plane_flow(points: Tensor, face: Face, half_extent: float, size: int, painter: Painter | None = None) -> Tensor:
    """The flow from the xy plane to the aligned source.

    Args:
        points: (B, L, 3) moved landmarks.
        face: of the source.
        half_extent: of the planes, scene units.
        size: of the grid.
        painter: see `ElasticMesh.lookup`.

    Returns:
        (B, 2, size, size) offsets, x first, in the plane's [-1, 1] grid units.
    """
    with torch.autocast(points.device.type, enabled=False):
        front = points[:, constant(FACE, points.device)]
        here = (front[..., :2] / half_extent + 1.0) / 2.0
        source, _ = ElasticMesh((face.aligned + 1.0) / 2.0).lookup(here, front[..., 2], size, painter)
        return 2.0 * source.permute(0, 3, 1, 2) - 1.0 - pixel_grid(size, points.device)


def driving_flow(
    places: Tensor,
    distance: Tensor,
    face: Face,
    size: int,
    painter: Painter | None = None,
    mend: Mender | None = None,
    *,
    resting: bool = False,
    lashes: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The flow from a driving frame's pixels to the source, once the source's landmarks have moved.

    Args:
        places: (B, L, 2) moved landmarks in the driving frame, 0..1.
        distance: (B, L) from its camera.
        size: pixels across the frame.
        painter: see `ElasticMesh.lookup`.
        mend: see `without_seam`.
        resting: whether the irises rest, as `irises.rolled` needs them.
        lashes: whether lashes move with the edges of the lids, see `ElasticMesh`.

    Returns:
        Two flows (B, 2, size, size), offsets to places of the source, x first, in [-1, 1] grid units: on the elastic
        mesh of the landmarks, without its seams, and by the similarity (rotation, scale and shift in the image plane)
        nearest to the face's motion. And (B, size, size), where that mesh shows the face.
    """
    with torch.autocast(places.device.type, enabled=False):
        vertices = constant(FACE, places.device)
        places, distance = places[:, vertices], distance[:, vertices]
        shown = at_rest(places, face.places) if resting else places
        mesh = ElasticMesh(face.places, lashes)
        source, number = mesh.painted(shown, distance, size, painter)
        here = pixel_grid(size, places.device)
        elastic = 2.0 * source.permute(0, 3, 1, 2) - (1.0 + here)
        turn, shift = similarity(places, face.places)
        # 2 (p T + s) - 1 - g at p = (g + 1) / 2
        across, down = (turn - torch.eye(2, device=turn.device))[..., None, None].unbind(1)
        along = (turn.sum(dim=1, keepdim=True) + 2.0 * shift - 1.0).mT[..., None]
        as_face = across * here[:, :1, :1] + (down * here[:, 1:, :, :1] + along)
        on_face = number >= mesh.ground
        return without_seam(elastic, on_face, mend), as_face, on_face


def without_seam(flow: Tensor, on_face: Tensor, mend: Mender | None = None) -> Tensor:
    """The flow on an elastic mesh, made continuous where it jumps a little at the outline of the face.

    Where a cheek hides that outline the mesh is folded, and what lies around the face moves with the hidden outline
    instead of the cheek. What lies between the two would be shown twice, as a dotted line along the cheek. Farther
    jumps are left: there the face hides something else.

    Args:
        flow: (B, 2, R, R), [-1, 1] grid units.
        on_face: (B, R, R), where the mesh shows the face.
        mend: in place of `mended`.

    Returns:
        (B, 2, R, R).
    """
    step = max(flow.shape[-1] // _SEAM, 1)
    some = slice(step // 2, flow.shape[-1] // step * step, step)  # a pixel of each whole cell, as `_jumps` has them
    few, inside = (part[..., some, some].to(flow.dtype) for part in (flow, on_face[:, None]))
    means = F.pad(torch.cat([few, few * inside, inside], dim=1), (1, 1, 1, 1), "replicate")
    means = F.avg_pool2d(means, 3, 1)
    soft, of_face, share = means[:, :2], means[:, 2:4], means[:, 4:]
    beside = of_face / share.clamp_min(1e-3) - (soft - of_face) / (1.0 - share).clamp_min(1e-3)
    far = beside.detach().square().sum(dim=1, keepdim=True).sqrt() / 2.0
    near = (2.0 - (4.0 * share - 2.0).abs()).clamp(0.0, 1.0) * (3.0 - 2.0 * far / _SMALL_JUMP).clamp(0.0, 1.0)
    return (mend or mended)(flow, soft, near)


def mended(flow: Tensor, soft: Tensor, near: Tensor) -> Tensor:
    """The flow, passed over to its means where it jumps.

    Args:
        flow: (B, 2, R, R), [-1, 1] grid units.
        soft: (B, 2, n, n), its means around cells of R / n pixels, rounded down.
        near: (B, 1, n, n), 0 to 1, how much may be passed over.
    """
    near = near * _jumps(flow.detach(), flow.shape[-1] // near.shape[-1])
    smooth = F.interpolate(torch.cat([soft, near], dim=1), flow.shape[-2:], mode="bilinear")
    return torch.lerp(flow, smooth[:, :2], smooth[:, 2:])


def _jumps(flow: Tensor, step: int) -> Tensor:
    """(B, 1, R / step, R / step): whether lookups jump there from one pixel to the next, by one pixel or by two."""
    across, down = flow[..., 1:] - flow[..., :-1], flow[..., 1:, :] - flow[..., :-1, :]
    steps = F.pad(across.abs().amax(dim=1), (0, 1)), F.pad(down.abs().amax(dim=1), (0, 0, 0, 1))
    largest = F.max_pool2d(torch.maximum(*steps)[:, None], step)
    return F.max_pool2d((flow.shape[-1] * largest / 2.0 - 1.0).clamp(0.0, 1.0), 3, 1, 1)


@functools.lru_cache(maxsize=1)
def _mirrored() -> tuple[int, ...]:
    """Of each vertex of the face the number of the one on the other side."""
    return tuple(FACE.index(n) for n in landmark_mirror_map()[list(FACE)].tolist())


def mirrored_flow(places: Tensor, distance: Tensor, face: Face, size: int, painter: Painter | None = None) -> Tensor:
    """The flow from a driving frame's pixels to the flipped source, where the other half of the face lies.

    Arguments as of `driving_flow`.

    Returns:
        (B, 2, size, size) offsets to places of the source flipped left to right. Only where the mesh shows the face.
    """
    with torch.autocast(places.device.type, enabled=False):
        vertices = constant(FACE, places.device)
        other = face.places[:, constant(_mirrored(), places.device)]
        flipped = torch.stack([1.0 - other[..., 0], other[..., 1]], dim=-1)
        rest = ElasticMesh(flipped).source
        source, _ = ElasticMesh(face.places).painted(places[:, vertices], distance[:, vertices], size, painter, rest)
        return 2.0 * source.permute(0, 3, 1, 2) - 1.0 - pixel_grid(size, places.device)


def mouth_mask(places: Tensor, size: int) -> Tensor:
    """The polygon of the inner lips: places (B, L, 2), 0..1, of landmarks to (B, 1, size, size), 0 or 1."""
    return covered(places[:, constant(INNER_LIPS, places.device)], size)


@torch.no_grad()
def openings(points: Tensor, mouth: Tensor, camera: Tensor, turned: Tensor) -> Tensor:
    """Masks of the open mouth.

    Args:
        points: (B, L, 3) moved landmarks.
        mouth: (B, 1, H/2, H/2) the source's, 0 to 1, see `mouth_mask`.
        camera: (B, 25) of the driving frames.
        turned: (B, 2, H, H), see `average_head.turned_flow`.

    Returns:
        (B, 2, H, H), 0 to 1: in the driving view, and in the source turned as the head is.
    """
    size = turned.shape[-1]
    driving = softened(mouth_mask(projected(points, camera)[0], size))
    source = look_up(mouth, resize(turned, size // 2))
    return torch.cat([driving, F.interpolate(source, size, mode="bilinear", align_corners=False)], dim=1)
