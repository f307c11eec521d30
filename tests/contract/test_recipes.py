"""Each recipe is a script that the shell understands, and every command line in it one that the program accepts."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export3d.cli import main as program

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.sh"))
STAND_IN = """#!{python}
import json, sys
with open({log!r}, "a") as file:
    file.write(json.dumps([{name!r}, *sys.argv[1:]]) + "\\n")
"""
"""Takes the place of a program and notes how it was called."""

pytestmark = pytest.mark.skipif(shutil.which("sh") is None, reason="needs a POSIX shell")


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


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_recipe_can_be_started_and_says_how(recipe: Path) -> None:
    assert os.access(recipe, os.X_OK)
    assert subprocess.run(["sh", "-n", str(recipe)], check=False).returncode == 0


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_every_option_of_a_recipe_is_one_of_the_program(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    understood: list[str] = []
    entry = program.entry

    def recorded(name: str) -> Callable[..., int]:
        @functools.wraps(entry(name))
        def command(**given: Any) -> int:
            understood.append(name)
            return 0

        return command

    monkeypatch.setattr(program, "entry", recorded)
    made = calls(recipe, tmp_path)
    for call in made:
        argv = launched(call) if call[0] == "accelerate" else call[1:]
        assert program.main(argv) == 0, f"{' '.join(argv)}: {capsys.readouterr().err}"
    assert len(understood) == len(made) > 0
