"""Export3D: the parts wired together (Fig. 1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import export3d.camera as cameras
from export3d.config import ModelConfig
from export3d.errors import ConfigError, check_shape
from export3d.expression.encoder import ExpressionEncoder
from export3d.hub import HubModel
from export3d.image import resize
from export3d.render.renderer import Rendered, VolumeRenderer
from export3d.superres import SuperResolution, Views
from export3d.triplane.align import driving_view, frontal_view, head_nearness
from export3d.triplane.generator import SourceFeatures, TriplaneGenerator


@dataclass(frozen=True)
class Planes:
    """One expression of a source, ready for any camera.

    Attributes:
        triplane: (B, 3, C, H/2, W/2).
        flow: (B, 2, H/2, W/2), see `TriplaneGenerator.generate`; None where the model has none.
        source: of the same batch.
    """

    triplane: Tensor
    flow: Tensor | None
    source: SourceFeatures


@dataclass(frozen=True)
class Output:
    """One forward pass.

    Attributes:
        image: (B, 3, H, W) the final image, about [-1, 1]; None where super-resolution was left out.
        rendered: raw image, depth and opacity at H/4.
        generated: (B, 3, C, H/2, W/2) the tri-plane before the tri-plane EMA was added.
        planes: what was rendered.
    """

    image: Tensor | None
    rendered: Rendered
    generated: Tensor
    planes: Planes

    @property
    def flow(self) -> Tensor | None:
        """(B, 2, H/2, W/2), see `TriplaneGenerator.generate`; None where the model has none."""
        return self.planes.flow


class Export3D(HubModel):
    """Source image, driving expression and camera to the driving frame.

    `encode`, `planes`, `frame` are the three steps at inference: once a source, once an expression, once a camera.
    `from_pretrained`, `save_pretrained` and `push_to_hub` are those of `HubModel`.
    """

    config: ModelConfig

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.expression = ExpressionEncoder(config.expression)
        self.generator = TriplaneGenerator(config.generator, config.expression.d)
        self.renderer = VolumeRenderer(config.render, config.generator.plane_channels)
        self.superres = SuperResolution(config.superres, config.render.features)

    @classmethod
    def from_config(cls, values: dict[str, Any]) -> Export3D:
        return cls(ModelConfig.from_dict(values))

    def encode(
        self, source: Tensor, source_camera: Tensor | None = None, source_expression: Tensor | None = None
    ) -> SourceFeatures:
        """Source (B, 3, H, W) in [-1, 1], its cameras (B, 25) and expressions (B, E) to what all driven frames share.

        The cameras are needed where the configuration aligns the source or takes detail from it, both where it has a
        flow (`base`); they are ignored elsewhere (`paper`).
        """
        settings, detail = self.config.generator, self.config.superres.detail
        if source_camera is None and (settings.align or settings.flow or detail):
            raise ConfigError(
                "this model aligns its source or takes detail from it: give encode() the source's camera label too"
            )
        pose = None
        if settings.flow:
            if source_expression is None:
                raise ConfigError("this model moves its source's features: give encode() the source's expression too")
            assert source_camera is not None
            pose = self.pose(source_camera, source_expression)
        size = self.config.image_size
        check_shape(source, f"B 3 {size} {size}", "source")
        own = (source, source_camera) if detail else (None, None)
        source = resize(source, settings.image_size)
        if settings.align:
            assert source_camera is not None
            source = frontal_view(source, source_camera, self.config.render.half_extent)
        return replace(self.generator.encode(source, pose), image=own[0], camera=own[1])

    def pose(self, source_camera: Tensor, source_expression: Tensor) -> Tensor:
        """Cameras (B, 25) and expressions (B, E) of sources to what the flow starts from, `SourceFeatures.pose`."""
        rotation = cameras.unpack(source_camera)[0][:, :3, :3].flatten(1)
        return torch.cat([self.expression(source_expression), rotation], dim=1)

    def planes(self, source: SourceFeatures, expression: Tensor, shift: Tensor | None = None) -> Planes:
        """T_beta(S) (Eq. 6): features and expressions (B, E) to tri-planes.

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
        generated, flow = self.generator.generate(source, self.expression.embed(coefficients))
        return Planes(self.generator.average(generated), flow, source)

    def render(self, planes: Planes, camera: Tensor, resolution: int | None = None) -> Rendered:
        """Tri-planes seen by cameras (B, 25) at `resolution` rays a side; repeatable."""
        rendered: Rendered = self.renderer(planes.triplane, camera, resolution)
        return rendered

    def frame(self, planes: Planes, camera: Tensor) -> Tensor:
        """Tri-planes and cameras (B, 25) to final images (B, 3, H, W), clamped to [-1, 1]."""
        return self.finish(planes, camera, self.render(planes, camera)).clamp(-1.0, 1.0)

    def finish(self, planes: Planes, camera: Tensor, rendered: Rendered) -> Tensor:
        """Super-resolution of what `render` gave for these planes and cameras, not clamped."""
        image: Tensor = self.superres(rendered.feature, self._views(planes, camera))
        return image

    def _views(self, planes: Planes, camera: Tensor) -> Views | None:
        if not self.config.superres.detail:
            return None
        image, own = planes.source.image, planes.source.camera
        if image is None or own is None:
            raise ConfigError("this model takes detail from its source: make its features by Export3D.encode()")
        half = self.config.render.half_extent
        moved, stretched = driving_view(image, own, camera, planes.flow, half)
        with torch.no_grad():
            head = torch.cat([head_nearness(label, image.shape[-1], half) for label in (camera, own)], dim=1)
        return Views(moved, stretched, image, head)

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
        planes = Planes(self.generator.average(generated), flow, features)
        rendered = self.renderer(planes.triplane, camera, resolution, generator)
        return Output(self.finish(planes, camera, rendered) if superres else None, rendered, generated, planes)
