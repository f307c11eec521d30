"""Models that have learned something, and heirs of them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from export3d.camera import Camera, projected
from export3d.config import ModelConfig, tiny, variant
from export3d.expression.encoder import ExpressionEncoder
from export3d.model import Export3D
from export3d.triplane.blocks import EAdaLN
from export3d.warping.dense_motion import DenseMotion
from export3d.warping.landmark_motion import LandmarkMotion, average_landmarks
from tests.tiny_models import matte

CLEBS = variant(tiny(), "clebs")


def model(size: int = 64, config: ModelConfig | None = None) -> Export3D:
    """A new model of another image size, with a tri-plane average."""
    made = Export3D((config or tiny()).sized(size))
    made.generator.average.value.normal_(std=0.2)
    return made


def learned(config: ModelConfig | None = None, size: int = 64) -> Export3D:
    """A model whose EAdaLN, motion and super-resolution listen, as after training."""
    made = model(size, config)
    made.expression.standardise(torch.full((52,), 0.5), torch.full((52,), 0.3))
    for module in made.modules():
        if isinstance(module, EAdaLN):
            nn.init.normal_(module.modulation.weight, std=0.5)
        if isinstance(module, LandmarkMotion):
            for layer in (module.depth, module.out):
                nn.init.normal_(layer.weight, std=0.05)
        if isinstance(module, DenseMotion):
            nn.init.normal_(module.share.weight, std=0.1)
    for layer in (made.superres.mid_rgb, made.superres.high_rgb):
        nn.init.normal_(layer.weight, std=0.05)
    return made.eval()


def same_up_to_a_linear_map(encoder: ExpressionEncoder, into: ExpressionEncoder) -> None:
    """`into` gives lambda mixed, stretched and shifted, along other vectors."""
    mix = torch.linalg.qr(torch.randn(10, 10))[0] * (0.5 + torch.rand(10))
    basis = copy.deepcopy(into.basis)
    with torch.no_grad():
        into.load_state_dict(encoder.state_dict())
        into.second.weight.copy_(mix @ encoder.second.weight)
        into.second.bias.copy_(mix @ encoder.second.bias + torch.randn(10))
        into.basis.load_state_dict(basis.state_dict())


def draw(made: Export3D, expression: Tensor) -> Tensor:
    """Tri-planes of one source under some expressions: all that a picture knows of either."""
    size = made.config.generator.image_size
    source = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    camera = torch.from_numpy(Camera.orbit(10.0).label[None]).float()
    landmarks = projected(average_landmarks()[None], camera)[0]
    with torch.no_grad():
        return made.planes(made.encode(source, camera, expression[:1], landmarks, matte(source)), expression).triplane


def assert_nearly_the_same(found: Tensor, wanted: Tensor) -> None:
    """Tri-planes of some expressions differ by less than a twentieth of what the expressions make of them."""
    moved = (wanted - wanted.mean(0)).abs().max()
    assert moved > 0.05
    assert (found - wanted).abs().max() < 0.05 * moved
