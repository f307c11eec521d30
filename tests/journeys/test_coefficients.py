"""The 64 coefficients of the paper: made-up Deep3DFaceRecon files become trained and scored weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from export3d.cli.main import main
from export3d.data.shards import read_index, read_shards
from export3d.pretrained import load_encoder, load_pretrained
from export3d.video import VideoWriter, read_frames

Capture = pytest.CaptureFixture[str]

SETTINGS = """
[pretrain.expression]
hidden = 32
d = 32
[pretrain.image]
width = 8
[pretrain.data]
frames = 4
size = 32
[pretrain.loop]
batch_size = 2
max_images = 4
[train.model]
preset = "tiny"
[train.loss]
backbone = "none"
[train.loop]
batch_size = 2
max_images = 4
[refine.loss]
backbone = "none"
[refine.discriminator]
size = "tiny"
[refine.loop]
batch_size = 2
max_images = 2
"""
LOOP = ("tensorboard=false", "cpu=true", "progress=false", "precision=fp32")


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture
def clips(tmp_path: Path, astronaut_turns: list[np.ndarray]) -> Path:
    """A clip for training and, of another person, one for validation, and their manifest."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for name, step in (("ada", 1), ("bob", -1)):  # bob is ada in the mirror
        with VideoWriter(folder / f"{name}.mp4", 25.0, 256) as writer:
            for frame in astronaut_turns[:16]:
                writer.write(frame[:, ::step])
    (folder / "list.csv").write_text("file,person,split\nada.mp4,ada,train\nbob.mp4,bob,val\n")
    return folder


@pytest.mark.slow
def test_coefficients_pass_through_every_stage(
    tmp_path: Path, clips: Path, rng: np.random.Generator, tiny_weights: Path, astronaut_path: Path, capsys: Capture
) -> None:
    fitted, shards = tmp_path / "fitted", tmp_path / "shards"
    fitted.mkdir()
    whole = {name: rng.normal(0, 0.2, (16, 257)) for name in ("ada", "bob")}
    np.savez(fitted / "ada.npz", coeff=whole["ada"])
    np.savez(fitted / "bob.npz", exp=whole["bob"][:, 80:144])
    prepared = ["prepare", "-o", shards, "--manifest", clips / "list.csv", "--workers", 0]
    assert run(*prepared, "--coefficients", fitted) == 0
    assert read_index(shards / "train").space == "bfm64"
    for split, name in (("train", "ada"), ("val", "bob")):
        [record] = read_shards(shards / split)
        np.testing.assert_array_equal(record.expression, whole[name][:, 80:144].astype(np.float32))
        assert (record.info["space"], record.info["coefficients"]) == ("bfm64", f"{name}.npz")

    (tmp_path / "mine.toml").write_text(SETTINGS)
    settings = ["--config", tmp_path / "mine.toml", *(f"--set=loop.{change}" for change in LOOP)]
    assert run("pretrain", shards, "-o", tmp_path / "clebs", *settings) == 0
    encoder = tmp_path / "clebs" / "clebs.safetensors"
    assert load_encoder(encoder).config.inputs == 64
    assert run("train", shards, "-o", tmp_path / "one", *settings, "--set", f"model.expression={encoder}") == 0
    one = tmp_path / "one" / "weights.safetensors"
    assert load_pretrained(one).config.space == "bfm64"
    assert run("refine", shards, "-o", tmp_path / "two", *settings, "--from-pretrained", one) == 0
    two = tmp_path / "two" / "weights.safetensors"
    scored = ["--backbone", "none", "--no-faces", "--every", 5]
    assert run("evaluate", "same", shards, "-o", tmp_path / "scores", "--weights", two, *scored) == 0
    assert json.loads((tmp_path / "scores" / "report.json").read_text())["clips"][0]["scores"]["ours"]["psnr"] > 0

    driven = ["--motion", fitted / "ada.npz", "--weights", two, "-o", tmp_path / "driven.mp4", "--device", "cpu"]
    assert run("animate", astronaut_path, *driven) == 0
    assert len(list(read_frames(tmp_path / "driven.mp4"))) == 16

    capsys.readouterr()
    base, trained = ["--from-pretrained", tiny_weights], ["-o", tmp_path / "x", *settings]
    files = ["--face-model", tiny_weights, "--landmark-map", tiny_weights]
    refused = {
        "bfm64, but the weights take arkit52": ["train", shards, *trained, *base],
        "takes 52 expression values": ["train", shards, *trained],
        "the weights take arkit52; prepare": ["refine", shards, *trained, *base],
        "trained on arkit52": ["evaluate", "same", shards, "-o", tmp_path / "y", "--weights", tiny_weights],
        "arkit52 cannot be added": prepared,
        "made of tracked arkit52 scores": ["pseudo-clips", shards / "train", "-o", tmp_path / "z", *files],
    }
    for words, arguments in refused.items():
        assert run(*arguments) == 2, words
        said = capsys.readouterr().err
        assert words in said
        assert said.startswith("export3d: ")
        assert said.count("\n") == 1
    assert not (tmp_path / "x").exists()
