"""The source resampled onto the xy plane through an average head."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from export3d.camera import Camera, mirror, project
from export3d.errors import ShapeError
from export3d.warping.average_head import (
    frontal_view,
    head_nearness,
    plane_positions,
    proxy_depth,
    seen_places,
    turned_flow,
)
from export3d.warping.flow_field import look_up

HALF = 0.36


def label(camera: Camera) -> torch.Tensor:
    return torch.from_numpy(camera.label[None]).float()


def coordinate_image(size: int = 64) -> torch.Tensor:
    """(1, 2, size, size): each pixel's own u and v, 0..1."""
    centre = (torch.arange(size) + 0.5) / size
    v, u = torch.meshgrid(centre, centre, indexing="ij")
    return torch.stack([u, v])[None]


def surface(size: int) -> np.ndarray:
    """(size * size, 3): the points of the average head's front over the texels of the xy plane, row by row."""
    centre = ((np.arange(size) + 0.5) / size * 2 - 1) * HALF
    points = np.array([(x, y, 0.0) for y in centre for x in centre])
    points[:, 2] = proxy_depth(torch.from_numpy(points[:, 0]), torch.from_numpy(points[:, 1])).numpy()
    return points


CAMERAS = [
    Camera.orbit(),
    Camera.orbit(25.0, -10.0),
    Camera.orbit(-40.0, 15.0, radius=2.2),
    Camera.look_at((0.3, -0.2, -2.4), (0.05, 0.0, 0.0), roll_rad=0.3),
]


@pytest.mark.parametrize("camera", CAMERAS, ids=["frontal", "turned", "near", "rolled"])
def test_every_texel_shows_the_pixel_that_its_point_on_the_head_projects_to(camera: Camera) -> None:
    found = frontal_view(coordinate_image(), label(camera), HALF)[0].permute(1, 2, 0).reshape(-1, 2).numpy()
    border = 0.5 / 64
    expected = project(surface(64), camera.label).clip(border, 1 - border)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_beyond_the_picture_its_border_goes_on() -> None:
    image = torch.rand(1, 3, 1, 16).expand(1, 3, 16, 16)
    far_right = Camera.look_at((5.0, 0.0, -2.7), (5.0, 0.0, 0.0))
    found = frontal_view(image, label(far_right), HALF)
    torch.testing.assert_close(found, image[..., :1].expand(1, 3, 16, 16))


def test_a_mirrored_picture_with_a_mirrored_camera_gives_the_mirrored_view() -> None:
    image, camera = torch.rand(1, 3, 32, 32), CAMERAS[3]
    mirrored = torch.from_numpy(mirror(camera.label)[None]).float()
    torch.testing.assert_close(
        frontal_view(image.flip(-1), mirrored, HALF).flip(-1),
        frontal_view(image, label(camera), HALF),
        atol=1e-5,
        rtol=0,
    )


def test_items_of_a_batch_are_seen_by_their_own_cameras() -> None:
    images = torch.rand(4, 3, 24, 24)
    labels = torch.cat([label(camera) for camera in CAMERAS])
    together = frontal_view(images, labels, HALF)
    for b in range(4):
        torch.testing.assert_close(together[b : b + 1], frontal_view(images[b : b + 1], labels[b : b + 1], HALF))


def test_gradients_reach_the_picture() -> None:
    image = torch.rand(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: frontal_view(x, label(CAMERAS[1]), HALF), (image,))


def test_the_average_head_bulges_towards_the_camera_and_is_symmetric() -> None:
    x = torch.linspace(-0.36, 0.36, 37)
    depth = proxy_depth(x, torch.zeros(37))
    assert float(depth[18]) == pytest.approx(-0.11, abs=1e-6)
    assert (depth[:18].diff() < 0).all()
    torch.testing.assert_close(depth, depth.flip(0))


def test_one_camera_for_each_picture_is_needed() -> None:
    with pytest.raises(ShapeError, match="source camera"):
        frontal_view(torch.zeros(2, 3, 8, 8), label(Camera.orbit()), HALF)


# ---- the way back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("camera", [CAMERAS[0], CAMERAS[1], CAMERAS[3]], ids=["frontal", "turned", "rolled"])
def test_points_of_an_image_find_the_texel_that_looks_them_up(camera: Camera) -> None:
    points = surface(32)
    seen = torch.from_numpy(project(points, camera.label)[None]).float()
    found = plane_positions(seen, label(camera), HALF)[0].numpy()
    np.testing.assert_allclose(found, points[:, :2] / HALF, atol=1e-3)


@pytest.mark.parametrize("camera", CAMERAS, ids=["frontal", "turned", "near", "rolled"])
def test_points_of_known_depth_find_their_place_exactly(camera: Camera, rng: np.random.Generator) -> None:
    points = rng.uniform(-0.25, 0.25, (50, 3))
    seen = torch.from_numpy(project(points, camera.label)[None]).float()
    found = plane_positions(seen, label(camera), HALF, torch.from_numpy(points[:, 2]))[0].numpy()
    np.testing.assert_allclose(found, points[:, :2] / HALF, atol=1e-5)


