"""The palette of a face: what the model renders of a grey, toned or coloured-light photo has the photo's colours.

Letters: y luma, d chroma (R - G, B - G), all on the scale of bytes; I the model's image, S the mean of the source's
views in it and w their share (`warping.origin`).

In a photo with one tone, chroma is a function of luma, d = c(y), and the rest d - c(y) is 0. In a photo with colours
the rest varies across the face: lips, eyes and skin of one luma differ. Its standard deviation along the direction in
which it varies most gives the photo's freedom of colour f, 0 to 1. What the model adds to the rest is scaled by f:

    rest'(I) = w rest(S) + f (rest(I) - w rest(S))

Luma is kept. With f = 1, as in ordinary colour photos, an image stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from export3d.face.landmark_sets import FACE_OVAL
from export3d.image import resize
from export3d.layers import constant
from export3d.warping.flow_field import covered
from export3d.warping.origin import Origin

_LUMA = (0.299, 0.587, 0.114)
_GRID = 64
"""Pixels across the source crop when colours are measured: fewer than it has, so that noise averages out."""
_KNOTS = 33
"""Lumas from 0 to 255 at which c is measured."""
_NEAR = 4.0
"""Standard deviation of the lumas that count for a knot of c."""
_ONE_TONE, _COLOURED = 0.023, 0.031
"""Deviations of the rest over 100 + the root mean square of c, between which f rises from 0 to 1.

All of 1,280 colour portraits have more than 0.031, ten printed or toned monochrome ones less than 0.023.
"""


@dataclass(frozen=True)
class Palette:
    """The colours of one face.

    Attributes:
        curve: (2, 33) c at lumas from 0 to 255, linear between them.
        freedom: f.
    """

    curve: Tensor
    freedom: float

    def kept(self, image: Tensor, origin: Origin) -> Tensor:
        """The model's images (B, 3, h, h) in [-1, 1], of which the origin is known, with the colours of the source."""
        if self.freedom >= 1.0 or origin.taken is None:
            return image
        taken, share = origin.taken[:, :3], origin.taken[:, 3:]
        (luma, chroma), (own_luma, own_chroma) = _parts(image), _parts(taken / share.clamp_min(1e-6))
        tone = self.tone(luma)
        own = share * (own_chroma - self.tone(own_luma))
        chroma = tone + torch.lerp(own, chroma - tone, self.freedom)
        green = luma - _LUMA[0] * chroma[:, :1] - _LUMA[2] * chroma[:, 1:]
        return (torch.cat([green + chroma[:, :1], green, green + chroma[:, 1:]], dim=1) / 127.5 - 1.0).clamp(-1.0, 1.0)

    def tone(self, luma: Tensor) -> Tensor:
        """c(y): (B, 1, h, w) to (B, 2, h, w)."""
        place = luma.clamp(0.0, 255.0) * ((_KNOTS - 1) / 255.0)
        before = place.floor().clamp_max(_KNOTS - 2).long()
        first, second = (self.curve[:, knot[:, 0]].movedim(0, 1) for knot in (before, before + 1))
        return torch.lerp(first, second, place - before)


def palette(source: Tensor, places: Tensor) -> Palette:
    """The palette of a face.

    Args:
        source: (1, 3, h, h) in [-1, 1], a face crop.
        places: (1, F, 2) the vertices of its face mesh in it, 0..1.
    """
    inside = covered(places[:, constant(FACE_OVAL, places.device)], _GRID).flatten() > 0.5
    if not bool(inside.any()):
        inside = torch.ones_like(inside)
    luma, chroma = _parts(resize(source, _GRID))
    y, d = luma.flatten()[inside], chroma[0].flatten(1)[:, inside]
    knots = torch.linspace(0.0, 255.0, _KNOTS, device=y.device)
    near = (-0.5 * ((knots[:, None] - y) / _NEAR).square()).softmax(dim=1)
    made = Palette(d @ near.mT, 0.0)
    tone = made.tone(y[None, None, None])[0, :, 0]
    rest = d - tone
    widest = torch.linalg.eigvalsh(rest @ rest.mT / len(y))[-1].clamp_min(0.0).sqrt()
    varied = float(widest / (100.0 + tone.square().sum(dim=0).mean().sqrt()))
    rise = min(max((varied - _ONE_TONE) / (_COLOURED - _ONE_TONE), 0.0), 1.0)
    return replace(made, freedom=rise * rise * (3.0 - 2.0 * rise))


def _parts(image: Tensor) -> tuple[Tensor, Tensor]:
    """An image in [-1, 1] to luma (B, 1, h, w) and chroma (B, 2, h, w), 0 to 255; grey has a chroma of exactly 0."""
    red, green, blue = (127.5 * (image + 1.0)).unbind(1)
    luma = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
    return luma[:, None], torch.stack([red - green, blue - green], dim=1)
