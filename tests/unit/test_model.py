"""Export3D as a whole: sizes, what is computed once, what never changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from export3d.camera import Camera
from export3d.config import preset, tiny
from export3d.errors import ShapeError
from export3d.model import Export3D
from export3d.triplane.blocks import EAdaLN
from tests.tiny_models import awake, cameras, inputs


@pytest.mark.slow
def test_a_full_size_pass_has_the_sizes_of_the_paper() -> None:
    """Tensors have shapes and no numbers: nothing is computed."""
    with torch.device("meta"):
        model = Export3D(preset("paper"))
    model.to_empty(device="cpu")  # memory that is never touched
    assert model.warp is None
    with FakeTensorMode(allow_non_fake_inputs=True):
        source, expression = torch.zeros(2, 3, 256, 256), torch.zeros(2, 52)
        output = model(source, expression, cameras(2))
        assert output.image is not None
        assert output.image.shape == (2, 3, 256, 256)
        assert output.warped is output.planes.motion is output.planes.source.view is None
        assert output.rendered.raw.shape == (2, 3, 64, 64)
        assert output.rendered.feature.shape == (2, 32, 64, 64)
        assert output.rendered.depth.shape == output.rendered.opacity.shape == (2, 1, 64, 64)
        assert output.generated.shape == (2, 3, 32, 128, 128)
        assert model.expression(expression).shape == (2, 256)


def test_encoding_once_gives_what_a_whole_pass_gives() -> None:
    model = awake()
    source, expression, camera = inputs(3)
    with torch.no_grad():
        whole = model(source, expression, camera)
        planes = model.planes(model.encode(source), expression)
        rendered = model.render(planes, camera)
        frame = model.frame(planes, camera)
    assert whole.image is not None
    assert torch.equal(whole.rendered.feature, rendered.feature)
    assert torch.equal(whole.image.clamp(-1, 1), frame)
    assert torch.equal(whole.generated + model.generator.average.value, planes.triplane)


def test_one_source_serves_many_expressions() -> None:
    model = awake()
    source, expression, camera = inputs(3)
    with torch.no_grad():
        features = model.encode(source[:1])
        together = model.frame(model.planes(features, expression), camera)
        for b in range(3):
            alone = model.frame(model.planes(features, expression[b : b + 1]), camera[b : b + 1])
            torch.testing.assert_close(together[b : b + 1], alone, rtol=1e-4, atol=1e-4)


def test_what_is_known_of_the_source_besides_its_image_changes_nothing() -> None:
    model = awake()
    source, expression, camera = inputs(2)
    known = (camera.flip(0), expression.flip(0), torch.rand(2, 478, 2))
    with torch.no_grad():
        assert torch.equal(model.encode(source).features.tokens, model.encode(source, *known).features.tokens)
        plain, told = model(source, expression, camera), model(source, expression, camera, *known)
    assert torch.equal(plain.image, told.image)


def test_a_slider_moves_lambda_along_its_direction() -> None:
    model = awake()
    source, expression, _ = inputs(3)
    shift = torch.zeros(1, 10)
    shift[0, 3] = 1.5
    with torch.no_grad():
        features = model.encode(source[:1])
        plain, moved = (model.planes(features, expression, by).triplane for by in (None, shift))
        embedding = model.expression.embed(model.expression.coefficients(expression) + shift)
        by_hand = model.generator(features.expand(3).features, embedding)
        each = model.planes(features, expression, torch.cat([torch.zeros(2, 10), shift])).triplane
        beta = embedding - model.expression(expression)
    torch.testing.assert_close(moved, by_hand)
    assert (moved - plain).abs().max() > 1e-3
    torch.testing.assert_close(model.planes(features, expression, 0 * shift).triplane, plain)
    torch.testing.assert_close(each, torch.cat([plain[:2], moved[2:]]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(beta, 1.5 * model.expression.basis()[3].expand(3, -1), rtol=1e-4, atol=1e-5)


def test_a_frozen_encoder_gets_no_gradient_and_the_generator_does() -> None:
    config = replace(tiny(), expression=replace(tiny().expression, frozen=True))
    model = awake(config)
    output = model(*inputs(2))
    assert output.image is not None
    output.image.square().mean().backward()
    assert all(p.grad is None for p in model.expression.parameters())
    modulations = [m.modulation for m in model.modules() if isinstance(m, EAdaLN)]
    assert all(layer.weight.grad is not None and layer.weight.grad.count_nonzero() > 0 for layer in modulations)


def test_sources_and_expressions_that_do_not_pair_are_refused() -> None:
    model = Export3D(tiny())
    features = model.encode(torch.zeros(2, 3, 64, 64))
    with pytest.raises(ShapeError, match="source"):
        model.planes(features, torch.zeros(3, 52))


def test_an_item_alone_is_as_it_is_in_a_batch() -> None:
    model = awake()
    source, expression, camera = inputs(3)
    with torch.no_grad():
        together = model(source, expression, camera)
        alone = model(source[1:2], expression[1:2], camera[1:2])
    assert together.image is not None
    assert alone.image is not None
    torch.testing.assert_close(together.image[1:2], alone.image, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together.rendered.depth[1:2], alone.rendered.depth, rtol=1e-4, atol=1e-4)


def test_the_same_input_gives_the_same_bytes() -> None:
    model = awake()
    source, expression, camera = inputs(1)
    with torch.no_grad():
        first = model.frame(model.planes(model.encode(source), expression), camera)
        torch.manual_seed(5)
        again = model.frame(model.planes(model.encode(source), expression), camera)
    assert torch.equal(first, again)


def test_ray_jitter_changes_the_picture_a_little_and_the_planes_not_at_all() -> None:
    model = awake()
    source, expression, camera = inputs(1)
    with torch.no_grad():
        still = model(source, expression, camera)
        jittered = model(source, expression, camera, jitter=torch.tensor([1]))
    assert torch.equal(still.generated, jittered.generated)
    assert not torch.equal(still.rendered.raw, jittered.rendered.raw)
    assert (still.rendered.raw - jittered.rendered.raw).abs().mean() < 0.1


def test_expression_camera_and_source_each_change_the_picture() -> None:
    model = awake()
    (source, expression, camera), (other_source, other_expression, _) = inputs(1), inputs(1)
    other_camera = cameras(2)[1:]

    def picture(*given: Tensor) -> Tensor:
        with torch.no_grad():
            image: Tensor | None = model(*given).image
        assert image is not None
        return image

    here = picture(source, expression, camera)
    for changed in (
        picture(other_source, expression, camera),
        picture(source, other_expression, camera),
        picture(source, expression, other_camera),
    ):
        assert (changed - here).abs().max() > 1e-4


@pytest.mark.parametrize("training", [True, False])
def test_a_pass_never_changes_the_model(training: bool) -> None:
    model = awake().train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    output = model(*inputs(2), jitter=torch.tensor([0, 1]))
    assert output.image is not None
    output.image.mean().backward()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_every_weight_learns() -> None:
    model = awake()
    for module in model.modules():  # second convolutions that start at zero hide the first from the gradient
        if isinstance(module, nn.Conv2d) and module.weight.count_nonzero() == 0:
            nn.init.normal_(module.weight, std=0.05)
    output = model(*inputs(2))
    assert output.image is not None
    (output.image * torch.randn_like(output.image)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.count_nonzero() > 0, name


@pytest.mark.parametrize("size", [32, 96])
def test_the_model_works_at_other_image_sizes(size: int) -> None:
    config = replace(
        tiny(),
        generator=replace(tiny().generator, image_size=size),
        render=replace(tiny().render, resolution=size // 4),
    )
    output = Export3D(config)(*inputs(1, size))
    assert output.image is not None
    assert output.image.shape == (1, 3, size, size)
    assert output.rendered.raw.shape == (1, 3, size // 4, size // 4)


def test_phases_may_render_fewer_rays_and_leave_super_resolution_out() -> None:
    model = Export3D(tiny())
    source, expression, camera = inputs(1)
    output = model(source, expression, camera, resolution=8)
    assert output.image is not None
    assert output.image.shape == (1, 3, 32, 32)
    raw_only = model(source, expression, camera, superres=False)
    assert raw_only.image is None
    assert raw_only.rendered.raw.shape == (1, 3, 16, 16)


def test_a_final_frame_stays_within_the_range_of_pictures() -> None:
    model = awake()
    nn.init.constant_(model.superres.high_rgb.bias, 3.0)  # type: ignore[arg-type]
    source, expression, camera = inputs(1)
    with torch.no_grad():
        frame = model.frame(model.planes(model.encode(source), expression), camera)
    assert frame.max() == 1.0
    assert frame.min() >= -1.0


def test_a_pass_under_bfloat16_autocast_stays_near_the_float32_one() -> None:
    model, given = awake(), inputs(1)
    with torch.no_grad():
        exact = model(*given)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model(*given)
    assert rough.rendered.raw.dtype == torch.float32
    assert (rough.rendered.raw - exact.rendered.raw).abs().mean() < 0.02


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which the compiler looks at
@pytest.mark.parametrize("name", ["paper", "base"])
def test_the_costly_parts_compile_whole(name: str) -> None:
    """Without a break of the graph, in training: generator, renderer, super-resolution and dense motion."""
    plain = preset("tiny")
    model = Export3D(plain if name == "paper" else replace(plain, warp=preset("base").warp))
    keys, size = list(model.state_dict()), plain.image_size
    view = torch.from_numpy(np.stack([Camera.orbit(yaw).label for yaw in (5.0, -10.0)])).float()
    given = (
        torch.rand(2, 3, size, size), torch.rand(2, 52), view, view, torch.rand(2, 52), torch.rand(2, 478, 2),
        torch.rand(2, 1, size, size), torch.arange(2),
    )  # fmt: skip
    compiled, graphs = copy.deepcopy(model), []

    def backend(graph: torch.fx.GraphModule, example: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    compiled.compile(backend=backend, fullgraph=True)
    results = []
    for one in (model, compiled):
        out = one(*given)
        (out.image.square().mean() + out.rendered.raw.square().mean()).backward()
        # what draws closed mouths runs only when compiled
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in one.parameters()]
        results.append((out.image, out.rendered.feature, gradients))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
    assert len(graphs) == (3 if name == "paper" else 4)
    assert list(compiled.state_dict()) == keys
