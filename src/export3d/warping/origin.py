"""Where each pixel of a final image comes from in the source (not in the paper).

`Detail` mixes the rendered image with three views of the source, each of which looks its pixels up at known places.
A larger photo of the same source has more pixels at those places (`photo.compositor`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from export3d.layers import constant
from export3d.warping.inner_mouth import Teeth

_RENDERED = (0.35, 0.8)
"""Shares of the rendered image between which trust falls from 1 to 0."""
_CHOICE = 3.0
"""Power of the shares: the place is that of the view that dominates."""
_DRAWN = (1e-3, 0.0, 0.0)
"""Added to the shares of the views. What is drawn alone, as an opened mouth, is where the moved image is: a photo's
background may be where it would be unmoved."""
_SPREAD = 4.0
"""Pixels of a 256-pixel image by which the views may disagree where trust has fallen to 1/e."""
_REFERENCE = 256.0
_TEAR = 3.0
"""Offsets that change by so many pixels from one pixel to the next mark an occlusion edge."""


@dataclass(frozen=True)
class Origin:
    """Where the pixels of B final images come from.

    Attributes:
        offset: (B, 2, H, W) from each pixel to its place in the source, x first, in [-1, 1] grid units.
        trust: (B, 1, H, W) 0 to 1: 1 where the pixel is the source's pixel at that place; 0 where it is rendered, as
            inside a mouth, or mixed from views of the source that disagree about the place.
        taken: (B, 4, H, W) the views of the source in [-1, 1], weighted by their shares, and the sum of these shares;
            None if they were not kept.
        teeth: that were drawn; None if none can be.
    """

    offset: Tensor
    trust: Tensor
    taken: Tensor | None = None
    teeth: Teeth | None = None

    def at(self, number: int) -> Origin:
        """That of one of the images."""
        return Origin.rows(self, slice(number, number + 1))

    def rows(self, rows: slice) -> Origin:
        """That of some of the images."""
        taken, teeth = self.taken, self.teeth
        return Origin(
            self.offset[rows],
            self.trust[rows],
            None if taken is None else taken[rows],
            None if teeth is None else teeth.rows(rows),
        )


def origin(share: Tensor, offset: Tensor, turn: Tensor) -> Origin:
    """The mean place of the views, weighted by their shares.

    Args:
        share: (B, 4, H, W) shares of the rendered, moved, still and turned image, see `detail.Detail`.
        offset, turn: (B, 2, H, W) the flows of the moved and the turned image.
    """
    rendered, looked_up = share[:, :1], share[:, 1:]
    part = (looked_up + constant(_DRAWN, share.device)[:, None, None]) ** _CHOICE
    part = part / part.sum(dim=1, keepdim=True)
    moved, still, turned = part[:, :1], part[:, 1:2], part[:, 2:]
    mean = torch.addcmul(moved * offset, turned, turn)
    away = [(flow - mean).square().sum(dim=1, keepdim=True) for flow in (offset, turn)]
    square = torch.addcmul(still * mean.square().sum(dim=1, keepdim=True), moved, away[0])
    spread = torch.addcmul(square, turned, away[1]).sqrt() * (_REFERENCE / 2.0)
    low, high = _RENDERED
    kept = 1.0 - ((rendered - low) / (high - low)).clamp(0.0, 1.0)
    trust = kept * kept * (3.0 - 2.0 * kept) * torch.exp(-((spread / _SPREAD).square())) * (1.0 - torn(mean))
    trust = F.pad(trust, (1, 1, 1, 1), "replicate")
    trust = trust[..., 2:] + trust[..., 1:-1] + trust[..., :-2]
    return Origin(mean, (trust[..., 2:, :] + trust[..., 1:-1, :] + trust[..., :-2, :]) / 9.0)


def torn(offset: Tensor, limit: float = _TEAR) -> Tensor:
    """(B, 1, H, W): 1 around the edges at which neighbouring pixels come from places far apart, 0 elsewhere.

    Between them lies nothing that an enlarged image could show. `limit`: of their places' distance, pixels.
    """
    height, width = offset.shape[-2:]
    across = (offset[..., 1:] - offset[..., :-1]).abs().amax(dim=1, keepdim=True) * (width / 2.0) > limit
    down = (offset[..., 1:, :] - offset[..., :-1, :]).abs().amax(dim=1, keepdim=True) * (height / 2.0) > limit
    jump = F.pad(across, (1, 0)) | F.pad(across, (0, 1)) | F.pad(down, (0, 0, 1, 0)) | F.pad(down, (0, 0, 0, 1))
    jump = F.pad(jump, (1, 1, 1, 1))
    jump = jump[..., 2:] | jump[..., 1:-1] | jump[..., :-2]
    return (jump[..., 2:, :] | jump[..., 1:-1, :] | jump[..., :-2, :]).to(offset.dtype)
