"""The inside of a mouth that its source does not show (not in the paper).

A source with closed lips tells nothing of what lies behind them, and one that smiles nothing of what lies below its
upper teeth. Of all that may be there a loss on pixels draws the mean: a pale disc. Here a small network draws teeth,
tongue and the dark behind them, from what is around the opening and its shape. Upper teeth that the source shows stay.
It is trained against a discriminator (`training.mouths`). It guesses: the teeth that it draws are nobody's.
Its square is fixed to the skull, below the nose, so that upper teeth stay where they are in speech.

Letters: B batch, L = 478 landmarks, H pixels, s = `SIDE` pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export3d.face.landmark_sets import EYE_CORNERS, INNER_LIPS
from export3d.layers import constant, enlarge, smooth_step
from export3d.warping.dental_arch import MAPS, lacking, with_teeth
from export3d.warping.flow_field import covered, pixel_grid
from export3d.warping.turns import counts

SIDE = 64
"""Pixels of the square that is drawn."""
FINER = 2
"""Teeth get their shape in so many times as many."""
_CHEEKS = 205, 425
"""Landmarks of the cheeks that the square shows."""
_LIP = 1.0 / 64.0
"""So far around the inner lips, image widths, teeth are drawn: landmarks miss the lips' edges."""
_CORNERS = EYE_CORNERS[0][0], EYE_CORNERS[1][0]
_BRIDGE, _BASE, _LOWER, _CHIN = 168, 2, 14, 152
"""Landmarks of the nose between the eyes and above the upper lip, of the lower lip, and of the chin."""
_PROFILE = 1.9
"""A face is as large as its outer eye corners are apart, or, turned away, as its nose is long by so much."""
_HALF, _BELOW = 0.48, 0.33
"""Half the square's side, and how far its centre lies below the nose, in sizes of the face."""
_DEEPEST = _BELOW + 0.8 * _HALF
"""So far below the nose the lower lip may be; the square of a mouth that opens farther is larger."""
_OBLIQUE, _UPRIGHT = 0.82, 0.94
"""Cosine of the angle between the square and the face, up to which nothing is drawn, and from which all is (35 and 20
degrees). Faces that are turned far to a side and up or down look oblique."""
_WIDTHS, _DEEP, _FINE = (32, 64, 128), 5, 12
"""Channels at s/2, s/4 and s/8, layers at s/8, and channels at s."""
_EDGE = 2
"""So many pixels around what is drawn are not looked at: landmarks miss the lips' edges, and teeth would show there."""

_TONE = 1.2
"""Power of what is drawn, 0..1: losses on pixels draw the dark behind teeth and tongue too light."""

Draw: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""What `InnerMouth.forward` does, by itself or compiled."""


class Square:
    """Where the square lies in images.

    Args:
        places: (B, L, 2) landmarks, 0..1, x first.

    Attributes:
        upright: (B, 1, 1, 1) how far the square has the directions of the face, 0 to 1.
    """

    def __init__(self, places: Tensor) -> None:
        left, right, bridge, base = (places[:, number] for number in (*_CORNERS, _BRIDGE, _BASE))
        across = right - left
        wide = across.norm(dim=-1, keepdim=True).clamp_min(1e-4)
        size = torch.maximum(wide, _PROFILE * (base - bridge).norm(dim=-1, keepdim=True))
        across = across / wide
        down = torch.stack([-across[:, 1], across[:, 0]], dim=-1)
        lowest = ((places[:, _LOWER] - base) * down).sum(dim=-1, keepdim=True)
        size = torch.maximum(size, lowest / _DEEPEST)
        long = places[:, _CHIN] - bridge
        cosine = (long * down).sum(dim=-1) / long.norm(dim=-1).clamp_min(1e-4)
        self.upright = smooth_step((cosine - _OBLIQUE) / (_UPRIGHT - _OBLIQUE))[:, None, None, None]
        self._centre = base + _BELOW * size * down
        self._half = _HALF * size
        self._axes = torch.stack([across, down], dim=1)

    def seen(self, image: Tensor) -> Tensor:
        """What the square shows of images (B, C, H, H): (B, C, s, s)."""
        return F.grid_sample(image, 2.0 * self.places(SIDE) - 1.0, padding_mode="border", align_corners=False)

    def places(self, size: int) -> Tensor:
        """Where the pixels of squares lie in images: (B, size, size, 2), 0..1."""
        own = pixel_grid(size, self._half.device).flatten(2).mT
        with torch.autocast(self._half.device.type, enabled=False):  # bf16 would round places
            return (self._centre[:, None] + self._half[:, None] * (own @ self._axes)).view(-1, size, size, 2)

    def inside(self, places: Tensor) -> Tensor:
        """Places (B, N, 2) of images in the square: 0..1 there."""
        with torch.autocast(places.device.type, enabled=False):
            away = (places - self._centre[:, None]) @ self._axes.mT
            return (away / self._half[:, None] + 1.0) / 2.0

    def spread(self, drawn: Tensor, size: int) -> Tensor:
        """What is drawn in squares (B, C, s, s) at its place in images (B, C, size, size), 0 around it."""
        pixels = ((pixel_grid(size, drawn.device).flatten(2).mT + 1.0) / 2.0).expand(drawn.shape[0], -1, -1)
        grid = 2.0 * self.inside(pixels) - 1.0
        return F.grid_sample(drawn, grid.view(-1, size, size, 2), padding_mode="zeros", align_corners=False)


def opening(square: Square, places: Tensor) -> Tensor:
    """(B, 1, s, s), 0 or 1: between the inner lips and on their edges, which landmarks (B, L, 2) miss by a pixel."""
    return F.max_pool2d(covered(_lips(square, places), SIDE), 3, 1, 1)


def blended(square: Square, places: Tensor) -> Tensor:
    """(B, 1, s, s), 0 to 1: how far what is drawn covers the lips' edges; by less than a pixel, so that none jumps."""
    return F.avg_pool2d(F.max_pool2d(covered(_lips(square, places), 2 * SIDE), 3, 1, 1), 2)


