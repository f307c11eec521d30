"""Directions of the sliders: their axes, order, signs, scale and natural ranges.

The contrastive objective depends on beta' alone, and beta' = sum_i lambda_i v_i does not change if lambda and the v_i
are rotated together. The axes of the subspace are therefore free. Varimax chooses axes along which few scores change at
once. They are ordered by decreasing variance, and each points where the score with the largest loading rises, so that a
slider means the same after every training.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export3d.errors import ConfigError, TrainingError, check_shape
from export3d.expression.encoder import ExpressionEncoder

Array = NDArray[np.float64]


def loadings(encoder: ExpressionEncoder, expression: Tensor) -> Array:
    """Covariances (E, n) of standardised scores and lambda over the expressions (N, E)."""
    with torch.no_grad():
        coefficients = encoder.coefficients(expression).double().numpy()
    scores = ((expression - encoder.mean) / encoder.deviation).double().numpy()
    scores, coefficients = scores - scores.mean(0), coefficients - coefficients.mean(0)
    covariance: Array = scores.T @ coefficients / len(scores)
    return covariance


def settle(encoder: ExpressionEncoder, expression: Tensor) -> None:
    """Choose the axes, order, signs and scale of the directions and measure their natural ranges, in place.

    beta' changes only by a scalar factor, which its cosines ignore: afterwards the standard deviations of lambda have
    a root mean square of 1 over the directions.

    Args:
        encoder: on the CPU, with a basis.
        expression: (N, E) coefficients of the training data.

    Raises:
        ConfigError: the encoder has no basis.  TrainingError: it gives the same output for every expression.
    """
    if encoder.basis is None:
        raise ConfigError("an encoder without a basis has no directions to settle")
    check_shape(expression, f"N {encoder.config.inputs}", "expression")
    rotation = varimax(loadings(encoder, expression))
    with torch.no_grad():
        coefficients = encoder.coefficients(expression).double().numpy() @ rotation
    order = np.argsort(-_deviations(coefficients), kind="stable")
    rotation = rotation[:, order]
    together = loadings(encoder, expression) @ rotation
    strongest = np.take_along_axis(together, np.abs(together).argmax(0)[None], axis=0)[0]
    turn = torch.from_numpy(rotation * np.where(strongest < 0, -1.0, 1.0)).float()
    scale = float(np.sqrt(coefficients.var(0).mean()))
    with torch.no_grad():
        basis = turn.T @ encoder.basis()
        encoder.second.weight.copy_(turn.T @ encoder.second.weight / scale)
        encoder.second.bias.copy_(turn.T @ encoder.second.bias / scale)
        encoder.basis.weight.copy_(basis.T)
    measure_ranges(encoder, expression)


@torch.no_grad()
def measure_ranges(encoder: ExpressionEncoder, expression: Tensor) -> None:
    """Set `low` and `high` to the 5th and 95th percentiles of lambda over the expressions (N, E).

    Raises:
        TrainingError: the encoder gives the same output for every expression.
    """
    coefficients = encoder.coefficients(expression).double().numpy()
    _deviations(coefficients)
    low, high = np.percentile(coefficients, [5.0, 95.0], axis=0)
    encoder.low.copy_(torch.from_numpy(low))
    encoder.high.copy_(torch.from_numpy(high))


def _deviations(coefficients: Array) -> Array:
    """Standard deviations (n,) of lambda (N, n); raises `TrainingError` if lambda is constant."""
    deviations: Array = coefficients.std(0)
    if not deviations.max() > 1e-6:
        raise TrainingError(
            "the expression encoder has collapsed: every frame gives the same output; change its training"
        )
    return deviations


def varimax(loading: Array, steps: int = 100) -> Array:
    """The rotation (n, n) that makes the columns of `loading` (E, n) sparse (Kaiser 1958), by SVD iterations."""
    rotation, last = np.eye(loading.shape[1]), 0.0
    for _ in range(steps):
        turned = loading @ rotation
        u, s, vt = np.linalg.svd(loading.T @ (turned**3 - turned * (turned**2).mean(0)))
        rotation = u @ vt
        if s.sum() < last * (1.0 + 1e-10):
            break
        last = s.sum()
    return np.asarray(rotation)
