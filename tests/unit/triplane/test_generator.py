"""The hybrid tri-plane generator: sizes of the paper, and what depends on what."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from export3d.config import preset
from export3d.errors import ConfigError, ShapeError
from export3d.triplane.blocks import EAdaLN
from export3d.triplane.generator import GeneratorConfig, SourceFeatures, TriplaneGenerator

TINY = preset("tiny").generator
EMBEDDING = 12


def listening(config: GeneratorConfig = TINY) -> TriplaneGenerator:
    """A generator whose EAdaLN already answer to the expression (new ones are deaf)."""
    generator = TriplaneGenerator(config, EMBEDDING)
    for module in generator.modules():
        if isinstance(module, EAdaLN):
            nn.init.normal_(module.modulation.weight, std=0.3)
    return generator


def test_the_paper_preset_has_the_sizes_of_the_paper() -> None:
    config = preset("paper")
    with torch.device("meta"):
        generator = TriplaneGenerator(config.generator, config.expression.d)
        image = torch.zeros(2, 3, 256, 256)
        assert generator.stem(image)[-1].shape == (2, 256, 32, 32)  # h/4 x H/8 x W/8
        features = generator.encode(image)
        assert features.tokens.shape == (2, 256, 1024)  # H W / 2^8 tokens of h numbers
        planes = generator.generate(features, torch.zeros(2, 256))
        assert planes.shape == (2, 3, 32, 128, 128)  # Eq. 4
        assert generator.average.value.shape == (3, 32, 128, 128)
    assert generator.average.delta == 0.998
    blocks = [*generator.conditioned, *generator.plain]
    assert {block.attention.heads for block in blocks} == {4}  # type: ignore[union-attr]
    assert {block.attention.out.in_features for block in blocks} == {1024}  # type: ignore[union-attr]
    assert all(isinstance(block.norm_attention, EAdaLN) for block in generator.conditioned)
    assert not any(isinstance(module, EAdaLN) for module in generator.plain.modules())


@pytest.mark.parametrize("size", [32, 64, 128])
def test_the_same_weights_fit_every_image_size(size: int) -> None:
    generator = TriplaneGenerator(replace(TINY, image_size=size), EMBEDDING)
    planes = generator(generator.encode(torch.zeros(1, 3, size, size)), torch.zeros(1, EMBEDDING))
    assert planes.shape == (1, 3, 8, size // 2, size // 2)
    reference = TriplaneGenerator(TINY, EMBEDDING).state_dict()
    own = generator.state_dict()
    assert own.keys() == reference.keys()
    assert {name for name in own if own[name].shape != reference[name].shape} <= {"average.value"}


def test_features_of_one_source_serve_a_batch_of_expressions() -> None:
    generator = listening()
    image, embeddings = torch.randn(1, 3, 64, 64), torch.randn(3, EMBEDDING)
    with torch.no_grad():
        once = generator(generator.encode(image).expand(3), embeddings)
        each = generator(generator.encode(image.expand(3, 3, 64, 64)), embeddings)
    torch.testing.assert_close(once, each, rtol=1e-4, atol=1e-5)


def test_expanding_features_copies_nothing() -> None:
    features = SourceFeatures(torch.randn(1, 16, 64), (torch.randn(1, 32, 8, 8), torch.randn(1, 16, 16, 16)))
    many = features.expand(5)
    assert many.tokens.shape == (5, 16, 64)
    assert many.tokens.data_ptr() == features.tokens.data_ptr()
    for after, before in zip(many.stem, features.stem, strict=True):
        assert after.shape == (5, *before.shape[1:])
        assert after.data_ptr() == before.data_ptr()


def test_the_expression_changes_the_planes_once_eadaln_listens() -> None:
    image, one, other = torch.randn(1, 3, 64, 64), torch.zeros(1, EMBEDDING), torch.ones(1, EMBEDDING)

    def planes(generator: TriplaneGenerator, embedding: Tensor) -> Tensor:
        with torch.no_grad():
            planes: Tensor = generator.generate(generator.encode(image), embedding)
            return planes

    new = TriplaneGenerator(TINY, EMBEDDING)
    assert torch.equal(planes(new, one), planes(new, other))
    taught = listening()
    assert (planes(taught, one) - planes(taught, other)).abs().max() > 1e-3


def test_all_that_the_planes_know_of_the_source_are_its_tokens() -> None:
    generator = listening()
    one, other = (generator.encode(torch.randn(1, 3, 64, 64)) for _ in range(2))
    assert one.tokens.shape == (1, 16, 64)
    embedding = torch.randn(1, EMBEDDING)
    with torch.no_grad():
        before, after = (generator(SourceFeatures(one.tokens, stem), embedding) for stem in (one.stem, other.stem))
        assert torch.equal(before, after)
        assert (generator(SourceFeatures(other.tokens, one.stem), embedding) - before).abs().max() > 1e-4


# ---- a path beside the tokens ----------------------------------------------------------------------------------------


def test_a_side_path_is_called_once_per_grid_in_order() -> None:
    """On features of the announced widths, beside a stem of the announced widths, from coarse to fine."""
    generator, seen = listening(), []

    def side(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape))
        return x

    features, embedding = generator.encode(torch.randn(2, 3, 64, 64)), torch.randn(2, EMBEDDING)
    with torch.no_grad():
        beside, alone = (generator.generate(features, embedding, path) for path in (side, None))
    grids = list(zip(TINY.side_widths, (8, 16, 32), strict=True))
    assert seen == [(2, channels, size, size) for (channels, _), size in grids]
    assert [tuple(x.shape) for x in features.stem] == [(2, channels, size, size) for (_, channels), size in grids]
    assert torch.equal(beside, alone)


@pytest.mark.parametrize("grid", range(3))
def test_what_a_side_path_changes_on_any_grid_reaches_the_planes(grid: int) -> None:
    generator = listening()
    features, embedding = generator.encode(torch.randn(1, 3, 64, 64)), torch.randn(1, EMBEDDING)
    calls = iter(range(3))

    def side(x: Tensor) -> Tensor:
        return x + torch.randn_like(x) if next(calls) == grid else x

    with torch.no_grad():
        plain, changed = generator(features, embedding), generator(features, embedding, side)
    assert (changed - plain).abs().max() > 1e-3


# ---- the planes ------------------------------------------------------------------------------------------------------


def test_the_average_is_added_to_what_was_generated() -> None:
    generator = listening()
    generator.average.value.normal_()
    features, embedding = generator.encode(torch.randn(2, 3, 64, 64)), torch.randn(2, EMBEDDING)
    torch.testing.assert_close(
        generator(features, embedding), generator.generate(features, embedding) + generator.average.value
    )


@pytest.mark.parametrize("training", [True, False])
def test_generating_never_changes_the_module(training: bool) -> None:
    generator = listening().train(training)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    generator(generator.encode(torch.randn(2, 3, 64, 64)), torch.randn(2, EMBEDDING))
    for name, value in generator.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_an_item_alone_is_as_it_is_in_a_batch() -> None:
    generator, images, embeddings = listening(), torch.randn(3, 3, 64, 64), torch.randn(3, EMBEDDING)
    with torch.no_grad():
        together = generator(generator.encode(images), embeddings)
        alone = generator(generator.encode(images[1:2]), embeddings[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


def test_every_weight_takes_part() -> None:
    generator = listening()
    for module in generator.modules():  # zero-initialised second convolutions would hide the first
        if isinstance(module, nn.Conv2d) and module.weight.count_nonzero() == 0:
            nn.init.normal_(module.weight, std=0.05)
    planes = generator(generator.encode(torch.randn(2, 3, 64, 64)), torch.randn(2, EMBEDDING))
    (planes * torch.randn_like(planes)).sum().backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


# ---- settings --------------------------------------------------------------------------------------------------------


def test_the_low_pass_of_the_ablation_can_be_left_out() -> None:
    with_filter, without = listening(), TriplaneGenerator(replace(TINY, lowpass_sigma=0.0), EMBEDDING)
    without.load_state_dict(with_filter.state_dict())
    features, embedding = with_filter.encode(torch.randn(1, 3, 64, 64)), torch.zeros(1, EMBEDDING)
    smooth, rough = with_filter(features, embedding), without(features, embedding)
    assert smooth.diff(dim=-1).square().mean() < rough.diff(dim=-1).square().mean()


def test_an_image_of_another_size_is_refused() -> None:
    with pytest.raises(ShapeError, match="source"):
        TriplaneGenerator(TINY, EMBEDDING).encode(torch.zeros(1, 3, 96, 64))


@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": 48},
        {"dim": 40},
        {"mid_channels": 20},
        {"ema_delta": 1.5},
        {"lowpass_sigma": -1.0},
        {"lowpass_sigma": 1e9},
    ],
)
def test_sizes_that_cannot_be_built_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        replace(TINY, **changes)  # type: ignore[arg-type]


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ConfigError, match="heads"):
        TriplaneGenerator(replace(TINY, heads=5), EMBEDDING)
