"""The bundled portrait, encoded by the packaged weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from export3d.animate.animator import Animator, Source


@pytest.fixture(scope="module")
def animator() -> Animator:
    return Animator.from_pretrained(device="cpu")


@pytest.fixture(scope="module")
def source(animator: Animator, astronaut_path: Path) -> Source:
    return animator.encode(astronaut_path)
