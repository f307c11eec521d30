"""Teeth keep their size when a mouth opens, and are gone when it closes (not in the paper).

Where a mouth opens wider than the source's, the elastic mesh stretches what the source shows between its lips down to
the lower lip. Teeth become long and transparent. Where lips move far without opening, it squeezes them. But upper teeth
belong to the skull. Here such a mouth shows the source turned with the head where that shows the inside of its mouth,
and below that it is hollow: rendered, with dark pixels in place of the stretched ones. An upper lip that comes down
takes the teeth along (`taken_along`). When it opens farther, all below the upper teeth is drawn (`inner_mouth`). The
line between closed lips becomes vertical bars; it is smoothed across. Lips that almost close meet: squeezed teeth would
show between them as a pale line. An upper lip that is stretched is looked up away from the teeth (`off_teeth`).

Letters: B batch, L = 478 landmarks, H pixels, W pixels, s pixels of a mouth's square.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from export3d.camera import projected
from export3d.face.landmark_sets import EYE_CORNERS, INNER_LIPS
from export3d.layers import constant, enlarge
from export3d.warping.elastic_mesh import softened
from export3d.warping.flow_field import longest_stretch, look_up, pixel_grid

_CORNERS = (EYE_CORNERS[0][0], EYE_CORNERS[1][0])
"""The outer ones."""
_LIPS = (13, 14)
"""Middles of the inner lips, the upper one first."""
_SHOWN = 0.05, 0.08
"""Gap between the lips, in distances of the outer eye corners, up to which a source counts as closed, and from which it
shows teeth."""
_WIDER, _WIDE = (0.005, 0.02), (0.1, 0.18)
"""By how much the gap must get wider for teeth to leave the mesh, and to leave it wholly; and for closed lips. Between
the two, teeth are shown twice, the farther apart the wider the gap."""
_MOVED = 0.05, 0.1
"""They leave it too where a point of the lips has moved so far: there the mesh squeezes them."""
_BEHIND, _BELOW = (0.005, 0.025), (0.06, 0.14)
"""By how much it must get wider for the mouth to begin to be drawn, and to be drawn wholly: behind closed lips, and
below visible teeth."""
_ROUND = 0.1, 0.2
"""Gap up to which teeth go along the whole upper lip, and from which not farther than its middle: a round mouth would
draw those at its sides down to fangs."""
_PARTED = 0.012, 0.035
"""Gap up to which lips count as closed, and from which they are open."""
_MEETING, _LEAST = (0.02, 0.055), 0.02
"""Driven gap up to which lips meet, and from which they stay, and openness that counts as none. Where sources smile and
drivers' lips are closed the motion leaves 0.02 to 0.04."""
_INNER = INNER_LIPS[1:10], INNER_LIPS[:10:-1]
"""The upper and the lower inner lip, without the corners."""
_UPPER = INNER_LIPS[:11]
"""The upper inner lip from corner to corner."""
_UP = 0.6
"""The lower lip's share of closing the gap."""
_EDGE = 1.0 / 128.0
"""Edge of the source's mouth that counts as lip, in image widths: landmarks are not more exact."""
_AROUND = 1.0 / 64.0
"""So far around a mouth, image widths, its teeth are taken along too: its edge is soft."""
_BESIDE, _STRETCHED = 1.0 / 32.0, (0.1, 0.5)
"""About how far around the source's mouth lookups for the upper lip are shifted away from it, image widths; and stretch
of the lip from which the shift begins, and at which it is full."""
_THIN, _UPPER_LIP = 0.5, (0, 13)
"""The shift is `_EDGE`, but at most this share of the height of the source's upper lip; and the landmarks between which
that height is measured."""
_ACROSS = 1.0 / 21.0
"""Bars are smoothed over so many image widths to each side."""
_HOLLOW = (-0.82, -0.82, -0.82)
"""Colour of the inside of a wide open mouth: dark, and grey, so that a grey photo stays grey."""
_WHITE, _SHADED, _WHITER = 0.6, 0.6, 1.05
"""How white a tooth is at least, relative to the whitest pixel of columns nearby; that one relative to the whitest of
the mouth; and that relative to the lips. White is the smallest of red, green and blue: tongues and gums are red."""
_NEARBY, _LIP, _COLUMNS, _CORNER = 9, 9, 5, 31
"""Pixels of the square: columns nearby, width of mouth and lips around a pixel of it, columns that decide together, and
width around a column without bright teeth, as in the corners of a mouth, in which the lowest teeth decide for it."""
_FIRST, _FEW = 0.3, 5.0
"""Upper teeth begin above this share of the opening, or within so many pixels of the square from the upper lip."""


