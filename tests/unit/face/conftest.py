"""What the tests of the face room share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from export3d.face.landmarks import FaceLandmarker


@pytest.fixture(scope="session")
def landmarker() -> Iterator[FaceLandmarker]:
    """One real landmarker for all tests; skips where mediapipe is not installed."""
    pytest.importorskip("mediapipe", exc_type=ImportError)
    with FaceLandmarker() as opened:
        yield opened
