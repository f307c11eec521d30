"""Crops that reach beyond the photo: nothing changes inside, and nothing outside catches the eye."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from export3d.face.crop import CropBox, crop
from export3d.photo.extension import extended_crop, share_outside

TIGHT = CropBox((60.0, 70.0), 160.0)
"""Of a photo of 120 x 140 pixels: 20 pixels lie outside on the left and the right, 10 above and below."""


def noise(height: int = 140, width: int = 120) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("box", [CropBox((60.3, 66.2), 101.7), CropBox((60.0, 60.0), 120.0)])
@pytest.mark.parametrize("size", [64, 120])
def test_a_square_inside_the_photo_is_cropped_to_the_bit(box: CropBox, size: int) -> None:
    assert np.array_equal(extended_crop(noise(), box, size, 0.25), crop(noise(), box, size))


def test_what_lies_inside_the_photo_is_the_photo() -> None:
    image = noise()
    assert np.array_equal(extended_crop(image, TIGHT, 160)[10:150, 20:140], image)


def test_a_crop_and_a_wider_one_match() -> None:
    wide = extended_crop(noise(), CropBox(TIGHT.centre, 240.0), 240)
    assert np.array_equal(extended_crop(noise(), TIGHT, 160, 0.25), wide[40:200, 40:200])


def test_a_plain_wall_goes_on() -> None:
    image = np.full((140, 120, 3), (200, 100, 50), np.uint8)
    assert np.array_equal(extended_crop(image, TIGHT, 96), np.broadcast_to(image[0, 0], (96, 96, 3)))


def test_edges_give_no_stripes() -> None:
    """Repeated edges vary as much from row to row as the edge itself; 15 pixels out, next to nothing is left."""
    image = noise()
    made, repeated = (
        one[10:150, 5].astype(float) for one in (extended_crop(image, TIGHT, 160), crop(image, TIGHT, 160))
    )
    steps = [np.abs(np.diff(column, axis=0)).mean() for column in (made, repeated)]
    assert steps[0] < 0.05 * steps[1]


def test_the_border_of_the_photo_shows_no_step() -> None:
    y, x = np.mgrid[:140, :120]
    image = np.stack([128 + 60 * np.sin(x / 9.0), 128 + 60 * np.cos(y / 7.0), x + 0.5 * y], axis=-1).astype(np.uint8)
    made = extended_crop(image, TIGHT, 160).astype(float)
    for border, steps in ((20, np.abs(np.diff(made, axis=1)[10:150])), (10, np.abs(np.diff(made, axis=0)[:, 20:140]))):
        along = steps.mean(axis=(0, 2) if border == 20 else (1, 2))
        assert along[border - 1] <= along[border : border + 20].max()


def test_nothing_is_mirrored() -> None:
    """A bright spot 10 pixels inside the border, as an eye may be, does not come back 10 pixels outside."""
    image = np.full((140, 120, 3), 60, np.uint8)
    image[60:70, 5:15] = 255
    beyond = extended_crop(image, TIGHT, 160)[:, :20]
    assert beyond.max() < 80
    assert beyond[75, 0].max() < 70


@pytest.mark.parametrize(
    ("box", "share"),
    [
        (CropBox((60.0, 70.0), 100.0), 0.0),
        (CropBox((0.0, 70.0), 100.0), 0.5),
        (CropBox((0.0, 140.0), 100.0), 0.75),
        (TIGHT, 1.0 - 120 * 140 / 160**2),
        (CropBox((-500.0, 70.0), 100.0), 1.0),
    ],
)
def test_the_share_outside_is_that_of_the_area(box: CropBox, share: float) -> None:
    assert share_outside(noise(), box) == pytest.approx(share)


@pytest.mark.slow
def test_a_head_at_the_border_of_a_very_large_photo_is_extended_from_a_reduced_one() -> None:
    """The result looks as before, and the patch of 81 megapixels is never made."""
    y, x = np.mgrid[:500, :500]
    small = np.stack([128 + 60 * np.sin(x / 50.0), 128 + 60 * np.cos(y / 40.0), (x + y) / 5], axis=-1).astype(np.uint8)
    large = np.repeat(np.repeat(small, 4, axis=0), 4, axis=1)
    tracemalloc.start()
    made = extended_crop(large, CropBox((500.0, 1000.0), 6000.0), 128, 0.25)
    assert tracemalloc.get_traced_memory()[1] < 250e6
    tracemalloc.stop()
    expected = extended_crop(small, CropBox((125.0, 250.0), 1500.0), 128, 0.25)
    assert np.abs(made.astype(int) - expected).max() <= 3
