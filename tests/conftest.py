"""What the tests share: where the real clips lie, the bundled portrait, seeds and one thread."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "src" / "export3d" / "assets"


def _shared_root() -> Path:
    """The folder with real data: EXPORT3D_SHARED, or `shared` beside the checkout."""
    return Path(os.environ.get("EXPORT3D_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the checkout that holds real clips and third-party weights; skips where there is none."""
    root = _shared_root()
    if not root.is_dir():
        pytest.skip(f"no shared data at {root}; set EXPORT3D_SHARED to run what needs it")
    return root


@pytest.fixture(scope="session")
def shared_data(shared: Path) -> Path:
    """The real clips and portraits (`clips/`, `portraits/`, `manifest.csv`); skips where there are none."""
    data = shared / "data"
    if not (data / "manifest.csv").is_file():
        pytest.skip(f"no manifest.csv in {data}")
    return data


@pytest.fixture(scope="session")
def shared_models(shared: Path) -> Path:
    """Third-party weights for losses and metrics; skips where there are none."""
    models = shared / "models"
    if not models.is_dir():
        pytest.skip(f"no models in {shared}")
    return models


@pytest.fixture(scope="session")
def assets() -> Path:
    """The package's own data files."""
    return ASSETS


@pytest.fixture(scope="session")
def astronaut_path() -> Path:
    """The bundled public-domain portrait, a 512 x 512 PNG."""
    return ASSETS / "astronaut.png"


@pytest.fixture
def astronaut(astronaut_path: Path) -> np.ndarray:
    """The bundled portrait as uint8 (512, 512, 3) RGB; a fresh copy for each test."""
    from PIL import Image

    with Image.open(astronaut_path) as image:
        return np.array(image.convert("RGB"))


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded NumPy generator."""
    return np.random.default_rng(20240411)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same seeds, whatever ran before it."""
    np.random.seed(0)  # noqa: NPY002 - third-party code still draws from the global generator
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    """Results do not depend on the number of cores of the machine that runs the tests."""
    import torch

    torch.set_num_threads(min(2, os.cpu_count() or 1))
