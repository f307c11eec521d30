"""Where along a ray to look: stratified samples, then more where the first ones found density.

Letters: B batch, R rays, S samples. Depths are distances t along unit rays, scene units. Without a generator samples
sit in the middle of their bins, so that inference is repeatable; with one they are jittered (training).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from export3d.errors import check_shape


def stratified_depths(
    near: Tensor, far: Tensor, rays: int, samples: int, generator: torch.Generator | None = None
) -> Tensor:
    """One depth in each of `samples` equal bins of [near, far].

    Args:
        near, far: (B,).

    Returns:
        (B, R, S), ascending.
    """
    check_shape(near, "B", "near")
    check_shape(far, "B", "far")
    shape = (near.shape[0], rays, samples)
    bins = torch.arange(samples, device=near.device, dtype=near.dtype).expand(shape)
    offset = _offsets(shape, near, generator)
    return near[:, None, None] + (far - near)[:, None, None] * (bins + offset) / samples


def importance_depths(
    depths: Tensor, weights: Tensor, samples: int, generator: torch.Generator | None = None
) -> Tensor:
    """Depths drawn from the piecewise-constant density that compositing weights describe (inverse transform).

    Weights are first spread to neighbouring intervals (maximum of two, mean of two) and lifted by 0.01, as in EG3D, so
    that no interval is lost. No gradient flows.

    Args:
        depths: (B, R, S), ascending.
        weights: (B, R, S - 1), one an interval, non-negative.

    Returns:
        (B, R, samples), ascending.
    """
    check_shape(weights, f"B R {depths.shape[2] - 1}", "weights")
    with torch.no_grad():
        w = weights.detach().flatten(0, 1)[:, None]
        w = F.max_pool1d(w, 2, 1, padding=1)
        w = F.avg_pool1d(w, 2, 1)[:, 0].reshape(weights.shape) + 0.01
        cdf = torch.cumsum(w, dim=-1)
        cdf = torch.cat([torch.zeros_like(cdf[..., :1]), cdf / cdf[..., -1:]], dim=-1)
        shape = (*weights.shape[:2], samples)
        bins = torch.arange(samples, device=depths.device, dtype=depths.dtype).expand(shape)
        u = ((bins + _offsets(shape, depths, generator)) / samples).contiguous()
        right = torch.searchsorted(cdf, u, right=True).clamp(1, cdf.shape[-1] - 1)
        below, above = cdf.gather(-1, right - 1), cdf.gather(-1, right)
        start, end = depths.gather(-1, right - 1), depths.gather(-1, right)
        return start + (end - start) * ((u - below) / (above - below).clamp_min(1e-8)).clamp(0.0, 1.0)


def _offsets(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        return like.new_full((), 0.5)
    return torch.rand(shape, generator=generator, device=generator.device, dtype=like.dtype).to(like.device)
