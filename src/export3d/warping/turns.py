"""Heads turned far from the source's view: what was learned gives way to geometry (not in the paper).

Clips seldom turn a head far from their source. Where one does, the learned mixture of motions broadens the face, and
the choice between the views leaves its far half transparent: the unmoved head shows through. There the face follows the
elastic mesh instead, the image is mostly the moved source, and a cheek that its camera hardly saw is filled from the
other one. Only an open mouth keeps what was learned about it.

Letters: B batch, H pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from export3d.camera import unpack
from export3d.layers import enlarge

_FAR_DEG = 15.0, 30.0
_LEAN = 3.0
"""Added to the logit of the moved image where a head is turned far, and taken from that of the rendered one.

In an open mouth nothing is taken from the latter."""
_LEAN_ON_FACE = 6.0
"""Taken on the face from the logits of all images but the moved one.

They do not show the face where it has turned to, or not well. They would shine through as a second outline. As much is
taken from the still and the turned image where they show the person and the moved one shows what the head has left."""
_HALF_DEG, _FILL_DEG = (3.0, 8.0), (4.0, 14.0)
"""Yaw of a portrait from which it shows one half of the face too little, and wholly; and turns from which that is
filled."""
_GAIN, _LATER, _SOON = 0.15, 3.0, 8.0
"""Difference of the stretches from which the other half is shown, and wholly at `_GAIN` more. As a turn begins it must
be larger by `_LATER` times `_GAIN`, so the other half begins at the most stretched places and grows. It is opaque from
a share of 1 / `_SOON` on: half transparent, it would double brows."""


def far(own: Tensor, camera: Tensor) -> Tensor:
    """How far heads are turned from the view of their source, rolling not counted.

    Args:
        own, camera: (B, 25) the source's camera and the driving one.

    Returns:
        (B, 1, 1, 1), rising linearly from 0 at 15 degrees to 1 at 30.
    """
    return _risen(_angle(own, camera), _FAR_DEG)


def one_sided(own: Tensor, camera: Tensor) -> Tensor:
    """How far heads are turned whose source shows one half of the face too little; arguments as for `far`.

    Returns:
        (B, 1, 1, 1), rising from 0 at a source's yaw of 3 degrees to 1 at 8, times a rise over a turn of 4 to 14.
    """
    away = unpack(own.float())[0][:, 0, 2].abs().clamp(max=1.0).asin().rad2deg()
    return _risen(away, _HALF_DEG) * _risen(_angle(own, camera), _FILL_DEG)


def _angle(own: Tensor, camera: Tensor) -> Tensor:
    """Between the directions from which two cameras (B, 25) see a head: (B,), degrees."""
    before, after = (unpack(label.float())[0][:, :3, 2] for label in (own, camera))
    angle: Tensor = torch.linalg.cross(before, after).norm(dim=-1).atan2((before * after).sum(-1)).rad2deg()
    return angle


def _risen(value: Tensor, span: tuple[float, float]) -> Tensor:
    """(B,) to (B, 1, 1, 1): from 0 at a span's beginning to 1 at its end."""
    return ((value - span[0]) / (span[1] - span[0])).clamp(0.0, 1.0).view(-1, 1, 1, 1)


def on_mesh(flow: Tensor, elastic: Tensor, face: Tensor, stretched: Tensor, share: Tensor) -> Tensor:
    """The flow, passed over to the elastic mesh's inside the face, but not where the mesh is stretched.

    Args:
        flow, elastic: (B, 2, H, H), H a multiple of 4.
        face: (B, H, H) bool, where the mesh shows the face.
        stretched: (B, 1, H, H), 0 to 1 (`flow_field.stretch` of `elastic`).
        share: (B, 1, 1, 1), see `far`.
    """
    inside, stretched = (F.avg_pool2d(x, 4) for x in (face[:, None].float(), stretched))
    inside = _smooth(1.0 - F.max_pool2d(1.0 - inside, 3, 1, 1))
    return torch.lerp(flow, elastic, enlarge(share * inside * (1.0 - _smooth(stretched)), 4))


def fill(stretched: Tensor, mirrored: Tensor, face: Tensor, share: Tensor) -> Tensor:
    """Where the other half of the face shows more than this half, which the source's camera hardly saw.

    Args:
        stretched, mirrored: (B, 1, H, H), 0 to 1, how far the mesh is stretched, and how far with the other half on it.
        face: (B, H, H) bool, where the mesh shows the face.
        share: (B, 1, 1, 1), see `one_sided`.

    Returns:
        (B, 1, H, H) share of the other half.
    """
    inside, here, there = (F.avg_pool2d(x, 4) for x in (face[:, None].float(), stretched, mirrored))
    least = _GAIN * (1.0 + _LATER * (1.0 - share))
    gained = ((_smooth(here) - _smooth(there) - least) / _GAIN).clamp(0.0, 1.0)
    found = _smooth(F.max_pool2d(inside * gained, 3, 1, 1))  # to beyond the outline of the face
    return enlarge((_SOON * share).clamp(max=1.0) * found, 4)


def leaning(logits: Tensor, share: Tensor, face: Tensor, mouth: Tensor | None, person: Tensor | None) -> Tensor:
    """The logits of `Detail.overlook`, leaning to the moved image.

    Args:
        logits: (B, 4, H/4, H/4) of the rendered, moved, still and turned image.
        share: (B, 1, 1, 1), see `far`.
        face: (B, 1, H/4, H/4), see `Views.face`.
        mouth, person: (B, 2, H, H) and (B, 3, H, H), see `Views`.
    """
    closed = torch.ones_like(face)
    if mouth is not None:
        closed = closed - F.max_pool2d(F.avg_pool2d(mouth[:, :1], 4), 3, 1, 1)
    others = -_LEAN_ON_FACE * _smooth(face)
    still = turned = others
    if person is not None:
        ghosts = F.avg_pool2d(person[:, 1:] * (1.0 - person[:, :1]), 4)
        still, turned = (others - _LEAN_ON_FACE * ghosts[:, k : k + 1] for k in (0, 1))
    lean = [closed * (others - _LEAN), torch.full_like(face, _LEAN), still, turned]
    return logits + share * torch.cat(lean, dim=1)


def fading(colour: Tensor, share: Tensor, mouth: Tensor | None) -> Tensor:
    """The colour (B, 3, H, H) that `Detail.choose` adds, fading out; `share` and `mouth` as in `leaning`.

    Far from what it has learned, it leaves streaks in the background.
    """
    return colour * (1.0 - share * (1.0 if mouth is None else 1.0 - mouth[:, :1]))


def counts(share: Tensor) -> bool:
    """Whether any share is not 0; True where this is not known in advance, or waiting for it takes long."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    return traced or share.device.type != "cpu" or bool((share > 0.0).any())


def _smooth(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
