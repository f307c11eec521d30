"""Which face of a photo is tracked."""

import logging

import numpy as np
import pytest

from export3d.errors import ConfigError, NoFaceFound
from export3d.face.landmarks import all_faces
from export3d.face.tracker import Tracker, face_choice
from export3d.image import read_image
from tests.group_photo import THREE, group_photo


@pytest.fixture(scope="module")
def tracker(landmarker):
    return Tracker(landmarker)


@pytest.fixture(scope="module")
def three(astronaut_path):
    return group_photo(read_image(astronaut_path))


@pytest.fixture(scope="module")
def tracks(tracker, three):
    return tracker.track_faces(three, "group.png")


def middles(found):
    """Where the middle of each face lies in the image."""
    points = [track.crop.from_crop(track.landmarks[0]) for track in found]
    return np.array([(p.min(0) + p.max(0)) / 2 for p in points])


def test_all_faces_come_from_left_to_right(tracks):
    assert len(tracks) == 3
    np.testing.assert_allclose(middles(tracks), [place[:2] for place in THREE], atol=4)
    sides = [track.crop.side for track in tracks]
    np.testing.assert_allclose(np.divide(sides, sides[0]), [1.0, 160 / 200, 180 / 200], rtol=0.03)
    assert all(track.several_faces and len(track.motion) == 1 for track in tracks)
    for number, track in enumerate(tracks):
        assert set(track.others) == {other.crop for k, other in enumerate(tracks) if k != number}


def test_each_face_is_tracked_as_in_a_portrait_of_its_own(tracker, three, tracks):
    for (x, y, width), track in zip(THREE, tracks):
        left, top, half = x - width // 2, max(y - width // 2, 0), width // 2
        alone = tracker.track_image(np.ascontiguousarray(three[top : y + half, left : x + half]))
        here = track.crop.from_crop(track.landmarks[0])
        there = np.add(alone.crop.from_crop(alone.landmarks[0]), [left, top])
        assert np.linalg.norm(here - there, axis=1).mean() < 0.01 * width


@pytest.mark.parametrize(("face", "number"), [("right", 2), ("left", 0), ("2", 1)], ids=lambda value: str(value))
def test_a_face_is_chosen_by_its_side_or_number(tracker, three, tracks, face, number):
    chosen = tracker.track_image(three, face=face)
    np.testing.assert_array_equal(chosen.landmarks, tracks[number].landmarks)
    assert chosen.crop == tracks[number].crop


def test_the_largest_face_is_the_default_and_the_choice_is_mentioned(tracker, three, tracks, caplog):
    largest = tracker.track_image(three, "group.png")
    np.testing.assert_allclose(middles([largest]), middles(tracks[:1]), atol=1.0)
    assert set(largest.others) == {track.crop for track in tracks[1:]}
    assert [record.getMessage() for record in caplog.records] == [
        "group.png shows several faces and the largest is used; where a face can be chosen, left, right or a number "
        "takes another"
    ]


def test_a_photo_of_one_face_gives_the_same_numbers_by_every_choice(tracker, astronaut):
    largest = tracker.track_image(astronaut)
    (only,) = tracker.track_faces(astronaut)
    np.testing.assert_array_equal(only.landmarks, largest.landmarks)
    np.testing.assert_array_equal(only.motion.camera, largest.motion.camera)
    np.testing.assert_array_equal(only.motion.expression, largest.motion.expression)
    assert only.crop == largest.crop
    assert not only.several_faces
    assert only.others == ()
    with pytest.raises(NoFaceFound, match=r"me\.png shows only one face, and no face 2; leave out the choice"):
        tracker.track_image(astronaut, "me.png", 2)


def test_a_number_beyond_the_faces_is_one_sentence(tracker, three):
    sentence = r"^group\.png shows 3 faces, counted from left to right; face 9 is not one of them$"
    with pytest.raises(NoFaceFound, match=sentence):
        tracker.track_image(three, "group.png", 9)


@pytest.mark.parametrize("face", ["middle", "", "all", "Left", "2.0", "-1", "1e3", "9" * 5000, 0, -1, 1.0, None])
def test_what_is_no_choice_is_refused(tracker, three, face):
    with pytest.raises(ConfigError, match="use largest, left, right or a number from 1"):
        tracker.track_image(three, face=face)


