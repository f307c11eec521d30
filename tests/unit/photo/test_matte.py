"""Opacity of people: the real network on the real portrait, and the refinement against opacities that are known."""

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from export3d.config import preset
from export3d.errors import Export3DError, MissingExtra, ShapeError
from export3d.face import segmenter
from export3d.face.crop import CropBox
from export3d.image import to_tensor
from export3d.model import Export3D
from export3d.photo import matte
from export3d.photo.fields import on_grid
from export3d.photo.matte import crop_mattes, foreground, person_matte, person_share

FACE = CropBox((223.7, 127.0), 200.0)
"""Crop of the astronaut."""


@pytest.fixture(scope="module")
def opacity(astronaut_path):
    pytest.importorskip("mediapipe", exc_type=ImportError)
    with Image.open(astronaut_path) as image:
        return person_matte(np.array(image.convert("RGB")), FACE)


def hairy(size=256):
    """A dark head with single hairs, 2 pixels wide, before a wall: image, opacity, colours of the person, wall."""
    y, x = np.mgrid[:size, :size] + 0.5
    alpha = np.clip(0.25 * size - np.hypot(x - size / 2, y - size * 0.6) + 0.5, 0, 1)
    for angle in np.linspace(-2.6, -0.5, 14):
        along = (x - size / 2) * np.cos(angle) + (y - size * 0.6) * np.sin(angle)
        across = np.abs((y - size * 0.6) * np.cos(angle) - (x - size / 2) * np.sin(angle))
        alpha = np.maximum(alpha, np.clip(1.5 - across, 0, 1) * ((along > 0) & (along < 0.3 * size)))
    wall = 200 + 20 * x[..., None] / size + np.array([0.0, 5.0, 10.0])
    person = np.broadcast_to(np.array([60.0, 40.0, 30.0]), wall.shape)
    image = (alpha[..., None] * person + (1 - alpha[..., None]) * wall).round().astype(np.uint8)
    return image, alpha.astype(np.float32), person, wall


def test_the_astronaut_is_opaque_and_the_wall_is_not(opacity):
    assert opacity.shape == (512, 512)
    assert opacity.dtype == np.uint8
    assert opacity[60:200, 195:250].min() == 255  # face and neck
    assert (opacity[350:420, 100:200] > 250).mean() > 0.99  # suit
    assert opacity[:130, 320:].max() < 10  # wall and shuttle
    assert opacity[:80, :140].max() < 10  # flag and wall


def test_the_same_photo_has_the_same_matte(opacity, astronaut):
    np.testing.assert_array_equal(person_matte(astronaut, FACE), opacity)


@pytest.mark.slow
def test_the_matte_of_an_enlarged_photo_is_the_enlarged_matte(opacity, astronaut):
    pytest.importorskip("mediapipe", exc_type=ImportError)
    large = np.asarray(Image.fromarray(astronaut).resize((1024, 1024), Image.Resampling.BICUBIC))
    again = np.asarray(Image.fromarray(person_matte(large, FACE.scaled(2.0))).resize((512, 512)))
    assert np.abs(again.astype(int) - opacity)[:256].mean() < 3


def test_everybody_in_a_group_photo_is_seen(astronaut):
    pytest.importorskip("mediapipe", exc_type=ImportError)
    pair = np.concatenate([astronaut[:320, 60:400]] * 3, axis=1)
    faces = [CropBox((163.7 + 340 * number, 127.0), 200.0) for number in range(3)]
    opacity = person_matte(pair, *faces)
    for number in range(3):
        x = 163 + 340 * number
        assert (opacity[60:200, x - 28 : x + 28] == 255).all()
        assert opacity[:60, x + 130 : x + 150].max() < 10


def test_a_face_is_never_a_hole_and_its_share_tells_when_nobody_was_seen(astronaut):
    pytest.importorskip("mediapipe", exc_type=ImportError)
    empty = np.full((200, 300, 3), 140, np.uint8)
    box = CropBox((150.0, 100.0), 120.0)
    opacity = person_matte(empty, box)
    assert opacity[95:105, 145:155].min() > 250
    assert opacity[:30].max() == 0
    assert person_share(empty, box) < 0.1
    assert person_share(astronaut, FACE) > 0.99
    assert person_share(empty, CropBox((-500.0, -500.0), 50.0)) == 0.0


@pytest.mark.parametrize("size", [(16, 16), (20, 150), (150, 20)])
def test_images_of_any_shape_have_a_matte(size, rng):
    pytest.importorskip("mediapipe", exc_type=ImportError)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    box = CropBox((10.0, 10.0), 12.0)
    assert person_matte(image, box).shape == size
    assert foreground(image, person_matte(image, box)).shape == image.shape


def test_windows_lie_in_the_image_and_end_at_the_crop():
    box = CropBox((70.0, 300.0), 100.0)
    windows = matte._windows((box,), 400, 1600, 1.0)
    for left, top, width, height in windows:
        assert left >= 0
        assert top >= 0
        assert left + width <= 1600
        assert top + height <= 400
    assert windows[-1] == (20, 250, 100, 100)
    covered = np.zeros(1600, bool)
    for left, _, width, height in windows:
        covered[left : left + width] |= height == 400
    assert covered.all()


