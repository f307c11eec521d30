"""The compiled pass against its readable twin in PyTorch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from export3d.camera import Camera
from export3d.config import ModelConfig, base, core
from export3d.render.renderer import RenderConfig, Rendered, VolumeRenderer

pytestmark = pytest.mark.slow  # the first test compiles

CONFIGS = {
    "coarse": RenderConfig(resolution=17, coarse=7, fine=0, hidden=10, features=5),
    "coarse and fine": RenderConfig(resolution=6, coarse=8, fine=9, hidden=24, features=3, half_extent=0.3),
    "as the paper": RenderConfig(resolution=8, coarse=48, fine=48, density_gain=1.0),
}
FRONTAL, TURNED = Camera.orbit(), Camera.orbit(40.0, -15.0)
CAMERAS = {
    "frontal and turned": (FRONTAL, TURNED),
    "inside the cube": (Camera.look_at((0.1, 0.05, -0.2), (0.0, 0.0, 0.3)), FRONTAL),
    "looking away": (Camera.look_at((0.0, 0.0, -2.7), (0.0, 0.0, -9.0)), TURNED),
}
SCALES = {"haze": 1.0, "walls": 30.0, "hard walls": 1e4, "nothing": 0.0}


@pytest.fixture(autouse=True)
def _numba() -> None:
    pytest.importorskip("numba")


def labels(*cameras: Camera) -> Tensor:
    return torch.from_numpy(np.stack([camera.label for camera in cameras])).float()


def scene(config: RenderConfig, scale: float = 1.0) -> tuple[VolumeRenderer, Tensor]:
    """A renderer and planes for two cameras; of scale 0, the density is exactly 0."""
    torch.manual_seed(3)
    renderer, planes = VolumeRenderer(config, 6), torch.randn(2, 3, 6, 8, 11) * scale
    if scale == 0:
        torch.nn.init.constant_(renderer.decoder.density.bias, -1e6)
    return renderer, planes


def render(renderer: VolumeRenderer, planes: Tensor, cameras: Tensor, fused: bool, size: int | None = None) -> Rendered:
    renderer.fused = fused
    with torch.no_grad():
        rendered: Rendered = renderer(planes, cameras, size)
    return rendered


def check(found: Rendered, expected: Rendered, atol: float = 1e-3) -> None:
    for name in ("feature", "depth", "opacity"):
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name), rtol=0, atol=atol, equal_nan=True, msg=name
        )


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("cameras", CAMERAS.values(), ids=CAMERAS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_compiled_pass_renders_what_pytorch_renders(
    config: RenderConfig, cameras: tuple[Camera, Camera], scale: float
) -> None:
    renderer, planes = scene(config, scale)
    check(*(render(renderer, planes, labels(*cameras), fused) for fused in (True, False)))


@pytest.mark.parametrize("opacity", [3e-4, 6e-4, 9e-4, 1.5e-3, 2e-3, 3e-3])
@pytest.mark.parametrize("samples", [(7, 0), (48, 48), (300, 0)])
def test_thin_white_haze_is_seen(samples: tuple[int, int], opacity: float) -> None:
    """Each of its samples may weigh too little to count; all of them together do."""
    coarse, fine = samples
    renderer = VolumeRenderer(RenderConfig(resolution=3, coarse=coarse, fine=fine, hidden=4, features=3), 2)
    decoder = renderer.decoder
    for layer in (decoder.density, decoder.colour):
        torch.nn.init.zeros_(layer.weight)
    torch.nn.init.constant_(decoder.colour.bias, 5.0)
    torch.nn.init.constant_(decoder.density.bias, 1.0 + math.log(math.expm1(opacity / decoder.density_gain)))
    planes = torch.zeros(1, 3, 2, 4, 4)
    check(*(render(renderer, planes, labels(FRONTAL), fused) for fused in (True, False)))


def test_empty_space_stays_empty_whatever_the_gain() -> None:
    config = RenderConfig(resolution=3, coarse=7, fine=0, hidden=4, features=3, density_gain=1e6)
    renderer, planes = scene(config, 0.0)
    assert not render(renderer, planes, labels(FRONTAL, TURNED), True).opacity.any()


@pytest.mark.parametrize("config", [base(), core()], ids=["base", "core"])
def test_the_presets_render_the_same(config: ModelConfig) -> None:
    renderer, size = VolumeRenderer(config.render, config.generator.plane_channels), config.generator.image_size // 2
    planes = torch.randn(1, 3, config.generator.plane_channels, size, size) * 3
    shared = planes.expand(2, -1, -1, -1, -1)
    check(*(render(renderer, shared, labels(FRONTAL, TURNED), fused) for fused in (True, False)))


def test_the_bytes_do_not_depend_on_the_number_of_threads_or_on_the_rest_of_the_batch() -> None:
    renderer, planes = scene(CONFIGS["coarse"])
    cameras, threads, found = labels(FRONTAL, TURNED), torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(render(renderer, planes, cameras, True, 40).feature)
            found.append(torch.cat([render(renderer, planes[[b]], cameras[[b]], True, 40).feature for b in (0, 1)]))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(x, found[0]) for x in found)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_one_value_that_is_not_finite_spreads_as_in_pytorch(value: float) -> None:
    """Also behind a wall, where the compiled pass computes nothing."""
    renderer, planes = scene(CONFIGS["coarse"], 300.0)
    planes[0, 2, 1, 4, 5] = value
    expected = renderer(planes, labels(FRONTAL, TURNED)).feature.detach()
    found = render(renderer, planes, labels(FRONTAL, TURNED), True).feature
    assert expected.isfinite().any()
    assert torch.equal(found.isnan(), expected.isnan())


def test_gradients_and_jitter_use_the_code_of_training() -> None:
    renderer, planes = scene(CONFIGS["coarse and fine"])
    cameras, seeds = labels(FRONTAL, TURNED), torch.tensor([4, 5])
    expected = renderer(planes, cameras), renderer(planes, cameras, jitter=seeds)
    renderer.fused = True
    found = renderer(planes, cameras), renderer(planes, cameras, jitter=seeds)
    for a, b in zip(found, expected):
        assert a.feature.requires_grad
        assert torch.equal(a.feature, b.feature)
    with torch.no_grad():
        assert torch.equal(renderer(planes, cameras, jitter=seeds).feature, expected[1].feature)
