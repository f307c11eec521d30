"""The background behind people, as it is, blurred and replaced."""

import sys

import numpy as np
import pytest
from PIL import Image

from export3d.errors import BadImage, ConfigError, ShapeError
from export3d.face.crop import CropBox
from export3d.image import write_png
from export3d.photo.background import apart, plate, replaced
from export3d.photo.options import check_background


@pytest.fixture
def photo():
    """A red disc on a wall that grows brighter to the right: image, matte, the wall alone."""
    y, x = np.mgrid[:240, :320] + 0.5
    wall = np.repeat((80 + 0.3 * x).round().astype(np.uint8)[..., None], 3, axis=2)
    alpha = np.clip(60 - np.hypot(x - 150, y - 130) + 0.5, 0, 1)
    red = np.array([250.0, 10.0, 10.0])
    image = (alpha[..., None] * red + (1 - alpha[..., None]) * wall).round().astype(np.uint8)
    return image, (alpha * 255).round().astype(np.uint8), wall


def test_far_from_people_the_plate_is_the_photo_to_the_bit(photo, rng):
    image, matte, _ = photo
    noisy = rng.integers(0, 256, image.shape, dtype=np.uint8)
    y, x = np.mgrid[:240, :320] + 0.5
    far = np.hypot(x - 150, y - 130) > 60 + 8
    np.testing.assert_array_equal(plate(noisy, matte)[far], noisy[far])


def test_the_plate_continues_the_wall_behind_the_person(photo):
    image, matte, wall = photo
    got = plate(image, matte).astype(int)
    assert np.abs(got - wall).max() <= 12
    y, x = np.mgrid[:240, :320] + 0.5
    band = np.abs(np.hypot(x - 150, y - 130) - 60) < 6
    assert np.abs(got - wall)[band].max() <= 4


def test_the_plate_has_no_edge_at_the_contour(photo):
    """Its steps are no larger than twice those of the wall."""
    image, matte, wall = photo
    got = plate(image, matte).astype(int)
    for axis in (0, 1):
        assert np.abs(np.diff(got, axis=axis)).max() <= 2 * max(np.abs(np.diff(wall.astype(int), axis=1)).max(), 1)


def test_a_photo_that_is_all_person_has_a_plate(photo):
    image, matte, _ = photo
    assert plate(image, np.full_like(matte, 255)).shape == image.shape


def test_a_photo_without_people_is_its_own_plate(photo):
    image, matte, _ = photo
    np.testing.assert_array_equal(plate(image, np.zeros_like(matte)), image)
    np.testing.assert_array_equal(replaced(image, np.zeros_like(matte), "keep"), image)


BOX = CropBox((150.0, 130.0), 200.0)


def laid_over(behind, moving):
    share = moving[..., 3:] / 255.0
    return (share * moving[..., :3] + (1 - share) * behind).round()


def test_before_a_plain_wall_a_margin_moves_with_the_person(photo):
    image, matte, _ = photo
    behind, moving = apart(image, matte, [BOX])
    np.testing.assert_array_equal(behind, plate(image, matte))
    np.testing.assert_array_equal(laid_over(behind, moving), image)
    np.testing.assert_array_equal(moving[..., :3], image)
    y, x = np.mgrid[:240, :320] + 0.5
    away = np.hypot(x - 150, y - 130) - 60
    assert (moving[away < 4, 3] == 255).all()
    assert (moving[away > 16, 3] == 0).all()


def test_loose_hair_before_a_plain_wall_moves_with_the_person(photo):
    """The matte misses a line that begins at the person; a block of the wall that touches the person stays."""
    image, matte, wall = photo
    box = CropBox((150.0, 130.0), 300.0)
    image[100:160, 208:238] = image[129:131, 72:92] = 20
    behind, moving = apart(image, matte, [box])
    hair = slice(129, 131), slice(73, 92)
    assert (moving[hair][..., 3] == 255).all()
    assert np.abs(behind[hair].astype(int) - wall[hair]).max() < 16
    block = slice(105, 155), slice(225, 238)
    assert (moving[block][..., 3] == 0).all()
    np.testing.assert_array_equal(behind[block], image[block])
    left = slice(None), slice(0, 150)
    np.testing.assert_array_equal(laid_over(behind, moving)[left], image[left])


