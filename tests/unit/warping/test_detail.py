"""Detail from the source's own pixels, as a super-resolution is guided by it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export3d.superres import SuperResConfig, SuperResolution
from export3d.warping.detail import Detail, DetailGuide, Views, crisp

FEATURES, MID, HIGH = 6, 8, 4


def views(batch: int = 2, size: int = 32, mouth: bool = False) -> Views:
    moved, still, turned = torch.randn(3, batch, 3, size, size)
    opening = torch.rand(batch, 2, size, size) if mouth else None
    stretched, head = torch.rand(batch, 1, size, size), torch.rand(batch, 2, size, size)
    offset, turn = 0.1 * torch.randn(2, batch, 2, size, size)
    return Views(moved, stretched, offset, still, turned, turn, head, opening)


class Guided(nn.Module):
    """A super-resolution and the detail that guides it."""

    def __init__(self, mouth: bool = False) -> None:
        super().__init__()
        self.superres = SuperResolution(SuperResConfig(mid_channels=MID, high_channels=HIGH), FEATURES)
        self.detail = Detail(FEATURES, MID, HIGH, mouth)

    def forward(self, feature: Tensor, seen: Views) -> Tensor:
        image: Tensor = self.superres(feature, DetailGuide(self.detail, seen, feature))
        return image


def test_a_new_detail_shows_mostly_what_is_rendered() -> None:
    module, feature, seen = Guided(), torch.randn(2, 6, 8, 8), views()
    share = torch.tensor([3.0, 0.0, 0.0, 0.0]).softmax(0)
    assert share[0] > 0.85
    taken = seen.moved + seen.still + seen.turned
    rendered = module.superres(feature)
    torch.testing.assert_close(module(feature, seen), share[0] * rendered + share[1] * taken)


def test_a_detail_that_chooses_what_is_rendered_leaves_the_papers_super_resolution() -> None:
    """Also where that has learned: new views add nothing at H/2."""
    module, feature = Guided(), torch.randn(2, 6, 8, 8)
    for layer in (module.superres.mid_rgb, module.superres.high_rgb):
        nn.init.normal_(layer.weight)
    with torch.no_grad():
        module.detail.choice.bias[0] = 60.0
    torch.testing.assert_close(module(feature, views()), module.superres(feature), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("which", "name"), [(1, "moved"), (2, "still"), (3, "turned")])
def test_a_pixel_can_take_the_source_as_it_is(which: int, name: str) -> None:
    module, seen = Guided(), views()
    with torch.no_grad():
        module.detail.choice.bias[which] = 60.0
    torch.testing.assert_close(module(torch.randn(2, 6, 8, 8), seen), getattr(seen, name), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("which", [1, 2, 3])
def test_a_place_can_lean_to_the_source_by_what_lies_around_it(which: int) -> None:
    """What `overlook` sees of features and views two dozen pixels away decides too."""
    module, seen = Guided(), views(size=64)
    detail, feature = module.detail, torch.randn(2, 6, 16, 16)
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
def test_every_weight_takes_part(mouth: bool) -> None:
    module = Guided(mouth)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.3)
    module(torch.randn(2, 6, 8, 8), views(mouth=mouth)).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("which", [0, 1])
def test_where_the_mouth_is_open_decides_near_by_alone(which: int) -> None:
    module, seen = Guided(mouth=True), views(size=64, mouth=True)
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


def test_a_guide_keeps_its_views_and_adds_to_the_features_at_half_the_size() -> None:
    detail, seen, x = Detail(FEATURES, MID, HIGH), views(), torch.randn(2, MID, 16, 16)
    nn.init.normal_(detail.mid.weight)
    guide = DetailGuide(detail, seen, torch.randn(2, 6, 8, 8))
    assert guide.views is seen
    added = detail.mid(F.avg_pool2d(seen.stacked(), 2))
    torch.testing.assert_close(guide.at_half(x), x + added)
    assert added.shape == x.shape
    assert added.abs().max() > 1e-2


def test_views_without_the_mouth_do_not_fit_a_detail_that_sees_it() -> None:
    with pytest.raises(RuntimeError):
        Guided(mouth=True)(torch.randn(1, 6, 8, 8), views(1))


def test_what_is_rendered_is_made_crisp_and_nothing_else() -> None:
    edge = torch.zeros(1, 3, 16, 32)
    edge[..., 8:] = 0.5
    edge[..., 24:] = 0.0
    share = torch.zeros(1, 4, 16, 32)
    share[:, 0, :, :16], share[:, 1, :, 16:] = 1.0, 1.0
    whole = torch.zeros(1, 1, 16, 32)
    made = crisp(edge, share, whole)
    assert torch.equal(made[..., 16:], edge[..., 16:])
    steps = [image[0, 0, 4].diff()[7] for image in (edge, made)]
    assert steps[1] > 1.3 * steps[0]
    torch.testing.assert_close(made[..., :4], edge[..., :4])
    assert float(crisp(3.0 * edge - 1.0, share, whole).abs().max()) <= 1.0
    assert torch.equal(crisp(edge, share, whole + 1.0), edge), "stripes stay soft"


def test_training_sees_what_the_network_makes() -> None:
    """Else it would learn to be softer."""
    image = torch.rand(1, 3, 8, 8, requires_grad=True)
    maps = torch.ones(1, 4, 8, 8), torch.zeros(1, 1, 8, 8)
    assert crisp(image, *maps) is image
    with torch.no_grad():
        assert not torch.equal(crisp(image, *maps), image)
