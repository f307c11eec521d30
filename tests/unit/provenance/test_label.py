"""provenance/label.py: the label is legible, stands still, keeps to its corner, and fits into any frame."""

from __future__ import annotations

import numpy as np
import pytest

from export3d.provenance.label import with_label


@pytest.mark.parametrize("side", [128, 256, 512, 1080, 1920])
def test_the_label_is_white_on_dark_in_the_lower_right_corner(side: int) -> None:
    for grey in (0, 128, 255):
        frame = np.full((side, side, 3), grey, np.uint8)
        made = with_label(frame)
        rows, columns = np.nonzero((made != frame).any(axis=-1))
        assert rows.min() > 0.8 * side, "the lower edge"
        assert columns.min() > 0.45 * side, "the right half"
        plate = made[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert plate.max() >= 240, "letters"
        assert np.median(plate) <= 125, "plate"
        assert rows.max() - rows.min() >= 12


def test_frames_of_one_size_have_it_at_the_same_place() -> None:
    black = np.zeros((256, 384, 3), np.uint8)
    assert np.array_equal(with_label(black), with_label(black.copy()))
    assert not black.any(), "the frame itself stays"


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (16, 16), (8, 300), (300, 8), (37, 61), (1081, 719), (64, 4000)])
def test_every_size_takes_a_label(shape: tuple[int, int]) -> None:
    made = with_label(np.zeros((*shape, 3), np.uint8))
    assert made.shape == (*shape, 3)
    assert made.any()
