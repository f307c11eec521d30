"""The hybrid tri-plane generator G (Sec. 3.2, Eq. 4 and 6; supplement 6.2).

    source ──ConvStem──▶ h/4 × H/8 ──OverlapPatchMerge──▶ tokens h × (H/16)² ──EAdaLN-ViT × k (expression)──▶
    shuffle, low-pass ──▶ convolution at H/8 ──▶ shuffle, low-pass ──▶ H/4 ┬──────────────────────────────┐
                                              OverlapPatchMerge, ViT × m, shuffle, low-pass ──▶ H/4 ──concat┴─▶
    convolutions, shuffle, low-pass ──▶ H/2 ──convolutions──▶ 3 × C planes of H/2 × W/2

Everything before the first EAdaLN is independent of the expression and is computed once per source (`encode`).
The paper does not state the number of blocks or the convolution widths; ours are in the presets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from export3d.errors import ConfigError, check_shape
from export3d.layers import ResidualConvs, activated, conv3x3, tokens_to_image
from export3d.triplane.average import PlaneAverage
from export3d.triplane.blocks import ViTBlock
from export3d.triplane.stem import ConvStem, OverlapPatchMerge
from export3d.triplane.upsample import ShuffleUpsample


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """Sizes of the generator; the defaults are the paper's where the paper gives them.

    Attributes:
        image_size: H = W of the source, pixels; a multiple of 32.
        dim: h, width of the tokens.
        heads: attention heads, in every block.
        ffn_ratio: hidden width of Mix-FFN over its input width.
        conditioned_blocks: EAdaLN-ViT blocks.
        plain_blocks: ViT blocks on the H/8 grid, after the first two upsamplings.
        plain_dim: their width.
        mid_channels: convolution width at H/8.
        high_channels: convolution width at H/2.
        plane_channels: C of each plane.
        lowpass_sigma: sigma of the Gaussian after each pixel shuffle, in upsampled pixels, at most 16; 0 for the
            ablation.
        ema_delta: decay of the tri-plane EMA (Eq. 14).
    """

    image_size: int = 256
    dim: int = 1024
    heads: int = 4
    ffn_ratio: int = 2
    conditioned_blocks: int = 5
    plain_blocks: int = 1
    plain_dim: int = 1024
    mid_channels: int = 512
    high_channels: int = 96
    plane_channels: int = 32
    lowpass_sigma: float = 1.0
    ema_delta: float = 0.998

    def __post_init__(self) -> None:
        if self.image_size % 32:
            raise ConfigError(f"image_size {self.image_size} must be a multiple of 32")
        for name in ("dim", "plain_dim", "mid_channels"):
            if getattr(self, name) % 16:
                raise ConfigError(f"{name} {getattr(self, name)} must be a multiple of 16")
        if not 0.0 <= self.ema_delta <= 1.0 or not 0.0 <= self.lowpass_sigma <= 16.0:
            raise ConfigError("ema_delta must lie in 0..1 and lowpass_sigma in 0..16")

    @property
    def side_widths(self) -> tuple[tuple[int, int], ...]:
        """Channels of the features and of the stem on the grids H/8, H/4 and H/2, to which a side path may add."""
        return (
            (self.mid_channels, self.dim // 4),
            (self.mid_channels // 4, self.dim // 8),
            (self.high_channels, self.dim // 16),
        )


@dataclass(frozen=True)
class SourceFeatures:
    """The generator's features of a source image; independent of the expression.

    Attributes:
        tokens: (B, N, h) visual tokens.
        stem: the stem's features at H/8, H/4 and H/2, for a side path; the paper's generator does not use them.
    """

    tokens: Tensor
    stem: tuple[Tensor, ...]

    def expand(self, batch: int) -> SourceFeatures:
        """One source repeated for a batch of expressions, without copying."""
        return SourceFeatures(
            self.tokens.expand(batch, *self.tokens.shape[1:]),
            tuple(x.expand(batch, *x.shape[1:]) for x in self.stem),
        )


SidePath = Callable[[Tensor], Tensor]
"""Changes the features (B, C, h, w) on the grids H/8, H/4 and H/2: called once per grid, in this order."""


class TriplaneGenerator(nn.Module):
    """G: (source image, expression embedding) to the tri-plane T_beta(S) (Eq. 6)."""

    def __init__(self, config: GeneratorConfig, embedding: int) -> None:
        super().__init__()
        c = config
        self.config = c
        self.stem = ConvStem(c.dim // 4)
        self.merge = OverlapPatchMerge(c.dim // 4, c.dim)
        self.conditioned = nn.ModuleList(
            ViTBlock(c.dim, c.heads, c.ffn_ratio, embedding) for _ in range(c.conditioned_blocks)
        )
        self.upsample = ShuffleUpsample(c.lowpass_sigma)
        self.mid = conv3x3(c.dim // 4, c.mid_channels)
        self.mid_residual = ResidualConvs(c.mid_channels)
        quarter = c.mid_channels // 4
        self.plain_merge = OverlapPatchMerge(quarter, c.plain_dim)
        self.plain = nn.ModuleList(ViTBlock(c.plain_dim, c.heads, c.ffn_ratio) for _ in range(c.plain_blocks))
        self.fuse = conv3x3(quarter + c.plain_dim // 4, 4 * c.high_channels)
        self.high = ResidualConvs(c.high_channels)
        self.to_planes = nn.Conv2d(c.high_channels, 3 * c.plane_channels, 3, padding=1)
        nn.init.zeros_(self.to_planes.bias) if self.to_planes.bias is not None else None
        size = c.image_size // 2
        self.average = PlaneAverage((3, c.plane_channels, size, size), c.ema_delta)

    def encode(self, source: Tensor) -> SourceFeatures:
        """Source image (B, 3, H, W) in [-1, 1] to its features, once for all expressions."""
        size = self.config.image_size
        check_shape(source, f"B 3 {size} {size}", "source")
        fine, middle, coarse = self.stem(source)
        tokens, _, _ = self.merge(coarse)
        return SourceFeatures(tokens, (coarse, middle, fine))

    def generate(self, source: SourceFeatures, embedding: Tensor, side: SidePath | None = None) -> Tensor:
        """Features and beta' (B, d) to the planes (B, 3, C, H/2, W/2) before the tri-plane EMA is added.

        Args:
            side: a path that bypasses the tokens (not in the paper).
        """
        beside = nn.Identity() if side is None else side
        grid = self.config.image_size // 16
        tokens = source.tokens
        for block in self.conditioned:
            tokens = block(tokens, grid, grid, embedding)
        x = beside(self.mid(self.upsample(tokens_to_image(tokens, grid, grid))))
        x = beside(self.upsample(self.mid_residual(x)))
        tokens, height, width = self.plain_merge(x)
        for block in self.plain:
            tokens = block(tokens, height, width)
        x = torch.cat([x, self.upsample(tokens_to_image(tokens, height, width))], dim=1)
        x = beside(self.upsample(activated(self.fuse(x))))
        planes: Tensor = self.to_planes(activated(self.high(x))).contiguous()
        return planes.view(-1, 3, self.config.plane_channels, *planes.shape[2:])

    def forward(self, source: SourceFeatures, embedding: Tensor, side: SidePath | None = None) -> Tensor:
        """Features and beta' (B, d) to the tri-plane (B, 3, C, H/2, W/2), planes in the order xy, yz, zx (Eq. 4)."""
        planes: Tensor = self.average(self.generate(source, embedding, side))
        return planes
