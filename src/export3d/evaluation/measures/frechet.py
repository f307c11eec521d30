"""Fréchet distance between all driven frames of a split and the true ones (Heusel et al. 2017).

Images become feature vectors; Gaussians fitted to both sets are compared. FID uses an Inception network, which is not
packaged. Here the features come from a named backbone: the values are not FIDs, and they compare only with values of
the same backbone and about as many images:

- `dlib`: the packaged identity descriptor, 128 numbers of unit length: identity, and whether images look like faces.
- `alex`, `squeeze`, `vgg16`: the last activation of an LPIPS backbone, averaged over positions (256, 512 and 512
  numbers): whether images look natural, including the background.

Few images inflate the distance (`frechet_distance`), so every method must be given the same frames.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export3d.errors import ConfigError, MissingExtra, ShapeError, check_shape
from export3d.evaluation.measures.image import Measure
from export3d.face.identity import PACKAGED, DlibIdentity
from export3d.perceptual import BACKBONES, Perceptual, load_perceptual

Matrix = NDArray[np.float64]

MOST_OF_A_CLIP = 32
"""Most frames per clip; more neighbours add nothing."""
_BATCH = 8


class FrechetFeatures:
    """Features of an image for the Fréchet distance.

    Args:
        name: of the backbone.
        description: network and file, for the report.
        network: its last activation describes an image. None if the identity descriptor does, which is taken from the
            readings of `measures.face` at no extra cost.
    """

    def __init__(self, name: str, description: str, network: Perceptual | None = None) -> None:
        self.name = name
        self.description = description
        self._network = network

    @property
    def measure(self) -> Measure:
        """The distance as a measure."""
        what = f"Fréchet distance to the true frames, at most {MOST_OF_A_CLIP} of a clip; {self.description}"
        digits = 4 if self._network is None else 2
        return Measure(f"frechet_{self.name}", f"Fréchet {self.name}", False, digits, what)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Describe images.

        Args:
            images: (B, 3, H, W) in [-1, 1].

        Returns:
            (B, D) float32.

        Raises:
            ConfigError: the features are those of a face, not of an image.
        """
        check_shape(images, "B 3 H W", "images")
        if self._network is None:
            raise ConfigError(
                f"the Fréchet distance of {self.name} is made of identity vectors; name {self.name} among the identity "
                "descriptors, or another backbone"
            )
        parts = torch.split(images, _BATCH)
        return torch.cat([self._network.responses(part)[-1].mean(dim=(2, 3)) for part in parts])


def load_features(
    name: str = PACKAGED, file: Path | None = None, device: torch.device | str = "cpu"
) -> FrechetFeatures:
    """Features by the name of their backbone.

    Args:
        name: `dlib`, `alex`, `squeeze` or `vgg16`.
        file: weights of the backbone (not of dlib); by default torchvision's ImageNet weights.
        device: where to compute.

    Raises:
        ConfigError: an unknown name, or no file and no torchvision.
        CheckpointError: the file is missing or holds something else.
    """
    if name == PACKAGED:
        return FrechetFeatures(name, DlibIdentity.description)
    if name not in BACKBONES:
        known = ", ".join((PACKAGED, *BACKBONES))
        raise ConfigError(f"unknown backbone {name!r} of the Fréchet distance; choose one of {known}")
    try:
        network = load_perceptual(name, file).to(device)
    except MissingExtra as error:
        raise ConfigError(
            f"the Fréchet distance needs the weights of its backbone {name}: name their file (--backbone-file), "
            f"install torchvision, or take the packaged backbone {PACKAGED}"
        ) from error
    origin = "torchvision ImageNet weights" if file is None else f"file {Path(file).name}"
    return FrechetFeatures(name, f"last activation of {name} ({origin}), mean over positions", network)


def sample_rows(count: int, most: int = MOST_OF_A_CLIP) -> NDArray[np.int64]:
    """Numbers of the driven frames that count: `most` of `count`, evenly spaced, with the first and the last.

    >>> sample_rows(10, 4).tolist(), sample_rows(3).tolist(), sample_rows(0).tolist()
    ([0, 3, 6, 9], [0, 1, 2], [])

    Raises:
        ConfigError: a negative count, or `most` below 1.
    """
    if count < 0 or most < 1:
        raise ConfigError(f"cannot take {most} of {count} frames; at least 1 must be wanted")
    if most == 1:
        return np.arange(min(count, 1))
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)


