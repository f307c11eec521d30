"""Export3D as a whole: sizes, budgets, what is computed once, what never changes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from export3d.camera import Camera, projected
from export3d.config import ModelConfig, no_dense, preset, tiny
from export3d.errors import ConfigError, ShapeError
from export3d.image import resize
from export3d.model import Export3D
from export3d.triplane.blocks import EAdaLN
from export3d.warping.average_head import frontal_view, turned_flow
from export3d.warping.dense_motion import CANDIDATES, DenseMotion
from export3d.warping.detail import Detail
from export3d.warping.elastic_mesh import show
from export3d.warping.flow_field import pixel_grid
from export3d.warping.flows import driving_flow, plane_flow
from export3d.warping.landmark_motion import LandmarkMotion, average_landmarks
from export3d.warping.skip_path import FlowStep

EXTENDED = replace(
    tiny(),
    generator=replace(tiny().generator, skip=True, align=True, flow=True, redraw=True),
    superres=replace(tiny().superres, detail=True, dense=True),
)
"""What `base` adds to the paper's form, at the size of `tiny`."""


def cameras(count: int) -> Tensor:
    return torch.from_numpy(np.stack([Camera.orbit(15.0 * b, 5.0 * b).label for b in range(count)])).float()


def awake(config: ModelConfig | None = None) -> Export3D:
    """A model whose zero-initialised branches (EAdaLN, flow, RGB of super-resolution) do something."""
    model = Export3D(config or tiny()).eval()
    for module in model.modules():
        if isinstance(module, EAdaLN):
            nn.init.normal_(module.modulation.weight, std=1.0)
        if isinstance(module, LandmarkMotion):
            for layer in (module.depth, module.out):
                nn.init.normal_(layer.weight, std=0.05)
        if isinstance(module, FlowStep):
            nn.init.normal_(module.change.weight, std=0.05)
            if module.closes is not None:
                nn.init.normal_(module.closes, std=0.5)
        if isinstance(module, Detail):
            for layer in (module.choice, module.lean):
                nn.init.normal_(layer.weight, std=0.3)
        if isinstance(module, DenseMotion):
            for layer in (module.share, module.beyond):
                nn.init.normal_(layer.weight, std=0.1)
    for layer in (model.superres.mid_rgb, model.superres.high_rgb):
        nn.init.normal_(layer.weight, std=0.05)
    return model


