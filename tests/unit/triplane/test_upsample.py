"""Pixel shuffle and Gaussian low-pass."""

from __future__ import annotations

import torch

from export3d.layers import GaussianLowPass
from export3d.triplane.upsample import ShuffleUpsample


def test_four_channels_become_four_pixels() -> None:
    x = torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 2, 3)
    out = ShuffleUpsample(0.0)(x)
    assert out.shape == (1, 1, 4, 6)
    assert torch.equal(out[0, 0, :2, :2], torch.tensor([[0.0, 1.0], [2.0, 3.0]]))


def test_the_low_pass_follows_the_shuffle() -> None:
    x = torch.randn(2, 8, 6, 6)
    shuffled = torch.nn.functional.pixel_shuffle(x, 2)
    assert torch.equal(ShuffleUpsample(0.0)(x), shuffled)
    torch.testing.assert_close(ShuffleUpsample(1.0)(x), GaussianLowPass(1.0)(shuffled))


def test_the_grid_of_the_shuffle_is_gone() -> None:
    """Channels with different means give a grid of period two, which the low-pass removes almost completely."""
    x = torch.tensor([1.0, -1.0, -1.0, 1.0]).view(1, 4, 1, 1).expand(1, 4, 8, 8)
    assert ShuffleUpsample(0.0)(x).std() > 0.9
    assert ShuffleUpsample(1.0)(x).abs().max() < 1e-3


def test_nothing_is_learned_and_nothing_is_saved() -> None:
    module = ShuffleUpsample(1.0)
    assert not list(module.parameters())
    assert not module.state_dict()
