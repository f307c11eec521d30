"""What a model with a warp takes over from another one with the same, more, fewer or no parts of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from export3d.config import ModelConfig, tiny, variant
from export3d.errors import CheckpointError
from export3d.model import Export3D
from export3d.pretrained import inherit, load_encoder, load_pretrained
from export3d.weights.file import load_into
from tests.heirs import assert_nearly_the_same, draw, learned, model, same_up_to_a_linear_map
from tests.tiny_models import PARTS, inputs, landmarks, matte, warped

FLOWING = warped("skip", "flow")
STILL = warped("skip")
DETAILED = warped("skip", "flow", "detail")
DENSE = warped("skip", "flow", "detail", "dense")
SEEING = warped("skip", "flow", "detail", "mouth")


def taught(*parts: str) -> Export3D:
    """A model with a warp whose every weight is moved."""
    made = learned(warped(*parts))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made


@pytest.mark.parametrize("config", [FLOWING, warped(*PARTS)], ids=["flow", "all"])
def test_with_the_same_encoder_everything_is_inherited_bit_for_bit(config: ModelConfig) -> None:
    former, heir, expression = learned(config), model(config=config), torch.rand(3, 52)
    inherit(heir, former, torch.rand(50, 52))
    assert torch.equal(draw(heir.eval(), expression), draw(former, expression))
    for name, value in former.state_dict().items():
        assert torch.equal(heir.state_dict()[name], value), name


def test_the_packaged_encoder_is_the_packaged_models_own() -> None:
    """One ships in half precision, the other does not; whoever names the encoder too loses nothing."""
    former = load_pretrained()
    heir = Export3D(former.config)
    load_into(heir.expression, load_encoder().state_dict(), what="the packaged encoder")
    inherit(heir, former, torch.rand(50, 52))
    assert heir.warp.motion is not None
    assert heir.warp.motion.out.weight.any()
    for name, value in former.state_dict().items():
        assert torch.equal(heir.state_dict()[name], value), name


def test_a_flow_that_the_former_did_not_have_starts_rigid_and_the_rest_is_inherited() -> None:
    former, heir = learned(STILL), model(config=FLOWING)
    assert former.warp.motion is None
    inherit(heir, former, torch.rand(50, 52))
    assert heir.warp.motion is not None
    assert not heir.warp.motion.out.weight.any()
    for name, value in former.state_dict().items():
        assert torch.equal(heir.state_dict()[name], value), name


def test_a_flow_that_the_heir_has_not_is_left() -> None:
    heir = model(config=STILL)
    former = learned(FLOWING)
    inherit(heir, former, torch.rand(50, 52))
    assert heir.warp.motion is None
    for name, value in heir.state_dict().items():
        assert torch.equal(value, former.state_dict()[name]), name


@pytest.mark.parametrize("has", [False, True])
def test_detail_is_inherited_where_both_have_it_and_left_where_one_has_not(has: bool) -> None:
    former, heir = (learned(c) for c in ((DETAILED, FLOWING) if has else (FLOWING, DETAILED)))
    inherit(heir, former, torch.rand(50, 52))
    expression = torch.rand(2, 52)
    torch.testing.assert_close(draw(heir.eval(), expression), draw(former, expression), rtol=0, atol=1e-4)
    again = learned(DETAILED)
    inherit(again, former if has else heir, torch.rand(50, 52))
    for name, value in (former if has else heir).state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.mark.parametrize("has", [False, True])
def test_a_dense_motion_is_inherited_where_both_have_it_and_starts_fresh_where_the_former_had_none(has: bool) -> None:
    former, heir = (learned(c) for c in ((DENSE, DETAILED) if has else (DETAILED, DENSE)))
    fresh = {name: value.clone() for name, value in heir.state_dict().items() if name.startswith("warp.dense.")}
    inherit(heir, former, torch.rand(50, 52))
    assert bool(fresh) != has
    for name, value in heir.state_dict().items():
        assert torch.equal(value, fresh[name] if name in fresh else former.state_dict()[name]), name
    again, owner = model(config=DENSE), former if has else heir
    inherit(again, owner, torch.rand(50, 52))
    for name, value in owner.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.mark.parametrize("has", [False, True])
def test_what_sees_the_mouth_starts_at_zero_and_is_left_where_it_is_not_wanted(has: bool) -> None:
    former, heir = (learned(c) for c in ((SEEING, DETAILED) if has else (DETAILED, SEEING)))
    inherit(heir, former, torch.rand(50, 52))
    for name, value in heir.state_dict().items():
        other = former.state_dict()[name]
        if value.shape == other.shape:
            assert torch.equal(value, other), name
            continue
        common = min(value.shape[1], other.shape[1])
        assert abs(value.shape[1] - other.shape[1]) == 2, name
        assert torch.equal(value[:, :common], other[:, :common]), name
        assert not value[:, common:].any(), name
    if not has:
        expression = torch.rand(2, 52)
        torch.testing.assert_close(draw(heir.eval(), expression), draw(former, expression), rtol=0, atol=1e-4)


@pytest.mark.parametrize("mouth", [False, True])
def test_what_sees_the_matte_starts_at_zero_and_changes_no_picture(mouth: bool) -> None:
    parts = ("skip", "flow", "detail", "dense", *(["mouth"] if mouth else []))
    former, heir = learned(warped(*parts)), learned(warped(*parts, "matte"))
    inherit(heir, former, torch.rand(50, 52))
    for name, value in heir.state_dict().items():
        other = former.state_dict()[name]
        if value.shape != other.shape:
            assert torch.equal(value[:, : other.shape[1]], other), name
            assert not value[:, other.shape[1] :].any(), name
        else:
            assert torch.equal(value, other), name
    source, expression, camera = inputs(1)
    pictures = []
    with torch.no_grad():
        for made in (former.eval(), heir.eval()):
            encoded = made.encode(source, camera, expression, landmarks(camera), matte(source))
            pictures.append(made.frame(made.planes(encoded, expression), camera))
    torch.testing.assert_close(pictures[1], pictures[0], atol=1e-5, rtol=0)


def test_a_dense_motion_does_not_see_the_expression_and_is_kept_with_another_encoder() -> None:
    former, heir = learned(DENSE), model(config=variant(DENSE, "clebs"))
    inherit(heir, former, torch.rand(300, 52))
    assert former.warp.dense is not None
    assert heir.warp.dense is not None
    for name, value in former.warp.dense.state_dict().items():
        assert torch.equal(heir.warp.dense.state_dict()[name], value), name


def test_the_motion_starts_anew_with_another_encoder_and_the_rest_is_inherited() -> None:
    """It sees beta' through its layers: it is fitted to landmarks again, from nothing."""
    former, heir = learned(FLOWING), model(config=variant(FLOWING, "clebs")).eval()
    same_up_to_a_linear_map(former.expression, heir.expression)
    inherit(heir, former, torch.rand(300, 52))
    assert heir.warp.motion is not None
    assert not heir.warp.motion.out.weight.any()
    assert not heir.warp.motion.depth.weight.any()
    for name, value in former.warp.skip.flows.state_dict().items():
        assert torch.equal(heir.warp.skip.flows.state_dict()[name], value), name
    for layer in (former.warp.motion.out, former.warp.motion.depth):
        nn.init.zeros_(layer.weight)
    nn.init.zeros_(former.warp.motion.depth.bias)
    expression = torch.rand(4, 52)
    assert_nearly_the_same(draw(heir, expression), draw(former, expression))