class InnerMouth(nn.Module):
    """Draws what lies between opened lips: a U-Net at s/2, s/4 and s/8, and two narrow layers at s."""

    def __init__(self) -> None:
        super().__init__()
        half, quarter, eighth = _WIDTHS
        self.first = nn.Conv2d(4 * (3 + 2) + 2, half, 3, padding=1)
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in ((half, quarter), (quarter, eighth))
        )
        self.deep = nn.ModuleList(nn.Conv2d(eighth, eighth, 3, padding=1) for _ in range(_DEEP))
        self.up = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in ((eighth, quarter), (quarter, half)))
        self.fine = nn.ModuleList(nn.Conv2d(a, _FINE, 3, padding=1) for a in (half, _FINE + 3 + 1))
        self.last = nn.Conv2d(_FINE, 3, 3, padding=1)

    def forward(self, seen: Tensor, hole: Tensor) -> Tensor:
        """What is drawn in squares (B, 3, s, s), colours in [-1, 1].

        Args:
            seen: (B, 3, s, s), what is around the opening.
            hole: (B, 1, s, s), 0 or 1, see `opening`.
        """
        unseen = F.max_pool2d(hole, 2 * _EDGE + 1, 1, _EDGE)
        seen = seen * (1.0 - unseen)
        x = F.pixel_unshuffle(torch.cat([seen, hole, unseen], dim=1), 2)
        across, down = pixel_grid(x.shape[-1], x.device).expand(x.shape[0], -1, -1, -1).chunk(2, dim=1)
        x = torch.cat([x, across.abs(), down], dim=1).contiguous(memory_format=torch.channels_last)
        x = _bent(self.first(x))
        kept = []
        for layer in self.down:
            kept.append(x)
            x = _bent(layer(x))
        for layer in self.deep:
            x = x + _bent(layer(x))
        for layer in self.up:
            x = kept.pop() + _bent(layer(F.interpolate(x, scale_factor=2.0, mode="nearest")))
        x = _bent(self.fine[0](enlarge(x, 2)))
        x = x + _bent(self.fine[1](torch.cat([x, seen, hole], dim=1)))
        out: Tensor = self.last(x).tanh()
        return out


