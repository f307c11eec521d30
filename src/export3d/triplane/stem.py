"""From the source image to visual tokens: the convolution stem and the overlap patch merge (Sec. 3.2)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from export3d.layers import ResidualConvs, conv3x3, image_to_tokens


class ConvStem(nn.Module):
    """Stack of convolutional blocks, S (B, 3, H, W) to features (B, h/4, H/8, W/8).

    Three blocks, each a stride-2 3x3 convolution, a leaky ReLU and a residual pair of convolutions (none at H/2).
    No normalisation layer, as in Live3DPortrait's encoder.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv3x3(3, channels // 4, stride=2)
        self.second = conv3x3(channels // 4, channels // 2, stride=2)
        self.second_residual = ResidualConvs(channels // 2)
        self.third = conv3x3(channels // 2, channels, stride=2)
        self.third_residual = ResidualConvs(channels)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, H, W) in [-1, 1] to features at three resolutions; the last one is the stem's output.

        Returns:
            (B, h/16, H/2, W/2), (B, h/8, H/4, W/4) and (B, h/4, H/8, W/8).
        """
        fine = F.leaky_relu(self.first(image), 0.2)
        middle = self.second_residual(F.leaky_relu(self.second(fine), 0.2))
        return fine, middle, self.third_residual(F.leaky_relu(self.third(middle), 0.2))


class OverlapPatchMerge(nn.Module):
    """SegFormer's overlap patch merge: a strided convolution (overlapping patches), then LayerNorm on the tokens."""

    def __init__(self, channels_in: int, dim: int) -> None:
        super().__init__()
        self.project = conv3x3(channels_in, dim, stride=2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        """(B, C, H, W) to tokens (B, H/2 * W/2, dim) and the grid's height and width."""
        x = self.project(x)
        return self.norm(image_to_tokens(x)), x.shape[2], x.shape[3]
