"""animate/head_motion.py: the framing of the driving video is not the head's motion."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from export3d import camera
from export3d.animate.drive import FPS, driving_motion, rebase, references
from export3d.animate.head_motion import HeadMotion, eased, limited, neck_place, report, runs, seen_rotation, with_neck
from export3d.errors import ConfigError
from export3d.face.tracker import Tracker
from export3d.motion.arkit import columns_of
from export3d.motion.motion import AWAY, Motion

OWN = camera.from_pose(np.array([5.0, -3.0, 1.0]), np.array([0.01, -0.02, 2.8]))
WAYS: tuple[HeadMotion, ...] = ("steady", "full", "rotation")
STEADY_REACH, FULL_REACH = 0.1 + 1e-6, 0.25 + 1e-6
FAR = np.array([0.0, 0.0, 1.0])
"""A distance at which the camera sees a head as large as usual."""


def filmed(place: np.ndarray, angles_deg: np.ndarray | None = None, shot: np.ndarray | None = None) -> Motion:
    """A motion whose neck is at places (T, 3) in the frame, by default with a frontal head."""
    angles = np.zeros((len(place), 3)) if angles_deg is None else angles_deg
    labels = with_neck(camera.head_rotation(angles), place + FAR, camera.default_intrinsics())
    return Motion(np.zeros((len(place), 52)), labels, FPS, shot=np.zeros(len(place), int) if shot is None else shot)


def across(x: np.ndarray) -> np.ndarray:
    """Places (T, 3) at these distances from the middle, crop widths."""
    return np.stack([x, 0.0 * x, 0.0 * x], axis=-1)


def moved(motion: Motion, how: HeadMotion = "steady") -> np.ndarray:
    """(T, 3): how far the portrait's neck moves from its place."""
    return neck_place(rebase(motion, OWN, np.zeros(52), head_motion=how).camera) - neck_place(OWN)


def slide(still: int = 15, length: int = 15, far: float = 0.9) -> np.ndarray:
    return far * ((np.arange(100) - still) / length).clip(0.0, 1.0)


def test_a_neck_placed_is_found_there(rng: np.random.Generator) -> None:
    place = rng.uniform(-0.2, 0.2, (9, 3)) + FAR
    lens = camera.default_intrinsics(3.5)
    rotation = camera.head_rotation(rng.uniform(-30, 30, (9, 3)))
    labels = with_neck(rotation, place, lens)
    np.testing.assert_allclose(neck_place(labels), place, atol=1e-9)
    np.testing.assert_allclose(seen_rotation(labels), rotation, atol=1e-9)
    np.testing.assert_allclose(camera.unpack(labels)[1][4], lens)


def test_a_driver_who_slides_away_leaves_the_head_in_the_picture() -> None:
    """A slide by almost the width of the crop, in half a second: what carried the head out of the photo."""
    steady, full = moved(filmed(across(slide()))), moved(filmed(across(slide())), "full")
    assert np.abs(steady).max() <= STEADY_REACH
    assert np.abs(full).max() <= FULL_REACH
    assert steady[:, 0].max() > 0.8 * STEADY_REACH, "it does sway"
    assert np.abs(steady[:4]).max() < 1e-5, "and not long before the driver moves"
    assert steady[-1, 0] < 0.6 * steady[:, 0].max(), "and comes back"


def test_a_zoom_does_not_enlarge_the_head() -> None:
    place = np.stack([np.zeros(100), np.zeros(100), np.linspace(0.0, -1.0, 100)], axis=-1)
    assert np.abs(moved(filmed(place))).max() <= 0.06
    assert 0.2 < np.abs(moved(filmed(place), "full")).max() <= FULL_REACH


def test_a_shaking_camera_does_not_shake_the_head(rng: np.random.Generator) -> None:
    t = np.arange(125) / FPS
    shake = 0.03 * sum(np.sin(2 * np.pi * (f * t + rng.uniform())) for f in (3.0, 4.3, 6.1))
    steps = np.abs(np.diff(moved(filmed(across(shake)))[5:-5, 0]))
    assert steps.max() < 0.1 * np.abs(np.diff(shake)).max()


def test_ordinary_swaying_is_kept() -> None:
    t = np.arange(150) / FPS
    sway = 0.03 * np.sin(2 * np.pi * 0.4 * t)
    assert np.corrcoef(moved(filmed(across(sway)))[25:, 0], sway[25:])[0, 1] > 0.95


def test_full_motion_is_as_filmed_from_the_reference_frame() -> None:
    sway = 0.05 * np.sin(np.arange(50) / 8.0)
    motion = filmed(across(sway))
    np.testing.assert_allclose(moved(motion, "full"), across(sway - sway[references(motion).pose[0]]), atol=1e-5)


