"""The compiled passes against their readable twins in PyTorch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import export3d.camera as cameras
from export3d.camera import projected
from export3d.warping.dense_motion import mixed
from export3d.warping.detail import Detail, Views
from export3d.warping.elastic_mesh import FACE, ElasticMesh, paint, show
from export3d.warping.flow_field import stretch
from export3d.warping.flows import without_seam
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


def smooth(batch: int, channels: int, size: int) -> torch.Tensor:
    """Random images that change slowly, about -1 to 1."""
    coarse = torch.randn(batch, channels, size // 8 + 1, size // 8 + 1)
    return torch.nn.functional.interpolate(coarse, size, mode="bicubic", align_corners=False)


def views(batch: int, size: int, *, teeth: bool) -> Views:
    moved, still, turned = torch.rand(3, batch, 3, size, size) * 2 - 1
    masks, flow = torch.rand(batch, 2, size, size), smooth(batch, 2, size)
    return Views(moved, masks[:, :1], flow, still, turned, flow, masks, None, masks.flip(1) if teeth else None)


@pytest.mark.parametrize(("batch", "threads", "size"), [(1, 1, 32), (3, 2, 64)])
def test_steps_along_the_pixels_are_those_of_pytorch(batch: int, threads: int, size: int) -> None:
    torch.manual_seed(0)
    image = torch.rand(batch, 3, size, size) * 2 - 1
    half = torch.nn.functional.avg_pool2d(image, 2)
    places = 0.5 + 0.4 * smooth(batch, 2, size).permute(0, 2, 3, 1)
    places[:, 5:9, 3:20] += 0.3  # an occlusion edge
    flow = 0.3 * smooth(batch, 2, size)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.testing.assert_close(fused.stretch(flow), stretch(flow), atol=1e-6, rtol=0)
        torch.testing.assert_close(fused.show(image, places, half), show(image, places, half), atol=1e-5, rtol=0)
        torch.testing.assert_close(fused.show(image, places, half), show(image, places), atol=1e-5, rtol=0)
        torch.testing.assert_close(fused.halved(image), half, atol=1e-6, rtol=0)
    finally:
        torch.set_num_threads(before)
    assert (show(image, places, half) - show(image, places.flip(1), half)).abs().mean() > 1e-2


@pytest.mark.parametrize(("size", "grid"), [(32, 8), (48, 16), (16, 16)])
def test_it_mixes_flows_as_dense_motion_does(size: int, grid: int) -> None:
    torch.manual_seed(0)
    mixture, flows = torch.randn(2, 6, grid, grid), [smooth(2, 2, size), smooth(1, 2, size), smooth(2, 2, size)]
    found = fused.mixed(mixture, flows)
    torch.testing.assert_close(found, mixed(mixture, flows), atol=1e-5, rtol=0)
    assert (found[0] - found[1]).abs().mean() > 0.1


@pytest.mark.parametrize("size", [64, 128, 224])
def test_it_mends_seams_as_flows_do(size: int) -> None:
    torch.manual_seed(0)
    flow = 0.002 * smooth(2, 2, size)
    flow[0, :, :, size // 3 :] += 4.0 / size
    on_face = torch.zeros(2, size, size, dtype=torch.bool)
    on_face[:, size // 4 : -size // 4, size // 3 : -size // 4] = True
    wanted, found = without_seam(flow, on_face), without_seam(flow, on_face, fused.mended)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert (wanted - flow)[0].abs().max() > 1e-2
    assert torch.equal(found[1], flow[1])  # no jump


@pytest.mark.parametrize(("teeth", "turned"), [(False, None), (True, None), (True, (0.0, 0.0)), (True, (0.0, 0.7))])
def test_it_blends_as_detail_does(teeth: bool, turned: tuple[float, float] | None) -> None:
    torch.manual_seed(0)
    seen = views(2, 32, teeth=teeth)
    if turned is not None:
        seen = replace(seen, mouth=torch.rand(2, 2, 32, 32), far=torch.tensor(turned).view(2, 1, 1, 1))
    choice, rendered, lean = 3 * torch.randn(2, 7, 32, 32), torch.randn(2, 3, 32, 32), 4 * torch.randn(2, 4, 8, 8)
    image, share = Detail.blend(choice, rendered, lean, seen)
    found, shares = fused.blend(choice, rendered, lean, seen)
    torch.testing.assert_close(found, image.clamp(-1.0, 1.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(shares, share, atol=1e-5, rtol=0)
    assert share.std() > 0.1


def test_a_number_that_is_not_finite_stays_one() -> None:
    seen = views(1, 16, teeth=False)
    choice, rendered, lean = torch.randn(1, 7, 16, 16), torch.randn(1, 3, 16, 16), torch.randn(1, 4, 4, 4)
    for wrong in (float("nan"), float("inf")):
        spoiled = choice.clone()
        spoiled[0, 1, 3, 5] = wrong
        image, _ = fused.blend(spoiled, rendered, lean, seen)
        assert image[0, :, 3, 5].isnan().all()
        assert image.isfinite().sum() == image.numel() - 3
