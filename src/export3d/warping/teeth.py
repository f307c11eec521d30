"""Teeth keep their size when a mouth opens (not in the paper).

Where a mouth opens wider than the source's, the elastic mesh stretches what the source shows between its lips down to
the lower lip: teeth become long and transparent. But upper teeth belong to the skull. Here a mouth that opens shows
the source turned with the head where that shows the inside of its mouth, and below that it is hollow: rendered, with
dark pixels in place of the stretched ones.

Letters: B batch, L = 478 landmarks, H pixels, W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from export3d.layers import constant

_CORNERS, _LIPS = (33, 263), (13, 14)
"""Outer corners of the eyes, and the middles of the inner lips."""
_SHOWN = 0.06, 0.1
"""Gap between the lips, in distances of the outer eye corners, from which a source shows teeth, and certainly does."""
_WIDER = 0.05, 0.12
"""By how much the gap must be wider than the source's for its teeth to leave the mesh, and to leave it wholly."""
_EDGE = 1.0 / 128.0
"""Edge of the source's mouth that counts as lip, in image widths: landmarks are not more exact."""
_HOLLOW = (-0.72, -0.86, -0.84)
"""Colour of the inside of a wide open mouth, a dark red."""


@torch.no_grad()
def upper_teeth(points: Tensor, own: Tensor, mouth: Tensor) -> Tensor:
    """Where the mouth has opened, and what it shows.

    Args:
        points, own: (B, L, 3) driven landmarks and the source's, in the head's own axes.
        mouth: (B, 2, H, W), 0 to 1: where the mouth is open in the driving view, and in the source turned as the head
            is (`flows.openings`).

    Returns:
        (B, 2, H, W), shares of the turned source and of the hollow; 0 where the source's mouth is closed or the lips
        are not farther apart than there.
    """
    before, after = _gap(own), _gap(points)
    opened = _step(before, _SHOWN) * _step(after - before, _WIDER)
    reach = round(_EDGE * mouth.shape[-1])
    driving, source = mouth[:, :1], mouth[:, 1:]
    lips = F.max_pool2d((source < 0.5).to(mouth.dtype), 2 * reach + 1, 1, reach)
    above = F.pad(lips[..., reach:, :], (0, 0, 0, reach), value=1.0)
    kept = _smooth(1.0 - torch.minimum(lips, above))  # the edge of the upper lip hides teeth, and does not hang down
    return opened.view(-1, 1, 1, 1) * _smooth(driving) * torch.cat([kept, 1.0 - kept], dim=1)


def unstretched(teeth: Tensor, moved: Tensor, stretched: Tensor, turned: Tensor) -> tuple[Tensor, Tensor]:
    """The moved source and its stretch, without stretched teeth.

    Args:
        teeth: (B, 2, H, W), see `upper_teeth`.
        moved, turned: (B, 3, H, W) the source on the elastic mesh, and turned with the head.
        stretched: (B, 1, H, W), 0 to 1.
    """
    kept, hollow = teeth[:, :1], teeth[:, 1:]
    rest = 1.0 - kept - hollow
    dark = constant(_HOLLOW, moved.device, moved.dtype).view(1, 3, 1, 1)
    return rest * moved + kept * turned + hollow * dark, rest * stretched + hollow


def chosen(teeth: Tensor, share: Tensor) -> Tensor:
    """Shares (B, 4, H, W) of the rendered, moved, still and turned image: teeth are turned, the hollow is rendered."""
    kept, hollow = teeth[:, :1], teeth[:, 1:]
    none = torch.zeros_like(kept)
    return (1.0 - kept - hollow) * share + torch.cat([hollow, none, none, kept], dim=1)


def _gap(points: Tensor) -> Tensor:
    """(B,) between the inner lips, in distances of the outer eye corners."""
    lips, corners = (points[:, constant(pair, points.device)] for pair in (_LIPS, _CORNERS))
    width = (corners[:, 0] - corners[:, 1]).norm(dim=-1).clamp_min(1e-4)
    out: Tensor = (lips[:, 0] - lips[:, 1]).norm(dim=-1) / width
    return out


def _step(value: Tensor, span: tuple[float, float]) -> Tensor:
    """From 0 at the beginning of a span to 1 at its end, smoothly."""
    part = ((value - span[0]) / (span[1] - span[0])).clamp(0.0, 1.0)
    out: Tensor = part * part * (3.0 - 2.0 * part)
    return out


def _smooth(mask: Tensor) -> Tensor:
    return F.avg_pool2d(mask, 3, 1, 1, count_include_pad=False)
