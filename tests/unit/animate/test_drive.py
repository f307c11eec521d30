"""animate/drive.py: which motion, and how it is put on the source."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from export3d import camera
from export3d.animate.drive import (
    BUNDLED,
    FPS,
    bundled_motion,
    bundled_portrait,
    driving,
    driving_meanwhile,
    driving_motion,
    hold,
    read_motion,
    rebase,
    reference_frame,
)
from export3d.animate.head_motion import neck_place, seen_rotation
from export3d.errors import BadMotionFile, BadVideo, ConfigError, ShapeError
from export3d.face.crop import crop
from export3d.motion.arkit import ARKIT52, ARKIT52_MIRRORED, with_scores
from export3d.motion.compare import pearson
from export3d.motion.motion import Motion
from export3d.video import VideoWriter
from tests.live_link_face import write_take

LOOKS = ("eyeLookIn", "eyeLookOut", "eyeLookUp", "eyeLookDown")


def made(
    angles_deg: np.ndarray, expression: np.ndarray | None = None, space: str = "arkit52", drift: float = 1.0
) -> Motion:
    """A motion with these head angles (T, 3), wandering a little through the view."""
    count = len(angles_deg)
    place = [0.0, 0.0, 2.7] + drift * np.arange(count)[:, None] * [0.02, -0.01, 0.03]
    values = np.zeros((count, 52 if space == "arkit52" else 64)) if expression is None else expression
    return Motion(values, camera.from_pose(angles_deg, place), FPS, space)


@pytest.fixture
def motion(rng: np.random.Generator) -> Motion:
    """Random head angles and expressions, 20 frames; frame 7 is frontal and at rest."""
    angles, scores = rng.uniform(-25, 25, (20, 3)), rng.uniform(0, 1, (20, 52))
    angles[7], scores[7] = 0.5, 0.0
    return made(angles, scores)


@pytest.fixture
def source(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Camera (25,) and expression (52,) of a portrait that looks to the side, its lips closed."""
    closed = {"mouthSmile": 0.0, "jawOpen": 0.01, "mouthLowerDown": 0.0, "mouthUpperUp": 0.0}
    expression = with_scores(rng.uniform(0.02, 0.1, 52), closed)
    return camera.from_pose(np.array([12.0, -4.0, 3.0]), np.array([0.01, -0.03, 2.8])), expression


def without(motion: Motion, *names: str) -> Motion:
    """The motion with some scores at 0."""
    return replace(motion, expression=with_scores(motion.expression, dict.fromkeys(names, 0.0)))


def test_absolute_motion_is_left_alone(motion: Motion, source: tuple[np.ndarray, np.ndarray]) -> None:
    assert rebase(motion, *source, relative=False) is motion


def test_at_the_reference_frame_the_source_keeps_pose_and_expression(
    motion: Motion, source: tuple[np.ndarray, np.ndarray]
) -> None:
    motion = without(motion, "jawOpen", "mouthPucker", "mouthFunnel", *LOOKS)
    moved = rebase(motion, *source, head_motion="full")
    np.testing.assert_allclose(moved.camera[7], source[0], atol=1e-6)
    np.testing.assert_allclose(moved.expression[7], source[1], atol=1e-6)
    steady = rebase(motion, *source)
    np.testing.assert_allclose(seen_rotation(steady.camera[7]), seen_rotation(source[0]), atol=1e-6)
    np.testing.assert_allclose(steady.expression[7], source[1], atol=1e-6)


def test_a_driver_who_speaks_in_the_reference_frame_still_opens_the_portraits_mouth(
    source: tuple[np.ndarray, np.ndarray],
) -> None:
    """Most frames are turned away or open wider, so that an open mouth is the reference; a smile there still counts."""
    spoken, frames = np.zeros((40, 52)), np.arange(40)
    jaw, smile = ARKIT52.index("jawOpen"), ARKIT52.index("mouthSmileLeft")
    spoken[:, jaw] = 0.2 + 0.2 * np.cos(frames)
    spoken[:, smile] = 0.3
    angles = np.full((40, 3), 8.0)
    angles[0] = 0.0
    motion = made(angles, spoken)
    assert reference_frame(motion) == 0
    portrait = with_scores(source[1], {"jawOpen": 0.0})
    moved = rebase(motion, source[0], portrait)
    np.testing.assert_allclose(moved.expression[:, jaw], spoken[:, jaw], atol=0.02)
    np.testing.assert_allclose(moved.expression[:, smile], portrait[smile], atol=1e-6)
    chosen = rebase(motion, source[0], portrait, reference=0)
    assert chosen.expression[:, jaw].max() == 0.0


