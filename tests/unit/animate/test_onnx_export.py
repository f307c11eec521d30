"""animate/onnx_export.py and examples/onnx_animate.py: files that run without PyTorch and show the same frames."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from export3d import Animator, Motion
from export3d.animate.onnx_export import (
    EyeClosing,
    _replaced_folder,
    check_export_folder,
    compare,
    difference,
    graphs,
)
from export3d.cli.main import main
from export3d.engines import parts
from export3d.engines.onnx_graph import session
from export3d.errors import ConfigError, OutputError
from tests.conftest import ROOT
from tests.tiny_models import PARTS, awake, warped

EXAMPLE = ROOT / "examples" / "onnx_animate.py"
PACKAGES = ("numpy", "onnxruntime", "pillow")
_DRAW = "import sys, numpy, onnx_animate; numpy.save(sys.argv[3], list(onnx_animate.frames(*sys.argv[1:3])))"


@pytest.fixture(scope="module")
def exported(rigid_weights: Path, astronaut_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of weights with every part of the warp, and of the bundled portrait."""
    folder = tmp_path_factory.mktemp("export") / "onnx"
    folder.mkdir()
    (folder / "model.json").write_text('{"format": "export3d-onnx"}')  # an earlier export, which is replaced
    inputs = ["--weights", str(rigid_weights), "--portrait", str(astronaut_path)]
    assert main(["export", "--format", "onnx", "-o", str(folder), *inputs]) == 0
    return folder


@pytest.fixture
def driving(motion_file: Path) -> Motion:
    return Motion.load(motion_file)


def followed(folder: Path, motion: Motion) -> Motion:
    """The motion that the example makes of a motion for its portrait, by the package's own arithmetic."""
    from export3d.camera import head_position, pack, unpack

    portrait = np.load(folder / "portrait.npz")
    own, intrinsics = unpack(portrait["source_camera"][0].astype(np.float64))
    turns = unpack(motion.camera.astype(np.float64))[0][:, :3, :3]
    labels = []
    for turn in turns:
        cam2world = np.eye(4)
        cam2world[:3, :3] = own[:3, :3] @ turns[0].T @ turn
        cam2world[:3, 3] = -cam2world[:3, :3] @ head_position(portrait["source_camera"][0])
        labels.append(pack(cam2world, intrinsics))
    expression = portrait["source_expression"] + motion.expression - motion.expression[0]
    return replace(motion, expression=expression.clip(0, 1), camera=np.stack(labels).astype(np.float32))


@pytest.mark.slow
@pytest.mark.timeout(1800)  # PyTorch's exporter takes more than a minute, on a busy machine several
def test_the_files_are_those_that_the_description_names(exported: Path, rigid_weights: Path) -> None:
    about = json.loads((exported / "model.json").read_text())
    sidecar = json.loads(rigid_weights.with_suffix(".json").read_text())
    assert about["weights"] == {"name": "rigid", "sha256": sidecar["file"]["sha256"], "pure": False}
    assert {path.name for path in exported.iterdir()} == {*about["graphs"], "model.json", "portrait.npz"}
    for name, graph in about["graphs"].items():
        opened = session(exported / name, threads=1)
        assert [value.name for value in opened.get_inputs()] == list(graph["inputs"])
        assert {value.name for value in opened.get_outputs()} == set(graph["outputs"])
    assert max(about["difference_to_pytorch"].values()) <= 1e-3
    assert not [path for path in exported.parent.iterdir() if path != exported], "nothing temporary is left"


@pytest.mark.slow
def test_the_example_shows_the_animators_frames_without_torch(
    exported: Path, rigid_weights: Path, astronaut_path: Path, driving: Motion, motion_file: Path, tmp_path: Path
) -> None:
    python = fresh_python(tmp_path / "venv")
    missing = subprocess.run([python, "-c", "import torch"], capture_output=True, check=False)
    assert missing.returncode == 1
    arguments = [str(exported), str(motion_file)]
    subprocess.run([python, EXAMPLE, *arguments, str(tmp_path / "out.webp")], check=True)
    subprocess.run([python, "-c", _DRAW, *arguments, str(tmp_path / "out.npy")], check=True, cwd=EXAMPLE.parent)
    found = np.load(tmp_path / "out.npy").astype(int)
    animator = Animator.from_pretrained(rigid_weights, "cpu", engine="reference")
    source = animator.encode(astronaut_path)
    expected = np.stack(list(animator.animate(source, followed(exported, driving), relative=False))).astype(int)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1
    assert np.abs(np.diff(expected, axis=0)).max() > 30, "the frames differ from one another"
    assert (tmp_path / "out.webp").stat().st_size > 1000