def test_a_choice_may_be_text():
    assert [face_choice(face) for face in ("largest", "left", "right", "7", 7)] == ["largest", "left", "right", 7, 7]


@pytest.mark.slow
def test_more_and_smaller_faces_than_one_detection_returns(tracker, landmarker, astronaut):
    places = [(160 + 230 * k, 300 + 20 * (k % 2), 220) for k in range(7)]
    photo = group_photo(astronaut, places, (900, 1700))
    assert len(landmarker.detect(photo)) < 7
    np.testing.assert_allclose(middles(tracker.track_faces(photo)), [place[:2] for place in places], atol=4)


def test_a_neighbour_is_not_taken_for_the_face(tracker, astronaut):
    """A small head beside a large one, well inside the square around it, and the other way round."""
    places = ((300, 260, 500), (460, 330, 200))
    np.testing.assert_allclose(
        middles(tracker.track_faces(group_photo(astronaut, places, (480, 640)))),
        [place[:2] for place in places],
        atol=6,
    )


@pytest.mark.slow
def test_faces_too_small_to_animate_are_not_counted(tracker, astronaut, caplog):
    photo = group_photo(astronaut, ((200, 200, 300), (500, 200, 60), (700, 200, 250)), (400, 900))
    assert len(tracker.track_faces(photo, "group.png")) == 2
    assert "group.png: 1 of 3 faces are less than 32 pixels high and are left out" in caplog.messages
    photo = group_photo(astronaut, ((100, 100, 60), (220, 100, 60)), (200, 320))
    with pytest.raises(NoFaceFound, match=r"all 2 faces in far\.png are too small to animate; the face must"):
        tracker.track_faces(photo, "far.png")


def test_one_face_too_small_to_look_good_is_tracked_with_a_warning(tracker, astronaut, caplog):
    tracker.track_image(group_photo(astronaut, ((100, 100, 60),), (200, 320)), "far.png")
    (sentence,) = caplog.messages
    assert sentence.startswith("far.png: the face is only 2")
    assert "blurry" in sentence


@pytest.mark.parametrize(
    ("part", "missing"),
    [
        (np.s_[:, 200:], "its left side"),
        (np.s_[:, :250], "its right side"),
        (np.s_[95:], "the forehead"),
        (np.s_[:151], "the chin"),
    ],
    ids=["left", "right", "top", "bottom"],
)
def test_a_face_cut_by_the_border_is_tracked_and_what_is_missing_is_said(tracker, astronaut, part, missing, caplog):
    cut = np.ascontiguousarray(astronaut[part])
    track = tracker.track_image(cut, "me.png")
    (sentence,) = caplog.messages
    assert sentence.startswith(f"me.png: the border of the image cuts off {missing} (2")
    whole = tracker.track_image(astronaut)
    corner = [200 if missing == "its left side" else 0, 95 if missing == "the forehead" else 0]
    np.testing.assert_allclose(np.add(track.crop.centre, corner), whole.crop.centre, atol=6)
    assert track.crop.side == pytest.approx(whole.crop.side, rel=0.1)


def test_a_whole_face_is_tracked_without_a_word(tracker, astronaut, caplog):
    with caplog.at_level(logging.WARNING):
        tracker.track_faces(astronaut)
    assert not caplog.messages


@pytest.mark.slow
def test_a_small_face_of_a_panorama_is_found(tracker, astronaut):
    (track,) = tracker.track_faces(group_photo(astronaut, ((4100, 500, 240),), (800, 6000)))
    np.testing.assert_allclose(middles([track]), [[4100, 500]], atol=4)


def test_textures_are_no_faces(landmarker, astronaut, rng):
    """Cut so, a fold of the flag looks like a face in one window, but not in other squares around it."""
    assert len(all_faces(landmarker, np.ascontiguousarray(astronaut[:, :261]))) == 1
    noise = rng.integers(0, 256, (200, 300, 3), dtype=np.uint8)
    assert all_faces(landmarker, noise) == []
