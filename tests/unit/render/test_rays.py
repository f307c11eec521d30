"""Rays start at the camera and pass through the centres of its pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from export3d.camera import Camera, project
from export3d.errors import ShapeError
from export3d.render.rays import camera_rays, ray_limits
from tests import reference


def labels() -> torch.Tensor:
    """Five cameras: frontal, turned, rolled, off-centre and skewed, close."""
    cameras = [
        Camera.orbit(),
        Camera.orbit(35.0, -20.0),
        Camera.look_at((0.4, -0.3, -2.5), (0.05, 0.1, 0.0), roll_rad=0.4),
        Camera.orbit(-60.0, 10.0, radius=3.2),
        Camera.orbit(0.0, 0.0, radius=1.4, focal=2.0),
    ]
    found = np.stack([camera.label for camera in cameras])
    found[3, 16:] = [4.1, 0.2, 0.45, 0.0, 3.9, 0.53, 0.0, 0.0, 1.0]
    return torch.from_numpy(found).float()


def test_every_point_of_a_ray_projects_to_the_centre_of_its_pixel() -> None:
    origins, directions = camera_rays(labels(), 6)
    centre = (np.arange(6) + 0.5) / 6
    expected = np.stack([np.tile(centre, 6), np.repeat(centre, 6)], axis=-1)
    for distance in (0.5, 2.7, 10.0):
        points = (origins + distance * directions).double().numpy()
        np.testing.assert_allclose(
            project(points, labels().double().numpy()), np.broadcast_to(expected, (5, 36, 2)), atol=2e-6
        )


def test_rays_agree_with_the_slow_twin() -> None:
    origins, directions = camera_rays(labels(), 4)
    for b, label in enumerate(labels().double().numpy()):
        for row in range(4):
            for column in range(4):
                origin, direction = reference.ray(label, column, row, 4)
                np.testing.assert_allclose(origins[b, 4 * row + column].numpy(), origin, atol=1e-6)
                np.testing.assert_allclose(directions[b, 4 * row + column].numpy(), direction, atol=1e-6)


def test_directions_have_length_one() -> None:
    length = camera_rays(labels(), 8)[1].norm(dim=-1)
    torch.testing.assert_close(length, torch.ones_like(length))


def test_all_rays_of_a_camera_start_at_its_centre() -> None:
    origins, _ = camera_rays(labels(), 3)
    for b, label in enumerate(labels()):
        assert torch.equal(origins[b], label[[3, 7, 11]].expand(9, 3))


def test_the_middle_ray_of_a_look_at_camera_meets_its_target() -> None:
    target = np.array([0.1, -0.2, 0.05])
    camera = Camera.look_at((0.5, 0.4, -2.0), target, roll_rad=1.0)
    origins, directions = camera_rays(torch.from_numpy(camera.label[None]).float(), 1)
    along = torch.from_numpy(target).float() - origins[0, 0]
    torch.testing.assert_close(directions[0, 0], along / along.norm())


def test_near_and_far_follow_the_distance_of_the_camera() -> None:
    radii = np.array([1.4, 2.7, 5.0])
    stacked = torch.from_numpy(np.stack([Camera.orbit(25.0, 10.0, radius=r).label for r in radii])).float()
    near, far = ray_limits(stacked, 0.5)
    np.testing.assert_allclose(near.numpy(), radii - 0.5, rtol=1e-6)
    np.testing.assert_allclose(far.numpy(), radii + 0.5, rtol=1e-6)


def test_a_camera_inside_the_volume_still_has_near_in_front_of_it() -> None:
    near, far = ray_limits(torch.from_numpy(Camera.orbit(radius=0.2).label[None]).float(), 0.5)
    assert 0 < float(near) < float(far)


def test_a_label_of_another_length_is_refused() -> None:
    with pytest.raises(ShapeError, match="camera label"):
        camera_rays(torch.zeros(2, 24), 4)


def test_labels_in_half_precision_still_give_float32_rays() -> None:
    origins, directions = camera_rays(labels().bfloat16(), 2)
    assert origins.dtype == directions.dtype == torch.float32
