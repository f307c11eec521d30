"""Directions of the sliders and their natural ranges."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from export3d.errors import ConfigError, ShapeError, TrainingError
from export3d.expression.directions import loadings, measure_ranges, settle, varimax
from export3d.expression.encoder import ExpressionConfig, ExpressionEncoder


def trained() -> tuple[ExpressionEncoder, Tensor]:
    """An encoder and expressions in which each of six causes moves some scores."""
    causes, mix = torch.rand(500, 6) ** 2, torch.rand(6, 52) * (torch.rand(6, 52) < 0.3)
    expression = (causes @ mix + 0.02 * torch.rand(500, 52)).clamp(0, 1)
    encoder = ExpressionEncoder(ExpressionConfig(hidden=16, n=4, d=12))
    torch.nn.init.normal_(encoder.second.bias)
    encoder.standardise(expression.mean(0), expression.std(0))
    return encoder, expression


def disguised(encoder: ExpressionEncoder, order: list[int], signs: list[float]) -> ExpressionEncoder:
    """The same encoder with its directions in another order, some reversed."""
    other, signed = copy.deepcopy(encoder), torch.tensor(signs)
    with torch.no_grad():
        other.second.weight.copy_(signed[:, None] * encoder.second.weight[order])
        other.second.bias.copy_(signed * encoder.second.bias[order])
        other.basis.weight.copy_((signed[:, None] * encoder.basis()[order]).T)
    return other


def test_settling_changes_only_the_scale_of_the_embedding() -> None:
    encoder, expression = trained()
    with torch.no_grad():
        before, old = encoder(expression), encoder.coefficients(expression)
        settle(encoder, expression)
        after, new = encoder(expression), encoder.coefficients(expression)
        basis = encoder.basis().double()
    torch.testing.assert_close(normalize(after), normalize(before), rtol=0, atol=1e-5)
    factor = float(before.norm() / after.norm())
    torch.testing.assert_close(factor * after, before, rtol=0, atol=1e-5)
    assert float(new.var(0, correction=0).mean()) == pytest.approx(1.0, rel=1e-4)
    assert (factor * new - old).abs().max() > 0.1  # other axes
    assert (basis @ basis.T - torch.eye(4)).abs().max() < 1e-5


def test_directions_are_ordered_by_variance_and_point_where_their_score_rises() -> None:
    encoder, expression = trained()
    settle(encoder, expression)
    with torch.no_grad():
        spread = encoder.coefficients(expression).std(0)
    assert (spread.diff() < 0).all()
    together = loadings(encoder, expression)
    strongest = np.abs(together).argmax(0)
    assert (together[strongest, range(4)] > 0).all()
    for direction, score in enumerate(strongest):  # and it is a rise of lambda with the score itself
        with torch.no_grad():
            along = encoder.coefficients(expression)[:, direction]
        assert np.corrcoef(along, expression[:, score])[0, 1] > 0.2


def test_sliders_do_not_depend_on_the_directions_before_settling() -> None:
    encoder, expression = trained()
    other = disguised(encoder, [2, 0, 3, 1], [1.0, -1.0, -1.0, 1.0])
    with torch.no_grad():
        torch.testing.assert_close(other(expression), encoder(expression))
    for one in (encoder, other):
        settle(one, expression)
    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_settling_again_changes_nothing() -> None:
    encoder, expression = trained()
    settle(encoder, expression)
    before = copy.deepcopy(encoder.state_dict())
    settle(encoder, expression)
    for name, value in before.items():
        torch.testing.assert_close(encoder.state_dict()[name], value, rtol=1e-3, atol=1e-3, msg=name)


def test_natural_ranges_are_percentiles_of_the_data() -> None:
    encoder, expression = trained()
    settle(encoder, expression)
    assert (encoder.low < encoder.high).all()
    with torch.no_grad():
        coefficients = encoder.coefficients(expression)
    for limit, part in ((encoder.low, 0.05), (encoder.high, 0.95)):
        torch.testing.assert_close(limit, coefficients.quantile(part, dim=0), rtol=1e-4, atol=1e-5)


def test_there_must_be_directions_and_expressions_of_the_right_space() -> None:
    with pytest.raises(ConfigError, match="without a basis"):
        settle(ExpressionEncoder(ExpressionConfig(basis=False)), torch.rand(9, 52))
    with pytest.raises(ShapeError, match="expression"):
        settle(ExpressionEncoder(ExpressionConfig()), torch.rand(9, 64))


def test_loadings_are_covariances_of_standardised_scores_and_lambda() -> None:
    encoder, expression = trained()
    with torch.no_grad():
        coefficients = encoder.coefficients(expression).double().numpy()
    scores = ((expression - encoder.mean) / encoder.deviation).double().numpy()
    expected = np.cov(scores, coefficients, rowvar=False, bias=True)[:52, 52:]
    np.testing.assert_allclose(loadings(encoder, expression), expected, atol=1e-8)


def test_a_collapsed_encoder_is_refused_settled_or_not() -> None:
    for finish in (settle, measure_ranges):
        encoder, expression = trained()
        torch.nn.init.zeros_(encoder.second.weight)
        with pytest.raises(TrainingError, match="collapsed"):
            finish(encoder, expression)


# ---- varimax ---------------------------------------------------------------------------------------------------------


def criterion(loading: np.ndarray) -> float:
    return float((loading**2).var(axis=0).sum())


def test_varimax_returns_a_rotation_that_makes_columns_sparser(rng: np.random.Generator) -> None:
    loading = rng.standard_normal((30, 5))
    rotation = varimax(loading)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(5), atol=1e-10)
    assert criterion(loading @ rotation) > criterion(loading)
    for _ in range(20):  # no small turn makes it better still
        skew = rng.standard_normal((5, 5)) * 1e-3
        turn = np.linalg.qr(np.eye(5) + skew - skew.T)[0]
        assert criterion(loading @ rotation @ turn) < criterion(loading @ rotation) * (1 + 1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_varimax_finds_a_sparse_structure_that_a_rotation_hides(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sparse = np.zeros((24, 6))
    sparse[np.arange(24), np.arange(24) % 6] = rng.uniform(0.5, 1.5, 24) * rng.choice([-1, 1], 24)
    hidden = sparse @ np.linalg.qr(rng.standard_normal((6, 6)))[0]
    found = hidden @ varimax(hidden)
    match = np.abs(found.T @ sparse) / (np.linalg.norm(found, axis=0)[:, None] * np.linalg.norm(sparse, axis=0))
    np.testing.assert_allclose(np.sort(match, axis=1)[:, -1], 1.0, atol=1e-4)
    assert sorted(match.argmax(1)) == list(range(6))
