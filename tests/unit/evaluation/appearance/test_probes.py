"""Figures of appearance on made-up faces whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from export3d.errors import InputError, ShapeError
from export3d.evaluation.appearance.probes import (
    effective_rank,
    halves,
    held_expression,
    probe,
    retrieval_accuracy,
    spread_frames,
)
from export3d.evaluation.appearance.representations import coefficients_of
from export3d.expression.encoder import ExpressionConfig, ExpressionEncoder


def test_spread_frames_are_distinct_usable_even_and_keep_both_ends() -> None:
    usable = np.ones(200, bool)
    usable[[0, 7, 8, 199]] = False
    rows = spread_frames(usable, 33)
    assert len(set(rows.tolist())) == 33
    assert usable[rows].all()
    assert (rows[0], rows[-1]) == (1, 198)
    assert set(np.diff(rows).tolist()) <= {6, 7, 8}
    assert spread_frames(np.ones(33, bool)).tolist() == list(range(33))


def test_a_clip_with_too_few_usable_frames_cannot_be_spread() -> None:
    with pytest.raises(InputError, match="32 usable frames"):
        spread_frames(np.ones(32, bool), 33)


def test_retrieval_of_perfect_embeddings_is_certain_whatever_their_lengths(rng: np.random.Generator) -> None:
    images = torch.from_numpy(rng.normal(size=(33, 16)))
    lengths = torch.from_numpy(rng.uniform(0.1, 9.0, size=(33, 1)))
    assert retrieval_accuracy(images, images * lengths, 1) == 1.0


def test_retrieval_of_unrelated_embeddings_is_chance_and_of_collapsed_ones_is_zero(rng: np.random.Generator) -> None:
    images, expressions = (torch.from_numpy(rng.normal(size=(1000, 64))) for _ in range(2))
    assert retrieval_accuracy(images, expressions, 150) == pytest.approx(0.15, abs=0.04)
    assert retrieval_accuracy(images, expressions[:1].repeat(1000, 1), 150) == 0.0
    assert retrieval_accuracy(images, images.flip(0), 1000) == 1.0
    assert retrieval_accuracy(images, images * torch.nan, 150) == 0.0


def test_retrieval_agrees_with_a_search_one_by_one(rng: np.random.Generator) -> None:
    images, expressions = rng.normal(size=(2, 20, 4))
    expressions += images
    hits = 0
    for i, image in enumerate(images):
        cosines = [image @ e / np.linalg.norm(image) / np.linalg.norm(e) for e in expressions]
        hits += i in np.argsort(cosines)[::-1][:3]
    assert 0 < hits < 20
    assert retrieval_accuracy(torch.from_numpy(images), torch.from_numpy(expressions), 3) == pytest.approx(hits / 20)


def test_retrieval_wants_an_expression_for_every_image() -> None:
    with pytest.raises(ShapeError):
        retrieval_accuracy(torch.zeros(5, 4), torch.zeros(4, 4))


def held_of(neutral: np.ndarray, smiling: np.ndarray) -> float:
    """Held expression of everyone."""
    return float(held_expression(neutral, smiling)(np.arange(len(neutral))))


def test_held_expression_is_the_spread_over_the_way(rng: np.random.Generator) -> None:
    neutral = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    assert held_of(neutral, neutral + np.array([5.0, 0.0])) == pytest.approx(np.sqrt(2.5) / 5.0)
    neutral, smiling = rng.normal(size=(2, 40, 7))
    spread = np.sqrt(((neutral - neutral.mean(0)) ** 2).sum(-1).mean())
    way = np.linalg.norm(smiling.mean(0) - neutral.mean(0))
    assert held_of(neutral, smiling) == pytest.approx(spread / way)


def test_held_expression_ignores_shift_turn_and_scale(rng: np.random.Generator) -> None:
    neutral, smiling = rng.normal(size=(2, 12, 5))
    turn = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    moved = [7.0 * x @ turn + 100.0 for x in (neutral, smiling)]
    assert held_of(*moved) == pytest.approx(held_of(neutral, smiling))


def test_of_an_encoder_and_of_its_embedding_the_held_expression_is_the_same(rng: np.random.Generator) -> None:
    encoder = ExpressionEncoder(ExpressionConfig())
    beta = rng.random((2, 30, 52), dtype=np.float32)
    with torch.no_grad():
        embedded = [encoder(torch.from_numpy(x)).double().numpy() for x in beta]
    coefficients = [coefficients_of(encoder)(x) for x in beta]
    assert held_of(*coefficients) == pytest.approx(held_of(*embedded), rel=1e-4)


def test_held_expression_is_zero_without_appearance_and_undefined_without_expression(rng: np.random.Generator) -> None:
    same = np.tile(rng.normal(size=5), (8, 1))
    assert held_of(same, same + 1.0) == pytest.approx(0.0, abs=1e-6)
    assert np.isnan(held_of(same, same))


def test_effective_rank_counts_the_dimensions_that_are_used(rng: np.random.Generator) -> None:
    assert effective_rank(rng.normal(size=(20_000, 6))) == pytest.approx(6.0, abs=0.01)
    assert effective_rank(rng.normal(size=(500, 1)) * rng.normal(size=8)) == pytest.approx(1.0, abs=1e-6)
    assert effective_rank(np.ones((10, 4))) == 0.0
    assert effective_rank(rng.normal(size=(10, 1))) == pytest.approx(1.0)


@pytest.mark.parametrize("frames", [73, 74, 200])
def test_the_halves_of_a_clip_keep_a_second_apart(frames: int) -> None:
    found = np.ones(frames, bool)
    found[3] = False
    first, second = halves(found)
    assert first[0] == 0
    assert 3 not in first
    assert second[-1] == frames - 1
    assert second[0] - first[-1] in (26, 27)
    assert abs((first[-1] + 1) - (frames - second[0])) <= 1


def test_probes_name_people_who_look_different_and_guess_otherwise(rng: np.random.Generator) -> None:
    pytest.importorskip("sklearn")
    who = np.repeat(np.arange(8), 50)
    noise = rng.normal(size=(2, 400, 6))
    looks = 10.0 * rng.normal(size=(8, 6))[who]
    for accuracy in probe(noise[0] + looks, who, noise[1] + looks, who):
        assert accuracy.shape == (8,)
        assert accuracy.mean() > 0.95
    for accuracy in probe(noise[0], who, noise[1], who):
        assert accuracy.mean() == pytest.approx(1 / 8, abs=0.06)


def test_a_collapsed_encoder_names_nobody() -> None:
    pytest.importorskip("sklearn")
    who = np.repeat(np.arange(4), 10)
    for accuracy in probe(np.ones((40, 3)), who, np.ones((40, 3)), who):
        assert accuracy.mean() == pytest.approx(0.25)
