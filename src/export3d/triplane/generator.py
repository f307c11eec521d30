"""The hybrid tri-plane generator G (Sec. 3.2, Eq. 4 and 6; supplement 6.2).

    source ──ConvStem──▶ h/4 × H/8 ──OverlapPatchMerge──▶ tokens h × (H/16)² ──EAdaLN-ViT × k (expression)──▶
    shuffle, low-pass ──▶ convolution at H/8 ──▶ shuffle, low-pass ──▶ H/4 ┬──────────────────────────────┐
                                              OverlapPatchMerge, ViT × m, shuffle, low-pass ──▶ H/4 ──concat┴─▶
    convolutions, shuffle, low-pass ──▶ H/2 ──convolutions──▶ 3 × C planes of H/2 × W/2

What lies before the first EAdaLN does not depend on the expression and is computed once a source (`encode`).
The number of blocks and the convolution widths are in a figure that the paper's text does not give: ours are in the
presets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export3d.errors import ConfigError, check_shape
from export3d.layers import ResidualConvs, conv3x3, tokens_to_image
from export3d.triplane.average import PlaneAverage
from export3d.triplane.blocks import ViTBlock
from export3d.triplane.stem import ConvStem, OverlapPatchMerge
from export3d.triplane.upsample import ShuffleUpsample
from export3d.warping.flow_field import warp
from export3d.warping.landmark_motion import Face
from export3d.warping.skip_path import FlowStep, GatedSkip


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """Sizes of the generator; the defaults are the paper's where the paper gives them.

    Attributes:
        image_size: H = W of the source, pixels; a multiple of 32.
        dim: h, width of the tokens.
        heads: attention heads, in every block.
        ffn_ratio: hidden width of Mix-FFN over its input width.
        conditioned_blocks: EAdaLN-ViT blocks.
        plain_blocks: ViT blocks on the H/8 grid, behind the first two up-samplings.
        plain_dim: their width.
        mid_channels: convolution width at H/8.
        high_channels: convolution width at H/2.
        plane_channels: C of each plane.
        lowpass_sigma: of the Gaussian behind each pixel shuffle, in pixels of the up-sampled grid; 0 for the ablation.
        ema_delta: of the tri-plane EMA (Eq. 14).
        skip: the stem's features go past the tokens to the grids of H/8, H/4 and H/2, each through a gate that the
            expression-aware features open and close (not in the paper).
        align: the source is first resampled onto the xy plane by its camera, see `triplane.align` (not in the paper).
        flow: the skips are warped by a field of offsets that carries the source's landmarks to their new places
            (`triplane.motion`) and is refined by the expression-aware features: lips and lids of the source move,
            before anything is drawn anew (not in the paper; needs `skip`, and the source's expression and
            landmarks).
        redraw: the skips' gates also see where the flow stretches the source, and can close there: what a mouth shows
            that the source has closed must be drawn, not stretched from its lips (not in the paper; needs `flow`).
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
    skip: bool = False
    align: bool = False
    flow: bool = False
    redraw: bool = False

    def __post_init__(self) -> None:
        if self.flow and not self.skip:
            raise ConfigError("flow warps the skips; set skip too")
        if self.redraw and not self.flow:
            raise ConfigError("redraw looks at the flow; set flow too")
        if self.image_size % 32:
            raise ConfigError(f"image_size {self.image_size} must be a multiple of 32")
        for name in ("dim", "plain_dim", "mid_channels"):
            if getattr(self, name) % 16:
                raise ConfigError(f"{name} {getattr(self, name)} must be a multiple of 16")
        if not 0.0 <= self.ema_delta <= 1.0 or self.lowpass_sigma < 0.0:
            raise ConfigError("ema_delta must lie in 0..1 and lowpass_sigma must not be negative")


