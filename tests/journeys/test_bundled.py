"""The stranger's path on bundled data alone: from a video to a motion, to a moving face, back to a motion."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export3d.cli.main import main
from export3d.motion.motion import Motion
from export3d.video import VideoWriter, probe, read_frames
from tests.live_link_face import write_take

Capture = pytest.CaptureFixture[str]


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.mark.slow
def test_track_then_animate_then_compare(
    tmp_path: Path, face_video: Path, astronaut_path: Path, tiny_weights: Path, capsys: Capture
) -> None:
    assert run("track", face_video, "-o", tmp_path / "face.motion", "--summary", "--note", "tilting") == 0
    out, err = capsys.readouterr()
    assert "found        100.0 %" in out
    assert "yaw" in out
    assert "wrote" in err
    motion = Motion.load(tmp_path / "face.motion")
    assert motion.meta["note"] == "tilting"

    arguments = ["--weights", tiny_weights, "--device", "cpu", "--sheet", tmp_path / "sheet.png"]
    assert run("animate", astronaut_path, "--driving", face_video, "-o", tmp_path / "a.mp4", *arguments) == 0
    info = probe(tmp_path / "a.mp4")
    assert info.fps == 25.0
    assert info.has_audio
    assert len(list(read_frames(tmp_path / "a.mp4"))) == len(motion)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 8 * 64

    capsys.readouterr()
    assert run("compare-motion", tmp_path / "face.motion", face_video, "--min", "roll=0.99", "--min", "yaw=0.9") == 0
    out, err = capsys.readouterr()
    assert "24 frames" in out
    assert "roll" in out
    assert err == f"export3d: tracking {face_video.name}\n"
    assert {p.name for p in tmp_path.iterdir()} == {"face.motion", "a.mp4", "sheet.png"}, "nothing temporary stays"


@pytest.mark.slow
def test_a_motion_that_differs_fails_the_check(
    tmp_path: Path, motion_file: Path, face_video: Path, capsys: Capture
) -> None:
    assert run("compare-motion", motion_file, face_video, "--min", "yaw=0.999") == 1
    assert "the motions differ: yaw" in capsys.readouterr().err
    assert run("compare-motion", motion_file, motion_file, "--min", "yaw=0.999", "--min", "jawOpen=0.999") == 0
    assert run("compare-motion", motion_file, motion_file, "--min", "roll=0.5") == 1, "roll is constant: no correlation"
    capsys.readouterr()
    assert run("compare-motion", motion_file, motion_file, "--min", "nod=0.5") == 2
    assert "--min takes NAME=VALUE" in capsys.readouterr().err


def test_the_same_command_gives_the_same_bytes(
    tmp_path: Path, motion_file: Path, astronaut_path: Path, tiny_weights: Path
) -> None:
    """Without marks: a signature holds its time."""
    for name in ("a", "b"):
        files = ["-o", tmp_path / f"{name}.mp4", "--sheet", tmp_path / f"{name}.png", "--no-mark"]
        assert run("animate", astronaut_path, "--motion", motion_file, *files, "--weights", tiny_weights) == 0
    for suffix in (".mp4", ".png"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


@pytest.mark.slow
def test_a_part_of_a_video_can_be_tracked(tmp_path: Path, face_video: Path, capsys: Capture) -> None:
    part = ["--start", 0.2, "--seconds", 0.4]
    assert run("track", face_video, "-o", tmp_path / "part.motion", *part) == 0
    assert run("track", face_video, "-o", tmp_path / "whole.motion") == 0
    part_motion, whole = Motion.load(tmp_path / "part.motion"), Motion.load(tmp_path / "whole.motion")
    assert len(part_motion) == 10
    np.testing.assert_allclose(part_motion.angles_deg, whole.angles_deg[5:15], atol=1.0)
    capsys.readouterr()
    assert run("track", face_video, "-o", tmp_path / "none.motion", "--start", 60) == 2
    assert "select no frame" in capsys.readouterr().err
    assert not (tmp_path / "none.motion").exists()


@pytest.mark.slow
def test_prepare_then_train_then_resume_then_animate_then_evaluate(
    tmp_path: Path, astronaut_turns: list[np.ndarray], astronaut_path: Path, motion_file: Path, capsys: Capture
) -> None:
    """Clips become shards, shards weights, weights a moving face and a report."""
    clips = tmp_path / "clips"
    clips.mkdir()
    for name, step in (("ada", 1), ("bob", -1)):  # bob is ada in the mirror
        with VideoWriter(clips / f"{name}.mp4", 25.0, 256) as writer:
            for frame in astronaut_turns:
                writer.write(frame[:, ::step])
    (clips / "notes.txt").write_text("ignored")
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("file,person,split\nclips/ada.mp4,ada,train\nclips/bob.mp4,bob,val\n")
    assert run("prepare", "-o", tmp_path / "shards", "--manifest", manifest, "--workers", 0) == 0
    assert "1 clip " in capsys.readouterr().out
    assert (tmp_path / "shards" / "report.csv").is_file()

    mine = tmp_path / "mine.toml"
    mine.write_text(
        '[train.model]\npreset = "tiny"\nvariants = []\n[train.loss]\nbackbone = "none"\n[train.loop]\nbatch_size = 2\n'
        'tensorboard = false\ncpu = true\nprogress = false\nprecision = "fp32"\nmax_images = 4\n'
    )
    settings = ["--config", mine]
    assert run("train", tmp_path / "shards", "-o", tmp_path / "run", *settings) == 0
    assert run("train", tmp_path / "shards", "-o", tmp_path / "run", *settings, "--set", "loop.max_images=8") == 0
    weights = tmp_path / "run" / "weights.safetensors"
    assert json.loads(weights.with_suffix(".json").read_text())["info"]["images_seen"] == 8

    files = ["-o", tmp_path / "a.mp4", "--weights", weights, "--motion", motion_file]
    assert run("animate", astronaut_path, *files, "--absolute") == 0
    capsys.readouterr()
    scored = ["-o", tmp_path / "scores", "--weights", weights, "--backbone", "none", "--every", 6]
    assert run("evaluate", "same", tmp_path / "shards" / "val", *scored) == 0
    assert "psnr" in capsys.readouterr().out.lower()
    assert (tmp_path / "scores" / "report.json").is_file()


def test_training_on_nothing_is_one_sentence(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "empty").mkdir()
    assert run("train", tmp_path / "empty", "-o", tmp_path / "run", "--set", "model.preset=tiny") == 2
    err = capsys.readouterr().err
    assert err.startswith("export3d: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_arkit_recording_animates_the_bundled_portrait(
    tmp_path: Path, astronaut_path: Path, capsys: Capture
) -> None:
    """Issue: a Live Link Face CSV in the app's layout moves the portrait, with the packaged weights."""
    turned, wide = {"HeadYaw": 0.35, "HeadPitch": 0.1}, {"HeadYaw": -0.35, "JawOpen": 0.7}
    csv = write_take(tmp_path / "take.csv", [{}] * 5 + [turned] * 5 + [wide] * 5)
    files = ["-o", tmp_path / "a.mp4", "--sheet", tmp_path / "a.png"]
    assert run("animate", astronaut_path, "--motion", csv, *files, "--set", "eyeBlink=1", "--no-mark") == 0
    frames = list(read_frames(tmp_path / "a.mp4"))
    assert len(frames) == 6
    assert np.abs(frames[0].astype(int) - frames[3]).mean() > 3
    assert np.abs(frames[3].astype(int) - frames[5]).mean() > 3

    assert run("track", csv, "-o", tmp_path / "take.motion", "--note", "a take", "--summary") == 0
    out, _ = capsys.readouterr()
    assert "15 at 59.9401 fps" in out
    assert "yaw          -20.1 to +20.1 degrees" in out
    assert "found" not in out
    again = ["-o", tmp_path / "b.mp4", "--set", "eyeBlink=1", "--no-mark"]
    assert run("animate", astronaut_path, "--motion", tmp_path / "take.motion", *again) == 0
    assert (tmp_path / "b.mp4").read_bytes() == (tmp_path / "a.mp4").read_bytes()
