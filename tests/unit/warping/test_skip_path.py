"""The skip path: gates, the flow's refinement, and the walk through the generator's grids."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from export3d.config import preset
from export3d.errors import ConfigError
from export3d.triplane.blocks import EAdaLN
from export3d.triplane.generator import GeneratorConfig, TriplaneGenerator
from export3d.warping.flow_field import look_up, stretch
from export3d.warping.skip_path import FlowStep, GatedSkip, SkipPath

TINY = preset("tiny").generator
EMBEDDING = 12
GRIDS = (8, 16, 32)
"""H/8, H/4 and H/2 of 64 pixels."""


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


def new(flow: bool = False, redraw: bool = False) -> SkipPath:
    return SkipPath(TINY.side_widths, flow, redraw)


def moving(path: SkipPath) -> SkipPath:
    """The same path with features that change the flow (those of new ones do not), where it has any."""
    for module in path.modules():
        if isinstance(module, FlowStep):
            nn.init.normal_(module.change.weight, std=0.1)
    return path


def features(batch: int = 2) -> tuple[list[Tensor], list[Tensor]]:
    """The generator's and the stem's features of the three grids."""
    sizes = list(zip(TINY.side_widths, GRIDS, strict=True))
    return tuple([torch.randn(batch, pair[which], size, size) for pair, size in sizes] for which in (0, 1))


# ---- gates -----------------------------------------------------------------------------------------------------------


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
    assert len(new().gates) == 3
    for gate in new().gates:
        assert isinstance(gate, GatedSkip)
        x = torch.randn(1, gate.gate.in_channels, 4, 4) * 10
        torch.testing.assert_close(torch.sigmoid(gate.gate(x)), torch.full_like(x, 0.8808), atol=1e-4, rtol=0)


# ---- the flow's refinement -------------------------------------------------------------------------------------------


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


def zoom(x: float, y: float, size: int = 32) -> Tensor:
    """The flow (1, 2, size, size) that looks up x and y at these multiples of the place."""
    places = torch.linspace(-1 + 1 / size, 1 - 1 / size, size)
    return torch.stack([((x - 1) * places).expand(size, size), ((y - 1) * places)[:, None].expand(size, size)])[None]


def test_a_closed_gate_hides_the_source_only_where_the_flow_stretches_it() -> None:
    step = new(flow=True, redraw=True).flows[0]
    assert isinstance(step, FlowStep)
    assert step.closes is not None
    nn.init.constant_(step.closes, 5.0)
    flow = zoom(1.0, 1.0)
    flow[..., 12:20, 12:20] = zoom(0.2, 0.2)[..., 12:20, 12:20]
    closing = step.closing(flow)
    assert closing is not None
    assert closing[..., 14:18, 14:18].min() > 20.0
    assert closing[..., :8, :8].abs().max() < 1e-4


def test_without_redraw_stretching_closes_nothing() -> None:
    for step in new(flow=True).flows:
        assert isinstance(step, FlowStep)
        assert step.closing(zoom(0.1, 0.1)) is None


# ---- one walk --------------------------------------------------------------------------------------------------------


def test_a_walk_goes_through_the_three_grids_in_order() -> None:
    """Each call is the next grid's gate with the next features of the stem."""
    path, (own, stem) = new(), features()
    for gate in path.gates:
        nn.init.normal_(gate.gate.weight)
    walk = path.walk(stem, None)
    for x, skip, gate in zip(own, stem, path.gates, strict=True):
        torch.testing.assert_close(walk(x), gate(x, skip), rtol=0, atol=0)
    with pytest.raises(IndexError):
        walk(own[-1])


def test_a_walk_out_of_order_does_not_fit() -> None:
    path, (own, stem) = new(), features()
    with pytest.raises(RuntimeError):
        path.walk(stem, None)(own[1])


def test_a_walk_with_a_flow_moves_the_stem_by_what_the_grids_before_have_added_up() -> None:
    path, (own, stem), given = moving(new(flow=True, redraw=True)), features(), field(2)
    for step in path.flows:
        nn.init.normal_(step.closes, std=0.5)
    walk, change = path.walk(stem, given), None
    for x, skip, gate, step in zip(own, stem, path.gates, path.flows, strict=True):
        flow, change = step(x, given, change)
        torch.testing.assert_close(walk(x), gate(x, look_up(skip, flow), step.closing(flow)), rtol=1e-4, atol=1e-4)
        assert torch.equal(walk.flow, flow)
    assert walk.flow.shape == given.shape
    assert (walk.flow - given).abs().max() > 1e-3


def test_a_walk_has_no_flow_before_its_first_step_and_none_without_a_field() -> None:
    own, stem = features()
    walk = new(flow=True).walk(stem, field(2))
    assert walk.flow is None
    walk(own[0])
    assert walk.flow.shape == (2, 2, 8, 8)
    still = new().walk(stem, None)
    for x in own:
        still(x)
    assert still.flow is None


def test_each_walk_begins_anew() -> None:
    path, (own, stem), given = moving(new(flow=True)), features(), field(2)
    first, second = ([walk(x) for x in own] for walk in (path.walk(stem, given), path.walk(stem, given)))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("flow", "given"), [(True, None), (False, field(1))])
def test_a_flow_needs_the_landmarks_field_and_without_it_a_path_takes_none(flow: bool, given: Tensor | None) -> None:
    with pytest.raises(ConfigError, match="landmarks' field"):
        new(flow).walk(features(1)[1], given)


# ---- beside the generator --------------------------------------------------------------------------------------------


