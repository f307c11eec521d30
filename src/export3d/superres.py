"""Super-resolution SR: the rendered feature image to the final image (Sec. 3.3; supplement 6.2).

EG3D's blocks without style modulation: bilinear up to H/2, a block there, an up-sampling block to H, and an RGB branch
that carries the raw image along, to which each block adds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from export3d.errors import check_shape
from export3d.layers import conv3x3


@dataclass(frozen=True, kw_only=True)
class SuperResConfig:
    """Widths of the two blocks (128 at H/2 and 64 at H in EG3D's 256-pixel module)."""

    mid_channels: int = 128
    high_channels: int = 64


def _enlarge(x: Tensor, factor: int) -> Tensor:
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


class SuperResolution(nn.Module):
    """(B, F, H/4, W/4) to (B, 3, H, W); starts as bilinear enlargement of the raw image."""

    def __init__(self, config: SuperResConfig, features: int) -> None:
        super().__init__()
        mid, high = config.mid_channels, config.high_channels
        self.mid_first = conv3x3(features, mid)
        self.mid_second = conv3x3(mid, mid)
        self.mid_rgb = nn.Conv2d(mid, 3, 1)
        self.high_first = conv3x3(mid, high)
        self.high_second = conv3x3(high, high)
        self.high_rgb = nn.Conv2d(high, 3, 1)
        for layer in (self.mid_rgb, self.high_rgb):
            nn.init.zeros_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, feature: Tensor) -> Tensor:
        """Feature image whose first three channels are the raw RGB, to the final RGB; about [-1, 1], not clamped."""
        check_shape(feature, "B F H W", "feature image")
        rgb = _enlarge(feature[:, :3], 2)
        x = _enlarge(feature, 2)
        x = F.leaky_relu(self.mid_second(F.leaky_relu(self.mid_first(x), 0.2)), 0.2)
        rgb = _enlarge(rgb + self.mid_rgb(x), 2)
        x = _enlarge(x, 2)
        x = F.leaky_relu(self.high_second(F.leaky_relu(self.high_first(x), 0.2)), 0.2)
        out: Tensor = rgb + self.high_rgb(x)
        return out
