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
from export3d.evaluation.measures.image import PSNR, SSIM, lpips, psnr, ssim
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


def eight_bits(image: Tensor) -> Tensor:
    """What a saved picture would hold."""
    return image.clamp(-1, 1).add(1).mul(127.5).round().div(127.5).sub(1)


def natural_pairs(astronaut: np.ndarray, height: int, width: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Pairs (1, 3, height, width) as evaluations see them: 8-bit pictures and what can happen to them."""
    picture = eight_bits(to_tensor(astronaut)[None, :, 60 : 60 + height, 180 : 180 + width])
    dot = picture.clone()
    dot[..., height // 2, width // 2] *= -1
    dark = eight_bits(picture * 0.1 - 0.9)
    return {
        "blurred": (eight_bits(resize(resize(picture, (height // 2, width // 2)), (height, width))), picture),
        "shifted": (picture.roll((1, 2), (-2, -1)), picture),
        "noisy": (eight_bits(picture + 0.2 * torch.randn_like(picture)), picture),
        "negative": (-picture, picture),
        "brighter": (eight_bits(picture + 0.3), picture),
        "one level apart": (picture + 2 / 255, picture),
        "one dot apart": (dot, picture),
        "nearly black": (eight_bits(dark + 0.01), dark),
        "black and picture": (-torch.ones_like(picture), picture),
        "black and white": (-torch.ones_like(picture), torch.ones_like(picture)),
        "chequered": (eight_bits(picture), (torch.arange(width) + torch.arange(height)[:, None]).remainder(2) * 2.0 - 1
                      + torch.zeros_like(picture)),
    }  # fmt: skip


@pytest.mark.parametrize(("height", "width"), [(11, 11), (12, 64), (63, 37), (128, 128), (256, 255)])
def test_psnr_and_ssim_agree_with_scikit_image_on_pictures(astronaut: np.ndarray, height: int, width: int) -> None:
    skimage = pytest.importorskip("skimage.metrics")
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": 0}
    for name, pair in natural_pairs(astronaut, height, width).items():
        a, b = ((image[0].double().numpy() + 1) / 2 for image in pair)
        expected = skimage.peak_signal_noise_ratio(b, a, data_range=1)
        assert psnr(*pair).item() == pytest.approx(expected, rel=1e-5, abs=1e-6), name
        expected = skimage.structural_similarity(a, b, data_range=1, **options)
        assert ssim(*pair).item() == pytest.approx(expected, rel=1e-4, abs=1e-6), name


def test_neither_psnr_nor_ssim_depends_on_the_order(astronaut: np.ndarray) -> None:
    for name, (a, b) in natural_pairs(astronaut, 64, 48).items():
        assert psnr(a, b).item() == psnr(b, a).item(), name
        assert ssim(a, b).item() == pytest.approx(ssim(b, a).item(), abs=1e-6), name


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


@pytest.mark.parametrize("size", [(64, 64), (71, 120), (256, 256)])
def test_equal_pictures_are_equal_whatever_they_show(astronaut: np.ndarray, alex_file: Path, size: tuple) -> None:
    picture = eight_bits(to_tensor(astronaut)[:, : size[0], : size[1]])
    flat, noise = torch.ones_like(picture), torch.rand_like(picture) * 2 - 1
    images = torch.stack([picture, -picture, flat, -flat, 0 * flat, noise])
    metric = lpips("alex", alex_file)
    assert psnr(images, images.clone()).tolist() == [math.inf] * len(images)
    assert ssim(images, images.clone()).tolist() == pytest.approx([1.0] * len(images), abs=1e-6)
    assert metric.score(images, images.clone()).tolist() == [0.0] * len(images)
    assert metric.against(images)(images.clone()).tolist() == [0.0] * len(images)


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


def test_more_shift_is_farther_by_lpips(portrait: Tensor, shared_models: Path) -> None:
    """Half as far as noise of the same PSNR: a shift of few pixels is what LPIPS is to forgive."""
    folder = shared_models / "lpips"
    metric = lpips("alex", folder / "alexnet_features_fp16.pth", folder / "alex.pth")
    values = [metric.score(portrait.roll(pixels, -1), portrait).item() for pixels in (0, 1, 3, 8)]
    assert values[0] == 0.0
    assert all(worse > better + 1e-3 for better, worse in itertools.pairwise(values))
    deviation = (portrait.roll(3, -1) - portrait).square().mean().sqrt()
    noisy = (portrait + deviation * torch.randn_like(portrait)).clamp(-1, 1)
    assert 2 * values[2] < metric.score(noisy, portrait).item()


@pytest.mark.parametrize("metric", [PSNR, SSIM], ids=lambda m: m.name)
def test_more_noise_scores_worse(metric, portrait: Tensor) -> None:
    noise = torch.randn_like(portrait)
    values = [metric.score((portrait + s * noise).clamp(-1, 1), portrait).item() for s in (0.02, 0.1, 0.3, 1.0)]
    assert all(worse < better - 1e-2 for better, worse in itertools.pairwise(values))


@pytest.mark.parametrize("metric", [PSNR, SSIM], ids=lambda m: m.name)
def test_more_shift_scores_worse(metric, portrait: Tensor) -> None:
    values = [metric.score(portrait.roll(pixels, -1), portrait).item() for pixels in (0, 1, 3, 8)]
    assert values == sorted(values, reverse=True)


def test_a_pair_is_scored_alike_alone_and_in_a_batch() -> None:
    x, y = noisy_pairs()
    for metric in (PSNR, SSIM):
        alone = torch.cat([metric.score(a[None], b[None]) for a, b in zip(x, y)])
        torch.testing.assert_close(metric.score(x, y), alone)


def test_several_images_can_be_scored_against_prepared_targets(alex_file: Path) -> None:
    x, y = noisy_pairs()
    x, y = resize(x, 64), resize(y, 64)
    for metric in (PSNR, SSIM, lpips("alex", alex_file)):
        against = metric.against(x)
        for image in (y, y.flip(-1)):
            torch.testing.assert_close(against(image), metric.score(image, x))


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
