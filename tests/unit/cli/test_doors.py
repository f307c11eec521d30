"""Every path argument of every command: what the system refuses is one sentence and exit code 2; nothing is written."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from export3d.cli.main import COMMANDS, main

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="other limits, and no pipes")

LINES = (
    "animate @FACE.png --motion @speech.motion -o @o.mp4 --sheet @o.png --weights @WEIGHTS --background @b.png",
    "animate FACE --driving @clip.mp4 -o o.mp4 --weights WEIGHTS",
    "animate --batch @list.csv -o @o",
    "live @FACE.png --camera @FACE.png --sink @o.mp4 --weights @WEIGHTS --background @b.png",
    "studio --port 0 --no-browser --folder @folder",
    "serve --port 0 --folder @folder",
    "edit @FACE.jpg -o @o.png --weights @WEIGHTS --background @b.jpg",
    "orbit @FACE.png -o @o.mp4 --motion @speech.csv --weights @WEIGHTS --background @b.png",
    "sheet basis @FACE.png -o @o --weights @WEIGHTS",
    "sheet views @FACE.png -o @o --motion @speech.npz --weights @WEIGHTS",
    "verify @FACE.png",
    "track @clip.mp4 -o @o.motion",
    "track @clip.csv -o o.motion",
    "compare-motion @speech.motion @clip.mp4",
    "prepare @FACE.png -o @o --workers 0",
    "prepare FACE -o o --manifest @people.csv",
    "prepare FACE -o o --coefficients @folder",
    "pseudo-clips @data -o o --face-model m.npz --landmark-map m.npz",
    "pseudo-clips data -o o --face-model m.npz --landmark-map m.npz --exclude @keys.txt",
    "pack @data -o o",
    "teach @data -o o",
    "pretrain @data -o @o --config @recipe.toml",
    "train @data -o @o --config @recipe.toml",
    "refine @data -o @o --config @recipe.toml --from-pretrained WEIGHTS",
    "ablate @data -o @o --config @recipe.toml --set loop.max_images=1",
    "evaluate same @data -o @o --weights WEIGHTS",
    "evaluate same -o @o --clips @clips",
    "evaluate cross @data -o @o --weights WEIGHTS",
    "evaluate predictions @data -o o",
    "evaluate-expression @data -o @o",
    "bench --json @o.json --weights @WEIGHTS",
    "bench --against @ref.json",
    "export -o @o --weights @WEIGHTS --portrait @FACE.png",
    "consent add @FACE.png --name A",
    "consent check @FACE.png",
    "weights install @w.safetensors",
    "weights average WEIGHTS @w.safetensors -o @o.safetensors",
    "demo -o @o --weights @WEIGHTS",
)
"""Command lines. @ marks the paths to replace; the others are only good enough to get there."""


def too_long(ending: str) -> tuple[str, str]:
    """A path, and what must be said of it."""
    return "動画" * 50 + ending, "file name too long"


def pipe(ending: str) -> tuple[str, str]:
    os.mkfifo(f"pipe{ending}")
    return f"pipe{ending}", "pipe"


@pytest.fixture
def meanings(tmp_path: Path, astronaut_path: Path, tiny_weights: Path) -> dict[str, str]:
    """What words of the command lines stand for."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("".join(f"[{stage}.loop]\nmax_images = 1\n" for stage in ("pretrain", "train", "refine")))
    listed = tmp_path / "list.csv"
    listed.write_text(f"portrait,motion,output\n{astronaut_path},speech,o.mp4\n")
    faces = dict.fromkeys(("FACE", "FACE.png", "FACE.jpg"), str(astronaut_path))
    motions = dict.fromkeys(("speech.motion", "speech.csv", "speech.npz"), "speech")
    return (
        faces
        | motions
        | {"WEIGHTS": str(tiny_weights), "b.png": "keep", "b.jpg": "keep"}
        | {path.name: str(path) for path in (recipe, listed)}
    )


def test_every_command_is_here() -> None:
    without_paths = {"consent list", "consent remove"}
    found = {name for name in COMMANDS if any(line.startswith(f"{name} ") for line in LINES)}
    assert found == set(COMMANDS) - without_paths


@pytest.mark.parametrize("make", [too_long, pipe])
@pytest.mark.parametrize("line", LINES)
def test_what_the_system_refuses_is_one_sentence(
    line: str,
    make: Callable[[str], tuple[str, str]],
    meanings: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("EXPORT3D_HOME", str(tmp_path / "home"))
    marked = line.split()
    words = [meanings.get(word.lstrip("@"), word.lstrip("@")) for word in marked]
    for number, word in enumerate(marked):
        if not word.startswith("@"):
            continue
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        path, reason = make(Path(word).suffix)
        code = main([*words[:number], path, *words[number + 1 :]])
        stdout, stderr = capsys.readouterr()
        assert (code, stdout, stderr.count("\n")) == (2, "", 1), stderr
        assert path in stderr, word
        assert reason in stderr, word
