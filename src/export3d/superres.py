"""Super-resolution SR: the rendered feature image to the final image (Sec. 3.3; supplement 6.2).

EG3D's blocks without style modulation: bilinear upsampling to H/2, a block at H/2, and an upsampling block to H. An RGB
branch starts from the raw image, and each block adds to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from export3d.errors import check_shape
from export3d.layers import activated, conv3x3, enlarge


@dataclass(frozen=True, kw_only=True)
class SuperResConfig:
    """Sizes of the super-resolution.

    Attributes:
        mid_channels, high_channels: widths of the blocks at H/2 and H (128 and 64 in EG3D's 256-pixel module).
    """

    mid_channels: int = 128
    high_channels: int = 64


class Guide(Protocol):
    """Adds information that the rendered features lack (not in the paper)."""

    def at_half(self, x: Tensor) -> Tensor:
        """Features (B, mid, H/2, W/2) after the first convolution, to the same shape."""

    def at_full(self, x: Tensor, image: Tensor) -> Tensor:
        """Features (B, high, H, W) and the image (B, 3, H, W) to the final image."""


class SuperResolution(nn.Module):
    """(B, F, H/4, W/4) to (B, 3, H, W); initialised as bilinear upsampling of the raw image."""

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

    def forward(self, feature: Tensor, guide: Guide | None = None) -> Tensor:
        """Feature image, whose first three channels are raw RGB, to the final image, about [-1, 1], not clamped."""
        check_shape(feature, "B F H W", "feature image")
        # on a CPU, large images with few channels are up to twice as fast with the channels last
        feature = enlarge(feature.contiguous(memory_format=torch.channels_last), 2)
        rgb, x = feature[:, :3], self.mid_first(feature)
        if guide is not None:
            x = guide.at_half(x)
        x = activated(self.mid_second(activated(x)))
        rgb = enlarge(rgb + self.mid_rgb(x), 2)
        x = enlarge(x, 2)
        x = activated(self.high_second(activated(self.high_first(x))))
        out: Tensor = rgb + self.high_rgb(x)
        return out if guide is None else guide.at_full(x, out)
