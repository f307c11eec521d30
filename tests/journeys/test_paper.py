"""The paper's three stages by its own script, at the size of preset `tiny`, on the bundled face."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from export3d.cli.main import main
from export3d.image import read_image
from export3d.perceptual import _vgg16
from export3d.pretrained import load_encoder, load_pretrained
from export3d.training.record import read_log

ROOT = Path(__file__).parents[2]
SETTINGS = """
loop.cpu=true loop.progress=false loop.tensorboard=false loop.precision=fp32 loop.batch_size=2 loop.max_images=4
loop.validate_every=0 loop.sheet_every=0
pretrain.expression.hidden=32 pretrain.expression.d=32 pretrain.image.width=8 pretrain.data.size=64
pretrain.data.frames=9 train.model.preset=tiny train.model.variants=clebs refine.discriminator.size=tiny
"""


def script(folder: Path, stop_before: str = "nothing") -> subprocess.CompletedProcess[str]:
    """`recipes/paper.sh` on `folder/data` into `folder/run`; a power cut before the stage `stop_before`."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    program = programs / "export3d"
    cut = f'[ "$1" = {stop_before} ] && exit 9'
    program.write_text(f'#!/bin/sh\n{cut}\nexec {sys.executable} -m export3d "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    files = [f"{stage}.loss.backbone_file={folder / 'vgg16.safetensors'}" for stage in ("train", "refine")]
    given = [word for setting in (*SETTINGS.split(), *files) for word in ("--set", setting)]
    return subprocess.run(
        [
            "sh",
            str(ROOT / "recipes" / "paper.sh"),
            str(folder / "data"),
            str(folder / "run"),
            "--cache",
            str(folder),
            *given,
        ],
        env={**os.environ, "PATH": os.pathsep.join([str(programs), os.environ["PATH"]])},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a POSIX shell")
def test_the_papers_script_goes_from_clips_to_a_face_and_can_be_interrupted(
    tmp_path: Path, face_video: Path, astronaut_path: Path
) -> None:
    assert main(["prepare", str(face_video), "-o", str(tmp_path / "data"), "--workers", "0"]) == 0
    torch.manual_seed(0)
    random = {name: value.half() for name, value in _vgg16().state_dict().items()}
    save_file(random, tmp_path / "vgg16.safetensors")  # the paper's loss network; its weights are not packaged

    assert script(tmp_path, stop_before="train").returncode == 9
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == {"clebs"}
    before = (run / "clebs" / "clebs.safetensors").read_bytes()
    done = script(tmp_path)
    assert done.returncode == 0, done.stderr
    assert (run / "clebs" / "clebs.safetensors").read_bytes() == before, "a finished stage stays as it is"
    assert len((run / "clebs" / "command.txt").read_text("utf-8").splitlines()) == 2

    lines = {stage: read_log(run / stage / "log.jsonl") for stage in ("clebs", "one", "two")}
    assert [lines[stage][-1]["images_seen"] for stage in lines] == [4, 4, 4]
    assert set(lines["one"][-1]["losses"]) == {"l2_raw", "l2", "lpips_raw", "lpips", "total"}, "Eq. 11"
    assert set(lines["two"][-1]["losses"]) == set(lines["one"][-1]["losses"]) | {"adversarial"}, "Eq. 12"
    assert "r1" not in lines["two"][0]["opponent"]["losses"]

    one, two = (load_pretrained(run / stage / "weights.safetensors") for stage in ("one", "two"))
    assert two.config.warp is None
    for name, value in load_encoder(run / "clebs" / "clebs.safetensors").state_dict().items():
        assert torch.equal(two.expression.state_dict()[name], value), f"{name} is frozen"
    learned = dict(two.named_parameters())
    still = {name for name, value in one.named_parameters() if torch.equal(learned[name], value)}
    assert {name for name in still if not name.startswith("expression.")} == set(), (
        "everything else learns in stage two"
    )

    frame = tmp_path / "frame.png"
    weights = str(run / "two" / "weights.safetensors")
    assert main(["edit", str(astronaut_path), "-o", str(frame), "--weights", weights, "--set", "jawOpen=0.6"]) == 0
    image = read_image(frame)
    assert image.shape == (64, 64, 3)
    assert np.asarray(image).std() > 1.0