def test_a_look_aside_in_the_reference_frame_does_not_turn_the_portraits_eyes(
    source: tuple[np.ndarray, np.ndarray],
) -> None:
    """The driver looks aside in the only frontal frame, and into the camera in most others."""
    scores = np.zeros((30, 52))
    aside = with_scores(scores[0], {"eyeLookOutLeft": 0.9, "eyeLookInRight": 0.9})
    scores[[0, 20]] = aside
    angles = np.full((30, 3), 8.0)
    angles[0] = 0.0
    motion = made(angles, scores)
    assert reference_frame(motion) == 0
    portrait = with_scores(source[1], dict.fromkeys(LOOKS, 0.0))
    moved = rebase(motion, source[0], portrait)
    np.testing.assert_allclose(
        moved.expression[[0, 20]],
        [with_scores(portrait, {"eyeLookOutLeft": 0.9, "eyeLookInRight": 0.9})] * 2,
        atol=1e-6,
    )
    np.testing.assert_allclose(np.delete(moved.expression, [0, 20], axis=0), [portrait] * 28, atol=1e-6)
    chosen = rebase(motion, source[0], portrait, reference=0)
    np.testing.assert_allclose(chosen.expression[0], portrait, atol=1e-6)


def test_a_mouth_that_stays_open_counts_as_closed(source: tuple[np.ndarray, np.ndarray]) -> None:
    scores = with_scores(np.zeros(52), {"jawOpen": 0.3})
    moved = rebase(made(np.zeros((9, 3)), np.tile(scores, (9, 1))), *source)
    np.testing.assert_allclose(moved.expression, np.tile(source[1], (9, 1)), atol=1e-6)


def test_the_reference_frame_can_be_chosen(motion: Motion, source: tuple[np.ndarray, np.ndarray]) -> None:
    moved = rebase(motion, *source, reference=3, head_motion="full")
    np.testing.assert_allclose(moved.camera[3], source[0], atol=1e-6)


def test_a_source_like_the_reference_is_driven_absolutely(motion: Motion) -> None:
    """Relative and absolute motion agree where source and driving face start alike and the head moves little."""
    motion = without(made(motion.angles_deg / 5.0, motion.expression, drift=0.2), "eyeBlink", *LOOKS)
    moved = rebase(motion, motion.camera[7], motion.expression[7], head_motion="full")
    np.testing.assert_allclose(moved.camera, motion.camera, atol=1e-5)
    np.testing.assert_allclose(moved.expression, motion.expression, atol=1e-6)


def test_turning_the_head_turns_the_portrait_by_as_much(source: tuple[np.ndarray, np.ndarray]) -> None:
    yaw = made(np.stack([np.linspace(0, 20, 9), np.zeros(9), np.zeros(9)], axis=-1), drift=0.0)
    upright = camera.from_pose(np.array([10.0, 0.0, 0.0]), np.array([0.0, 0.0, 2.7]))
    moved = rebase(yaw, upright, source[1], head_motion="full")
    np.testing.assert_allclose(moved.angles_deg[:, 0], 10 + np.linspace(0, 20, 9), atol=0.2)


def test_the_head_moves_through_the_view_as_the_driving_head_does(source: tuple[np.ndarray, np.ndarray]) -> None:
    motion = made(np.zeros((20, 3)), drift=0.1)
    moved = neck_place(rebase(motion, *source, head_motion="full").camera)
    filmed = neck_place(motion.camera)
    np.testing.assert_allclose(moved - moved[0], filmed - filmed[0], atol=1e-5)


def test_rebased_cameras_are_rigid_and_keep_the_sources_lens(motion: Motion) -> None:
    lens = camera.from_pose(np.array([5.0, 0.0, 0.0]), np.array([0.0, 0.0, 2.7]), focal=3.5)
    cam2world, intrinsics = camera.unpack(rebase(motion, lens, motion.expression[0]).camera.astype(np.float64))
    rotation = cam2world[:, :3, :3]
    np.testing.assert_allclose(rotation @ np.swapaxes(rotation, 1, 2), np.tile(np.eye(3), (20, 1, 1)), atol=1e-6)
    np.testing.assert_allclose(intrinsics[:, 0, 0], 3.5, rtol=1e-6)