# ---- a whole warp more or less ---------------------------------------------------------------------------------------


def test_a_warp_taken_off_leaves_the_papers_part() -> None:
    former = taught(*PARTS)
    heir = Export3D(variant(former.config, "no_warp"))
    assert heir.warp is None
    inherit(heir, former, torch.rand(50, 52))
    assert heir.state_dict().keys() == Export3D(tiny()).state_dict().keys()
    for name, value in heir.state_dict().items():
        assert torch.equal(value, former.state_dict()[name]), name


def test_a_warp_put_on_keeps_its_own_weights_beside_those_inherited() -> None:
    former, heir = learned(), model(config=warped(*PARTS))
    own = {name: value.clone() for name, value in heir.state_dict().items() if name.startswith("warp.")}
    inherit(heir, former, torch.rand(50, 52))
    for name, value in heir.state_dict().items():
        assert torch.equal(value, own[name] if name in own else former.state_dict()[name]), name


@pytest.mark.parametrize("part", ["align", "skip", "flow", "redraw", "detail", "dense", "mouth", "matte"])
def test_each_part_taken_off_leaves_all_that_the_others_learned(part: str) -> None:
    former = taught(*PARTS)
    heir = Export3D(variant(former.config, f"no_{part}"))
    inherit(heir, former, torch.rand(50, 52))
    for name, value in heir.state_dict().items():
        other = former.state_dict()[name]
        if name in NARROWER and part == "mouth":  # the mouth's two inputs come before the matte's three
            other = torch.cat([other[:, :-5], other[:, -3:]], dim=1)
        if part == "matte" and other.shape != value.shape:
            assert name.startswith(("warp.detail.", "warp.dense.")), name
            other = other[:, : value.shape[1]]
        assert torch.equal(value, other), name


NARROWER = ("warp.detail.mid.weight", "warp.detail.first.weight")
"""What sees the mouth last, and no longer."""


def test_another_image_size_is_inherited_with_the_warp() -> None:
    config = warped(*PARTS)
    former, heir = learned(config, size=32), model(64, config)
    inherit(heir, former, torch.rand(50, 52))
    for name, value in former.state_dict().items():
        if name != "generator.average.value":
            assert torch.equal(heir.state_dict()[name], value), name


def test_a_warp_of_other_widths_inherits_nothing() -> None:
    config = warped(*PARTS)
    wider = replace(config, superres=replace(config.superres, mid_channels=2 * config.superres.mid_channels))
    former, heir = learned(wider), model(config=config)
    before = {name: value.clone() for name, value in heir.state_dict().items()}
    with pytest.raises(CheckpointError, match="former weights"):
        inherit(heir, former, torch.rand(50, 52))
    for name, value in heir.state_dict().items():
        assert torch.equal(value, before[name]), name
