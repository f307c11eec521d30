"""Shoulders that follow the driving person's (not in the paper).

Dense motion sees where the head is in the driving frame, and guesses from it where the shoulders are. A driving video
shows them. Where it does, the person below the chin moves as the driving shoulders do, as one rigid piece: shifted,
turned and enlarged about the collar. From the chin upwards neck and hair pass over to the flow of dense motion, first
shifted so that on average it goes the same way, then the less the higher they are. The source's face is never looked
up there: a head that rises would show a second chin.

Letters: B batch, H pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from export3d.camera import COLLAR, NECK, projected
from export3d.face.landmark_sets import CHIN, FACE_OVAL
from export3d.layers import enlarge, smooth_step
from export3d.warping.flow_field import look_up, pixel_grid

_TRUST = 0.95
"""Share of the measured way that the shoulders go: what is measured in a video is not exact."""
_NECK = 0.3, 0.05
"""So far above the chin, image heights, the flow is the head's; so far below it, the shoulders'.

The face itself is left out."""
_SLID, _LONGER = 0.03, 0.1
"""Where the chin slides farther than the first over the shoulders, the passage ends lower by what it slides farther, at
most by the second: the neck leans."""
_RIGID = 0.15
"""So far above the chin dense motion begins to give way to the rigid piece, which it has done `_NECK` below."""
_FACE = 1.0, 1.2
"""The ellipse around the source's face in which nothing moves with the shoulders, and from which everything does, in
half axes of the face."""
_PERSON = 0.6
"""Opacity from which a pixel counts as the person's."""
_LEAN = 16.0
"""Added to the logit of the moved image where it shows the person and the still one does not; taken from that of the
still one where it is the other way round."""
_FEWEST = 0.003
"""Share of the picture that must show shoulders."""


def following(
    flow: Tensor,
    shoulders: Tensor,
    own: Tensor,
    camera: Tensor,
    places: Tensor,
    before: Tensor,
    face: Tensor,
    matte: Tensor,
) -> tuple[Tensor, Tensor]:
    """A flow whose part below the chin goes where the driving shoulders went, and the share of each place that does.

    Args:
        flow: (B, 2, H, H), H a multiple of 4.
        shoulders: (B, 5), see `SourceMotion`.
        own, camera: (B, 25) the source's camera and the driving one.
        places, before: (B, 478, 2) the landmarks in the driving frame and in the source, 0..1.
        face: (B, H, H) bool, where the mesh shows the face.
        matte: (B, 1, H, H) opacity of the source's person.

    Returns:
        (B, 2, H, H), and (B, 1, H/4, H/4), 0 to 1.
    """
    coarse, matte, face = (F.avg_pool2d(x.float(), 4) for x in (flow, matte, face[:, None]))
    at = (pixel_grid(coarse.shape[-1], flow.device) + 1.0) / 2.0
    there = _rigid(at, shoulders, own, camera)
    looked_up = at + there / 2.0
    chin, own_chin = (x[:, CHIN, :, None, None] for x in (places, before))
    slid = (chin + _rigid(chin, shoulders, own, camera) / 2.0 - own_chin).norm(dim=1, keepdim=True)
    y = torch.minimum(at[:, 1:] - chin[:, 1:], looked_up[:, 1:] - own_chin[:, 1:])
    under = _NECK[1] + (slid - _SLID).clamp(0.0, _LONGER)
    below, rigid = (smooth_step((y + above) / (above + under)) for above in (_NECK[0], _RIGID))
    moved = look_up(matte, coarse)
    seen = (below >= 1.0) * (moved > _PERSON)
    part = seen.float().mean(dim=(2, 3), keepdim=True)
    mean = ((there - coarse) * seen).mean(dim=(2, 3), keepdim=True) / part.clamp(min=_FEWEST)
    person = torch.maximum(moved, look_up(matte, there))
    beside = below * _around(person, 5) * (1.0 - _around(face, 3))
    share = _TRUST * shoulders[:, 2].view(-1, 1, 1, 1) * (part >= _FEWEST)
    share = share * beside * _beyond(looked_up, before[:, list(FACE_OVAL)])
    return flow + enlarge(share * (mean + rigid * (there - coarse - mean)), 4), share


def leaning_at_shoulders(logits: Tensor, share: Tensor, person: Tensor) -> Tensor:
    """The logits of `Detail.overlook`, changed so that the outline of shoulders moves with them.

    In the training data shoulders hardly move, and the choice has learned to keep their outline where it was.

    Args:
        logits: (B, 4, H/4, H/4) of the rendered, moved, still and turned image.
        share: (B, 1, H/4, H/4), see `following`.
        person: (B, 3, H, H), see `Views`.
    """
    moved, still = person[:, :1], person[:, 1:2]
    came, left = (share * F.avg_pool2d(part, 4) for part in (moved * (1.0 - still), still * (1.0 - moved)))
    none = torch.zeros_like(came)
    return logits + _LEAN * torch.cat([none, came, -left, none], dim=1)


def _beyond(places: Tensor, oval: Tensor) -> Tensor:
    """How far places (B, 2, h, h) lie outside the ellipse around an oval (B, N, 2), from 0 to 1: (B, 1, h, h)."""
    low, high = oval.amin(dim=1), oval.amax(dim=1)
    apart = (2.0 * places - (low + high)[:, :, None, None]) / (high - low)[:, :, None, None]
    return smooth_step((apart.norm(dim=1, keepdim=True) - _FACE[0]) / (_FACE[1] - _FACE[0]))


def _rigid(at: Tensor, shoulders: Tensor, own: Tensor, camera: Tensor) -> Tensor:
    """The flow (B, 2, h, h) of a picture that moves as the shoulders do, at places (1 or B, 2, h, h), 0..1."""
    points = torch.tensor((NECK, COLLAR), dtype=torch.float32, device=at.device).expand(shoulders.shape[0], 2, 3)
    (before, near), (after, far) = (projected(points, label) for label in (own, camera))
    collar, way = before[:, 1], after[:, 0] - before[:, 0] + shoulders[:, :2]
    smaller = (far[:, :1] / near[:, :1] * torch.exp(-shoulders[:, 4:5]))[:, :, None, None]
    a, b = smaller * shoulders[:, 3, None, None, None].cos(), smaller * shoulders[:, 3, None, None, None].sin()
    x, y = torch.split(at - (collar + way)[:, :, None, None], 1, dim=1)
    return 2.0 * (torch.cat([a * x + b * y, a * y - b * x], dim=1) + collar[:, :, None, None] - at)


def _around(mask: Tensor, width: int) -> Tensor:
    """A mask (B, 1, h, h) dilated by a square, with soft edges."""
    return F.avg_pool2d(F.max_pool2d(mask, width, 1, width // 2), 3, 1, 1, count_include_pad=False)
