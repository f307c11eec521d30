"""Smoothing: tremor goes, blinks and turns stay, nothing lags."""

import numpy as np
import pytest

import export3d.camera as camera
from export3d.errors import ConfigError
from export3d.face import pose
from export3d.face.mesh import canonical_mesh
from export3d.face.smooth import (
    Smoothing,
    cuts,
    from_pose_numbers,
    pose_numbers,
    remove_glitches,
    shots,
    smooth,
    smooth_cameras,
    smooth_expression,
)

FPS = 25.0


def cameras(yaw, pitch=0.0, roll=0.0, distance=2.7):
    angles = np.stack(np.broadcast_arrays(yaw, pitch, roll), axis=-1).astype(float)
    distance = np.broadcast_to(distance, angles.shape[:1])
    return camera.from_pose(angles, np.stack([0.02 * distance, -0.03 * distance, distance], axis=-1))


def yaw_of(labels):
    return camera.head_angles(labels)[:, 0]


def test_a_constant_comes_back_bit_for_bit(rng):
    values = np.repeat(rng.standard_normal((1, 9)), 60, axis=0)
    np.testing.assert_array_equal(smooth(values, 2.5), values)


def test_a_parabola_is_kept_up_to_its_ends():
    t = np.arange(50.0)
    values = np.stack([0.3 * t, 0.01 * t**2 - t], axis=1)
    np.testing.assert_allclose(smooth(values, 3.0), values, atol=1e-9)


def test_smoothing_commutes_with_reversing_time(rng):
    values = rng.standard_normal((80, 3))
    np.testing.assert_allclose(smooth(values[::-1], 2.0), smooth(values, 2.0)[::-1], atol=1e-12)


def test_smoothing_agrees_with_a_weighted_parabola_fit_frame_by_frame(rng):
    values, sigma = rng.standard_normal(40), 2.0
    t = np.arange(40)
    twin = []
    for frame in t:
        near = np.abs(t - frame) <= 6
        root = np.exp(-0.25 * ((t - frame) / sigma) ** 2)[near]
        twin.append(np.polynomial.Polynomial.fit((t - frame)[near], values[near], 2, w=root)(0.0))
    np.testing.assert_allclose(smooth(values, sigma), twin, atol=1e-9)


def test_the_pieces_of_a_clip_do_not_show(rng, monkeypatch):
    values = rng.standard_normal((50, 4))
    whole = smooth(values, 4.0)
    for piece in (1, 5, 49):
        monkeypatch.setattr("export3d.face.smooth._PIECE", piece)
        np.testing.assert_array_equal(smooth(values, 4.0), whole)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_very_short_clips_survive(count, rng):
    labels = cameras(rng.uniform(-5, 5, count))
    assert np.isfinite(smooth_cameras(labels, FPS)).all()
    assert smooth_expression(rng.uniform(0, 1, (count, 52)), FPS).shape == (count, 52)


def test_landmark_noise_of_one_pixel_leaves_less_than_a_quarter_of_a_degree_of_yaw(rng):
    """A still face, each landmark of each frame moved by up to a pixel each way: the yaw's standard deviation."""
    still = pose.project(canonical_mesh().vertices, cameras([8.0], -6.0)[0], 256)
    noisy = still + rng.uniform(-1.0, 1.0, (250, 468, 2))
    for shape in (None, pose.person_shape(noisy, 256)):
        labels, _ = pose.fit_cameras(noisy, 256, shape)
        steady = smooth_cameras(labels, FPS)
        assert yaw_of(steady).std() < 0.25
        assert yaw_of(steady).std() < 0.8 * yaw_of(labels).std()
        assert np.abs(np.diff(yaw_of(steady), 2)).mean() < 0.1


