"""docs/paper.md agrees with the program: settings of the recipe, sizes of the preset, symbols and tests."""

from __future__ import annotations

import functools
import importlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from export3d.cli.main import main
from export3d.config import preset
from export3d.discriminator import Discriminator, discriminator_config
from export3d.expression.contrastive import ResNetSE18
from export3d.model import Export3D
from export3d.render.renderer import Rendered
from export3d.training.loop import _EPS
from export3d.training.side import Side
from tests.tiny_models import cameras

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "paper.md").read_text("utf-8")
STAGES = ("pretrain", "train", "refine")
SETTING = re.compile(r"`((?:\w+, )*\w+) ([\w.]+) = ([^`]+)`")
SYMBOL = re.compile(r"`([\w/]+\.py)` → `([\w.]+)`")
TEST = re.compile(r"`([\w/]+\.py)::(test_\w+)`")

RECORD = (
    "accumulate max_minutes log_every sheet_every validate_every save_every keep weights_part_mb seed channels_last "
    "compile cpu tensorboard progress"
)
KEPT_OUT = {
    *(f"{stage} loop.{name}" for stage in STAGES for name in RECORD.split()),
    *(f"{stage} loop.{name}" for stage in STAGES for name in ("decay_from", "final_lr_ratio", "ema_rampup")),
    *(f"{stage} data.memory" for stage in STAGES),
    "refine discriminator.r1_every",
    "train data.taught_share",
    "model expression.inputs",
}
"""How a run is computed and recorded, what has no effect in the recipe, and what the data decide."""


@functools.cache
def rows(heading: str = "") -> tuple[tuple[str, ...], ...]:
    """Cells of the table rows below a heading, or of the whole page."""
    text = PAGE if not heading else PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [tuple(cell.strip() for cell in line.strip("| ").split(" | ")) for line in lines]
    return tuple(row for row in cells if not {"here", "parameters"} & set(row))


def stated() -> Iterator[tuple[str, str]]:
    """Every setting of the page: "STAGE KEY" and its value as written."""
    for whole in SETTING.findall(PAGE.split("\n## Equations\n")[1]):
        for stage in whole[0].split(", "):
            yield f"{stage} {whole[1]}", whole[2]


