import numpy as np
import pytest

from export3d import camera
from export3d.errors import BadMotionFile
from export3d.motion.compare import compare, pearson
from export3d.motion.motion import Motion
from tests.random_motion import random_motion


def test_a_motion_is_like_itself(some: Motion) -> None:
    same = compare(some, some)
    assert same["frames"] == 50
    assert list(same["correlation"]) == ["yaw", "pitch", "roll", "jawOpen", "eyeBlink"]
    assert all(value == pytest.approx(1.0) for value in same["correlation"].values())
    assert all(value == 0 for value in same["mean_abs_difference"].values())


def test_correlation_agrees_with_numpy(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(2, 200))
    y += 0.5 * x
    assert pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert pearson(x, -3 * x + 2) == pytest.approx(-1.0)


def test_what_does_not_move_has_no_correlation(some: Motion) -> None:
    still = Motion(np.tile(some.expression[:1], (50, 1)), np.tile(some.camera[:1], (50, 1)), 25)
    report = compare(some, still)
    assert all(np.isnan(value) for value in report["correlation"].values())
    assert all(value > 0 for value in report["mean_abs_difference"].values())


def test_an_opposite_head_turn_is_seen(rng: np.random.Generator) -> None:
    yaw = np.stack([np.linspace(-20, 20, 40), np.zeros(40), np.zeros(40)], axis=1)
    scores = rng.random((40, 52))
    a = Motion(scores, camera.from_pose(yaw, np.tile([0, 0, 2.7], (40, 1))), 25)
    b = Motion(scores, camera.from_pose(-yaw, np.tile([0, 0, 2.7], (40, 1))), 25)
    report = compare(a, b)
    assert report["correlation"]["yaw"] == pytest.approx(-1.0)
    assert report["mean_abs_difference"]["yaw"] == pytest.approx(np.abs(2 * yaw[:, 0]).mean(), rel=1e-4)


def test_motions_of_other_rates_and_lengths_are_compared_where_they_overlap(some: Motion) -> None:
    report = compare(some, some.resampled(50.0)[:60])
    assert report["frames"] == 30
    assert min(report["correlation"].values()) > 0.999


def test_motions_of_two_spaces_cannot_be_compared(rng: np.random.Generator, some: Motion) -> None:
    with pytest.raises(BadMotionFile, match="bfm64"):
        compare(some, random_motion(rng, space="bfm64"))
    assert list(compare(random_motion(rng, space="bfm64"), random_motion(rng, space="bfm64"))["correlation"]) == [
        "yaw",
        "pitch",
        "roll",
    ]