@dataclass(frozen=True)
class SourceFeatures:
    """What the generator keeps of a source image; independent of the expression.

    Attributes:
        tokens: (B, N, h) visual tokens.
        skips: the stem's features for the grids of H/8, H/4 and H/2; empty without the skip.
        face: where the source's face is and moves from; None without flow and detail.
        image, camera: (B, 3, H, W) and (B, 25) the source itself, for the super-resolution's detail; None without it.
    """

    tokens: Tensor
    skips: tuple[Tensor, ...] = ()
    face: Face | None = None
    image: Tensor | None = None
    camera: Tensor | None = None

    def expand(self, batch: int) -> SourceFeatures:
        """One source repeated for a batch of expressions; copies nothing."""
        return SourceFeatures(
            self.tokens.expand(batch, *self.tokens.shape[1:]),
            tuple(skip.expand(batch, *skip.shape[1:]) for skip in self.skips),
            None if self.face is None else self.face.expand(batch),
            *(None if x is None else x.expand(batch, *x.shape[1:]) for x in (self.image, self.camera)),
        )


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
        targets = ((c.mid_channels, c.dim // 4), (quarter, c.dim // 8), (c.high_channels, c.dim // 16))
        self.skips = nn.ModuleList(GatedSkip(*widths) for widths in targets if c.skip)
        self.flows = nn.ModuleList(FlowStep(width, c.redraw) for width, _ in targets if c.flow)
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
        return SourceFeatures(tokens, (coarse, middle, fine) if self.config.skip else ())

    def generate(
        self, source: SourceFeatures, embedding: Tensor, field: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Features and beta' (B, d) to the planes (B, 3, C, H/2, W/2) before the tri-plane EMA is added, and the flow.

        The flow (B, 2, H/2, W/2), x first, says where on the aligned source, in [-1, 1] grid units from its own place,
        a place on the xy plane looks for its detail; None without `flow`.

        Args:
            field: (B, 2, H/2, W/2) the flow as far as landmarks tell (`motion.plane_flow`); needed with `flow`.
        """
        if self.config.flow != (field is not None):
            raise ConfigError("a generator with a flow needs the landmarks' field, and one without takes none")
        grid = self.config.image_size // 16
        tokens = source.tokens
        for block in self.conditioned:
            tokens = block(tokens, grid, grid, embedding)
        x = self.mid(self.upsample(tokens_to_image(tokens, grid, grid)))
        flow, change = self._flow(0, x, field, None)
        x = self._with_detail(0, x, source, flow)
        x = self.upsample(self.mid_residual(x))
        flow, change = self._flow(1, x, field, change)
        x = self._with_detail(1, x, source, flow)
        tokens, height, width = self.plain_merge(x)
        for block in self.plain:
            tokens = block(tokens, height, width)
        x = torch.cat([x, self.upsample(tokens_to_image(tokens, height, width))], dim=1)
        x = self.upsample(F.leaky_relu(self.fuse(x), 0.2))
        flow, _ = self._flow(2, x, field, change)
        x = self._with_detail(2, x, source, flow)
        planes: Tensor = self.to_planes(F.leaky_relu(self.high(x), 0.2))
        return planes.reshape(planes.shape[0], 3, self.config.plane_channels, *planes.shape[2:]), flow

    def _flow(
        self, level: int, x: Tensor, field: Tensor | None, change: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        if field is None:
            return None, None
        flow, change = self.flows[level](x, field, change)
        return flow, change

    def _with_detail(self, level: int, x: Tensor, source: SourceFeatures, flow: Tensor | None) -> Tensor:
        if not self.config.skip:
            return x
        detail, closing = source.skips[level], None
        if flow is not None:
            step = self.flows[level]
            assert isinstance(step, FlowStep)
            detail, closing = warp(detail, flow), step.closing(flow)
        out: Tensor = self.skips[level](x, detail, closing)
        return out

    def forward(self, source: SourceFeatures, embedding: Tensor, field: Tensor | None = None) -> Tensor:
        """Features and beta' (B, d) to the tri-plane (B, 3, C, H/2, W/2), planes in the order xy, yz, zx (Eq. 4)."""
        planes: Tensor = self.average(self.generate(source, embedding, field)[0])
        return planes