def flat(value: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, item in value.items():
        if isinstance(item, dict):
            yield from flat(item, f"{before}{name}.")
        else:
            yield before + name, item


@pytest.fixture
def actual(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Every setting that `--recipe paper --print-config` shows for the three stages, and those of the preset."""
    found = {f"model {key}": value for key, value in flat(preset("paper").to_dict())}
    for stage in STAGES:
        assert main([stage, "--recipe", "paper", "--print-config"]) == 0
        found |= {f"{stage} {key}": value for key, value in flat(json.loads(capsys.readouterr().out))}
    return found


def value_of(text: str) -> Any:
    """A value as the page writes it: JSON, a bare word, or none."""
    try:
        return json.loads(text)
    except ValueError:
        return None if text == "none" else text


def test_the_recipe_has_the_values_of_the_table(actual: dict[str, Any]) -> None:
    assert len(list(stated())) > 120
    wrong = {}
    for name, text in stated():
        # "none" is null for an optional setting and a word for the others
        given = actual.get(name, "no such setting")
        wanted = text if isinstance(given, str) else value_of(text)
        if type(given) is not type(wanted) or given != wanted:
            wrong[name] = (text, given)
    assert wrong == {}


def test_no_setting_is_missing_from_the_table_and_none_is_there_twice(actual: dict[str, Any]) -> None:
    names = [name for name, _ in stated()]
    assert sorted(set(actual) - set(names) - KEPT_OUT) == []
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_every_equation_has_a_row() -> None:
    assert [row[1] for row in rows("Equations")] == [f"Eq. {number}" for number in range(1, 15)]


def test_every_row_names_a_symbol_and_a_test() -> None:
    headings = ["Equations", "Network", "Expression pre-training (CLeBS)", "Training", "Data", "Evaluation"]
    for heading in (*headings, "Not stated, ours"):
        assert len(rows(heading)) >= 5
        for row in rows(heading):
            assert len(row) == (4 if heading == "Not stated, ours" else 5), row
            assert SYMBOL.fullmatch(row[-2]), row
            assert TEST.fullmatch(row[-1]), row


def test_every_symbol_exists() -> None:
    missing = []
    for file, symbol in set(SYMBOL.findall(PAGE)):
        found: Any = importlib.import_module("export3d." + file.removesuffix(".py").replace("/", "."))
        for name in symbol.split("."):
            found = getattr(found, name, None)
        if found is None:
            missing.append(f"{file} → {symbol}")
    assert sorted(missing) == []


def test_every_named_test_exists() -> None:
    missing = []
    for file, name in set(TEST.findall(PAGE)):
        path = ROOT / "tests" / file
        if not path.is_file() or not re.search(rf"^def {name}\(", path.read_text("utf-8"), re.MULTILINE):
            missing.append(f"{file}::{name}")
    assert sorted(missing) == []


def test_adamw_without_decay_is_adam(actual: dict[str, Any]) -> None:
    assert {actual[f"{stage} loop.weight_decay"] for stage in STAGES} == {0.0}
    assert _EPS == 1e-8
    ours, theirs = nn.Linear(4, 3), nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    betas = tuple(actual["train loop.betas"])
    side = Side(ours, 1e-4, betas, _EPS, actual["train loop.weight_decay"])
    adam = torch.optim.Adam(theirs.parameters(), lr=1e-4, betas=betas, eps=1e-8)
    x = torch.randn(20, 5, 4)
    for batch in x:
        side.begin(1e-4)
        adam.zero_grad()
        for network in (ours, theirs):
            network(batch).square().sum().backward()
        side.optimizer.step()
        adam.step()
    for a, b in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


# ---- parameters and shapes -------------------------------------------------------------------------------------------


def first(output: Any) -> Tensor:
    """The tensor that a part of the model hands on."""
    if isinstance(output, Rendered):
        return output.feature
    if isinstance(output, tuple):
        return output[-1] if isinstance(output[-1], Tensor) else output[0]
    return output


@pytest.mark.slow
def test_parameters_and_shapes_are_those_of_the_table() -> None:
    """Tensors have shapes and no numbers: nothing is computed."""
    with torch.device("meta"):
        parts: dict[str, nn.Module] = {
            "model": Export3D(preset("paper")),
            "image encoder": ResNetSE18(64, 256, 0),
            "discriminator": Discriminator(replace(discriminator_config("full", 256), dual=False)),
        }
    for part in parts.values():
        part.to_empty(device="cpu")  # memory that is never touched
    listed = [(row[1].strip("`"), int(row[2].replace(",", "")), row[3]) for row in rows("Parameters and shapes")]
    modules = {name: parts.get(name) or parts["model"].get_submodule(name) for name, *_ in listed}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in modules.items():
        last = module[-1] if isinstance(module, nn.ModuleList) else module

        def keep(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
            shapes[name] = tuple(first(getattr(output, "image", output)).shape)

        last.register_forward_hook(keep)
    with FakeTensorMode(allow_non_fake_inputs=True):
        image, expression = torch.zeros(1, 3, 256, 256), torch.zeros(1, 52)
        output = parts["model"](image, expression, cameras(1))
        parts["image encoder"].eval()(image)
        parts["discriminator"](image, output.rendered.raw, cameras(1))
    found = [
        (name, sum(p.numel() for p in modules[name].parameters()), " × ".join(map(str, shapes[name])))
        for name, *_ in listed
    ]
    assert listed == found
    trained = sum(p.numel() for p in parts["model"].parameters() if p.requires_grad)
    assert f"{trained:,} parameters are trained" in PAGE
