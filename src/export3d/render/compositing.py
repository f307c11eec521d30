"""Compositing of density and colour along a ray (Eq. 9 and 10).

Letters: B batch, R rays, S samples, C channels. With alpha_i = 1 - exp(-sigma_i * delta_i), the discrete Eq. 10 is
T_i = prod_{j<i} (1 - alpha_j), and Eq. 9 becomes sum_i T_i alpha_i c_i.
"""

from __future__ import annotations

import torch
from torch import Tensor

from export3d.errors import check_shape


def ray_weights(density: Tensor, delta: Tensor) -> Tensor:
    """w_i = T_i alpha_i: the contribution of each interval to the ray's colour; weights sum to at most 1.

    Args:
        density: (B, R, S) non-negative, per scene unit.
        delta: (B, R, S) lengths of the intervals, scene units.

    Returns:
        (B, R, S).

    >>> ray_weights(torch.tensor([[[0.0, 1e9]]]), torch.ones(1, 1, 2)).tolist()
    [[[0.0, 1.0]]]
    """
    check_shape(density, "B R S", "density")
    optical = density * delta
    alpha = -torch.expm1(-optical)
    # shifted, not cumsum - optical: after a huge value the difference would lose all that came before
    before = torch.nn.functional.pad(torch.cumsum(optical, dim=-1)[..., :-1], (1, 0))
    return alpha * torch.exp(-before)


def composite(
    density: Tensor, feature: Tensor, depths: Tensor, order: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Volume rendering of samples at `depths`, with densities and features averaged per interval, as in EG3D.

    Args:
        density: (B, R, S) non-negative, per scene unit.
        feature: (B, R, S, C).
        depths: (B, R, S) ascending, scene units.
        order: (B, R, S) int64, the sample of `feature` that belongs to each depth; None: the order of `depths`.

    Returns:
        feature (B, R, C), expected depth (B, R) (not divided by the opacity) and weights (B, R, S - 1).
    """
    check_shape(depths, "B R S", "depths")
    check_shape(feature, "B R S C", "feature")
    weights = interval_weights(density, depths)
    colour = (sample_weights(weights, order)[..., None, :] @ feature)[..., 0, :]
    depth = (weights * (depths[..., 1:] + depths[..., :-1]) / 2).sum(dim=-1)
    return colour, depth, weights


def interval_weights(density: Tensor, depths: Tensor) -> Tensor:
    """(B, R, S - 1): `ray_weights` of the intervals between samples, with the mean density of their two ends."""
    return ray_weights((density[..., 1:] + density[..., :-1]) / 2, depths.diff(dim=-1))


def sample_weights(weights: Tensor, order: Tensor | None = None) -> Tensor:
    """(..., S): sum_i w_i (f_i + f_{i+1}) / 2, regrouped by sample, which avoids a tensor of midpoints.

    Args:
        weights: (..., S - 1) of the intervals.
        order: (..., S) int64, as for `composite`: the weights come in the order of the features.
    """
    half = weights / 2
    per_sample = torch.nn.functional.pad(half, (0, 1)) + torch.nn.functional.pad(half, (1, 0))
    # reorders the weights, one number per sample, not the features
    return per_sample if order is None else torch.zeros_like(per_sample).scatter(-1, order, per_sample)
