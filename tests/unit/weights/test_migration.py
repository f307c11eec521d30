"""Weights saved before the warp was a part of its own: their settings and tensors under today's names."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from export3d.config import ModelConfig, preset, tiny, variant
from export3d.errors import CheckpointError, ConfigError
from export3d.model import Export3D
from export3d.pretrained import install_weights, load_pretrained, save_pretrained, verify
from export3d.warping.source_warp import WarpConfig
from export3d.weights.file import load_weights, save_weights
from export3d.weights.migration import migrate
from tests.tiny_models import PARTS, awake, inputs, landmarks, warped

FORMER = tuple(
    part
    for part in PARTS
    if part not in ("irises", "lids", "glasses", "teeth", "inside", "turns", "shoulders", "matte", "scores")
)
"""The parts that there were."""
FORMER_PARTS = {"generator": ("skip", "align", "flow", "redraw"), "superres": ("detail", "dense", "mouth")}
FORMER_NAMES = {
    "warp.motion.": "motion.",
    "warp.dense.": "dense.",
    "warp.skip.gates.": "generator.skips.",
    "warp.skip.flows.": "generator.flows.",
    "warp.detail.": "superres.detail.",
}


def former_settings(config: ModelConfig) -> dict[str, Any]:
    """Settings as earlier releases wrote them: switches of the warp among those of generator and super-resolution."""
    values = config.to_dict()
    warp = values.pop("warp") or {}
    for part, names in FORMER_PARTS.items():
        values[part] |= {name: warp.get(name, False) for name in names}
    return values


def former_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as earlier releases named them."""
    out = {}
    for name, value in tensors.items():
        today = next((start for start in FORMER_NAMES if name.startswith(start)), "")
        out[FORMER_NAMES.get(today, "") + name.removeprefix(today)] = value
    return out


