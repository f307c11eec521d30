"""The warp as a whole, inside its model: which parts there are, what they need, what they show."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from export3d.camera import projected
from export3d.config import VARIANTS, preset, tiny, variant
from export3d.errors import ConfigError, ShapeError
from export3d.face.landmark_sets import LOWER_LIDS, UPPER_LIDS
from export3d.image import resize
from export3d.model import Export3D
from export3d.warping.average_head import frontal_view, seen_places, turned_flow
from export3d.warping.dense_motion import CANDIDATES
from export3d.warping.elastic_mesh import show
from export3d.warping.flow_field import pixel_grid
from export3d.warping.flows import driving_flow, plane_flow
from export3d.warping.source_warp import SourceMotion, SourceView, WarpConfig
from tests.tiny_models import PARTS, awake, cameras, inputs, landmarks, matte, warped

EXTENDED = warped(*PARTS)
"""The warp of `base` at the size of `tiny`."""
STARING = warped(
    *(
        part
        for part in PARTS
        if part not in ("irises", "lids", "glasses", "teeth", "inside", "turns", "shoulders", "matte")
    )
)
ON_THE_MESH = variant(STARING, "no_dense")
HALF = EXTENDED.render.half_extent


# ---- which parts there are -------------------------------------------------------------------------------------------


def test_the_parts_are_these_and_all_on() -> None:
    assert tuple(field.name for field in fields(WarpConfig)) == PARTS
    assert all(getattr(preset("base").warp, part) for part in PARTS)
    assert preset("base").warp == WarpConfig(
        irises=True,
        lids=True,
        glasses=True,
        teeth=True,
        inside=True,
        turns=True,
        shoulders=True,
        matte=True,
        scores=True,
    )  # not in weights that do not say so


@pytest.mark.parametrize(
    ("part", "needed"),
    [
        ("flow", "skip"),
        ("redraw", "flow"),
        ("dense", "detail"),
        ("mouth", "detail"),
        ("irises", "detail"),
        ("lids", "detail"),
        ("glasses", "detail"),
        ("teeth", "mouth"),
        ("inside", "teeth"),
        ("turns", "detail"),
        ("shoulders", "matte"),
        ("matte", "detail"),
    ],
)
def test_a_part_without_the_one_it_needs_is_refused_in_one_sentence(part: str, needed: str) -> None:
    sentence = "^warp.{} needs warp.{}; switch both on or both off$"
    with pytest.raises(ConfigError, match=sentence.format(part, needed)):
        WarpConfig(**{**dict.fromkeys(PARTS, False), part: True})
    first = "dense" if needed == "detail" else part  # of several that need it, the first is named
    with pytest.raises(ConfigError, match=sentence.format(first, needed)):
        WarpConfig(**{**dict.fromkeys(PARTS, True), needed: False})


def test_a_warp_of_nothing_is_refused_in_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"^every part of the warp is off; leave the warp out \(null\) instead$"):
        WarpConfig(**dict.fromkeys(PARTS, False))


@pytest.mark.parametrize("part", ["align", "skip", "detail"])
def test_a_part_that_needs_no_other_can_be_alone(part: str) -> None:
    source, expression, camera = inputs(2)
    model = awake(warped(part))
    with torch.no_grad():
        output = model(source, expression, camera, camera, expression.flip(0), landmarks(camera))
    assert output.image is not None
    assert output.image.shape == (2, 3, 64, 64)
    assert output.planes.motion.flow is None
    assert (output.planes.motion.walk is not None) == (part == "skip")
    assert (output.planes.motion.points is not None) == (output.warped is not None) == (part == "detail")


def test_each_part_has_its_own_weights_and_the_paper_has_none_of_them() -> None:
    paper = set(Export3D(tiny()).state_dict())
    assert not [name for name in paper if name.startswith("warp")]
    for parts, wanted in (
        (("align",), set()),
        (("skip",), {"skip.gates"}),
        (("skip", "flow"), {"motion", "skip.gates", "skip.flows"}),
        (("detail",), {"motion", "detail"}),
        (("detail", "dense"), {"motion", "detail", "dense"}),
        (PARTS, {"motion", "detail", "dense", "inner", "skip.gates", "skip.flows"}),
    ):
        names = set(Export3D(warped(*parts)).state_dict())
        assert names >= paper
        found = {name.removeprefix("warp.") for name in names - paper}
        assert {".".join(name.split(".")[: 1 + name.startswith("skip")]) for name in found} == wanted


@pytest.mark.parametrize("name", ["paper", "tiny"])
def test_the_papers_form_has_no_warp(name: str) -> None:
    with torch.device("meta"):
        assert Export3D(preset(name)).warp is None


def test_taken_off_the_warp_leaves_the_papers_names_and_settings() -> None:
    off = variant(EXTENDED, "no_warp")
    assert off == tiny()
    assert Export3D(off).state_dict().keys() == Export3D(tiny()).state_dict().keys()


def test_a_warp_whose_parts_are_taken_off_one_by_one_is_taken_off_whole() -> None:
    config = EXTENDED
    for name in ("no_align", "no_skip"):
        config = variant(config, name)
        assert config.warp is not None
    assert variant(config, "no_detail") == tiny()


@pytest.mark.parametrize("name", [name for name in VARIANTS if name.startswith("no_") and name != "no_lowpass"])
def test_a_variant_of_the_warp_changes_nothing_where_there_is_none(name: str) -> None:
    for config in (preset("paper"), tiny()):
        assert variant(config, name) == config


# ---- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_full_size_pass_has_the_sizes_of_the_paper_and_a_motion() -> None:
    camera = cameras(2)
    with torch.no_grad():
        model = Export3D(preset("base")).eval()
        source, expression = torch.zeros(2, 3, 256, 256), torch.zeros(2, 52)
        output = model(source, expression, camera, camera, expression, landmarks(camera), matte(source))
        assert output.image is not None
        assert output.image.shape == output.warped.shape == (2, 3, 256, 256)
        assert output.planes.motion.flow.shape == (2, 2, 64, 64)  # the generator sees the source at half its size
        assert output.planes.motion.points.shape == (2, 478, 3)
        assert output.rendered.raw.shape == (2, 3, 64, 64)
        assert output.rendered.feature.shape == (2, 32, 64, 64)
        assert output.rendered.depth.shape == output.rendered.opacity.shape == (2, 1, 64, 64)
        assert output.generated.shape == (2, 3, 32, 64, 64)
        assert model.expression(expression).shape == (2, 256)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "millions", "giga"), [("base", 30, 20), ("core", 25, 12)])
def test_what_ships_keeps_to_its_budget(name: str, millions: float, giga: float) -> None:
    """Parameters, and FLOP of a driven frame once the source is encoded (a multiply-add is two)."""
    camera = cameras(1)
    with torch.no_grad():
        model = Export3D(preset(name)).eval()
        assert sum(p.numel() for p in model.parameters()) <= millions * 1e6
        source = torch.zeros(1, 3, model.config.image_size, model.config.image_size)
        features = model.encode(source, camera, torch.zeros(1, 52), landmarks(camera), matte(source))
        with FlopCounterMode(display=False) as counter:
            model.frame(model.planes(features, torch.zeros(1, 52)), camera)
        parts = counter.get_flop_counts()
        assert 1e9 < counter.get_total_flops() <= giga * 1e9
        # the decoder's layers are in the count: rays, a hidden layer and two heads a sample
        c = model.config
        rays = c.render.resolution**2
        decoded = 2 * rays * (c.render.coarse + c.render.fine) * (32 * c.render.hidden + c.render.hidden * 33)
        assert sum(parts["Global"].values()) > decoded


def test_a_generator_that_sees_less_gets_the_source_reduced_and_detail_from_the_whole() -> None:
    whole = replace(EXTENDED, render=replace(EXTENDED.render, resolution=32))
    model = awake(whole)
    assert (whole.image_size, whole.generator.image_size) == (128, 64)
    source, expression, camera = inputs(1, 128)
    with torch.no_grad():
        output = model(source, expression, camera, camera, expression, landmarks(camera), matte(source))
        encoded = model.encode(source, camera, expression, landmarks(camera), matte(source))
        seen = frontal_view(resize(source, 64), camera, HALF)
        assert torch.equal(encoded.features.tokens, model.generator.encode(seen).tokens)
        assert torch.equal(encoded.view.image, source)
    assert output.image is not None
    assert output.image.shape == (1, 3, 128, 128)
    assert output.generated.shape[-1] == 32
    with pytest.raises(ShapeError, match="source"):
        model.encode(torch.zeros(1, 3, 64, 64), camera, expression, landmarks(camera))


# ---- what is computed once -------------------------------------------------------------------------------------------


def test_encoding_once_gives_what_a_whole_pass_gives() -> None:
    model = awake(EXTENDED)
    source, expression, camera = inputs(3)
    with torch.no_grad():
        own = (camera.flip(0), expression.flip(0), landmarks(camera.flip(0)), matte(source))
        whole = model(source, expression, camera, *own)
        planes = model.planes(model.encode(source, *own), expression)
        rendered = model.render(planes, camera)
        frame = model.frame(planes, camera)
    assert whole.image is not None
    assert torch.equal(whole.rendered.feature, rendered.feature)
    assert torch.equal(whole.image.clamp(-1, 1), frame)
    assert torch.equal(whole.generated + model.generator.average.value, planes.triplane)
    assert torch.equal(whole.planes.motion.flow, planes.motion.flow)


def test_one_source_serves_many_expressions() -> None:
    model = awake(EXTENDED)
    source, expression, camera = inputs(3)
    with torch.no_grad():
        features = model.encode(source[:1], camera[2:], expression[2:], landmarks(camera[2:]), matte(source[:1]))
        together = model.frame(model.planes(features, expression), camera)
        for b in range(3):
            alone = model.frame(model.planes(features, expression[b : b + 1]), camera[b : b + 1])
            torch.testing.assert_close(together[b : b + 1], alone, rtol=1e-4, atol=1e-4)


def test_one_set_of_planes_serves_many_cameras() -> None:
    """The walk through the grids is over once the planes are there: rendering again changes nothing."""
    model = awake(EXTENDED)
    source, expression, camera = inputs(2)
    with torch.no_grad():
        features = model.encode(source[:1], camera[:1], expression[:1], landmarks(camera[:1]), matte(source[:1]))
        planes = model.planes(features, expression[1:])
        first, turned, again = (model.frame(planes, camera[b : b + 1]) for b in (0, 1, 0))
    assert torch.equal(first, again)
    assert (first - turned).abs().max() > 1e-2


def test_an_item_alone_is_as_it_is_in_a_batch() -> None:
    model = awake(EXTENDED)
    source, expression, camera = inputs(3)
    with torch.no_grad():
        together = model(source, expression, camera, camera, expression.flip(0), landmarks(camera), matte(source))
        own = (camera[1:2], expression.flip(0)[1:2], landmarks(camera[1:2]), matte(source[1:2]))
        alone = model(source[1:2], expression[1:2], camera[1:2], *own)
    assert together.image is not None
    assert alone.image is not None
    torch.testing.assert_close(together.image[1:2], alone.image, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together.rendered.depth[1:2], alone.rendered.depth, rtol=1e-4, atol=1e-4)


def test_expanding_a_source_copies_nothing() -> None:
    model = awake(EXTENDED)
    source, expression, camera = inputs(1)
    one = model.encode(source, camera, expression, landmarks(camera), matte(source))
    many = one.expand(5)
    pairs = [(one.features.tokens, many.features.tokens), (one.view.image, many.view.image)]
    pairs += [(one.view.camera, many.view.camera), (one.view.face.points, many.view.face.points)]
    pairs += zip(one.features.stem, many.features.stem, strict=True)
    for before, after in pairs:
        assert after.shape == (5, *before.shape[1:])
        assert after.data_ptr() == before.data_ptr()
    assert SourceView().expand(2) == SourceView()


# ---- what it needs to know -------------------------------------------------------------------------------------------


def test_a_model_that_aligns_asks_for_the_camera_of_the_source_and_uses_it() -> None:
    model = awake(warped("align", "skip"))
    assert model.warp is not None
    assert model.warp.motion is None
    source, _, _ = inputs(1)
    with pytest.raises(ConfigError, match="camera"):
        model.encode(source)
    here, there = (model.encode(source, camera[None]) for camera in cameras(2))
    assert not torch.equal(here.features.tokens, there.features.tokens)
    assert here.view == there.view == SourceView()


@pytest.mark.parametrize("align", [True, False])
def test_a_model_with_a_flow_asks_for_the_sources_expression_and_landmarks_too_and_uses_all(align: bool) -> None:
    model = awake(EXTENDED if align else variant(EXTENDED, "no_align"))
    source, expression, camera = inputs(2)
    source, driving, seen = source[:1], torch.rand(1, 52), landmarks(camera)
    known = (camera[:1], expression[:1], seen[:1])
    for missing in range(3):
        given = [None if number == missing else value for number, value in enumerate(known)]
        with pytest.raises(ConfigError, match=r"give encode\(\) the source's camera, expression and landmarks"):
            model.encode(source, *given)
    with torch.no_grad():
        flows = [
            model(
                source, driving, camera[:1], camera[c : c + 1], expression[e : e + 1], seen[s : s + 1], matte(source)
            ).planes.motion.flow
            for c, e, s in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
        ]  # fmt: skip
    assert flows[0].shape == (1, 2, 32, 32)
    for other in flows[1:]:
        assert (other - flows[0]).abs().max() > 1e-4


def test_a_model_with_a_matte_asks_for_it_and_uses_it() -> None:
    model = awake(EXTENDED)
    source, expression, camera = inputs(1)
    own = (camera, expression, landmarks(camera))
    with pytest.raises(ConfigError, match=r"give encode\(\) the person's opacity"):
        model.encode(source, *own)
    with pytest.raises(ShapeError, match="source matte"):
        model.encode(source, *own, source)
    with torch.no_grad():
        wanted, thinner = (model(source, expression, camera, *own, part * matte(source)).image for part in (1.0, 0.5))
    assert (thinner - wanted).abs().max() > 1e-3


def test_without_align_the_generator_gets_the_source_itself() -> None:
    model = awake(warped("skip"))
    source, _, camera = inputs(1)
    wanted = model.generator.encode(source).tokens
    assert torch.equal(model.encode(source).features.tokens, wanted)
    assert torch.equal(model.encode(source, camera).features.tokens, wanted)
    assert model.warp is not None
    assert model.warp.frontal(source, None) is source


def test_detail_alone_moves_the_source_too_and_needs_to_know_it() -> None:
    model = awake(warped("detail"))
    with pytest.raises(ConfigError, match="camera, expression and landmarks"):
        model.encode(torch.zeros(1, 3, 64, 64))
    source, expression, camera = inputs(2)
    with torch.no_grad():
        output = model(source, expression, camera, camera, expression.flip(0), landmarks(camera))
    assert output.planes.motion.flow is None
    assert output.planes.motion.points is not None
    assert output.image is not None


def test_a_source_without_its_pixels_cannot_give_detail() -> None:
    model = awake(EXTENDED)
    source, expression, camera = inputs(1)
    encoded = model.encode(source, camera, expression, landmarks(camera), matte(source))
    without = replace(encoded, view=replace(encoded.view, image=None))
    with pytest.raises(ConfigError, match="takes detail from its source"):
        model.frame(model.planes(without, expression), camera)


def test_what_is_kept_of_a_source_is_what_the_parts_need() -> None:
    source, expression, camera = inputs(1)
    known = (camera, expression, landmarks(camera))
    kept = {
        parts: awake(warped(*parts)).encode(source, *known).view
        for parts in (("align",), ("skip",), ("skip", "flow"), ("detail",))
    }
    assert kept["align",] == kept["skip",] == SourceView()
    assert kept["skip", "flow"].face is not None
    assert kept["skip", "flow"].image is kept["skip", "flow"].camera is None
    assert torch.equal(kept["detail",].image, source)
    assert torch.equal(kept["detail",].camera, camera)


# ---- what it moves ---------------------------------------------------------------------------------------------------


def test_landmarks_stay_where_the_source_has_them_while_nothing_changes() -> None:
    """By the source's own expression and camera, whatever the weights are and through the whole model."""
    model = awake(EXTENDED)
    source, expression, camera = inputs(3)
    with torch.no_grad():
        encoded = model.encode(source, camera, expression, landmarks(camera), matte(source))
        points, other = (model.planes(encoded, e).motion.points for e in (expression, expression.flip(0)))
    torch.testing.assert_close(projected(points, camera)[0], landmarks(camera), atol=1e-5, rtol=0)
    assert (other - points)[[0, 2]].abs().amax(dim=(1, 2)).min() > 1e-3


