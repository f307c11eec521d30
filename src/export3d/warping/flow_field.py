"""Flow fields: pixel grids, lookup by a flow, how far a flow stretches, and polygon masks.

A flow (B, 2, H, W) holds offsets from each pixel's own place, x first, in [-1, 1] grid units.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def stretch(flow: Tensor) -> Tensor:
    """How far a flow (B, 2, H, W) stretches the image that it looks up: (B, 1, H, W), 0 to 1.

    1 - det of the lookup's Jacobian, clamped: 0 where the source keeps its area or shrinks, near 1 where a sliver of it
    covers a large area.
    """
    a, b, c, d = _jacobian(flow)
    return (1.0 - (a * d - c * b)).clamp(0.0, 1.0)


@torch.no_grad()
def longest_stretch(flow: Tensor) -> Tensor:
    """As `stretch`, in the most stretched direction alone: a squeeze at right angles to it does not count.

    1 - the smaller singular value of the Jacobian, clamped.
    """
    a, b, c, d = _jacobian(flow)
    even, uneven = (a + d).square() + (b - c).square(), (a - d).square() + (b + c).square()
    return (1.0 - (even.sqrt() - uneven.sqrt()).abs() / 2.0).clamp(0.0, 1.0)


def _jacobian(flow: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The derivatives of where a flow (B, 2, H, W) looks up: dx/dx, dx/dy, dy/dx and dy/dy, (B, 1, H, W) each."""
    height, width = flow.shape[-2:]
    padded = F.pad(flow.float(), (1, 1, 1, 1), mode="replicate")
    across = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) * (width / 4.0)
    down = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) * (height / 4.0)
    return 1.0 + across[:, :1], down[:, :1], across[:, 1:], 1.0 + down[:, 1:]


def pixel_grid(size: int, device: torch.device) -> Tensor:
    """(1, 2, size, size) pixel centres, x first, in [-1, 1] grid units."""
    centre = (torch.arange(size, device=device) + 0.5) / size * 2.0 - 1.0
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    return torch.stack([x, y])[None]


def covered(corners: Tensor, size: int) -> Tensor:
    """Masks of polygons: corners (B, N, 2), 0..1, x first, to (B, 1, size, size), 0 or 1.

    Even-odd rule at the pixel centres.
    """
    centre = (torch.arange(size, device=corners.device) + 0.5) / size
    x, y = corners.float().unbind(-1)
    dx, dy = x.roll(-1, 1) - x, y.roll(-1, 1) - y
    crossed = (y[..., None] > centre) != ((y + dy)[..., None] > centre)  # (B, N, rows): edges that a row's line meets
    at = x[..., None] + dx[..., None] * (centre - y[..., None]) / torch.where(dy == 0.0, 1.0, dy)[..., None]
    before = torch.where(crossed, (at * size - 0.5).ceil().clamp(0, size), 0.0).long()  # pixel centres left of them
    ends = torch.zeros(*y.shape[:1], size, size + 1, device=y.device)
    ends = ends.scatter_add(2, before.mT, torch.ones_like(at).mT)
    edges = ends.flip(2).cumsum(2).flip(2)[..., 1:]  # (B, rows, columns): how many edges lie right of each pixel
    return (edges % 2.0)[:, None]


def look_up(image: Tensor, flow: Tensor, centres: Tensor | None = None) -> Tensor:
    """The image (B, C, h, h) sampled at each pixel's own place plus a flow (B, 2, H, H): (B, C, H, H), float32.

    Bilinear; beyond the border the border's pixels repeat. Computed in float32, since bf16 would round places to an
    eighth of a pixel.

    Args:
        centres: (1, 2, H, H) the pixels' own places; None: those of `pixel_grid`.
    """
    own = pixel_grid(flow.shape[-1], flow.device) if centres is None else centres
    return F.grid_sample(
        image.float(), (own + flow.float()).permute(0, 2, 3, 1), padding_mode="border", align_corners=False
    )
