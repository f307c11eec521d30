"""Super-resolution SR: the rendered feature image to the final image (Sec. 3.3; supplement 6.2).

EG3D's blocks without style modulation: bilinear up to H/2, a block there, an up-sampling block to H, and an RGB branch
that carries the raw image along, to which each block adds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export3d.errors import ConfigError, check_shape
from export3d.layers import conv3x3

_DETAIL_WIDTH = 16


@dataclass(frozen=True, kw_only=True)
class SuperResConfig:
    """Sizes of the super-resolution.

    Attributes:
        mid_channels, high_channels: widths of the blocks at H/2 and H (128 and 64 in EG3D's 256-pixel module).
        detail: each pixel chooses between what is drawn, the source moved to the driving view, and the source as it
            lies there (`Detail`; not in the paper).
    """

    mid_channels: int = 128
    high_channels: int = 64
    detail: bool = False


@dataclass(frozen=True)
class Views:
    """What the source itself offers for a driving frame.

    Attributes:
        moved: (B, 3, H, W) the source in the driving view, see `triplane.align.driving_view`.
        stretched: (B, 1, H, W) how far it is stretched there, 0 to 1.
        still: (B, 3, H, W) the source as it is: a room does not turn with the head.
        head: (B, 2, H, W) where the head is in the driving view and was in the source (`triplane.align.head_nearness`).
    """

    moved: Tensor
    stretched: Tensor
    still: Tensor
    head: Tensor

    def stacked(self) -> Tensor:
        """All of them, (B, 9, H, W)."""
        return torch.cat([self.moved, self.still, self.stretched, self.head], dim=1)


class Detail(nn.Module):
    """Chooses at each pixel between drawn, moved and still pictures, and adds what none of them shows.

    Drawn pixels are soft, the source's are sharp but shut where a mouth must open, and of the past where the head
    was. Begins with nine tenths of what is drawn.
    """

    def __init__(self, mid: int, high: int) -> None:
        super().__init__()
        self.mid = conv3x3(9, mid)
        self.first = conv3x3(high + 3 + 9, _DETAIL_WIDTH)
        self.second = conv3x3(_DETAIL_WIDTH, _DETAIL_WIDTH)
        self.choice = conv3x3(_DETAIL_WIDTH, 6)
        for layer in (self.mid, self.choice):
            nn.init.zeros_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        assert self.choice.bias is not None
        nn.init.constant_(self.choice.bias[:1], 3.0)

    def at_half(self, views: Views) -> Tensor:
        """What the views add to the features at H/2: (B, mid, H/2, W/2)."""
        out: Tensor = self.mid(F.avg_pool2d(views.stacked(), 2))
        return out

    def forward(self, x: Tensor, drawn: Tensor, views: Views) -> Tensor:
        """Features (B, high, H, W) and the drawn picture (B, 3, H, W) to the final one."""
        x = torch.cat([x, drawn, views.stacked()], dim=1)
        x = F.leaky_relu(self.second(F.leaky_relu(self.first(x), 0.2)), 0.2)
        choice, added = self.choice(x).split(3, dim=1)
        share = choice.softmax(dim=1)
        out: Tensor = added + share[:, :1] * drawn + share[:, 1:2] * views.moved + share[:, 2:] * views.still
        return out


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
        self.detail = Detail(mid, high) if config.detail else None

    def forward(self, feature: Tensor, views: Views | None = None) -> Tensor:
        """Feature image whose first three channels are the raw RGB, to the final RGB; about [-1, 1], not clamped.

        Args:
            views: what the source offers; needed with `detail`, and only there.
        """
        check_shape(feature, "B F H W", "feature image")
        if (views is None) != (self.detail is None):
            raise ConfigError("super-resolution with detail needs views of the source, and without it takes none")
        rgb = _enlarge(feature[:, :3], 2)
        x = _enlarge(feature, 2)
        x = self.mid_first(x)
        if self.detail is not None and views is not None:
            x = x + self.detail.at_half(views)
        x = F.leaky_relu(self.mid_second(F.leaky_relu(x, 0.2)), 0.2)
        rgb = _enlarge(rgb + self.mid_rgb(x), 2)
        x = _enlarge(x, 2)
        x = F.leaky_relu(self.high_second(F.leaky_relu(self.high_first(x), 0.2)), 0.2)
        out: Tensor = rgb + self.high_rgb(x)
        if self.detail is not None and views is not None:
            out = self.detail(x, out, views)
        return out
