"""Rendering without gradients: the equations of `VolumeRenderer`, with less work and less memory traffic.

- Bilinear sampling and the decoder's first product are both linear. The product is done once per texel, not per sample.
- Colours are decoded only for samples with weight.
- Rays go through in blocks that stay in the processor's cache.

Letters: B batch, R rays, S samples, P points, C channels, H hidden width, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from export3d.render.compositing import interval_weights, sample_weights
from export3d.render.decoder import PlaneDecoder
from export3d.render.planes import PLANE_AXES
from export3d.render.sampling import importance_depths

BLOCK = 16384
"""Samples per block and thread: their hidden features take 4 MB at a hidden width of 64."""
NEGLIGIBLE = 1e-6
"""Samples of less weight contribute no colour."""


@dataclass(frozen=True)
class Texels:
    """Tri-planes after the decoder's first product, with a border of zeros, texel by texel.

    Attributes:
        values: (B, rows * columns * 3, H); of one tri-plane seen by many cameras (1, ...). The three planes of a texel
            are neighbours.
        rows, columns: of the planes, with one row and column of zeros before and two after them.
    """

    values: Tensor
    rows: int
    columns: int

    @classmethod
    def of(cls, planes: Tensor, weight: Tensor) -> Texels:
        """From planes (B, 3, C, rows, columns) and the product's weight (H, C).

        A batch expanded from one tri-plane is computed once.
        """
        planes = planes[:1] if planes.stride(0) == 0 else planes
        padded = F.pad(planes.permute(0, 3, 4, 1, 2), (0, 0, 0, 0, 1, 2, 1, 2))
        values = F.linear(padded, weight / 3.0)
        return cls(values.flatten(1, 3), padded.shape[1], padded.shape[2])

    def look_up(self, item: int, points: Tensor, half_extent: float) -> Tensor:
        """(3, P) world coordinates to the hidden layer before its bias (P, H)."""
        column, right = _position(points[[a for a, _ in PLANE_AXES]], half_extent, self.columns)
        row, down = _position(points[[b for _, b in PLANE_AXES]], half_extent, self.rows)
        first = row.mul_(self.columns).add_(column).mul_(3).add_(_integers([0, 1, 2])[:, None])
        places = first.t()[..., None] + _integers([0, 3, 3 * self.columns, 3 * self.columns + 3])
        both = right * down
        share = torch.empty(places.shape)
        share[..., 3] = both.t()
        share[..., 2] = down.sub(both).t()
        share[..., 1] = right.sub_(both).t()
        share[..., 0] = down.add_(right).neg_().add_(1.0).t()
        values = self.values[item if len(self.values) > 1 else 0]
        return F.embedding_bag(places.flatten(1), values, per_sample_weights=share.flatten(1), mode="sum")


def _position(at: Tensor, half_extent: float, size: int) -> tuple[Tensor, Tensor]:
    """World coordinates to the texel before them (int32) and the way from it to the next, 0 to 1; size with border."""
    inner = size - 3
    texel = at.mul(inner / 2 / half_extent).add_(inner / 2 + 0.5).clamp_(0.0, inner + 1.0)
    before = texel.to(torch.int32)
    return before, texel.sub_(before)


def _integers(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def render(
    planes: Tensor, decoder: PlaneDecoder, rays: tuple[Tensor, Tensor], depths: Tensor, fine: int, half_extent: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Feature, depth and opacity as `composite` gives them.

    Args:
        planes: (B, 3, C, rows, columns) float32 on the CPU, finite.
        rays: origins and directions (B, R, 3).
        depths: (B, R, S) stratified depths.
        fine: importance samples per ray.

    Returns:
        feature (B, R, F), expected depth (B, R) (not divided by the opacity) and opacity (B, R).
    """
    texels = Texels.of(planes, decoder.hidden.weight)
    b, r, s = depths.shape
    feature = depths.new_empty(b, r, decoder.colour.out_features)
    depth, opacity = depths.new_empty(2, b, r)
    step = max(1, BLOCK * torch.get_num_threads() // (s + fine))
    for item in range(b):
        for start in range(0, r, step):
            part = (item, slice(start, start + step))
            block = _Block(texels, item, decoder, rays[0][part], rays[1][part], half_extent)
            feature[part], depth[part], opacity[part] = block.render(depths[part], fine)
    return feature, depth, opacity


@dataclass(frozen=True)
class _Block:
    """Some rays of one camera: origins and directions (R, 3)."""

    texels: Texels
    item: int
    decoder: PlaneDecoder
    origins: Tensor
    directions: Tensor
    half_extent: float

    def render(self, depths: Tensor, fine: int) -> tuple[Tensor, Tensor, Tensor]:
        """Depths (R, S) to feature (R, F), depth (R) and opacity (R)."""
        hidden, density = self._decode(depths)
        order = None
        if fine:
            weights = interval_weights(density[None], depths[None])
            more = importance_depths(depths[None], weights, fine)[0]
            more_hidden, more_density = self._decode(more)
            depths, order = torch.cat([depths, more], dim=-1).sort(dim=-1)
            density = torch.cat([density, more_density], dim=-1).gather(-1, order)
            hidden = torch.cat([hidden, more_hidden], dim=1)
        weights = interval_weights(density[None], depths[None])[0]
        shares = sample_weights(weights, order)
        seen = shares > NEGLIGIBLE
        kept = seen.flatten().nonzero()[:, 0]
        colour = self.decoder.colour(hidden.flatten(0, 1).index_select(0, kept)).tanh_()
        count = seen.sum(dim=-1)
        feature = F.embedding_bag(
            torch.arange(len(kept)),
            colour,
            count.cumsum(0) - count,
            mode="sum",
            per_sample_weights=shares.flatten()[kept] * PlaneDecoder.COLOUR_GAIN,
        )
        depth = (weights * (depths[..., 1:] + depths[..., :-1]) / 2).sum(dim=-1)
        return feature, depth, weights.sum(dim=-1)

    def _decode(self, depths: Tensor) -> tuple[Tensor, Tensor]:
        """(R, S) depths to hidden features (R, S, H) and densities (R, S)."""
        points = self.origins.t()[..., None] + depths * self.directions.t()[..., None]
        hidden = self.texels.look_up(self.item, points.flatten(1), self.half_extent)
        hidden = F.softplus(hidden.add_(self.decoder.hidden.bias)).view(*depths.shape, -1)
        return hidden, self.decoder.density_of(hidden)
