"""What tests of commands share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder for results; looked at after each refusal."""
    folder = tmp_path / "results"
    folder.mkdir()
    return folder
