"""Building blocks that several parts of the model use.

Letters: B batch, C channels, H W pixels, N tokens (N = H * W, row-major).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export3d.errors import ConfigError, check_shape

_constants: dict[tuple[Any, ...], Tensor] = {}


def constant(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers as a tensor that is made once per device: do not modify it.

    A list as an index, or `torch.tensor` in every step, copies from the host to a GPU each time and waits for it.

    Args:
        values: numbers, as nested tuples.
        dtype: as `torch.tensor` infers it by default.
    """
    if torch.compiler.is_compiling():  # into the graph
        return torch.tensor(values, dtype=dtype, device=device)
    key = (values, device, dtype)
    if key not in _constants:
        with torch.inference_mode(False):  # training needs normal tensors even if inference asks first
            made = torch.tensor(values, dtype=dtype, device=device)
        if type(made) is not Tensor:  # of a mode that only traces shapes
            return made
        _constants[key] = made
    return _constants[key]


def smooth_step(x: Tensor) -> Tensor:
    """0 below 0, 1 above 1, smooth between."""
    x = x.clamp(0.0, 1.0)
    return x * x * (3.0 - 2.0 * x)


def conv3x3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    """3x3 convolution, padding 1, He-initialised for a leaky ReLU after it."""
    layer = nn.Conv2d(channels_in, channels_out, 3, stride, 1)
    nn.init.kaiming_normal_(layer.weight, a=0.2, nonlinearity="leaky_relu")
    nn.init.zeros_(layer.bias) if layer.bias is not None else None
    return layer


def activated(x: Tensor) -> Tensor:
    """A leaky ReLU of slope 0.2 that overwrites x, the output of a layer that nothing else uses."""
    return F.leaky_relu(x, 0.2, inplace=True)


def linear(features_in: int, features_out: int) -> nn.Linear:
    """Linear layer with truncated-normal weights of standard deviation 0.02 and zero bias (as in ViT and SegFormer)."""
    layer = nn.Linear(features_in, features_out)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


class ResidualConvs(nn.Module):
    """x + conv(lrelu(conv(lrelu(x)))): two 3x3 convolutions and a shortcut; initialised as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv3x3(channels, channels)
        self.second = conv3x3(channels, channels)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        change: Tensor = self.second(activated(self.first(F.leaky_relu(x, 0.2))))
        return x + change


class SelfAttention(nn.Module):
    """Multi-head self-attention (MSA) over all tokens."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ConfigError(f"dim {dim} is not divisible by heads {heads}; choose a multiple")
        self.heads = heads
        self.qkv = linear(dim, 3 * dim)
        self.out = linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(b, n, c))
        return out


class MixFFN(nn.Module):
    """SegFormer's Mix-FFN: linear, 3x3 depth-wise convolution on the token grid, GELU, linear.

    The convolution's zero padding encodes positions, so no positional embedding is needed.
    """

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.expand = linear(dim, dim * ratio)
        self.mix = nn.Conv2d(dim * ratio, dim * ratio, 3, padding=1, groups=dim * ratio)
        nn.init.normal_(self.mix.weight, std=math.sqrt(2.0 / 9.0))
        nn.init.zeros_(self.mix.bias) if self.mix.bias is not None else None
        self.reduce = linear(dim * ratio, dim)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """(B, N, C) with N = height * width to (B, N, C)."""
        x = self.expand(x)
        x = image_to_tokens(self.mix(tokens_to_image(x, height, width)))
        out: Tensor = self.reduce(F.gelu(x))
        return out


def tokens_to_image(tokens: Tensor, height: int, width: int) -> Tensor:
    """(B, N, C) to (B, C, height, width)."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], height, width)


def image_to_tokens(image: Tensor) -> Tensor:
    """(B, C, H, W) to (B, H * W, C)."""
    return image.flatten(2).transpose(1, 2)


class GaussianLowPass(nn.Module):
    """Fixed, separable, depth-wise Gaussian filter with reflected borders and unit gain at zero frequency.

    Args:
        sigma: standard deviation in pixels; 0: the identity (the ablation without low-pass).
    """

    kernel: Tensor

    def __init__(self, sigma: float) -> None:
        super().__init__()
        radius = math.ceil(3.0 * sigma)
        offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
        weights = torch.exp(-0.5 * (offsets / sigma) ** 2) if sigma > 0 else torch.ones(1)
        self.register_buffer("kernel", weights / weights.sum(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        check_shape(x, "B C H W", "feature map")
        radius = self.kernel.numel() // 2
        if radius == 0:
            return x
        channels = x.shape[1]
        row = self.kernel.to(x.dtype).expand(channels, 1, 1, -1)
        x = F.pad(x, (radius, radius, radius, radius), mode="reflect")
        x = F.conv2d(x, row, groups=channels)
        return F.conv2d(x, row.transpose(2, 3), groups=channels)


def enlarge(x: Tensor, factor: int) -> Tensor:
    """(B, C, H, W) to (B, C, factor H, factor W), bilinear."""
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
