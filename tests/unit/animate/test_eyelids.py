"""Eyes close as far as their scores say, each on its own, and otherwise stay as the model moves them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from export3d.animate.animator import Animator, Source
from export3d.animate.eyelids import closing_eyes
from export3d.face.landmark_sets import EYELIDS, LIPS
from export3d.motion.arkit import ARKIT52, with_scores

RIGHT, LEFT = ((159, 145), (386, 374))
BROWS = (105, 66, 107, 336, 296, 334)
BLINKS = [ARKIT52.index("eyeBlinkRight"), ARKIT52.index("eyeBlinkLeft")]


def numbers(values: np.ndarray) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


@torch.inference_mode()
def landmarks(
    animator: Animator, source: Source, expression: np.ndarray, closing: bool = True, edited: bool = False
) -> np.ndarray:
    """(B, 478, 3) moved landmarks of expressions (B, 52)."""
    assert animator.model.warp is not None
    motion, view = animator.model.warp.motion, source.features.view
    assert motion is not None
    assert view is not None
    assert view.face is not None
    asked, regions = numbers(expression), None
    if closing:
        own = numbers(source.expression)
        asked, regions = closing_eyes(animator.model, source.features, own, asked, edited=edited)
    by = motion.input(animator.model.expression(asked), asked)
    points: Tensor = motion(by, view.face.expand(len(asked)), regions)
    return points.numpy()


def openings(points: np.ndarray, source: Source) -> np.ndarray:
    """(B, 2) the gaps between the middles of the eyelids, right and left, relative to the source's."""
    assert source.features.view is not None
    assert source.features.view.face is not None
    own = source.features.view.face.points.numpy()
    gaps = [[p[:, lower, 1] - p[:, upper, 1] for upper, lower in (RIGHT, LEFT)] for p in (points, own)]
    return np.stack(gaps[0], axis=1) / np.stack(gaps[1], axis=1)


def test_a_blink_of_one_closes_both_eyes(animator: Animator, source: Source) -> None:
    asked = with_scores(source.expression, {"eyeBlink": 1.0})[None]
    before = openings(landmarks(animator, source, asked, closing=False), source)
    after = openings(landmarks(animator, source, asked), source)
    assert (after < before).all()
    assert after.max() < 0.0
    assert after.min() > -0.3, "the lids meet, and do not cross"


@pytest.mark.parametrize(("side", "closed"), [("Left", 1), ("Right", 0)])
def test_one_eye_closes_alone(animator: Animator, source: Source, side: str, closed: int) -> None:
    asked = with_scores(source.expression, {f"eyeBlink{side}": 1.0})[None]
    before, after = (openings(landmarks(animator, source, asked, on), source)[0] for on in (False, True))
    assert before[1 - closed] < 0.9
    assert after[closed] < 0.0
    assert after[1 - closed] > 0.9


def test_small_values_stay_as_they_are_to_the_bit(animator: Animator, source: Source) -> None:
    asked = numbers(with_scores(source.expression, {"eyeBlink": 0.3, "jawOpen": 0.5})[None])
    made, regions = closing_eyes(animator.model, source.features, numbers(source.expression), asked)
    assert made is asked
    assert regions is None


def test_eyes_close_steadily(animator: Animator, source: Source) -> None:
    scores = np.linspace(0.0, 1.0, 51)
    asked = np.stack([with_scores(source.expression, {"eyeBlink": float(score)}) for score in scores])
    found = openings(landmarks(animator, source, asked), source)
    step = np.diff(found, axis=0)
    assert step.max() < 0.005
    assert step.min() > -0.09, "there is no jump"


def test_frames_do_not_depend_on_their_neighbours(animator: Animator, source: Source) -> None:
    asked = np.stack([with_scores(source.expression, {"eyeBlinkLeft": score}) for score in (0.1, 0.9, 0.5)])
    together = landmarks(animator, source, asked)
    alone = np.concatenate([landmarks(animator, source, one[None]) for one in asked])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_source_with_closed_or_winking_eyes_keeps_its_own_landmarks(animator: Animator, source: Source) -> None:
    for scores in ({"eyeBlink": 0.7}, {"eyeBlinkLeft": 0.8, "eyeLookDownRight": 0.4}):
        own = with_scores(source.expression, scores)
        assert animator.model.warp is not None
        assert animator.model.warp.motion is not None
        given = numbers(own[None])
        by = animator.model.warp.motion.input(animator.model.expression(given), given)
        view = source.features.view
        assert view is not None
        assert view.face is not None
        features = replace(source.features, view=replace(view, face=replace(view.face, own=by)))
        made = landmarks(animator, replace(source, expression=own, features=features), own[None])
        np.testing.assert_allclose(made, view.face.points.numpy(), atol=1e-6)


def test_what_does_not_move_landmarks_is_left_alone(tiny_weights: Path, astronaut: np.ndarray) -> None:
    for animator in (
        Animator.from_pretrained(tiny_weights, device="cpu"),
        Animator.from_pretrained(pure=True, device="cpu"),
    ):
        source = animator.encode(astronaut)
        asked = numbers(with_scores(source.expression, {"eyeBlink": 1.0})[None])
        made, regions = closing_eyes(animator.model, source.features, numbers(source.expression), asked)
        assert made is asked
        assert regions is None


@pytest.mark.parametrize(
    ("scores", "moving", "still"),
    [
        ({"jawLeft": 1.0}, LIPS, (*EYELIDS, *BROWS)),
        ({"mouthFrown": 1.0}, LIPS, (*EYELIDS, *BROWS)),
        ({"eyeWide": 1.0}, EYELIDS, (*LIPS, *BROWS)),
        ({"browInnerUp": 1.0}, BROWS, LIPS),
        ({"eyeBlink": 1.0}, EYELIDS, (*LIPS, *BROWS)),
    ],
)
def test_what_is_edited_moves_its_own_part_of_the_face(
    animator: Animator, source: Source, scores: dict[str, float], moving: tuple[int, ...], still: tuple[int, ...]
) -> None:
    asked = np.stack([source.expression, with_scores(source.expression, scores)])
    before, after = landmarks(animator, source, asked, edited=True)
    _, driven = landmarks(animator, source, asked)
    away, leak = (np.linalg.norm(points - before, axis=1) for points in (after, driven))
    assert away[list(still)].max() < 1e-5
    assert leak[list(still)].max() > 1e-3, "tracked scores move the whole face"
    assert away[list(moving)].max() > 4e-3


def test_an_edit_that_changes_nothing_leaves_the_face_as_it_is(animator: Animator, source: Source) -> None:
    assert source.features.view is not None
    assert source.features.view.face is not None
    made = landmarks(animator, source, source.expression[None], edited=True)
    np.testing.assert_allclose(made[0], source.features.view.face.points[0].numpy(), atol=1e-6)


@pytest.mark.slow
def test_rendered_eyes_are_read_as_closed(animator: Animator, source: Source) -> None:
    def read(scores: dict[str, float]) -> np.ndarray:
        image = animator.edit(source, scores)
        return animator.tracker.track_image(image, "the frame").motion.expression[0][BLINKS]

    both, left = read({"eyeBlink": 1.0}), read({"eyeBlinkLeft": 1.0})
    assert both.min() > 0.4
    assert left[1] > 0.25
    assert left[0] < 0.15
