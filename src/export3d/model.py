"""Export3D: the parts wired together (Fig. 1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import export3d.camera as cameras
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
        flow: (B, 2, H/2, W/2), see `TriplaneGenerator.generate`; None where the model has none.
    """

    image: Tensor | None
    rendered: Rendered
    generated: Tensor
    flow: Tensor | None = None


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

    def encode(
        self, source: Tensor, source_camera: Tensor | None = None, source_expression: Tensor | None = None
    ) -> SourceFeatures:
        """Source (B, 3, H, W) in [-1, 1], its cameras (B, 25) and expressions (B, E) to what all driven frames share.

        The cameras are needed where the configuration aligns the source, both where it has a flow (`base`); they are
        ignored elsewhere (`paper`).
        """
        settings = self.config.generator
        if source_camera is None and (settings.align or settings.flow):
            raise ConfigError("this model aligns its source: give encode() the source's camera label too")
        pose = None
        if settings.flow:
            if source_expression is None:
                raise ConfigError("this model moves its source's features: give encode() the source's expression too")
            assert source_camera is not None
            pose = self.pose(source_camera, source_expression)
        if settings.align:
            assert source_camera is not None
            source = frontal_view(source, source_camera, self.config.render.half_extent)
        return self.generator.encode(source, pose)

    def pose(self, source_camera: Tensor, source_expression: Tensor) -> Tensor:
        """Cameras (B, 25) and expressions (B, E) of sources to what the flow starts from, `SourceFeatures.pose`."""
        rotation = cameras.unpack(source_camera)[0][:, :3, :3].flatten(1)
        return torch.cat([self.expression(source_expression), rotation], dim=1)

    def planes(self, source: SourceFeatures, expression: Tensor, shift: Tensor | None = None) -> Tensor:
        """T_beta(S) (Eq. 6): features and expressions (B, E) to tri-planes (B, 3, C, H/2, W/2).

        The features of one source serve a batch of expressions.

        Args:
            shift: (B, n) or (1, n), added to lambda: the sliders along the basis; None leaves the expression as it is.
        """
        if source.tokens.shape[0] != expression.shape[0]:
            check_shape(source.tokens, f"1 N {source.tokens.shape[2]}", "tokens of the one source for many expressions")
            source = source.expand(expression.shape[0])
        coefficients = self.expression.coefficients(expression)
        if shift is not None:
            check_shape(shift, f"{shift.shape[0]} {coefficients.shape[1]}", "shift of lambda")
            coefficients = coefficients + shift
        planes: Tensor = self.generator(source, self.expression.embed(coefficients))
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
        source_expression: Tensor | None = None,
        generator: torch.Generator | None = None,
        resolution: int | None = None,
        superres: bool = True,
    ) -> Output:
        """Source (B, 3, H, W), driving expression (B, E) and camera (B, 25) to the driving frame.

        Args:
            source_camera, source_expression: (B, 25) and (B, E), see `encode`.
            generator: jitters the ray samples (training).
            resolution: rays a side, for training phases that render fewer.
            superres: whether to compute the final image.
        """
        features = self.encode(source, source_camera, source_expression)
        generated, flow = self.generator.generate(features, self.expression(expression))
        rendered = self.renderer(self.generator.average(generated), camera, resolution, generator)
        return Output(self.superres(rendered.feature) if superres else None, rendered, generated, flow)
