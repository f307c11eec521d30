"""The motion of a camera: measured from a neutral face, smoothed without the future, and never abrupt."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from export3d import camera
from export3d.animate import drive
from export3d.animate.follow import CALIBRATION_S, HOLD_S, Follower, Lately, OneEuro, Pose, check_space
from export3d.animate.rest import EASED_S, HELD_S, at_rest
from export3d.camera import Camera
from export3d.errors import ConfigError
from export3d.face import pose
from export3d.face.crop import CROP_SIZE, crop_box
from export3d.face.landmarks import Face
from export3d.face.mesh import canonical_mesh
from export3d.motion.arkit import ARKIT52
from export3d.motion.motion import Motion

FPS = 25.0
JAW = ARKIT52.index("jawOpen")
OWN = Camera.orbit(yaw_deg=8.0, pitch_deg=-3.0).label
SMILE = np.zeros(52)
SMILE[ARKIT52.index("mouthSmileLeft")] = 0.4


def face(yaw: float = 0.0, jaw: float = 0.0, place: tuple[float, float] = (0.0, 0.0)) -> Face:
    """The canonical face in a frame, 256 pixels of which are its crop; the head turned, and moved by pixels."""
    points = pose.project(canonical_mesh().vertices, Camera.orbit(yaw_deg=yaw).label, 256.0) + 150.0 + np.array(place)
    landmarks = np.zeros((478, 3), np.float32)
    landmarks[:468, :2], landmarks[468:, :2] = points, points[:10]
    scores = np.zeros(52, np.float32)
    scores[JAW] = jaw
    return Face(landmarks, scores)


def run(follower: Follower, faces: Iterable[Face | None], start: float = 0.0, fps: float = FPS) -> list[Pose]:
    return [follower.step(one, start + k / fps) for k, one in enumerate(faces)]


def calibrated(head_motion: str = "steady", seconds: float = 2.0) -> Follower:
    """A follower that has seen a still face for so long."""
    follower = Follower(OWN, SMILE, head_motion)  # type: ignore[arg-type]
    run(follower, [face()] * round(seconds * FPS))
    assert not follower.calibrating
    return follower


def angles(one: Pose) -> np.ndarray:
    return camera.head_angles(one.camera)


def steps(poses: list[Pose]) -> tuple[float, float]:
    """The largest change from a pose to the next: of the head's angles, degrees, and of the expression."""
    turns = np.abs(np.diff([angles(one) for one in poses], axis=0))
    return float(turns.max()), float(np.abs(np.diff([one.expression for one in poses], axis=0)).max())


# --- the filter -------------------------------------------------------------------------------------------------------


def test_a_constant_passes_unchanged() -> None:
    one = OneEuro([1.0], [1.0])
    assert all(one.step(np.array([0.7]), k / FPS) == 0.7 for k in range(10))


def test_noise_is_reduced_and_a_fast_movement_is_followed(rng: np.random.Generator) -> None:
    noise = 0.01 * rng.standard_normal(400)
    one = OneEuro([1.0], [4.0])
    still = np.concatenate([one.step(noise[k : k + 1], k / FPS) for k in range(400)])
    assert still[50:].std() < 0.5 * noise[50:].std()
    fast, slow = OneEuro([1.0], [4.0]), OneEuro([1.0], [0.0])
    blink = [np.array([float(k >= 20)]) for k in range(24)]
    ends = [np.concatenate([f.step(value, k / FPS) for k, value in enumerate(blink)])[-1] for f in (fast, slow)]
    assert ends[0] > 0.9 > 0.7 > ends[1]


def test_the_filter_depends_on_time_and_not_on_the_number_of_frames() -> None:
    ends = []
    for fps in (100.0, 400.0):
        one = OneEuro([0.5], [0.0])
        ends.append([one.step(np.array([float(k > 0)]), k / fps) for k in range(round(0.5 * fps))][-1][0])
    assert ends[0] == pytest.approx(ends[1], abs=0.03)
    before = one.step(np.array([1.0]), 0.4)  # time does not advance
    assert before == ends[1]


