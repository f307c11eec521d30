"""Models as small as preset `tiny`, with and without a warp, and their inputs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from export3d.camera import Camera, projected
from export3d.config import ModelConfig, tiny
from export3d.model import Export3D
from export3d.triplane.blocks import EAdaLN
from export3d.warping.dense_motion import DenseMotion
from export3d.warping.detail import Detail
from export3d.warping.landmark_motion import LandmarkMotion, average_landmarks
from export3d.warping.skip_path import FlowStep
from export3d.warping.source_warp import WarpConfig

PARTS = (
    "align", "skip", "flow", "redraw", "detail", "dense", "mouth", "irises", "lids", "glasses", "teeth", "inside",
    "turns", "shoulders", "matte", "scores",
)  # fmt: skip
"""All parts of a warp."""


def warped(*parts: str) -> ModelConfig:
    """`tiny` with a warp of these parts; of none: without a warp."""
    return replace(tiny(), warp=WarpConfig(**{name: name in parts for name in PARTS}) if parts else None)


def cameras(count: int) -> Tensor:
    """(count, 25): each turned a little further than the one before."""
    return torch.from_numpy(np.stack([Camera.orbit(15.0 * b, 5.0 * b).label for b in range(count)])).float()


def inputs(batch: int, size: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """Sources, expressions and cameras."""
    return torch.rand(batch, 3, size, size) * 2 - 1, torch.rand(batch, 52), cameras(batch)


def matte(source: Tensor) -> Tensor:
    """(B, 1, H, H) opacity of a person in the middle half of sources, softer towards its edge."""
    at = torch.linspace(-1.0, 1.0, source.shape[-1])
    return (3.0 - 4.0 * torch.hypot(at[:, None], at)).clamp(0.0, 1.0).expand(len(source), 1, -1, -1)


def landmarks(camera: Tensor) -> Tensor:
    """(B, 478, 2) of the average head, as cameras (B, 25) see it."""
    return projected(average_landmarks().expand(len(camera), -1, -1), camera)[0]


def awake(config: ModelConfig | None = None) -> Export3D:
    """A model whose zero-initialised branches (EAdaLN, flow, RGB of super-resolution) do something."""
    model = Export3D(config or tiny()).eval()
    for module in model.modules():
        if isinstance(module, EAdaLN):
            nn.init.normal_(module.modulation.weight, std=1.0)
        if isinstance(module, LandmarkMotion):
            for layer in (module.depth, module.out):
                nn.init.normal_(layer.weight, std=0.05)
            if module.scores:
                nn.init.normal_(module.typical, std=0.3)
        if isinstance(module, FlowStep):
            nn.init.normal_(module.change.weight, std=0.05)
            if module.closes is not None:
                nn.init.normal_(module.closes, std=0.5)
        if isinstance(module, Detail):
            for layer in (module.choice, module.lean):
                nn.init.normal_(layer.weight, std=0.3)
        if isinstance(module, DenseMotion):
            for layer in (module.share, module.beyond):
                nn.init.normal_(layer.weight, std=0.1)
    for layer in (model.superres.mid_rgb, model.superres.high_rgb):
        nn.init.normal_(layer.weight, std=0.05)
    return model
