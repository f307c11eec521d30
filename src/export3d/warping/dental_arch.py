"""Teeth that a source does not show (not in the paper).

What is drawn of them (`inner_mouth`) is a pale blur: losses and a discriminator settle for a mean of all teeth. Here it
has the shape of teeth: two arches of average width, the upper one fixed to the skull and the lower one to the jaw, seen
as the head is. The network decides where teeth show and in what colour; the arches give their edges and the lines
between them. They are nobody's. In a larger image they are as fine as it is (`lacking`).

An arch is half an ellipse. A place on it is its angle, and its height from the edges of the front teeth.

Letters: B batch, L = 478 landmarks, S pixels of a mouth's square. Lengths are millimetres of a face whose outer eye
corners are `_FACE` apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from export3d.camera import projected
from export3d.face.landmark_sets import CHIN, EYE_CORNERS, INNER_LIP_MIDDLES, NOSE_BASE
from export3d.layers import constant


class _Row(NamedTuple):
    """Half axes of an arch, and of its teeth from the middle to a side: mean widths, how far each ends before the
    front ones, heights of the crowns, and brightness."""

    across: float
    deep: float
    widths: tuple[float, ...]
    shorter: tuple[float, ...]
    heights: tuple[float, ...]
    tones: tuple[float, ...]


_UPPER = _Row(
    *(27.0, 34.0),
    (8.5, 6.6, 7.6, 7.0, 6.8, 10.0),
    (0.0, 0.7, 0.1, 0.9, 1.2, 1.6),
    (10.5, 9.0, 10.0, 8.5, 8.0, 7.5),
    (1.08, 1.06, 1.02, 1.0, 0.98, 0.95),
)
_LOWER = _Row(
    *(24.0, 31.0),
    (5.2, 5.8, 6.8, 7.0, 7.1, 11.0),
    (0.0, 0.1, 0.0, 0.8, 1.2, 1.5),
    (9.0, 9.2, 10.5, 8.5, 8.0, 7.5),
    (1.02, 1.02, 1.0, 0.97, 0.95, 0.92),
)

_FACE = 88.0
"""Between the outer eye corners."""
_LIP_SHARE, _CHIN_SHARE, _BELOW, _BEHIND = 0.34, 0.25, 0.5, 5.0
"""The upper edges lie below the nose by these shares of the distances to the closed lips and to the chin, and so much
lower; and so far behind the lips. Fitted to 25 people who smile in one of two portraits."""
_BITE, _INWARD = 2.0, 2.0
"""So far above the upper edges, and behind them, the lower ones lie in a closed mouth."""
_MOST, _DROPPED = (6.5, 2.3), (1.0, 7.0)
"""So far above the lower lip they lie at most, with the jaw closed and dropped; and these two drops of the chin."""
_CLEAR = 0.3, 2.5
"""So far below the upper edges what is pale begins to be a tongue, and is one."""
_STEP, _SIDE, _TOP, _BOTTOM = 0.125, 40.0, 14.0, 2.0
"""Of a texture: a pixel's size, and its reach to both sides, along the crowns and beyond their edges."""
_LINE, _GAP, _EDGE = 0.25, 0.2, 0.25
"""How much darker the lines between teeth are, and the width of these lines and of the edges."""
_ENDS = 13.0, 24.0
"""Along the arch, from the middle: where teeth begin to be lost in the dark of the cheeks, and where they are."""
_DARK, _SHADOW, _UNDER = 0.2, 0.15, 0.15
"""How much darker teeth are beside the lips, those below the upper lip, and how much darker it is below upper teeth."""
_LEAST, _SURE = 0.25, 0.6
"""How white what is drawn is, relative to the cheeks, up to which there is no tooth, and from which there is one. White
is the smallest of red, green and blue: tongues and lips are red."""
_RED, _PALE, _BESIDE = 0.84, 0.95, 25
"""The smallest over the largest of red, green and blue, relative to what is whitest: a tongue's, and a tooth's; and so
many pixels side by side decide about lower teeth together, or single ones would be missing."""
_WHITE, _BRIGHT = 0.51, 0.35
"""Brightness of teeth, 0..1: so much, and this share of the cheeks'. Fitted to 304 portraits with teeth."""
_TINT = 0.55
"""Power of the tint of the whitest of what is drawn."""
_SOFT, _TONGUE, _COLOURED = 0.85, (1.2, 0.9, 0.9), (0.03, 0.12)
"""Brightness and tint of what is pale between the teeth, a tongue; in a grey photo it has none. How coloured the cheeks
are, 1 - the smallest over the largest of red, green and blue, tells such photos."""
_LUMA = 0.299, 0.587, 0.114
MAPS = 7
"""Number of the maps of `with_teeth`."""