@dataclass(frozen=True)
class Teeth:
    """The teeth that were drawn in B images.

    Attributes:
        arches: (B, 11), see `dental_arch.dental_arches`.
        lips: (B, L, 2) the driven landmarks, 0..1.
        maps: (B, 7, 2 s, 2 s) on the mouths' squares, as of `dental_arch.with_teeth`; the last, how far they are drawn.
    """

    arches: Tensor
    lips: Tensor
    maps: Tensor

    def rows(self, rows: slice) -> Teeth:
        """Those of some of the images."""
        return Teeth(self.arches[rows], self.lips[rows], self.maps[rows])

    def box(self) -> tuple[Tensor, Tensor] | None:
        """First and last place (2,), x first, of the mouth of one image, 0..1; None if no teeth are drawn."""
        if not bool((self.maps[:, -1] > 0.0).any()):
            return None
        first, last = self.lips[0, constant(INNER_LIPS, self.lips.device)].aminmax(dim=0)
        return first - _LIP, last + _LIP

    def finer(self, places: Tensor, pixels: float) -> Tensor:
        """What a larger image lacks of the teeth of one image: luma to be added at places, in [-1, 1].

        Args:
            places: (h, w, 2) of the image, 0..1.
            pixels: that the larger image has across the image.

        Returns:
            (h, w).
        """
        inside = Square(self.lips).inside(places.flatten(0, 1)[None]).view(1, *places.shape)
        maps = F.grid_sample(self.maps, 2.0 * inside - 1.0, align_corners=False)
        return lacking(self.arches, maps, places[None], pixels)[0, 0]


def filled(
    draw: Draw, image: Tensor, share: Tensor, lips: Tensor, part: Tensor, teeth: Tensor, arches: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Images with drawn mouths.

    Args:
        draw: an `InnerMouth`.
        image: (B, 3, H, H).
        share: (B, 4, H, H), what it is made of, the rendered image first (`detail.Detail.blend`).
        lips: (B, L, 2) the driven landmarks, 0..1.
        part: (B, 1, 1, 1) how far mouths are drawn, 0 to 1.
        teeth: (B, 1, h, h), 0 to 1, where the image shows upper teeth: they stay, with what is above them.
        arches: (B, 11), see `dental_arch.dental_arches`.

    Returns:
        both, changed where mouths are open, and there in [-1, 1]; what is drawn counts as rendered. And
        `Teeth.maps`.
    """
    if not counts(part):
        return image, share, image.new_zeros(image.shape[0], MAPS, FINER * SIDE, FINER * SIDE)
    image, lips = image.float(), lips.detach().float()
    square, bounded = Square(lips), image.clamp(-1.0, 1.0)
    kept, seen = with_above(square.seen(teeth)), square.seen(bounded)
    drawn = _darker(draw(seen, opening(square, lips) * (kept < 0.5)).float())
    alpha = blended(square, lips) * (1.0 - kept)
    found = F.interpolate(torch.cat([drawn * alpha, alpha], dim=1), scale_factor=FINER, mode="bicubic")
    drawn, alpha = (found[:, :3] / found[:, 3:].clamp_min(1e-3)).clamp(-1.0, 1.0), enlarge(alpha, FINER)
    drawn, teeth = with_teeth(drawn, alpha, arches, square.places(FINER * SIDE), _skin(square, seen, lips))
    found = part * square.upright * square.spread(torch.cat([drawn * alpha, alpha], dim=1), image.shape[-1])
    drawn, alpha = found[:, :3], found[:, 3:]
    teeth = torch.cat([teeth[:, :-1], teeth[:, -1:] * part * square.upright], dim=1)
    rendered = torch.cat([alpha, torch.zeros_like(share[:, 1:])], dim=1)
    image = torch.where(alpha > 0.0, bounded, image)
    return drawn + (1.0 - alpha) * image, rendered + (1.0 - alpha) * share, teeth


def _skin(square: Square, seen: Tensor, lips: Tensor) -> Tensor:
    """Mean colour of the cheeks (B, 3, 1, 1) in [-1, 1]."""
    at = 2.0 * square.inside(lips[:, constant(_CHEEKS, lips.device)])[:, None] - 1.0
    return F.grid_sample(F.avg_pool2d(seen, 5, 1, 2), at, align_corners=False).mean(dim=(2, 3), keepdim=True)


def _darker(drawn: Tensor) -> Tensor:
    """Drawn mouths without what the losses brighten; white teeth hardly change."""
    return 2.0 * ((drawn + 1.0) / 2.0).clamp(0.0, 1.0).pow(_TONE) - 1.0


def with_above(mask: Tensor) -> Tensor:
    """Masks (B, 1, s, s) with all that is above them."""
    below = mask.shape[-2] - 1
    return F.max_pool2d(F.pad(mask, (0, 0, 0, below)), (below + 1, 1), 1)


def _lips(square: Square, places: Tensor) -> Tensor:
    return square.inside(places[:, constant(INNER_LIPS, places.device)])


def _bent(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)
