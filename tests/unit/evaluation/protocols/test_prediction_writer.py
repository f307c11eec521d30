"""Saving predictions: complete clips or none, safe names, images of one size."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export3d.errors import OutputError, ShapeError
from export3d.evaluation.protocols.prediction_writer import PredictionWriter
from export3d.evaluation.protocols.predictions import SavedClip, read_predictions
from export3d.video import VideoWriter
from tests.saved_clips import SIZE, pictures, save


def test_a_failure_leaves_no_half_clip(tmp_path: Path) -> None:
    writer = PredictionWriter(tmp_path)

    def half() -> None:
        with writer.clip("anna", pictures(1)[0]) as clip:
            clip.add(pictures(2), pictures(2))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert not writer.has("anna")
    assert list(tmp_path.iterdir()) == []


def test_a_clip_is_invisible_until_it_is_complete(tmp_path: Path) -> None:
    writer = PredictionWriter(tmp_path)
    with writer.clip("anna", pictures(1)[0]) as clip:
        clip.add(pictures(2), pictures(2))
        assert not writer.has("anna")
        assert not (tmp_path / "anna").exists()
    assert writer.has("anna")


def test_a_killed_run_leaves_no_clip_and_the_next_one_cleans_up(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    code = (
        "import os, sys, numpy as np; from export3d.evaluation.protocols.prediction_writer import PredictionWriter\n"
        f"p = np.zeros((2, {SIZE}, {SIZE}, 3), np.uint8)\n"
        f"with PredictionWriter(sys.argv[1]).clip('carla', p[0]) as clip:\n clip.add(p, p); os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], check=False, timeout=100)
    assert done.returncode != 0
    with caplog.at_level(logging.WARNING, "export3d"):
        assert [clip.name for clip in read_predictions(folder)] == ["anna", "bob"]
    assert "carla" in caplog.text
    assert "not written completely" in caplog.text
    save(folder, "carla", count=1)
    assert [(clip.name, clip.count) for clip in read_predictions(folder)] == [("anna", 4), ("bob", 4), ("carla", 1)]
    assert {path.name for path in folder.iterdir()} == {"anna", "bob", "carla"}


def test_a_clip_that_is_there_is_not_overwritten(folder: Path) -> None:
    before = (folder / "anna" / "source.png").read_bytes()
    with (
        pytest.raises(OutputError, match="anna is there already"),
        PredictionWriter(folder).clip("anna", pictures(1, 9)[0]),
    ):
        pytest.fail("the block must not run")
    assert (folder / "anna" / "source.png").read_bytes() == before


def test_a_clip_without_frames_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="no frames to save of anna"),
        PredictionWriter(tmp_path).clip("anna", pictures(1)[0]),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "a\\b",
        ".hidden",
        "ends.",
        "ends ",
        " begins",
        "a\nb",
        "a\0b",
        "con:",
        "x" * 201,
        "Thumbs.db",
    ],
)
def test_an_unsafe_name_is_refused(name: str, tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="cannot name a folder"),
        PredictionWriter(tmp_path / "s").clip(name, pictures(1)[0]),
    ):
        pytest.fail("the block must not run")
    assert [path.name for path in tmp_path.rglob("*")] == ["s"]


@pytest.mark.parametrize(
    ("targets", "predictions"),
    [
        (pictures(2), pictures(3)),
        (pictures(2), pictures(2, size=64)),
        (pictures(2, size=64), pictures(2)),
        (pictures(2), pictures(2).astype(np.float32)),
        (pictures(2), pictures(2)[..., :1]),
    ],
    ids=["count", "size", "target size", "type", "channels"],
)
def test_pictures_that_do_not_fit_are_refused(targets: np.ndarray, predictions: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ShapeError), PredictionWriter(tmp_path).clip("anna", pictures(1)[0]) as clip:
        clip.add(targets, predictions)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("source", [pictures(1), pictures(1)[0, :16], pictures(1, size=16)[0]], ids=str)
def test_a_source_that_could_not_be_read_again_is_refused(source: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ShapeError), PredictionWriter(tmp_path).clip("anna", source):
        pytest.fail("the block must not run")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(OutputError, match="cannot create the folder"):
        PredictionWriter(tmp_path / "file" / "saved")


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on the size of files")
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    """The limit on file sizes stands for the full disk."""
    code = (
        "import resource, signal, sys, numpy as np\n"
        "from export3d.errors import OutputError\n"
        "from export3d.evaluation.protocols.prediction_writer import PredictionWriter\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"p = np.random.default_rng(0).integers(0, 256, (2, {SIZE}, {SIZE}, 3), dtype=np.uint8)\n"
        "try:\n"
        " with PredictionWriter(sys.argv[1]).clip('anna', p[0] * 0) as clip:\n"
        "  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); clip.add(p, p)\n"
        "except OutputError as error:\n print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=False, timeout=100, capture_output=True, text=True
    )
    assert "cannot write" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def clip(folder: Path) -> SavedClip:
    return read_predictions(folder)[0]


def test_the_documented_conversion_of_other_programs_videos_gives_this_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[4] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(from pathlib import Path\n\nimport numpy.*?)```", page, re.S)
    names: dict[str, Any] = {}
    exec(code, names)
    shown = {name: pictures(count, seed, 64) for seed, (name, count) in enumerate({"s": 3, "d": 3, "edit": 3}.items())}
    for name, frames in {**shown, "DRIVING_to_SOURCE": np.concatenate([shown["d"], shown["edit"]], axis=2)}.items():
        with VideoWriter(tmp_path / f"{name}.mp4", 15.0 if "_to_" in name else 25.0, frames.shape[2:0:-1]) as writer:
            for frame in frames:
                writer.write(frame)
    Image.fromarray(shown["s"][0]).save(tmp_path / "source.png")
    monkeypatch.chdir(tmp_path)
    names["dpe"]("anna", tmp_path)
    names["otavatar"]("anna", tmp_path / "DRIVING_to_SOURCE.mp4", tmp_path / "source.png")
    for method in ("dpe", "otavatar"):
        [clip] = read_predictions(tmp_path / "predictions" / method)
        assert (clip.name, clip.count, clip.size) == ("anna", 3, 64)
