"""Small folders of predictions, for tests that read, score or spoil them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from export3d.evaluation.protocols.prediction_writer import PredictionWriter

SIZE = 32


def pictures(count: int, seed: int = 0, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def save(folder: Path, name: str = "anna", count: int = 4, size: int = SIZE) -> Path:
    """A good clip."""
    seed = len(name)
    with PredictionWriter(folder).clip(name, pictures(1, seed, size)[0]) as clip:
        clip.add(pictures(count, seed + 1, size), pictures(count, seed + 2, size))
    return folder / name
