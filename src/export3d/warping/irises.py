"""Irises roll between the eyelids: each moves as a disc (not in the paper).

The elastic mesh has one vertex per iris. Where the eye looks aside, its triangles stretch the iris on one side and
squeeze it on the other, and the tracker hardly sees the eye move. Here the mesh is painted with irises at rest, where
the eyelids alone carry them. Between the eyelids each pixel near the driven iris then looks up the mesh as far away as
the iris has moved; at 2.4 radii nothing moves any more. After a far roll to the side, pixels between the iris and its
old place would look up that place, and show a second iris. They look up the white of the eye beyond it, stretched.

Letters: B batch, F = 470 face vertices of the elastic mesh, H pixels, W = H / 4 pixels of a window around an eye.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from export3d.face.landmark_sets import EYE_LOOPS, IRISES
from export3d.layers import constant
from export3d.warping.elastic_mesh import FACE, similarity
from export3d.warping.flow_field import covered

_CENTRES = tuple(FACE.index(iris[0]) for iris in IRISES)
_RIMS = tuple(tuple(iris[1:]) for iris in IRISES)
_RIGID, _STILL = 1.1, 2.4
"""Distances from the iris's centre, in its radii: up to the first all moves with it, from the second on nothing."""
_WHITE, _SPREAD = 1.2, 0.2
"""Behind an iris that has rolled to the side, a pixel `_WHITE` radii or more from its centre looks up the source's eye
at least as far from the old centre: at `_WHITE` plus `_SPREAD` times the rest. Nearer, the dark edge of the iris would
be stretched. It is not done for rolls up or down, behind which are lids."""


def at_rest(places: Tensor, own: Tensor) -> Tensor:
    """Driven places (B, F, 2) with the irises where the eyelids carry them from the source's places `own`."""
    with torch.autocast(places.device.type, enabled=False):  # bf16 would round places to a quarter of a pixel
        loops = constant(EYE_LOOPS, places.device)
        turn, shift = similarity(own[:, loops].flatten(0, 1), places[:, loops].flatten(0, 1))
        centres = constant(_CENTRES, places.device)
        rest = own[:, centres].flatten(0, 1)[:, None] @ turn + shift
        return places.index_copy(1, centres, rest.view(-1, 2, 2))


def rolled(flow: Tensor, elastic: Tensor, landmarks: Tensor, own: Tensor) -> Tensor:
    """A flow (B, 2, H, H) whose irises have rolled; gradients flow through it.

    Args:
        flow: offsets to places of the source, x first, in [-1, 1] grid units.
        elastic: (B, 2, H, H) those of the mesh with irises `at_rest`, which replace `flow` between the eyelids.
        landmarks: (B, 478, 2) in the driving frame, 0..1.
        own: (B, F, 2) places of the mesh's vertices in the source, 0..1.
    """
    size, window = flow.shape[-1], flow.shape[-1] // 4
    loops, rims, face = (constant(numbers, flow.device) for numbers in (EYE_LOOPS, _RIMS, FACE))
    centres = constant(_CENTRES, flow.device)
    places = landmarks[:, face]
    lids, iris, rest = landmarks[:, loops], places[:, centres], at_rest(places, own)[:, centres]
    radius = (landmarks[:, rims] - iris[:, :, None]).norm(dim=-1).mean(dim=-1)
    corner = (size * lids.mean(dim=2) - window / 2).round().clamp(0, size - window)
    open_eye = covered((size * lids - corner[:, :, None]).flatten(0, 1) / window, window)
    open_eye = F.avg_pool2d(F.pad(open_eye, (1, 1, 1, 1), mode="replicate"), 3, 1).view(-1, 1, 2, window, window)

    steps = torch.arange(window, device=flow.device)
    column, row = (corner[..., None] + steps).unbind(2)  # (B, 2, W) each
    index = (row[..., None] * size + column[:, :, None]).long().flatten(1)
    wide = (-1, -1, window, window)
    here = torch.stack([column[:, :, None].expand(wide), row[..., None].expand(wide)], dim=1)
    here = (here + 0.5) / size  # (B, 2 coordinates, 2 eyes, W, W)

    def each(x: Tensor) -> Tensor:
        """(B, 2 eyes, 2 coordinates) for windows."""
        return x.mT[..., None, None]

    across, radius = here - each(iris), radius[:, None, :, None, None].clamp_min(1e-4)
    away = across.square().sum(dim=1, keepdim=True).clamp_min(1e-12).sqrt() / radius  # a norm takes ten times as long
    near = ((_STILL - away) / (_STILL - _RIGID)).clamp(0.0, 1.0)
    way = each(rest - iris)
    back = way * (near * near * (3.0 - 2.0 * near))
    behind = way / way.square().sum(dim=1, keepdim=True).clamp_min(1e-12).sqrt()
    corners = lids[:, :, len(EYE_LOOPS[0]) // 2] - lids[:, :, 0]
    sideways = (each(F.normalize(corners, dim=-1)) * behind).sum(dim=1, keepdim=True).square()
    found = (here + back - each(rest)) / radius
    along, trailing = ((part * behind).sum(dim=1, keepdim=True) for part in (found, across))
    aside = found.square().sum(dim=1, keepdim=True) - along.square()
    least = torch.minimum(away, _WHITE + _SPREAD * (away - _WHITE))
    lack = (least.square() - aside).clamp_min(1e-6).sqrt() - along
    back = back + behind * radius * torch.where(trailing > 0.0, sideways * lack.clamp_min(0.0), 0.0)
    there = (2.0 * (here + back) - 1.0).permute(0, 2, 3, 4, 1).flatten(1, 2)
    seen = F.grid_sample(elastic, there, padding_mode="border", align_corners=False).view_as(here) + 2.0 * back

    flat = flow.flatten(2)
    both = index[:, None].expand(-1, 2, -1)
    change = open_eye * (seen - flat.gather(2, both).view_as(here))
    return flat.scatter_add(2, both, change.flatten(2)).view_as(flow)
