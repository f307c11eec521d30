"""The camera-conditioned projection discriminator of the second training phase (Sec. 3.4).

StyleGAN2-ADA's conditional discriminator (Karras et al. 2020, [26] in the paper), by default with EG3D's dual
discrimination (Chan et al. 2022, [10]): its input is then the final image concatenated with the upsampled raw image,
six channels, so that super-resolution cannot add what the volume does not contain. It is conditioned on the camera, so
that an image must also match its pose. Residual blocks with a low-pass filter halve the grid down to 4 x 4. All layers
have equalised learning rates. The score is the projection <c, features> onto the mapped camera label c.

Letters: B batch, C channels, H image side in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export3d.camera import LABEL_SIZE
from export3d.errors import ConfigError, check_shape
from export3d.layers import constant

_GRID = 4
_SLOPE = 0.2


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Sizes of the discriminator; the defaults are those of StyleGAN2-ADA and EG3D.

    Attributes:
        image_size: side of the final image in pixels, a power of two and at least 16; the raw image may have any size.
        channel_base, channel_max: a grid of r x r has min(channel_base / r, channel_max) channels.
        mapping_layers: fully connected layers after the embedding of the camera label.
        mapping_width: their width, and the dimension of the projection.
        mapping_lr: their learning rate relative to the other layers.
        group: images per group of the minibatch standard deviation (`minibatch_deviation`).
        dual: also look at the raw image (EG3D); False: at the final image alone (StyleGAN2-ADA).
    """

    image_size: int = 256
    channel_base: int = 32768
    channel_max: int = 512
    mapping_layers: int = 8
    mapping_width: int = 512
    mapping_lr: float = 0.01
    group: int = 4
    dual: bool = True

    def __post_init__(self) -> None:
        size = self.image_size
        if size < 16 or size & (size - 1):
            raise ConfigError(
                f"the discriminator halves images down to {_GRID} pixels: image_size {size} must be a power of two and "
                "at least 16, such as 64, 128 or 256"
            )
        if min(self.channel_base // size, self.channel_max, self.mapping_width, self.group) < 1:
            raise ConfigError("channels, mapping_width and group of the discriminator must be positive")
        if self.mapping_layers < 0 or not self.mapping_lr > 0.0:
            raise ConfigError("mapping_layers must not be negative, and mapping_lr must be positive")

    def channels(self, grid: int) -> int:
        """Channels at a grid of `grid` x `grid`."""
        return min(self.channel_base // grid, self.channel_max)


PRESETS: dict[str, DiscriminatorConfig] = {
    "full": DiscriminatorConfig(),
    "small": DiscriminatorConfig(channel_base=8192, channel_max=128, mapping_layers=2, mapping_width=128),
    "tiny": DiscriminatorConfig(channel_base=1024, channel_max=32, mapping_layers=2, mapping_width=32),
}
"""`full`: the published sizes; `small`: a quarter of the channels, for training on a CPU; `tiny`: for tests."""


def discriminator_config(name: str, image_size: int) -> DiscriminatorConfig:
    """The preset `name` for images of `image_size` pixels; raises `ConfigError` if there is none."""
    if name not in PRESETS:
        raise ConfigError(f"unknown discriminator {name!r}; choose one of {', '.join(PRESETS)}")
    return replace(PRESETS[name], image_size=image_size)


def _activate(x: Tensor) -> Tensor:
    """Leaky ReLU with gain sqrt(2), which preserves the second moment."""
    return F.leaky_relu(x, _SLOPE) * math.sqrt(2.0)


def _precise(x: Tensor) -> Tensor:
    """`x` in float32, or in its own precision if that is higher."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class EqualLinear(nn.Module):
    """Linear layer with an equalised learning rate: weights are stored with unit variance and scaled when used.

    Args:
        lr: learning rate of weights and biases relative to the optimiser's.
    """

    def __init__(self, features_in: int, features_out: int, lr: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features_out, features_in) / lr)
        self.bias = nn.Parameter(torch.zeros(features_out))
        self.gain = lr / math.sqrt(features_in)
        self.bias_gain = lr

    def forward(self, x: Tensor) -> Tensor:
        """(B, features_in) to (B, features_out)."""
        return F.linear(x, self.weight * self.gain, self.bias * self.bias_gain)


class EqualConv(nn.Module):
    """Convolution with an odd kernel and an equalised learning rate; `down` adds a low-pass filter and stride 2."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, *, bias: bool = True, down: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels_out, channels_in, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(channels_out)) if bias else None
        self.gain = 1.0 / math.sqrt(channels_in * kernel**2)
        self.down, self.padding = down, kernel // 2

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, H) to (B, C', H, H), or to (B, C', H/2, H/2) with `down`."""
        weight = self.weight * self.gain
        if not self.down:
            return F.conv2d(x, weight, self.bias, padding=self.padding)
        if self.padding == 0:  # a 1 x 1 convolution can follow the halving, at a quarter of the cost
            return F.conv2d(low_pass(x, 1, stride=2), weight, self.bias)
        return F.conv2d(low_pass(x, self.padding + 1), weight, self.bias, stride=2)


def low_pass(x: Tensor, padding: int, stride: int = 1) -> Tensor:
    """StyleGAN2's filter [1, 3, 3, 1] / 8 along both axes, with zero padding and a stride.

    (B, C, H, W) to (B, C, (H + 2 padding - 4) // stride + 1, ...).
    """
    taps = constant((0.125, 0.375, 0.375, 0.125), x.device, x.dtype)
    kernel = (taps[:, None] * taps).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(x, kernel, stride=stride, padding=padding, groups=x.shape[1])


class DownBlock(nn.Module):
    """(skip(x) + conv(conv(x))) / sqrt 2, halved: (B, C, H, H) to (B, C', H/2, H/2)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.first = EqualConv(channels_in, channels_in, 3)
        self.second = EqualConv(channels_in, channels_out, 3, down=True)
        self.skip = EqualConv(channels_in, channels_out, 1, bias=False, down=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, H) to (B, C', H/2, H/2)."""
        changed = _activate(self.second(_activate(self.first(x))))
        out: Tensor = (self.skip(x) + changed) * math.sqrt(0.5)
        return out


def minibatch_deviation(x: Tensor, group: int) -> Tensor:
    """Append one channel: the standard deviation within a group of images, averaged over channels and pixels.

    A group is `group` consecutive images, or the largest smaller number that divides the batch. Processes that share a
    batch therefore see the same groups as a single process if each gets whole groups.

    Args:
        x: (B, C, H, W).

    Returns:
        (B, C + 1, H, W).
    """
    batch, channels, height, width = x.shape
    size = max(n for n in range(1, min(group, batch) + 1) if batch % n == 0)
    grouped = _precise(x).view(batch // size, size, channels, height, width)
    deviation = ((grouped - grouped.mean(dim=1, keepdim=True)).square().mean(dim=1) + 1e-8).sqrt()
    level = deviation.mean(dim=(1, 2, 3)).to(x.dtype).repeat_interleave(size)
    return torch.cat([x, level.view(batch, 1, 1, 1).expand(batch, 1, height, width)], dim=1)


class LabelMapping(nn.Module):
    """Maps camera labels to the vectors onto which features are projected."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        width = config.mapping_width
        self.embed = EqualLinear(LABEL_SIZE, width)
        self.layers = nn.ModuleList(EqualLinear(width, width, config.mapping_lr) for _ in range(config.mapping_layers))

    def forward(self, camera: Tensor) -> Tensor:
        """(B, 25) to (B, mapping_width)."""
        x: Tensor = self.embed(camera)
        x = x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()
        for layer in self.layers:
            x = _activate(layer(x))
        return x


class Discriminator(nn.Module):
    """D(image, raw | camera): a logit, high for images that look real from that camera.

    Twice differentiable with respect to images and weights, as R1 requires (`losses.r1_penalty`).
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        grids = [config.image_size >> level for level in range(int(math.log2(config.image_size // _GRID)))]
        self.enter = EqualConv(6 if config.dual else 3, config.channels(config.image_size), 1)
        self.blocks = nn.ModuleList(DownBlock(config.channels(g), config.channels(g // 2)) for g in grids)
        last = config.channels(_GRID)
        self.mapping = LabelMapping(config)
        self.last = EqualConv(last + 1, last, 3)
        self.dense = EqualLinear(last * _GRID**2, last)
        self.out = EqualLinear(last, config.mapping_width)

    def forward(self, image: Tensor, raw: Tensor, camera: Tensor) -> Tensor:
        """Scores (B,), float32.

        Args:
            image: (B, 3, H, H) final image or driving frame, about [-1, 1].
            raw: (B, 3, R, R) raw image, or the driving frame downsampled to its size; upsampled here (bilinear), and
                ignored without `dual`.
            camera: (B, 25) labels.
        """
        size = self.config.image_size
        check_shape(image, f"B 3 {size} {size}", "image")
        check_shape(raw, f"{image.shape[0]} 3 R R", "raw")
        check_shape(camera, f"{image.shape[0]} {LABEL_SIZE}", "camera")
        x = image
        if self.config.dual:
            enlarged = F.interpolate(raw, (size, size), mode="bilinear", align_corners=False)
            x = torch.cat([image, enlarged], dim=1)
        x = _activate(self.enter(x))
        for block in self.blocks:
            x = block(x)
        x = _activate(self.last(minibatch_deviation(x, self.config.group)))
        features: Tensor = self.out(_activate(self.dense(x.flatten(1))))
        direction: Tensor = self.mapping(camera)
        return (_precise(features) * _precise(direction)).sum(dim=1) / math.sqrt(self.config.mapping_width)
