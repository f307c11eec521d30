"""Depths along rays: stratified, then by importance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from export3d.errors import ShapeError
from export3d.render.sampling import importance_depths, stratified_depths
from tests import reference


def edges(samples: int = 9) -> torch.Tensor:
    """(1, 2, samples) ascending, unevenly spaced."""
    return 2.0 + torch.cumsum(torch.rand(1, 2, samples) + 0.1, dim=-1)


def test_stratified_depths_are_the_middles_of_equal_bins() -> None:
    found = stratified_depths(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.5]), 3, 5)
    assert found.shape == (2, 3, 5)
    for b, (near, far) in enumerate([(1.0, 3.0), (2.0, 2.5)]):
        for r in range(3):
            np.testing.assert_allclose(found[b, r].numpy(), reference.stratified(near, far, 5), rtol=1e-6)


def test_jittered_depths_stay_each_in_its_bin_and_fill_it() -> None:
    found = stratified_depths(torch.tensor([1.0]), torch.tensor([3.0]), 4000, 8, torch.tensor([0]))
    place = (found - 1.0) / 2.0 * 8 - torch.arange(8)
    assert place.min() > -1e-5
    assert place.max() < 1 + 1e-5
    torch.testing.assert_close(place.mean(dim=(0, 1)), torch.full((8,), 0.5), atol=0.02, rtol=0)
    assert place.min() < 0.01
    assert place.max() > 0.99


def test_importance_depths_agree_with_the_slow_twin() -> None:
    depths, weights = edges(), torch.rand(1, 2, 8)
    weights[0, 1, :5] = 0.0
    found = importance_depths(depths.double(), weights.double(), 13)
    for r in range(2):
        expected = reference.importance(depths[0, r].double().numpy(), weights[0, r].double().numpy(), 13)
        np.testing.assert_allclose(found[0, r].numpy(), expected, rtol=1e-9)


def test_importance_samples_follow_the_weights() -> None:
    """A histogram of many jittered samples is the piecewise-constant density, up to the sample at each edge."""
    depths, weights, samples = edges(), torch.rand(1, 2, 8).square(), 20_000
    found = importance_depths(depths, weights, samples, torch.tensor([3]))
    for r in range(2):
        counts, _ = np.histogram(found[0, r].numpy(), bins=depths[0, r].numpy())
        chance = reference.spread(weights[0, r].double().numpy())
        np.testing.assert_allclose(counts, chance / chance.sum() * samples, atol=4)


def test_within_an_interval_importance_samples_are_uniform() -> None:
    depths = torch.tensor([[[0.0, 1.0, 2.0, 3.0]]])
    found = importance_depths(depths, torch.tensor([[[0.0, 1.0, 0.0]]]), 4000, torch.tensor([1]))
    middle = found[(found > 1) & (found < 2)] - 1
    counts = torch.histc(middle, 10, 0, 1)
    torch.testing.assert_close(counts, torch.full((10,), float(len(middle)) / 10), atol=3, rtol=0)


def test_most_samples_go_to_the_interval_with_all_the_weight_and_its_neighbours() -> None:
    depths = torch.linspace(2.0, 3.0, 33)[None, None]
    weights = torch.zeros(1, 1, 32)
    weights[..., 20] = 1.0
    found = importance_depths(depths, weights, 64)
    near = (found > depths[..., 19:20]) & (found < depths[..., 22:23])
    assert near.float().mean() > 0.8


def test_without_any_weight_samples_spread_evenly_and_nothing_is_nan() -> None:
    depths = torch.linspace(2.0, 3.0, 11)[None, None]
    found = importance_depths(depths, torch.zeros(1, 1, 10), 5)
    torch.testing.assert_close(found, torch.tensor([[[2.1, 2.3, 2.5, 2.7, 2.9]]]))


def test_depths_are_ascending_and_within_the_first_and_last_edge() -> None:
    depths = 2.0 + torch.cumsum(torch.rand(2, 50, 12), dim=-1)
    weights = torch.rand(2, 50, 11) ** 8
    for seeds in (None, torch.tensor([0, 1])):
        found = importance_depths(depths, weights, 32, seeds)
        assert (found.diff(dim=-1) >= 0).all()
        assert (found >= depths[..., :1]).all()
        assert (found <= depths[..., -1:]).all()


def test_no_gradient_flows_through_importance_sampling() -> None:
    weights = torch.rand(1, 2, 8, requires_grad=True)
    assert not importance_depths(edges(), weights, 4).requires_grad


def jittered(*seeds: int) -> torch.Tensor:
    """(B, 2, 400, 6) positions within their bins, 0..1, of stratified and of importance depths."""
    given, near = torch.tensor(seeds), torch.zeros(len(seeds))
    depths = stratified_depths(near, near + 6.0, 400, 6, given)
    flat = torch.linspace(0.0, 6.0, 7).expand(len(seeds), 400, 7)
    fine = importance_depths(flat, torch.ones(len(seeds), 400, 6), 6, given)
    return torch.stack([depths, fine], dim=1) - torch.arange(6.0)


def test_an_item_has_the_jitter_of_its_seed_whatever_else_is_in_the_batch() -> None:
    together = jittered(5, 2**40 + 7, 0)
    assert together.min() >= -1e-6
    assert together.max() <= 1.0
    for item, seed in enumerate((5, 2**40 + 7, 0)):
        assert torch.equal(together[item], jittered(seed)[0])


def test_the_jitter_of_seeds_rays_samples_and_both_stages_is_independent() -> None:
    """Neighbouring seeds too, such as those of a batch."""
    places = (jittered(*range(64)) - 0.5).flatten(2)  # (seed, draw, ray and sample)
    streams = places.flatten(0, 1)
    correlation = streams @ streams.mT / (streams.shape[1] / 12)
    assert (correlation - torch.eye(len(streams))).abs().max() < 0.12  # 2400 numbers each: deviation 0.02
    shifted = [(streams[:, k:] * streams[:, :-k]).mean() * 12 for k in (1, 2, 6)]
    assert torch.stack(shifted).abs().max() < 0.01
    counts = torch.histc(places, 10, -0.5, 0.5) / places.numel()
    torch.testing.assert_close(counts, torch.full((10,), 0.1), atol=2e-3, rtol=0)


def test_too_few_seeds_are_refused() -> None:
    with pytest.raises(ShapeError, match="seeds"):
        stratified_depths(torch.zeros(2), torch.ones(2), 4, 4, torch.tensor([1]))


def test_too_many_weights_are_refused() -> None:
    with pytest.raises(ShapeError, match="weights"):
        importance_depths(edges(), torch.ones(1, 2, 9), 4)