@torch.no_grad()
def dental_arches(points: Tensor, own: Tensor, share: Tensor, camera: Tensor) -> Tensor:
    """Where the arches of sources lie in driving frames.

    Args:
        points, own: (B, L, 3) driven landmarks and the sources', in the head's own axes.
        share: (B, 1, 1, 1) how far they are shown.
        camera: (B, 25) of the driving frames.

    Returns:
        (B, 11), image widths: the middle of the upper edges, x first; how it moves for a millimetre to the left side of
        the head, downward, and inward; the middle of the lower edges; and the share.
    """
    right, left = (own[:, corners[0]] for corners in EYE_CORNERS)
    unit = (right - left).norm(dim=-1, keepdim=True) / _FACE
    base, lip, chin = own[:, NOSE_BASE], own[:, INNER_LIP_MIDDLES[0]], own[:, CHIN]
    below = _LIP_SHARE * (lip - base) + _CHIN_SHARE * (chin - base)
    middle = (
        (base[:, 0] + lip[:, 0]) / 2.0,
        (base + below)[:, 1] + _BELOW * unit[:, 0],
        lip[:, 2] + _BEHIND * unit[:, 0],
    )
    upper = torch.stack(middle, dim=-1)[:, None]
    axes = unit[:, None] * torch.eye(3, device=own.device)
    bite = unit * constant((0.0, -_BITE, _INWARD), own.device)
    lower = upper[:, 0] + points[:, CHIN] - chin + bite
    dropped = (points[:, CHIN] - chin)[:, 1:2] / unit
    most = _MOST[0] + (_MOST[1] - _MOST[0]) * _ramp(dropped, *_DROPPED)
    lowest = points[:, INNER_LIP_MIDDLES[1], 1:2] - most * unit
    lower = torch.cat([lower[:, :1], torch.maximum(lower[:, 1:2], lowest), lower[:, 2:]], dim=1)[:, None]
    seen, _ = projected(torch.cat([upper, upper + _UPPER.across * axes, lower], dim=1), camera)
    steps = (seen[:, 1:4] - seen[:, :1]) / _UPPER.across
    return torch.cat([seen[:, 0], steps.flatten(1), seen[:, 4], share[:, :, 0, 0]], dim=1)


