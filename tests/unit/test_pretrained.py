"""A model in a file: written, read, and moved to another image size."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from export3d.camera import Camera
from export3d.config import tiny, variant
from export3d.errors import CheckpointError, ConfigError
from export3d.expression.encoder import ExpressionConfig, ExpressionEncoder
from export3d.model import Export3D
from export3d.pretrained import (
    adapt_resolution,
    inherit,
    load_encoder,
    load_pretrained,
    save_encoder,
    save_pretrained,
)
from export3d.warping.source_warp import WarpConfig
from export3d.weights.file import load_into, save_weights
from tests.heirs import CLEBS, assert_nearly_the_same, draw, learned, model, same_up_to_a_linear_map


def test_a_model_comes_back_as_it_was(tmp_path: Path) -> None:
    original = model()
    path = save_pretrained(original, tmp_path / "m.safetensors", {"images_seen": 7})
    loaded = load_pretrained(path)
    assert loaded.config == original.config
    for name, value in original.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert json.loads(path.with_suffix(".json").read_text("utf-8"))["info"]["images_seen"] == 7


def test_a_loaded_model_is_ready_for_inference(tmp_path: Path) -> None:
    loaded = load_pretrained(save_pretrained(model(), tmp_path / "m.safetensors", {}))
    assert not any(module.training for module in loaded.modules())
    assert not any(p.requires_grad for p in loaded.parameters())


def test_half_precision_files_load_as_float32_and_draw_nearly_the_same(tmp_path: Path) -> None:
    original = model().eval()
    path = save_pretrained(original, tmp_path / "m.safetensors", {}, dtype=torch.float16)
    loaded = load_pretrained(path)
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
    full = save_pretrained(original, tmp_path / "full.safetensors", {})
    assert path.stat().st_size < 0.6 * full.stat().st_size
    source, expression = torch.rand(1, 3, 64, 64) * 2 - 1, torch.rand(1, 52)
    with torch.no_grad():
        planes = [m.planes(m.encode(source), expression).triplane for m in (original, loaded)]
    torch.testing.assert_close(*planes, rtol=0.01, atol=0.01)


@pytest.mark.slow
def test_the_core_of_what_ships_has_weights_of_its_own() -> None:
    core = load_pretrained("core")
    pure = load_pretrained(pure=True)
    assert pure.config == core.config == variant(core.config, "pure")
    assert all(torch.equal(value, core.state_dict()[name]) for name, value in pure.state_dict().items())


def test_the_core_of_other_weights_renders_everything(tmp_path: Path) -> None:
    whole = learned(replace(tiny(), warp=WarpConfig()))
    path = save_pretrained(whole, tmp_path / "mine.safetensors", {"images_seen": 3})
    core = load_pretrained(path, pure=True)
    assert core.config == variant(whole.config, "pure")
    assert core.info["images_seen"] == 3
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in core.state_dict().items())
    size, camera = whole.config.image_size, torch.from_numpy(Camera.orbit(10.0).label[None]).float()
    inputs = torch.rand(1, 3, size, size), torch.rand(1, 52), camera, camera, torch.rand(1, 52), torch.rand(1, 478, 2)
    assert core(*inputs).warped is None
    assert whole(*inputs).warped is not None


def test_weights_without_a_warp_are_their_own_core(tmp_path: Path) -> None:
    path = save_pretrained(learned(), tmp_path / "mine.safetensors", {})
    assert load_pretrained(path, pure=True).config == tiny()


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors"):
        load_pretrained(tmp_path / "nothing.safetensors")


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    path = save_weights(tmp_path / "w.safetensors", {"a": torch.zeros(2)}, {"network": "other"}, {})
    with pytest.raises(CheckpointError, match="not hold an export3d model"):
        load_pretrained(path)
    save_file({"a": torch.zeros(2)}, tmp_path / "bare.safetensors")
    with pytest.raises(CheckpointError):
        load_pretrained(tmp_path / "bare.safetensors")


def test_weights_that_do_not_fit_their_configuration_are_refused(tmp_path: Path) -> None:
    original = model()
    tensors = dict(original.state_dict())
    del tensors["renderer.decoder.density.bias"]
    path = save_weights(tmp_path / "w.safetensors", tensors, {"model": original.config.to_dict()}, {})
    with pytest.raises(CheckpointError, match=r"renderer\.decoder\.density\.bias"):
        load_pretrained(path)


def test_a_setting_this_version_does_not_know_is_refused(tmp_path: Path) -> None:
    original = model()
    config = original.config.to_dict()
    config["render"]["fog"] = 1.0
    path = save_weights(tmp_path / "w.safetensors", original.state_dict(), {"model": config}, {})
    with pytest.raises(ConfigError, match=r"render\.fog"):
        load_pretrained(path)


@pytest.mark.parametrize(("before", "after"), [(32, 64), (64, 32), (64, 64)])
def test_weights_move_to_another_image_size(before: int, after: int) -> None:
    small, large = model(before), model(after)
    tensors = small.state_dict()
    load_into(large, adapt_resolution(tensors, large))
    for name, value in tensors.items():
        if name != "generator.average.value":
            assert torch.equal(large.state_dict()[name], value), name
    assert large.generator.average.value.shape == (3, 8, after // 2, after // 2)
    torch.testing.assert_close(
        large.generator.average.value.mean(), small.generator.average.value.mean(), atol=0.01, rtol=0.05
    )
    large(torch.zeros(1, 3, after, after), torch.zeros(1, 52), torch.eye(5).flatten()[None])


def test_the_average_keeps_its_place_when_it_is_resized() -> None:
    """Pixel centres stay aligned: a ramp across the plane is the same ramp at twice the size."""
    large = model(128)
    tensors = dict(model(64).state_dict())
    ramp = ((torch.arange(32) + 0.5) / 32).expand(3, 8, 32, 32).clone()
    tensors["generator.average.value"] = ramp
    moved = adapt_resolution(tensors, large)["generator.average.value"]
    expected = ((torch.arange(64) + 0.5) / 64).expand(3, 8, 64, 64)
    torch.testing.assert_close(moved[..., 1:-1], expected[..., 1:-1])


def test_adapting_leaves_weights_of_another_width_for_the_strict_loader_to_refuse() -> None:
    wide = Export3D(replace(tiny(), generator=replace(tiny().generator, plane_channels=4)))
    with pytest.raises(CheckpointError, match="do not fit"):
        load_into(model(), adapt_resolution(wide.state_dict(), model()))


# ---- the expression encoder in a file --------------------------------------------------------------------------------


@pytest.mark.parametrize("basis", [True, False])
def test_an_encoder_comes_back_as_it_was_and_frozen(tmp_path: Path, basis: bool) -> None:
    original = ExpressionEncoder(ExpressionConfig(hidden=16, n=4, d=12, basis=basis))
    original.standardise(torch.rand(52), torch.rand(52))
    original.low.uniform_(-1, 0)
    original.high.uniform_(0, 1)
    path = save_encoder(original, tmp_path / "clebs.safetensors", {"clips_seen": 8})
    loaded = load_encoder(path)
    assert loaded.config == original.config
    for name, value in original.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert not any(p.requires_grad for p in loaded.parameters())
    assert not loaded.training


def test_models_and_encoders_are_not_mistaken_for_each_other(tmp_path: Path) -> None:
    whole = save_pretrained(model(), tmp_path / "m.safetensors", {})
    encoder = save_encoder(ExpressionEncoder(ExpressionConfig()), tmp_path / "e.safetensors", {})
    with pytest.raises(CheckpointError, match="export3d pretrain"):
        load_encoder(whole)
    with pytest.raises(CheckpointError, match="not hold an export3d model"):
        load_pretrained(encoder)
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors"):
        load_encoder(tmp_path / "nothing.safetensors")


# ---- what another model learned --------------------------------------------------------------------------------------


def test_with_the_same_encoder_everything_is_inherited_bit_for_bit() -> None:
    former, heir, expression = learned(), model(), torch.rand(3, 52)
    inherit(heir, former, torch.rand(50, 52))
    assert torch.equal(draw(heir.eval(), expression), draw(former, expression))
    for name, value in former.state_dict().items():
        assert torch.equal(heir.state_dict()[name], value), name


def test_another_encoder_that_tells_as_much_draws_nearly_the_same() -> None:
    former, heir = learned(), learned(CLEBS)
    same_up_to_a_linear_map(former.expression, heir.expression)
    kept = copy.deepcopy(heir.expression.state_dict())
    expression = torch.rand(4, 52)
    inherit(heir, former, torch.rand(300, 52))
    for name, value in kept.items():
        assert torch.equal(heir.expression.state_dict()[name], value), name
    assert_nearly_the_same(draw(heir, expression), draw(former, expression))
    for name, value in former.state_dict().items():
        if not name.startswith("expression.") and "modulation" not in name:
            assert torch.equal(heir.state_dict()[name], value), name


@pytest.mark.parametrize("row", ["direct_3dmm", "e2e_lebs_n5", "e2e_lebs_n25", "clebs"])
def test_an_encoder_of_another_form_draws_what_it_can_tell(row: str) -> None:
    """What it cannot tell is lost, what does not depend on the expression is not."""
    former, heir = learned(), model(config=variant(tiny(), row)).eval()
    seen = torch.rand(300, 52)
    inherit(heir, former, seen)
    expression = torch.rand(6, 52)
    wanted = draw(former, expression)
    error = (draw(heir, expression) - wanted).square().mean()
    assert error < 1.5 * (wanted - wanted.mean(0)).square().mean()


def test_another_image_size_and_another_encoder_at_once() -> None:
    former, heir = learned(size=32), learned(CLEBS, size=64)
    same_up_to_a_linear_map(former.expression, heir.expression)
    inherit(heir, former, torch.rand(300, 52))
    twin = model(64)
    inherit(twin, former, torch.rand(50, 52))
    assert twin.generator.average.value.shape == (3, 8, 32, 32)
    expression = torch.rand(3, 52)
    assert_nearly_the_same(draw(heir, expression), draw(twin.eval(), expression))


def test_a_frozen_encoder_is_kept_also_where_the_former_had_another_frozen_one() -> None:
    """Two encoders of one form, such as two pre-trainings: the one that was chosen stays."""
    former, heir = learned(CLEBS), learned(CLEBS)
    same_up_to_a_linear_map(former.expression, heir.expression)
    kept = copy.deepcopy(heir.expression.state_dict())
    inherit(heir, former, torch.rand(300, 52))
    for name, value in kept.items():
        assert torch.equal(heir.expression.state_dict()[name], value), name
    expression = torch.rand(4, 52)
    assert_nearly_the_same(draw(heir, expression), draw(former, expression))


def test_a_super_resolution_of_other_widths_starts_anew() -> None:
    """The core's is wider than that of `base`, which it begins with."""
    wider = replace(tiny(), superres=replace(tiny().superres, mid_channels=16, high_channels=24))
    former, heir = learned(), model(config=wider)
    kept = copy.deepcopy(heir.superres.state_dict())
    inherit(heir, former, torch.rand(50, 52))
    for name, value in heir.state_dict().items():
        wanted = kept[name.removeprefix("superres.")] if name.startswith("superres.") else former.state_dict()[name]
        assert torch.equal(value, wanted), name


def test_a_model_of_another_width_inherits_nothing() -> None:
    former = model(config=replace(tiny(), generator=replace(tiny().generator, plane_channels=4)))
    for config in (tiny(), CLEBS):
        heir = model(config=config)
        before = {name: value.clone() for name, value in heir.state_dict().items()}
        with pytest.raises(CheckpointError, match="former weights"):
            inherit(heir, former, torch.rand(50, 52))
        for name, value in heir.state_dict().items():
            assert torch.equal(value, before[name]), name