def leaves(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their own names and by their part's, but for the warp's."""
    return {
        name if part in ("generator", "superres", "warp") and name in PARTS else f"{part}.{name}": value
        for part, values in values.items()
        if isinstance(values, dict)
        for name, value in values.items()
    }


def former_base() -> Export3D:
    """A model like the `base` of then."""
    config = preset("base")
    for name in (
        "clebs",
        "no_irises",
        "no_lids",
        "no_glasses",
        "no_teeth",
        "no_inside",
        "no_turns",
        "no_shoulders",
        "no_matte",
        "no_scores",
    ):
        config = variant(config, name)
    return awake(config)


def save_as_before(model: Export3D, path: Path) -> Path:
    settings = {"model": former_settings(model.config)}
    return save_weights(path, former_tensors(model.state_dict()), settings, {"images_seen": 3})


# ---- the map ---------------------------------------------------------------------------------------------------------


def test_every_setting_and_tensor_of_weights_saved_before_lands_exactly_once() -> None:
    model = former_base()
    tensors, before = former_tensors(model.state_dict()), former_settings(model.config)
    settings, renamed = migrate(before, tensors)
    assert settings["warp"] == dict.fromkeys(FORMER, True)
    assert set(settings) == {*before, "warp"}
    assert leaves(settings) == leaves(before)
    assert sum(len(part) for part in settings.values() if isinstance(part, dict)) == len(leaves(settings))
    assert len(renamed) == len(tensors)
    kept = [name for name in tensors if not name.startswith(tuple(FORMER_NAMES.values()))]
    assert all(renamed[name] is tensors[name] for name in kept)
    landed = {id(value): name for name, value in renamed.items()}
    assert all(id(value) in landed for value in tensors.values())
    assert former_tensors(renamed).keys() == tensors.keys()


def test_the_model_of_migrated_weights_has_exactly_these_names() -> None:
    loaded = former_base()
    settings, renamed = migrate(former_settings(loaded.config), former_tensors(loaded.state_dict()))
    model = Export3D(ModelConfig.from_dict(settings))
    assert model.config.warp == WarpConfig()
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in renamed.items()
    }
    assert loaded.config == model.config
    for name, value in renamed.items():
        assert torch.equal(loaded.state_dict()[name], value.to(loaded.state_dict()[name].dtype)), name


@pytest.mark.parametrize("config", [tiny(), warped("skip"), warped(*PARTS)], ids=["paper", "skip", "all"])
def test_files_of_today_come_back_unchanged(config: ModelConfig) -> None:
    values, tensors = config.to_dict(), Export3D(config).state_dict()
    settings, renamed = migrate(values, tensors)
    assert settings == values
    assert list(renamed) == list(tensors)
    assert all(renamed[name] is value for name, value in tensors.items())


def test_what_has_been_migrated_is_of_today() -> None:
    config = warped(*FORMER)
    once = migrate(former_settings(config), former_tensors(Export3D(config).state_dict()))
    again = migrate(*once)
    assert again[0] == once[0]
    assert again[1].keys() == once[1].keys()


def test_migration_leaves_what_it_is_given_as_it_was() -> None:
    values = former_settings(warped(*PARTS))
    tensors = {"motion.out.weight": torch.zeros(1)}
    kept = copy.deepcopy(values)
    migrate(values, tensors)
    assert values == kept
    assert list(tensors) == ["motion.out.weight"]


@pytest.mark.parametrize("name", ["paper", "tiny"])
def test_former_settings_without_a_warp_give_none(name: str) -> None:
    config = preset(name)
    settings, _ = migrate(former_settings(config), {})
    assert settings["warp"] is None
    assert ModelConfig.from_dict(settings) == config


@pytest.mark.parametrize(
    "parts",
    [
        ("align",),
        ("skip",),
        ("align", "skip"),
        ("skip", "flow"),
        ("align", "skip", "flow", "redraw"),
        ("detail",),
        ("detail", "dense"),
        ("align", "detail", "mouth"),
        FORMER,
    ],
    ids="-".join,
)
def test_former_settings_with_some_parts_give_just_those(parts: tuple[str, ...]) -> None:
    config = warped(*parts)
    tensors = Export3D(config).state_dict()
    settings, renamed = migrate(former_settings(config), former_tensors(tensors))
    assert ModelConfig.from_dict(settings) == config
    assert renamed.keys() == tensors.keys()
    assert all(renamed[name] is value for name, value in tensors.items())


def test_switches_that_were_not_there_yet_count_as_off() -> None:
    values = former_settings(warped("skip", "flow", "detail"))
    for part, name in (("superres", "mouth"), ("superres", "dense"), ("generator", "redraw"), ("generator", "align")):
        del values[part][name]
    assert ModelConfig.from_dict(migrate(values, {})[0]) == warped("skip", "flow", "detail")


def test_settings_of_before_any_switch_are_the_papers() -> None:
    values = tiny().to_dict()
    del values["warp"]
    assert ModelConfig.from_dict(migrate(values, {})[0]) == tiny()
    assert ModelConfig.from_dict(migrate({}, {})[0]) == ModelConfig()


def test_only_what_begins_with_a_former_name_is_renamed() -> None:
    names = ["expression.motion.a", "generator.skipsx", "renderer.dense.b", "densex", "superres.high_rgb.weight"]
    assert [*migrate({}, dict.fromkeys(names, torch.zeros(1)))[1]] == names


def test_the_first_form_of_what_draws_mouths_is_left_out() -> None:
    config = warped(*PARTS)
    tensors = dict(Export3D(config).state_dict())
    tensors["warp.inner.first.weight"] = torch.zeros(32, 16, 3, 3)
    settings, kept = migrate(config.to_dict(), tensors)
    assert ModelConfig.from_dict(settings) == variant(config, "no_inside")
    assert kept.keys() == Export3D(variant(config, "no_inside")).state_dict().keys()


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def model() -> Export3D:
    """A model with a whole warp in which everything does something."""
    made = awake(warped(*FORMER))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        made.generator.average.value.normal_(std=0.1)
    return made


def rendered(model: Export3D) -> Tensor:
    torch.manual_seed(1)
    source, expression, camera = inputs(2)
    own = camera.flip(0)
    with torch.no_grad():
        encoded = model.encode(source, own, expression.flip(0), landmarks(own))
        return model.frame(model.planes(encoded, expression), camera)


def test_a_file_of_before_renders_as_the_model_it_came_from_to_the_bit(model: Export3D, tmp_path: Path) -> None:
    path = save_as_before(model, tmp_path / "old.safetensors")
    assert not [name for name in load_weights(path)[0] if name.startswith("warp")]
    assert "warp" not in path.with_suffix(".json").read_text("utf-8")
    loaded = load_pretrained(path)
    assert loaded.config == model.config
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert rendered(model).std() > 0.1
    assert torch.equal(rendered(loaded), rendered(model))


def test_a_file_of_before_is_installed_and_found_by_name(
    model: Export3D, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPORT3D_HOME", str(tmp_path / "home"))
    path = save_as_before(model, tmp_path / "old.safetensors")
    assert verify(path)["info"] == {"images_seen": 3}
    install_weights(path, "grandma")
    path.unlink()
    for loaded in (load_pretrained("grandma"), Export3D.from_pretrained("grandma")):
        assert torch.equal(rendered(loaded), rendered(model))


def test_a_file_of_before_that_is_saved_again_is_one_of_today(model: Export3D, tmp_path: Path) -> None:
    loaded = load_pretrained(save_as_before(model, tmp_path / "old.safetensors"))
    path = save_pretrained(loaded, tmp_path / "new.safetensors", {})
    words = json.loads(path.with_suffix(".json").read_text("utf-8"))
    assert words["config"]["model"] == model.config.to_dict()
    tensors = load_weights(path)[0]
    assert tensors.keys() == model.state_dict().keys()
    assert torch.equal(rendered(load_pretrained(path)), rendered(model))


@pytest.mark.parametrize("name", ["no_warp", "no_skip", "no_detail", "no_align"])
def test_a_variant_of_before_loads_as_what_it_was(name: str, tmp_path: Path) -> None:
    made = awake(variant(warped(*FORMER), name))
    loaded = load_pretrained(save_as_before(made, tmp_path / "old.safetensors"))
    assert loaded.config == made.config
    assert torch.equal(rendered(loaded), rendered(made))


def test_a_file_of_before_that_lacks_a_tensor_is_refused_by_todays_name(model: Export3D, tmp_path: Path) -> None:
    tensors = former_tensors(model.state_dict())
    del tensors["motion.out.weight"]
    settings = {"model": former_settings(model.config)}
    path = save_weights(tmp_path / "old.safetensors", tensors, settings, {})
    with pytest.raises(CheckpointError, match=r"warp\.motion\.out\.weight"):
        load_pretrained(path)


@pytest.mark.parametrize(
    ("part", "name", "value", "told"),
    [
        ("generator", "skip", 1, "warp.skip must be of type bool"),
        ("generator", "skip", False, "warp.flow needs warp.skip"),
        ("superres", "detail", False, "warp.dense needs warp.detail"),
        ("superres", "shine", True, "superres.shine"),
    ],
)
def test_former_settings_that_cannot_be_are_refused_in_one_sentence(
    part: str, name: str, value: Any, told: str, model: Export3D, tmp_path: Path
) -> None:
    settings = former_settings(model.config)
    settings[part][name] = value
    path = save_weights(tmp_path / "old.safetensors", former_tensors(model.state_dict()), {"model": settings}, {})
    with pytest.raises(ConfigError, match=told) as caught:
        load_pretrained(path)
    assert "\n" not in str(caught.value)


def test_a_tensor_with_an_earlier_and_a_present_name_is_refused() -> None:
    settings = former_settings(warped())
    with pytest.raises(CheckpointError, match="in two ways"):
        migrate(settings, {"motion.out.weight": torch.zeros(1), "warp.motion.out.weight": torch.ones(1)})
