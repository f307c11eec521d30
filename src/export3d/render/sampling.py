"""Sample depths along rays: stratified samples, then importance samples where those found density.

Letters: B batch, R rays, S samples. Depths are distances t along unit rays, scene units. Without seeds, samples lie at
the centres of their bins and inference is deterministic; with seeds they are jittered (training). Each item of a batch
has its own seed, and its jitter depends only on the seed, the ray and the sample: it is the same on every device and
however a batch is split into parts or over processes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from export3d.errors import check_shape

_WORD = 0xFFFFFFFF


def stratified_depths(near: Tensor, far: Tensor, rays: int, samples: int, seeds: Tensor | None = None) -> Tensor:
    """One depth in each of `samples` equal bins of [near, far].

    Args:
        near, far: (B,).
        seeds: (B,) int64 seeds of the jitter; None: bin centres.

    Returns:
        (B, R, S), ascending.
    """
    check_shape(near, "B", "near")
    check_shape(far, "B", "far")
    shape = (near.shape[0], rays, samples)
    bins = torch.arange(samples, device=near.device, dtype=near.dtype).expand(shape)
    offset = _offsets(shape, near, seeds, stream=0)
    return near[:, None, None] + (far - near)[:, None, None] * (bins + offset) / samples


def importance_depths(depths: Tensor, weights: Tensor, samples: int, seeds: Tensor | None = None) -> Tensor:
    """Depths sampled from the piecewise-constant density given by compositing weights (inverse transform sampling).

    Weights are first spread to neighbouring intervals (maximum of two, then mean of two) and increased by 0.01, as in
    EG3D, so that every interval can get samples. No gradient flows.

    Args:
        depths: (B, R, S), ascending.
        weights: (B, R, S - 1), one per interval, non-negative.
        seeds: (B,) int64 seeds of the jitter; None: no jitter.

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
        u = ((bins + _offsets(shape, depths, seeds, stream=1)) / samples).contiguous()
        right = torch.searchsorted(cdf, u, right=True).clamp(1, cdf.shape[-1] - 1)
        below, above = cdf.gather(-1, right - 1), cdf.gather(-1, right)
        start, end = depths.gather(-1, right - 1), depths.gather(-1, right)
        return start + (end - start) * ((u - below) / (above - below).clamp_min(1e-8)).clamp(0.0, 1.0)


def _offsets(shape: tuple[int, int, int], like: Tensor, seeds: Tensor | None, stream: int) -> Tensor:
    """Positions within the bins, in [0, 1), of the given shape (B, R, S); 0.5 without seeds."""
    if seeds is None:
        return like.new_full((), 0.5)
    check_shape(seeds, f"{shape[0]}", "seeds")
    start = _scrambled((2 * seeds + stream) & _WORD)
    count = torch.arange(shape[1] * shape[2], device=seeds.device)
    words = _scrambled((start[:, None] + count) & _WORD)
    return (words >> 8).to(like).mul_(2.0**-24).view(shape)


def _scrambled(words: Tensor) -> Tensor:
    """A 32-bit integer hash of int64 values from 0 to 2^32 - 1; does not modify its input.

    Constants by C. Wellons (Hash Prospector), found by a search for the two-round hash in which flipping any input bit
    flips each output bit as close to half the time as possible. Both factors are below 2^31: no product overflows.
    """
    x = words ^ (words >> 16)
    x = x.mul_(0x21F0AAAD).bitwise_and_(_WORD)
    x = x.bitwise_xor_(x >> 15)
    x = x.mul_(0x735A2D97).bitwise_and_(_WORD)
    return x.bitwise_xor_(x >> 15)
