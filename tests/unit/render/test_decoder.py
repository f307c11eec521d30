"""The light-weight MLP: plane feature to colour and density."""

from __future__ import annotations

import numpy as np
import torch

from export3d.render.decoder import PlaneDecoder
from tests import reference


def test_the_decoder_agrees_with_the_slow_twin() -> None:
    decoder = PlaneDecoder(6, 10, 4, density_gain=10.0)
    weights = {name: value.double().numpy() for name, value in decoder.state_dict().items()}
    feature = torch.randn(7, 6)
    with torch.no_grad():
        colour, density = decoder(feature)
    for i in range(7):
        expected_colour, expected_density = reference.decode(weights, feature[i].double().numpy(), 10.0)
        np.testing.assert_allclose(colour[i].numpy(), expected_colour, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(float(density[i]), expected_density, rtol=1e-5)


def test_densities_are_never_negative_and_colours_reach_slightly_beyond_one() -> None:
    decoder = PlaneDecoder(4, 8, 3)
    colour, density = decoder(torch.randn(2, 1000, 4) * 100)
    assert colour.shape == (2, 1000, 3)
    assert density.shape == (2, 1000)
    assert (density >= 0).all()
    assert 1.0 < colour.abs().max() <= 1.002 + 1e-6


def test_colour_and_density_have_separate_last_layers() -> None:
    decoder = PlaneDecoder(4, 8, 3)
    feature = torch.randn(5, 4)
    colour, density = decoder(feature)
    with torch.no_grad():
        decoder.density.bias.add_(1.0)
    other_colour, other_density = decoder(feature)
    assert torch.equal(colour, other_colour)
    assert not torch.equal(density, other_density)


def test_the_decoder_runs_in_float32_under_autocast() -> None:
    decoder, feature = PlaneDecoder(4, 8, 3), torch.randn(5, 4)
    expected = decoder(feature)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = decoder(feature)
    for a, b in zip(found, expected):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)
