"""Faces that the tests of consent compare."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export3d.face.tracker import Tracker
from tests.conftest import ROOT


@pytest.fixture(scope="session")
def tracker() -> Tracker:
    pytest.importorskip("mediapipe")
    return Tracker()


@pytest.fixture(scope="session")
def stranger() -> np.ndarray:
    """Another person's portrait, from a figure of the documentation, uint8 (208, 208, 3)."""
    with Image.open(ROOT / "docs" / "images" / "orbit_p0196_01.webp") as image:
        return np.array(image.convert("RGB"))[-208:, :208].copy()


@pytest.fixture
def policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A policy that asks for consent, and a home with an empty register; returns the register's path."""
    home, file = tmp_path / "home", tmp_path / "policy.toml"
    file.write_text('consent = "register"\n')
    monkeypatch.setenv("EXPORT3D_HOME", str(home))
    monkeypatch.setenv("EXPORT3D_POLICY", str(file))
    return home / "consent.json"