def lip_gap(points: Tensor) -> Tensor:
    """Between the inner lips of landmarks (B, L, 2 or 3): (B,), in distances of the outer eye corners."""
    lips = points[:, constant(_LIPS, points.device)]
    out: Tensor = (lips[:, 0] - lips[:, 1]).norm(dim=-1) / _corner_distance(points)
    return out


def _corner_distance(points: Tensor) -> Tensor:
    """Between the outer eye corners of landmarks (B, L, 2 or 3): (B,)."""
    corners = points[:, constant(_CORNERS, points.device)]
    out: Tensor = (corners[:, 0] - corners[:, 1]).norm(dim=-1).clamp_min(1e-4)
    return out


def _moved(points: Tensor, own: Tensor) -> Tensor:
    """How far the inner lips of landmarks (B, L, 3) have moved at most: (B,), in distances of the outer eye corners."""
    lips = constant(INNER_LIPS, points.device)
    out: Tensor = (points[:, lips] - own[:, lips]).norm(dim=-1).amax(dim=1) / _corner_distance(own)
    return out


@torch.no_grad()
def opened(points: Tensor, own: Tensor) -> Tensor:
    """How far a mouth has opened, for a source that shows teeth and for one with closed lips.

    One that shows teeth also counts as opened where its lips have moved far.

    Args:
        points, own: (B, L, 3) driven landmarks and the source's, in the head's own axes.

    Returns:
        (B, 2, 1, 1), 0 to 1.
    """
    wider, teeth = lip_gap(points) - lip_gap(own), shown(own)[:, 0]
    left = torch.maximum(_step(wider, _WIDER), _step(_moved(points, own), _MOVED))
    wide = torch.stack([left, _step(wider, _WIDE)], dim=1)[..., None, None]
    return torch.stack([teeth, 1.0 - teeth], dim=1) * wide


def closed(points: Tensor, own: Tensor) -> Tensor:
    """Driven landmarks (B, L, 3) whose almost closed lips meet, if the source's are farther open; differentiable.

    Its own expression leaves a face unchanged. `own` as for `opened`.
    """
    upper, lower = (constant(numbers, points.device) for numbers in _INNER)
    kept = (_step(lip_gap(points), _MEETING) + _LEAST) / (_step(lip_gap(own), _MEETING) + _LEAST)
    gap = (1.0 - kept.clamp_max(1.0))[:, None, None] * (points[:, lower] - points[:, upper])
    both = torch.cat([upper, lower])
    return points.index_add(1, both, torch.cat([(1.0 - _UP) * gap, -_UP * gap], dim=1))


