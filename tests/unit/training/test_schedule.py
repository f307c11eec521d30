import math
from itertools import pairwise

import pytest

from export3d.training.schedule import ema_decay, is_due, learning_rate


def test_warm_up_is_linear_then_constant():
    rates = [learning_rate(n, lr=2.0, warmup_images=1000) for n in range(0, 3000, 100)]
    assert rates[1:10] == pytest.approx([0.2 * n for n in range(1, 10)])
    assert rates[10:] == [2.0] * 20


def test_the_first_step_of_a_warm_up_already_moves():
    assert 0.0 < learning_rate(0, lr=1.0, warmup_images=1000) < 0.01


def test_the_cosine_falls_from_lr_to_the_final_ratio_without_a_jump():
    rates = [learning_rate(1e9, lr=1.0, progress=p / 1000, decay_from=0.4, final_ratio=0.1) for p in range(1201)]
    assert rates[:401] == [1.0] * 401
    assert rates[1000:] == pytest.approx([0.1] * 201)
    falls = [a - b for a, b in pairwise(rates)]
    assert min(falls) >= 0.0
    assert max(falls) < 0.003
    assert rates[700] == pytest.approx(0.55)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_after_one_half_life_half_of_the_old_average_is_left(batch_size):
    left = math.prod(ema_decay(1e9, batch_size, halflife_images=batch_size * 10) for _ in range(10))
    assert left == pytest.approx(0.5)


def test_the_half_life_is_a_twentieth_of_the_images_seen_until_it_is_reached():
    """EG3D: min(halflife, images seen * 0.05)."""
    assert ema_decay(0, 32, halflife_images=1000) == 0.0
    assert ema_decay(2000, 50, halflife_images=1000) == pytest.approx(0.5 ** (50 / 100))
    assert ema_decay(20_000, 50, halflife_images=1000) == pytest.approx(0.5 ** (50 / 1000))
    assert ema_decay(10**9, 50, halflife_images=1000) == pytest.approx(0.5 ** (50 / 1000))


def test_no_half_life_means_no_averaging():
    assert ema_decay(10**6, 8, halflife_images=0) == 0.0


@pytest.mark.parametrize("batch_size", [1, 3, 16, 250])
def test_something_is_due_once_per_period_whatever_the_batch_size(batch_size):
    edges = range(0, 1001, batch_size)
    due = sum(is_due(100, a, b) for a, b in pairwise(edges))
    assert due == (edges[-1] // 100 if batch_size <= 100 else len(edges) - 1)


def test_a_period_of_zero_is_never_due():
    assert not any(is_due(0, n, n + 10) for n in range(100))
