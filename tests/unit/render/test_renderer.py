"""The whole volume renderer: against its slow twin, and against spheres whose image is known."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from export3d.camera import Camera, head_position, project
from export3d.errors import ConfigError, ShapeError
from export3d.render.renderer import RenderConfig, Rendered, VolumeRenderer
from tests import reference

SMALL = RenderConfig(resolution=4, coarse=6, fine=5, hidden=8, features=5)


def label(*cameras: Camera) -> Tensor:
    return torch.from_numpy(np.stack([camera.label for camera in cameras])).float()


def scene(batch: int = 1, config: RenderConfig = SMALL) -> tuple[VolumeRenderer, Tensor, Tensor]:
    """A renderer with random planes (hazy, with structure) and cameras around them."""
    renderer = VolumeRenderer(config, 6)
    planes = torch.randn(batch, 3, 6, 8, 8)
    cameras = label(*(Camera.orbit(30.0 * b - 20.0, 10.0 * b - 5.0) for b in range(batch)))
    return renderer, planes, cameras


def twin(
    renderer: VolumeRenderer, planes: Tensor, camera: Tensor, given: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    c = renderer.config
    return reference.render(
        planes.detach().double().numpy(),
        camera.double().numpy(),
        {name: value.double().numpy() for name, value in renderer.decoder.state_dict().items()},
        resolution=c.resolution,
        coarse=c.coarse,
        fine=c.fine,
        half_extent=c.half_extent,
        reach=c.reach,
        density_gain=c.density_gain,
        given=given,
    )


# ---- the slow twin ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fine", [0, 5], ids=["coarse alone", "coarse and fine"])
def test_renders_agree_with_the_slow_twin(fine: int) -> None:
    renderer, planes, cameras = scene(2, replace(SMALL, fine=fine))
    rendered = renderer(planes, cameras)
    for b in range(2):
        feature, depth, opacity, _ = twin(renderer, planes[b], cameras[b])
        np.testing.assert_allclose(rendered.feature[b].detach().numpy(), feature, atol=2e-5)
        np.testing.assert_allclose(rendered.depth[b, 0].detach().numpy(), depth, atol=2e-5)
        np.testing.assert_allclose(rendered.opacity[b, 0].detach().numpy(), opacity, atol=2e-5)


def test_gradients_agree_with_finite_differences_of_the_slow_twin() -> None:
    """Through colours and densities at fixed samples: the sample positions carry no gradient."""
    renderer, planes, cameras = scene()
    planes.requires_grad_()
    mix = torch.randn(5, 4, 4)
    rendered = renderer(planes, cameras)
    ((rendered.feature[0] * mix).sum() + 3 * rendered.depth.sum() + 2 * rendered.opacity.sum()).backward()
    samples = twin(renderer, planes[0], cameras[0])[3]

    def value() -> float:
        feature, depth, opacity, _ = twin(renderer, planes[0], cameras[0], given=samples)
        return float((feature * mix.double().numpy()).sum() + 3 * depth.sum() + 2 * opacity.sum())

    assert planes.grad is not None
    grads = planes.grad
    strongest = grads.abs().flatten().topk(4).indices.tolist()
    tensors = {
        "plane": (planes, grads, strongest),
        "hidden": (renderer.decoder.hidden.weight, renderer.decoder.hidden.weight.grad, [0, 17]),
        "colour": (renderer.decoder.colour.weight, renderer.decoder.colour.weight.grad, [0, 33]),
        "density": (renderer.decoder.density.bias, renderer.decoder.density.bias.grad, [0]),
    }
    step = 2.0**-10
    for name, (tensor, grad, places) in tensors.items():
        assert grad is not None
        for place in places:
            flat, found = tensor.data.view(-1), []
            start = float(flat[place])
            for sign in (1, -1):
                flat[place] = start + sign * step
                found.append(value())
            flat[place] = start
            slope = (found[0] - found[1]) / (2 * step)
            assert float(grad.reshape(-1)[place]) == pytest.approx(slope, rel=2e-3, abs=1e-4), (name, place)


# ---- repeatability ---------------------------------------------------------------------------------------------------


def pieces(rendered: Rendered) -> tuple[Tensor, Tensor, Tensor]:
    return rendered.feature, rendered.depth, rendered.opacity


def test_without_jitter_the_same_scene_gives_the_same_bytes() -> None:
    renderer, planes, cameras = scene()
    first = pieces(renderer(planes, cameras))
    torch.manual_seed(99)
    for a, b in zip(first, pieces(renderer(planes, cameras))):
        assert torch.equal(a, b)


def test_seeds_jitter_the_samples_and_repeat_them() -> None:
    renderer, planes, cameras = scene()

    def render(seed: int) -> Tensor:
        found: Rendered = renderer(planes, cameras, jitter=torch.full((len(planes),), seed))
        return found.feature

    still = renderer(planes, cameras).feature
    assert torch.equal(render(1), render(1))
    assert not torch.equal(render(1), render(2))
    assert not torch.equal(render(1), still)
    many = torch.stack([render(seed) for seed in range(24)]).mean(dim=0)
    assert (many - still).abs().max() < (render(1) - still).abs().max()


def test_an_item_alone_renders_as_it_does_in_a_batch() -> None:
    renderer, planes, cameras = scene(3)
    together = pieces(renderer(planes, cameras))
    for b in range(3):
        for whole, alone in zip(together, pieces(renderer(planes[b : b + 1], cameras[b : b + 1]))):
            torch.testing.assert_close(whole[b : b + 1], alone, rtol=1e-5, atol=1e-6)


def test_an_item_is_jittered_by_its_own_seed_alone() -> None:
    renderer, planes, cameras = scene(3)
    seeds = torch.tensor([40, 41, 42])
    together = pieces(renderer(planes, cameras, jitter=seeds))
    for b in range(3):
        one = slice(b, b + 1)
        for whole, alone in zip(together, pieces(renderer(planes[one], cameras[one], jitter=seeds[one]))):
            torch.testing.assert_close(whole[one], alone, rtol=1e-5, atol=1e-6)


def test_rendering_never_changes_the_renderer() -> None:
    renderer, planes, cameras = scene()
    before = {name: value.clone() for name, value in renderer.state_dict().items()}
    renderer(planes, cameras, jitter=torch.arange(len(planes)))
    for name, value in renderer.state_dict().items():
        assert torch.equal(value, before[name])


def test_rendering_runs_in_float32_under_autocast() -> None:
    renderer, planes, cameras = scene()
    expected = pieces(renderer(planes, cameras))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = pieces(renderer(planes, cameras))
    for a, b in zip(found, expected):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


@pytest.mark.parametrize("size", [3, 8, 11])
def test_any_number_of_rays_per_side_can_be_rendered(size: int) -> None:
    renderer, planes, cameras = scene(2)
    rendered = renderer(planes, cameras, size)
    assert rendered.raw.shape == (2, 3, size, size)
    assert rendered.feature.shape == (2, 5, size, size)
    assert rendered.depth.shape == rendered.opacity.shape == (2, 1, size, size)


def test_opacities_lie_between_zero_and_one() -> None:
    renderer, planes, cameras = scene(2)
    opacity = renderer(planes * 20, cameras, 16).opacity
    assert opacity.min() >= 0
    assert opacity.max() <= 1 + 1e-6


# ---- a sphere, whose image is known ----------------------------------------------------------------------------------


CENTRE, RADIUS = np.array([0.1, -0.06, 0.08]), 0.2


class Sphere(nn.Module):
    """An opaque ball instead of the decoder; channels 0 to 2 of the planes are the coordinates of the point."""

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        offset = feature[..., :3] - torch.from_numpy(CENTRE).float()
        inside, covered = offset.norm(dim=-1) < RADIUS, feature[..., 3] > 0.999
        colour = torch.tanh(offset * 100)
        return colour, (inside & covered).float() * 2000.0


def coordinate_planes(size: int = 32, half_extent: float = 0.45) -> Tensor:
    """(1, 3, 4, size, size) planes whose mean at a point inside is (x, y, z, 1): a ramp is bilinear-exact."""
    ramp = (((torch.arange(size) + 0.5) / size) * 2 - 1) * half_extent
    planes = torch.zeros(1, 3, 4, size, size)
    planes[0, 0, 0] = 3 * ramp[None, :]  # x along the columns of xy
    planes[0, 1, 1] = 3 * ramp[None, :]  # y along the columns of yz
    planes[0, 2, 2] = 3 * ramp[None, :]  # z along the columns of zx
    planes[:, :, 3] = 1.0
    return planes


def sphere_picture(camera: Camera, config: RenderConfig) -> Rendered:
    renderer = VolumeRenderer(config, 4)
    renderer.decoder = Sphere()  # type: ignore[assignment]
    with torch.no_grad():
        rendered: Rendered = renderer(coordinate_planes(), label(camera))
    return rendered


VIEWS = {
    "frontal": Camera.orbit(),
    "from the side": Camera.orbit(70.0, 0.0),
    "from below": Camera.orbit(-15.0, 40.0),
    "rolled and off axis": Camera.look_at((0.9, -0.5, -2.3), (0.03, 0.02, 0.0), roll_rad=0.5),
    "from behind": Camera.orbit(180.0, 0.0),
    "from near": Camera.orbit(20.0, 5.0, radius=1.5, focal=2.2),
}
BALL = RenderConfig(resolution=40, coarse=40, fine=40, features=3)


@functools.lru_cache
def view(name: str) -> Rendered:
    return sphere_picture(VIEWS[name], BALL)


def hits(camera: Camera, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """For every pixel: the ray's squared distance from the ball's centre and the depth of its first hit (or nan)."""
    miss, depth = np.zeros((2, resolution, resolution))
    for row in range(resolution):
        for column in range(resolution):
            origin, direction = reference.ray(camera.label, column, row, resolution)
            along = float((CENTRE - origin) @ direction)
            miss[row, column] = float(((CENTRE - origin) ** 2).sum()) - along**2
            inside = RADIUS**2 - miss[row, column]
            depth[row, column] = along - math.sqrt(inside) if inside > 0 else math.nan
    return np.sqrt(miss), depth


@pytest.mark.parametrize("name", VIEWS)
def test_a_ball_has_the_silhouette_and_the_depth_of_a_ball(name: str) -> None:
    rendered, camera = view(name), VIEWS[name]
    opacity, depth = rendered.opacity[0, 0].numpy(), rendered.depth[0, 0].numpy()
    miss, expected = hits(camera, 40)
    # Near the rim the ray's path through the ball is shorter than the distance between two samples.
    assert opacity[miss < 0.97 * RADIUS].min() > 0.99
    assert opacity[miss > 1.01 * RADIUS].max() < 0.01
    inner = miss < 0.9 * RADIUS
    spacing = 2 * BALL.reach / BALL.coarse
    assert np.abs(depth - expected)[inner].max() < spacing
    assert np.abs(depth - expected)[inner].mean() < spacing / 3


@pytest.mark.parametrize("name", VIEWS)
def test_a_ball_appears_at_its_projected_centre_with_its_projected_size(name: str) -> None:
    camera = VIEWS[name]
    opacity = view(name).opacity[0, 0].numpy().astype(np.float64)
    middle = (np.arange(40) + 0.5) / 40
    seen = np.array([(opacity * middle[None, :]).sum(), (opacity * middle[:, None]).sum()]) / opacity.sum()
    np.testing.assert_allclose(seen, project(CENTRE[None], camera.label)[0], atol=0.01)
    distance = float(np.linalg.norm(CENTRE - camera.cam2world[:3, 3]))
    radius = camera.intrinsics[0, 0] * math.tan(math.asin(RADIUS / distance))
    assert math.sqrt(opacity.sum() / 40**2 / math.pi) == pytest.approx(radius, rel=0.03)


def test_the_near_side_of_the_ball_is_seen_and_its_right_is_on_the_right() -> None:
    """The colour is the sign of each coordinate about the ball's centre."""
    raw = sphere_picture(Camera.look_at((*CENTRE[:2], -2.7), CENTRE), BALL).raw[0]
    assert raw[0, 20, 17] < -0.9 < 0.9 < raw[0, 20, 22]  # x grows to the right
    assert raw[1, 17, 20] < -0.9 < 0.9 < raw[1, 22, 20]  # y grows downwards
    assert raw[2, 20, 20] < -0.9  # the side with the smaller z faces the camera


