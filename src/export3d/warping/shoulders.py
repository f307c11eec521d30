"""Shoulders that follow the driving person's (not in the paper).

Dense motion sees where the head is in the driving frame, and guesses from it where the shoulders are. A driving video
shows them. Where it does, the flow of the person below the chin is shifted as a whole, so that on average it goes where
the driving shoulders went.

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
_NECK = 0.02, 0.07
"""Above the chin, image heights, the flow is the head's; so far below it, the shoulders'."""
_PERSON = 0.6
"""Opacity from which a pixel counts as the person's."""
_FEWEST = 0.003
"""Share of the picture that must show shoulders."""


def following(flow: Tensor, shoulders: Tensor, own: Tensor, camera: Tensor, places: Tensor, matte: Tensor) -> Tensor:
    """A flow whose part below the chin goes where the driving shoulders went.

    Args:
        flow: (B, 2, H, H), H a multiple of 4.
        shoulders: (B, 3), see `SourceMotion`.
        own, camera: (B, 25) the source's camera and the driving one.
        places: (B, 478, 2) the landmarks in the driving frame, 0..1.
        matte: (B, 1, H, H) opacity of the source's person.
    """
    neck = torch.tensor(NECK, dtype=torch.float32, device=flow.device).expand(flow.shape[0], 1, 3)
    way = projected(neck, camera)[0][:, 0] - projected(neck, own)[0][:, 0] + shoulders[:, :2]
    there = -2.0 * way[:, :, None, None]
    coarse, matte = F.avg_pool2d(flow.float(), 4), F.avg_pool2d(matte.float(), 4)
    y = (pixel_grid(coarse.shape[-1], flow.device)[:, 1:] + 1.0) / 2.0 - places[:, CHIN, 1].view(-1, 1, 1, 1)
    below = smooth_step((y + _NECK[0]) / (_NECK[0] + _NECK[1]))
    moved = look_up(matte, coarse)
    seen = (below >= 1.0) * (moved > _PERSON)
    part = seen.float().mean(dim=(2, 3), keepdim=True)
    mean = (coarse * seen).mean(dim=(2, 3), keepdim=True) / part.clamp(min=_FEWEST)
    person = torch.maximum(moved, look_up(matte, there.expand_as(coarse)))
    person = F.avg_pool2d(F.max_pool2d(person, 5, 1, 2), 3, 1, 1, count_include_pad=False)
    share = _TRUST * shoulders[:, 2].view(-1, 1, 1, 1) * (part >= _FEWEST)
    return flow + enlarge(below * person, 4) * (share * (there - mean))