def test_shoulders_move_as_they_do_beside_the_driving_neck(
    motion: Motion, source: tuple[np.ndarray, np.ndarray]
) -> None:
    """In the way that the neck moves, which `displacement` decides."""
    known = replace(motion, shoulders=np.linspace([0.03, 0.0, 1.0], [0.0, 0.05, 1.0], 20))
    full = rebase(known, *source, reference=7, head_motion="full").shoulders
    np.testing.assert_allclose(full, known.shoulders_from(7), atol=1e-6)
    steady = rebase(known, *source).shoulders
    assert 0.02 < steady[-1, 1] < 0.05  # what lasts dies away
    assert not rebase(known, *source, head_motion="rotation").shoulders[:, :2].any()
    assert not rebase(motion, *source).shoulders.any()


def test_where_the_face_is_away_nothing_is_known_of_shoulders(
    motion: Motion, source: tuple[np.ndarray, np.ndarray]
) -> None:
    shot = np.repeat([0, -1], [18, 2])
    known = replace(motion, shoulders=np.full((20, 3), 0.5), shot=shot)
    sure = rebase(known, *source).shoulders[:, 2]
    assert sure[:18] == pytest.approx([0.5] * 18)
    assert sure[19] < sure[18] < 0.5


def test_rebasing_in_the_mirror_is_the_mirror_of_rebasing(
    motion: Motion, source: tuple[np.ndarray, np.ndarray]
) -> None:
    order = list(ARKIT52_MIRRORED)
    mirrored = replace(motion, camera=camera.mirror(motion.camera), expression=motion.expression[:, order])
    moved = rebase(mirrored, camera.mirror(source[0]), source[1][order])
    straight = rebase(motion, *source)
    np.testing.assert_allclose(moved.camera, camera.mirror(straight.camera), atol=1e-6)
    np.testing.assert_allclose(moved.expression, straight.expression[:, order], atol=1e-6)


@pytest.mark.parametrize("relative", [True, False])
def test_the_result_correlates_with_the_driving_motion(
    motion: Motion, source: tuple[np.ndarray, np.ndarray], relative: bool
) -> None:
    moved = rebase(motion, *source, relative=relative)
    assert pearson(moved.angles_deg[:, 0], motion.angles_deg[:, 0]) > 0.95
    assert pearson(moved.scores("jawOpen"), motion.scores("jawOpen")) > 0.95


def test_scores_stay_between_0_and_1_and_coefficients_are_not_cut(rng: np.random.Generator) -> None:
    scores = made(np.zeros((5, 3)), rng.uniform(0, 1, (5, 52)))
    moved = rebase(scores, scores.camera[0], rng.uniform(0, 1, 52))
    assert moved.expression.min() >= 0.0
    assert moved.expression.max() <= 1.0
    coefficients = made(np.zeros((5, 3)), rng.normal(0, 4, (5, 64)), "bfm64")
    assert np.abs(rebase(coefficients, coefficients.camera[0], rng.normal(0, 4, 64)).expression).max() > 1.0


def test_the_reference_is_frontal_and_at_rest(motion: Motion) -> None:
    assert reference_frame(motion) == 7


def test_a_frontal_frame_with_closed_eyes_is_no_reference() -> None:
    scores = np.zeros((3, 52))
    scores[0, [ARKIT52.index("eyeBlinkLeft"), ARKIT52.index("eyeBlinkRight")]] = 0.9
    assert reference_frame(made(np.array([[0.0, 0, 0], [4.0, 0, 0], [30.0, 0, 0]]), scores)) == 1


def test_ties_go_to_the_first_frame() -> None:
    assert reference_frame(made(np.zeros((4, 3)), drift=0.0)) == 0