@torch.no_grad()
def taken_along(points: Tensor, own: Tensor, camera: Tensor, size: int) -> Tensor:
    """How far an upper lip that comes down takes the teeth along: (B, 2, size, size), image widths, x first.

    It should hide them. But the source shows no more of them, and a grey band would be left below. In a mouth that
    opens round, what is below is drawn, and teeth at the sides go with the middle.

    Args:
        points, own: as for `opened`.
        camera: (B, 25) of the driving frames.
        size: pixels of the image.
    """
    lip = constant(_UPPER, points.device)
    there, before = (projected(part[:, lip], camera)[0] for part in (points, own))
    across = F.normalize(before[:, -1:] - before[:, :1], dim=-1)
    down = torch.stack([-across[..., 1], across[..., 0]], dim=-1)
    way = ((there - before) * down).sum(dim=-1).clamp_min(0.0)
    middle = way[:, len(_UPPER) // 2, None]
    way = torch.lerp(way, torch.minimum(way, middle), _step(lip_gap(points), _ROUND)[:, None])
    at = ((there - there[:, :1]) * across).sum(dim=-1)
    pixels = (pixel_grid(size // 4, points.device).flatten(2).mT + 1.0) / 2.0
    where = ((pixels - there[:, :1]) * across).sum(dim=-1)
    part = (where[:, None] - at[:, :-1, None]) / (at[:, 1:, None] - at[:, :-1, None]).clamp_min(1e-5)
    steps = (way[:, 1:] - way[:, :-1])[..., None] * part.clamp(0.0, 1.0)
    found = (way[:, :1] + steps.sum(dim=1)).view(-1, 1, size // 4, size // 4)
    return enlarge(found, 4) * down.mT[..., None]


@torch.no_grad()
def stirred(points: Tensor, own: Tensor) -> Tensor:
    """How much of `off_teeth` applies: (B, 1, 1, 1), 0 for lips that have not moved, 1 for those that have moved far.

    Arguments as of `opened`.
    """
    return _step(_moved(points, own), (0.0, _MOVED[0]))[:, None, None, None]


def off_teeth(flow: Tensor, share: Tensor, places: Tensor, own: Tensor, mouth: Tensor, opening: Tensor) -> Tensor:
    """The flow, with lookups for a stretched upper lip shifted away from the source's mouth, to lip instead of teeth.

    Landmarks miss the edge of the lip by a pixel or two, and dense motion follows them inexactly. Where the lip is
    stretched more than the face as a whole is enlarged, the teeth beyond that edge would be torn upwards. The shift is
    a constant for gradients.

    Args:
        flow: (B, 2, H, H).
        share: (B, 1, 1, 1) how far this applies, see `stirred`.
        places, own: (B, L, 2) landmarks in the driving view and in the source, 0..1.
        mouth: (B, 1, H/2, H/2), 0 to 1, the source's (`SourceView.mouth`).
        opening: (B, 1, H, H), 0 to 1, where the mouth is open in the driving view: there the flow stays.
    """
    half = F.avg_pool2d(flow.detach(), 2)
    lips = (1.0 - 2.0 * F.avg_pool2d(opening, 2)).clamp_min(0.0)
    reach = round(_BESIDE * mouth.shape[-1])
    wide = F.avg_pool2d(F.max_pool2d(mouth, 3, 1, 1), (2 * reach + 1, 1), 1, (reach, 0))
    near = softened(softened(F.avg_pool2d(wide, (1, 2 * reach + 1), 1, (0, reach))))
    across, down = F.pad(near, (1, 1, 0, 0), mode="replicate"), F.pad(near, (0, 0, 1, 1), mode="replicate")
    x, y = across[..., :-2] - across[..., 2:], down[..., :-2, :] - down[..., 2:, :]
    length = (x * x + y * y).sqrt().clamp_min(1e-3)  # torch.norm takes ten times as long
    lip = F.normalize(own[:, _UPPER[-1]] - own[:, _UPPER[0]], dim=-1)[..., None, None]
    upward = ((x * lip[:, 1:] - y * lip[:, :1]) / length).clamp_min(0.0)
    out = torch.cat([x, y], dim=1) * (upward * (2.0 * near).clamp(max=1.0) / length)
    thick = (own[:, _UPPER_LIP[0]] - own[:, _UPPER_LIP[1]]).norm(dim=-1)
    most = (_THIN * thick).clamp(max=_EDGE)[:, None, None, None]
    larger = (_corner_distance(places.detach()) / _corner_distance(own)).clamp_min(1.0)[:, None, None, None]
    torn = 1.0 - larger * (1.0 - longest_stretch(half))
    way = 2.0 * most * softened(share * lips * _step(torn, _STRETCHED)) * look_up(out, half)
    return flow + enlarge(way, 2)


def around(mask: Tensor) -> Tensor:
    """A mask (B, 1, H, W) of a mouth, 0 to 1, with its soft edge and what is near: (B, 1, H, W), bool."""
    reach = round(_AROUND * mask.shape[-1])
    return F.max_pool2d(mask, 2 * reach + 1, 1, reach) > 0.0


@torch.no_grad()
def shown(own: Tensor) -> Tensor:
    """How far the lips of a source's landmarks (B, L, 3) are open enough to show teeth: (B, 1, 1, 1), 0 to 1."""
    return _step(lip_gap(own), _SHOWN)[:, None, None, None]


@torch.no_grad()
def hidden(points: Tensor, own: Tensor) -> Tensor:
    """How far a mouth is drawn, as it has opened beyond what the source shows: (B, 1, 1, 1), 0 to 1. See `opened`."""
    before, now = lip_gap(own), lip_gap(points)
    teeth = _step(before, _SHOWN)
    first, last = (behind + (below - behind) * teeth for behind, below in zip(_BEHIND, _BELOW))
    return (_step(now, _PARTED) * _step(now - before, (first, last)))[:, None, None, None]


@torch.no_grad()
def upper_row(seen: Tensor, hole: Tensor) -> Tensor:
    """Where squares of open mouths show upper teeth: from the upper lip down to where it gets darker or redder.

    Dark corners beside them count, as far down as the teeth.

    Args:
        seen: (B, 3, s, s) colours in [-1, 1], see `inner_mouth.Square`.
        hole: (B, 1, s, s), 0 or 1, see `inner_mouth.opening`.

    Returns:
        (B, 1, s, s), 0 or 1, with what is between them and the lip. All 0 where nothing is whiter than the lips.
    """
    white = (seen.float().amin(dim=1, keepdim=True) + 1.0) / 2.0
    soft = F.avg_pool2d(white, 3, 1, 1)
    lips = F.max_pool2d(hole, _LIP, 1, _LIP // 2) - F.max_pool2d(hole, 3, 1, 1)
    lip = (white * lips).sum(dim=(2, 3), keepdim=True) / lips.sum(dim=(2, 3), keepdim=True).clamp_min(1.0)
    column = (soft * (1.0 - F.max_pool2d(1.0 - hole, 3, 1, 1))).amax(dim=2, keepdim=True)
    whitest = column.amax(dim=3, keepdim=True)
    near = torch.maximum(F.max_pool2d(column, (1, _NEARBY), 1, (0, _NEARBY // 2)), _SHADED * whitest)
    tooth = hole * (soft > _WHITE * near)
    begun = hole * (tooth.cumsum(dim=2) > 0.0)
    ended = (begun - tooth).clamp_min(0.0).cumsum(dim=2) > 1.0  # a gap of one pixel does not count
    above = hole.sum(dim=2, keepdim=True) - begun.sum(dim=2, keepdim=True)
    begins = above < torch.clamp(_FIRST * hole.sum(dim=2, keepdim=True), min=_FEW)
    row = hole * begins * ((tooth * ~ended).flip(2).cumsum(dim=2).flip(2) > 0.0)
    even = hole * (F.avg_pool2d(row, (1, _COLUMNS), 1, (0, _COLUMNS // 2), count_include_pad=False) >= 0.5)
    height = torch.arange(1, hole.shape[-2] + 1, device=hole.device).view(-1, 1)
    lowest = (even * height).amax(dim=2, keepdim=True)
    beside = F.max_pool2d(lowest, (1, _CORNER), 1, (0, _CORNER // 2))
    return hole * (height <= torch.where(lowest > 0.0, lowest, beside)) * (whitest > _WHITER * lip)


@torch.no_grad()
def upper_teeth(share: Tensor, mouth: Tensor, row: Tensor | None = None) -> Tensor:
    """What a mouth shows that has opened.

    Args:
        share: (B, 1, 1, 1) how far, see `opened`.
        mouth: (B, 2, H, W), 0 to 1: where the mouth is open in the driving view, and in the source turned as the head
            is (`flows.openings`).
        row: (B, 1, H/2, W/2), 0 to 1, where the source turned as the head is shows upper teeth (`upper_row`), which
            are shown to their edges. None: not known.

    Returns:
        (B, 2, H, W), 0 to 1: where it has opened, and where the turned source shows teeth; elsewhere it is hollow.
    """
    inside = (F.avg_pool2d(mouth[:, 1:], 2) > 0.5).to(mouth.dtype)
    reach = round(_EDGE * inside.shape[-1])
    for _ in range(reach):
        inside = (softened(inside) > 0.999).to(mouth.dtype)
    # the edge of the lower lip must not hang in the opening; the upper lip's stays where it is
    inside = torch.maximum(inside, F.pad(inside[..., reach:, :], (0, 0, 0, reach)))
    inside = inside if row is None else torch.maximum(inside, row)
    return torch.cat([softened(share * mouth[:, :1]), enlarge(softened(inside), 2)], dim=1)


def unstretched(teeth: Tensor, moved: Tensor, stretched: Tensor, turned: Tensor) -> tuple[Tensor, Tensor]:
    """The moved source and its stretch, without stretched teeth.

    Args:
        teeth: (B, 2, H, W), see `upper_teeth`.
        moved, turned: (B, 3, H, W) the source on the elastic mesh, and turned with the head.
        stretched: (B, 1, H, W), 0 to 1.
    """
    here, inside = teeth[:, :1], teeth[:, 1:]
    dark = constant(_HOLLOW, moved.device, moved.dtype).view(1, 3, 1, 1)
    return torch.lerp(moved, torch.lerp(dark, turned, inside), here), torch.lerp(stretched, 1.0 - inside, here)


def smoothed(share: Tensor, mouth: Tensor, moved: Tensor) -> Tensor:
    """The moved source (B, 3, H, W) without the bars that closed lips become.

    Args:
        share: (B, 1, 1, 1) how far they have opened, see `opened`.
        mouth: (B, 1, H, W), where the mouth is open in the driving view.
    """
    inside = (mouth > 0.5).to(moved.dtype)
    reach = round(_ACROSS * moved.shape[-1])
    sums = F.pad(torch.cat([moved * inside, inside], dim=1), (reach + 1, reach)).cumsum(dim=-1)
    near = sums[..., 2 * reach + 1 :] - sums[..., : -2 * reach - 1]
    return torch.lerp(moved, near[:, :3] / near[:, 3:].clamp_min(1.0), share * inside)


def chosen(teeth: Tensor, share: Tensor) -> Tensor:
    """Shares (B, 4, H, W) of the rendered, moved, still and turned image: teeth are turned, the hollow is rendered."""
    here, inside = teeth[:, :1], teeth[:, 1:]
    none = torch.zeros_like(inside)
    return torch.lerp(share, torch.cat([1.0 - inside, none, none, inside], dim=1), here)


def _step(value: Tensor, span: tuple[float, float] | tuple[Tensor, Tensor]) -> Tensor:
    """From 0 at the beginning of a span to 1 at its end, smoothly."""
    part = ((value - span[0]) / (span[1] - span[0])).clamp(0.0, 1.0)
    out: Tensor = part * part * (3.0 - 2.0 * part)
    return out
