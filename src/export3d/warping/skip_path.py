"""The skip path: stem features bypass the tokens and are moved by the flow (not in the paper).

On each of three grids (H/8, H/4, H/2) the generator's features say how the flow is refined and how far the gate opens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export3d.errors import ConfigError
from export3d.warping.flow_field import look_up, stretch


class GatedSkip(nn.Module):
    """x + sigmoid(gate(x)) * project(skip): source features where the gate is open; starts almost open."""

    def __init__(self, channels: int, skip_channels: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(skip_channels, channels, 1)
        self.gate = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.gate.weight)
        if self.gate.bias is not None:
            nn.init.constant_(self.gate.bias, 2.0)

    def forward(self, x: Tensor, skip: Tensor, closing: Tensor | None = None) -> Tensor:
        """(B, C, H, W) and (B, C', H, W) to (B, C, H, W); `closing` is subtracted from the gate's logits."""
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
        """What stretching subtracts from the gate's logits (B, C, H, W); None without `redraw`."""
        if self.closes is None:
            return None
        closing = 10.0 * self.closes * stretch(flow).permute(0, 2, 3, 1)
        return closing.permute(0, 3, 1, 2)  # the channels last in memory, as convolutions leave them


class SkipPath(nn.Module):
    """Gates and flow refinements of the three grids.

    Args:
        widths: for each grid, from H/8 to H/2, the channels of the generator's features and of the stem's.
        flow: warp the stem's features.
        redraw: let stretching close the gates; needs `flow`.
    """

    def __init__(self, widths: Sequence[tuple[int, int]], flow: bool, redraw: bool) -> None:
        super().__init__()
        self.gates = nn.ModuleList(GatedSkip(*pair) for pair in widths)
        self.flows = nn.ModuleList(FlowStep(width, redraw) for width, _ in widths if flow)

    def walk(self, stem: Sequence[Tensor], field: Tensor | None) -> SkipWalk:
        """One pass through the generator.

        Args:
            stem: features at H/8, H/4 and H/2.
            field: (B, 2, H/2, W/2) the flow as far as landmarks tell (`flows.plane_flow`); None without a flow.
        """
        if (field is None) == bool(self.flows):
            raise ConfigError("a skip path with a flow needs the landmarks' field, and one without takes none")
        return SkipWalk(self, stem, field)


class SkipWalk:
    """Adds the stem's features to the generator's: called once per grid, in the order H/8, H/4, H/2.

    Attributes:
        field: see `SkipPath.walk`.
        flow: (B, 2, H, W) the refined flow of the last grid; None before the first call and without a flow.
    """

    def __init__(self, path: SkipPath, stem: Sequence[Tensor], field: Tensor | None) -> None:
        self.flow: Tensor | None = None
        self.field = field
        self._path, self._stem = path, stem
        self._change: Tensor | None = None
        self._grid = 0

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, H, W) features of the next grid to the same shape."""
        features, closing = self._stem[self._grid], None
        if self.field is not None:
            step = self._path.flows[self._grid]
            assert isinstance(step, FlowStep)
            flow, self._change = step(x, self.field, self._change)
            features = look_up(features, flow, _centres(flow)).contiguous(memory_format=torch.channels_last)
            closing, self.flow = step.closing(flow), flow
        out: Tensor = self._path.gates[self._grid](x, features, closing)
        self._grid += 1
        return out


def _centres(flow: Tensor) -> Tensor:
    """(1, 2, H, W) pixel centres as `affine_grid` rounds them: `base` was trained with these.

    They differ from `pixel_grid` by up to 6e-8, which changes the last bit of a few pixels per image.
    """
    rows, columns = (torch.linspace(-1.0, 1.0, n, device=flow.device) * (n - 1) / n for n in flow.shape[-2:])
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y])[None]
