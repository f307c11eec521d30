"""Super-resolution: the rendered feature image to the final image."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export3d.errors import ShapeError
from export3d.superres import SuperResConfig, SuperResolution

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


# ---- a guide ---------------------------------------------------------------------------------------------------------


class Recorder:
    """A guide that notes what it gets, and changes it by constants."""

    def __init__(self, half: float, full: float) -> None:
        self.half, self.full = half, full
        self.seen: list[tuple[int, ...]] = []

    def at_half(self, x: Tensor) -> Tensor:
        self.seen.append(tuple(x.shape))
        return x + self.half

    def at_full(self, x: Tensor, image: Tensor) -> Tensor:
        self.seen += [tuple(x.shape), tuple(image.shape)]
        return image + self.full


def learned() -> SuperResolution:
    module = SuperResolution(SMALL, 6)
    for layer in (module.mid_rgb, module.high_rgb):
        nn.init.normal_(layer.weight)
    return module


def test_a_guide_gets_the_features_at_half_and_full_size_and_the_image() -> None:
    guide = Recorder(0.0, 0.0)
    feature, module = torch.randn(2, 6, 8, 12), learned()
    assert torch.equal(module(feature, guide), module(feature))
    assert guide.seen == [(2, 8, 16, 24), (2, 4, 32, 48), (2, 3, 32, 48)]


def test_what_a_guide_changes_at_half_the_size_goes_on_and_at_full_size_is_final() -> None:
    feature, module = torch.randn(2, 6, 8, 8), learned()
    plain = module(feature)
    torch.testing.assert_close(module(feature, Recorder(0.0, 0.5)), plain + 0.5)
    assert (module(feature, Recorder(0.5, 0.0)) - plain).abs().mean() > 1e-2


def test_the_module_itself_knows_nothing_of_a_guide() -> None:
    module = learned()
    names = [*module.state_dict()]
    module(torch.randn(1, 6, 8, 8), Recorder(1.0, 1.0))
    assert [*module.state_dict()] == names
    assert {name.split(".")[0] for name in names} == {
        "mid_first", "mid_second", "mid_rgb", "high_first", "high_second", "high_rgb"
    }  # fmt: skip
