"""Volume rendering along one ray."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from export3d.errors import ShapeError
from export3d.render.compositing import composite, ray_weights
from tests import reference


@pytest.mark.parametrize("scale", [0.1, 10.0, 1e3, 1e6])
def test_weights_are_positive_and_sum_to_at_most_one(scale: float) -> None:
    weights = ray_weights(torch.rand(4, 500, 24) * scale, torch.rand(4, 500, 24))
    assert (weights >= 0).all()
    assert (weights.sum(dim=-1) <= 1 + 1e-6).all()


@pytest.mark.slow
def test_weights_and_the_final_transmittance_sum_to_one() -> None:
    density, delta = torch.rand(1, 50, 16, dtype=torch.float64) * 5, torch.rand(1, 50, 16, dtype=torch.float64)
    left = torch.exp(-(density * delta).sum(dim=-1))
    torch.testing.assert_close(ray_weights(density, delta).sum(dim=-1) + left, torch.ones_like(left))


@pytest.mark.parametrize("place", range(6))
def test_one_opaque_sample_takes_all_weight(place: int) -> None:
    density = torch.zeros(1, 1, 6)
    density[..., place] = 1e9
    expected = torch.zeros(1, 1, 6)
    expected[..., place] = 1.0
    assert torch.equal(ray_weights(density, torch.ones(1, 1, 6)), expected)


def test_an_opaque_sample_hides_what_lies_behind_it() -> None:
    density = torch.tensor([[[1.0, 1e9, 7.0, 1e9]]])
    assert torch.equal(ray_weights(density, torch.ones(1, 1, 4))[..., 2:], torch.zeros(1, 1, 2))


def test_haze_before_an_opaque_sample_reduces_its_weight() -> None:
    haze = 0.5
    weights = ray_weights(torch.tensor([[[haze, 1e9]]]), torch.ones(1, 1, 2))
    torch.testing.assert_close(weights, torch.tensor([[[1 - np.exp(-haze), np.exp(-haze)]]]).float())


def test_empty_space_absorbs_nothing() -> None:
    assert torch.equal(ray_weights(torch.zeros(1, 2, 5), torch.ones(1, 2, 5)), torch.zeros(1, 2, 5))


def test_splitting_an_interval_splits_its_weight_only() -> None:
    whole = ray_weights(torch.tensor([[[2.0, 3.0]]]), torch.tensor([[[0.4, 0.2]]]))
    cut = ray_weights(torch.tensor([[[2.0, 2.0, 3.0]]]), torch.tensor([[[0.1, 0.3, 0.2]]]))
    torch.testing.assert_close(whole[0, 0, 0], cut[0, 0, :2].sum())
    torch.testing.assert_close(whole[0, 0, 1], cut[0, 0, 2])


def sample_rays(rays: int = 5, samples: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    density = torch.rand(1, rays, samples, dtype=torch.float64) * 6
    feature = torch.randn(1, rays, samples, 3, dtype=torch.float64)
    depths = 2.0 + torch.cumsum(torch.rand(1, rays, samples, dtype=torch.float64) + 0.01, dim=-1)
    return density, feature, depths


def test_compositing_agrees_with_the_slow_twin() -> None:
    density, feature, depths = sample_rays()
    colour, depth, weights = composite(density, feature, depths)
    for r in range(5):
        expected = reference.composite(density[0, r].numpy(), feature[0, r].numpy(), depths[0, r].numpy())
        np.testing.assert_allclose(colour[0, r].numpy(), expected[0], rtol=1e-10)
        np.testing.assert_allclose(float(depth[0, r]), expected[1], rtol=1e-10)
        np.testing.assert_allclose(weights[0, r].numpy(), expected[2], rtol=1e-10)


def test_gradients_of_the_weights_are_exact() -> None:
    density = (torch.rand(1, 2, 6, dtype=torch.float64) * 4 + 0.1).requires_grad_()
    delta = (torch.rand(1, 2, 6, dtype=torch.float64) + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(ray_weights, (density, delta))


def test_gradients_of_compositing_are_exact() -> None:
    density, feature, depths = (x.requires_grad_() for x in sample_rays(2, 5))
    assert torch.autograd.gradcheck(composite, (density, feature, depths))


def test_gradients_agree_with_finite_differences_of_the_slow_twin() -> None:
    density, feature, depths = sample_rays(1, 6)
    density.requires_grad_()
    colour, depth, _ = composite(density, feature, depths)
    (colour.sum() + depth.sum()).backward()
    assert density.grad is not None

    def twin(values: np.ndarray) -> float:
        found, far, _ = reference.composite(values, feature[0, 0].numpy(), depths[0, 0].numpy())
        return float(found.sum()) + far

    start = density.detach()[0, 0].numpy()
    for i in range(6):
        step = np.zeros(6)
        step[i] = 1e-6
        slope = (twin(start + step) - twin(start - step)) / 2e-6
        assert float(density.grad[0, 0, i]) == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_gradients_stay_finite_behind_an_opaque_wall() -> None:
    density = torch.tensor([[[0.0, 1e9, 1.0, 0.0]]], requires_grad=True)
    ray_weights(density, torch.ones(1, 1, 4)).square().sum().backward()
    assert density.grad is not None
    assert density.grad.isfinite().all()


def test_a_constant_colour_is_multiplied_by_the_opacity() -> None:
    density, _, depths = sample_rays()
    colour, _, weights = composite(density, torch.full((1, 5, 9, 2), 0.7, dtype=torch.float64), depths)
    torch.testing.assert_close(colour, 0.7 * weights.sum(dim=-1, keepdim=True).expand(1, 5, 2))


def test_mismatched_features_are_refused() -> None:
    with pytest.raises(ShapeError, match="feature"):
        composite(torch.ones(1, 2, 3), torch.ones(1, 2, 3), torch.ones(1, 2, 3))