def test_a_spot_that_the_background_does_not_reach_is_opaque():
    """A hole in a person counts as the person, a bay does not; a gap that is sure to be background stays."""
    mask = torch.zeros(1, 1, 60, 80)
    mask[..., 10:50, 10:70] = 1
    mask[..., 20:24, 20:24] = 0.2
    mask[..., 10:30, 40:44] = 0.2
    mask[..., 35:47, 55:67] = 0
    sure = (mask == 0).float()
    enclosed = matte._enclosed(mask, sure)[0, 0]
    assert enclosed[20:24, 20:24].min() == 1
    assert enclosed[10:30, 40:44].max() == 0
    assert enclosed[35:47, 55:67].max() == 0


def test_single_hairs_are_found_where_the_network_only_knows_the_head():
    """The mask covers the head alone, blurred; the opacities behind the image are known."""
    image, alpha, _, _ = hairy()
    y, x = np.mgrid[:256, :256] + 0.5
    head = np.clip(64 - np.hypot(x - 128, y - 153.6) + 0.5, 0, 1).astype(np.float32)
    mask = F.avg_pool2d(torch.from_numpy(head)[None, None], 9, 1, 4, count_include_pad=False)
    got = matte._refined(image, on_grid(image, 256, 256), mask, 0 * mask, 0 * mask + 1, 256.0) / 255
    near = (np.hypot(x - 128, y - 153.6) < 74) & (np.hypot(x - 128, y - 153.6) > 50)
    assert np.abs(got - alpha)[near].mean() < 0.3 * np.abs(mask[0, 0].numpy() - alpha)[near].mean()
    assert got[150, 128] == 1
    assert got[:20].max() == 0


def test_pale_skin_before_a_pale_wall_stays_opaque():
    """Highlights of an ear are nearly as pale as the wall; the mask is sure of the ear, with a soft contour."""
    y, x = np.mgrid[:256, :256] + 0.5
    inside = 64 - np.hypot(x - 128, y - 128)
    skin, shine, wall = np.array([190.0, 165, 155]), np.array([207.0, 198, 194]), np.array([217.0, 218, 218])
    lit = np.clip(1 - np.abs(inside - 7) / 4, 0, 1)[..., None]
    share = np.clip(inside + 0.5, 0, 1)[..., None]
    image = (share * (skin + lit * (shine - skin)) + (1 - share) * wall).round().astype(np.uint8)
    mask = torch.from_numpy(np.clip(inside / 3 + 0.5, 0, 1).astype(np.float32))[None, None]
    got = matte._refined(image, on_grid(image, 256, 256), mask, 0 * mask, 0 * mask + 1, 256.0)
    assert got[inside > 4].min() > 250
    assert got[inside < -6].max() == 0


def test_colours_of_hair_are_without_the_wall():
    """Laid over another colour the difference to the true composite is small, and with the wall's share it is not."""
    image, alpha, person, _ = hairy()
    colours = foreground(image, (alpha * 255).round().astype(np.uint8)).astype(float)
    soft = (alpha > 0.1) & (alpha < 0.9)
    assert np.abs(colours - person)[soft].mean() < 0.15 * np.abs(image - person)[soft].mean()
    np.testing.assert_array_equal(colours[alpha == 1], image[alpha == 1])


def test_other_arrays_are_refused(astronaut):
    with pytest.raises(ShapeError):
        person_matte(astronaut[..., 0], FACE)
    with pytest.raises(ShapeError):
        foreground(astronaut, np.zeros((512, 511), np.uint8))


def test_without_mediapipe_the_extra_is_named(monkeypatch, astronaut):
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    with pytest.raises(MissingExtra, match=r"pip install -c constraints.txt '\.\[face\]'"):
        person_matte(astronaut, FACE)


def test_a_model_that_is_missing_says_what_to_do(monkeypatch, astronaut):
    monkeypatch.setattr(segmenter, "MODEL_FILE", "gone.tflite")
    with pytest.raises(Export3DError, match="reinstall"):
        person_matte(astronaut, FACE)


def test_the_matte_of_a_face_crop_is_opaque_in_the_face_and_not_in_the_background(astronaut):
    crop = to_tensor(astronaut[:256, 90:346])[None]
    with torch.device("meta"):
        seeing, blind = Export3D(preset("base")), Export3D(preset("core"))
    assert crop_mattes(blind, crop) is None
    found = crop_mattes(seeing, crop.expand(2, -1, -1, -1))
    assert found.shape == (2, 1, 256, 256)
    assert torch.equal(found[0], found[1])
    assert 0.0 <= found.min() <= found.max() <= 1.0
    assert found[..., 60:140, 100:160].mean() > 0.99
    assert found[..., :40, :40].mean() < 0.05


def test_wide_doubt_is_decided_and_contours_are_left_alone():
    """A flag at 0.45 becomes background, a dark suit at 0.7 and a soft contour stay as they are."""
    mask = torch.zeros(1, 1, 128, 128)
    mask[..., 40:, 40:90] = 1.0
    mask[..., 40:80, 90:110] = 0.45
    mask[..., 100:, 90:120] = 0.7
    mask[..., 40:, 38:40] = 0.4
    got = matte._decided(mask, 128.0)
    assert got[..., 50:70, 95:105].max() <= 0.1
    torch.testing.assert_close(got[..., 106:, 92:118], mask[..., 106:, 92:118])
    torch.testing.assert_close(got[..., :90], mask[..., :90])