def test_a_slider_moves_landmarks_flow_and_planes_along_its_direction() -> None:
    model = awake(EXTENDED)
    source, expression, camera = inputs(3)
    shift = torch.zeros(1, 10)
    shift[0, 3] = 1.5
    with torch.no_grad():
        encoded = model.encode(source[:1], camera[:1], expression[:1], landmarks(camera[:1]), matte(source[:1]))
        plain, moved = (model.planes(encoded, expression, by).triplane for by in (None, shift))
        beta = model.expression.embed(model.expression.coefficients(expression) + shift)
        many = encoded.expand(3)
        asked = model.warp.motion.input(beta, expression, shift)
        points = model.warp.motion(asked, many.view.face)
        points = model.warp.glasses.hold(points, many.view.face.points, many.view.glasses)
        field = plane_flow(points, many.view.face, HALF, 32)
        by_hand = model.generator(many.features, beta, model.warp.skip.walk(many.features.stem, field))
        each = model.planes(encoded, expression, torch.cat([torch.zeros(2, 10), shift])).triplane
    torch.testing.assert_close(moved, by_hand)
    assert (moved - plain).abs().max() > 1e-3
    torch.testing.assert_close(model.planes(encoded, expression, 0 * shift).triplane, plain)
    torch.testing.assert_close(each, torch.cat([plain[:2], moved[2:]]), rtol=1e-4, atol=1e-5)


