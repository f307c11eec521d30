"""Export3D: the parts wired together (Fig. 1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from export3d.config import ModelConfig
from export3d.errors import ConfigError, check_shape
from export3d.expression.encoder import ExpressionEncoder
from export3d.render.renderer import Rendered, VolumeRenderer
from export3d.superres import SuperResolution
from export3d.triplane.align import frontal_view
from export3d.triplane.generator import SourceFeatures, TriplaneGenerator


@dataclass(frozen=True)
class Output:
    """One forward pass.

    Attributes:
        image: (B, 3, H, W) the final image, about [-1, 1]; None where super-resolution was left out.
        rendered: raw image, depth and opacity at H/4.
        generated: (B, 3, C, H/2, W/2) the tri-plane before the tri-plane EMA was added.
    """

    image: Tensor | None
    rendered: Rendered
    generated: Tensor


class Export3D(nn.Module):
    """Source image, driving expression and camera to the driving frame.

    `encode`, `planes`, `frame` are the three steps at inference: once a source, once an expression, once a camera.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.expression = ExpressionEncoder(config.expression)
        self.generator = TriplaneGenerator(config.generator, config.expression.d)
        self.renderer = VolumeRenderer(config.render, config.generator.plane_channels)
        self.superres = SuperResolution(config.superres, config.render.features)

    def encode(self, source: Tensor, source_camera: Tensor | None = None) -> SourceFeatures:
        """Source (B, 3, H, W) in [-1, 1] and its cameras (B, 25) to the features that every driven frame shares.

        The cameras are needed where the configuration aligns the source (`base`), and ignored elsewhere (`paper`).
        """
        if self.config.generator.align:
            if source_camera is None:
                raise ConfigError("this model aligns its source: give encode() the source's camera label too")
            source = frontal_view(source, source_camera, self.config.render.half_extent)
        return self.generator.encode(source)

    def planes(self, source: SourceFeatures, expression: Tensor) -> Tensor:
        """T_beta(S) (Eq. 6): features and expressions (B, E) to tri-planes (B, 3, C, H/2, W/2).

        The features of one source serve a batch of expressions.
        """
        if source.tokens.shape[0] != expression.shape[0]:
            check_shape(source.tokens, f"1 N {source.tokens.shape[2]}", "tokens of the one source for many expressions")
            source = source.expand(expression.shape[0])
        planes: Tensor = self.generator(source, self.expression(expression))
        return planes

    def render(self, planes: Tensor, camera: Tensor, resolution: int | None = None) -> Rendered:
        """Tri-planes seen by cameras (B, 25) at `resolution` rays a side; repeatable."""
        rendered: Rendered = self.renderer(planes, camera, resolution)
        return rendered

    def frame(self, planes: Tensor, camera: Tensor) -> Tensor:
        """Tri-planes and cameras (B, 25) to final images (B, 3, H, W), clamped to [-1, 1]."""
        image: Tensor = self.superres(self.render(planes, camera).feature)
        return image.clamp(-1.0, 1.0)

    def forward(
        self,
        source: Tensor,
        expression: Tensor,
        camera: Tensor,
        source_camera: Tensor | None = None,
        generator: torch.Generator | None = None,
        resolution: int | None = None,
        superres: bool = True,
    ) -> Output:
        """Source (B, 3, H, W), driving expression (B, E) and camera (B, 25) to the driving frame.

        Args:
            source_camera: (B, 25), see `encode`.
            generator: jitters the ray samples (training).
            resolution: rays a side, for training phases that render fewer.
            superres: whether to compute the final image.
        """
        generated = self.generator.generate(self.encode(source, source_camera), self.expression(expression))
        rendered = self.renderer(self.generator.average(generated), camera, resolution, generator)
        return Output(self.superres(rendered.feature) if superres else None, rendered, generated)
