"""Metrics against independent implementations, their values on equal images, and which way they move."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from export3d.errors import CheckpointError, ConfigError, ShapeError
from export3d.evaluation.metrics import PSNR, SSIM, lpips, psnr, ssim
from export3d.image import resize, to_tensor


@pytest.fixture
def portrait(astronaut: np.ndarray) -> Tensor:
    """(1, 3, 128, 128) in [-1, 1]."""
    return resize(to_tensor(astronaut)[None], 128).clamp(-1, 1)


def blurred(image: Tensor, sigma: float) -> Tensor:
    at = torch.arange(-15, 16, dtype=torch.float32)
    window = torch.exp(-0.5 * (at / sigma).square())
    window = (window / window.sum()).view(1, 1, 1, -1)
    flat = torch.nn.functional.pad(image.transpose(0, 1), (15, 15, 15, 15), mode="reflect")
    flat = torch.nn.functional.conv2d(flat, window)
    return torch.nn.functional.conv2d(flat, window.mT).transpose(0, 1)


def noisy_pairs() -> tuple[Tensor, Tensor]:
    """Pairs from hardly to badly disturbed, of odd sizes."""
    x = torch.rand(4, 3, 61, 47) * 2 - 1
    noise = torch.randn_like(x) * torch.tensor([0.01, 0.1, 0.5, 2.0]).view(4, 1, 1, 1)
    return x, (x + noise).clamp(-1, 1)


def test_psnr_agrees_with_scikit_image() -> None:
    peak_signal_noise_ratio = pytest.importorskip("skimage.metrics").peak_signal_noise_ratio
    x, y = noisy_pairs()
    expected = [
        peak_signal_noise_ratio((a.numpy() + 1.0) / 2, (b.numpy() + 1.0) / 2, data_range=1) for a, b in zip(x, y)
    ]
    assert psnr(x, y).tolist() == pytest.approx(expected, rel=1e-5)


def test_ssim_agrees_with_scikit_image() -> None:
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity
    x, y = noisy_pairs()
    expected = [
        structural_similarity(
            (a.double().numpy() + 1) / 2,
            (b.double().numpy() + 1) / 2,
            data_range=1,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(x, y)
    ]
    assert ssim(x, y).tolist() == pytest.approx(expected, rel=1e-4)


def test_ssim_agrees_with_a_slow_twin() -> None:
    """Every window on its own, straight from the formula, in float64."""
    x, y = (torch.rand(1, 3, 13, 14, dtype=torch.float64) for _ in range(2))
    at = np.arange(-5, 6)
    window = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for c in range(3):
        for i in range(13 - 10):
            for j in range(14 - 10):
                a, b = (z[0, c, i : i + 11, j : j + 11].numpy() for z in (x, y))
                ma, mb = (window * a).sum(), (window * b).sum()
                va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
                cov = (window * (a - ma) * (b - mb)).sum()
                values.append((2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
    assert ssim(x * 2 - 1, y * 2 - 1).item() == pytest.approx(np.mean(values), rel=1e-5)


def test_equal_images_score_inf_one_and_zero(portrait: Tensor, alex_file: Path) -> None:
    constant = torch.full_like(portrait, 0.3)
    for image in (portrait, constant):
        assert psnr(image, image).item() == math.inf
        assert ssim(image, image).item() == pytest.approx(1.0, abs=1e-6)
        assert lpips("alex", alex_file).score(image, image).item() == 0.0


def test_black_against_white_is_as_bad_as_it_gets() -> None:
    black, white = -torch.ones(1, 3, 16, 16), torch.ones(1, 3, 16, 16)
    assert psnr(black, white).item() == 0.0
    assert ssim(black, white).item() == pytest.approx(0.0, abs=1e-3)


def test_a_known_error_has_a_known_psnr() -> None:
    grey = torch.zeros(1, 3, 16, 16)
    assert psnr(grey, grey + 0.2).item() == pytest.approx(20.0, abs=1e-5)


@pytest.mark.parametrize("metric", [PSNR, SSIM], ids=lambda m: m.name)
def test_more_blur_scores_worse(metric, portrait: Tensor) -> None:
    values = [metric.score(blurred(portrait, sigma), portrait).item() for sigma in (0.5, 1.0, 2.0, 4.0, 8.0)]
    assert metric.higher_is_better
    assert all(worse < better - 1e-3 for better, worse in itertools.pairwise(values))


def test_more_blur_is_farther_by_lpips(portrait: Tensor, shared_models: Path) -> None:
    folder = shared_models / "lpips"
    metric = lpips("alex", folder / "alexnet_features_fp16.pth", folder / "alex.pth")
    values = [metric.score(blurred(portrait, sigma), portrait).item() for sigma in (0.5, 1.0, 2.0, 4.0, 8.0)]
    assert not metric.higher_is_better
    assert all(worse > better + 1e-3 for better, worse in itertools.pairwise(values))


@pytest.mark.parametrize("metric", [PSNR, SSIM], ids=lambda m: m.name)
def test_more_shift_scores_worse(metric, portrait: Tensor) -> None:
    values = [metric.score(portrait.roll(pixels, -1), portrait).item() for pixels in (0, 1, 3, 8)]
    assert values == sorted(values, reverse=True)


def test_a_pair_is_scored_alike_alone_and_in_a_batch() -> None:
    x, y = noisy_pairs()
    for metric in (PSNR, SSIM):
        alone = torch.cat([metric.score(a[None], b[None]) for a, b in zip(x, y)])
        torch.testing.assert_close(metric.score(x, y), alone)


def test_lpips_without_heads_has_a_name_of_its_own(alex_file: Path) -> None:
    metric = lpips("alex", alex_file)
    assert metric.name == "lpips_uniform"
    assert "uniform weights" in metric.definition
    assert alex_file.name in metric.definition


def test_lpips_says_which_networks_it_used(shared_models: Path) -> None:
    folder = shared_models / "lpips"
    metric = lpips("squeeze", folder / "squeezenet1_1_features_fp32.pth", folder / "squeeze.pth")
    assert metric.name == "lpips"
    assert metric.definition == "backbone squeeze (file squeezenet1_1_features_fp32.pth), LPIPS heads squeeze.pth"


def test_a_missing_backbone_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.pth"):
        lpips("alex", tmp_path / "nowhere.pth")


def test_without_torchvision_the_ways_out_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ConfigError, match=r"--backbone-file.*torchvision.*--backbone none"):
        lpips("alex")


@pytest.mark.parametrize("score", [psnr, ssim])
def test_images_of_other_shapes_are_refused(score) -> None:
    with pytest.raises(ShapeError, match="target"):
        score(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 17))
    with pytest.raises(ShapeError, match="image"):
        score(torch.zeros(3, 16, 16), torch.zeros(3, 16, 16))


def test_ssim_refuses_images_smaller_than_its_window() -> None:
    with pytest.raises(ShapeError, match="11 px"):
        ssim(torch.zeros(1, 3, 10, 16), torch.zeros(1, 3, 10, 16))
