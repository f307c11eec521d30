"""The compiled painter against its readable twin in PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import export3d.camera as cameras
from export3d.camera import projected
from export3d.warping.elastic_mesh import FACE, ElasticMesh, paint
from export3d.warping.landmark_motion import average_landmarks

fused = pytest.importorskip("export3d.warping.fused")
pytestmark = pytest.mark.slow  # the first test compiles


def meshes(*poses: tuple[float, ...], lashes: bool = False) -> tuple[ElasticMesh, torch.Tensor, torch.Tensor]:
    """Frontal meshes at rest, places (B, 470, 2) of the average head in poses (degrees, place), and distances."""
    labels = torch.from_numpy(np.stack([cameras.from_pose(np.array(p[:3]), np.array(p[3:])) for p in poses])).float()
    head = average_landmarks()[list(FACE)].expand(len(poses), -1, -1)
    front = torch.from_numpy(cameras.from_pose(np.zeros(3), np.array([0.0, 0.0, 2.7]))).float()
    return ElasticMesh(projected(head, front.expand(len(poses), -1))[0], lashes), *projected(head, labels)


@pytest.mark.parametrize(("size", "threads", "lashes"), [(33, 1, False), (128, 2, False), (128, 1, True)])
def test_it_paints_the_same_bits(size: int, threads: int, lashes: bool) -> None:
    poses = (20, -8, 5, 0.03, 0, 2.7), (75, 20, 0, 0, 0, 1.5), (0, 0, 170, 0.3, 0, 1.0)
    mesh, places, distance = meshes(*poses, lashes=lashes)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        (wanted, mouth), (found, between) = (mesh.lookup(places, distance, size, one) for one in (paint, fused.paint))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    assert (found == wanted).float().mean() > 0.999
    assert torch.equal(between, mouth)
    assert (found - mesh.lookup(places.flip(0), distance.flip(0), size)[0]).abs().mean() > 1e-2


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1e30])
def test_places_that_are_no_places_stay_in_the_image(wrong: float) -> None:
    mesh, places, distance = meshes((0, 0, 0, 0, 0, 2.7))
    places[:, 50:60] = wrong
    _, mouth = mesh.lookup(places, distance, 32, fused.paint)
    assert mouth.shape == (1, 32, 32)
