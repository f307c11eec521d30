"""Representations of expressions: raw, standardised, reduced, and through encoders, untrained or trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export3d.expression.encoder import ExpressionConfig, ExpressionEncoder
from export3d.pretrained import load_encoder, load_pretrained
from export3d.weights.file import load_weights
from export3d.weights.names import find

Array = NDArray[np.float64]
Encode = Callable[[NDArray[np.float32]], Array]
"""beta (N, E) to features (N, k)."""

COMPONENTS = 10
UNTRAINED_SEEDS = 5
MIN_DEVIATION = 0.02
"""Floor of a score's deviation, as in `ExpressionEncoder.standardise`."""


@dataclass(frozen=True)
class Representation:
    """A representation of expressions, one row of the table.

    Attributes:
        name: of the row.
        encoders: one, or several that differ only by their seed; their figures are averaged.
    """

    name: str
    encoders: tuple[Encode, ...]


def baselines(beta: NDArray[np.float32]) -> list[Representation]:
    """The representations that every encoder is compared with, fitted on training expressions (N, E).

    Raw beta; standardised beta (deviations floored at 0.02); the first ten principal components of both; LeBS as
    initialised, on standardised inputs, with five seeds.
    """
    mean, deviation = beta.mean(0), np.maximum(beta.std(0), MIN_DEVIATION)

    def standardised(x: NDArray[np.float32]) -> Array:
        return np.asarray((x - mean) / deviation, np.float64)

    def untrained(seed: int) -> Encode:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder = ExpressionEncoder(ExpressionConfig(inputs=beta.shape[1], n=COMPONENTS))
        encoder.standardise(torch.from_numpy(mean), torch.from_numpy(deviation))
        return coefficients_of(encoder)

    raw_axes, axes = _principal_axes(beta - mean), _principal_axes(standardised(beta))
    return [
        Representation("raw beta", (lambda x: x.astype(np.float64),)),
        Representation("z-scored beta", (standardised,)),
        Representation(f"PCA-{COMPONENTS} of raw beta", (lambda x: (x - mean) @ raw_axes,)),
        Representation(f"PCA-{COMPONENTS} of z-scored beta", (lambda x: standardised(x) @ axes,)),
        Representation("untrained LeBS", tuple(map(untrained, range(UNTRAINED_SEEDS)))),
    ]


def coefficients_of(encoder: ExpressionEncoder) -> Encode:
    """beta to lambda. V is orthonormal, so distances between lambdas equal those between beta' = lambda V."""

    @torch.no_grad()
    def encode(beta: NDArray[np.float32]) -> Array:
        return encoder.coefficients(torch.from_numpy(np.ascontiguousarray(beta))).double().numpy()

    return encode


def read_encoder(path: Path | str) -> ExpressionEncoder:
    """The expression encoder of a file that holds either one alone or a whole model.

    Raises:
        CheckpointError: missing, damaged, or of another kind.
    """
    path = find(path)
    if "model" in load_weights(path)[1]:
        return load_pretrained(path).expression
    return load_encoder(path)


def _principal_axes(features: NDArray[Any]) -> Array:
    """The first ten axes (E, 10), by falling variance; no figure depends on their signs."""
    values, vectors = np.linalg.eigh(np.cov(features.astype(np.float64), rowvar=False))
    return np.asarray(vectors[:, np.argsort(values)[::-1][:COMPONENTS]])
