"""Recipes of the package resolve for each of their stages; scripts in recipes/ are valid, down to every setting."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import export3d
from export3d.cli import main as program
from export3d.config import ModelConfig, preset, variant
from export3d.losses import ReconstructionWeights
from export3d.pretrained import load_pretrained
from export3d.training.adversarial import AdversarialConfig
from export3d.training.pretrain import PretrainConfig
from export3d.training.recipes import KEYS, parse, resolve
from export3d.training.recipes import RECIPES as PACKAGED
from export3d.training.reconstruction import ReconstructionConfig

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.sh"))
TRAININGS = ("pretrain", "train", "refine", "ablate")
STAND_IN = """#!{python}
import json, sys
with open({log!r}, "a") as file:
    file.write(json.dumps([{name!r}, *sys.argv[1:]]) + "\\n")
"""
"""Takes the place of a program and notes how it was called."""

needs_sh = pytest.mark.skipif(shutil.which("sh") is None, reason="needs a POSIX shell")


def calls(recipe: Path, folder: Path) -> list[list[str]]:
    """How a recipe calls `export3d` and `accelerate`, given made-up arguments."""
    log = folder / "calls.jsonl"
    for name in ("export3d", "accelerate"):
        path = folder / name
        path.write_text(STAND_IN.format(python=sys.executable, log=str(log), name=name), encoding="utf-8")
        path.chmod(0o755)
    usage = next(
        line for line in recipe.read_text("utf-8").splitlines() if line.startswith(f"#   recipes/{recipe.name}")
    )
    wanted = [word for word in usage.split()[2:] if word[0].isupper()]  # what stands in brackets may be left out
    given = [str(folder / word.lower()) for word in wanted]
    path = os.pathsep.join([str(folder), os.environ["PATH"]])
    done = subprocess.run(
        ["sh", str(recipe), *given],
        cwd=ROOT,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in log.read_text("utf-8").splitlines()]


def launched(call: list[str]) -> list[str]:
    """What `accelerate launch` starts: the arguments of export3d."""
    launch = pytest.importorskip("accelerate.commands.launch")
    name, *given = call[1:]
    assert name == "launch"
    options = launch.launch_command_parser().parse_args(given)
    assert options.module
    assert options.training_script == "export3d"
    assert options.multi_gpu, "without it one process starts where there is no GPU"
    return list(options.training_script_args)


def test_there_are_recipes() -> None:
    assert {"laptop.sh", "vfhq_8gpu.sh"} <= {path.name for path in RECIPES}


@needs_sh
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_recipe_can_be_started_and_says_how(recipe: Path) -> None:
    assert os.access(recipe, os.X_OK)
    assert subprocess.run(["sh", "-n", str(recipe)], check=False).returncode == 0


@needs_sh
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_every_option_and_setting_of_a_script_is_one_of_the_program(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    understood: list[str] = []
    entry = program.entry

    def recorded(name: str) -> Callable[..., int | None]:
        if name in TRAININGS:
            return entry(name)

        @functools.wraps(entry(name))
        def command(**given: Any) -> int:
            understood.append(name)
            return 0

        return command

    monkeypatch.setattr(program, "entry", recorded)
    made = calls(recipe, tmp_path)
    for call in made:
        argv = launched(call) if call[0] == "accelerate" else call[1:]
        shown = ["--print-config"] if argv[0] in TRAININGS else []
        assert program.main([*argv, *shown]) == 0, f"{' '.join(argv)}: {capsys.readouterr().err}"
        if shown:
            assert json.loads(capsys.readouterr().out)["loop"]
            understood.append(argv[0])
    assert len(understood) == len(made) > 0


@needs_sh
def test_the_cpu_recipe_trains_the_models_that_ship(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From nothing, at the size and with the samples per ray of the packaged weights."""
    base, core = load_pretrained().config, load_pretrained("core").config
    legs = [call[1:] for call in calls(ROOT / "recipes" / "train_cpu.sh", tmp_path) if call[1] == "train"]
    assert ["--from-pretrained" in leg for leg in legs] == [False, True, True, True, True]
    wanted = [base.sized(128), base, base, core.sized(128), core]
    for leg, model in zip(legs, wanted, strict=True):
        assert program.main([*leg, "--print-config"]) == 0
        shown = json.loads(capsys.readouterr().out)
        table, render = shown["model"], shown["render"]
        config = ReconstructionConfig(
            preset=table["preset"], variants=tuple(table["variants"]), image_size=table["image_size"], **render
        )
        assert config.model_config(space=model.space) == model