def inputs(batch: int, size: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    return torch.rand(batch, 3, size, size) * 2 - 1, torch.rand(batch, 52), cameras(batch)


def landmarks(camera: Tensor) -> Tensor:
    """(B, 478, 2) of the average head, as cameras (B, 25) see it."""
    return projected(average_landmarks().expand(len(camera), -1, -1), camera)[0]


@contextlib.contextmanager
def full_size(name: str) -> Iterator[Export3D]:
    """A preset at full size, without gradients.

    Of `paper`, which is large, tensors have shapes and no numbers: nothing is computed. What the sheet of the others
    paints depends on numbers.
    """
    if name == "paper":
        with torch.device("meta"):
            model = Export3D(preset(name))
        model.to_empty(device="cpu")  # memory that is never touched
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield model
    else:
        with torch.no_grad():
            yield Export3D(preset(name)).eval()


@pytest.mark.parametrize("name", ["paper", "base"])
def test_a_full_size_pass_has_the_sizes_of_the_paper(name: str) -> None:
    camera, seen = cameras(2), landmarks(cameras(2))
    with full_size(name) as model:
        source, expression = torch.zeros(2, 3, 256, 256), torch.zeros(2, 52)
        output = model(source, expression, camera, camera, expression, seen)
        assert output.image is not None
        assert output.image.shape == (2, 3, 256, 256)
        assert (output.planes.flow is None) == (output.planes.points is None) == (name == "paper")
        planes = 128 if name == "paper" else 64  # base's generator sees the source at half its size
        assert output.planes.flow is None or output.planes.flow.shape == (2, 2, planes, planes)
        assert output.planes.points is None or output.planes.points.shape == (2, 478, 3)
        assert output.rendered.raw.shape == (2, 3, 64, 64)
        assert output.rendered.feature.shape == (2, 32, 64, 64)
        assert output.rendered.depth.shape == output.rendered.opacity.shape == (2, 1, 64, 64)
        assert output.generated.shape == (2, 3, 32, planes, planes)
        assert model.expression(expression).shape == (2, 256)


def test_what_ships_keeps_to_its_budget() -> None:
    """At most 30 M parameters, and 20 GFLOP a driven frame once the source is encoded (a multiply-add is two)."""
    camera, seen = cameras(1), landmarks(cameras(1))
    with full_size("base") as model:
        assert sum(p.numel() for p in model.parameters()) <= 30e6
        features = model.encode(torch.zeros(1, 3, 256, 256), camera, torch.zeros(1, 52), seen)
        with FlopCounterMode(display=False) as counter:
            model.frame(model.planes(features, torch.zeros(1, 52)), camera)
        parts = counter.get_flop_counts()
        assert 1e9 < counter.get_total_flops() <= 20e9
        # the decoder's layers are in the count: 64 x 64 rays, a hidden layer and two heads a sample
        rays, c = 64 * 64, model.config
        decoded = 2 * rays * (c.render.coarse + c.render.fine) * (32 * c.render.hidden + c.render.hidden * 33)
        assert sum(parts["Global"].values()) > decoded


@pytest.mark.parametrize("config", [tiny(), EXTENDED], ids=["paper's form", "extended"])
def test_encoding_once_gives_what_a_whole_pass_gives(config: ModelConfig) -> None:
    model = awake(config)
    source, expression, camera = inputs(3)
    with torch.no_grad():
        own = (camera.flip(0), expression.flip(0), landmarks(camera.flip(0)))
        whole = model(source, expression, camera, *own)
        planes = model.planes(model.encode(source, *own), expression)
        rendered = model.render(planes, camera)
        frame = model.frame(planes, camera)
    assert whole.image is not None
    assert torch.equal(whole.rendered.feature, rendered.feature)
    assert torch.equal(whole.image.clamp(-1, 1), frame)
    assert torch.equal(whole.generated + model.generator.average.value, planes.triplane)


@pytest.mark.parametrize("config", [tiny(), EXTENDED], ids=["paper's form", "extended"])
def test_one_source_serves_many_expressions(config: ModelConfig) -> None:
    model = awake(config)
    source, expression, camera = inputs(3)
    with torch.no_grad():
        features = model.encode(source[:1], camera[2:], expression[2:], landmarks(camera[2:]))
        together = model.frame(model.planes(features, expression), camera)
        for b in range(3):
            alone = model.frame(model.planes(features, expression[b : b + 1]), camera[b : b + 1])
            torch.testing.assert_close(together[b : b + 1], alone, rtol=1e-4, atol=1e-4)


def test_a_model_that_aligns_asks_for_the_camera_of_the_source_and_uses_it() -> None:
    config = replace(EXTENDED, generator=replace(EXTENDED.generator, flow=False, redraw=False))
    model = awake(replace(config, superres=replace(config.superres, detail=False, dense=False)))
    assert model.motion is None
    source, _, _ = inputs(1)
    with pytest.raises(ConfigError, match="camera"):
        model.encode(source)
    here, there = (model.encode(source, camera[None]) for camera in cameras(2))
    assert not torch.equal(here.tokens, there.tokens)


@pytest.mark.parametrize("align", [True, False])
def test_a_model_with_a_flow_asks_for_the_sources_expression_and_landmarks_too_and_uses_all(align: bool) -> None:
    model = awake(replace(EXTENDED, generator=replace(EXTENDED.generator, align=align)))
    source, expression, camera = inputs(2)
    source, driving, seen = source[:1], torch.rand(1, 52), landmarks(camera)
    known = (camera[:1], expression[:1], seen[:1])
    for missing in range(3):
        given = [None if number == missing else value for number, value in enumerate(known)]
        with pytest.raises(ConfigError, match=r"give encode\(\) the source's camera, expression and landmarks"):
            model.encode(source, *given)
    with torch.no_grad():
        flows = [
            model(source, driving, camera[:1], camera[c : c + 1], expression[e : e + 1], seen[s : s + 1]).planes.flow
            for c, e, s in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
        ]
    assert flows[0].shape == (1, 2, 32, 32)
    for other in flows[1:]:
        assert (other - flows[0]).abs().max() > 1e-4


def test_landmarks_stay_where_the_source_has_them_while_nothing_changes() -> None:
    """By the source's own expression and camera, whatever the weights are and through the whole model."""
    model = awake(EXTENDED)
    source, expression, camera = inputs(3)
    with torch.no_grad():
        planes = model.planes(model.encode(source, camera, expression, landmarks(camera)), expression)
        other = model.planes(model.encode(source, camera, expression, landmarks(camera)), expression.flip(0))
    torch.testing.assert_close(projected(planes.points, camera)[0], landmarks(camera), atol=1e-5, rtol=0)
    assert (other.points - planes.points)[[0, 2]].abs().amax(dim=(1, 2)).min() > 1e-3


def test_the_papers_form_sees_the_source_as_it_is() -> None:
    model = awake()
    source, _, _ = inputs(1)
    assert torch.equal(model.encode(source).tokens, model.encode(source, cameras(2)[1:]).tokens)


def test_a_slider_moves_lambda_along_its_direction() -> None:
    model = awake(EXTENDED)
    source, expression, camera = inputs(3)
    shift = torch.zeros(1, 10)
    shift[0, 3] = 1.5
    with torch.no_grad():
        features = model.encode(source[:1], camera[:1], expression[:1], landmarks(camera[:1]))
        plain, moved = (model.planes(features, expression, by).triplane for by in (None, shift))
        coefficients = model.expression.coefficients(expression) + shift
        embedding, face, half = (
            model.expression.embed(coefficients),
            features.face.expand(3),
            EXTENDED.render.half_extent,
        )
        field = plane_flow(model.motion(embedding, face), face, half, 32)
        by_hand = model.generator(features.expand(3), embedding, field)
        each = model.planes(features, expression, torch.cat([torch.zeros(2, 10), shift])).triplane
        beta = model.expression.embed(coefficients) - model.expression(expression)
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
    model = awake(EXTENDED)
    source, expression, camera = inputs(3)
    with torch.no_grad():
        together = model(source, expression, camera, camera, expression.flip(0), landmarks(camera))
        own = (camera[1:2], expression.flip(0)[1:2], landmarks(camera[1:2]))
        alone = model(source[1:2], expression[1:2], camera[1:2], *own)
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
    model = awake(EXTENDED)
    for module in model.modules():  # second convolutions that start at zero hide the first from the gradient
        if isinstance(module, nn.Conv2d) and module.weight.count_nonzero() == 0:
            nn.init.normal_(module.weight, std=0.05)
    output = model(*inputs(2), cameras(2), torch.rand(2, 52), landmarks(cameras(2)))
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


@pytest.mark.parametrize("config", [tiny(), EXTENDED], ids=["paper's form", "extended"])
def test_a_pass_under_bfloat16_autocast_stays_near_the_float32_one(config: ModelConfig) -> None:
    model = awake(config)
    source, expression, camera = inputs(1)
    given = (source, expression, camera, camera, torch.rand(1, 52), landmarks(camera))
    with torch.no_grad():
        exact = model(*given)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model(*given)
    assert rough.rendered.raw.dtype == torch.float32
    assert (rough.rendered.raw - exact.rendered.raw).abs().mean() < 0.02


# ---- detail ----------------------------------------------------------------------------------------------------------


def shown(image: Tensor, flow: Tensor) -> Tensor:
    """The image as a flow moves it."""
    places = (pixel_grid(flow.shape[-1], flow.device) + flow + 1.0) / 2.0
    return show(image, places.permute(0, 2, 3, 1))


def test_detail_is_taken_from_the_source_at_its_place_and_in_the_driving_view() -> None:
    """Chosen wholly, the moved source is that of the driving camera and the still one the source itself."""
    model = awake(no_dense(EXTENDED))
    source, expression, camera = inputs(2)
    detail = model.superres.detail
    assert detail is not None
    assert model.dense is None
    for layer in (detail.choice, detail.lean):
        nn.init.zeros_(layer.weight)
    with torch.no_grad():
        features = model.encode(source, camera.flip(0), expression.flip(0), landmarks(camera.flip(0)))
        planes = model.planes(features, expression)
        moved = shown(source, driving_flow(planes.points, features.face, camera, 64)[0])
        for which, wanted in ((1, moved), (2, source)):
            detail.choice.bias.zero_()
            detail.choice.bias[which] = 60.0
            torch.testing.assert_close(model.frame(planes, camera), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("which", range(len(CANDIDATES)), ids=CANDIDATES)
def test_the_dense_motion_mixes_what_its_candidates_say(which: int) -> None:
    """Chosen wholly, each candidate moves the source by its own flow."""
    model = awake(EXTENDED)
    source, expression, camera = inputs(2)
    dense = model.dense
    assert dense is not None
    with torch.no_grad():
        for layer in (dense.share, dense.beyond):
            nn.init.zeros_(layer.weight)
        dense.share.bias.zero_()
        dense.share.bias[which] = 60.0
        own = camera.flip(0)
        output = model(source, expression, camera, own, expression.flip(0), landmarks(own))
        on_sheet, as_face = driving_flow(output.planes.points, output.planes.source.face, camera, 64)
        flows = (on_sheet, turned_flow(own, camera, EXTENDED.render.half_extent, 64), as_face, 0 * on_sheet)
    torch.testing.assert_close(output.moved, shown(source, flows[which]), atol=1e-4, rtol=0)
    for other in {*range(len(flows))} - {which}:
        assert (output.moved - shown(source, flows[other])).abs().mean() > 1e-2


def test_a_new_dense_motion_moves_the_source_and_mostly_on_the_sheet() -> None:
    model = Export3D(EXTENDED).eval()
    source, expression, camera = inputs(2)
    own = camera.flip(0)
    with torch.no_grad():
        output = model(source, expression, camera, own, expression, landmarks(own))
        on_sheet, as_face = driving_flow(output.planes.points, output.planes.source.face, camera, 64)
        as_head = turned_flow(own, camera, EXTENDED.render.half_extent, 64)
        share = torch.tensor([2.0, 0.0, 0.0, 0.0]).softmax(0)
        wanted = share[0] * on_sheet + share[1] * (as_head + as_face)
    torch.testing.assert_close(output.moved, shown(source, wanted), atol=1e-4, rtol=0)


def test_without_a_dense_motion_the_source_moves_on_the_sheet_alone() -> None:
    model = awake(no_dense(EXTENDED))
    assert not [name for name in model.state_dict() if name.startswith("dense.")]
    source, expression, camera = inputs(2)
    own = camera.flip(0)
    with torch.no_grad():
        output = model(source, expression, camera, own, expression.flip(0), landmarks(own))
        flow, _ = driving_flow(output.planes.points, output.planes.source.face, camera, 64)
    assert output.image is not None
    assert output.image.shape == (2, 3, 64, 64)
    torch.testing.assert_close(output.moved, shown(source, flow), atol=1e-5, rtol=0)


def test_what_moved_is_told_where_the_picture_takes_from_it() -> None:
    source, expression, camera = inputs(1)
    assert awake()(source, expression, camera).moved is None
    given = (source, expression, camera, camera, expression, landmarks(camera))
    model = awake(EXTENDED)
    assert model(*given, superres=False).moved is None
    moved = model(*given).moved
    assert moved.shape == (1, 3, 64, 64)
    moved.square().mean().backward()
    assert all(p.grad is not None and p.grad.count_nonzero() > 0 for p in model.dense.parameters())
    assert all(p.grad is None for p in model.superres.parameters())


def test_features_without_the_source_cannot_give_detail() -> None:
    model = awake(EXTENDED)
    source, expression, camera = inputs(1)
    features = replace(model.encode(source, camera, expression, landmarks(camera)), image=None)
    with pytest.raises(ConfigError, match="takes detail from its source"):
        model.frame(model.planes(features, expression), camera)


def test_detail_alone_moves_the_source_too_and_needs_to_know_it() -> None:
    model = awake(replace(tiny(), superres=replace(tiny().superres, detail=True)))
    with pytest.raises(ConfigError, match="camera, expression and landmarks"):
        model.encode(torch.zeros(1, 3, 64, 64))
    source, expression, camera = inputs(2)
    with torch.no_grad():
        output = model(source, expression, camera, camera, expression.flip(0), landmarks(camera))
    assert output.planes.flow is None
    assert output.planes.points is not None
    assert output.image is not None


def test_a_generator_that_sees_less_gets_the_source_reduced_and_detail_from_the_whole() -> None:
    whole = replace(EXTENDED, render=replace(EXTENDED.render, resolution=32))
    model = awake(whole)
    assert (whole.image_size, whole.generator.image_size) == (128, 64)
    source, expression, camera = inputs(1, 128)
    with torch.no_grad():
        output = model(source, expression, camera, camera, expression, landmarks(camera))
        features = model.encode(source, camera, expression, landmarks(camera))
        seen = frontal_view(resize(source, 64), camera, whole.render.half_extent)
        assert torch.equal(features.tokens, model.generator.encode(seen).tokens)
        assert torch.equal(features.image, source)
    assert output.image is not None
    assert output.image.shape == (1, 3, 128, 128)
    assert output.generated.shape[-1] == 32
    with pytest.raises(ShapeError, match="source"):
        model.encode(torch.zeros(1, 3, 64, 64), camera, expression, landmarks(camera))
