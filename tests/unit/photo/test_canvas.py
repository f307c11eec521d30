"""The pixel grid of frames: sizes, frames, and what a photo cannot give."""

from __future__ import annotations

import numpy as np
import pytest

from export3d.errors import ConfigError
from export3d.face.crop import CropBox
from export3d.photo import canvas as module
from export3d.photo.canvas import canvas
from export3d.photo.options import parse_size


def photo(height: int = 301, width: int = 405) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


BOX = CropBox((200.3, 140.6), 121.4)


def test_the_whole_photo_is_shown_in_its_own_pixels() -> None:
    image = photo()
    made = canvas(image, BOX)
    assert np.array_equal(made.image[made.window], image[:300, :404])
    assert made.place(BOX) == BOX


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_the_canvas_reaches_beyond_a_photo_that_a_crop_reaches_beyond(scale: float) -> None:
    image, box = photo(300, 404), CropBox((390.0, 140.0), 200.0)
    made = canvas(image, box, long_side=round(404 * scale))
    alone = canvas(image, BOX, long_side=round(404 * scale))
    assert np.array_equal(made.image[made.window], alone.image)
    assert made.image.shape == (round(400 * scale), round(504 * scale), 3), "a quarter of the crop on every side"
    assert made.limits == (50.0 * scale, 0.0, 454.0 * scale, 350.0 * scale)
    assert made.place(box).centre == pytest.approx((440.0 * scale, 190.0 * scale))
    other = canvas(image, BOX, others=[box])
    assert other.window[0].start == round(0.25 * BOX.side), "also for the sake of another face"


def test_a_crop_is_shown_in_the_photos_own_pixels() -> None:
    image = photo()
    made = canvas(image, BOX, frame="crop")
    shown, box = made.image[made.window], made.place(BOX)
    assert shown.shape == (120, 120, 3)
    left, top = round(made.corner[0]) + made.window[1].start, round(made.corner[1]) + made.window[0].start
    assert np.array_equal(shown, image[top : top + 120, left : left + 120])
    assert box.side == BOX.side
    assert box.corner == pytest.approx(np.subtract(BOX.corner, made.corner))


@pytest.mark.parametrize("frame", ["photo", "crop"])
def test_a_size_is_that_of_the_face_crop(frame: str) -> None:
    image, box = photo(900, 1201), CropBox((600.0, 450.0), 700.0)
    made = canvas(image, box, 256, frame)
    assert made.place(box).side == pytest.approx(256.0)
    height, width = made.image[made.window].shape[:2]
    assert (height, width) == ((256, 256) if frame == "crop" else (328, 438))


def test_a_video_of_a_large_photo_is_scaled_down_unless_a_size_is_asked_for() -> None:
    image, box = np.zeros((1000, 4000, 3), np.uint8), CropBox((2000.0, 500.0), 800.0)
    for made, shape in (
        (canvas(image, box), (480, 1920, 3)),
        (canvas(image, box, long_side=None), (1000, 4000, 3)),
        (canvas(image, box, 512), (640, 2560, 3)),
    ):
        assert made.image[made.window].shape == shape


def test_a_size_above_the_photos_own_is_said_and_not_reached(caplog: pytest.LogCaptureFixture) -> None:
    made = canvas(photo(), BOX, 512)
    assert "120 x 120" in caplog.text
    assert made.scale == 1.0


@pytest.mark.parametrize("size", [255, 1025, "big", "512.5", "5_12", 512.5, float("inf"), float("nan"), None, 0, -256])
def test_impossible_sizes(size: object) -> None:
    with pytest.raises(ConfigError, match="256 to 1024"):
        parse_size(size)  # type: ignore[arg-type]


def test_frames_of_enormous_photos_are_scaled_down(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "MOST_PIXELS", 30_000)
    made = canvas(photo(), BOX, long_side=None)
    assert made.image.shape == (148, 200, 3)
    assert "megapixels" in caplog.text
    assert canvas(photo(), BOX, 256, "crop").image.shape[0] > 120, "a crop is small in any case"


def test_an_unknown_frame() -> None:
    with pytest.raises(ConfigError, match="photo or crop"):
        canvas(photo(), BOX, frame="square")  # type: ignore[arg-type]


@pytest.mark.parametrize("centre", [(5.0, 5.0), (400.0, 290.0)])
def test_a_crop_beyond_the_photo_is_filled(centre: tuple[float, float]) -> None:
    image = photo()
    made = canvas(image, CropBox(centre, 200.0), frame="crop")
    shown = made.image[made.window]
    assert shown.shape == (200, 200, 3)
    left, top = (round(at) for at in np.subtract(centre, 100.0))
    inside = slice(max(-top, 0), 301 - top), slice(max(-left, 0), 405 - left)
    known = image[max(top, 0) : top + 200, max(left, 0) : left + 200]
    assert np.array_equal(shown[inside], known)
    filled = np.ones((200, 200), bool)
    filled[inside] = False
    assert shown[filled].std() < 0.5 * known.std(), "noise must not go on as stripes"


def test_the_photos_own_pixels_are_known() -> None:
    """They have nothing of the colours that continue it."""
    image = photo(300, 404)
    whole = canvas(image, CropBox((390.0, 140.0), 200.0))
    assert whole.photo == whole.window
    inside = canvas(image, CropBox((200.0, 150.0), 60.0), frame="crop")
    assert inside.photo == (slice(0, inside.image.shape[0]), slice(0, inside.image.shape[1]))
    corner = canvas(image, CropBox((390.0, 290.0), 100.0), frame="crop")
    y, x = corner.photo
    assert (y.start, x.start) == (0, 0)
    assert np.array_equal(corner.image[corner.photo], image[-y.stop :, -x.stop :])
    small = canvas(photo(900, 900), CropBox((100.0, 150.0), 512.0), size=256, frame="crop")
    y, x = small.photo
    assert (y.stop, x.stop) == small.image.shape[:2]
    assert small.place(CropBox((0.0, 0.0), 1.0)).centre == pytest.approx((x.start, y.start), abs=1.0)
