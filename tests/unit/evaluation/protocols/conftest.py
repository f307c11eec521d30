"""Folders of predictions."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.saved_clips import save


@pytest.fixture(scope="session")
def two_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written once: every written picture waits for the disk."""
    folder = tmp_path_factory.mktemp("predictions")
    save(folder, "anna")
    save(folder, "bob")
    return folder


@pytest.fixture
def folder(two_clips: Path, tmp_path: Path) -> Path:
    """Two good clips, `anna` and `bob`, of four frames, to be spoiled."""
    return shutil.copytree(two_clips, tmp_path / "saved")