@pytest.mark.parametrize("frames", [4, 5, 6, 7])
def test_a_blink_keeps_four_fifths_of_its_peak(frames):
    t = np.arange(60)
    blink = (1 - np.abs(t - 30) / (frames / 2)).clip(0)[:, None] * 0.9
    steady = smooth_expression(np.repeat(blink, 52, axis=1), FPS)
    assert steady.max() > 0.8 * blink.max()
    assert (steady.argmax(0) == 30).all()


def test_scores_stay_between_zero_and_one(rng):
    steady = smooth_expression(rng.integers(0, 2, (100, 52)), FPS)
    assert steady.dtype == np.float32
    assert steady.min() >= 0.0
    assert steady.max() <= 1.0


@pytest.mark.parametrize(("hertz", "kept"), [(0.5, 0.97), (1.0, 0.95), (2.0, 0.85)])
def test_a_shaken_head_keeps_its_swing_and_does_not_lag(hertz, kept):
    t = np.arange(150) / FPS
    swing = 20.0 * np.sin(2 * np.pi * hertz * t)
    steady = yaw_of(smooth_cameras(cameras(swing), FPS))[10:-10]
    gain = steady @ swing[10:-10] / (swing[10:-10] @ swing[10:-10])
    assert kept < gain < 1.02
    lags = [np.corrcoef(steady[5:-5], swing[10 + 5 + k : len(swing) - 15 + k])[0, 1] for k in range(-5, 6)]
    assert np.argmax(lags) == 5


def test_the_distance_is_smoothed_harder_than_the_angles(rng):
    noise = rng.standard_normal(300)
    labels = cameras(noise, distance=2.7 * (1 + 0.01 * noise))
    steady = smooth_cameras(labels, FPS)
    left_angle = yaw_of(steady).std() / yaw_of(labels).std()
    left_distance = camera.head_position(steady)[:, 2].std() / camera.head_position(labels)[:, 2].std()
    assert left_distance < 0.6 * left_angle


def test_widths_are_seconds_not_frames():
    t25, t50 = np.arange(100) / 25, np.arange(200) / 50
    yaw = lambda t: 10 * np.exp(-(((t - 2) / 0.12) ** 2))  # noqa: E731
    at25, at50 = (yaw_of(smooth_cameras(cameras(yaw(t)), fps)) for t, fps in ((t25, 25), (t50, 50)))
    np.testing.assert_allclose(at50[::2], at25, atol=0.15)


def test_zero_widths_change_nothing(rng):
    labels = cameras(rng.uniform(-30, 30, 50))
    off = Smoothing(pose_s=0.0, distance_s=0.0, expression_s=0.0)
    np.testing.assert_allclose(smooth_cameras(labels, FPS, off), labels, atol=1e-12)


def test_a_negative_width_is_refused():
    with pytest.raises(ConfigError):
        Smoothing(pose_s=-0.1)


def test_a_roll_past_a_half_turn_is_not_a_jump():
    roll = np.linspace(150, 210, 40)
    steady = camera.head_angles(smooth_cameras(cameras(0.0 * roll, roll=roll), FPS))[:, 2]
    np.testing.assert_allclose(np.cos(np.radians(steady - roll)), 1.0, atol=1e-6)


def test_one_wild_frame_is_removed_and_a_fast_turn_is_not():
    yaw = np.full(40, 3.0)
    yaw[20] = 40.0
    np.testing.assert_allclose(yaw_of(smooth_cameras(cameras(yaw), FPS)), 3.0, atol=1e-6)
    turn = 40.0 / (1 + np.exp(-(np.arange(40) - 20) / 1.5))
    np.testing.assert_allclose(remove_glitches(turn[:, None], 4.0)[:, 0], turn)


def test_a_cut_stays_sharp():
    yaw = np.concatenate([np.linspace(-20, -10, 30), np.linspace(15, 12, 30)])
    labels = cameras(yaw)
    assert cuts(np.concatenate(pose_numbers(labels), axis=1)) == [30]
    np.testing.assert_allclose(yaw_of(smooth_cameras(labels, FPS)), yaw, atol=1e-6)