def test_shapes_are_checked(motion: Motion, source: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(ShapeError, match="source_expression"):
        rebase(motion, source[0], source[1][:10])
    with pytest.raises(ShapeError, match="source_camera"):
        rebase(motion, source[0][:16], source[1])


def test_a_motion_file_is_resampled_to_25_fps(motion: Motion, tmp_path: Path) -> None:
    replace(motion, fps=50.0).save(tmp_path / "fast.motion")
    read = driving_motion(tmp_path / "fast.motion")
    assert read.fps == 25.0
    assert len(read) == 10


def test_a_part_of_a_motion_is_read(motion: Motion, tmp_path: Path) -> None:
    motion.save(tmp_path / "a.motion")
    assert read_motion(tmp_path / "a.motion", 0.2, 0.4).motion == motion[5:15]
    assert driving(tmp_path / "a.motion", start_s=0.6).motion == motion[15:]
    assert driving_motion(tmp_path / "a.motion", start_s=0.2, seconds=0.4) == motion[5:15]
    with pytest.raises(ConfigError, match=r"^the bundled motion speech is 7\.96 s long; --start and --seconds select"):
        driving("speech", start_s=60.0)
    with pytest.raises(ConfigError, match=r"a\.motion is 0\.80 s long; --start and --seconds select no frame"):
        read_motion(tmp_path / "a.motion", 2.0)


def test_coefficient_files_are_read(tmp_path: Path, rng: np.random.Generator) -> None:
    np.savez(tmp_path / "face.npz", coefficients=rng.normal(0, 0.1, (6, 257)).astype(np.float32))
    assert read_motion(tmp_path / "face.npz").motion.space == "bfm64"
    assert driving(tmp_path / "face.npz").motion.space == "bfm64"


def test_a_live_link_face_recording_is_read(tmp_path: Path) -> None:
    path = write_take(tmp_path / "take.csv", [{"JawOpen": k / 120} for k in range(121)])
    for moved_by in (read_motion(path), driving(path)):
        assert moved_by.motion.fps == 25.0
        assert moved_by.motion.duration_s == pytest.approx(121 * 1.001 / 60, abs=0.03)
        assert moved_by.motion.scores("jawOpen")[25] == pytest.approx(1.0 / (120 * 1.001 / 60), abs=1e-3)


def test_held_scores_replace_the_driven_ones_and_no_other(motion: Motion) -> None:
    held = hold(motion, {"jawOpen": 0.8, "eyeBlink": 1})
    np.testing.assert_allclose(held.scores("jawOpen"), 0.8, rtol=1e-6)
    np.testing.assert_allclose(held.scores("eyeBlinkRight"), 1.0)
    others = [k for k, name in enumerate(ARKIT52) if name != "jawOpen" and not name.startswith("eyeBlink")]
    np.testing.assert_array_equal(held.expression[:, others], motion.expression[:, others])
    np.testing.assert_array_equal(held.camera, motion.camera)


def test_only_known_scores_of_named_spaces_can_be_held(motion: Motion) -> None:
    with pytest.raises(ConfigError, match="jawOpen"):
        hold(motion, {"jawOpem": 0.8})
    with pytest.raises(BadMotionFile, match="bfm64"):
        hold(made(np.zeros((2, 3)), space="bfm64"), {"jawOpen": 0.8})


def test_a_motion_file_has_no_pictures(motion_file: Path) -> None:
    assert driving(motion_file).pictures([0, 1]) == []


def test_a_driving_video_is_tracked_while_something_else_is_done(face_video: Path, motion_file: Path) -> None:
    begun, go_on = Event(), Event()

    def progress(done: int) -> None:
        begun.set()
        assert go_on.wait(60)

    with driving_meanwhile(face_video, progress, face="largest", start_s=0.2, seconds=0.4) as result:
        assert begun.wait(60)
        go_on.set()
        meanwhile = result()
    assert meanwhile.motion == driving(face_video, start_s=0.2, seconds=0.4).motion
    with driving_meanwhile(motion_file, progress, face="largest", start_s=0.0, seconds=None) as result:
        assert result().motion == read_motion(motion_file).motion


def test_tracking_ends_when_what_is_done_meanwhile_fails(face_video: Path) -> None:
    seen: list[int] = []
    begun = Event()

    def progress(done: int) -> None:
        seen.append(done)
        begun.set()

    def meanwhile() -> None:
        with driving_meanwhile(face_video, progress, face="largest", start_s=0.0, seconds=None):
            assert begun.wait(60)
            raise ConfigError("mine")

    with pytest.raises(ConfigError, match="mine"):
        meanwhile()
    assert len(seen) < 24
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("driving", "ahead"))]


