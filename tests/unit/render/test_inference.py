"""Rendering without gradients gives what rendering with gradients gives."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import export3d.render.compiled as compiled
import export3d.render.renderer as renderer_module
from export3d.camera import Camera
from export3d.config import ModelConfig, base, core
from export3d.model import Export3D
from export3d.render import inference
from export3d.render.renderer import RenderConfig, Rendered, VolumeRenderer

CONFIGS = {
    "coarse": RenderConfig(resolution=9, coarse=7, fine=0, hidden=10, features=5),
    "coarse and fine": RenderConfig(resolution=6, coarse=8, fine=9, hidden=24, features=3, half_extent=0.3),
    "as the paper": RenderConfig(resolution=5, coarse=48, fine=48, density_gain=1.0),
}
FRONTAL, TURNED = Camera.orbit(), Camera.orbit(40.0, -15.0)
CAMERAS = {
    "frontal and turned": (FRONTAL, TURNED),
    "inside the cube": (Camera.look_at((0.1, 0.05, -0.2), (0.0, 0.0, 0.3)), FRONTAL),
    "looking away": (Camera.look_at((0.0, 0.0, -2.7), (0.0, 0.0, -9.0)), TURNED),
}
SCALES = {"haze": 1.0, "walls": 300.0, "nothing": 0.0}


def labels(*cameras: Camera) -> Tensor:
    return torch.from_numpy(np.stack([camera.label for camera in cameras])).float()


def scene(config: RenderConfig, scale: float = 1.0, size: tuple[int, int] = (8, 11)) -> tuple[VolumeRenderer, Tensor]:
    """A renderer and planes for two cameras; of scale 0, the density is exactly 0."""
    torch.manual_seed(3)
    renderer, planes = VolumeRenderer(config, 6), torch.randn(2, 3, 6, *size) * scale
    if scale == 0:
        torch.nn.init.constant_(renderer.decoder.density.bias, -1e6)
    return renderer, planes


def both(renderer: VolumeRenderer, planes: Tensor, cameras: Tensor) -> tuple[Rendered, Rendered]:
    """With gradients, and without."""
    expected = renderer(planes, cameras)
    with torch.no_grad():
        return expected, renderer(planes, cameras)


def check(found: Rendered, expected: Rendered, atol: float) -> None:
    for name in ("feature", "depth", "opacity"):
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name).detach(), rtol=0, atol=atol, equal_nan=True, msg=name
        )


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("cameras", CAMERAS.values(), ids=CAMERAS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_same_image_with_and_without_gradients(
    config: RenderConfig, cameras: tuple[Camera, Camera], scale: float
) -> None:
    expected, found = both(*scene(config, scale), labels(*cameras))
    # an importance sample that crosses the edge of a wall moves with the rounding of its weight
    check(found, expected, 2e-3 if scale > 1 and config.fine else 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("config", [base(), core()], ids=["base", "core"])
def test_the_decoders_of_the_presets_render_the_same(config: ModelConfig) -> None:
    renderer = Export3D(config).renderer
    size = config.generator.image_size // 2
    planes = torch.randn(1, 3, config.generator.plane_channels, size, size).expand(2, -1, -1, -1, -1)
    check(*reversed(both(renderer, planes * 3, labels(FRONTAL, TURNED))), atol=2e-5)


def test_a_tri_plane_expanded_over_cameras_renders_as_its_copies() -> None:
    renderer, planes = scene(CONFIGS["coarse"])
    cameras = labels(FRONTAL, TURNED)
    with torch.no_grad():
        shared, copies = (renderer(x, cameras) for x in (planes[:1].expand(2, -1, -1, -1, -1), planes[[0, 0]]))
        assert (
            len(inference.Texels.of(planes[:1].expand(2, -1, -1, -1, -1), renderer.decoder.hidden.weight).values) == 1
        )
    check(shared, copies, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_one_value_that_is_not_finite_spreads_as_with_gradients(value: float) -> None:
    """Also behind a wall, where the value has no weight."""
    renderer, planes = scene(CONFIGS["coarse"], 300.0)
    planes[0, 2, 1, 4, 5] = value
    check(*reversed(both(renderer, planes, labels(FRONTAL, TURNED))), atol=2e-5)


def test_weights_and_cameras_that_are_not_finite_spread_as_with_gradients() -> None:
    renderer, planes = scene(CONFIGS["coarse"])
    cameras = labels(FRONTAL, TURNED)
    cameras[1, 3] = torch.nan
    check(*reversed(both(renderer, planes, cameras)), atol=2e-5)
    torch.nn.init.constant_(renderer.decoder.colour.bias[:1], torch.nan)
    check(*reversed(both(renderer, planes, labels(FRONTAL, TURNED))), atol=2e-5)


def test_blocks_of_rays_do_not_change_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer, planes = scene(replace(CONFIGS["coarse"], resolution=7))
    cameras = labels(FRONTAL, TURNED)
    with torch.no_grad():
        whole = renderer(planes, cameras)
        monkeypatch.setattr(inference, "BLOCK", 5 * renderer.config.coarse)
        check(renderer(planes, cameras), whole, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_the_graph_of_a_trace_has_no_sizes_of_its_example() -> None:
    """The traced renderer renders other planes, whose samples with weight are others."""
    renderer, planes = scene(CONFIGS["coarse"], 300.0)
    renderer.requires_grad_(False)
    cameras = labels(FRONTAL, TURNED)
    with torch.no_grad():
        traced = torch.jit.trace(lambda a, b: renderer(a, b).feature, (planes, cameras), check_trace=False)
        torch.testing.assert_close(traced(-planes, cameras), renderer(-planes, cameras).feature, rtol=0, atol=1e-4)


def test_without_numba_pytorch_renders_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    renderer, planes = scene(CONFIGS["coarse"])
    cameras = labels(FRONTAL, TURNED)
    with torch.no_grad():
        expected = renderer(planes, cameras)
    renderer.fused = True
    monkeypatch.delitem(sys.modules, "export3d.render.fused", raising=False)
    monkeypatch.setitem(sys.modules, "numba", None)
    renderer_module._fused.cache_clear()
    compiled._warn.cache_clear()
    try:
        with caplog.at_level(logging.WARNING), torch.no_grad():
            for _ in range(2):
                check(renderer(planes, cameras), expected, atol=0)
    finally:
        renderer_module._fused.cache_clear()
        compiled._warn.cache_clear()
    assert [record.message for record in caplog.records] == [caplog.records[0].message]
    assert "numba" in caplog.text
