"""Shoulders that follow the driving person's (not in the paper).

Dense motion sees where the head is in the driving frame, and guesses from it where the shoulders are. A driving video
shows them. Where it does, the flow of the person below the chin is shifted as a whole, so that on average it goes where
the driving shoulders went. Neck, and hair that falls beside the face, are shifted the less the higher they are.

Letters: B batch, H pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from export3d.camera import NECK, projected
from export3d.face.landmark_sets import CHIN
from export3d.layers import enlarge, smooth_step
from export3d.warping.flow_field import look_up, pixel_grid

_TRUST = 0.85
"""Share of the measured way that the shoulders go: what is measured in a video is not exact."""
_NECK = 0.3, 0.05
"""So far above the chin, image heights, the flow is the head's; so far below it, the shoulders'.

With more of the head, moving clips gain up to 0.1 dB; the face itself is left out."""
_PERSON = 0.6
"""Opacity from which a pixel counts as the person's."""
_FEWEST = 0.003
"""Share of the picture that must show shoulders."""


def following(
    flow: Tensor, shoulders: Tensor, own: Tensor, camera: Tensor, places: Tensor, face: Tensor, matte: Tensor
) -> Tensor:
    """A flow whose part below the chin goes where the driving shoulders went.

    Args:
        flow: (B, 2, H, H), H a multiple of 4.
        shoulders: (B, 3), see `SourceMotion`.
        own, camera: (B, 25) the source's camera and the driving one.
        places: (B, 478, 2) the landmarks in the driving frame, 0..1.
        face: (B, H, H) bool, where the mesh shows the face.
        matte: (B, 1, H, H) opacity of the source's person.
    """
    neck = torch.tensor(NECK, dtype=torch.float32, device=flow.device).expand(flow.shape[0], 1, 3)
    way = projected(neck, camera)[0][:, 0] - projected(neck, own)[0][:, 0] + shoulders[:, :2]
    there = -2.0 * way[:, :, None, None]
    coarse, matte, face = (F.avg_pool2d(x.float(), 4) for x in (flow, matte, face[:, None]))
    y = (pixel_grid(coarse.shape[-1], flow.device)[:, 1:] + 1.0) / 2.0 - places[:, CHIN, 1].view(-1, 1, 1, 1)
    below = smooth_step((y + _NECK[0]) / (_NECK[0] + _NECK[1]))
    moved = look_up(matte, coarse)
    seen = (below >= 1.0) * (moved > _PERSON)
    part = seen.float().mean(dim=(2, 3), keepdim=True)
    mean = (coarse * seen).mean(dim=(2, 3), keepdim=True) / part.clamp(min=_FEWEST)
    person = torch.maximum(moved, look_up(matte, there.expand_as(coarse)))
    beside = below * _around(person, 5) * (1.0 - _around(face, 3))
    share = _TRUST * shoulders[:, 2].view(-1, 1, 1, 1) * (part >= _FEWEST)
    return flow + enlarge(beside, 4) * (share * (there - mean))


def _around(mask: Tensor, width: int) -> Tensor:
    """A mask (B, 1, h, h) dilated by a square, with soft edges."""
    return F.avg_pool2d(F.max_pool2d(mask, width, 1, width // 2), 3, 1, 1, count_include_pad=False)
