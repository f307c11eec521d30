"""What is a face, which way up it is, and which of several is the main one."""

import logging
import time

import numpy as np
import pytest
from PIL import Image

from export3d.errors import ConfigError, NoFaceFound
from export3d.face.crop import CropBox, crop
from export3d.face.landmarks import confirmed, spread
from export3d.face.people import Person, joined
from export3d.face.tracker import Tracker
from tests.unit.face.test_tracker import FRAME, Script, face, track


def ball(seed, radius, size=240):
    """A blotchy ball that the detector takes for a face."""
    blotches = np.random.default_rng(seed).normal(128, 60, (12, 12)).clip(0, 255).astype(np.uint8)
    texture = np.asarray(Image.fromarray(blotches).resize((size, size), Image.Resampling.BICUBIC)) - 128.0
    y, x = np.mgrid[:size, :size] - size / 2
    away = np.hypot(x, y) - radius
    grey = 60 + 150 / (1 + np.exp(away / 4)) + 0.5 * texture * (away < 0)
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


SEEN_ONCE, SEEN_OFTEN = ball(1, 70), ball(0, 70)
"""Not found again in most squares; found in nearly all, but everywhere else in each."""


@pytest.mark.parametrize(("picture", "often"), [(SEEN_ONCE, False), (SEEN_OFTEN, True)])
def test_what_only_looks_like_a_face_is_none(landmarker, picture, often):
    (seen,) = landmarker.detect(picture)
    assert np.isfinite(spread(landmarker, picture, seen)) == often
    assert not confirmed(landmarker, picture, seen)


@pytest.mark.slow
def test_a_picture_of_no_face_is_one_sentence_that_tells_of_the_doubt(landmarker):
    with pytest.raises(NoFaceFound, match=r"ball\.png \(1 frame searched; what looks like one was not confirmed"):
        Tracker(landmarker).track_image(SEEN_OFTEN, "ball.png")


def test_faces_that_are_dark_tilted_small_or_blurred_are_confirmed(landmarker, astronaut):
    head = Image.fromarray(astronaut[:256, 96:352])
    pictures = {
        "dark": head.point(lambda value: value * 0.15),
        "tilted": head.rotate(40, Image.Resampling.BICUBIC),
        "small": head.resize((96, 96), Image.Resampling.LANCZOS),
        "blurred": head.resize((40, 40), Image.Resampling.BOX).resize((256, 256), Image.Resampling.BICUBIC),
    }
    for name, picture in pictures.items():
        image = np.array(picture)
        assert confirmed(landmarker, image, landmarker.search(image)[0]), name


@pytest.mark.slow
def test_scenery_before_the_face_is_not_tracked(landmarker, astronaut):
    head = np.ascontiguousarray(astronaut[:256, 96:352])
    found = Tracker(landmarker).track_frames([SEEN_OFTEN] * 5 + [head] * 4 + [SEEN_ONCE] * 3).found
    assert np.flatnonzero(found).tolist() == [5, 6, 7, 8]


@pytest.mark.parametrize(("turns", "words"), [(1, "to the left"), (2, "180"), (3, "90 degrees to the right")])
def test_a_picture_that_is_not_upright_gives_the_same_numbers(landmarker, astronaut, turns, words, caplog):
    upright = Tracker(landmarker).track_image(astronaut)
    with caplog.at_level(logging.WARNING):
        turned = Tracker(landmarker).track_image(np.ascontiguousarray(np.rot90(astronaut, -turns)), "me.jpg")
    assert (upright.quarter_turns, turned.quarter_turns) == (0, turns)
    assert "me.jpg " in caplog.text
    assert words in caplog.text
    assert turned.crop == upright.crop
    np.testing.assert_array_equal(turned.landmarks, upright.landmarks)


def test_an_upside_down_face_that_is_detected_as_an_upright_one_is_turned(landmarker, astronaut):
    """The padded picture: its upside-down face is detected, and only its spread tells that it is not upright."""
    head = crop(astronaut, CropBox((223.0, 120.0), 300.0), 300)
    upside = np.ascontiguousarray(head[::-1, ::-1])
    track = Tracker(landmarker).track_image(upside)
    assert track.quarter_turns == 2
    np.testing.assert_allclose(track.crop.centre, Tracker(landmarker).track_image(head).crop.centre)


def test_every_frame_of_an_upside_down_clip_is_turned(landmarker, astronaut, caplog):
    small = np.ascontiguousarray(astronaut[::2, ::2])
    with caplog.at_level(logging.WARNING):
        turned = Tracker(landmarker).track_frames([np.ascontiguousarray(small[::-1, ::-1])] * 3)
    upright = Tracker(landmarker).track_frames([small] * 3)
    assert turned.quarter_turns == 2
    assert "upside down" in caplog.text
    np.testing.assert_array_equal(turned.landmarks, upright.landmarks)


def test_a_tilted_head_is_not_turned(landmarker, astronaut):
    tilted = np.array(Image.fromarray(astronaut[:256, 96:352]).rotate(45, Image.Resampling.BICUBIC))
    assert Tracker(landmarker).track_image(tilted).quarter_turns == 0


