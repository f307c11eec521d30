"""A canvas taken apart: who is found in it, and what lies beyond the photo."""

from __future__ import annotations

import numpy as np
import pytest

from export3d.face.crop import CropBox
from export3d.photo.canvas import canvas
from export3d.photo.layers import layers
from export3d.photo.matte import person_matte


@pytest.mark.parametrize("frame", ["photo", "crop"])
def test_people_are_looked_for_in_the_photo_alone(astronaut: np.ndarray, frame: str) -> None:
    """Beyond its border the matte goes on, as hair and suit do."""
    pytest.importorskip("mediapipe", exc_type=ImportError)
    face = CropBox((103.7, 107.0), 200.0)
    made = canvas(astronaut[20:230, 120:330], face, frame=frame)  # type: ignore[arg-type]
    box = made.place(face)
    taken = layers(made, [box])
    (top, bottom), (left, right) = ((part.start, part.stop) for part in made.photo)
    assert top > 0
    assert made.image.shape[0] > bottom
    inside = CropBox((box.centre[0] - left, box.centre[1] - top), box.side)
    np.testing.assert_array_equal(taken.matte[made.photo], person_matte(made.image[made.photo], inside))
    for within, beyond in ((top, top - 1), (bottom - 1, bottom + 2)):
        row, other = (taken.matte[at, left:right].astype(int) for at in (within, beyond))
        assert np.abs(row - other).mean() < 12
        assert other.max() == 255
    width = (taken.matte[top] > 127).sum()
    assert width > 30
    if frame == "photo":
        high = int((taken.matte[:top] > 127).any(axis=1).sum())
        assert 2 < high < 0.3 * width, "a flat dome"
        assert not taken.person[: top - high - 2, ..., 3].any(), "no margin of what continues the photo goes along"
    np.testing.assert_array_equal(taken.still, made.image)
