"""Baselines that encoders are compared with."""

from __future__ import annotations

import numpy as np
import torch

from export3d.evaluation.appearance.representations import baselines


def test_baselines_are_standardised_by_the_training_data_alone(rng: np.random.Generator) -> None:
    beta = rng.random((400, 52), dtype=np.float32) * np.linspace(0.0, 1.0, 52, dtype=np.float32)
    rows = {row.name: row.encoders for row in baselines(beta)}
    scored = rows["z-scored beta"][0](beta)
    np.testing.assert_allclose(scored[:, 10:].std(0), 1.0, rtol=1e-4)
    assert np.abs(scored[:, 0]).max() == 0.0
    assert rows["PCA-10 of raw beta"][0](beta).shape == (400, 10)
    covariance = np.cov(rows["PCA-10 of z-scored beta"][0](beta), rowvar=False)
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-6)
    seeds = [encode(beta) for encode in rows["untrained LeBS"]]
    assert len(seeds) == 5
    assert not np.allclose(seeds[0], seeds[1])


def test_the_untrained_encoders_are_the_same_every_time_and_leave_the_generator_alone(rng: np.random.Generator) -> None:
    beta = rng.random((50, 52), dtype=np.float32)
    state = torch.random.get_rng_state()
    one, two = (baselines(beta)[-1].encoders[3](beta) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert torch.equal(torch.random.get_rng_state(), state)
