"""Distances of an image from its target: PSNR, SSIM, LPIPS.

All take images (B, 3, H, W), RGB in [-1, 1], and return one number per pair (B,). Published scripts differ in window,
channels and value range, so each definition is spelled out and checked against scikit-image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from export3d.errors import ConfigError, MissingExtra, ShapeError, check_shape
from export3d.perceptual import Perceptual, load_perceptual

SSIM_WINDOW = 11
SSIM_SIGMA_PX = 1.5
_K1, _K2 = 0.01, 0.03


def psnr(image: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio: 10 log10(1 / MSE) of images in [0, 1], averaged over all pixels and channels.

    Args:
        image, target: (B, 3, H, W) in [-1, 1].

    Returns:
        (B,) float64, dB, higher is better; `inf` for equal images.

    >>> black = -torch.ones(1, 3, 8, 8)
    >>> psnr(black, black).item(), psnr(black, black + 0.2).item()
    (inf, 20.0...)
    """
    _check_pair(image, target)
    error = (image.double() - target.double()).square().mean(dim=(1, 2, 3)) / 4.0
    return -10.0 * error.log10()


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004, Eq. 13), averaged over positions and RGB channels.

    SSIM = (2 mx my + c1) (2 sxy + c2) / ((mx^2 + my^2 + c1) (sx^2 + sy^2 + c2)) with means m, population variances and
    covariance s under a Gaussian window of 11 x 11 pixels and sigma 1.5, c1 = 0.01^2, c2 = 0.03^2 (data range 1). Only
    windows inside the image count. Equal to scikit-image's `structural_similarity` with
    `gaussian_weights=True, use_sample_covariance=False, data_range=1, channel_axis`.

    Args:
        image, target: (B, 3, H, W) in [-1, 1], H and W at least 11.

    Returns:
        (B,) float32, at most 1 (equal images), higher is better.
    """
    _check_pair(image, target)
    if min(image.shape[-2:]) < SSIM_WINDOW:
        raise ShapeError(f"SSIM needs images of at least {SSIM_WINDOW} px, got {tuple(image.shape[-2:])}")
    with torch.autocast(image.device.type, enabled=False):
        # Grey is 0 here: variances are unaffected, and squares of small numbers lose less to rounding.
        x, y = image.float() / 2.0, target.float() / 2.0
        maps = torch.stack([x, y, x * x, y * y, x * y], dim=1)
        mx, my, xx, yy, xy = _window_means(maps).unbind(dim=1)
        variances, covariance = (xx - mx * mx) + (yy - my * my), xy - mx * my
        ux, uy = mx + 0.5, my + 0.5
        c1, c2 = _K1**2, _K2**2
        similarity = ((2 * ux * uy + c1) * (2 * covariance + c2)) / ((ux * ux + uy * uy + c1) * (variances + c2))
        return similarity.mean(dim=(1, 2, 3))


@dataclass(frozen=True)
class Measure:
    """A measure of a clip, and its format in tables.

    Attributes:
        name: key in reports.
        title: column title, with unit.
        higher_is_better: the better direction; None for a ratio whose ideal is 1.
        digits: after the decimal point.
        definition: one line for the report: window, range, networks.
    """

    name: str
    title: str
    higher_is_better: bool | None
    digits: int
    definition: str


@dataclass(frozen=True)
class Metric(Measure):
    """A measure that compares an image with its target.

    Attributes:
        score: images and targets (B, 3, H, W) in [-1, 1] to (B,).
        prepare: targets to a function that scores images against them, if part of the work depends on targets alone.
    """

    score: Callable[[Tensor, Tensor], Tensor]
    prepare: Callable[[Tensor], Callable[[Tensor], Tensor]] | None = None

    def against(self, target: Tensor) -> Callable[[Tensor], Tensor]:
        """A function that scores images (B, 3, H, W) against these targets; for several methods on the same frames."""
        return (lambda image: self.score(image, target)) if self.prepare is None else self.prepare(target)


PSNR = Metric("psnr", "PSNR (dB)", True, 2, "10 log10(1 / MSE), RGB in [0, 1]", psnr)
SSIM = Metric(
    "ssim", "SSIM", True, 4, "Gaussian window 11 x 11, sigma 1.5, data range 1, mean of RGB, inner region", ssim
)

PSNR_256 = Measure(
    "psnr_256",
    "PSNR at 256 (dB)",
    True,
    2,
    "PSNR of the frame reduced to 256 px (antialiased bicubic) and the prepared true frame; enlarged frames are scored "
    "as they were rendered, at 256 px",
)
"""At other sizes only."""


def lpips(
    backbone: str = "alex",
    features: Path | None = None,
    heads: Path | None = None,
    device: torch.device | str = "cpu",
) -> Metric:
    """The LPIPS distance (Zhang et al. 2018, Eq. 1; `export3d.perceptual`) as a metric, lower is better, 0 if equal.

    Its numbers are comparable to published ones only with the backbone's learned v0.1 heads; without them (uniform
    weights) the metric is called `lpips_uniform`.

    Args:
        backbone: `alex` (what most papers report), `squeeze` or `vgg16`.
        features: the backbone's weight file; by default torchvision's ImageNet weights.
        heads: the linear heads' weight file.
        device: where to compute.

    Raises:
        CheckpointError: a file is missing or holds something else.
        ConfigError: an unknown backbone, or no file for it and no torchvision.
    """
    try:
        network: Perceptual = load_perceptual(backbone, features, heads).to(device)
    except MissingExtra as error:
        raise ConfigError(
            f"LPIPS needs the weights of its backbone {backbone}: name their file (--backbone-file), "
            "install torchvision, or leave LPIPS out (--backbone none)"
        ) from error
    origin = "torchvision ImageNet weights" if features is None else f"file {Path(features).name}"
    weights = "uniform weights 1/C" if heads is None else f"LPIPS heads {Path(heads).name}"
    name, title = ("lpips", "LPIPS") if heads is not None else ("lpips_uniform", "LPIPS (uniform)")

    def prepare(target: Tensor) -> Callable[[Tensor], Tensor]:
        theirs = network.activations(target)
        return lambda image: network.distance(network.activations(image), theirs)

    return Metric(name, title, False, 4, f"backbone {backbone} ({origin}), {weights}", network, prepare)


def _window_means(maps: Tensor) -> Tensor:
    """Gaussian-weighted means of (B, M, 3, H, W) over every window inside, (B, M, 3, H - 10, W - 10)."""
    # Two matrix products are several times faster on a CPU than a single-channel convolution.
    return _window_matrix(maps.shape[-2], maps.device) @ maps @ _window_matrix(maps.shape[-1], maps.device).mT


def _window_matrix(size: int, device: torch.device) -> Tensor:
    """(size - 10, size): row i holds the window that starts at pixel i."""
    at = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    window = torch.exp(-0.5 * (at / SSIM_SIGMA_PX).square())
    matrix = torch.zeros(size - SSIM_WINDOW + 1, size, dtype=torch.float64)
    for offset, weight in enumerate(window / window.sum()):
        matrix.diagonal(offset)[:] = weight
    return matrix.to(device, torch.float32)


def _check_pair(image: Tensor, target: Tensor) -> None:
    check_shape(image, "B 3 H W", "image")
    check_shape(target, f"{image.shape[0]} 3 {image.shape[2]} {image.shape[3]}", "target")
