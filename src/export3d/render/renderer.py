"""The volume renderer (Sec. 3.3, Eq. 7 to 10): tri-plane and camera to a low-resolution feature image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

import export3d.render.inference as inference
from export3d.errors import ConfigError, check_shape
from export3d.image import resize
from export3d.render.compiled import compiled_pass
from export3d.render.compositing import composite
from export3d.render.decoder import PlaneDecoder
from export3d.render.planes import plane_features
from export3d.render.rays import camera_rays, ray_limits
from export3d.render.sampling import importance_depths, stratified_depths


@dataclass(frozen=True, kw_only=True)
class RenderConfig:
    """How rays are sampled and decoded.

    Attributes:
        resolution: rays along each side of the raw image (H/4 = 64 in the paper).
        coarse: stratified samples per ray.
        fine: importance samples per ray; 0: stratified samples only.
        half_extent: the tri-plane covers [-half_extent, half_extent]^3, scene units.
        reach: rays are sampled from d - reach to d + reach, where d is the camera's distance from the origin.
        hidden: width of the decoder's hidden layer.
        features: colour features per ray; the first three are RGB.
        density_gain: see `PlaneDecoder`.
    """

    resolution: int = 64
    coarse: int = 48
    fine: int = 48
    half_extent: float = 0.45
    reach: float = 0.5
    hidden: int = 64
    features: int = 32
    density_gain: float = 10.0

    def __post_init__(self) -> None:
        if self.coarse < 3 or self.fine < 0 or self.features < 3 or self.resolution < 1:
            raise ConfigError("rendering needs at least 3 coarse samples, 3 features and one ray")
        if min(self.half_extent, self.reach) <= 0:
            raise ConfigError("half_extent and reach must be positive")


@dataclass(frozen=True)
class Rendered:
    """The result of volume rendering.

    Attributes:
        feature: (B, F, R, R); the first three channels are the raw image D_raw in [-1, 1].
        depth: (B, 1, R, R) distance from the camera along the ray, scene units; the far limit where nothing is hit.
        opacity: (B, 1, R, R) in 0..1.
    """

    feature: Tensor
    depth: Tensor
    opacity: Tensor

    @property
    def raw(self) -> Tensor:
        """(B, 3, R, R) the raw rendered image."""
        return self.feature[:, :3]

    def enlarged(self, size: int) -> Rendered:
        """The same with `size` rays along each side, interpolated; itself if it has as many."""
        if self.feature.shape[-1] == size:
            return self
        return Rendered(*(resize(x, size) for x in (self.feature, self.depth, self.opacity)))


@cache
def _fused() -> Callable[..., tuple[Tensor, Tensor, Tensor]] | None:
    """The compiled pass; None where it does not run."""
    module = compiled_pass("export3d.render.fused")
    return None if module is None else module.render


class VolumeRenderer(nn.Module):
    """Differentiable volume rendering of a tri-plane, in float32 also under autocast.

    Without gradients and jitter, on a CPU, the same image takes less work: `inference`, within 2e-5.

    Attributes:
        fused: whether to use the compiled pass there: `fused`, within 1e-3, which needs Numba (extra `fast`). Without
            Numba, a warning says so once and the PyTorch path renders.
    """

    def __init__(self, config: RenderConfig, plane_channels: int) -> None:
        super().__init__()
        self.config = config
        self.fused = False
        self.decoder = PlaneDecoder(plane_channels, config.hidden, config.features, config.density_gain)

    def forward(
        self,
        planes: Tensor,
        label: Tensor,
        resolution: int | None = None,
        jitter: Tensor | None = None,
    ) -> Rendered:
        """Render planes (B, 3, C, H, W) from cameras (B, 25).

        Args:
            resolution: rays along each side; the configured number by default.
            jitter: (B,) int64 seeds that jitter each item's samples (training); None: deterministic.
        """
        c = self.config
        check_shape(label, f"{planes.shape[0]} 25", "camera label")
        size = resolution or c.resolution
        with torch.autocast(planes.device.type, enabled=False):
            planes = planes.float()
            origins, directions = camera_rays(label, size)
            near, far = ray_limits(label, c.reach)
            depths = stratified_depths(near, far, size * size, c.coarse, jitter)
            if jitter is None and self._is_inference(planes, label):
                render = (_fused() if self.fused else None) or inference.render
                rays = (origins, directions)
                feature, depth, opacity = render(planes, self.decoder, rays, depths, c.fine, c.half_extent)
            else:
                feature, depth, opacity = self._render(planes, origins, directions, depths, jitter)
            depth = depth + (1.0 - opacity) * far[:, None]
            # light that no sample absorbs comes from a black background (-1)
            feature = feature - (1.0 - opacity[..., None])
        b = planes.shape[0]
        return Rendered(
            feature.transpose(1, 2).reshape(b, -1, size, size),
            depth.reshape(b, 1, size, size),
            opacity.reshape(b, 1, size, size),
        )

    def _is_inference(self, planes: Tensor, label: Tensor) -> bool:
        """Whether `inference.render` gives the same result.

        It has no gradients and its sizes depend on the data, which a graph cannot hold. It leaves out samples that do
        not count, but a number that is not finite counts everywhere.
        """
        if torch.is_grad_enabled() or planes.device.type != "cpu" or not isinstance(self.decoder, PlaneDecoder):
            return False
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return False
        known = (planes[:1] if planes.stride(0) == 0 else planes, label, *self.decoder.parameters())
        return all(bool(torch.linalg.vector_norm(x).isfinite()) for x in known)

    def _render(
        self, planes: Tensor, origins: Tensor, directions: Tensor, depths: Tensor, jitter: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Feature (B, R, F), expected depth (B, R) and opacity (B, R) along rays (B, R, 3) from depths (B, R, S)."""
        colour, density = self._decode(planes, origins, directions, depths)
        order = None
        if self.config.fine:
            _, _, weights = composite(density.detach(), colour.detach()[..., :1], depths)
            more = importance_depths(depths, weights, self.config.fine, jitter)
            more_colour, more_density = self._decode(planes, origins, directions, more)
            depths, order = torch.cat([depths, more], dim=-1).sort(dim=-1)
            density = torch.cat([density, more_density], dim=-1).gather(-1, order)
            colour = torch.cat([colour, more_colour], dim=-2)
        feature, depth, weights = composite(density, colour, depths, order)
        return feature, depth, weights.sum(dim=-1)

    def _decode(self, planes: Tensor, origins: Tensor, directions: Tensor, depths: Tensor) -> tuple[Tensor, Tensor]:
        points = origins[:, :, None] + depths[..., None] * directions[:, :, None]
        b, r, s, _ = points.shape
        feature = plane_features(planes, points.reshape(b, r * s, 3), self.config.half_extent)
        colour, density = self.decoder(feature)
        return colour.reshape(b, r, s, -1), density.reshape(b, r, s)
