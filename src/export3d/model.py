"""Export3D: the parts wired together (Fig. 1).

The model is the paper's. If the configuration has a `warp`, a `SourceWarp` is called in four places (not in the paper).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from export3d.config import ModelConfig
from export3d.errors import check_shape
from export3d.expression.encoder import ExpressionEncoder
from export3d.image import resize
from export3d.render.renderer import Rendered, VolumeRenderer
from export3d.superres import SuperResolution
from export3d.triplane.generator import SourceFeatures, TriplaneGenerator
from export3d.warping.source_warp import DetailGuide, Origin, Regions, SourceMotion, SourceView, SourceWarp
from export3d.weights.hub import HubModel
from export3d.weights.migration import migrate


@dataclass(frozen=True)
class Encoded:
    """A source, ready for any expression.

    Attributes:
        features: the generator's features of the source.
        view: what the warp needs of the source; None without a warp.
    """

    features: SourceFeatures
    view: SourceView | None

    def expand(self, batch: int) -> Encoded:
        """One source repeated for a batch of expressions, without copying."""
        return Encoded(self.features.expand(batch), None if self.view is None else self.view.expand(batch))


@dataclass(frozen=True)
class Planes:
    """One expression of a source, ready for any camera.

    Attributes:
        triplane: (B, 3, C, H/2, W/2).
        source: the encoded source, expanded to the same batch.
        motion: how the warp moves the source; None without a warp.
    """

    triplane: Tensor
    source: Encoded
    motion: SourceMotion | None

    def expand(self, batch: int) -> Planes:
        """One expression repeated for a batch of cameras, without copying."""
        motion = None if self.motion is None else self.motion.expand(batch)
        return Planes(self.triplane.expand(batch, -1, -1, -1, -1), self.source.expand(batch), motion)

    def with_shoulders(self, shoulders: Tensor) -> Planes:
        """The same with what is known of the driving shoulders (B, 5), see `SourceMotion`; nothing without a warp."""
        return self if self.motion is None else replace(self, motion=replace(self.motion, shoulders=shoulders))


@dataclass(frozen=True)
class Output:
    """One forward pass.

    Attributes:
        image: (B, 3, H, W) the final image, about [-1, 1]; None if super-resolution was skipped.
        rendered: raw image, depth and opacity at H/4.
        generated: (B, 3, C, H/2, W/2) the tri-plane before the tri-plane EMA was added.
        planes: the tri-plane that was rendered.
        warped: (B, 3, H, W) the source moved into the driving view; None without a warp that shows it.
        offset: (B, 2, H, W) the flow that moved it (`detail.Views`); None likewise.
    """

    image: Tensor | None
    rendered: Rendered
    generated: Tensor
    planes: Planes
    warped: Tensor | None
    offset: Tensor | None


class Export3D(HubModel):
    """Maps a source image, a driving expression and a camera to the driving frame.

    At inference there are three steps: `encode` once per source, `planes` once per expression, `frame` once per camera.
    `from_pretrained`, `save_pretrained` and `push_to_hub` come from `HubModel`.
    """

    config: ModelConfig

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.expression = ExpressionEncoder(config.expression)
        self.generator = TriplaneGenerator(config.generator, config.expression.d)
        self.renderer = VolumeRenderer(config.render, config.generator.plane_channels)
        self.superres = SuperResolution(config.superres, config.render.features)
        self.warp: SourceWarp | None = None
        if config.warp is not None:
            widths = (config.render.features, config.superres.mid_channels, config.superres.high_channels)
            self.warp = SourceWarp(
                config.warp,
                config.expression.d,
                (config.expression.inputs, config.expression.latent),
                config.render.half_extent,
                config.generator.side_widths,
                widths,
            )

    @property
    def moves_pixels(self) -> bool:
        """Whether final images mix in the source's pixels, so that larger frames can look them up in a photo."""
        return self.warp is not None and self.warp.detail is not None

    @classmethod
    def from_config(cls, values: dict[str, Any]) -> Export3D:
        return cls(ModelConfig.from_dict(values))

    @classmethod
    def migrated(
        cls, values: dict[str, Any], tensors: Mapping[str, Tensor]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return migrate(values, tensors)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """`torch.compile` of the costly parts, each of which is one graph; the rest of the module is not.

        The warp's elastic mesh stays in PyTorch: it is many small steps.
        """
        self.generator.generate = torch.compile(self.generator.generate, *args, **kwargs)  # type: ignore[method-assign]
        for part in (self.renderer, self.superres, None if self.warp is None else self.warp.dense):
            if part is not None:
                part.compile(*args, **kwargs)

    def encode(
        self,
        source: Tensor,
        source_camera: Tensor | None = None,
        source_expression: Tensor | None = None,
        source_landmarks: Tensor | None = None,
        source_matte: Tensor | None = None,
    ) -> Encoded:
        """Encode sources; all driven frames of a source share the result.

        Args:
            source: (B, 3, H, W) in [-1, 1].
            source_camera, source_expression, source_landmarks: (B, 25), (B, E), and (B, 478, 2), 0..1 across the
                source. Only the warp uses them: `base` needs all three, `paper` ignores them.
            source_matte: (B, 1, H, W), see `photo.matte.crop_mattes`; `base` needs it too.

        Raises:
            ConfigError: an input that the warp needs is missing.
        """
        size = self.config.image_size
        check_shape(source, f"B 3 {size} {size}", "source")
        seen, view = resize(source, self.config.generator.image_size), None
        if self.warp is not None:
            own = None
            if source_expression is not None and self.warp.motion is not None:
                own = self.warp.motion.input(self.expression(source_expression), source_expression)
            view = self.warp.view(source, source_camera, own, source_landmarks, source_matte)
            seen = self.warp.frontal(seen, source_camera)
        return Encoded(self.generator.encode(seen), view)

    def planes(
        self, source: Encoded, expression: Tensor, shift: Tensor | None = None, regions: Regions | None = None
    ) -> Planes:
        """T_beta(S) (Eq. 6): encoded sources and expressions (B, E) to tri-planes.

        A single source is used for all B expressions.

        Args:
            shift: (B, n) or (1, n), added to lambda (sliders along the basis); None: no shift.
            regions: how parts of the source's face move on their own (`animate.eyelids`); only the warp uses them.
        """
        tokens = source.features.tokens
        if tokens.shape[0] != expression.shape[0]:
            check_shape(tokens, f"1 N {tokens.shape[2]}", "tokens of one source for several expressions")
            source = source.expand(expression.shape[0])
        coefficients = self.expression.coefficients(expression)
        if shift is not None:
            check_shape(shift, f"{shift.shape[0]} {coefficients.shape[1]}", "shift of lambda")
            coefficients = coefficients + shift
        return self._planes(source, self.expression.embed(coefficients), expression, shift, regions)[0]

    def _planes(
        self,
        source: Encoded,
        beta: Tensor,
        expression: Tensor,
        shift: Tensor | None = None,
        regions: Regions | None = None,
    ) -> tuple[Planes, Tensor]:
        """Features, beta' (B, d) and what it was made of to tri-planes, with and without the tri-plane EMA."""
        motion = None
        if self.warp is not None and source.view is not None:
            asked = beta if self.warp.motion is None else self.warp.motion.input(beta, expression, shift)
            motion = self.warp.move(asked, source.view, source.features.stem, regions)
        generated = self.generator.generate(source.features, beta, None if motion is None else motion.walk)
        return Planes(self.generator.average(generated), source, motion), generated

    def render(self, planes: Planes, camera: Tensor, resolution: int | None = None) -> Rendered:
        """Render tri-planes from cameras (B, 25) with `resolution` rays per side; deterministic."""
        rendered: Rendered = self.renderer(planes.triplane, camera, resolution)
        return rendered

    def frame(self, planes: Planes, camera: Tensor) -> Tensor:
        """Tri-planes and cameras (B, 25) to final images (B, 3, H, W), clamped to [-1, 1]."""
        return self.frame_and_share(planes, camera)[0]

    def frame_and_share(self, planes: Planes, camera: Tensor) -> tuple[Tensor, Tensor]:
        """As `frame`, with the share (B, 1, H, W) of the rendered image in each pixel.

        It is 0 to 1; without a warp that adds the source's pixels it is 1.
        """
        image, guide = self._finish(planes, camera, self.render(planes, camera))
        share = None if guide is None else guide.share
        return image.clamp(-1.0, 1.0), torch.ones_like(image[:, :1]) if share is None else share[:, :1]

    def frame_and_origin(
        self, planes: Planes, camera: Tensor, rendered: Rendered | None = None
    ) -> tuple[Tensor, Origin | None]:
        """As `frame`, with the place of each pixel in the source; None without a warp that adds the source's pixels.

        `rendered` is the output of `render` for these planes and cameras, if it is there already.
        """
        image, guide = self._finish(planes, camera, rendered or self.render(planes, camera))
        return image.clamp(-1.0, 1.0), None if guide is None else guide.origin

    def finish(self, planes: Planes, camera: Tensor, rendered: Rendered) -> Tensor:
        """Super-resolution of the output of `render` for these planes and cameras, not clamped."""
        return self._finish(planes, camera, rendered)[0]

    def _finish(self, planes: Planes, camera: Tensor, rendered: Rendered) -> tuple[Tensor, DetailGuide | None]:
        """The final image, and what led it to the source's pixels; None without a warp that adds them."""
        guide = None
        if self.warp is not None and planes.source.view is not None and planes.motion is not None:
            guide = self.warp.guide(planes.source.view, planes.motion, camera, rendered.feature)
        image: Tensor = self.superres(rendered.feature, guide)
        return image, guide

    def forward(
        self,
        source: Tensor,
        expression: Tensor,
        camera: Tensor,
        source_camera: Tensor | None = None,
        source_expression: Tensor | None = None,
        source_landmarks: Tensor | None = None,
        source_matte: Tensor | None = None,
        jitter: Tensor | None = None,
        resolution: int | None = None,
        superres: bool = True,
        shoulders: Tensor | None = None,
    ) -> Output:
        """Source (B, 3, H, W), driving expression (B, E) and camera (B, 25) to the driving frame.

        Args:
            source_camera, source_expression, source_landmarks, source_matte: see `encode`.
            jitter: (B,) int64 seeds that jitter each item's ray samples (training).
            resolution: rays per side, for training phases that render fewer.
            superres: whether to compute the final image.
            shoulders: (B, 5), see `Planes.with_shoulders`.
        """
        encoded = self.encode(source, source_camera, source_expression, source_landmarks, source_matte)
        planes, generated = self._planes(encoded, self.expression(expression), expression)
        planes = planes if shoulders is None else planes.with_shoulders(shoulders)
        rendered = self.renderer(planes.triplane, camera, resolution, jitter)
        image, guide = self._finish(planes, camera, rendered) if superres else (None, None)
        moved, offset = (None, None) if guide is None else (guide.views.moved, guide.views.offset)
        return Output(image, rendered, generated, planes, moved, offset)
