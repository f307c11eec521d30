"""A folder of one's own videos becomes a model that is fine-tuned from trained weights: `prepare`, then `train`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export3d.cli.main import main
from export3d.config import preset, variant
from export3d.model import Export3D
from export3d.pretrained import load_pretrained, save_pretrained
from export3d.video import VideoWriter, probe
from export3d.weights.names import install

Capture = pytest.CaptureFixture[str]

QUICK = [
    word
    for setting in ("max_images=4", "batch_size=2", "cpu=true", "tensorboard=false", "progress=false")
    for word in ("--set", f"loop.{setting}")
]


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def videos(astronaut_turns: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four videos of a face, one without, one too short, and a text."""
    folder = tmp_path_factory.mktemp("my_videos")
    turns = astronaut_turns
    for name, frames in {"a": turns, "b": turns[::-1], "c": turns[7:] + turns[:7], "short": turns[:4]}.items():
        _write(folder / f"{name}.mp4", frames)
    _write(folder / "vertical.mp4", [np.pad(frame, ((256, 0), (0, 0), (0, 0)), "edge") for frame in turns[8:]])
    _write(folder / "nobody.mp4", [np.full((256, 256, 3), 90, np.uint8)] * 16)
    (folder / "notes.txt").write_text("ignored")
    return folder


def _write(path: Path, frames: list[np.ndarray]) -> None:
    height, width, _ = frames[0].shape
    with VideoWriter(path, 25.0, (width, height)) as writer:
        for frame in frames:
            writer.write(frame)


