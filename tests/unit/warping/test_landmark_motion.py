"""The motion of landmarks: what holds for any weights."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import Tensor

from export3d.camera import projected
from export3d.errors import ShapeError
from export3d.face.landmark_sets import BROWS, EYELIDS, IRISES, LIPS
from export3d.face.mesh import canonical_mesh
from export3d.warping.elastic_mesh import FACE
from export3d.warping.landmark_motion import Face, LandmarkMotion, average_landmarks, lifted
from export3d.warping.losses import landmark_error
from tests.heads import CAMERAS, EMBEDDING, HALF, NAMES, at_rest, people, restless


def test_the_average_head_is_the_mesh_with_irises_between_the_corners_of_their_eyes() -> None:
    average = average_landmarks()
    assert average.shape == (478, 3)
    mesh = canonical_mesh().vertices
    np.testing.assert_allclose(average[:468], mesh, atol=1e-6)
    for iris, corners in zip(IRISES, ([33, 133], [263, 362])):
        np.testing.assert_allclose(average[list(iris)], np.repeat(mesh[corners].mean(0)[None], 5, 0), atol=1e-6)


@pytest.mark.parametrize("which", range(4), ids=NAMES)
def test_what_is_projected_comes_back_when_it_is_lifted_to_its_depth(which: int) -> None:
    camera, points = CAMERAS[which : which + 1], people(1)
    seen, distance = projected(points, camera)
    assert (distance > 1).all()
    torch.testing.assert_close(lifted(seen, camera, points[..., 2]), points, atol=1e-5, rtol=0)


@pytest.mark.parametrize("std", [0.0, 0.1, 0.3])
def test_a_face_at_rest_is_where_the_source_shows_it_for_any_camera_and_any_weights(std: float) -> None:
    """Any landmarks too: what is learned is along their rays."""
    landmarks = torch.rand(4, 478, 2) * 0.6 + 0.2
    face = restless(std).face(torch.randn(4, EMBEDDING), landmarks, CAMERAS, HALF)
    torch.testing.assert_close(projected(face.points, CAMERAS)[0], landmarks, atol=1e-5, rtol=0)
    assert torch.equal(face.places, landmarks[:, list(FACE)])


@pytest.mark.parametrize("std", [0.0, 0.3, 2.0])
def test_its_own_expression_leaves_a_face_as_it_is_for_any_weights(std: float) -> None:
    motion = restless(std)
    face = at_rest(motion)
    assert torch.equal(motion(face.own, face), face.points)


def test_what_is_amplified_moves_farther_and_the_rest_as_before() -> None:
    motion = restless(0.3)
    plain = motion.out.weight.clone()
    face, asked = at_rest(motion), torch.randn(4, EMBEDDING)
    before = motion(asked, face) - face.points
    motion.amplify()
    after = motion(asked, face) - face.points
    gain = (after * before).sum(dim=0) / before.square().sum(dim=0)
    torch.testing.assert_close(after, before * gain, atol=1e-5, rtol=1e-4)
    irises = list(range(468, 478))
    for moved, wanted in ((list(LIPS), (1.5, 1.3, 1.3)), (list(BROWS), (1.2,) * 3), (irises, (1.38,) * 3)):
        torch.testing.assert_close(gain[moved], torch.tensor([wanted] * len(moved)), atol=1e-3, rtol=0)
    assert gain[list(EYELIDS)].min() > 1.249
    nose, forehead, chin, end_of_brow = 4, 10, 152, 70
    torch.testing.assert_close(gain[[nose, forehead, chin, end_of_brow]], torch.ones(4, 3), atol=1e-3, rtol=0)
    assert bool((gain > 0.999).all())
    assert torch.equal(motion(face.own, face), face.points)
    motion.amplify(undo=True)
    torch.testing.assert_close(motion.out.weight, plain)


def test_a_new_motion_is_rigid_and_has_the_average_heads_depth() -> None:
    motion, average = LandmarkMotion(EMBEDDING), average_landmarks()
    face = at_rest(motion, points=average.expand(4, -1, -1))
    torch.testing.assert_close(face.points, average.expand(4, -1, -1), atol=1e-5, rtol=0)
    assert torch.equal(motion(torch.randn(4, EMBEDDING), face), face.points)


def test_a_face_moves_by_its_expression_and_its_shape() -> None:
    motion = restless()
    face, beta = at_rest(motion), torch.randn(1, EMBEDDING).expand(4, -1)
    move = motion(beta, face) - face.points
    assert move.shape == (4, 478, 3)
    assert move.abs().amax(dim=(1, 2)).min() > 1e-3
    same = Face(face.own[:1].expand(4, -1), face.places, face.aligned, face.points, face.code)
    shapes = motion(beta, same) - face.points
    assert (shapes[1:] - shapes[0]).abs().max() > 1e-3


def test_there_and_back_is_where_it_was() -> None:
    """What moves a face from one expression to another moves it back: the sum of both is nothing."""
    motion, beta = restless(), torch.randn(4, EMBEDDING)
    face = at_rest(motion)
    back = Face(beta, face.places, face.aligned, motion(beta, face), face.code)
    torch.testing.assert_close(motion(face.own, back), face.points, atol=1e-5, rtol=0)


def test_each_face_of_a_batch_is_as_it_is_alone() -> None:
    motion, beta = restless(), torch.randn(4, EMBEDDING)
    landmarks, own = projected(people(4), CAMERAS)[0], torch.randn(4, EMBEDDING)
    together = motion.face(own, landmarks, CAMERAS, HALF)
    for b in range(4):
        one = slice(b, b + 1)
        alone = motion.face(own[one], landmarks[one], CAMERAS[one], HALF)
        for field in fields(Face):
            torch.testing.assert_close(getattr(together, field.name)[one], getattr(alone, field.name))
        torch.testing.assert_close(motion(beta, together)[one], motion(beta[one], alone))


def test_one_face_serves_a_batch_and_nothing_is_copied() -> None:
    face = at_rest(camera=CAMERAS[:1])
    many = face.expand(5)
    for field in fields(Face):
        one, all_of_them = getattr(face, field.name), getattr(many, field.name)
        assert all_of_them.shape == (5, *one.shape[1:])
        assert all_of_them.data_ptr() == one.data_ptr()


def test_landmarks_of_another_kind_are_refused() -> None:
    with pytest.raises(ShapeError, match="the source's landmarks"):
        LandmarkMotion(EMBEDDING).face(torch.zeros(1, EMBEDDING), torch.zeros(1, 68, 2), CAMERAS[:1], HALF)


def test_the_landmark_error_reaches_all_that_is_learned() -> None:
    motion, wanted = restless(), projected(people(4), CAMERAS)[0]
    face = at_rest(motion)
    beta = torch.randn(4, EMBEDDING, requires_grad=True)
    landmark_error(motion(beta, face), wanted, CAMERAS).backward()
    assert beta.grad is not None
    assert beta.grad.count_nonzero() == beta.numel()
    for name, parameter in motion.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.count_nonzero() > 0, name


def test_a_new_motion_can_learn() -> None:
    motion = LandmarkMotion(EMBEDDING)
    face = at_rest(motion)
    landmark_error(
        motion(torch.randn(4, EMBEDDING), face), projected(people(4), CAMERAS.flip(0))[0], CAMERAS
    ).backward()
    for weight in (motion.out.weight, motion.depth.weight, motion.depth.bias):
        assert weight.grad is None or weight.grad.isfinite().all()
    assert motion.out.weight.grad is not None
    assert motion.out.weight.grad.count_nonzero() > 1000


# ---- mixed precision -------------------------------------------------------------------------------------------------


def test_under_bfloat16_autocast_nothing_is_rounded() -> None:
    """A place rounded to bfloat16 is off by up to a pixel of 256."""
    motion, beta = restless(0.1), torch.randn(4, EMBEDDING)
    landmarks, own = projected(people(4), CAMERAS)[0], torch.randn(4, EMBEDDING)

    def everything() -> list[Tensor]:
        face = motion.face(own, landmarks, CAMERAS, HALF)
        points = motion(beta, face)
        error = landmark_error(points, landmarks, CAMERAS)
        return [points, error, *(getattr(face, field.name) for field in fields(face))]

    exact = everything()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = everything()
    for one, other in zip(exact, mixed, strict=True):
        assert other.dtype == torch.float32
        assert torch.equal(one, other)


# ---- by scores -------------------------------------------------------------------------------------------------------


def measured() -> tuple[LandmarkMotion, torch.Tensor, torch.Tensor]:
    """A motion by scores that has seen expressions, those expressions, and their lambda."""
    torch.manual_seed(0)
    coefficients = torch.randn(200, 3)
    expression = (0.5 + 0.1 * coefficients @ torch.randn(3, 6)).clamp(0.0, 1.0)
    motion = LandmarkMotion(16, (6, 3))
    motion.standardise(expression, coefficients)
    return motion, expression, coefficients


def test_landmarks_that_move_by_scores_ignore_what_beta_says() -> None:
    motion, expression, _ = measured()
    assert motion.width == 6
    assert torch.equal(motion.input(torch.randn(200, 16), expression), motion.input(torch.zeros(200, 16), expression))
    assert not torch.equal(
        motion.input(torch.zeros(2, 16), expression[:2]), motion.input(torch.zeros(2, 16), expression[2:4])
    )
    beta = torch.randn(4, 16)
    assert LandmarkMotion(16).input(beta, expression[:4]) is beta


def test_scores_beyond_what_training_saw_move_landmarks_no_further() -> None:
    motion, expression, _ = measured()
    never = torch.full((1, 6), 40.0)
    torch.testing.assert_close(
        motion.input(torch.zeros(1, 16), never), motion.input(torch.zeros(1, 16), expression.amax(0)[None])
    )
    torch.testing.assert_close(
        motion.input(torch.zeros(1, 16), -never), motion.input(torch.zeros(1, 16), expression.amin(0)[None])
    )


def test_a_slider_shifts_the_scores_by_what_is_typical_of_it() -> None:
    motion, expression, coefficients = measured()
    beta = torch.zeros(1, 16)
    for k in range(3):
        shift = torch.zeros(1, 3)
        shift[0, k] = 0.5
        moved = motion.input(beta, expression[:1], shift) - motion.input(beta, expression[:1])
        scores = motion.input(torch.zeros(200, 16), expression)
        known = coefficients - coefficients.mean(0)
        wanted = 0.5 * torch.linalg.lstsq(known, scores).solution[k]
        torch.testing.assert_close(moved[0], wanted, atol=1e-3, rtol=1e-3)