def with_teeth(drawn: Tensor, mask: Tensor, arches: Tensor, places: Tensor, skin: Tensor) -> tuple[Tensor, Tensor]:
    """Drawn mouths with teeth, and maps (B, 7, S, S) of them.

    The maps, 0 to 1: how far upper and lower teeth are shown; lumas of what is behind them, of lower and upper teeth
    there, and of all as it is drawn; and the mask.

    Args:
        drawn: (B, 3, S, S) colours in [-1, 1].
        mask: (B, 1, S, S), 0 to 1, where they are.
        arches: (B, 11).
        places: (B, S, S, 2) of the pixels in the image, 0..1.
        skin: (B, 3, 1, 1) colour of the cheeks in [-1, 1].
    """
    drawn, skin = (drawn + 1.0) / 2.0, ((skin + 1.0) / 2.0).clamp_min(0.05)
    lower, upper = _rows(arches, places, 256.0)
    cheek, coloured = (
        skin.mean(dim=1, keepdim=True),
        1.0 - skin.amin(dim=1, keepdim=True) / skin.amax(dim=1, keepdim=True),
    )
    white = mask * drawn.amin(dim=1, keepdim=True)
    weight = white.square().square()
    tint = (drawn * weight).sum(dim=(2, 3), keepdim=True) / weight.sum(dim=(2, 3), keepdim=True).clamp_min(1e-6)
    pale = tint.amin(dim=1, keepdim=True) / tint.amax(dim=1, keepdim=True).clamp_min(1e-3)
    tint = (tint / tint.mean(dim=1, keepdim=True).clamp_min(1e-3)).clamp_min(0.05) ** _TINT
    colour = (_WHITE + _BRIGHT * cheek) * tint / tint.mean(dim=1, keepdim=True)

    around = _mean(torch.cat([drawn * mask, mask], dim=1), 9)
    around = around[:, :3] / around[:, 3:].clamp_min(1e-2)
    least, most = around.amin(dim=1, keepdim=True), around.amax(dim=1, keepdim=True).clamp_min(1e-3)
    share = _ramp(least / cheek, _LEAST, _SURE)
    lower_share = share * _ramp(least / most / pale.clamp_min(1e-2), _RED, _PALE)
    beside = F.avg_pool2d(torch.cat([lower_share * mask, mask], dim=1), (3, _BESIDE), 1, (1, _BESIDE // 2))
    shares = beside[:, :1] / beside[:, 1:].clamp_min(1e-2), share * arches[:, 10:, None, None]

    inside = 1.0 - _DARK * (1.0 - (2.0 * _mean(mask, 11) - 0.7).clamp(0.0, 1.0))
    shadow = 1.0 - _SHADOW * (1.0 - _upward(mask, 6, F.avg_pool2d))
    below = 1.0 - _UNDER * _mean(_upward(shares[1] * upper[1], 8, F.max_pool2d), 5)
    luma = constant(_LUMA, drawn.device)[:, None, None]
    red = constant(_TONGUE, drawn.device)[:, None, None] ** _ramp(coloured, *_COLOURED)
    tongue = _SOFT * red * tint / tint.mean(dim=1, keepdim=True) * drawn.mean(dim=1, keepdim=True)
    made, lumas = torch.lerp(drawn, tongue, share * upper[3]) * below, []
    lumas.append((made * luma).sum(dim=1, keepdim=True))
    for part, (shine, cover, facing, _), light in zip(shares, (lower, upper), (0.9 * inside * below, inside * shadow)):
        tooth = torch.maximum(colour * light * facing, around)
        lumas.append((tooth * luma).sum(dim=1, keepdim=True))
        made = torch.lerp(made, (tooth * shine).clamp(max=1.0), part * cover)
    had = (made * luma).sum(dim=1, keepdim=True)
    return 2.0 * made - 1.0, torch.cat([shares[1], shares[0], *lumas, had, mask], dim=1)


def lacking(arches: Tensor, maps: Tensor, places: Tensor, pixels: float) -> Tensor:
    """What larger images lack of the teeth of images: luma (B, 1, h, w) to be added, in [-1, 1].

    Args:
        arches: (B, 11).
        maps: (B, 7, h, w), as of `with_teeth`, at the places.
        places: (B, h, w, 2) in the images, 0..1.
        pixels: that the larger images have across the images.
    """
    shown, behind, tooth, had, drawn = maps[:, :2], maps[:, 2:3], maps[:, 3:5], maps[:, 5:6], maps[:, 6:]
    rows = _rows(arches, places, pixels)
    for part, light, (shine, cover, _, _) in zip(shown.chunk(2, dim=1)[::-1], tooth.chunk(2, dim=1), rows):
        behind = torch.lerp(behind, light * shine, part * cover)
    return drawn * (behind - had)


def _rows(arches: Tensor, places: Tensor, pixels: float) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What the lower and the upper arch show at places of images.

    Args:
        arches: (B, 11).
        places: (B, h, w, 2), 0..1.
        pixels: across the images. A millimetre is about a pixel of 256.

    Returns:
        for each, shine and cover of the texture, brightness by where the arch faces, and what is beyond its edges, 0 to
        1: (B, 1, h, w) each.
    """
    steps, level = arches[:, 2:8], _level(pixels)
    return _shown(_LOWER, arches[:, 8:10], steps, places, level), _shown(_UPPER, arches[:, :2], steps, places, level)


def _level(pixels: float) -> int:
    return max(round(math.log2(256.0 / pixels / _STEP)), 0)


def _shown(row: _Row, middle: Tensor, steps: Tensor, places: Tensor, level: int) -> tuple[Tensor, ...]:
    from_middle = places - middle[:, None, None]
    left, down, inward = (steps[:, None, None, k : k + 2] for k in (0, 2, 4))
    upright = down.square().sum(dim=-1, keepdim=True).clamp_min(1e-9)
    beside = torch.stack([down[..., 1], -down[..., 0]], dim=-1) / upright.sqrt()
    across, deep = row.across * (left * beside).sum(dim=-1), row.deep * (inward * beside).sum(dim=-1)
    # The place is across sin(angle) + deep (1 - cos(angle)), as far as it is beside the middle.
    radius = (across.square() + deep.square()).sqrt().clamp_min(1e-6)  # ONNX has no hypot
    turn = torch.asin((deep / radius).clamp(-1.0, 1.0))
    sine = ((from_middle * beside).sum(dim=-1) - deep) / radius
    angle = turn + torch.asin(sine.clamp(-0.999, 0.999))
    x, z = row.across * torch.sin(angle), row.deep * (1.0 - torch.cos(angle))
    rest = from_middle - left * x[..., None] - inward * z[..., None]
    height = (rest * down).sum(dim=-1) / upright[..., 0] * (1.0 if row is _LOWER else -1.0)
    size = angle.abs().clamp(max=1.5)
    away = (
        row.across * size + 0.8 / 6.0 * (row.deep**2 - row.across**2) / row.across * size**3
    )  # the arc, within 1% to the ends
    grid = torch.stack([away * angle.sign() / _SIDE, 2.0 * (height + _BOTTOM) / (_TOP + _BOTTOM) - 1.0], dim=-1)
    texture = _texture(row, level, places.device).expand(grid.shape[0], -1, -1, -1)
    found = F.grid_sample(texture, grid, padding_mode="border", align_corners=False)
    seen = (sine.abs() < 0.995) & (grid[..., 1] > -1.0)
    ends = 1.0 - _ramp(away, *_ENDS).square()
    facing = 0.35 + 0.65 * torch.cos(angle).clamp_min(0.0).square()
    beyond = ends * _ramp(-height, *_CLEAR)
    return found[:, :1], found[:, 1:] * (seen * ends)[:, None], facing[:, None], beyond[:, None]


def _texture(row: _Row, level: int, device: torch.device) -> Tensor:
    """(1, 2, n, m): shine, and cover, 0 to 1, of an arch unrolled, for pixels of 2^level of the finest; made once."""
    made = _textures.get((row, level, device))
    if made is None:
        with torch.inference_mode(False):  # it serves training too
            made = torch.tensor(_unrolled(row, level), device=device)
        if type(made) is Tensor:  # not of a mode that only traces shapes
            _textures[row, level, device] = made
    return made


def _unrolled(row: _Row, level: int) -> NDArray[np.float32]:
    across = (np.arange(round(2.0 * _SIDE / _STEP)) + 0.5) * _STEP - _SIDE
    height = ((np.arange(round((_TOP + _BOTTOM) / _STEP)) + 0.5) * _STEP - _BOTTOM)[:, None]
    away, begin = np.abs(across), 0.0
    shine, cover = np.full((len(height), len(across)), 0.2), np.zeros((len(height), len(across)))
    for width, shorter, tall, tone in zip(row.widths, row.shorter, row.heights, row.tones):
        here = (away >= begin) & (away < begin + width)
        side = np.abs(2.0 * (away - begin) / width - 1.0)  # 0 in a tooth's middle, 1 at its sides
        up = height - (shorter + 1.1 * side**5 + 0.15 * side**2)
        line = np.exp(-(((1.0 - side) * width / 2.0 / _GAP) ** 2)) * (1.0 - 0.35 * (up / 8.0).clip(0.0, 1.0))
        tip = np.exp(-((up / 0.9).clip(0.0) ** 2))
        belly = np.exp(-(((height - 0.42 * tall) / (0.33 * tall)) ** 2))
        made = tone * (1.0 - _LINE * line) * (1.0 - 0.16 * side**2.5) * (1.0 - 0.1 * tip) * (0.9 + 0.1 * belly)
        shine, cover = np.where(here, made, shine), np.where(here, (up / _EDGE).clip(0.0, 1.0), cover)
        begin += width
    light = shine * cover
    if level > 0:
        down, along = (_blur(count, 0.5 * 2.0**level) for count in light.shape)
        light, cover = down @ light @ along.T, down @ cover @ along.T
    return np.stack([light / cover.clip(1e-3), cover])[None].astype(np.float32)


def _blur(count: int, spread: float) -> NDArray[np.float64]:
    """A Gaussian filter of so many values, as a matrix."""
    at = np.arange(count)
    weights = np.exp(-0.5 * ((at[:, None] - at) / spread) ** 2)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _ramp(x: Tensor, first: float, last: float) -> Tensor:
    return ((x - first) / (last - first)).clamp(0.0, 1.0)


def _mean(x: Tensor, size: int) -> Tensor:
    return F.avg_pool2d(x, size, 1, size // 2, count_include_pad=False)


def _upward(x: Tensor, pixels: int, pool: Callable[..., Tensor]) -> Tensor:
    """A pool of each pixel and those above it."""
    return pool(F.pad(x, (0, 0, pixels, 0)), (pixels + 1, 1), 1)


_textures: dict[tuple[_Row, int, torch.device], Tensor] = {}
for _row in (_UPPER, _LOWER):  # of the model's images: those who trace them find them here
    _texture(_row, _level(256.0), torch.device("cpu"))
