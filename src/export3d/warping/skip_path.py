"""The stem's features carried past the tokens, moved by the flow (not in the paper)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export3d.warping.flow_field import stretch


class GatedSkip(nn.Module):
    """x + sigmoid(gate(x)) * project(skip): source detail where the features ask for it; starts almost open."""

    def __init__(self, channels: int, skip_channels: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(skip_channels, channels, 1)
        self.gate = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.gate.weight)
        if self.gate.bias is not None:
            nn.init.constant_(self.gate.bias, 2.0)

    def forward(self, x: Tensor, skip: Tensor, closing: Tensor | None = None) -> Tensor:
        """(B, C, H, W) and (B, C', H, W) to (B, C, H, W); `closing` (B, C, H, W) is taken from the gate's logits."""
        detail: Tensor = self.project(skip)
        logits: Tensor = self.gate(x)
        return x + torch.sigmoid(logits if closing is None else logits - closing) * detail


class FlowStep(nn.Module):
    """The flow (B, 2, H, W) of one grid, in [-1, 1] grid units, x first: the field plus what the features change.

    Changes add up from grid to grid and start at zero; the field comes to each grid at its own full resolution.
    With `redraw`, each channel learns how far stretching closes its gate; that starts at zero too.
    """

    def __init__(self, channels: int, redraw: bool = False) -> None:
        super().__init__()
        self.closes = nn.Parameter(torch.zeros(channels)) if redraw else None
        self.change = nn.Conv2d(channels, 2, 3, padding=1)
        nn.init.zeros_(self.change.weight)
        nn.init.zeros_(self.change.bias) if self.change.bias is not None else None

    def forward(self, x: Tensor, field: Tensor, change: Tensor | None) -> tuple[Tensor, Tensor]:
        """Features (B, C, H, W), the field, and the coarser grid's change, to the flow and the change at (H, W)."""
        own: Tensor = 0.1 * self.change(x)
        if change is not None:
            own = own + F.interpolate(change, x.shape[-2:], mode="bilinear", align_corners=False)
        resized = F.interpolate(field, x.shape[-2:], mode="bilinear", align_corners=False, antialias=True)
        return resized + own, own

    def closing(self, flow: Tensor) -> Tensor | None:
        """What stretching takes from the gate's logits (B, C, H, W); None without `redraw`."""
        if self.closes is None:
            return None
        closing: Tensor = 10.0 * self.closes.view(1, -1, 1, 1) * stretch(flow)
        return closing
