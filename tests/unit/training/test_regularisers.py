"""Optional terms: the loss of perfect and of disturbed images, and the path of gradients."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from export3d.animate.drive import bundled_portrait
from export3d.errors import CheckpointError
from export3d.expression.contrastive import ResNetSE18
from export3d.face.identity import DlibIdentity
from export3d.image import read_image, to_tensor
from export3d.render.decoder import PlaneDecoder
from export3d.training.regularisers import (
    ExpressionError,
    IdentityError,
    ReaderConfig,
    ReadingError,
    aligned,
    density_variation,
    save_reader,
)
from export3d.weights.file import save_weights

Error = IdentityError | ExpressionError | ReadingError
SIZES = ReaderConfig(width=8, d=16, groups=8, size=32)


@pytest.fixture(scope="module")
def portrait() -> tuple[np.ndarray, np.ndarray]:
    """The bundled portrait and its landmarks (478, 2), pixels."""
    pytest.importorskip("mediapipe")
    from export3d.face.landmarks import FaceLandmarker

    picture = read_image(bundled_portrait())
    with FaceLandmarker() as landmarker:
        return picture, landmarker.detect(picture)[0].landmarks[:, :2]


@pytest.fixture(scope="module")
def face(portrait: tuple[np.ndarray, np.ndarray]) -> tuple[Tensor, Tensor]:
    """The portrait as a batch of one in [-1, 1], and its landmarks, 0..1."""
    picture, landmarks = portrait
    return to_tensor(picture)[None], torch.from_numpy(landmarks / picture.shape[0]).float()[None]


@pytest.fixture
def reader_file(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    return save_reader(ResNetSE18(SIZES.width, SIZES.d, SIZES.groups), SIZES, tmp_path / "reader.safetensors")


@pytest.fixture(params=["identity", "expression", "reading"])
def error(request: pytest.FixtureRequest, reader_file: Path) -> Error:
    if request.param == "expression":
        return ExpressionError.load(reader_file)
    return IdentityError() if request.param == "identity" else ReadingError()


def blurred(picture: Tensor, factor: int) -> Tensor:
    return F.interpolate(F.avg_pool2d(picture, factor), picture.shape[-2:], mode="bilinear")


# ---- identity, expression and reading -----------------------------------------------------------------------------


def test_a_perfect_image_has_no_loss(error: Error, face: tuple[Tensor, Tensor]) -> None:
    picture, landmarks = face
    assert abs(float(error(picture, picture, landmarks))) < 1e-5


def test_the_loss_grows_with_the_disturbance(error: Error, face: tuple[Tensor, Tensor]) -> None:
    picture, landmarks = face
    costs = [float(error(blurred(picture, factor), picture, landmarks)) for factor in (2, 4, 16)]
    assert 0.0 < costs[0] < costs[1] < costs[2] <= 2.0


def test_gradients_reach_the_face_and_no_weight(error: Error, face: tuple[Tensor, Tensor]) -> None:
    target, landmarks = face
    picture = blurred(target, 16).requires_grad_()
    error(picture, target, landmarks).backward()
    assert picture.grad is not None
    strength = picture.grad.abs().sum(1)[0]
    x, y = (landmarks[0].mean(0) * len(strength)).long().tolist()
    assert strength[y - 40 : y + 40, x - 40 : x + 40].mean() > 20 * strength[-60:, :60].mean()


def test_a_step_against_the_gradient_reduces_the_loss(error: Error, face: tuple[Tensor, Tensor]) -> None:
    target, landmarks = face
    picture = blurred(target, 16).requires_grad_()
    before = error(picture, target, landmarks)
    (gradient,) = torch.autograd.grad(before, picture)
    step = 0.3 * gradient / gradient.norm()
    assert float(error((picture - step).detach(), target, landmarks)) < float(before.detach())


def test_the_error_of_a_batch_is_the_mean_of_its_pairs(error: Error, face: tuple[Tensor, Tensor]) -> None:
    target, landmarks = face
    pictures = torch.cat([blurred(target, 8), target.flip(-1)])
    both = error(pictures, target.expand(2, -1, -1, -1), landmarks.expand(2, -1, -1))
    apart = [error(picture[None], target, landmarks) for picture in pictures]
    torch.testing.assert_close(both, torch.stack(apart).mean(), rtol=0, atol=1e-5)


def test_the_loss_agrees_with_the_identity_metric(
    portrait: tuple[np.ndarray, np.ndarray], face: tuple[Tensor, Tensor]
) -> None:
    """The metric samples its chip at twice the size and averages it down; the cosines agree within 0.01."""
    picture, landmarks = portrait
    wanted = torch.from_numpy(DlibIdentity()(picture, landmarks))
    found = IdentityError()._vectors(*face)[0]
    assert float(F.cosine_similarity(found, wanted, dim=0)) > 0.99


def test_alignment_puts_the_points_on_the_template() -> None:
    """Bright dots at the points of a rotated, scaled and shifted template are mapped onto the template."""
    template = torch.tensor([[0.3, 0.3], [0.7, 0.35], [0.5, 0.75]])
    angle = math.radians(25.0)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    points = (template - 0.5) @ (0.6 * turn).mT + torch.tensor([0.55, 0.45])
    steps = (torch.arange(200) + 0.5) / 200
    squares = (steps[None, :, None] - points[:, 1, None, None]) ** 2 + (
        steps[None, None] - points[:, 0, None, None]
    ) ** 2
    picture = torch.exp(-squares / (2 * 0.01**2)).sum(0).expand(1, 3, -1, -1)
    chip = aligned(picture, points[None], template, 100)[0, 0]
    at = (torch.arange(100) + 0.5) / 100
    for x, y in template.tolist():
        near = chip * (((at[None] - x) ** 2 + (at[:, None] - y) ** 2) < 0.07**2)
        assert float((near * at[None]).sum() / near.sum()) == pytest.approx(x, abs=0.003)
        assert float((near * at[:, None]).sum() / near.sum()) == pytest.approx(y, abs=0.003)


def test_a_reader_survives_its_file(reader_file: Path, face: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(3)
    original = ExpressionError(ResNetSE18(SIZES.width, SIZES.d, SIZES.groups), SIZES.size)
    picture, landmarks = face
    pair = (blurred(picture, 16), picture, landmarks)
    torch.testing.assert_close(ExpressionError.load(reader_file)(*pair), original(*pair), rtol=0.02, atol=0)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    other = save_weights(tmp_path / "other.safetensors", {"x": torch.zeros(2)}, {"expression": {}}, {})
    with pytest.raises(CheckpointError, match=r"reader\.safetensors"):
        ExpressionError.load(other)
    with pytest.raises(CheckpointError):
        ExpressionError.load(tmp_path / "nowhere.safetensors")


# ---- density ---------------------------------------------------------------------------------------------------------


def volume(slope: float) -> Tensor:
    """(1, 3, 4, 32, 32): features that grow along both axes of each plane."""
    ramp = torch.linspace(-1.0, 1.0, 32)
    return slope * (ramp[:, None] + ramp).expand(1, 3, 4, 32, 32).clone()


def test_a_constant_density_has_no_loss_and_a_steeper_one_more() -> None:
    torch.manual_seed(0)
    decoder, seeds = PlaneDecoder(4, 8, 3), torch.tensor([5])
    decoder.requires_grad_(False)
    found = [float(density_variation(decoder, volume(slope), 0.4, seeds)) for slope in (0.0, 0.5, 1.0, 2.0)]
    assert found[0] == 0.0
    assert found == sorted(set(found))


def test_density_points_depend_on_each_seed_alone() -> None:
    torch.manual_seed(0)
    decoder, triplane = PlaneDecoder(4, 8, 3), torch.randn(2, 3, 4, 16, 16)
    both = density_variation(decoder, triplane, 0.4, torch.tensor([7, 8]))
    apart = [density_variation(decoder, triplane[i : i + 1], 0.4, torch.tensor([7 + i])) for i in (0, 1)]
    torch.testing.assert_close(both, torch.stack(apart).mean())
    assert not torch.equal(both, density_variation(decoder, triplane, 0.4, torch.tensor([7, 9])))


def test_gradients_reach_tri_plane_and_decoder() -> None:
    decoder, triplane = PlaneDecoder(4, 8, 3), torch.randn(1, 3, 4, 16, 16, requires_grad=True)
    density_variation(decoder, triplane, 0.4, torch.tensor([1])).backward()
    assert triplane.grad is not None
    assert triplane.grad.abs().sum() > 0
    assert decoder.density.weight.grad is not None
    assert decoder.colour.weight.grad is None or not decoder.colour.weight.grad.any()
