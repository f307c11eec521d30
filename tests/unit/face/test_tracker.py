"""Pictures to motion: one person, no gaps, no jitter."""

import csv
import logging
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

import export3d.camera as camera
from export3d.errors import BadVideo, NoFaceFound
from export3d.face import pose
from export3d.face.landmarks import Face
from export3d.face.mesh import canonical_mesh
from export3d.face.tracker import Tracker
from export3d.motion.arkit import with_scores

FRAME = np.zeros((480, 640, 3), np.uint8)


def face(x=320.0, y=240.0, size=200.0, yaw=0.0, score=0.25):
    """A drawn face: the canonical mesh seen by a camera, its crop `size` pixels wide and centred on (x, y).

    The score is tongueOut, which the mesh need not show: it has no share in the pose.
    """
    label = camera.from_pose(np.array([yaw, 0.0, 0.0]), np.array([0.0, 0.0, 2.7]))
    points = pose.project(canonical_mesh().vertices, label, size) - size / 2 + [x, y]
    landmarks = np.concatenate([points, np.zeros((468, 1))], axis=1)
    landmarks = np.concatenate([landmarks, landmarks[:10]]).astype(np.float32)
    return Face(landmarks, with_scores(np.zeros(52), {"tongueOut": score}).astype(np.float32))


class Script:
    """A landmarker that sees, in frame k, the faces of line k; regions and searches see what `hidden` says."""

    def __init__(self, lines, hidden=None):
        self.lines, self.hidden = lines, hidden or {}
        self.frame, self.searches = -1, 0

    def __iter__(self):
        for number in range(len(self.lines)):
            self.frame = number
            frame = FRAME.copy()
            frame[0, 0] = number >> 8, number & 255, 0  # repeated frames are not looked at
            yield frame

    def detect(self, image, region=None):
        seen = self.lines[self.frame] + (self.hidden.get(self.frame, []) if region is not None else [])
        return sorted(seen, key=lambda f: -f.size)

    def search(self, image, coarse=False):
        self.searches += 1
        return self.lines[self.frame] + self.hidden.get(self.frame, [])

    def close(self):
        pass


def track(lines, **options):
    script = Script(lines, **options)
    return Tracker(script).track_frames(script, 25.0, "clip.mp4")


@pytest.mark.slow
def test_a_still_picture_repeated_has_no_jitter_at_all(landmarker, astronaut):
    with_repeats = Tracker(landmarker).track_frames([astronaut] * 100)
    assert np.ptp(with_repeats.motion.camera, axis=0).max() == 0.0
    assert np.ptp(with_repeats.motion.expression, axis=0).max() == 0.0
    assert np.ptp(with_repeats.landmarks, axis=0).max() == 0.0
    assert with_repeats.found.all()


def test_a_picture_that_stands_is_looked_at_for_a_second_only(landmarker, astronaut):
    """As a clip of few frames shows one; the numbers are those of looking at every frame."""

    class Counted:
        def __init__(self):
            self.looked = 0

        def detect(self, image, region=None):
            self.looked += 1
            return landmarker.detect(image, region)

        def search(self, image, coarse=False):
            return landmarker.search(image, coarse)

    turned = np.roll(astronaut, 4, axis=1)
    pictures = [astronaut] * 60 + [turned] * 30
    repeated, flickering = Counted(), Counted()
    track = Tracker(repeated).track_frames(picture.copy() for picture in pictures)
    for number, picture in enumerate(pictures):  # of a corner, so that no two frames are the same
        pictures[number] = picture.copy()
        pictures[number][-1, -1] = number
    every = Tracker(flickering).track_frames(pictures)
    np.testing.assert_array_equal(track.landmarks, every.landmarks)
    np.testing.assert_array_equal(track.motion.expression, every.motion.expression)
    assert track.found.all()
    assert repeated.looked < flickering.looked - 30


def test_a_large_still_picture_has_no_jitter_either(landmarker, astronaut):
    large = np.pad(astronaut, ((300, 268), (900, 508), (0, 0)), mode="edge")
    repeated = Tracker(landmarker).track_frames([large] * 5)
    assert np.ptp(repeated.motion.camera, axis=0).max() == 0.0


def test_a_picture_and_a_clip_of_it_agree(landmarker, astronaut):
    tracker = Tracker(landmarker)
    one, many = tracker.track_image(astronaut), tracker.track_frames([astronaut] * 20)
    assert len(one.motion) == 1
    assert one.crop == many.crop
    angles = [camera.head_angles(track.motion.camera[0]) for track in (one, many)]
    difference = np.abs(angles[0] - angles[1])
    assert difference.max() < 0.2
    assert 0.5 < one.median_reprojection < 4.0