def planes(
    generator: TriplaneGenerator, path: SkipPath | None, image: Tensor, embedding: Tensor, given: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The planes before the tri-plane EMA is added, and the refined flow."""
    encoded = generator.encode(image)
    walk = None if path is None else path.walk(encoded.stem, given)
    return generator.generate(encoded, embedding, walk), None if walk is None else walk.flow


@pytest.mark.parametrize("size", [32, 64, 128])
def test_the_same_weights_fit_every_image_size(size: int) -> None:
    config = replace(TINY, image_size=size)
    path = moving(SkipPath(config.side_widths, flow=True, redraw=True))
    image, embedding = torch.zeros(1, 3, size, size), torch.zeros(1, EMBEDDING)
    found, flow = planes(TriplaneGenerator(config, EMBEDDING), path, image, embedding, field(1, size))
    assert found.shape == (1, 3, 8, size // 2, size // 2)
    assert flow.shape == (1, 2, size // 2, size // 2)
    own, reference = path.state_dict(), new(flow=True, redraw=True).state_dict()
    assert {name: value.shape for name, value in own.items()} == {n: v.shape for n, v in reference.items()}


@pytest.mark.parametrize("flow", [False, True], ids=["skip", "flow"])
def test_features_of_one_source_serve_a_batch_of_expressions(flow: bool) -> None:
    generator, path = listening(), moving(new(flow))
    image, embeddings = torch.randn(1, 3, 64, 64), torch.randn(3, EMBEDDING)
    given = field(3) if flow else None
    with torch.no_grad():
        one, three = (generator.encode(image.expand(batch, 3, 64, 64)) for batch in (1, 3))
        once = generator(one.expand(3), embeddings, path.walk(one.expand(3).stem, given))
        each = generator(three, embeddings, path.walk(three.stem, given))
    torch.testing.assert_close(once, each, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level", range(3))
def test_each_skip_carries_what_the_tokens_do_not(level: int) -> None:
    generator, path = listening(), new()
    one, other = (generator.encode(torch.randn(1, 3, 64, 64)) for _ in range(2))
    stem = [*one.stem]
    stem[level] = other.stem[level]
    embedding = torch.zeros(1, EMBEDDING)
    before = generator.generate(one, embedding, path.walk(one.stem, None))
    after = generator.generate(one, embedding, path.walk(stem, None))
    assert (after - before).abs().max() > 1e-4


def test_a_new_flow_is_what_landmarks_tell_and_without_motion_changes_nothing() -> None:
    generator, still, flowing = listening(), new(), new(flow=True)
    missing, unexpected = flowing.load_state_dict(still.state_dict(), strict=False)
    assert not unexpected
    assert missing
    assert all(name.startswith("flows.") for name in missing)
    image, embedding = torch.randn(2, 3, 64, 64), torch.randn(2, EMBEDDING)
    with torch.no_grad():
        expected, nothing = planes(generator, still, image, embedding)
        found, flow = planes(generator, flowing, image, embedding, torch.zeros(2, 2, 32, 32))
        moved, told = planes(generator, flowing, image, embedding, given := field(2))
    assert nothing is None
    assert torch.equal(flow, torch.zeros(2, 2, 32, 32))
    torch.testing.assert_close(told, given)
    assert (moved - found).abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_new_flow_can_learn() -> None:
    path, given = new(flow=True), field(2).requires_grad_()
    _, flow = planes(listening(), path, torch.randn(2, 3, 64, 64), torch.randn(2, EMBEDDING), given)
    (flow - 0.1).square().mean().backward()
    assert given.grad is not None
    assert given.grad.count_nonzero() == given.numel()
    for layer in (step.change for step in path.flows):
        assert layer.weight.grad.count_nonzero() > 0
        assert layer.bias.grad.count_nonzero() > 0


def test_a_new_redraw_changes_nothing_and_can_learn() -> None:
    generator, flowing, redrawing = listening(), moving(new(flow=True)), new(flow=True, redraw=True)
    missing, unexpected = redrawing.load_state_dict(flowing.state_dict(), strict=False)
    assert not unexpected
    assert missing == [f"flows.{level}.closes" for level in range(3)]
    image, given, embedding = torch.randn(1, 3, 64, 64), field(1), torch.randn(1, EMBEDDING)
    found, flow = planes(generator, redrawing, image, embedding, given)
    with torch.no_grad():
        torch.testing.assert_close(found, planes(generator, flowing, image, embedding, given)[0])
    assert stretch(flow).max() > 0.05
    found.square().mean().backward()
    for step in redrawing.flows:
        assert step.closes.grad.count_nonzero() > 0


@pytest.mark.parametrize("part", ["flow", "redraw"])
def test_every_weight_takes_part(part: str) -> None:
    generator, path = listening(), moving(new(flow=True, redraw=part == "redraw"))
    for module in (*generator.modules(), *path.modules()):  # second convolutions at zero would hide the first
        if isinstance(module, nn.Conv2d) and module.weight.count_nonzero() == 0:
            nn.init.normal_(module.weight, std=0.05)
    found, _ = planes(generator, path, torch.randn(2, 3, 64, 64), torch.randn(2, EMBEDDING), field(2))
    (found * torch.randn_like(found)).sum().backward()
    for name, parameter in (*generator.named_parameters(), *path.named_parameters()):
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_a_path_whose_gates_are_shut_leaves_the_papers_generator() -> None:
    generator, path = listening(), new()
    for gate in path.gates:
        nn.init.constant_(gate.gate.bias, -200.0)
    image, embedding = torch.randn(1, 3, 64, 64), torch.randn(1, EMBEDDING)
    found, wanted = (planes(generator, given, image, embedding)[0] for given in (path, None))
    assert torch.equal(found, wanted)
