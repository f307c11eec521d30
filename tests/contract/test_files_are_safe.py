"""What the source may not do: load what can execute, ask what lies at a path, need a display."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "export3d"
MODULES = sorted(PACKAGE.rglob("*.py"))


def calls(path: Path) -> list[str]:
    """Dotted names of everything a file calls, such as `torch.load`."""
    return [
        ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)
    ]


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def unsafe_torch_loads(path: Path) -> list[str]:
    """Calls of `torch.load`, except those that read tensors only and nothing else (`weights_only=True`, literally)."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
    loads = [node for node in nodes if ast.unparse(node.func) == "torch.load"]
    return [
        ast.unparse(node)
        for node in loads
        if not any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
    ]


def test_only_the_perceptual_networks_of_others_are_read_with_torch() -> None:
    """Published LPIPS and VGG weights exist as .pth only; our own files are safetensors."""
    assert [p.name for p in MODULES if "torch.load" in calls(p)] in ([], ["perceptual.py"])


def test_nothing_that_is_loaded_can_execute() -> None:
    dangerous_modules = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    dangerous_calls = {"torch.save", "eval", "exec", "torch.jit.load", "torch.hub.load"}
    offenders = []
    for path in MODULES:
        found = [
            *unsafe_torch_loads(path),
            *({name.split(".")[0] for name in imported(path)} & dangerous_modules),
            *(set(calls(path)) & dangerous_calls),
            *re.findall(r"allow_pickle\s*=\s*True|weights_only\s*=\s*False", path.read_text("utf-8")),
        ]
        offenders += [f"{path}: {what}" for what in found]
    assert not offenders


def test_only_files_asks_what_lies_at_a_path() -> None:
    """`Path.is_file` and its like raise for long names and locked folders; `files.kind_at` says so in a sentence."""
    within_a_try = {"files.py", "evaluation/protocols/user_clips.py", "evaluation/protocols/predictions.py"}
    asking = r"\.(is_dir|is_file|exists)\(|path\.is(dir|file)\("
    asked = {p.relative_to(PACKAGE).as_posix() for p in MODULES if re.search(asking, p.read_text("utf-8"))}
    offenders = asked - within_a_try
    assert not offenders, "ask files.kind_at"


def test_nothing_below_the_command_line_prints() -> None:
    below = [p for p in MODULES if p.relative_to(PACKAGE).parts[0] != "cli" and p.name != "__main__.py"]
    talkers = [p for p in below if "print" in calls(p)]
    assert not talkers, f"{talkers}: use logging"


@pytest.mark.slow
def test_everything_imports_without_a_display_or_opengl() -> None:
    """OpenCV's wheel needs libGL; a machine without it behaves as if cv2 failed to import."""
    names = [".".join(["export3d", *p.relative_to(PACKAGE).with_suffix("").parts]) for p in MODULES]
    names = [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]
    code = f"""
import importlib, sys
class NoOpenGL:
    def find_spec(self, name, path=None, target=None):
        if name == "cv2":
            raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")
sys.meta_path.insert(0, NoOpenGL())
for name in {names!r}:
    importlib.import_module(name)
from export3d.face.landmarks import FaceLandmarker
import numpy
with FaceLandmarker() as landmarker:
    assert landmarker.detect(numpy.zeros((64, 64, 3), numpy.uint8)) == []
"""
    pytest.importorskip("mediapipe")
    env = {"PATH": "/usr/bin:/bin"}  # no DISPLAY
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
