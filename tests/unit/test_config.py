"""Settings of the model: presets, variants, JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from export3d.config import (
    PRESETS,
    VARIANTS,
    ModelConfig,
    base,
    no_lowpass,
    paper,
    preset,
    tiny,
    variant,
)
from export3d.errors import ConfigError
from export3d.warping.source_warp import WarpConfig


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in values.items():
        out |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return out


def changed(one: ModelConfig, other: ModelConfig) -> set[str]:
    """Names of the settings that differ."""
    a, b = flat(one.to_dict()), flat(other.to_dict())
    return {name for name in a if a[name] != b[name]}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_json(name: str) -> None:
    config = preset(name)
    assert ModelConfig.from_dict(json.loads(config.to_json())) == config


def test_the_paper_preset_states_the_sizes_of_the_paper() -> None:
    config = paper()
    assert (config.expression.n, config.expression.d, config.expression.frozen) == (10, 256, True)
    g = config.generator
    assert (g.image_size, g.dim, g.heads, g.plane_channels, g.ema_delta) == (256, 1024, 4, 32, 0.998)
    assert config.warp is None
    assert g.lowpass_sigma > 0
    assert config.render.resolution == 64


def test_every_preset_renders_a_quarter_of_its_image() -> None:
    for build in (paper, base, tiny):
        assert build().image_size == 4 * build().render.resolution
        assert build().generator.image_size <= build().image_size


@pytest.mark.parametrize(
    ("build", "size", "seen"),
    [(paper, 128, 128), (paper, 512, 512), (base, 512, 128), (base, 128, 128), (base, 64, 64)],
)
def test_another_size_is_seen_whole_or_as_small_as_before(
    build: Callable[[], ModelConfig], size: int, seen: int
) -> None:
    config = build().sized(size)
    assert (config.image_size, config.generator.image_size) == (size, seen)
    assert config.sized(256).sized(size) == config or build is base


def test_sizes_go_by_32() -> None:
    with pytest.raises(ConfigError, match="multiple of 32"):
        base().sized(100)


def test_a_setting_left_out_takes_its_default() -> None:
    assert ModelConfig.from_dict({}) == ModelConfig()
    assert ModelConfig.from_dict({"render": {"coarse": 12}}).render.coarse == 12


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"colour": 3}, "colour"),
        ({"generator": {"depth": 3}}, "generator.depth"),
        ({"generator": 3}, "generator"),
        ({"generator": {"dim": "wide"}}, "generator.dim"),
        ({"generator": {"dim": 64.0}}, "generator.dim"),
        ({"generator": {"skip": True}}, "generator.skip"),
        ({"superres": {"detail": True}}, "superres.detail"),
        ({"warp": {"skip": 1}}, "warp.skip"),
        ({"warp": {"glow": True}}, "warp.glow"),
        ({"warp": True}, "warp"),
        ({"warp": {"skip": False}}, "warp.flow needs warp.skip"),
        ({"warp": {"flow": False}}, "warp.redraw needs warp.flow"),
        ({"warp": {"detail": False, "mouth": False}}, "warp.dense needs warp.detail"),
        ({"warp": {"detail": False, "dense": False}}, "warp.mouth needs warp.detail"),
        ({"warp": dict.fromkeys(("align", "skip", "flow", "redraw", "detail", "dense", "mouth"), False)}, "null"),
        ({"expression": {"frozen": 0}}, "expression.frozen"),
        ({"render": {"coarse": True}}, "render.coarse"),
        ({"render": {"reach": None}}, "render.reach"),
        ({"space": 52}, "space"),
        ({"space": "flame"}, "flame"),
    ],
)
def test_unknown_and_ill_typed_settings_are_refused_by_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        ModelConfig.from_dict(values)


def test_a_warp_is_null_or_a_part_of_its_own() -> None:
    assert ModelConfig.from_dict({"warp": None}).warp is None
    assert ModelConfig.from_dict({"warp": {}}).warp == WarpConfig()
    parts = WarpConfig(dense=False, mouth=False)
    assert ModelConfig.from_dict({"warp": {"dense": False, "mouth": False}}).warp == parts
    words = json.loads(replace(tiny(), warp=parts).to_json())
    on = ("align", "skip", "flow", "redraw", "detail")
    off = ("dense", "mouth", "irises", "lids", "glasses", "teeth", "inside", "turns", "shoulders", "matte", "scores")
    assert words["warp"] == dict.fromkeys(on, True) | dict.fromkeys(off, False)
    assert json.loads(tiny().to_json())["warp"] is None


def test_a_whole_number_serves_where_a_fraction_is_meant() -> None:
    assert ModelConfig.from_dict({"generator": {"lowpass_sigma": 2}}).generator.lowpass_sigma == 2.0


def test_the_expression_space_decides_the_number_of_coefficients() -> None:
    with pytest.raises(ConfigError, match="bfm64"):
        replace(tiny(), space="bfm64")
    config = replace(tiny(), space="bfm64", expression=replace(tiny().expression, inputs=64))
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert tiny().in_space("bfm64") == config
    assert config.in_space("arkit52") == tiny()
    with pytest.raises(ConfigError, match="known spaces: arkit52"):
        tiny().in_space("flame")


def test_image_and_raw_image_must_fit_each_other() -> None:
    with pytest.raises(ConfigError, match="four times"):
        replace(tiny(), render=replace(tiny().render, resolution=8))


@pytest.mark.parametrize("name", PRESETS)
def test_the_low_pass_can_be_left_out_and_nothing_else_changes(name: str) -> None:
    config = preset(name)
    assert changed(config, no_lowpass(config)) == {"generator.lowpass_sigma"}
    assert no_lowpass(config).generator.lowpass_sigma == 0.0


@pytest.mark.parametrize(
    ("name", "off"),
    [
        ("no_align", {"align"}),
        ("no_skip", {"skip", "flow", "redraw"}),  # what needs a part goes with it
        ("no_flow", {"flow", "redraw"}),
        ("no_redraw", {"redraw"}),
        (
            "no_detail",
            {
                "detail",
                "dense",
                "mouth",
                "irises",
                "lids",
                "glasses",
                "teeth",
                "inside",
                "turns",
                "shoulders",
                "matte",
            },
        ),
        ("no_dense", {"dense"}),
        ("no_mouth", {"mouth", "teeth", "inside"}),
        ("no_irises", {"irises"}),
        ("no_lids", {"lids"}),
        ("no_glasses", {"glasses"}),
        ("no_teeth", {"teeth", "inside"}),
        ("no_inside", {"inside"}),
        ("no_shoulders", {"shoulders"}),
        ("no_matte", {"shoulders", "matte"}),
        ("no_scores", {"scores"}),
        (
            "pure",
            {
                "flow",
                "redraw",
                "detail",
                "dense",
                "mouth",
                "irises",
                "lids",
                "glasses",
                "teeth",
                "inside",
                "turns",
                "shoulders",
                "matte",
                "scores",
            },
        ),
    ],
)
def test_a_variant_switches_off_one_part_of_the_warp_and_what_needs_it(name: str, off: set[str]) -> None:
    found = variant(base(), name)
    assert changed(base(), found) == {f"warp.{part}" for part in off}
    assert found.warp is not None
    assert not any(getattr(found.warp, part) for part in off)
    assert variant(found, name) == found


def test_without_a_warp_what_ships_has_the_papers_form() -> None:
    assert base().warp is not None
    assert variant(base(), "no_warp") == replace(base(), warp=None)
    assert paper().warp is tiny().warp is None


@pytest.mark.parametrize("name", PRESETS)
def test_the_rows_of_table_3_differ_in_their_expression_encoder_alone(name: str) -> None:
    rows = {row: variant(preset(name), row) for row in list(VARIANTS)[:5]}
    assert list(rows) == ["direct_3dmm", "e2e_lebs_n25", "e2e_lebs_n10", "e2e_lebs_n5", "clebs"]
    found = {row: (c.expression.basis, c.expression.n, c.expression.frozen) for row, c in rows.items()}
    assert found == {
        "direct_3dmm": (False, 10, False),
        "e2e_lebs_n25": (True, 25, False),
        "e2e_lebs_n10": (True, 10, False),
        "e2e_lebs_n5": (True, 5, False),
        "clebs": (True, 10, True),
    }
    for row in rows.values():
        assert changed(preset(name), row) <= {"expression.basis", "expression.n", "expression.frozen"}


def test_a_later_row_undoes_an_earlier_one() -> None:
    frozen = variant(tiny(), "clebs")
    assert variant(frozen, "e2e_lebs_n10") == variant(tiny(), "e2e_lebs_n10")
    assert variant(variant(tiny(), "direct_3dmm"), "clebs") == frozen


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_survives_json(name: str) -> None:
    config = variant(base(), name)
    assert ModelConfig.from_dict(json.loads(config.to_json())) == config


def test_weights_of_before_some_settings_are_still_read() -> None:
    old = tiny().to_dict()
    del old["generator"]["ema_delta"], old["expression"]["basis"], old["expression"]["frozen"], old["warp"]
    assert ModelConfig.from_dict(old) == tiny()


def test_an_unknown_variant_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no_eyes.*direct_3dmm, .*clebs"):
        variant(tiny(), "no_eyes")


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"huge.*paper, base, core, tiny"):
        preset("huge")
