"""The hybrid tri-plane generator: sizes of the paper, and what depends on what."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from export3d.config import preset
from export3d.errors import ConfigError, ShapeError
from export3d.triplane.blocks import EAdaLN
from export3d.triplane.generator import GeneratorConfig, SourceFeatures, TriplaneGenerator
from export3d.warping.flow_field import stretch, warp
from export3d.warping.landmark_motion import Face
from export3d.warping.skip_path import FlowStep, GatedSkip

TINY = preset("tiny").generator
FLOWING = replace(TINY, skip=True, flow=True)
EMBEDDING = 12


def field(batch: int, size: int = 64) -> Tensor:
    """(B, 2, H/2, W/2): what landmarks tell of the flow, here smooth noise."""
    coarse = 0.1 * torch.randn(batch, 2, 4, 4)
    return nn.functional.interpolate(coarse, size // 2, mode="bilinear", align_corners=False)


def listening(config: GeneratorConfig = TINY) -> TriplaneGenerator:
    """A generator whose EAdaLN already answer to the expression (new ones are deaf)."""
    generator = TriplaneGenerator(config, EMBEDDING)
    for module in generator.modules():
        if isinstance(module, EAdaLN):
            nn.init.normal_(module.modulation.weight, std=0.3)
    return generator


def moving(generator: TriplaneGenerator) -> TriplaneGenerator:
    """The same generator with features that change the flow (those of new ones do not), where it has any."""
    for module in generator.modules():
        if isinstance(module, FlowStep):
            nn.init.normal_(module.change.weight, std=0.1)
    return generator


def test_the_paper_preset_has_the_sizes_of_the_paper() -> None:
    config = preset("paper")
    with torch.device("meta"):
        generator = TriplaneGenerator(config.generator, config.expression.d)
        image = torch.zeros(2, 3, 256, 256)
        assert generator.stem(image)[-1].shape == (2, 256, 32, 32)  # h/4 x H/8 x W/8
        features = generator.encode(image)
        assert features.tokens.shape == (2, 256, 1024)  # H W / 2^8 tokens of h numbers
        assert features.skips == ()
        planes, flow = generator.generate(features, torch.zeros(2, 256))
        assert flow is None
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
    config = replace(FLOWING, image_size=size)
    generator = TriplaneGenerator(config, EMBEDDING)
    planes = generator(generator.encode(torch.zeros(1, 3, size, size)), torch.zeros(1, EMBEDDING), field(1, size))
    assert planes.shape == (1, 3, 8, size // 2, size // 2)
    reference = TriplaneGenerator(FLOWING, EMBEDDING).state_dict()
    own = generator.state_dict()
    assert own.keys() == reference.keys()
    assert {name for name in own if own[name].shape != reference[name].shape} <= {"average.value"}


@pytest.mark.parametrize("config", [TINY, replace(TINY, skip=True), FLOWING], ids=["tokens", "skip", "flow"])
def test_features_of_one_source_serve_a_batch_of_expressions(config: GeneratorConfig) -> None:
    generator = moving(listening(config))
    image, embeddings = torch.randn(1, 3, 64, 64), torch.randn(3, EMBEDDING)
    given = field(3) if config.flow else None
    with torch.no_grad():
        once = generator(generator.encode(image).expand(3), embeddings, given)
        each = generator(generator.encode(image.expand(3, 3, 64, 64)), embeddings, given)
    torch.testing.assert_close(once, each, rtol=1e-4, atol=1e-5)


def test_expanding_features_copies_nothing() -> None:
    skips = (torch.randn(1, 32, 8, 8), torch.randn(1, 16, 16, 16))
    face = Face(*(torch.randn(1, *shape) for shape in ((EMBEDDING,), (470, 2), (470, 2), (478, 3), (32,))))
    features = SourceFeatures(torch.randn(1, 16, 64), skips, face)
    many = features.expand(5)
    assert many.face is not None
    assert many.face.points.shape == (5, 478, 3)
    assert many.face.points.data_ptr() == face.points.data_ptr()
    assert SourceFeatures(torch.randn(1, 16, 64)).expand(2).face is None
    assert many.tokens.shape == (5, 16, 64)
    assert many.tokens.data_ptr() == features.tokens.data_ptr()
    for after, before in zip(many.skips, features.skips, strict=True):
        assert after.shape == (5, *before.shape[1:])
        assert after.data_ptr() == before.data_ptr()


def test_the_expression_changes_the_planes_once_eadaln_listens() -> None:
    image, one, other = torch.randn(1, 3, 64, 64), torch.zeros(1, EMBEDDING), torch.ones(1, EMBEDDING)

    def planes(generator: TriplaneGenerator, embedding: Tensor) -> Tensor:
        with torch.no_grad():
            planes: Tensor = generator.generate(generator.encode(image), embedding)[0]
            return planes

    new = TriplaneGenerator(TINY, EMBEDDING)
    assert torch.equal(planes(new, one), planes(new, other))
    taught = listening()
    assert (planes(taught, one) - planes(taught, other)).abs().max() > 1e-3


def test_without_the_skip_all_that_is_kept_of_the_source_are_its_tokens() -> None:
    features = TriplaneGenerator(TINY, EMBEDDING).encode(torch.randn(2, 3, 64, 64))
    assert features.skips == ()
    assert features.tokens.shape == (2, 16, 64)


@pytest.mark.parametrize("level", range(3))
def test_each_skip_carries_what_the_tokens_do_not(level: int) -> None:
    generator = listening(replace(TINY, skip=True))
    one, other = (generator.encode(torch.randn(1, 3, 64, 64)) for _ in range(2))
    skips = [*one.skips]
    skips[level] = other.skips[level]
    embedding = torch.zeros(1, EMBEDDING)
    before, _ = generator.generate(one, embedding)
    after, _ = generator.generate(SourceFeatures(one.tokens, tuple(skips)), embedding)
    assert (after - before).abs().max() > 1e-4


def test_a_gate_lets_through_what_the_features_ask_for() -> None:
    gate = GatedSkip(6, 4)
    x, skip = torch.randn(2, 6, 5, 5), torch.randn(2, 4, 5, 5)
    opening = torch.sigmoid(torch.tensor(2.0))
    torch.testing.assert_close(gate(x, skip), x + opening * gate.project(skip))  # the same everywhere at first
    nn.init.constant_(gate.gate.bias, -50.0)  # type: ignore[arg-type]
    torch.testing.assert_close(gate(x, skip), x)
    nn.init.normal_(gate.gate.weight, std=5.0)
    nn.init.zeros_(gate.gate.bias)  # type: ignore[arg-type]
    expected = x + torch.sigmoid(gate.gate(x)) * gate.project(skip)
    torch.testing.assert_close(gate(x, skip), expected)


def test_what_closes_a_gate_is_taken_from_its_logits() -> None:
    gate = GatedSkip(6, 4)
    x, skip = torch.randn(1, 6, 5, 5), torch.randn(1, 4, 5, 5)
    closing = torch.zeros(1, 6, 5, 5)
    closing[..., :2] = 50.0
    found = gate(x, skip, closing)
    torch.testing.assert_close(found[..., :2], x[..., :2])
    torch.testing.assert_close(found[..., 2:], gate(x, skip)[..., 2:])


def test_gates_start_almost_open_for_every_feature() -> None:
    for gate in TriplaneGenerator(replace(TINY, skip=True), EMBEDDING).skips:
        assert isinstance(gate, GatedSkip)
        x = torch.randn(1, gate.gate.in_channels, 4, 4) * 10
        torch.testing.assert_close(torch.sigmoid(gate.gate(x)), torch.full_like(x, 0.8808), atol=1e-4, rtol=0)


def test_the_average_is_added_to_what_was_generated() -> None:
    generator = listening()
    generator.average.value.normal_()
    features, embedding = generator.encode(torch.randn(2, 3, 64, 64)), torch.randn(2, EMBEDDING)
    torch.testing.assert_close(
        generator(features, embedding), generator.generate(features, embedding)[0] + generator.average.value
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
    generator = moving(listening(FLOWING))
    for module in generator.modules():  # zero-initialised second convolutions would hide the first
        if isinstance(module, nn.Conv2d) and module.weight.count_nonzero() == 0:
            nn.init.normal_(module.weight, std=0.05)
    planes = generator(generator.encode(torch.randn(2, 3, 64, 64)), torch.randn(2, EMBEDDING), field(2))
    (planes * torch.randn_like(planes)).sum().backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


# ---- flow ------------------------------------------------------------------------------------------------------------


def test_a_new_flow_is_what_landmarks_tell_and_without_motion_changes_nothing() -> None:
    still, flowing = listening(replace(TINY, skip=True)), listening(FLOWING)
    missing, unexpected = flowing.load_state_dict(still.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith("flows.") for name in missing)
    image, embedding = torch.randn(2, 3, 64, 64), torch.randn(2, EMBEDDING)
    with torch.no_grad():
        expected, nothing = still.generate(still.encode(image), embedding)
        found, flow = flowing.generate(flowing.encode(image), embedding, torch.zeros(2, 2, 32, 32))
        moved, told = flowing.generate(flowing.encode(image), embedding, given := field(2))
    assert nothing is None
    assert torch.equal(flow, torch.zeros(2, 2, 32, 32))
    torch.testing.assert_close(told, given)
    assert (moved - found).abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_new_flow_can_learn() -> None:
    generator = listening(FLOWING)
    given = field(2).requires_grad_()
    _, flow = generator.generate(generator.encode(torch.randn(2, 3, 64, 64)), torch.randn(2, EMBEDDING), given)
    (flow - 0.1).square().mean().backward()
    assert given.grad is not None
    assert given.grad.count_nonzero() == given.numel()
    for layer in (step.change for step in generator.flows):
        assert layer.weight.grad.count_nonzero() > 0
        assert layer.bias.grad.count_nonzero() > 0


def test_each_step_adds_its_change_to_the_coarser_one_and_to_the_field() -> None:
    step, x = FlowStep(6), torch.randn(1, 6, 8, 8)
    told, coarser = torch.randn(1, 2, 1, 1).expand(1, 2, 16, 16), torch.randn(1, 2, 1, 1).expand(1, 2, 4, 4)
    told_here, coarser_here = told[..., :8, :8], coarser[..., :1, :1].expand(1, 2, 8, 8)
    flow, change = step(x, told, None)
    torch.testing.assert_close(flow, told_here)  # nothing of its own at first
    assert torch.equal(change, torch.zeros(1, 2, 8, 8))
    nn.init.normal_(step.change.weight)
    flow, change = step(x, told, coarser)
    torch.testing.assert_close(change, 0.1 * step.change(x) + coarser_here)
    torch.testing.assert_close(flow, told_here + change)


def test_a_warp_by_a_constant_shifts() -> None:
    """In grid units a pixel is 2 / W: every place shows what lies so far to its right, or below it."""
    features = torch.randn(2, 3, 8, 16)
    right, down = torch.zeros(2, 2, 8, 16), torch.zeros(2, 2, 8, 16)
    right[:, 0], down[:, 1] = 3 * 2 / 16, 2 * 2 / 8
    torch.testing.assert_close(warp(features, torch.zeros(2, 2, 8, 16)), features, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(warp(features, right)[..., :-3], features[..., 3:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(warp(features, right)[..., -3:], features[..., -1:].expand(2, 3, 8, 3))  # the border
    torch.testing.assert_close(warp(features, down)[..., :-2, :], features[..., 2:, :], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("config", "given"), [(FLOWING, None), (replace(TINY, skip=True), field(1))])
def test_a_flow_needs_the_skip_and_the_landmarks_field_and_without_it_takes_none(
    config: GeneratorConfig, given: Tensor | None
) -> None:
    with pytest.raises(ConfigError, match="skip"):
        replace(TINY, flow=True)
    generator = TriplaneGenerator(config, EMBEDDING)
    with pytest.raises(ConfigError, match="landmarks' field"):
        generator.generate(generator.encode(torch.zeros(1, 3, 64, 64)), torch.zeros(1, EMBEDDING), given)


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
    "changes", [{"image_size": 48}, {"dim": 40}, {"mid_channels": 20}, {"ema_delta": 1.5}, {"lowpass_sigma": -1.0}]
)
def test_sizes_that_cannot_be_built_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        replace(TINY, **changes)  # type: ignore[arg-type]


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ConfigError, match="heads"):
        TriplaneGenerator(replace(TINY, heads=5), EMBEDDING)


# ---- redraw ----------------------------------------------------------------------------------------------------------


def zoom(x: float, y: float, size: int = 32) -> Tensor:
    """The flow (1, 2, size, size) that looks up x and y at these multiples of the place."""
    places = torch.linspace(-1 + 1 / size, 1 - 1 / size, size)
    return torch.stack([((x - 1) * places).expand(size, size), ((y - 1) * places)[:, None].expand(size, size)])[None]


@pytest.mark.parametrize(
    ("x", "y", "wanted"), [(1.0, 1.0, 0.0), (0.5, 1.0, 0.5), (0.5, 0.5, 0.75), (2.0, 1.0, 0.0), (0.0, 1.0, 1.0)]
)
def test_stretch_is_the_share_of_a_place_that_the_source_does_not_cover(x: float, y: float, wanted: float) -> None:
    inner = stretch(zoom(x, y))[..., 1:-1, 1:-1]
    torch.testing.assert_close(inner, torch.full_like(inner, wanted), atol=1e-5, rtol=0)


def test_turning_the_source_does_not_stretch_it() -> None:
    size, angle = 32, 0.3
    y, x = torch.meshgrid(*(torch.linspace(-1 + 1 / size, 1 - 1 / size, size),) * 2, indexing="ij")
    cos, sin = np.cos(angle), np.sin(angle)
    flow = torch.stack([cos * x - sin * y - x, sin * x + cos * y - y])[None]
    assert stretch(flow)[..., 1:-1, 1:-1].max() < 1e-5


def test_a_new_redraw_changes_nothing_and_can_learn() -> None:
    flowing, redrawing = moving(listening(FLOWING)), listening(replace(FLOWING, redraw=True))
    missing, unexpected = redrawing.load_state_dict(flowing.state_dict(), strict=False)
    assert not unexpected
    assert missing == [f"flows.{level}.closes" for level in range(3)]
    image, given, embedding = torch.randn(1, 3, 64, 64), field(1), torch.randn(1, EMBEDDING)
    planes, flow = redrawing.generate(redrawing.encode(image), embedding, given)
    with torch.no_grad():
        torch.testing.assert_close(planes, flowing.generate(flowing.encode(image), embedding, given)[0])
    assert stretch(flow).max() > 0.05
    planes.square().mean().backward()
    for step in redrawing.flows:
        assert step.closes.grad.count_nonzero() > 0


def test_a_closed_gate_hides_the_source_only_where_the_flow_stretches_it() -> None:
    generator = listening(replace(FLOWING, redraw=True))
    step = generator.flows[0]
    nn.init.constant_(step.closes, 5.0)
    flow = zoom(1.0, 1.0)
    flow[..., 12:20, 12:20] = zoom(0.2, 0.2)[..., 12:20, 12:20]
    closing = step.closing(flow)
    assert closing[..., 14:18, 14:18].min() > 20.0
    assert closing[..., :8, :8].abs().max() < 1e-4


def test_redraw_needs_a_flow() -> None:
    with pytest.raises(ConfigError, match="redraw looks at the flow"):
        replace(TINY, skip=True, redraw=True)
