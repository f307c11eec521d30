"""`python -m export3d.training`: stage one from packed frames where tyro, PyAV, MediaPipe and OpenCV are missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from export3d.config import ModelConfig
from export3d.pretrained import load_pretrained
from export3d.training.__main__ import main
from export3d.training.recipes import resolve
from export3d.training.reconstruction import ReconstructionConfig
from export3d.training.record import read_log
from export3d.training.state import latest_state, load_state

pytest.importorskip("accelerate")

PROGRAM = """
import json, runpy, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tyro", "av", "mediapipe", "cv2"):
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Refuse())
for sys.argv in json.loads(sys.argv[1]):
    try:
        runpy.run_module("export3d.training", run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
"""
CONFIG = """
[train.model]
preset = "tiny"
variants = []
freeze = ["expression"]

[train.loss]
backbone = "none"

[train.loop]
batch_size = 2
warmup_images = 0
log_every = 2
validate_every = 4
sheet_every = 0
save_every = 2
cpu = true
weights_part_mb = 0.3
progress = false
"""


@pytest.mark.slow
def test_a_bare_machine_trains_two_steps_from_packed_frames_and_resumes(tmp_path: Path, golden: ModuleType) -> None:
    for number, name in enumerate(("train", "val")):
        golden.made_up_clips(seed=number).save(tmp_path / "packed" / name)
    (tmp_path / "gpu.toml").write_text(CONFIG, encoding="utf-8")
    options = [str(tmp_path / "packed"), "-o", str(tmp_path / "run"), "--config", str(tmp_path / "gpu.toml")]
    starts = [["bare", *options, "--set", f"loop.max_images={images}"] for images in (4, 8)]
    program = [sys.executable, "-c", PROGRAM, json.dumps(starts)]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert [line.split(",")[0] for line in said[::2]] == ["4 images", "8 images"]
    assert said[1] == said[3] == f"wrote {tmp_path / 'run' / 'weights.safetensors'}"
    lines = [line for line in read_log(tmp_path / "run" / "log.jsonl") if line["kind"] == "train"]
    assert [line["images_seen"] for line in lines] == [2, 4, 6, 8]
    found = latest_state(tmp_path / "run" / "checkpoints")
    assert found is not None
    state = load_state(found)
    assert state.config["task"]["reconstruction"]["freeze"] == ["expression"]
    assert ModelConfig.from_dict(state.config["task"]["model"]).image_size == 64
    assert len(list((tmp_path / "run").glob("weights.safetensors.part*"))) > 1
    loaded = load_pretrained(tmp_path / "run" / "weights.safetensors").state_dict()
    assert all(torch.equal(value, loaded[name].half().float()) for name, value in loaded.items())


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([], "DATA or -o RUN is missing"),
        (["nowhere", "-o", "run"], "nowhere has no split 'train'"),
        (["nowhere", "-o", "run", "--config", "none.toml"], "none.toml does not exist"),
        (["nowhere", "-o", "run", "--set", "model.freeze=eyes"], "freeze names 'eyes'"),
        (["nowhere", "-o", "run", "--set", "loop.weights_part_mb=0"], "weights_part_mb must be positive"),
        (["nowhere", "-o", "run", "--from-pretrained", "nobody"], "nobody"),
    ],
)
def test_bad_input_ends_in_one_sentence(
    given: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(given) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_interruption_before_the_first_step_is_said_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("export3d.training.__main__.run", stop)
    assert main(["data", "-o", "run"]) == 130
    assert capsys.readouterr().err == "export3d: interrupted\n"


def test_the_settings_are_those_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--recipe", "paper", "--set", "loop.batch_size=64", "--print-config"]) == 0
    settings = resolve(ReconstructionConfig, "paper", changes=["loop.batch_size=64"])
    assert capsys.readouterr().out == settings.to_json() + "\n"


def test_the_settings_in_the_guide_are_valid(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[3] / "docs" / "training.md").read_text(encoding="utf-8").partition("## On a GPU")[2]
    config = tmp_path / "gpu.toml"
    config.write_text(guide.partition("```toml\n")[2].partition("```")[0], encoding="utf-8")
    trial, run = (
        resolve(ReconstructionConfig, "base", config, [change]).loop
        for change in ("loop.max_images=1280", "loop.max_minutes=17")
    )
    assert (trial.max_images, trial.max_minutes, trial.decay) == (1280, None, "images")
    assert (run.max_images, run.max_minutes, run.decay) == (None, 17.0, "clock")
    assert run.compile
    assert run.batch_size == 64