class Moments:
    """Mean and covariance of vectors that arrive in parts and are not kept, in float64.

    Each part's mean and scatter are merged with those so far (Chan et al. 1983). The mean is subtracted before
    squaring, so a large mean costs no precision, and the order of the parts affects rounding only.

    Args:
        length: D.

    Attributes:
        count: vectors so far.
        mean: (D,); zeros before the first.
    """

    def __init__(self, length: int) -> None:
        self.count = 0
        self.mean: Matrix = np.zeros(length)
        self._scatter: Matrix = np.zeros((length, length))

    def add(self, features: Tensor | NDArray[np.floating[Any]]) -> None:
        """The next (B, D) vectors.

        Raises:
            ShapeError: another length, or values that are not finite.
        """
        rows = features.detach().cpu().numpy() if isinstance(features, Tensor) else np.asarray(features)
        check_shape(rows, f"B {len(self.mean)}", "features")
        rows = rows.astype(np.float64)
        if not np.isfinite(rows).all():
            raise ShapeError("features must be finite; leave out images that could not be described")
        if len(rows):
            mean = rows.mean(axis=0)
            centred = rows - mean
            self._merge(len(rows), mean, centred.T @ centred)

    def merge(self, other: Moments) -> None:
        """Add all vectors of another set of the same length, which stays as it is.

        Raises:
            ShapeError: another length.
        """
        check_shape(other.mean, f"{len(self.mean)}", "the other mean")
        if other.count:
            self._merge(other.count, other.mean, other._scatter)

    @property
    def covariance(self) -> Matrix:
        """(D, D) unbiased covariance (divided by count - 1); NaN for fewer than two vectors."""
        return self._scatter / (self.count - 1) if self.count > 1 else np.full_like(self._scatter, np.nan)

    def _merge(self, count: int, mean: Matrix, scatter: Matrix) -> None:
        total = self.count + count
        away = mean - self.mean
        self._scatter = self._scatter + scatter + np.outer(away, away) * (self.count * count / total)
        self.mean = self.mean + away * (count / total)
        self.count = total


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of the Gaussians with these moments (Dowson & Landau 1982).

    The trace of the root is the sum of the singular values of C_a^(1/2) C_b^(1/2), with roots from eigendecompositions.
    This is exact for singular covariances too, as with fewer vectors than dimensions.

    The value is squared, in the features' units, and biased upwards by about one over the number of vectors. Samples of
    one distribution, fitted to 512 frames of 16 clips, are 0.0148 (dlib) and 0.82 (alex) apart with 128 vectors each,
    0.0035 and 0.20 with 512, 0.0010 and 0.05 with 2,048; a blur of 1 pixel moves those frames by 0.0048 and 2.48
    (`python benchmarks/frechet_bias.py`). Predictions and true frames share much of that bias.

    Returns:
        At least 0; 0 up to rounding for equal moments. NaN if either side has fewer than two vectors.

    Raises:
        ShapeError: vectors of different lengths.
    """
    check_shape(b.mean, f"{len(a.mean)}", "the other mean")
    if min(a.count, b.count) < 2:
        return math.nan
    ca, cb = a.covariance, b.covariance
    root = np.linalg.svd(_half(ca).T @ _half(cb), compute_uv=False).sum()
    away = a.mean - b.mean
    return float(max(away @ away + np.trace(ca) + np.trace(cb) - 2.0 * root, 0.0))


def _half(covariance: Matrix) -> Matrix:
    """H with H H^T = covariance, from its eigenvectors; eigenvalues within rounding of zero count as zero."""
    values, vectors = np.linalg.eigh(covariance)
    rounding = np.finfo(np.float64).eps * len(values) * values.max(initial=0.0)
    return np.asarray(vectors * np.sqrt(np.where(values > rounding, values, 0.0)))
