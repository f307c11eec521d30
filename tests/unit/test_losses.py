"""Eq. 11, term by term."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from export3d.errors import ShapeError
from export3d.face.landmark_sets import EYES, MOUTH
from export3d.image import resize
from export3d.losses import (
    ReconstructionWeights,
    adversarial,
    between,
    discrimination,
    face_weight,
    l2,
    r1_penalty,
    reconstruction,
)
from export3d.perceptual import Perceptual


@pytest.fixture(scope="module")
def perceptual() -> Perceptual:
    """AlexNet with random weights."""
    from export3d.perceptual import _alex

    torch.manual_seed(0)
    return Perceptual("alex", _alex().state_dict())


def images() -> tuple[Tensor, Tensor, Tensor]:
    """Final image, raw image, target."""
    return torch.rand(1, 3, 64, 64) * 2 - 1, torch.rand(1, 3, 32, 32) * 2 - 1, torch.rand(1, 3, 64, 64) * 2 - 1


def test_l2_is_the_mean_of_all_squares() -> None:
    a, _, b = images()
    assert float(l2(a, b)) == pytest.approx(float(((a.numpy() - b.numpy()) ** 2).mean()), rel=1e-5)
    assert float(l2(a, a)) == 0.0


def test_equation_11_is_the_sum_of_four_terms(perceptual: Perceptual) -> None:
    image, raw, target = images()
    terms = reconstruction(image, raw, target, perceptual)
    assert set(terms) == {"l2_raw", "l2", "lpips_raw", "lpips", "total"}
    small = resize(target, 32)
    torch.testing.assert_close(terms["l2"], l2(image, target))
    torch.testing.assert_close(terms["l2_raw"], l2(raw, small))
    torch.testing.assert_close(terms["lpips"], perceptual(image, target).mean())
    torch.testing.assert_close(terms["lpips_raw"], perceptual(raw, small).mean())
    torch.testing.assert_close(terms["total"], terms["l2"] + terms["l2_raw"] + terms["lpips"] + terms["lpips_raw"])


def test_a_perfect_image_costs_nothing(perceptual: Perceptual) -> None:
    _, _, target = images()
    assert float(reconstruction(target, resize(target, 32), target, perceptual)["total"]) == 0.0


def test_each_weight_scales_its_own_term(perceptual: Perceptual) -> None:
    given = (*images(), perceptual)
    plain = reconstruction(*given)
    for name in ("l2_raw", "l2", "lpips_raw", "lpips"):
        weighted = reconstruction(*given, ReconstructionWeights(**{name: 3.0}))
        for other, value in weighted.items():
            if other == name:
                torch.testing.assert_close(value, 3 * plain[name])
            elif other != "total":
                assert torch.equal(value, plain[other])
        torch.testing.assert_close(weighted["total"], plain["total"] + 2 * plain[name])


def test_perceptual_terms_of_weight_zero_are_not_computed() -> None:
    def unwanted(*_: Tensor) -> Tensor:
        raise AssertionError("computed for nothing")

    weights = ReconstructionWeights(lpips=0.0, lpips_raw=0.0)
    terms = reconstruction(*images(), unwanted, weights)  # type: ignore[arg-type]
    assert set(terms) == {"l2_raw", "l2", "total"}


def test_without_super_resolution_only_the_raw_image_counts(perceptual: Perceptual) -> None:
    _, raw, target = images()
    terms = reconstruction(None, raw, target, perceptual)
    assert set(terms) == {"l2_raw", "lpips_raw", "total"}
    assert set(reconstruction(None, raw, target, None)) == {"l2_raw", "total"}


def test_both_images_get_a_gradient(perceptual: Perceptual) -> None:
    image, raw, target = images()
    image.requires_grad_()
    raw.requires_grad_()
    reconstruction(image, raw, target, perceptual)["total"].backward()
    for tensor in (image, raw):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert tensor.grad.abs().max() > 0


def test_a_target_larger_than_the_image_is_reduced_for_both_comparisons() -> None:
    target = torch.rand(1, 3, 128, 128)
    terms = reconstruction(resize(target, 64), resize(target, 16), target, None)
    assert float(terms["total"]) == pytest.approx(0.0, abs=1e-12)


def test_a_target_of_another_batch_is_refused() -> None:
    image, _, target = images()
    with pytest.raises(ShapeError, match="target"):
        l2(image, target.expand(2, -1, -1, -1))


# ---- emphasis on eyes and mouth --------------------------------------------------------------------------------------


def face() -> Tensor:
    """(1, 478, 2): eyes above, mouth below, everything else at a corner."""
    points = torch.zeros(1, 478, 2)
    points[:, list(EYES[:4])] = torch.tensor([0.3, 0.4])
    points[:, list(EYES[4:])] = torch.tensor([0.7, 0.4])
    points[:, list(MOUTH)] = torch.tensor([0.5, 0.75])
    return points


def test_the_weight_map_has_a_mean_of_one() -> None:
    weight = face_weight(torch.rand(3, 478, 2), 48, 4.0)
    assert weight.shape == (3, 1, 48, 48)
    torch.testing.assert_close(weight.mean(dim=(1, 2, 3)), torch.ones(3))


def test_eyes_and_mouth_weigh_one_plus_the_emphasis_times_the_rest() -> None:
    weight = face_weight(face(), 200, 4.0)[0, 0]
    rest = float(weight[180, 180])
    for x, y in ((0.3, 0.4), (0.7, 0.4), (0.5, 0.75)):
        assert float(weight[int(y * 200), int(x * 200)]) == pytest.approx(5 * rest, rel=0.01)
    assert float(weight[2, 2]) == pytest.approx(rest)  # other landmarks do not count
    assert float(weight[int(0.4 * 200), int((0.3 + 0.04) * 200)]) == pytest.approx(
        rest * (1 + 4 * np.exp(-0.5)), rel=0.05
    )


def test_no_emphasis_is_the_plain_mean() -> None:
    image, _, target = images()
    weight = face_weight(face(), 64, 0.0)
    torch.testing.assert_close(weight, torch.ones(1, 1, 64, 64))
    torch.testing.assert_close(l2(image, target, weight), l2(image, target))


def test_an_error_at_the_mouth_costs_more_than_the_same_error_elsewhere() -> None:
    target = torch.zeros(1, 3, 64, 64)
    weight = face_weight(face(), 64, 4.0)
    mouth, corner = target.clone(), target.clone()
    mouth[..., 46:50, 30:34] = 1.0
    corner[..., 56:60, 56:60] = 1.0
    assert float(l2(mouth, target, weight)) > 4 * float(l2(corner, target, weight))
    terms = [reconstruction(x, resize(x, 16), target, None, weight=weight)["l2_raw"] for x in (mouth, corner)]
    assert float(terms[0]) > 1.5 * float(terms[1])


def test_landmarks_of_another_model_are_refused() -> None:
    with pytest.raises(ShapeError, match="landmarks"):
        face_weight(torch.zeros(1, 68, 2), 32, 1.0)


# ---- Eq. 12 ----------------------------------------------------------------------------------------------------------


def test_the_adversarial_losses_are_cross_entropies_of_scores() -> None:
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 3.0])
    ones, zeros = torch.ones(2), torch.zeros(2)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    torch.testing.assert_close(adversarial(fake), bce(fake, ones))
    terms = discrimination(real, fake)
    torch.testing.assert_close(terms["real"], bce(real, ones))
    torch.testing.assert_close(terms["fake"], bce(fake, zeros))
    assert float(adversarial(zeros)) == pytest.approx(np.log(2.0))
    assert float(adversarial(torch.tensor([-3.0]))) == pytest.approx(np.log1p(np.exp(3.0)))


def test_the_generators_loss_does_not_saturate_where_the_discriminator_is_sure() -> None:
    score = torch.tensor([-20.0], requires_grad=True)
    adversarial(score).backward()
    assert score.grad is not None
    assert float(score.grad) == pytest.approx(-1.0, abs=1e-4)


def test_losses_of_huge_scores_are_finite() -> None:
    terms = discrimination(torch.tensor([-1e4]), torch.tensor([1e4]))
    assert float(terms["real"]) == float(terms["fake"]) == 1e4


def test_r1_of_a_linear_discriminator_is_the_squared_norm_of_its_weights() -> None:
    """D(x, y) = a.x + b.y + c: R1 is |a|^2 + |b|^2 and its gradients are 2a, 2b and 0."""
    a = torch.randn(3, 4, 4, requires_grad=True)
    b = torch.randn(3, 2, 2, requires_grad=True)
    c = torch.zeros((), requires_grad=True)
    x, y = torch.randn(5, 3, 4, 4, requires_grad=True), torch.randn(5, 3, 2, 2, requires_grad=True)
    real = (x * a).sum(dim=(1, 2, 3)) + (y * b).sum(dim=(1, 2, 3)) + c
    penalty = r1_penalty(real, (x, y))
    torch.testing.assert_close(penalty, a.square().sum() + b.square().sum())
    penalty.backward()
    torch.testing.assert_close(a.grad, 2 * a.detach())
    torch.testing.assert_close(b.grad, 2 * b.detach())
    assert c.grad is None or float(c.grad) == 0.0


def test_r1_of_a_quadratic_discriminator_is_a_mean_over_the_batch() -> None:
    """D(x) = w |x|^2 / 2: the gradient is w x."""
    w = torch.tensor(3.0, requires_grad=True)
    x = torch.randn(6, 2, 3, 3, requires_grad=True)
    penalty = r1_penalty(0.5 * w * x.square().sum(dim=(1, 2, 3)), [x])
    torch.testing.assert_close(penalty, 9.0 * x.square().sum(dim=(1, 2, 3)).mean())
    penalty.backward()
    torch.testing.assert_close(w.grad, (6.0 * x.square().sum(dim=(1, 2, 3)).mean()).detach())


def test_scores_of_the_wrong_shape_are_named() -> None:
    with pytest.raises(ShapeError, match="scores"):
        adversarial(torch.zeros(2, 1))
    with pytest.raises(ShapeError, match="real"):
        discrimination(torch.zeros(2, 1), torch.zeros(2))


# ---- between ---------------------------------------------------------------------------------------------------------


def test_what_differs_within_a_group_is_compared_by_hand() -> None:
    """Two groups of two one-pixel images; the second is not taught."""
    image = torch.tensor([0.1, 0.5, 0.9, -0.9]).view(4, 1, 1, 1).expand(4, 3, 1, 1)
    target = torch.tensor([0.4, 0.2, 0.0, 0.0]).view(4, 1, 1, 1).expand(4, 3, 1, 1)
    taught = torch.tensor([True, True, False, False])
    # Deviations from the means: -0.2 and 0.2 against 0.1 and -0.1; (0.09 + 0.09 + 0 + 0) / 4.
    assert float(between(image, target, taught, 2)) == pytest.approx(0.045, rel=1e-5)
    weight = torch.tensor([1.0, 3.0, 5.0, 5.0]).view(4, 1, 1, 1)
    assert float(between(image, target, taught, 2, weight)) == pytest.approx(0.09, rel=1e-5)
    assert float(between(image, target, torch.zeros(4, dtype=torch.bool), 2)) == 0.0


def test_what_a_group_has_in_common_does_not_count_and_parts_of_a_batch_add_up() -> None:
    target, taught = torch.rand(8, 3, 4, 4), torch.tensor([True] * 4 + [False] * 4)
    shared = torch.rand(2, 1, 3, 4, 4).expand(2, 4, 3, 4, 4).reshape(8, 3, 4, 4)
    assert float(between(target + shared, target, taught, 4)) < 1e-12
    image = torch.rand(8, 3, 4, 4)
    halves = [between(image[part], target[part], taught[part], 4) for part in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(between(image, target, taught, 4), sum(halves) / 2)
    with pytest.raises(ShapeError, match="taught"):
        between(image, target, taught[:4], 4)
