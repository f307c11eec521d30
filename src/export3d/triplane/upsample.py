"""Upsampling by pixel shuffle and Gaussian low-pass (Sec. 3.2).

After a shuffle, neighbouring pixels come from different filters, which leaves a grid pattern with the period of the
shuffle. The low-pass filter removes it where it arises; in the final image it is hard to remove.
"""

from __future__ import annotations

from torch import Tensor, nn

from export3d.layers import GaussianLowPass


class ShuffleUpsample(nn.Module):
    """(B, 4C, H, W) to (B, C, 2H, 2W): pixel shuffle, then a Gaussian of `sigma` pixels (0: none)."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.shuffle = nn.PixelShuffle(2)
        self.low_pass = GaussianLowPass(sigma)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 4C, H, W) to (B, C, 2H, 2W)."""
        out: Tensor = self.low_pass(self.shuffle(x))
        return out