@pytest.fixture(scope="module")
def data(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The videos, prepared."""
    out = tmp_path_factory.mktemp("prepared") / "data"
    assert run("prepare", videos, "-o", out, "--workers", 0) == 0
    return out


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of another form than any preset, with a frozen encoder of their own."""
    torch.manual_seed(3)
    config = variant(variant(preset("tiny"), "clebs"), "no_skip")
    model = Export3D(replace(config, render=replace(config.render, fine=4)))
    return save_pretrained(model, tmp_path_factory.mktemp("trained") / "mine.safetensors", {"images_seen": 0})


@pytest.mark.slow
def test_two_commands_make_a_model_that_animates(
    videos: Path, trained: Path, tmp_path: Path, astronaut_path: Path, motion_file: Path, capsys: Capture
) -> None:
    shards, out = tmp_path / "data", tmp_path / "my_model"
    assert run("prepare", videos, "-o", shards, "--workers", 0) == 0
    err = capsys.readouterr().err
    assert err.count("skipped (") == 2
    assert "skipped (no face): " in err
    assert "skipped (too short): short.mp4" in err
    assert "held out for validation (split val): 1 of 4 videos" in err
    assert run("train", shards, "--from-pretrained", trained, "-o", out, *QUICK) == 0
    err = capsys.readouterr().err
    assert "the weights of LPIPS are not available" in err
    assert "on held-out videos: PSNR" in err
    assert f"animate portrait.jpg --motion speech --weights {out / 'weights.safetensors'}" in err

    before, after = load_pretrained(trained), load_pretrained(out / "weights.safetensors")
    assert after.config == before.config, "preset, variants and samples are those of the weights"
    for name, value in before.expression.state_dict().items():
        assert torch.equal(after.expression.state_dict()[name], value), name
    changed = dict(after.named_parameters())
    assert any(not torch.equal(changed[name], value) for name, value in before.named_parameters())
    assert run("animate", astronaut_path, "--motion", motion_file, "--weights", out / "weights.safetensors",
               "-o", tmp_path / "a.mp4") == 0  # fmt: skip
    assert probe(tmp_path / "a.mp4").width == 4 * before.config.render.resolution


@pytest.mark.slow
def test_a_folder_without_a_usable_video_is_one_sentence(videos: Path, tmp_path: Path, capsys: Capture) -> None:
    bad = [videos / "nobody.mp4", videos / "short.mp4"]
    assert run("prepare", *bad, "-o", tmp_path / "data", "--workers", 0) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "1 no face, 1 too short" in err


@pytest.mark.slow
def test_weights_are_found_by_name(
    data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("EXPORT3D_HOME", str(tmp_path / "home"))
    install(trained, "mine")
    assert run("train", data, "--from-pretrained", "mine", "-o", tmp_path / "run", *QUICK) == 0
    assert load_pretrained(tmp_path / "run" / "weights.safetensors").config == load_pretrained(trained).config
    capsys.readouterr()
    assert run("train", data, "--from-pretrained", "yours", "-o", tmp_path / "other", *QUICK) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "base, core, clebs, mine" in err
    assert run("train", data, "--from-pretrained", "clebs", "-o", tmp_path / "other", *QUICK) == 2
    assert "does not hold an export3d model" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_preset_goes_before_the_weights_own_settings(data: Path, trained: Path, tmp_path: Path) -> None:
    given = ["--set", "model.preset=tiny", "--set", 'model.variants=["clebs", "no_skip"]', "--set", "render.coarse=4"]
    assert run("train", data, "--from-pretrained", trained, "-o", tmp_path / "run", *given, *QUICK) == 0
    config = load_pretrained(tmp_path / "run" / "weights.safetensors").config
    assert (config.render.coarse, config.render.fine) == (4, preset("tiny").render.fine)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ([], {"max_images": 800, "decay": "images"}),
        (["--set", "loop.max_minutes=0.001"], {"max_images": None, "max_minutes": 0.001, "decay": "clock"}),
        (
            ["--set", "loop.max_images=2", "--set", "loop.max_minutes=5"],
            {"max_images": 2, "max_minutes": 5.0, "decay": "images"},
        ),
    ],
)
def test_the_end_that_is_given_takes_the_place_of_the_default(
    given: list[Any], wanted: dict[str, Any], data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def stop(*arguments: Any, **_: Any) -> None:
        seen.append(arguments[3])
        raise KeyboardInterrupt

    monkeypatch.setattr("export3d.training.reconstruction.run", stop)
    assert run("train", data, f"--from_pretrained={trained}", "-o", tmp_path / "run", *given) == 130
    assert {name: getattr(seen[0], name) for name in wanted} == wanted


def test_weights_to_begin_with_make_fine_tuning_the_recipe(capsys: Capture) -> None:
    shown = []
    for given in (["--from-pretrained", "base"], ["--recipe", "fine-tune"], [], ["--recipe", "base"]):
        assert run("train", *given, "--print-config") == 0
        shown.append(json.loads(capsys.readouterr().out))
    assert shown[0] == shown[1]
    assert shown[2] == shown[3]
    assert (shown[0]["loop"]["max_images"], shown[2]["loop"]["max_images"]) == (800, 88_000)


@pytest.mark.parametrize(
    ("given", "part"),
    [
        (["--pseudo-clips"], "--face-model"),
        (["--face-model", "x.npz"], "--pseudo-clips"),
        (["--pseudo-clips", "--landmark-map", "x.npz"], "--face-model"),
    ],
)
def test_pseudo_clips_need_their_files(given: list[str], part: str, tmp_path: Path, capsys: Capture) -> None:
    assert run("prepare", tmp_path, "-o", tmp_path / "out", *given) == 2
    assert part in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_one_command_prepares_portraits_and_makes_them_move(
    shared_models: Path, videos: Path, astronaut_path: Path, tmp_path: Path, capsys: Capture
) -> None:
    face = shared_models / "face3d"
    if not (face / "ict_face.npz").is_file():
        pytest.skip(f"no face model in {face}")
    files = ["--face-model", face / "ict_face.npz", "--landmark-map", face / "mediapipe_to_ict.npz"]
    sources = [astronaut_path, *(videos / f"{name}.mp4" for name in "abc"), videos / "vertical.mp4"]
    out = tmp_path / "data"
    assert run("prepare", *sources, "-o", out, "--workers", 0, "--pseudo-clips", *files) == 0
    assert f"--pseudo {out / 'pseudo' / 'train'}" in capsys.readouterr().err
    index = json.loads((out / "pseudo" / "train" / "index.json").read_text())
    assert len(index["entries"]) + len(index["rejects"]) == 1
    assert json.loads((out / "report.json").read_text())["splits"].keys() == {"train", "val"}