def test_a_motion_without_a_walk_has_no_flow() -> None:
    assert SourceMotion().flow is None
    model = awake(EXTENDED)
    source, expression, camera = inputs(1)
    encoded = model.encode(source, camera, expression, landmarks(camera), matte(source))
    motion = model.warp.move(encoded.view.face.own, encoded.view, encoded.features.stem)
    assert motion.walk is not None
    assert motion.flow is None  # the generator has not run
    model.generator.generate(encoded.features, model.expression(expression), motion.walk)
    assert motion.flow is not None
    assert motion.flow is motion.walk.flow


@pytest.mark.parametrize("training", [True, False])
def test_a_pass_never_changes_the_model(training: bool) -> None:
    model = awake(EXTENDED).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    source, expression, camera = inputs(2)
    own = (camera, expression.flip(0), landmarks(camera), matte(source))
    output = model(source, expression, camera, *own, jitter=torch.tensor([0, 1]))
    assert output.image is not None
    output.image.mean().backward()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_every_weight_learns() -> None:
    model = awake(variant(EXTENDED, "no_inside"))  # which has a training of its own
    for module in model.modules():  # second convolutions that start at zero hide the first from the gradient
        if isinstance(module, nn.Conv2d) and module.weight.count_nonzero() == 0:
            nn.init.normal_(module.weight, std=0.05)
    source, expression, camera = inputs(2)
    output = model(source, expression, camera, camera, torch.rand(2, 52), landmarks(camera), matte(source))
    assert output.image is not None
    (output.image * torch.randn_like(output.image)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.count_nonzero() > 0, name


def test_a_pass_under_bfloat16_autocast_stays_near_the_float32_one() -> None:
    model = awake(EXTENDED)
    source, expression, camera = inputs(1)
    given = (source, expression, camera, camera, torch.rand(1, 52), landmarks(camera), matte(source))
    with torch.no_grad():
        exact = model(*given)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model(*given)
    assert rough.rendered.raw.dtype == torch.float32
    assert (rough.rendered.raw - exact.rendered.raw).abs().mean() < 0.02


# ---- what it shows ---------------------------------------------------------------------------------------------------


def shown(image: Tensor, flow: Tensor) -> Tensor:
    """The image as a flow moves it."""
    places = (pixel_grid(flow.shape[-1], flow.device) + flow + 1.0) / 2.0
    return show(image, places.permute(0, 2, 3, 1))


def test_detail_is_taken_from_the_source_at_its_place_and_in_the_driving_view() -> None:
    """Chosen wholly, the moved source is that of the driving camera and the still one the source itself."""
    model = awake(ON_THE_MESH)
    source, expression, camera = inputs(2)
    detail = model.warp.detail
    assert model.warp.dense is None
    for layer in (detail.choice, detail.lean):
        nn.init.zeros_(layer.weight)
    with torch.no_grad():
        encoded = model.encode(source, camera.flip(0), expression.flip(0), landmarks(camera.flip(0)))
        planes = model.planes(encoded, expression)
        moved = shown(source, driving_flow(*projected(planes.motion.points, camera), encoded.view.face, 64)[0])
        for which, wanted in ((1, moved), (2, source)):
            detail.choice.bias.zero_()
            detail.choice.bias[which] = 60.0
            torch.testing.assert_close(model.frame(planes, camera), wanted.clamp(-1.0, 1.0), atol=1e-4, rtol=0)


@pytest.mark.parametrize("which", range(len(CANDIDATES)), ids=CANDIDATES)
def test_the_dense_motion_mixes_what_its_candidates_say(which: int) -> None:
    """Chosen wholly, each candidate moves the source by its own flow."""
    model = awake(STARING)
    source, expression, camera = inputs(2)
    dense = model.warp.dense
    with torch.no_grad():
        for layer in (dense.share, dense.beyond):
            nn.init.zeros_(layer.weight)
        dense.share.bias.zero_()
        dense.share.bias[which] = 60.0
        own = camera.flip(0)
        output = model(source, expression, camera, own, expression.flip(0), landmarks(own))
        on_mesh, as_face, _ = driving_flow(
            *projected(output.planes.motion.points, camera), output.planes.source.view.face, 64
        )
        flows = (on_mesh, turned_flow(own, seen_places(camera, 64)), as_face, 0 * on_mesh)
    torch.testing.assert_close(output.warped, shown(source, flows[which]), atol=1e-4, rtol=0)
    for other in {*range(len(flows))} - {which}:
        assert (output.warped - shown(source, flows[other])).abs().mean() > 1e-2


def test_a_new_dense_motion_moves_the_source_and_mostly_on_the_mesh() -> None:
    model = Export3D(STARING).eval()
    source, expression, camera = inputs(2)
    own = camera.flip(0)
    with torch.no_grad():
        output = model(source, expression, camera, own, expression, landmarks(own))
        on_mesh, as_face, _ = driving_flow(
            *projected(output.planes.motion.points, camera), output.planes.source.view.face, 64
        )
        as_head = turned_flow(own, seen_places(camera, 64))
        share = torch.tensor([2.0, 0.0, 0.0, 0.0]).softmax(0)
        wanted = share[0] * on_mesh + share[1] * (as_head + as_face)
    torch.testing.assert_close(output.warped, shown(source, wanted), atol=1e-4, rtol=0)


def test_without_a_dense_motion_the_source_moves_on_the_mesh_alone() -> None:
    model = awake(ON_THE_MESH)
    assert not [name for name in model.state_dict() if name.startswith("warp.dense.")]
    source, expression, camera = inputs(2)
    own = camera.flip(0)
    with torch.no_grad():
        output = model(source, expression, camera, own, expression.flip(0), landmarks(own))
        flow, *_ = driving_flow(*projected(output.planes.motion.points, camera), output.planes.source.view.face, 64)
    assert output.image is not None
    assert output.image.shape == (2, 3, 64, 64)
    torch.testing.assert_close(output.warped, shown(source, flow), atol=1e-5, rtol=0)


def test_the_warped_source_is_given_where_the_image_takes_from_it() -> None:
    source, expression, camera = inputs(1)
    given = (source, expression, camera, camera, expression, landmarks(camera), matte(source))
    for config in (tiny(), variant(EXTENDED, "no_detail")):
        assert awake(config)(*given).warped is None
    model = awake(EXTENDED)
    assert model(*given, superres=False).warped is None
    moved = model(*given).warped
    assert moved.shape == (1, 3, 64, 64)
    moved.square().mean().backward()
    assert all(p.grad is not None and p.grad.count_nonzero() > 0 for p in model.warp.dense.parameters())
    assert all(p.grad is None for p in model.superres.parameters())
    assert all(p.grad is None for p in model.warp.detail.parameters())


def test_almost_closed_lids_meet_in_the_driving_view_and_open_ones_stay() -> None:
    closing, leaving = awake(EXTENDED), awake(variant(EXTENDED, "no_lids"))
    leaving.load_state_dict(closing.state_dict())
    source, expression, camera = inputs(1)
    view = closing.encode(source, camera, expression, landmarks(camera), matte(source)).view
    with torch.no_grad():
        for part in (1.0, 0.05):
            points = view.face.points.clone()
            for upper, lower in zip(UPPER_LIDS, LOWER_LIDS):
                below = points[:, list(lower)]
                points[:, list(upper)] = below + part * (points[:, list(upper)] - below)
            one, other = (model.warp.views(view, SourceMotion(points), camera).offset for model in (closing, leaving))
            changed = float((one - other).abs().max())
            assert changed > 1e-2 if part < 1.0 else changed < 1e-4


@pytest.mark.parametrize("mouth", [True, False])
def test_the_mouths_opening_is_among_the_views_where_the_choice_sees_it(mouth: bool) -> None:
    model = awake(EXTENDED if mouth else variant(EXTENDED, "no_mouth"))
    source, expression, camera = inputs(1)
    planes = model.planes(model.encode(source, camera, expression, landmarks(camera), matte(source)), expression)
    views = model.warp.views(planes.source.view, planes.motion, camera)
    assert (views.mouth is not None) == mouth
    assert views.stacked().shape == (1, 17 if mouth else 15, 64, 64)
    assert torch.equal(views.still, source)


def test_without_detail_nothing_guides_the_super_resolution() -> None:
    model = awake(variant(EXTENDED, "no_detail"))
    source, expression, camera = inputs(1)
    planes = model.planes(model.encode(source, camera, expression, landmarks(camera), matte(source)), expression)
    rendered = model.render(planes, camera)
    assert model.warp.guide(planes.source.view, planes.motion, camera, rendered.feature) is None
    assert torch.equal(model.finish(planes, camera, rendered), model.superres(rendered.feature))


def test_a_camera_that_is_farther_from_the_sources_moves_it_farther() -> None:
    model = awake(ON_THE_MESH)
    source, expression, _ = inputs(1)
    own = cameras(1)
    away = []
    with torch.no_grad():
        planes = model.planes(model.encode(source, own, expression, landmarks(own), matte(source)), expression)
        for camera in cameras(4).split(1):
            views = model.warp.views(planes.source.view, planes.motion, camera)
            away.append(float(views.offset.abs().mean()))
    assert away[0] < 1e-4
    assert all(before < after for before, after in pairwise(away))
