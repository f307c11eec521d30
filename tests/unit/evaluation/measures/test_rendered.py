"""The rendered share of generated images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from export3d.camera import Camera
from export3d.config import tiny, variant
from export3d.evaluation.measures.rendered import on_grid, rendered_scores
from export3d.face.mesh import LANDMARKS
from export3d.warping.source_warp import WarpConfig
from tests.heirs import learned

SIZE = 256


def ring(centre: tuple[float, float], radius: float) -> np.ndarray:
    """478 landmarks around a circle."""
    angle = np.linspace(0, 2 * np.pi, LANDMARKS, endpoint=False)
    return np.stack([centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle)], axis=-1)


@pytest.mark.parametrize("size", [64, 128, 256])
def test_the_share_of_the_face_is_that_inside_its_landmarks(size: int) -> None:
    share = torch.zeros(2, 1, size, size)
    share[0, :, :, : size // 2] = 0.5  # the left half
    share[1] = 1.0
    landmarks = np.stack([ring((64, 128), 40), ring((192, 128), 40)])
    found = rendered_scores(on_grid(share), landmarks, SIZE)
    assert found["rendered"] == pytest.approx([25.0, 100.0])
    assert found["rendered_face"] == pytest.approx([50.0, 100.0])


def test_a_face_on_the_border_of_two_shares_has_their_mean() -> None:
    share = torch.zeros(1, 1, SIZE, SIZE)
    share[..., : SIZE // 2] = 1.0
    found = rendered_scores(on_grid(share), ring((128, 128), 60)[None], SIZE)
    assert found["rendered_face"] == pytest.approx([50.0], abs=1.0)


def test_without_a_face_only_the_whole_image_has_a_share() -> None:
    found = rendered_scores(on_grid(torch.ones(1, 1, 64, 64)), np.full((1, LANDMARKS, 2), np.nan), SIZE)
    assert found["rendered"] == pytest.approx([100.0])
    assert np.isnan(found["rendered_face"]).all()


@torch.inference_mode()
def test_the_model_tells_its_share() -> None:
    size, camera = 64, torch.from_numpy(Camera.orbit(5.0).label[None]).float()
    inputs = torch.rand(1, 3, size, size), camera, torch.rand(1, 52), torch.rand(1, 478, 2)
    warped = learned(replace(tiny(), warp=WarpConfig()))
    core = learned(variant(warped.config, "pure"))
    for model, low, high in ((warped, 0.0, 1.0), (core, 1.0, 1.0), (learned(), 1.0, 1.0)):
        planes = model.planes(model.encode(*inputs), inputs[2])
        image, share = model.frame_and_share(planes, camera)
        assert torch.equal(image, model.frame(planes, camera))
        assert share.shape == (1, 1, size, size)
        assert low <= float(share.min()) <= float(share.max()) <= high
    assert float(warped.frame_and_share(warped.planes(warped.encode(*inputs), inputs[2]), camera)[1].mean()) < 0.99
