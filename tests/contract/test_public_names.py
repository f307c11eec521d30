"""What `import export3d` offers is a promise: adding to it is a decision, removing from it breaks people."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import export3d
from export3d import errors

ROOT = Path(__file__).parents[2]

PUBLIC = {
    "Animator", "Camera", "Export3D", "Export3DError", "Motion", "Source",
    "driving_motion", "load_pretrained", "rebase", "write_still", "write_video",
}  # fmt: skip

ERRORS = {
    "Export3DError", "InputError", "BadImage", "BadVideo", "BadMotionFile", "NoFaceFound", "OutputError", "ShapeError",
    "ConfigError", "CheckpointError", "TrainingError", "PolicyError", "MissingExtra", "ConsentRefused",
}  # fmt: skip


def test_the_public_names_are_these() -> None:
    assert set(export3d.__all__) == PUBLIC


def test_every_public_name_can_be_imported_and_is_documented() -> None:
    for name in export3d.__all__:
        assert getattr(export3d, name).__doc__, f"{name} has no docstring"


def test_the_model_is_loaded_saved_and_pushed_as_the_ecosystem_does_it() -> None:
    for name in ("from_pretrained", "save_pretrained", "push_to_hub"):
        assert getattr(export3d.Export3D, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(export3d, "Animater")


def test_the_errors_are_these_and_share_one_base() -> None:
    found = {name: cls for name, cls in vars(errors).items() if isinstance(cls, type) and issubclass(cls, Exception)}
    assert set(found) == ERRORS
    assert all(issubclass(cls, errors.Export3DError) for cls in found.values())


def test_importing_the_package_is_free() -> None:
    code = "import sys, export3d; print([m for m in ('torch', 'numpy', 'mediapipe', 'cv2', 'av') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_version_is_the_same_everywhere() -> None:
    project = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    citation = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert project is not None
    assert citation is not None
    assert project[1] == citation[1] == export3d.__version__
