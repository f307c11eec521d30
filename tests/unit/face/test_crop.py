"""The face crop and its inverse."""

import tracemalloc

import numpy as np
import pytest
from PIL import Image

from export3d.errors import ShapeError
from export3d.face.crop import CropBox, crop, crop_box, paste, reduced


def test_to_crop_and_from_crop_undo_each_other(rng):
    box = CropBox((123.4, 56.7), 89.1)
    points = rng.uniform(-500, 500, (7, 478, 2))
    np.testing.assert_allclose(box.from_crop(box.to_crop(points, 300), 300), points, atol=1e-9)
    np.testing.assert_allclose(box.to_crop([box.corner, box.corner + box.side]), [[0, 0], [256, 256]], atol=1e-9)


def test_a_crop_on_whole_pixels_at_its_own_size_is_a_copy(astronaut):
    cropped = crop(astronaut, CropBox((200.0, 150.0), 128.0), 128)
    np.testing.assert_array_equal(cropped, astronaut[86:214, 136:264])


@pytest.mark.parametrize("side", [40, 41])
@pytest.mark.parametrize("centre", [(100.3, 60.6), (3.0, 250.2)])
def test_whole_pixels_are_copied_where_resampling_would_change_nothing(astronaut, centre, side):
    box = CropBox(centre, side + 0.3).whole()
    assert np.abs(np.subtract(box.centre, centre)).max() <= 0.5
    assert box.side == side
    beyond = np.pad(astronaut, [(40, 40), (40, 40), (0, 0)], mode="edge")
    left, top = (box.corner + 40).tolist()
    resampled = Image.fromarray(beyond).resize(
        (side, side), Image.Resampling.BICUBIC, (left, top, left + side, top + side)
    )
    np.testing.assert_array_equal(crop(astronaut, box, side), np.asarray(resampled))


def test_the_edge_is_repeated_beyond_the_picture(astronaut):
    cropped = crop(astronaut, CropBox((0.0, 256.0), 64.0), 64)
    np.testing.assert_array_equal(cropped[:, 32:], astronaut[224:288, :32])
    np.testing.assert_array_equal(cropped[:, :32], np.repeat(astronaut[224:288, :1], 32, axis=1))


def test_a_crop_wholly_outside_shows_the_nearest_corner(astronaut):
    cropped = crop(astronaut, CropBox((-500.0, -500.0), 100.0), 16)
    assert (cropped == astronaut[0, 0]).all()


def test_shrinking_averages_instead_of_skipping_pixels():
    checkers = np.indices((256, 256)).sum(0) % 2 * 255
    image = np.repeat(checkers[..., None], 3, axis=2).astype(np.uint8)
    cropped = crop(image, CropBox((128.0, 128.0), 200.0), 50)
    assert np.abs(cropped.astype(int) - 127.5).max() < 3


@pytest.mark.parametrize("side", [100.0, 256.0, 333.3])
def test_points_move_with_the_pixels(side):
    """On a picture whose red is x and whose green is y, the crop's colours are the coordinates `from_crop` gives."""
    y, x = np.mgrid[:250, :250].astype(np.uint8)
    image = np.stack([x, y, np.zeros_like(x)], axis=-1)
    box = CropBox((124.3, 126.1), min(side, 240.0))
    cropped = crop(image, box, 64)
    at = np.array([[20, 31], [31, 20], [40, 40]])
    expected = box.from_crop(at + 0.5, 64) - 0.5
    np.testing.assert_allclose(cropped[at[:, 1], at[:, 0], :2], expected, atol=0.75)


def test_paste_puts_the_crop_back_and_touches_nothing_else(astronaut):
    box = CropBox((223.7, 127.0), 200.4)
    back = paste(astronaut, crop(astronaut, box, 512), box)
    inside = np.zeros((512, 512), bool)
    inside[27:227, 124:323] = True
    np.testing.assert_array_equal(back[~inside], astronaut[~inside])
    difference = np.abs(back.astype(int) - astronaut)[inside]
    assert difference.mean() < 2.0  # two resamplings blur a little
    changed = paste(astronaut, np.zeros((256, 256, 3), np.uint8), box)
    assert (changed[inside] == 0).all()


def test_paste_beyond_the_edges_keeps_the_picture_size(astronaut):
    black = np.zeros((256, 256, 3), np.uint8)
    corner = paste(astronaut, black, CropBox((0.0, 0.0), 100.0))
    assert (corner[:50, :50] == 0).all()
    np.testing.assert_array_equal(corner[50:], astronaut[50:])
    np.testing.assert_array_equal(paste(astronaut, black, CropBox((-300.0, 20.0), 100.0)), astronaut)


def test_the_box_of_a_clip_is_the_median_over_its_frames(rng):
    landmarks = np.zeros((21, 478, 2))
    landmarks[:, 4], landmarks[:, 10], landmarks[:, 152] = (100.0, 90.0), (100.0, 40.0), (100.0, 140.0)
    landmarks[:5] += 1000.0  # fewer than half the frames are elsewhere
    landmarks[:5] *= 3.0
    box = crop_box(landmarks)
    assert box.centre == (100.0, 90.0)
    assert box.side == pytest.approx(190.0)
    assert crop_box(landmarks[10]) == box


@pytest.mark.parametrize("box", [((0.0, 0.0), 0.0), ((0.0, 0.0), -1.0), ((np.nan, 0.0), 5.0), ((0.0, 0.0), np.inf)])
def test_a_box_without_size_or_place_is_refused(box):
    with pytest.raises(ShapeError):
        CropBox(*box)


def test_pictures_of_another_kind_are_refused():
    with pytest.raises(ShapeError):
        crop(np.zeros((32, 32), np.uint8), CropBox((16.0, 16.0), 16.0))
    with pytest.raises(ShapeError):
        crop(np.zeros((32, 32, 3), np.float32), CropBox((16.0, 16.0), 16.0))  # type: ignore[arg-type]
    with pytest.raises(ShapeError):
        crop_box(np.zeros((0, 478, 2)))


@pytest.mark.slow
def test_a_square_far_larger_than_needed_takes_little_memory(astronaut):
    """The patch of its repeated edges would have 49 megapixels; squares inside the image are read as they are."""
    image = np.repeat(np.repeat(astronaut, 2, axis=0), 2, axis=1)
    assert reduced(image, CropBox((500.0, 500.0), 990.0), 1)[0] is image
    tracemalloc.start()
    cropped = crop(image, CropBox((250.0, 1030.0), 7000.0), 128).astype(int)
    assert tracemalloc.get_traced_memory()[1] < 180e6
    tracemalloc.stop()
    assert np.abs(cropped - crop(astronaut, CropBox((125.0, 515.0), 3500.0), 128)).max() <= 1
