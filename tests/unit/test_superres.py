"""Super-resolution: the rendered feature image to the final image."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from export3d.errors import ConfigError, ShapeError
from export3d.superres import SuperResConfig, SuperResolution
from export3d.warping.detail import Views

SMALL = SuperResConfig(mid_channels=8, high_channels=4)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 12)])
def test_the_image_is_four_times_as_large(height: int, width: int) -> None:
    assert SuperResolution(SMALL, 6)(torch.randn(2, 6, height, width)).shape == (2, 3, 4 * height, 4 * width)


def test_a_new_super_resolution_is_bilinear_enlargement_of_the_raw_image() -> None:
    feature = torch.randn(2, 6, 8, 8)
    expected = F.interpolate(feature[:, :3], scale_factor=2, mode="bilinear", align_corners=False)
    expected = F.interpolate(expected, scale_factor=2, mode="bilinear", align_corners=False)
    assert torch.equal(SuperResolution(SMALL, 6)(feature), expected)


def test_a_trained_super_resolution_sees_all_feature_channels() -> None:
    module = SuperResolution(SMALL, 6)
    for layer in (module.mid_rgb, module.high_rgb):
        nn.init.normal_(layer.weight)
    feature = torch.randn(1, 6, 8, 8, requires_grad=True)
    module(feature).square().sum().backward()
    assert feature.grad is not None
    assert (feature.grad.abs().amax(dim=(0, 2, 3)) > 0).all()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_the_first_gradient_reaches_both_rgb_branches() -> None:
    module = SuperResolution(SMALL, 6)
    module(torch.randn(1, 6, 8, 8)).square().sum().backward()
    for layer in (module.mid_rgb, module.high_rgb):
        assert layer.weight.grad is not None
        assert layer.weight.grad.abs().max() > 0


def test_an_item_alone_is_as_it_is_in_a_batch() -> None:
    module, feature = SuperResolution(SMALL, 6), torch.randn(3, 6, 8, 8)
    nn.init.normal_(module.high_rgb.weight)
    torch.testing.assert_close(module(feature)[1:2], module(feature[1:2]), rtol=1e-4, atol=1e-5)


def test_a_feature_image_without_a_batch_is_refused() -> None:
    with pytest.raises(ShapeError, match="feature image"):
        SuperResolution(SMALL, 6)(torch.zeros(6, 8, 8))


# ---- detail ----------------------------------------------------------------------------------------------------------

DETAILED = SuperResConfig(mid_channels=8, high_channels=4, detail=True)
WITH_MOUTH = replace(DETAILED, mouth=True)


def views(batch: int = 2, size: int = 32, mouth: bool = False) -> Views:
    moved, still, turned = torch.randn(3, batch, 3, size, size)
    opening = torch.rand(batch, 2, size, size) if mouth else None
    stretched, head = torch.rand(batch, 1, size, size), torch.rand(batch, 2, size, size)
    return Views(moved, stretched, 0.1 * torch.randn(batch, 2, size, size), still, turned, head, opening)


def test_a_new_detail_shows_mostly_what_is_drawn() -> None:
    plain, detailed = SuperResolution(SMALL, 6), SuperResolution(DETAILED, 6)
    missing, unexpected = detailed.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith("detail.") for name in missing)
    feature, seen = torch.randn(2, 6, 8, 8), views()
    share = torch.tensor([3.0, 0.0, 0.0, 0.0]).softmax(0)
    assert share[0] > 0.85
    taken = seen.moved + seen.still + seen.turned
    torch.testing.assert_close(detailed(feature, seen), share[0] * plain(feature) + share[1] * taken)


@pytest.mark.parametrize(("which", "name"), [(1, "moved"), (2, "still"), (3, "turned")])
def test_a_pixel_can_take_the_source_as_it_is(which: int, name: str) -> None:
    module, seen = SuperResolution(DETAILED, 6), views()
    assert module.detail is not None
    with torch.no_grad():
        module.detail.choice.bias[which] = 60.0
    torch.testing.assert_close(module(torch.randn(2, 6, 8, 8), seen), getattr(seen, name), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("which", [1, 2, 3])
def test_a_place_can_lean_to_the_source_by_what_lies_around_it(which: int) -> None:
    """What `overlook` sees of features and views two dozen pixels away decides too."""
    module, seen = SuperResolution(DETAILED, 6), views(size=64)
    detail, feature = module.detail, torch.randn(2, 6, 16, 16)
    assert detail is not None
    before = module(feature, seen)
    with torch.no_grad():
        detail.lean.bias[which] = 60.0
    torch.testing.assert_close(
        module(feature, seen), (seen.moved, seen.still, seen.turned)[which - 1], atol=1e-5, rtol=1e-5
    )
    with torch.no_grad():
        detail.lean.bias.zero_()
        nn.init.normal_(detail.lean.weight)
    for far in ("offset", "stretched"):
        changed = replace(seen, **{far: getattr(seen, far).clone()})
        getattr(changed, far)[..., :8, :8] += 0.5
        change = (module(feature, changed) - module(feature, seen)).abs().amax(dim=(0, 1))
        assert change[20:32, 20:32].max() > 1e-4
        assert change[44:, 44:].max() == 0.0
    assert not torch.allclose(before, module(feature, seen), atol=1e-3)


@pytest.mark.parametrize("mouth", [False, True])
def test_every_weight_of_the_detail_takes_part(mouth: bool) -> None:
    module = SuperResolution(WITH_MOUTH if mouth else DETAILED, 6)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.3)
    module(torch.randn(2, 6, 8, 8), views(mouth=mouth)).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("which", [0, 1])
def test_where_the_mouth_is_open_decides_near_by_alone(which: int) -> None:
    module, seen = SuperResolution(WITH_MOUTH, 6), views(size=64, mouth=True)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.1)
    feature = torch.randn(2, 6, 16, 16)
    assert seen.mouth is not None
    opened = replace(seen, mouth=seen.mouth.clone())
    assert opened.mouth is not None
    opened.mouth[:, which, 24:32, 24:32] += 1.0
    change = (module(feature, opened) - module(feature, seen)).abs().amax(dim=(0, 1))
    assert change[24:32, 24:32].max() > 1e-3
    assert change[48:].max() == change[:, 48:].max() == change[:8].max() == 0.0


@pytest.mark.parametrize(("config", "seen"), [(SMALL, views(1)), (DETAILED, None)])
def test_views_are_for_detail_alone(config: SuperResConfig, seen: Views | None) -> None:
    with pytest.raises(ConfigError, match="needs views of the source, and without it takes none"):
        SuperResolution(config, 6)(torch.randn(1, 6, 8, 8), seen)


def test_a_dense_motion_needs_detail_to_move() -> None:
    sentence = "superres.dense moves what superres.detail takes from the source; switch both on"
    with pytest.raises(ConfigError, match=sentence):
        SuperResConfig(dense=True)
    with pytest.raises(ConfigError, match=sentence):
        replace(SuperResConfig(detail=True, dense=True), detail=False)