def test_the_texel_of_a_point_shows_its_pixel() -> None:
    """There and back by pictures: what `frontal_view` has at a point's position is what the image has at the point."""
    image, camera = coordinate_image(), CAMERAS[1]
    points = torch.rand(1, 40, 2) * 0.3 + 0.35
    place = plane_positions(points, label(camera), HALF)
    view = frontal_view(image, label(camera), HALF)
    shown = torch.nn.functional.grid_sample(view, place[:, :, None], align_corners=False)[0, :, :, 0].T
    torch.testing.assert_close(shown, points[0], rtol=0, atol=2e-3)


def test_points_of_a_batch_are_seen_by_their_own_cameras() -> None:
    points, labels = torch.rand(4, 9, 2), torch.cat([label(camera) for camera in CAMERAS])
    together = plane_positions(points, labels, HALF)
    for b in range(4):
        torch.testing.assert_close(together[b : b + 1], plane_positions(points[b : b + 1], labels[b : b + 1], HALF))


# ---- where the head is -----------------------------------------------------------------------------------------------


def test_nearness_is_greatest_where_the_camera_sees_the_middle_of_the_face() -> None:
    labels = torch.cat([label(camera) for camera in CAMERAS])
    near = head_nearness(seen_places(labels, 64))
    assert near.shape == (4, 1, 64, 64)
    for found, camera in zip(near[:, 0], CAMERAS):
        middle = project(np.array([[0.0, 0.0, -0.11]]), camera.label)[0]
        row, column = np.unravel_index(int(found.argmax()), (64, 64))
        assert np.abs(np.array([column, row]) + 0.5 - middle * 64).max() < 4
        assert found.max() > 0.9
    assert near.min() == 0.0


# ---- the turned view -------------------------------------------------------------------------------------------------


def turned_view(before: Camera, after: Camera, size: int = 64) -> torch.Tensor:
    """(1, 2, size, size): a picture of coordinates, looked up by the flow between two cameras."""
    return look_up(coordinate_image(size), turned_flow(label(before), seen_places(label(after), size)))


@pytest.mark.parametrize("camera", CAMERAS)
def test_the_turned_view_of_the_sources_own_camera_is_the_source(camera: Camera) -> None:
    # From far aside a few rays graze the head, where twelve steps do not find it to the pixel.
    assert ((turned_view(camera, camera) - coordinate_image(64)).abs() < 2e-2).float().mean() > 0.9
    flow = turned_flow(label(camera), seen_places(label(camera), 64))
    assert flow.shape == (1, 2, 64, 64)
    assert (flow.abs() < 1e-3).float().mean() > 0.85


@pytest.mark.parametrize("size", [32, 128])
def test_the_turned_flow_is_the_same_at_any_size(size: int) -> None:
    there, here = (turned_flow(label(CAMERAS[0]), seen_places(label(CAMERAS[1]), n)) for n in (64, size))
    resized = torch.nn.functional.interpolate(here, 64, mode="bilinear", antialias=True, align_corners=False)
    assert there.abs().mean() > 0.05
    assert (resized - there).abs().mean() < 0.005


def test_each_turned_flow_of_a_batch_is_that_of_its_own_cameras() -> None:
    before = torch.cat([label(camera) for camera in CAMERAS])
    together = turned_flow(before, seen_places(before.flip(0), 32))
    for b in range(4):
        alone = turned_flow(before[b : b + 1], seen_places(before.flip(0)[b : b + 1], 32))
        torch.testing.assert_close(together[b : b + 1], alone)


@pytest.mark.parametrize(("before", "after"), [(0, 1), (1, 2), (2, 3), (3, 0)])
def test_the_turned_view_shows_each_place_of_the_average_head_where_its_camera_sees_it(before: int, after: int) -> None:
    """Pixels of a picture of coordinates tell where in the source they were found."""
    size = 64
    seen = turned_view(CAMERAS[before], CAMERAS[after], size)
    points = surface(24)
    points = points[np.abs(points[:, :2]).max(axis=1) < 0.2]
    there, here = (project(points, CAMERAS[which].label) for which in (before, after))
    shown = (np.abs(here - 0.5) < 0.45).all(axis=1) & (np.abs(there - 0.5) < 0.45).all(axis=1)
    assert shown.sum() > 20
    grid = torch.from_numpy(here[shown] * 2 - 1).float()[None, None]
    found = torch.nn.functional.grid_sample(seen, grid, align_corners=False)[0, :, 0].T.numpy()
    # Where the head hides a part of itself, another place of it is seen: not more than a few.
    assert np.mean(np.abs(found - there[shown]).max(axis=1) < 2 / size) > 0.8


# ---- mixed precision -------------------------------------------------------------------------------------------------


def test_under_bfloat16_autocast_nothing_is_rounded() -> None:
    """A place rounded to bfloat16 is off by up to a pixel of 256."""
    image, camera = torch.rand(4, 3, 64, 64), torch.cat([label(camera) for camera in CAMERAS])

    def everything() -> tuple[torch.Tensor, ...]:
        return frontal_view(image, camera, HALF), turned_flow(camera, seen_places(camera.flip(0), 64))

    exact = everything()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = everything()
    for one, other in zip(exact, mixed, strict=True):
        assert other.dtype == torch.float32
        assert torch.equal(one, other)
