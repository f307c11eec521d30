"""The first losses of both training phases, on made-up clips: what `losses.json` holds and how it is made again.

    python tests/golden/losses.py            # writes tests/golden/losses.json anew

A refactoring must not change them. Whoever changes training on purpose runs this script, looks at what moved, and
commits the file with the change. One thread, float32, on the CPU; the clips are drawn below from fixed seeds.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from export3d import config as model_settings
from export3d.camera import Camera, project
from export3d.data.frame_layout import Clip
from export3d.data.frames import FrameStore
from export3d.expression.encoder import ExpressionEncoder
from export3d.face.mesh import canonical_mesh
from export3d.model import Export3D
from export3d.motion.motion import SHOULDERS
from export3d.pretrained import load_pretrained, save_pretrained
from export3d.render.renderer import VolumeRenderer
from export3d.superres import SuperResolution
from export3d.training.adversarial import AdversarialConfig, AdversarialTask
from export3d.training.loop import train
from export3d.training.loop_config import LoopConfig
from export3d.training.reconstruction import ReconstructionConfig, ReconstructionTask
from export3d.training.record import read_log
from export3d.triplane.generator import TriplaneGenerator
from export3d.triplane.stem import OverlapPatchMerge
from export3d.warping.dense_motion import DenseMotion
from export3d.warping.detail import Detail
from export3d.warping.landmark_motion import LandmarkMotion
from export3d.warping.skip_path import SkipPath
from export3d.warping.source_warp import WarpConfig

FILE = Path(__file__).with_suffix(".json")
STEPS = 20
SIZE = 64
PHASES = ("one", "one_as_base", "two_sr", "two_all")
"""Phase one in the paper's form and with what preset `base` adds, both as small as `tiny`; phase two in both modes."""

LOOP = LoopConfig(
    batch_size=4, max_images=4 * STEPS, log_every=4, sheet_every=0, validate_every=0, save_every=0, lr=1e-4,
    warmup_images=16, ema_halflife_images=16, ema_rampup=0.5, precision="fp32", cpu=True, tensorboard=False,
    progress=False,
)  # fmt: skip


def made_up_clips(people: int = 3, frames: int = 6, size: int = SIZE, seed: int = 0) -> FrameStore:
    """Heads that turn and open their mouths, drawn as discs; the last of the people is a still portrait."""
    rng = np.random.default_rng(seed)
    counts = [frames] * (people - 1) + [1]
    clips, pictures, expressions, cameras, landmarks = [], [], [], [], []
    mesh = canonical_mesh().vertices
    for person, count in enumerate(counts):
        kind = "video" if count > 1 else "image"
        clips.append(Clip(f"clip{person}", kind, f"person{person}", "open", len(pictures), count))
        colours = rng.uniform(60, 220, size=(2, 3))
        for _ in range(count):
            yaw, jaw = rng.uniform(-25, 25), rng.uniform(0, 1)
            y, x = (np.mgrid[0:size, 0:size] + 0.5) / size - 0.5
            image = np.where(((x - yaw / 300) ** 2 + y**2 < 0.09)[..., None], colours[0], colours[1])
            mouth = (np.abs(x - yaw / 200) < 0.1) & (np.abs(y - 0.12) < 0.01 + 0.08 * jaw)
            pictures.append(np.where(mouth[..., None], 30.0, image).round().astype(np.uint8))
            expressions.append(np.concatenate([[jaw], rng.uniform(0, 0.1, 51)]))
            cameras.append(Camera.orbit(yaw).label)
            chin = mesh[:, 1] > np.quantile(mesh[:, 1], 0.75)
            moved = mesh + np.outer(chin, [0.0, 0.06 * jaw, 0.0])
            landmarks.append(project(np.concatenate([moved, moved[:10]])[None], cameras[-1][None])[0])
    return FrameStore(
        frames=torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(),
        expression=torch.from_numpy(np.stack(expressions)).float(),
        camera=torch.from_numpy(np.stack(cameras)).float(),
        shoulders=torch.zeros(len(pictures), SHOULDERS),
        landmarks=torch.from_numpy(np.stack(landmarks)).half(),
        found=torch.ones(len(pictures), dtype=torch.bool),
        clip=torch.tensor([number for number, count in enumerate(counts) for _ in range(count)]),
        clips=tuple(clips),
        space="arkit52",
    )