def test_rays_that_hit_nothing_are_black_with_the_far_limit_as_depth() -> None:
    rendered = view("frontal")
    assert rendered.opacity[0, 0, 0, 0] == 0
    torch.testing.assert_close(rendered.raw[0, :, 0, 0], torch.full((3,), -1.0))
    assert float(rendered.depth[0, 0, 0, 0]) == pytest.approx(2.7 + BALL.reach, rel=1e-6)


def test_importance_samples_sharpen_the_depth_of_the_ball() -> None:
    camera = Camera.orbit(20.0, 5.0)
    miss, expected = hits(camera, 24)
    inner = miss < 0.8 * RADIUS

    def error(coarse: int, fine: int) -> float:
        config = replace(BALL, resolution=24, coarse=coarse, fine=fine)
        depth = sphere_picture(camera, config).depth[0, 0].numpy()
        return float(np.abs(depth - expected)[inner].mean())

    assert error(16, 16) < 0.8 * error(32, 0)


def test_a_nearer_camera_sees_the_same_ball_at_the_same_place_in_the_world() -> None:
    for radius in (1.8, 2.7, 4.0):
        camera = Camera.orbit(25.0, -10.0, radius=radius, target=CENTRE)
        rendered = sphere_picture(camera, replace(BALL, resolution=9, reach=0.6))
        assert float(rendered.opacity[0, 0, 4, 4]) == pytest.approx(1.0, abs=1e-3)
        assert float(rendered.depth[0, 0, 4, 4]) == pytest.approx(radius - RADIUS, abs=0.03)
    assert head_position(Camera.orbit(radius=4.0).label)[2] == pytest.approx(4.0)


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_one_camera_for_each_tri_plane_is_needed() -> None:
    renderer, planes, cameras = scene(2)
    with pytest.raises(ShapeError, match="camera label"):
        renderer(planes, cameras[:1])


@pytest.mark.parametrize(
    "changes", [{"coarse": 2}, {"fine": -1}, {"features": 2}, {"resolution": 0}, {"half_extent": 0.0}, {"reach": -1.0}]
)
def test_settings_that_cannot_render_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        replace(SMALL, **changes)  # type: ignore[arg-type]