def test_what_moved_lately_counts_for_a_while_and_never_jumps() -> None:
    one = Lately()
    moves = np.zeros(100)
    moves[20] = 1.0
    level = np.array([one.step(value, k / FPS) for k, value in enumerate(moves)])
    assert (level[:20] == 0.0).all()
    held = 20 + round(HELD_S * FPS)
    assert level[held - 1] == 1.0
    assert level[held + round(EASED_S * FPS) + 1] == 0.0
    assert np.abs(np.diff(level)).max() <= 1.0 / (EASED_S * FPS) + 1e-9
    assert one.step(1.0, 3.0) == 0.0  # a time that goes back changes nothing
    assert one.step(1.0, 50.0) == 1.0  # long after


# --- following --------------------------------------------------------------------------------------------------------


def test_until_the_neutral_face_is_known_the_portrait_is_at_rest() -> None:
    follower = Follower(OWN, SMILE)
    frames = round(CALIBRATION_S * FPS)
    for one in run(follower, [None] * 5 + [face(20.0, 0.8)] * frames):
        assert one == follower.rest
    assert follower.calibrating
    assert follower.rest.expression == pytest.approx(at_rest(SMILE), abs=1e-6)
    np.testing.assert_allclose(follower.rest.camera, OWN, atol=1e-6)


def test_a_face_that_stays_neutral_leaves_the_portrait_at_rest() -> None:
    follower = Follower(OWN, SMILE)
    last = run(follower, [face(12.0, 0.3)] * 60)[-1]
    np.testing.assert_allclose(last.camera, follower.rest.camera, atol=1e-3)
    np.testing.assert_allclose(last.expression, follower.rest.expression, atol=1e-6)


def test_speech_while_the_neutral_face_is_measured_does_not_count() -> None:
    follower = Follower(OWN, SMILE)
    run(follower, [face(jaw=0.0 if k % 5 < 2 else 0.9) for k in range(30)])
    assert run(follower, [face(jaw=0.5)] * 50, 30 / FPS)[-1].expression[JAW] == pytest.approx(0.5, abs=0.01)


def test_what_lasts_is_what_a_clip_would_show() -> None:
    """The twin that knows the whole clip: `drive.rebase`, of the neutral frame and of one that lasts."""
    neutral, moved = face(), face(18.0, 0.6, (6.0, -4.0))
    last = run(calibrated("full"), [moved] * 75, 2.0)[-1]
    landmarks, scores = (np.stack([getattr(one, part) for one in (neutral, moved)]) for part in ("landmarks", "scores"))
    box = crop_box(neutral.landmarks)
    shape = pose.person_shape(box.to_crop(landmarks[:1, :, :2]), CROP_SIZE)
    labels, _ = pose.fit_cameras(box.to_crop(landmarks[..., :2]), CROP_SIZE, shape, scores)
    twin = drive.rebase(Motion(scores, labels, FPS), OWN, SMILE, reference=0, head_motion="full")
    np.testing.assert_allclose(last.expression, twin.expression[1], atol=1e-3)
    np.testing.assert_allclose(last.camera, twin.camera[1], atol=5e-3)


def test_shoulders_are_followed_from_the_neutral_face_on() -> None:
    """Pixels of the frame, of which the crop has about 256."""
    follower, still = Follower(OWN, SMILE, "full"), np.array([150.0, 400.0, 1.0, 0.05, 0.02, 0.0], np.float32)
    for k in range(50):
        pose = follower.step(face(), k / FPS, still)
    assert pose.shoulders == pytest.approx([0.0, 0.0, 1.0, 0.0, 0.0], abs=1e-3)
    for k in range(50, 100):
        pose = follower.step(face(), k / FPS, still + np.array([12.8, -5.0, 0.0, 0.1, 0.04, 0.0], np.float32))
    side = crop_box(face().landmarks).side
    assert pose.shoulders == pytest.approx([12.8 / side, -5.0 / side, 1.0, 0.1, 0.04], abs=3e-3)
    assert not follower.rest.shoulders.any()