def test_the_share_of_the_scores_is_taken_off_the_cameras():
    scores = {"jawOpen": 0.5, "mouthSmileLeft": 0.3}
    speaking = replace(face(yaw=10.0), scores=with_scores(np.zeros(52), scores).astype(np.float32))
    for count in (1, 3, 20):  # with and without the person's own shape
        cameras = track([[speaking]] * count).motion.camera
        landmarks = track([[speaking]]).landmarks
        (label,), _ = pose.fit_cameras(landmarks, 256, scores=speaking.scores[None])
        (plain,), _ = pose.fit_cameras(landmarks, 256)
        np.testing.assert_allclose(cameras, np.tile(label, (count, 1)), atol=1e-5)
        assert np.abs(camera.head_angles(label) - camera.head_angles(plain)).max() > 1.0


def test_landmarks_and_cameras_live_in_the_crop(landmarker, astronaut):
    track = Tracker(landmarker).track_image(astronaut)
    np.testing.assert_allclose(track.landmarks[0, 4], [128, 128], atol=1e-3)
    height = np.linalg.norm(track.landmarks[0, 10] - track.landmarks[0, 152])
    assert height == pytest.approx(256 / 1.9, rel=1e-4)
    mesh = canonical_mesh()
    seen = pose.project(mesh.vertices, track.motion.camera[0], 256)
    assert np.linalg.norm(seen - track.landmarks[0, :468], axis=1).mean() < 5.0


def test_the_crop_does_not_move_with_the_head():
    result = track([[face(x=320 + 2 * k)] for k in range(20)])
    scale = 256 / result.crop.side
    np.testing.assert_allclose(np.diff(result.landmarks[:, :, 0], axis=0), 2 * scale, rtol=1e-3)
    position = camera.head_position(result.motion.camera)
    np.testing.assert_allclose(np.diff(position[:, 0] / position[:, 2]), 2 / result.crop.side / camera.FOCAL, rtol=0.02)


def test_a_lost_face_is_bridged_and_reported(caplog):
    lines = [[face(yaw=k, score=k / 40)] for k in range(30)]
    for k in range(10, 16):
        lines[k] = []
    with caplog.at_level(logging.WARNING):
        result = track(lines)
    assert "lost in 6 of 30 frames" in caplog.text
    assert "clip.mp4" in caplog.text
    assert np.flatnonzero(~result.found).tolist() == list(range(10, 16))
    assert len(result.motion) == 30
    np.testing.assert_allclose(np.diff(camera.head_angles(result.motion.camera)[:, 0]), 1.0, atol=0.02)
    np.testing.assert_allclose(result.motion.scores("tongueOut"), np.arange(30) / 40, atol=0.01)
    assert np.isnan(result.reprojection[10:16]).all()
    assert np.isfinite(result.landmarks).all()
    assert result.median_reprojection < 0.1


def test_landmarks_are_bridged_across_the_pieces_of_a_clip(monkeypatch):
    lines = [[] if k in (0, 1, 9, 10, 11, 12, 13, 20, 29) else [face(x=300.0 + k)] for k in range(30)]
    whole = track(lines)
    x = whole.landmarks[:, 0, 0] * whole.crop.side / 256
    np.testing.assert_allclose(x - x[0], np.clip(np.arange(30), 2, 28) - 2, atol=1e-3)
    for piece in (1, 4, 7):
        monkeypatch.setattr(pose, "_PIECE", piece)
        np.testing.assert_array_equal(track(lines).landmarks, whole.landmarks)


def test_cuts_and_absences_are_numbered_and_nothing_is_mixed_across_a_cut():
    """20 frames at the left, one without a face, 20 at the right; 20 empty ones; 20 more at the right."""
    left, right = face(x=200.0, size=160.0), face(x=420.0, y=200.0, size=240.0)
    found = track([[left]] * 20 + [[]] + [[right]] * 20 + [[]] * 20 + [[right]] * 20)
    shot = found.motion.shot
    np.testing.assert_array_equal(shot, np.repeat([0, 1, -1, 1], [21, 20, 20, 20]))
    place = camera.head_position(found.motion.camera)
    for number in (0, 1):
        assert np.ptp(place[shot == number], axis=0).max() < 1e-4
    assert np.linalg.norm(place[20] - place[21]) > 0.3


def test_a_face_that_comes_late_and_leaves_early_is_held_at_the_ends():
    lines = [[face(yaw=5.0 + k)] if 4 <= k < 20 else [] for k in range(25)]
    yaw = camera.head_angles(track(lines).motion.camera)[:, 0]
    np.testing.assert_allclose(yaw[:3], 9.0, atol=1.0)
    np.testing.assert_allclose(yaw[-3:], 24.0, atol=1.0)