def test_a_small_face_is_reported(landmarker, astronaut, caplog):
    small = np.array(Image.fromarray(astronaut[:256, 96:352]).resize((120, 120), Image.Resampling.LANCZOS))
    with caplog.at_level(logging.WARNING):
        Tracker(landmarker).track_image(small, "me.jpg")
        Tracker(landmarker).track_frames([small] * 2, name="me.mp4")
    assert "me.jpg: the face is only 50 pixels high, and the result will be blurry" in caplog.text
    assert "me.mp4: the face is only 50 pixels high, and its motion will be coarse" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("place", [(0.02, 0.03), (0.46, 0.55), (0.93, 0.9)])
def test_a_face_of_60_pixels_is_found_in_a_large_photo(landmarker, astronaut, place):
    width = round(256 * 60 / 105)
    head = np.asarray(Image.fromarray(astronaut[:256, 96:352]).resize((width, width), Image.Resampling.LANCZOS))
    photo = np.full((3000, 4000, 3), (96, 104, 112), np.uint8)
    x, y = round(place[0] * 4000), round(place[1] * 3000)
    photo[y : y + width, x : x + width] = head
    (found,) = landmarker.search(photo)
    np.testing.assert_allclose(found.centre, [x + 0.5 * width, y + 0.48 * width], atol=0.1 * width)


# --- several people ---------------------------------------------------------------------------------------------------


def centre(result):
    return result.crop.centre[0]


def test_a_face_of_a_driver_can_be_chosen():
    lines = [[face(x=150, size=150), face(x=450, size=220)]] * 12
    assert centre(track(lines)) == pytest.approx(450, abs=1)
    for choice, x in {"left": 150, 1: 150, "2": 450, "right": 450, "largest": 450}.items():
        script = Script(lines)
        assert centre(Tracker(script).track_frames(script, face=choice)) == pytest.approx(x, abs=1)
    script = Script(lines)
    with pytest.raises(NoFaceFound, match=r"the video shows 2 faces, counted from left to right; .* 3 is not one"):
        Tracker(script).track_frames(script, face=3)
    with pytest.raises(ConfigError, match="there is no face 'all'; use largest, left, right or a number"):
        Tracker(script).track_frames(script, face="all")


def test_flashes_are_not_searched_in_every_frame():
    """Every frame differs from the one before as at a cut; a cut into an empty clip is still searched at once."""
    flashes = [np.full_like(FRAME, 250 * (k % 2)) for k in range(60)]
    script = Script([[]])
    script.frame = 0
    with pytest.raises(NoFaceFound):
        Tracker(script).track_frames(flashes)
    assert script.searches <= 4 * (60 // 12 + 4 + 1)
    script.searches = 0
    with pytest.raises(NoFaceFound):
        Tracker(script).track_frames([flashes[0]] * 5 + [flashes[1]])
    assert script.searches == 2 * 4


def test_a_passer_by_is_no_choice():
    lines = [[face(x=450)] + ([face(x=130, size=120)] if 10 <= k < 13 else []) for k in range(60)]
    script = Script(lines)
    with pytest.raises(NoFaceFound, match="only one face, and no face 2; leave out the choice"):
        Tracker(script).track_frames(script, face=2)


def test_a_person_in_a_thousand_pieces_is_joined_in_no_time():
    """One face, in view for 12 frames and away for 14, over and over; seconds of processor time."""
    seen, pieces = face(), []
    for first in range(0, 26_000, 26):
        pieces.append(Person())
        for frame in range(first, first + 12):
            pieces[-1].append(frame, seen)
    start = time.process_time()
    (person,) = joined(pieces)
    assert time.process_time() - start < 2.0
    assert person.frames == [frame for first in range(0, 26_000, 26) for frame in range(first, first + 12)]
    assert person.landmarks().shape == (12_000, 478, 2)
    assert person.weight == pytest.approx(12_000 * seen.size)


def test_cuts_do_not_lose_the_only_person():
    lines = [[face(x=450, size=150)]] * 15 + [[face(x=100, size=300)]] * 15 + [[face(x=300, size=150)]] * 15
    assert track(lines).found.all()


def test_who_is_in_view_beside_the_main_face_never_stands_in_for_it():
    lines = [[face(x=130, size=180), face(x=450, size=300)]] * 30 + [[face(x=130, size=180)]] * 15
    assert np.flatnonzero(track(lines).found).tolist() == list(range(30))


def test_a_much_smaller_face_does_not_stand_in_for_the_main_one():
    lines = [[face(x=450, size=320)]] * 30 + [[face(x=130, size=90)]] * 15
    assert np.flatnonzero(track(lines).found).tolist() == list(range(30))


def test_two_people_side_by_side_are_not_mixed_up_when_one_is_missed():
    one, other = face(x=250, size=160), face(x=400, size=160)
    lines = [[one, other] if not 10 <= k < 16 else [other] for k in range(40)]
    script = Script(lines)
    left = Tracker(script).track_frames(script, face="left")
    assert np.flatnonzero(~left.found).tolist() == list(range(10, 16))
    np.testing.assert_allclose(left.landmarks[:, 4, 0], 128, atol=0.1)