def test_before_a_background_with_details_the_person_moves_alone(photo):
    image, matte, _ = photo
    y, x = np.mgrid[:240, :320]
    board = np.where(((x // 6 + y // 6) % 2 == 0)[..., None], 60, 200).astype(np.uint8)
    image = np.where(matte[..., None] > 0, image, board)
    behind, moving = apart(image, matte, [BOX])
    away = np.hypot(x + 0.5 - 150, y + 0.5 - 130) - 60
    np.testing.assert_array_equal(moving[..., 3], matte)
    assert np.abs(behind[away > 6].astype(int) - image[away > 6]).max() <= 1
    assert np.abs(behind[away < -6].astype(int) - 130).max() < 60  # nothing of the red disc
    assert np.abs(laid_over(behind, moving) - image)[np.abs(away) > 6].max() <= 1


def board(size, shape=(240, 320)):
    """A chessboard with fields of this size."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.where(((x // size + y // size) % 2 == 0)[..., None], 60, 200).astype(np.uint8).repeat(3, axis=2)


def test_what_continues_a_photo_says_nothing_of_its_details(photo):
    """Beside the photo's border lie smooth colours, as beyond the border of a canvas."""
    image, matte, _ = photo
    image = np.where(matte[..., None] > 0, image, board(6))
    image[:, 215:] = 130
    seen = slice(0, 240), slice(0, 215)
    y, x = np.mgrid[:240, :215] + 0.5
    beside = (x > 170) & (np.hypot(x - 150, y - 130) > 66)
    taken = [apart(image, matte, [BOX], *of)[1][seen][..., 3] for of in ((), (seen,))]
    assert taken[0][beside].max() > 40, "without the photo's limits the margin moves"
    assert taken[1][beside].max() <= 1


def test_specks_beside_the_person_are_not_filled_in(photo):
    image, matte, _ = photo
    image = np.where(matte[..., None] > 0, image, board(6))
    matte[30:40, 30:40] = 30
    behind, _ = apart(image, matte, [BOX])
    np.testing.assert_array_equal(behind[20:60, 20:60], image[20:60, 20:60])


@pytest.mark.parametrize("installed", [True, False])
def test_edges_go_on_behind_the_person_where_opencv_is_installed(photo, monkeypatch, installed):
    pytest.importorskip("cv2", exc_type=ImportError)
    image, matte, _ = photo
    y, x = np.mgrid[:240, :320] + 0.5
    stripes = np.where((y // 12 % 2 == 0)[..., None], 40, 220).astype(np.uint8).repeat(3, axis=2)
    image = np.where(matte[..., None] > 0, image, stripes)
    if not installed:
        monkeypatch.setitem(sys.modules, "cv2", None)
    behind, _ = apart(image, matte, [BOX])
    ring = np.abs(np.hypot(x - 150, y - 130) - 48) < 2
    assert (behind[ring].std() > 45) == installed
    assert np.abs(np.ptp(behind[ring], axis=-1)).max() <= 1, "nothing of the red disc"


def test_the_margin_before_hardly_any_details_has_the_walls_colours(photo):
    """Faint details: the person has part of a margin, whose colours are not continued from the person."""
    image, matte, _ = photo
    faint = (130 + (board(6).astype(int) - 130) * 0.13).round().astype(np.uint8)
    image = np.where(matte[..., None] > 0, image, faint)
    behind, moving = apart(image, matte, [BOX])
    margin = (matte == 0) & (moving[..., 3] > 60) & (moving[..., 3] < 250)
    assert margin.sum() > 200
    assert np.abs(moving[margin][:, :3].astype(int) - image[margin]).max() <= 1
    assert np.abs(laid_over(behind, moving) - image)[margin].max() <= 12


def test_a_blurred_background_shows_nothing_of_the_person(photo):
    image, matte, wall = photo
    got = replaced(image, matte, "blur").astype(int)
    assert np.abs(got[..., 0] - got[..., 1]).max() <= 1  # no red
    assert np.abs(got - wall)[10:-10, 10:-10].max() <= 12


def test_a_blur_takes_away_detail(photo, rng):
    noisy = rng.integers(0, 256, photo[0].shape, dtype=np.uint8)
    assert replaced(noisy, np.zeros_like(photo[1]), "blur").std() < 0.2 * noisy.std()


def test_a_colour_fills_the_background(photo):
    image, matte, _ = photo
    got = replaced(image, matte, "#20A040")
    assert got.shape == image.shape
    assert (got == [32, 160, 64]).all()


def test_an_image_covers_the_photo_and_is_cut_at_its_centre(photo, tmp_path):
    image, matte, _ = photo
    bands = np.zeros((300, 900, 3), np.uint8)
    bands[:, 300:600] = 200
    write_png(tmp_path / "blur", bands)
    got = replaced(image, matte, str(tmp_path / "blur"))
    assert got.shape == image.shape
    edge = int((got[120, :, 0] > 100).argmax())
    assert abs(edge - 40) <= 1  # 300 columns of 900 at 0.8 are 240, in the middle of 320


def test_an_image_covers_the_window_alone(photo, tmp_path):
    image, matte, _ = photo
    bands = np.zeros((300, 900, 3), np.uint8)
    bands[:, 300:600] = 200
    write_png(tmp_path / "blur", bands)
    rows, columns = slice(20, 220), slice(60, 260)
    got = replaced(image, matte, str(tmp_path / "blur"), (rows, columns))
    assert got.shape == image.shape
    np.testing.assert_array_equal(
        got[rows, columns], replaced(image[rows, columns], matte[rows, columns], str(tmp_path / "blur"))
    )


def test_an_image_that_cannot_be_read_is_a_bad_image(photo, tmp_path):
    image, matte, _ = photo
    torn = tmp_path / "torn.png"
    Image.fromarray(image).save(torn)
    torn.write_bytes(torn.read_bytes()[:300])
    (tmp_path / "text.png").write_text("not an image")
    for path in (torn, tmp_path / "text.png", tmp_path / "missing.png", tmp_path):
        with pytest.raises(BadImage):
            replaced(image, matte, str(path))


def test_a_missing_image_is_noticed_without_reading_any(photo, tmp_path):
    Image.fromarray(photo[0]).save(tmp_path / "own.png")
    assert check_background(str(tmp_path / "own.png")) == tmp_path / "own.png"
    for text in (str(tmp_path / "missing.png"), str(tmp_path), "a.b" * 2000, "x" * 5000):
        with pytest.raises(BadImage):
            check_background(text)


@pytest.mark.parametrize("text", ["", "blurr", "Keep", "#12345", "#12345g", "#1234567", "#", "red", "a\0b"])
def test_other_texts_are_refused_in_one_sentence(text, photo):
    with pytest.raises(ConfigError, match="background") as caught:
        check_background(text)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError):
        replaced(photo[0], photo[1], text)


def test_other_arrays_are_refused(photo):
    image, matte, _ = photo
    with pytest.raises(ShapeError):
        plate(image, matte[1:])
    with pytest.raises(ShapeError):
        replaced(image.astype(np.float32), matte, "#000000")
