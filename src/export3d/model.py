"""Export3D: the parts wired together (Fig. 1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from export3d.config import ModelConfig
from export3d.errors import ConfigError, check_shape
from export3d.expression.encoder import ExpressionEncoder
from export3d.image import resize
from export3d.render.renderer import Rendered, VolumeRenderer
from export3d.superres import SuperResolution
from export3d.triplane.generator import SourceFeatures, TriplaneGenerator
from export3d.warping.average_head import frontal_view, head_nearness, turned_flow
from export3d.warping.dense_motion import DenseMotion
from export3d.warping.detail import Views
from export3d.warping.elastic_mesh import show
from export3d.warping.flow_field import look, pixel_grid, stretch
from export3d.warping.flows import driving_flow, openings, plane_flow
from export3d.warping.landmark_motion import LandmarkMotion
from export3d.weights.hub import HubModel


@dataclass(frozen=True)
class Planes:
    """One expression of a source, ready for any camera.

    Attributes:
        triplane: (B, 3, C, H/2, W/2).
        flow: (B, 2, H/2, W/2), see `TriplaneGenerator.generate`; None where the model has none.
        points: (B, 478, 3) where the landmarks are, see `LandmarkMotion`; None where the model does not ask.
        source: of the same batch.
    """

    triplane: Tensor
    flow: Tensor | None
    points: Tensor | None
    source: SourceFeatures


@dataclass(frozen=True)
class Output:
    """One forward pass.

    Attributes:
        image: (B, 3, H, W) the final image, about [-1, 1]; None where super-resolution was left out.
        rendered: raw image, depth and opacity at H/4.
        generated: (B, 3, C, H/2, W/2) the tri-plane before the tri-plane EMA was added.
        planes: what was rendered.
        moved: (B, 3, H, W) the source in the driving view (`superres.Views`); None where the final image takes nothing
            from it.
    """

    image: Tensor | None
    rendered: Rendered
    generated: Tensor
    planes: Planes
    moved: Tensor | None


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
        looks = config.generator.flow or config.superres.detail
        self.motion = LandmarkMotion(config.expression.d) if looks else None
        self.dense = DenseMotion() if config.superres.dense else None
        self.generator = TriplaneGenerator(config.generator, config.expression.d)
        self.renderer = VolumeRenderer(config.render, config.generator.plane_channels)
        self.superres = SuperResolution(config.superres, config.render.features)

    @classmethod
    def from_config(cls, values: dict[str, Any]) -> Export3D:
        return cls(ModelConfig.from_dict(values))

    def encode(
        self,
        source: Tensor,
        source_camera: Tensor | None = None,
        source_expression: Tensor | None = None,
        source_landmarks: Tensor | None = None,
    ) -> SourceFeatures:
        """Sources to what all driven frames share.

        Args:
            source: (B, 3, H, W) in [-1, 1].
            source_camera: (B, 25); needed where the configuration aligns the source (`align`) or moves it.
            source_expression, source_landmarks: (B, E), and (B, 478, 2), 0..1 across the source; needed where the
                configuration moves the source (`flow`, `detail`). `base` needs all three, `paper` ignores them.
        """
        settings, half = self.config.generator, self.config.render.half_extent
        size = self.config.image_size
        check_shape(source, f"B 3 {size} {size}", "source")
        face = None
        if self.motion is not None:
            if source_camera is None or source_expression is None or source_landmarks is None:
                raise ConfigError(
                    "this model moves its source's pixels: give encode() the source's camera, expression and landmarks"
                )
            face = self.motion.face(self.expression(source_expression), source_landmarks, source_camera, half)
        seen = resize(source, settings.image_size)
        if settings.align:
            if source_camera is None:
                raise ConfigError("this model aligns its source: give encode() the source's camera label too")
            seen = frontal_view(seen, source_camera, half)
        own = (source, source_camera) if self.config.superres.detail else (None, None)
        return replace(self.generator.encode(seen), face=face, image=own[0], camera=own[1])

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
        return self._planes(source, self.expression.embed(coefficients))[0]

    def _planes(self, source: SourceFeatures, beta: Tensor) -> tuple[Planes, Tensor]:
        """Features and beta' (B, d) to tri-planes, with and without the tri-plane EMA."""
        points = field = None
        if self.motion is not None and source.face is not None:
            points = self.motion(beta, source.face)
            if self.config.generator.flow:
                grid = self.config.generator.image_size // 2
                field = plane_flow(points, source.face, self.config.render.half_extent, grid)
        generated, flow = self.generator.generate(source, beta, field)
        return Planes(self.generator.average(generated), flow, points, source), generated

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
        image, own, face = planes.source.image, planes.source.camera, planes.source.face
        if image is None or own is None or face is None or planes.points is None:
            raise ConfigError("this model takes detail from its source: make its features by Export3D.encode()")
        half = self.config.render.half_extent
        size, image = image.shape[-1], image.float()
        flow, as_face = driving_flow(planes.points, face, camera, size)
        with torch.no_grad():
            head = torch.cat([head_nearness(label, size, half) for label in (camera, own)], dim=1)
            as_head = turned_flow(own, camera, half, size)
            turned = look(image, as_head)
        if self.dense is not None:
            candidates = torch.stack([flow, as_head, as_face, torch.zeros_like(flow)], dim=1)
            flow = self.dense(image, candidates, torch.cat([stretch(flow), head], dim=1))
        places = (pixel_grid(size, flow.device) + flow + 1.0) / 2.0
        moved = show(image, places.permute(0, 2, 3, 1))
        mouth = openings(planes.points, face, camera, as_head) if self.config.superres.mouth else None
        return Views(moved, stretch(flow), flow, image, turned, head, mouth)

    def forward(
        self,
        source: Tensor,
        expression: Tensor,
        camera: Tensor,
        source_camera: Tensor | None = None,
        source_expression: Tensor | None = None,
        source_landmarks: Tensor | None = None,
        jitter: Tensor | None = None,
        resolution: int | None = None,
        superres: bool = True,
    ) -> Output:
        """Source (B, 3, H, W), driving expression (B, E) and camera (B, 25) to the driving frame.

        Args:
            source_camera, source_expression, source_landmarks: see `encode`.
            jitter: (B,) int64 seeds that jitter each item's ray samples (training).
            resolution: rays a side, for training phases that render fewer.
            superres: whether to compute the final image.
        """
        features = self.encode(source, source_camera, source_expression, source_landmarks)
        planes, generated = self._planes(features, self.expression(expression))
        rendered = self.renderer(planes.triplane, camera, resolution, jitter)
        if not superres:
            return Output(None, rendered, generated, planes, None)
        views = self._views(planes, camera)
        image = self.superres(rendered.feature, views)
        return Output(image, rendered, generated, planes, None if views is None else views.moved)
