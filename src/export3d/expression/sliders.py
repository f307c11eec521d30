"""Sliders along the learned basis: an amount per direction becomes a shift of lambda (Eq. 3)."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from export3d.errors import ConfigError
from export3d.expression.encoder import ExpressionEncoder

log = logging.getLogger(__name__)

Array = NDArray[np.floating]

FAR = 3.0
"""A slider may reach this multiple of its natural range, about its middle, without a warning."""
MOST = 1e6
"""Largest absolute amount of a slider."""


def coefficients(encoder: ExpressionEncoder, expression: ArrayLike) -> Array:
    """lambda (n,) float32 of an expression (E,): its position on every slider.

    Raises `ConfigError` for weights without a basis (variant `direct_3dmm`).
    """
    if encoder.basis is None:
        raise ConfigError(
            "these weights have no expression basis, hence no sliders; use others, such as the packaged ones"
        )
    beta = torch.tensor(np.asarray(expression), dtype=torch.float32, device=encoder.mean.device)
    with torch.inference_mode():
        found: Array = encoder.coefficients(beta[None])[0].cpu().numpy()
    return found


def natural_range(encoder: ExpressionEncoder) -> Array:
    """(n, 2) float32: 5th and 95th percentiles of each lambda over the training data; zeros if never measured."""
    bounds: Array = torch.stack([encoder.low, encoder.high], dim=1).cpu().numpy()
    return bounds


def check_limits(low: float, high: float) -> None:
    """Raise `ConfigError` unless lambda can run from `low` to `high`, which may be below it."""
    if not (abs(low) <= MOST and abs(high) <= MOST and low != high):  # also refuses NaN
        raise ConfigError(f"lambda cannot run from {low:g} to {high:g}; give two different numbers within -1e6 and 1e6")


def shift(encoder: ExpressionEncoder, expression: ArrayLike, basis: Mapping[int, float]) -> Array:
    """The shift of lambda that the sliders make, (n,) float32.

    Args:
        encoder: with a basis.
        expression: (E,) to be shifted; a warning is logged if it ends beyond three times a natural range.
        basis: amounts by direction number, from 1.

    Raises:
        ConfigError: no such direction, an amount that is not between -1e6 and 1e6, or weights without a basis.
    """
    own, bounds = coefficients(encoder, expression), natural_range(encoder)
    out = np.zeros_like(own)
    for number, amount in basis.items():
        if not 1 <= number <= len(own):
            raise ConfigError(f"there is no direction {number}; the directions of these weights are 1 to {len(own)}")
        if not abs(amount) <= MOST:  # also refuses NaN
            raise ConfigError(f"direction {number} cannot move by {amount:g}; give a number between -1e6 and 1e6")
        out[number - 1] = amount
        (low, high), reached = bounds[number - 1], own[number - 1] + amount
        if low < high and abs(reached - (low + high) / 2) > FAR * (high - low) / 2:
            natural = f"its natural range of {low:+.2f} to {high:+.2f}"
            log.warning("v%d goes to %+.2f, far beyond %s; the image may break down", number, reached, natural)
    return out