@pytest.mark.parametrize("how", WAYS)
def test_the_head_turns_alike_in_every_way(how: HeadMotion) -> None:
    angles = np.stack([20 * np.sin(np.arange(60) / 9.0), np.zeros(60), np.zeros(60)], axis=-1)
    turned = rebase(filmed(across(slide()[:60]), angles), OWN, np.zeros(52), head_motion=how)
    plain = rebase(filmed(np.zeros((60, 3)), angles), OWN, np.zeros(52))
    np.testing.assert_allclose(seen_rotation(turned.camera), seen_rotation(plain.camera), atol=1e-5)


def test_a_head_that_moves_aside_keeps_its_look() -> None:
    """The crop's camera sees the same image 0.9 crop widths aside as a head turned by 12 degrees."""
    motion = filmed(across(slide()))
    assert np.ptp(motion.angles_deg[:, 0]) > 11.0
    assert np.ptp(rebase(motion, OWN, np.zeros(52)).angles_deg[:, 0]) < 1.5


def test_rotation_keeps_the_neck_in_its_place(rng: np.random.Generator) -> None:
    motion = filmed(rng.uniform(-0.3, 0.3, (40, 3)), rng.uniform(-20, 20, (40, 3)))
    assert np.abs(moved(motion, "rotation")).max() < 1e-6


def two_shots() -> Motion:
    """Frames 0..39 at the left, frontal; 40..79 at the right, twice as large, turned by 25 degrees, eyes half shut."""
    later = np.arange(80) >= 40
    place = across(np.where(later, 0.4, -0.4)) - 0.7 * later[:, None] * [0.0, 0.0, 1.0]
    motion = filmed(place, np.where(later, 25.0, 0.0)[:, None] * [1.0, 0.0, 0.0], later.astype(int))
    expression = np.zeros((80, 52))
    expression[np.ix_(later, columns_of("eyeBlink"))] = 0.14
    return replace(motion, expression=expression)


@pytest.mark.parametrize("how", WAYS)
def test_a_cut_to_another_framing_does_not_show(how: HeadMotion) -> None:
    result = rebase(two_shots(), OWN, np.full(52, 0.01), head_motion=how)
    np.testing.assert_allclose(result.camera, np.tile(OWN, (80, 1)), atol=1e-5)
    np.testing.assert_allclose(result.expression, 0.01, atol=1e-6)


def test_without_shots_the_same_cut_jumps() -> None:
    one = replace(two_shots(), shot=np.zeros(80, int))
    assert np.abs(np.diff(rebase(one, OWN, np.zeros(52)).angles_deg[:, 0])).max() > 20.0