@pytest.mark.slow
def test_other_weights_than_those_written_are_noticed(exported: Path) -> None:
    torch.manual_seed(0)
    model = awake(warped(*PARTS)).requires_grad_(False)
    with pytest.raises(ConfigError, match=r"encoder.onnx differs from PyTorch by .* in features.tokens"):
        compare(model, graphs(model), exported)


def test_a_part_of_the_face_counts_and_a_few_pixels_do_not() -> None:
    expected = np.zeros((1, 3, 64, 64), np.float32)
    edge, mouth, lost = expected.copy(), expected.copy(), expected.copy()
    edge[:, :, 30, 30:36] = 0.5
    mouth[:, :, 40:46, 28:36] = 0.5
    lost[:, :, 40:46, 28:36] = np.nan
    assert difference(edge, expected) == 0.0
    assert difference(mouth, expected) == 0.5
    assert not difference(lost, expected) <= 1.0


@torch.no_grad()
def test_eyes_close_in_the_exported_planes_as_in_the_animator() -> None:
    from export3d.animate.eyelids import closing_eyes

    model = awake(warped("align", "detail"))
    given = parts.examples(model, 3)
    motion = parts.ExpressionMotion(model)
    part = EyeClosing(motion)
    known = given | dict(zip(parts.SourceEncoder(model).outputs, encoded(model, given)))
    asked, beta, own, share = part(*(known[name] for name in part.inputs))
    assert 0 < share.max() <= 1
    for k in range(3):
        one = {name: value[k : k + 1] for name, value in given.items()}
        source = model.encode(**{name: one[name] for name in parts.source_inputs(model)})
        expected, regions = closing_eyes(model, source, one["source_expression"][0], one["expression"], one["shift"])
        torch.testing.assert_close(asked[k : k + 1], expected)
        if regions is not None:
            for found, wanted in ((beta, regions.asked), (own, regions.own), (share, regions.share)):
                torch.testing.assert_close(found[k : k + 1], wanted)


def encoded(model: torch.nn.Module, given: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    part = parts.SourceEncoder(model)  # type: ignore[arg-type]
    return part(*(given[name] for name in part.inputs))


def test_a_folder_with_other_files_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert main(["export", "-o", str(tmp_path)]) == 2
    assert "thesis.txt, which is not of an export; choose a new or an empty folder" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "other"}', "\0"])
def test_a_folder_with_files_of_the_same_names_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(OutputError, match="files of another origin"):
        check_export_folder(tmp_path)


def test_an_empty_or_new_folder_or_an_earlier_export_is_taken(tmp_path: Path) -> None:
    check_export_folder(tmp_path)
    check_export_folder(tmp_path / "new")
    (tmp_path / "model.json").write_text('{"format": "export3d-onnx"}')
    (tmp_path / "frame.onnx").write_bytes(b"")
    check_export_folder(tmp_path)
    (tmp_path / "a file").write_text("")
    with pytest.raises(OutputError, match="a file has this name"):
        check_export_folder(tmp_path / "a file")


def test_a_mount_point_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/")
    for folder in (Path("/"), tmp_path / "link"):
        with pytest.raises(OutputError, match="is a mount point, which cannot be replaced; choose a folder inside it"):
            check_export_folder(folder)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_an_output_that_cannot_be_written(tmp_path: Path) -> None:

    def export() -> None:
        with _replaced_folder(tmp_path / "onnx") as temporary:
            (temporary / "frame.onnx").symlink_to("/dev/full")
            (temporary / "frame.onnx").write_bytes(b"graph")

    with pytest.raises(OutputError, match=r"cannot write .*onnx: no space left on device; free some space"):
        export()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("moved", ["onnx", "new"])
@pytest.mark.parametrize("after", [False, True])
def test_an_interruption_at_the_end_leaves_a_whole_export(
    tmp_path: Path, moved: str, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after each of the two renames."""
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if path.name == moved and not after:
            raise KeyboardInterrupt
        found = rename(path, target)
        if path.name == moved:
            raise KeyboardInterrupt
        return found

    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.json").write_text("former")
    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), _replaced_folder(tmp_path / "onnx") as temporary:
        (temporary / "model.json").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]
    expected = "new" if moved == "new" and after else "former"
    assert (tmp_path / "onnx" / "model.json").read_text() == expected


def test_the_example_is_short() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 40


def fresh_python(folder: Path) -> str:
    """A Python with nothing but the packages of the example; skips where no package index can be reached."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"), *PACKAGES]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode and ("No matching distribution" in done.stderr or "Max retries" in done.stderr):
        reach = subprocess.run([python, "-m", "pip", "download", "--no-deps", "-d", str(folder), "pip"], check=False)
        if reach.returncode:
            pytest.skip("no package index can be reached")
    assert not done.returncode, done.stderr
    return python