# ---- the recipes of the package -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("command", "recipe"), [(command, name) for command in TRAININGS for name in PACKAGED])
def test_a_packaged_recipe_shows_its_settings_without_data(
    command: str, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = program.main([command, "--recipe", recipe, "--print-config"])
    out, err = capsys.readouterr()
    if (command, recipe) in (("pretrain", "fine-tune"), ("pretrain", "core"), ("refine", "core")):
        assert code == 2
        assert err == f"export3d: recipe {recipe} has no stage {command}; choose another with --recipe\n"
        return
    assert code == 0
    shown = {f"{table}.{name}" for table, values in json.loads(out).items() for name in values}
    assert shown == set(KEYS["train" if command == "ablate" else command]), "every setting"


def test_the_recipes_of_the_package_are_these() -> None:
    folder = Path(export3d.__file__).parent / "recipes"
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}.toml" for name in PACKAGED)
    for name in PACKAGED:
        assert set(parse((folder / f"{name}.toml").read_text("utf-8"), name)) <= set(KEYS)


@pytest.mark.parametrize("name", ["base", "core"])
def test_the_variants_of_a_recipe_change_its_preset(name: str) -> None:
    settings = resolve(ReconstructionConfig, name).config
    assert settings.preset is not None
    own = preset(settings.preset)
    assert [each for each in settings.variants if variant(own, each) == own] == []


def test_the_recipe_core_gives_the_form_of_the_weights_that_ship() -> None:
    sidecar = json.loads((Path(export3d.__file__).parent / "assets" / "core.json").read_text("utf-8"))
    found = resolve(ReconstructionConfig, "core").config.model_config()
    assert found == ModelConfig.from_dict(sidecar["config"]["model"])


def test_the_paper_is_the_papers() -> None:
    """Sec. 3.4 and 4.2, Sec. 6.3 of the supplement."""
    before, one, two = (resolve(stage, "paper") for stage in (PretrainConfig, ReconstructionConfig, AdversarialConfig))
    steps = [found.loop.max_images / found.loop.batch_size for found in (before, one, two)]  # type: ignore[operator]
    assert steps == [60_000, 300_000, 10_000]
    assert {found.loop.batch_size for found in (before, one, two)} == {8}
    assert {found.loop.lr for found in (before, one, two)} == {1e-4}
    assert {(found.loop.grad_clip, found.loop.warmup_images, found.loop.decay) for found in (before, one, two)} == {
        (None, 0, "none")
    }
    model, frames = before.config.model, before.config.frames
    assert (model.objective, model.temperature, frames.frames - 1) == ("printed", 0.07, 32)
    assert (model.expression.n, model.expression.d) == (10, 256)
    assert one.config.model_config() == preset("paper") == variant(preset("paper"), "clebs")
    named = resolve(ReconstructionConfig, "base", changes=["model.preset=paper", "model.variants=[]"])
    assert named.config.model_config().expression.frozen, "without the recipe too"
    for config in (one.config, two.config):
        assert config.backbone == "vgg16"
        assert config.weights == ReconstructionWeights(l2_raw=1, l2=1, lpips_raw=1, lpips=1)
        assert (config.mirror, config.augment, config.hard_fraction) == (False, False, 0)
    assert (two.config.lambda_rec, two.config.lambda_adv, two.config.d_lr) == (1, 0.01, 1e-5)
    assert two.config.adv_trainable == "all"


@pytest.mark.slow
def test_settings_are_printed_by_a_program_of_its_own(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "export3d", "train", "--recipe", "paper", "--set", "loss.lpips=2", "--print-config"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["loss"]["lpips"], found["loss"]["backbone"], found["loop"]["max_images"]) == (2.0, "vgg16", 2_400_000)
    assert list(tmp_path.iterdir()) == []


def test_every_setting_in_the_pages_is_one_of_the_program() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    pattern = re.compile(r"--set ([a-z_]+(?:\.\w+)+)")
    named = {(page.name, key) for page in pages for key in pattern.findall(page.read_text("utf-8"))}
    assert len(named) > 10
    known = {name for stage, keys in KEYS.items() for key in keys for name in (key, f"{stage}.{key}")}
    assert sorted(f"{page}: {key}" for page, key in named if key not in known) == []
