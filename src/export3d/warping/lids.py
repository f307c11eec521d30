"""Eyelids that close, almost closed ones wholly, and that open no farther than their folds (not in the paper).

The tracker leaves a gap of two pixels between lids that are closed. The elastic mesh would show the whole eye in it,
squeezed, and the tracker then sees an eye that is half open. Here the gap shrinks to nothing before the mesh is
painted. The lashes, which the mesh would smear over the lid, are vertices of their own (`elastic_mesh.ElasticMesh`).
Where a heavy lid is opened wide it would pass its fold, and the mesh would be folded there.

Letters: B batch, L = 478 landmarks, F = 470 face vertices of the elastic mesh.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from export3d.face.landmark_sets import AROUND_EYES, EYE_CORNERS, EYE_LOOPS, LOWER_LIDS, UPPER_LIDS
from export3d.layers import constant, smooth_step

_UPPER, _LOWER = (tuple(n for lid in lids for n in lid) for lids in (UPPER_LIDS, LOWER_LIDS))
_EDGES, _FOLDS = (tuple(n for loop in loops for n in loop) for loops in (EYE_LOOPS, AROUND_EYES))
_OUTER = (EYE_CORNERS[0][0], EYE_CORNERS[1][0])
_SHUT, _OPEN = 0.022, 0.07
"""Mean gap between the lids, in distances of the outer eye corners, up to which they meet, and from which they stay."""
_LEAST = 0.05
"""Openness that counts as none."""
_DOWN = 0.7
"""The upper lid's share of closing the gap."""
_LEAST_LID = 0.3
"""Least part of the source's lid, from the edge to the fold, that stays when an eye opens."""


def shut(landmarks: Tensor, own: Tensor) -> Tensor:
    """Driven landmarks (B, L, 2) whose almost closed lids meet; differentiable.

    Lids that are as far closed in the source stay where they are: its own expression leaves a face unchanged.

    Args:
        own: (B, F, 2) places of the mesh's vertices in the source, in the same unit.
    """
    upper, lower = (constant(numbers, landmarks.device) for numbers in (_UPPER, _LOWER))
    kept = ((_openness(landmarks) + _LEAST) / (_openness(own) + _LEAST)).clamp_max(1.0)
    closing = (1.0 - kept).repeat_interleave(len(_UPPER) // 2, dim=1)[..., None]
    gap = closing * (landmarks[:, lower] - landmarks[:, upper])
    both = torch.cat([upper, lower])
    return landmarks.index_add(1, both, torch.cat([_DOWN * gap, (_DOWN - 1.0) * gap], dim=1))


def unfolded(landmarks: Tensor, own: Tensor) -> Tensor:
    """Driven landmarks (B, L, 2) whose lids do not pass their folds; differentiable. `own` as for `shut`."""
    edges, folds = (constant(numbers, landmarks.device) for numbers in (_EDGES, _FOLDS))
    way = own[:, edges] - own[:, folds]
    along = ((landmarks[:, edges] - landmarks[:, folds]) * way).sum(dim=-1, keepdim=True)
    missing = (_LEAST_LID - along / way.square().sum(dim=-1, keepdim=True).clamp_min(1e-8)).clamp_min(0.0)
    around = missing.reshape(missing.shape[0], 2, -1)
    # lids stay round: what one vertex lacks its neighbours lack too
    around = F.avg_pool1d(F.max_pool1d(F.pad(around, (4, 4), "circular"), 5, 1), 5, 1)
    return landmarks.index_add(1, edges, around.flatten(1)[..., None] * way)


def _openness(places: Tensor) -> Tensor:
    """(B, 2) for each eye, 0 where the lids count as closed to 1 where they are open."""
    upper, lower, outer = (places[:, constant(numbers, places.device)] for numbers in (_UPPER, _LOWER, _OUTER))
    gap = (lower - upper).norm(dim=-1).unflatten(1, (2, -1)).mean(dim=-1)
    width = (outer[:, 0] - outer[:, 1]).norm(dim=-1, keepdim=True).clamp_min(1e-4)
    return smooth_step((gap / width - _SHUT) / (_OPEN - _SHUT))