@pytest.mark.slow
def test_tracking_meanwhile_imports_nothing(face_video: Path) -> None:
    """A signal during an import of the main thread may leave the import lock taken; the thread must not need it."""
    script = f"""if True:
        import _imp, faulthandler
        from export3d.animate.drive import driving_meanwhile

        faulthandler.dump_traceback_later(60, exit=True)
        with driving_meanwhile({str(face_video)!r}, print, face="largest", start_s=0.0, seconds=0.4) as result:
            _imp.acquire_lock()
            result()
            raise SystemExit(143)
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 143, done.stderr


def test_what_ends_tracking_meanwhile_is_raised_with_the_result(tmp_path: Path) -> None:
    path = tmp_path / "none.mp4"
    meanwhile = driving_meanwhile(path, print, face="largest", start_s=0.0, seconds=None)
    with meanwhile as result, pytest.raises(BadVideo, match="does not exist"):
        result()


def test_a_driving_video_shows_its_face(face_video: Path, astronaut_turns: list[np.ndarray]) -> None:
    moved_by = driving(face_video)
    assert len(moved_by.motion) == len(astronaut_turns)
    pictures = moved_by.pictures([0, 6, 23], size=64)
    assert [p.shape for p in pictures] == [(64, 64, 3)] * 3
    assert np.abs(pictures[0].astype(int) - pictures[1]).mean() > 3, "frames 0 and 6 are 12 degrees apart"


def test_a_driving_video_that_is_upside_down_shows_its_face_upright(
    astronaut_turns: list[np.ndarray], tmp_path: Path
) -> None:
    with VideoWriter(tmp_path / "upside.mp4", 25.0, 256) as writer:
        for frame in astronaut_turns[:6]:
            writer.write(np.ascontiguousarray(frame[::-1, ::-1]))
    moved_by = driving(tmp_path / "upside.mp4")
    assert moved_by.quarter_turns == 2
    assert moved_by.crop is not None
    upright = crop(astronaut_turns[3], moved_by.crop, 64).astype(int)
    [shown] = moved_by.pictures([3], 64)
    assert np.abs(upright - shown).mean() < 4
    assert np.abs(upright - shown[::-1, ::-1]).mean() > 20


@pytest.mark.slow
def test_a_driving_video_with_a_cut_shows_the_face_of_each_shot(
    astronaut_turns: list[np.ndarray], tmp_path: Path
) -> None:
    """The face sits left, then right; the crop of the whole clip lies between the two."""
    with VideoWriter(tmp_path / "cut.mp4", 25.0, (640, 256)) as writer:
        for place in (0, 384):
            for _ in range(20):
                frame = np.full((256, 640, 3), 120, np.uint8)
                frame[:, place : place + 256] = astronaut_turns[0]
                writer.write(frame)
    left, right = (picture.astype(int) for picture in driving(tmp_path / "cut.mp4").pictures([3, 32], 64))
    assert np.abs(left - right)[:, 16:48].mean() < 5, "the same face in both"
    assert left[:, 16:48].std() > 40, "and not the grey between the two"


def test_the_roll_of_a_tilted_picture_is_tracked(face_video: Path) -> None:
    roll = driving_motion(face_video).angles_deg[:, 2]
    expected = -12.0 * np.sin(np.linspace(0.0, 2.0 * np.pi, 24, endpoint=False))  # Pillow turns anticlockwise
    assert pearson(roll, expected) > 0.95
    assert np.ptp(roll) == pytest.approx(24.0, rel=0.35)  # two thirds of a second are short for the smoothing


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_motion_is_long_and_moves(name: str) -> None:
    motion = driving_motion(bundled_motion(name))
    assert motion.space == "arkit52"
    assert motion.duration_s >= 4.0
    assert motion.meta["note"], "where it came from"
    yaw, blink, jaw = motion.angles_deg[:, 0], motion.scores("eyeBlink"), motion.scores("jawOpen")
    if name == "turns":
        assert np.ptp(yaw) > 30
    else:
        assert np.ptp(blink) > 0.4
        assert np.ptp(jaw) > 0.3


def test_an_unknown_bundled_name_lists_the_known_ones() -> None:
    with pytest.raises(BadMotionFile, match="speech"):
        bundled_motion("dance")
    with pytest.raises(BadMotionFile, match=r"^speach does not exist; .* bundled motion: speech, expressions, turns$"):
        driving_motion("speach")


def test_the_bundled_portrait_is_there() -> None:
    assert bundled_portrait().is_file()
