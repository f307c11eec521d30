"""Facial motion on made-up landmarks: half the movement has slope 0.5, the opposite gaze correlates with -1."""

from __future__ import annotations

import math

import numpy as np
import pytest

from export3d.errors import ShapeError
from export3d.evaluation.measures.facial_motion import CURVES, LEAST, MEASURES, FacialMotion, curves, follows
from export3d.motion.arkit import ARKIT52

FRAMES = 40
EYE_PX, FACE_PX = 30.0, 90.0
SLOPES = ("lip_gap", "lip_width", "lid_gap")
GAZE = ("gaze_yaw", "gaze_pitch")
SCORES = ("mouthLeft", "mouthRight", "mouthPucker")


def face(**wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Landmarks (T, 478, 2) and scores (T, 52) of an upright face whose curves have these values."""
    known = dict.fromkeys(CURVES, np.zeros(FRAMES)) | wanted
    points, scores = np.zeros((FRAMES, 478, 2)), np.zeros((FRAMES, 52))
    for name in SCORES:
        scores[:, ARKIT52.index(name)] = known[name]
    for outer, inner, iris, upper, lower, left in ((33, 133, 468, 159, 145, 80.0), (263, 362, 473, 386, 374, 140.0)):
        right = left + EYE_PX
        points[:, outer if left < 100 else inner] = left, 100.0
        points[:, inner if left < 100 else outer] = right, 100.0
        points[:, iris] = (left + right) / 2, 100.0
        points[:, iris] += EYE_PX * np.stack([known[name] for name in GAZE], axis=-1)
        points[:, (upper, lower)] = left + 15.0, 100.0
        points[:, lower, 1] += FACE_PX * known["lid_gap"]
    points[:, (13, 14)] = 125.0, 160.0
    points[:, 14, 1] += FACE_PX * known["lip_gap"]
    points[:, (61, 291)] = 125.0, 160.0
    points[:, 291, 0] += FACE_PX * known["lip_width"]
    return points, scores


def wave(phase: float = 0.0) -> np.ndarray:
    return 0.2 + 0.1 * np.sin(np.arange(FRAMES) / 3.0 + phase)


def waves() -> dict[str, np.ndarray]:
    return {name: wave(i) for i, name in enumerate(CURVES)}


def test_curves_are_what_the_landmarks_show() -> None:
    found = curves(*face(**waves()))
    assert found.shape == (FRAMES, len(CURVES))
    np.testing.assert_allclose(found, np.stack(list(waves().values()), axis=-1), atol=1e-12)


def test_both_eyes_count_and_look_the_same_way() -> None:
    """One iris moved to the right of the image, and to the left, is half of both moved."""
    for iris in (468, 473):
        points, scores = face()
        points[:, iris, 0] += 0.2 * EYE_PX
        np.testing.assert_allclose(curves(points, scores)[:, CURVES.index("gaze_yaw")], 0.1, atol=1e-12)


@pytest.mark.parametrize("degrees", [-35.0, 20.0, 90.0])
def test_neither_tilt_nor_size_nor_place_changes_a_curve(degrees: float) -> None:
    points, scores = face(**waves())
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turned = 1.7 * points @ np.array([[cos, sin], [-sin, cos]]) + np.array([40.0, -13.0])
    np.testing.assert_allclose(curves(turned, scores), curves(points, scores), atol=1e-12)


def test_the_truth_follows_itself() -> None:
    found = curves(*face(**waves()))
    assert follows(found, found) == pytest.approx(dict.fromkeys(CURVES, 1.0))


def test_half_the_movement_has_slope_one_half_and_full_correlation() -> None:
    theirs = waves()
    ours = {name: 0.05 + 0.5 * values for name, values in theirs.items()}
    found = follows(curves(*face(**ours)), curves(*face(**theirs)))
    assert found == pytest.approx({name: 0.5 if name in SLOPES else 1.0 for name in CURVES})


def test_opposite_movement_is_minus_one() -> None:
    theirs = waves()
    ours = {name: 0.5 - values for name, values in theirs.items()}
    found = follows(curves(*face(**ours)), curves(*face(**theirs)))
    assert found == pytest.approx(dict.fromkeys(CURVES, -1.0))


def test_a_frozen_face_has_slope_zero_and_no_correlation() -> None:
    found = follows(curves(*face()), curves(*face(**waves())))
    assert all(found[name] == pytest.approx(0.0) for name in SLOPES)
    assert all(math.isnan(found[name]) for name in (*GAZE, *SCORES))


@pytest.mark.parametrize(("share", "known"), [(1.05, True), (0.95, False)])
def test_a_driver_that_hardly_moves_says_nothing(share: float, known: bool) -> None:
    unit = np.tile([-1.0, 1.0], FRAMES // 2)
    ours = curves(*face(**waves()))
    found = follows(ours, curves(*face(**{name: 0.3 + share * LEAST[name] * unit for name in CURVES})))
    assert [not math.isnan(value) for value in found.values()] == [known] * len(CURVES)


def test_frames_without_a_face_do_not_enter_and_three_are_needed() -> None:
    theirs = curves(*face(**waves()))
    ours, lost = theirs.copy(), theirs.copy()
    ours[:5], lost[30:] = np.nan, np.nan
    ours[30:] *= -7.0
    assert follows(ours, lost) == pytest.approx(dict.fromkeys(CURVES, 1.0))
    ours[7:] = np.nan
    assert all(math.isnan(value) for value in follows(ours, lost).values())


def test_a_lost_face_has_no_curves() -> None:
    points, scores = face(**waves())
    points[3] = np.nan
    assert np.flatnonzero(np.isnan(curves(points, scores)).any(axis=1)).tolist() == [3]


def test_chunks_do_not_matter(rng: np.random.Generator) -> None:
    ours, theirs = rng.normal(size=(2, FRAMES, len(CURVES)))
    motion = FacialMotion()
    for start in range(0, FRAMES, 7):
        motion.add(ours[start : start + 7], theirs[start : start + 7])
    assert motion.result() == follows(ours, theirs)
    assert all(math.isnan(value) for value in FacialMotion().result().values())


def test_other_shapes_are_refused() -> None:
    points, scores = face()
    with pytest.raises(ShapeError):
        curves(points[:, :468], scores)
    with pytest.raises(ShapeError):
        curves(points, scores[1:])
    with pytest.raises(ShapeError, match="40 predictions need as many driving frames, got 39"):
        FacialMotion().add(curves(points, scores), curves(points[1:], scores[1:]))


def test_only_correlations_have_a_better_direction() -> None:
    assert [measure.name for measure in MEASURES] == list(CURVES)
    assert [m.name for m in MEASURES if m.higher_is_better is None] == list(SLOPES)
    assert all(m.title.endswith("(slope)" if m.name in SLOPES else "(r)") for m in MEASURES)