def weights(folder: Path) -> Path:
    """Random weights of preset `tiny` that phase two begins with; layers that start at zero are moved."""
    torch.manual_seed(1)
    model = Export3D(model_settings.preset("tiny"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return save_pretrained(model, folder / "start.safetensors", {"images_seen": 0})


def phase_one(as_base: bool) -> tuple[Any, dict[str, Any]]:
    """The task, and what else `train` takes."""
    config = ReconstructionConfig(
        preset="tiny", backbone="none", face_emphasis=2.0, hard_fraction=0.5, landmarks=1.0, flow=1.0
    )
    kept = model_settings.PRESETS["tiny"]
    if as_base:
        base, plain = model_settings.preset("base"), kept()
        seen = plain.image_size * base.generator.image_size // base.image_size
        changed = replace(plain, generator=replace(plain.generator, image_size=seen), warp=WarpConfig())
        model_settings.PRESETS["tiny"] = lambda: changed
    try:
        task = ReconstructionTask(config, made_up_clips())
    finally:
        model_settings.PRESETS["tiny"] = kept
    if as_base:
        draw_in_the_first_order(task)
    return task, {}


def draw_in_the_first_order(task: ReconstructionTask) -> None:
    """Give the model the random weights that it had when `losses.json` was made.

    Then the parts of the warp lay among those of the paper: landmark and dense motion before the generator, the skip
    path in its middle, detail behind the super-resolution. Another order draws other weights from the same seed.
    """
    model = task.model
    c, warp = model.config, model.warp
    assert warp is not None
    assert warp.motion is not None
    assert warp.dense is not None
    assert warp.skip is not None
    assert warp.detail is not None
    torch.manual_seed(task.seed)
    ExpressionEncoder(c.expression)
    warp.motion.load_state_dict(LandmarkMotion(c.expression.d).state_dict())
    warp.dense.load_state_dict(DenseMotion().state_dict())
    skip: list[SkipPath] = []

    def merge(*widths: int) -> OverlapPatchMerge:
        if widths[0] == c.generator.mid_channels // 4:  # the second one, behind the first two grids
            skip.append(SkipPath(c.generator.side_widths, flow=True, redraw=True))
        return OverlapPatchMerge(*widths)

    with mock.patch("export3d.triplane.generator.OverlapPatchMerge", merge):
        model.generator.load_state_dict(TriplaneGenerator(c.generator, c.expression.d).state_dict())
    warp.skip.load_state_dict(skip[0].state_dict())
    model.renderer.load_state_dict(VolumeRenderer(c.render, c.generator.plane_channels).state_dict())
    model.superres.load_state_dict(SuperResolution(c.superres, c.render.features).state_dict())
    widths = (c.render.features, c.superres.mid_channels, c.superres.high_channels)
    warp.detail.load_state_dict(Detail(*widths, mouth=True).state_dict())


def phase_two(mode: str, folder: Path) -> tuple[Any, dict[str, Any]]:
    """The task, and what else `train` takes."""
    config = AdversarialConfig(
        discriminator="tiny", adv_trainable=mode, backbone="none", lambda_adv=0.1, d_lr=2e-4, r1_every=4
    )
    task = AdversarialTask(config, load_pretrained(weights(folder)), made_up_clips())
    return task, {"opponent": task.opponent}


def first_losses(phase: str) -> list[dict[str, Any]]:
    """What the log says of each of the first steps: losses and gradient norm, of the second network too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if phase.startswith("one"):
                task, rest = phase_one(phase == "one_as_base")
            else:
                task, rest = phase_two(phase.removeprefix("two_"), folder)
            train(task, folder / "run", LOOP, **rest)
            lines = [line for line in read_log(folder / "run" / "log.jsonl") if line["kind"] == "train"]
    finally:
        torch.set_num_threads(threads)
    return [{name: line[name] for name in ("losses", "grad_norm", "opponent") if name in line} for line in lines]


def main(phases: list[str]) -> None:
    """Write the file; only some phases where they are named."""
    golden = json.loads(FILE.read_text(encoding="utf-8")) if phases and FILE.is_file() else {}
    for phase in phases or PHASES:
        golden[phase] = first_losses(phase)
    FILE.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
