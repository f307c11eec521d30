"""The packaged perceptual loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from export3d.errors import ConfigError
from export3d.image import resize, to_tensor
from export3d.training.face_features import SMALLEST, FacePerceptual


@pytest.fixture(scope="module")
def distance() -> FacePerceptual:
    return FacePerceptual()


@pytest.fixture
def face(astronaut: np.ndarray) -> Tensor:
    """(1, 3, 128, 128)."""
    return resize(to_tensor(astronaut[:256, 90:346])[None], 128)


def test_equal_images_have_distance_zero(distance: FacePerceptual, face: Tensor) -> None:
    assert distance(face, face).item() == 0.0


def test_blurrier_images_are_farther_away(distance: FacePerceptual, face: Tensor) -> None:
    soft = [resize(resize(face, size), 128) for size in (96, 64, 32, 16)]
    found = [distance(picture, face).item() for picture in soft]
    assert found == sorted(found)
    assert found[0] > 0.001


def test_following_the_gradient_brings_a_blurry_image_closer(distance: FacePerceptual, face: Tensor) -> None:
    soft = resize(resize(face, 32), 128).requires_grad_()
    before = distance(soft, face).sum()
    (gradient,) = torch.autograd.grad(before, soft)
    assert torch.isfinite(gradient).all()
    step = 0.5 * gradient / gradient.abs().max()
    assert distance(soft - 0.1 * step, face).item() < before.item()


def test_pairs_are_compared_independently(distance: FacePerceptual, face: Tensor) -> None:
    other = face.flip(-1)
    both = distance(torch.cat([face, other]), torch.cat([other, other]))
    torch.testing.assert_close(both, torch.cat([distance(face, other), torch.zeros(1)]), atol=1e-5, rtol=1e-4)


def test_images_too_small_for_the_network_are_refused(distance: FacePerceptual) -> None:
    assert distance.responses(torch.zeros(1, 3, SMALLEST, SMALLEST))[-1].shape[-1] >= 1
    with pytest.raises(ConfigError, match=r"at least 31 px, but one has 30 px; .* loss\.lpips_raw=0"):
        distance.responses(torch.zeros(1, 3, 64, SMALLEST - 1))
