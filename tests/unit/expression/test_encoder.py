"""LeBS: coefficients that scale a learned orthonormal basis (Eq. 3)."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import nn

from export3d.errors import ConfigError, ShapeError
from export3d.expression.encoder import ExpressionConfig, ExpressionEncoder

SMALL = ExpressionConfig(inputs=52, hidden=16, n=4, d=12)


def test_the_paper_has_ten_vectors_of_256_numbers() -> None:
    sizes = {"inputs": 52, "hidden": 256, "n": 10, "d": 256}
    assert {f.name: f.default for f in fields(ExpressionConfig)} == {**sizes, "basis": True, "frozen": False}


def test_an_embedding_is_the_sum_of_scaled_basis_vectors() -> None:
    encoder, expression = ExpressionEncoder(SMALL), torch.rand(3, 52)
    scales, vectors = encoder.coefficients(expression), encoder.basis()
    for b in range(3):
        by_hand = torch.stack([scales[b, i] * vectors[i] for i in range(4)]).sum(dim=0)
        torch.testing.assert_close(encoder(expression)[b], by_hand)


def test_coefficients_are_two_linear_layers_with_a_leaky_relu_between() -> None:
    encoder, expression = ExpressionEncoder(SMALL), torch.rand(5, 52)
    layers = [layer for layer in encoder.modules() if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in layers] == [(52, 16), (16, 4)]
    hidden = expression @ layers[0].weight.T + layers[0].bias
    hidden = torch.where(hidden > 0, hidden, 0.2 * hidden)
    torch.testing.assert_close(encoder.coefficients(expression), hidden @ layers[1].weight.T + layers[1].bias)


def test_the_coefficients_can_be_read_back_from_the_embedding() -> None:
    """The basis is orthonormal, so projecting the embedding onto it gives the coefficients."""
    encoder, expression = ExpressionEncoder(SMALL), torch.rand(6, 52)
    torch.testing.assert_close(encoder(expression) @ encoder.basis().T, encoder.coefficients(expression))


def test_embeddings_lie_in_the_span_of_the_basis() -> None:
    encoder = ExpressionEncoder(SMALL)
    assert torch.linalg.matrix_rank(encoder(torch.rand(40, 52))) == 4


def test_standardising_centres_and_scales_and_never_divides_by_nothing() -> None:
    encoder = ExpressionEncoder(SMALL)
    mean, deviation = torch.rand(52), torch.rand(52)
    deviation[3] = 0.0
    x = torch.rand(2, 52)
    plain = encoder.coefficients((x - mean) / deviation.clamp_min(0.02))
    encoder.standardise(mean, deviation)
    torch.testing.assert_close(encoder.coefficients(x), plain)
    assert {"mean", "deviation"} <= set(encoder.state_dict())


def test_every_weight_of_the_encoder_learns() -> None:
    encoder = ExpressionEncoder(SMALL)
    (encoder(torch.rand(4, 52)) * torch.randn(4, 12)).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.count_nonzero() > 0, name


def test_without_a_basis_two_linear_layers_give_the_embedding_in_the_scale_of_unit_vectors() -> None:
    """ "Direct 3DMM" of Table 3; EAdaLN multiplies beta' by sqrt(d)."""
    encoder, expression = ExpressionEncoder(replace(SMALL, basis=False)), torch.rand(3, 52)
    layers = [layer for layer in encoder.modules() if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in layers] == [(52, 16), (16, 12)]
    assert encoder.basis is None
    assert not any("basis" in name for name in encoder.state_dict())
    torch.testing.assert_close(encoder(expression) * 12**0.5, encoder.coefficients(expression))
    assert torch.linalg.matrix_rank(encoder(torch.rand(40, 52))) == 12


@pytest.mark.parametrize("basis", [True, False])
def test_natural_ranges_are_stored_and_zero_until_measured(basis: bool) -> None:
    state = ExpressionEncoder(replace(SMALL, basis=basis)).state_dict()
    for name in ("low", "high"):
        assert torch.equal(state[name], torch.zeros(4))


def test_a_frozen_encoder_is_the_same_encoder_without_gradients() -> None:
    made = []
    for frozen in (False, True):
        torch.manual_seed(3)
        made.append(ExpressionEncoder(replace(SMALL, frozen=frozen)))
    plain, frozen_one = made
    for name, value in plain.state_dict().items():
        assert torch.equal(frozen_one.state_dict()[name], value), name
    assert not any(p.requires_grad for p in frozen_one.parameters())
    assert not frozen_one(torch.rand(2, 52)).requires_grad
    assert plain(torch.rand(2, 52)).requires_grad


def test_an_expression_of_another_space_is_refused() -> None:
    with pytest.raises(ShapeError, match="expression"):
        ExpressionEncoder(SMALL)(torch.zeros(1, 64))


@pytest.mark.parametrize("changes", [{"n": 13}, {"n": 0}, {"hidden": 0}, {"inputs": -1}])
def test_sizes_that_cannot_be_built_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        ExpressionConfig(**{"hidden": 16, "n": 4, "d": 12, **changes})
