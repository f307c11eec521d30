"""Super-resolution SR: the rendered feature image to the final image (Sec. 3.3; supplement 6.2).

EG3D's blocks without style modulation: bilinear up to H/2, a block there, an up-sampling block to H, and an RGB branch
that carries the raw image along, to which each block adds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from export3d.errors import ConfigError, check_shape
from export3d.layers import conv3x3, enlarge
from export3d.warping.detail import Detail, Views


@dataclass(frozen=True, kw_only=True)
class SuperResConfig:
    """Sizes of the super-resolution.

    Attributes:
        mid_channels, high_channels: widths of the blocks at H/2 and H (128 and 64 in EG3D's 256-pixel module).
        detail: each pixel chooses between what is drawn, the source moved or turned to the driving view, and the
            source as it lies there (`Detail`; not in the paper).
        dense: what is moved follows a learned mixture of motions (`dense_motion`), not the face's sheet alone; only
            with `detail`.
        mouth: it also sees where the mouth is open, in the driving view and in the source; only with `detail`.
    """

    mid_channels: int = 128
    high_channels: int = 64
    detail: bool = False
    dense: bool = False
    mouth: bool = False

    def __post_init__(self) -> None:
        if self.dense and not self.detail:
            raise ConfigError("superres.dense moves what superres.detail takes from the source; switch both on")
        if self.mouth and not self.detail:
            raise ConfigError("superres.mouth tells superres.detail where teeth are; switch both on")


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
        self.detail = Detail(features, mid, high, config.mouth) if config.detail else None

    def forward(self, feature: Tensor, views: Views | None = None) -> Tensor:
        """Feature image whose first three channels are the raw RGB, to the final RGB; about [-1, 1], not clamped.

        Args:
            views: what the source offers; needed with `detail`, and only there.
        """
        check_shape(feature, "B F H W", "feature image")
        if (views is None) != (self.detail is None):
            raise ConfigError("super-resolution with detail needs views of the source, and without it takes none")
        rgb = enlarge(feature[:, :3], 2)
        x = enlarge(feature, 2)
        x = self.mid_first(x)
        lean = None
        if self.detail is not None and views is not None:
            lean = self.detail.overlook(feature, views)
            x = x + self.detail.at_half(views)
        x = F.leaky_relu(self.mid_second(F.leaky_relu(x, 0.2)), 0.2)
        rgb = enlarge(rgb + self.mid_rgb(x), 2)
        x = enlarge(x, 2)
        x = F.leaky_relu(self.high_second(F.leaky_relu(self.high_first(x), 0.2)), 0.2)
        out: Tensor = rgb + self.high_rgb(x)
        if self.detail is not None and views is not None:
            assert lean is not None
            out = self.detail(x, out, views, lean)
        return out