@pytest.mark.parametrize("head_motion", ["steady", "full", "rotation"])
def test_shoulders_that_are_followed_anew_begin_at_rest_gently(head_motion: str) -> None:
    """What another origin tells is not comparable."""
    follower = Follower(OWN, SMILE, head_motion)
    shown = []
    for k in range(100):
        told = [150.0, 400.0, 1.0, 0.0, 0.0, 0.0] if k < 50 else [90.0, 340.0, 1.0, 0.2, -0.3, 50.0]
        shown.append(follower.step(face(), k / FPS, np.array(told, np.float32)).shoulders)
    assert shown[49] == pytest.approx([0.0, 0.0, 1.0, 0.0, 0.0], abs=1e-3)
    assert np.abs(np.diff(shown[45:], axis=0)).max() < 0.02
    assert shown[-1] == pytest.approx([0.0, 0.0, 1.0, 0.0, 0.0], abs=1e-3)


@pytest.mark.parametrize(("head_motion", "lasts"), [("steady", False), ("full", True), ("rotation", False)])
def test_a_new_seat_moves_the_head_as_its_name_says(head_motion: str, lasts: bool) -> None:
    follower = calibrated(head_motion)
    rest = camera.head_position(follower.rest.camera)
    far = [face(place=(25.0, 0.0))] * 150
    aside = [float((camera.head_position(one.camera) - rest)[0]) for one in run(follower, far, 2.0)]
    assert (max(aside) > 0.03) == (head_motion != "rotation")
    assert (aside[-1] > 0.03) == lasts
    assert max(np.abs(aside)) < 0.2


def test_a_lost_face_is_held_then_rests_and_comes_back_gently() -> None:
    follower = calibrated()
    moved = run(follower, [face(20.0, 0.7)] * 40, 2.0)
    lost = run(follower, [None] * 40, 2.0 + 40 / FPS)
    held = int(HOLD_S * FPS) - 1
    assert all(one == moved[-1] for one in lost[:held])
    assert lost[-1] == follower.rest
    back = run(follower, [face(-15.0, 0.5, place=(30.0, 10.0))] * 40, 2.0 + 80 / FPS)
    assert angles(back[-1])[0] < angles(follower.rest)[0] - 10.0
    assert back[-1].expression[JAW] > 0.4
    turn, change = steps([moved[-1], *lost, *back])
    assert turn < 5.0
    assert change < 0.15


def test_a_face_that_is_missed_for_a_moment_changes_nothing() -> None:
    follower = calibrated()
    moved = run(follower, [face(20.0, 0.7)] * 40, 2.0)
    after = run(follower, [None] * 4 + [face(20.0, 0.7)] * 10, 2.0 + 40 / FPS)
    turn, change = steps([moved[-1], *after])
    assert turn < 0.5
    assert change < 0.02


def test_a_slow_camera_is_followed_too() -> None:
    follower = Follower(OWN, SMILE)
    assert run(follower, [face()] * 8 + [face(jaw=0.6)] * 6, fps=1.5)[-1].expression[JAW] == pytest.approx(
        0.6, abs=0.05
    )


def test_calibrating_again_makes_another_face_neutral_without_a_jump() -> None:
    follower = calibrated()
    moved = run(follower, [face(15.0, 0.4)] * 40, 2.0)
    follower.calibrate()
    assert follower.calibrating
    after = run(follower, [face(15.0, 0.4)] * 60, 2.0 + 40 / FPS)
    assert after[10].expression[JAW] == pytest.approx(moved[-1].expression[JAW], abs=0.02)  # followed meanwhile
    np.testing.assert_allclose(after[-1].expression, follower.rest.expression, atol=1e-3)
    np.testing.assert_allclose(angles(after[-1]), angles(follower.rest), atol=0.2)
    turn, change = steps([moved[-1], *after])
    assert turn < 3.0
    assert change < 0.1


def test_what_cannot_be_followed_is_refused() -> None:
    with pytest.raises(ConfigError, match="head motion"):
        Follower(OWN, SMILE, "wild")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="bfm64"):
        check_space("bfm64")