def test_a_shot_without_a_face_at_rest_is_measured_from_one_that_has_it() -> None:
    expression = np.zeros((60, 52))
    expression[30:, columns_of("jawOpen")] = 0.6
    motion = replace(filmed(np.zeros((60, 3)), shot=np.arange(60) // 30), expression=expression)
    assert rebase(motion, OWN, np.zeros(52)).scores("jawOpen")[40:].min() == pytest.approx(0.6)


def away_and_back() -> Motion:
    """A head that is turned and speaks, walks out at the right, is away in frames 40..79 and back at the left."""
    shot = np.where((np.arange(120) >= 40) & (np.arange(120) < 80), AWAY, 0)
    place = across(np.where(np.arange(120) < 60, 0.03 * (np.arange(120) - 20).clip(0), -0.5))
    angles = np.where(np.arange(120) < 5, 0.0, 15.0)[:, None] * [1.0, 0.0, 0.0]
    expression = np.zeros((120, 52))
    expression[5:, columns_of("jawOpen")] = 0.5
    return replace(filmed(place, angles, shot), expression=expression)


def test_a_face_that_slides_into_the_frame_does_not_carry_the_head_along() -> None:
    """In a third of a second, by half a crop width; the same slide in the middle of a shot is followed."""
    place = across(slide(still=20, length=8, far=0.5))
    shot = np.where(np.arange(100) < 20, AWAY, 0)
    assert np.abs(moved(filmed(place, shot=shot))).max() < 0.06 < np.abs(moved(filmed(place))).max()


@pytest.mark.parametrize("how", WAYS)
def test_while_the_face_is_away_the_portrait_rests(how: HeadMotion) -> None:
    own = np.full(52, 0.01)
    result = rebase(away_and_back(), OWN, own, head_motion=how)
    np.testing.assert_allclose(result.camera[55:80], np.tile(OWN, (25, 1)), atol=1e-5)
    np.testing.assert_allclose(result.expression[55:80], np.tile(own, (25, 1)), atol=1e-6)
    assert np.abs(result.scores("jawOpen")[95:] - 0.51).max() < 1e-6, "the jaw opens from the same rest as before"
    seen = seen_rotation(result.camera)
    np.testing.assert_allclose(seen[95:], np.tile(seen[39], (25, 1, 1)), atol=1e-5)


@pytest.mark.parametrize("how", WAYS)
def test_nothing_jumps_where_the_face_goes_or_comes(how: HeadMotion) -> None:
    result = rebase(away_and_back(), OWN, np.zeros(52), head_motion=how)
    around = np.r_[37:60, 77:100]
    assert np.abs(np.diff(result.angles_deg, axis=0)[around]).max() < 3.0
    assert np.abs(np.diff(neck_place(result.camera), axis=0)[around]).max() < 0.06
    assert np.abs(np.diff(result.expression, axis=0)[around]).max() < 0.1


def test_a_face_on_its_way_out_is_no_reference() -> None:
    """The most frontal frames are the last ones before the face is away; it may be seen in part there."""
    motion = away_and_back()
    angles = np.where((np.arange(120) >= 36) & (np.arange(120) < 84), 0.0, 15.0)[:, None] * [1.0, 0.0, 0.0]
    motion = filmed(neck_place(motion.camera) - FAR, angles, motion.shot)
    assert references(motion).pose[0] < 32


def test_a_motion_without_any_face_rests_throughout() -> None:
    motion = filmed(across(slide()), shot=np.full(100, AWAY))
    np.testing.assert_allclose(rebase(motion, OWN, np.zeros(52)).camera, np.tile(OWN, (100, 1)), atol=1e-5)


def test_what_is_eased_ends_where_it_should_and_starts_where_it_was() -> None:
    values = np.r_[np.zeros(10), np.ones(40)][:, None]
    out = eased(values, np.r_[np.zeros(10, int), np.ones(40, int)], FPS)[:, 0]
    assert out[10] < 0.05
    assert (np.diff(out) >= 0.0).all()
    np.testing.assert_array_equal(out[23:], 1.0)


def test_limits_keep_direction_and_small_movements(rng: np.random.Generator) -> None:
    values = rng.normal(0.0, 0.2, (200, 2))
    out, length = limited(values, 0.1), np.linalg.norm(values, axis=1)
    assert np.linalg.norm(out, axis=1).max() <= 0.1
    np.testing.assert_array_equal(out[length < 0.05], values[length < 0.05])
    np.testing.assert_allclose(out[:, 0] * values[:, 1], out[:, 1] * values[:, 0], atol=1e-12)


def test_runs_are_split_by_absences() -> None:
    assert runs(np.array([0, 0, -1, 0, 1, 1])) == [slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 6)]


@pytest.mark.parametrize("name", ["speech", "expressions", "turns"])
def test_there_is_nothing_to_report_of_a_bundled_motion(name: str) -> None:
    motion = driving_motion(name)
    assert report(motion, references(motion).place, "steady") == ""


def test_the_report_counts_cuts_absences_and_frames() -> None:
    cut, away = two_shots(), away_and_back()
    assert report(cut, references(cut).place, "steady") == "1 cut: each shot moves from the portrait's own pose"
    text = report(away, references(away).place, "steady")
    assert text.startswith("the face is away in 40 of 120 frames: the portrait returns to rest; the head is kept near")
    held = report(motion := filmed(across(slide())), references(motion).place, "steady")
    assert held.endswith("of 100 frames; --head-motion full follows farther")


def test_another_way_is_refused() -> None:
    with pytest.raises(ConfigError, match="no head motion 'still'; use steady, full, rotation"):
        rebase(two_shots(), OWN, np.zeros(52), head_motion="still")  # type: ignore[arg-type]


def shown(astronaut: np.ndarray, x: float) -> np.ndarray:
    """The upper left of the bundled portrait, with its face at x in a frame of 640 x 256."""
    frame, photo = np.full((256, 640, 3), 110, np.uint8), astronaut[:256, 80:360]
    left = round(x * 640) - 140
    first, last = max(left, 0), min(left + 280, 640)
    if first < last:
        frame[:, first:last] = photo[:, first - left : last - left]
    return frame


@pytest.mark.slow
def test_a_filmed_driver_may_slide_leave_and_come_back(astronaut: np.ndarray) -> None:
    """Tracked from pixels: rest, a slide by a third of the frame, out at the right, back in the middle."""
    with Tracker() as tracker:
        path = [0.4] * 6 + [0.4 + 0.04 * k for k in range(1, 18)] + [2.0] * 12 + [0.5] * 8
        motion = tracker.track_frames([shown(astronaut, x) for x in path]).motion
    away = motion.shot == AWAY
    assert away[22:35].all()
    assert not away[:10].any()
    assert not away[35:].any()
    assert np.ptp(neck_place(motion.camera)[~away, 0]) > 0.5, "what the head did when all of it was followed"
    assert np.abs(moved(motion)).max() <= STEADY_REACH
    assert np.abs(moved(motion, "full")).max() <= FULL_REACH
    assert np.abs(np.diff(moved(motion), axis=0)).max() < 0.04
    assert np.ptp(rebase(motion, OWN, np.zeros(52)).angles_deg, axis=0).max() < 6.0