def test_a_fast_turn_is_not_a_cut():
    """Thirty degrees in a fifth of a second, as fast as heads turn."""
    yaw = 30 / (1 + np.exp(-(np.arange(60) - 30) / 1.0))
    assert cuts(np.concatenate(pose_numbers(cameras(yaw)), axis=1)) == []


def test_pose_numbers_and_cameras_undo_each_other(rng):
    labels = cameras(rng.uniform(-80, 80, 20), rng.uniform(-80, 80, 20), rng.uniform(-180, 180, 20), 3.1)
    np.testing.assert_allclose(from_pose_numbers(*pose_numbers(labels)), labels, atol=1e-9)


def clip(changes, count=60):
    """Labels (T, 25) of a frontal head whose x, y and distance change at frames: {frame: (x, y, z)}."""
    place = np.tile([0.0, 0.0, 2.7], (count, 1))
    for frame, there in changes.items():
        place[frame:] = there
    return camera.from_pose(np.zeros((count, 3)), place)


def found_but(count=60, *lost):
    found = np.ones(count, bool)
    for first, last in lost:
        found[first:last] = False
    return found


ELSEWHERE, LARGER = (0.3, 0.1, 2.7), (0.0, 0.0, 1.8)


@pytest.mark.parametrize("there", [ELSEWHERE, LARGER])
@pytest.mark.parametrize("lost", [0, 1, 5, 10])
def test_a_cut_begins_a_shot_also_when_the_face_is_lost_there_for_a_moment(there, lost):
    found = found_but(60, (30, 30 + lost))
    labels = clip({30: there})
    shot = shots(labels[found], found, FPS)
    assert shot.dtype == np.int32
    np.testing.assert_array_equal(shot, np.arange(60) >= 30 + lost)


def test_a_steady_clip_is_one_shot_and_a_walk_too():
    assert not shots(clip({}), found_but(), FPS).any()
    walk = camera.from_pose(np.zeros((60, 3)), np.linspace([-0.5, 0.0, 2.7], [0.5, 0.0, 2.7], 60))
    assert not shots(walk, found_but(), FPS).any()
    found = found_but(60, (30, 33))
    assert not shots(walk[found], found, FPS).any()


def test_a_face_that_is_away_for_long_has_no_shot_and_comes_back_to_its_own():
    found = found_but(60, (20, 35))
    shot = shots(clip({30: ELSEWHERE})[found], found, FPS)
    np.testing.assert_array_equal(shot, np.where(found, 0, -1))


def test_a_face_that_comes_back_in_another_size_is_another_shot():
    found = found_but(60, (20, 35))
    shot = shots(clip({30: LARGER})[found], found, FPS)
    np.testing.assert_array_equal(shot, np.where(found, np.arange(60) >= 35, -1))


def test_a_short_loss_at_the_ends_is_bridged_and_a_long_one_is_not():
    short, long = found_but(60, (0, 10), (55, 60)), found_but(60, (0, 11), (40, 60))
    assert not shots(clip({})[short], short, FPS).any()
    np.testing.assert_array_equal(shots(clip({})[long], long, FPS), np.where(long, 0, -1))


def test_one_frame_with_a_face_is_a_shot():
    found = found_but(60, (1, 60))
    np.testing.assert_array_equal(shots(clip({})[:1], found, FPS), np.where(found, 0, -1))


def test_cameras_are_smoothed_shot_by_shot(rng):
    """A small cut that only `shot` tells of: the values before it do not change those after it."""
    labels = cameras(rng.normal(0, 0.3, 40))
    shot = (np.arange(40) >= 20).astype(np.int32)
    together = smooth_cameras(labels, FPS, shot=shot)
    np.testing.assert_allclose(together[20:], smooth_cameras(labels[20:], FPS), atol=1e-9)
    assert np.abs(together - smooth_cameras(labels, FPS)).max() > 1e-4