def test_no_face_at_all_is_a_sentence_with_the_name_and_a_remedy():
    with pytest.raises(NoFaceFound, match=r"no face found in clip\.mp4 \(30 frames searched\); the face must"):
        track([[]] * 30)
    script = Script([[]])
    script.frame = 0
    with pytest.raises(NoFaceFound, match=r"no face found in me\.jpg \(1 frame searched\)"):
        Tracker(script).track_image(FRAME, "me.jpg")


def test_a_face_in_too_few_frames_is_refused():
    with pytest.raises(NoFaceFound, match="only 3 of 40 frames"):
        track([[face()]] * 3 + [[]] * 37)


def test_no_frames_is_a_bad_video():
    with pytest.raises(BadVideo, match=r"clip\.mp4"):
        track([])


def test_the_largest_face_is_taken_and_several_are_reported(caplog):
    with caplog.at_level(logging.WARNING):
        result = track([[face(x=150, size=150), face(x=450, size=220)]] * 12)
    assert result.several_faces
    assert "several faces in 12 of 12 frames" in caplog.text
    assert result.crop.centre[0] == pytest.approx(450, abs=1)


def test_one_face_is_not_several():
    assert not track([[face()]] * 12).several_faces


@pytest.mark.parametrize(("comes", "main", "found"), [(20, 450 - 14.5, 30), (6, 130, 24)])
def test_the_face_that_is_largest_and_longest_in_view_is_the_main_one(comes, main, found):
    """A larger face comes in late: 150 x 30 against 260 x 10 or 260 x 24."""
    lines = [[face(x=450 - k, size=150)] + ([face(x=130, size=260)] if k >= comes else []) for k in range(30)]
    result = track(lines)
    assert result.found.sum() == found
    assert result.crop.centre[0] == pytest.approx(main, abs=1)


def test_another_person_does_not_take_over_at_once():
    lines = [[face(x=450)]] * 20 + [[face(x=130)]] * 2 + [[face(x=450)]] * 20
    assert np.flatnonzero(~track(lines).found).tolist() == [20, 21]


def test_a_face_missed_for_a_moment_is_looked_for_where_it_was():
    lines = [[face()]] * 5 + [[]] * 5 + [[face()]] * 5
    script = Script(lines, hidden={k: [face()] for k in range(5, 10)})
    assert Tracker(script).track_frames(script).found.all()
    assert script.searches == 0


@pytest.mark.parametrize(("frames", "searches"), [(60, 5 * 4), (240, 20 + 11 * 3)])
def test_without_a_face_the_whole_frame_is_searched_only_now_and_then(frames, searches):
    """Every twelfth frame, at first in four directions, after ten searches only in every tenth."""
    script = Script([[]] * frames)
    with pytest.raises(NoFaceFound):
        Tracker(script).track_frames(script)
    assert script.searches == searches


def test_progress_counts_frames():
    counts = []
    script = Script([[face()]] * 7)
    Tracker(script).track_frames(script, progress=counts.append)
    assert counts == [1, 2, 3, 4, 5, 6, 7]


def test_frames_are_not_kept():
    alive = []

    class Frame(np.ndarray):
        def __del__(self):
            alive.remove(id(self))

    def frames():
        for number in range(len(script.lines)):
            script.frame = number
            frame = FRAME.copy().view(Frame)
            alive.append(id(frame))
            assert len(alive) <= 2
            yield frame

    script = Script([[face()]] * 10)
    Tracker(script).track_frames(frames())


@pytest.mark.slow
def test_a_longer_clip_takes_little_more_memory(landmarker, astronaut):
    """At most 10 kB per frame, while frames are read and while the clip is fitted and smoothed."""
    small = np.ascontiguousarray(astronaut[::2, ::2])

    def peak(count):
        tracemalloc.start()
        try:
            assert Tracker(landmarker).track_frames(small for _ in range(count)).found.all()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few, many = peak(64), peak(192)
    assert many - few <= 128 * 10_000


@pytest.mark.slow
def test_the_validation_clips_are_tracked_as_promised(landmarker, shared_data):
    """At least 97 % of frames found, median reprojection at most 1.5 pixels at 256; no clip is far off."""
    with open(shared_data / "manifest.csv", newline="") as file:
        clips = [row["file"] for row in csv.DictReader(file) if row["split"] == "val" and row["kind"] == "video"]
    assert clips
    tracker = Tracker(landmarker)
    tracks = [tracker.track_video(shared_data / name) for name in clips]
    assert np.concatenate([track.found for track in tracks]).mean() >= 0.97
    assert np.nanmedian(np.concatenate([track.reprojection for track in tracks])) <= 1.5
    assert max(track.median_reprojection for track in tracks) <= 1.5
    distances = np.concatenate([camera.head_position(track.motion.camera)[:, 2] for track in tracks])
    assert distances.min() > 2.2
    assert distances.max() < 3.2
