"""The stages from a driving video to an animated one, each as a function that can be called again and again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export3d.animate.animator import Animator, Source
from export3d.animate.drive import FPS, bundled_motion, bundled_portrait
from export3d.animate.export import write_video
from export3d.animate.eyelids import closing_eyes
from export3d.bench.clip import write_clip
from export3d.bench.counting import wait, work
from export3d.engines.engine import Engine
from export3d.errors import ConfigError
from export3d.face.crop import CROP_SIZE
from export3d.image import read_image, to_tensor
from export3d.model import Planes
from export3d.motion.motion import Motion
from export3d.photo.matte import crop_mattes
from export3d.video import read_frames
from export3d.warping.detail import DetailGuide

CLIP_S = 1.0
CLIP_SIZE = (1280, 720)
"""Length, seconds, and pixels of the clip that is decoded and tracked."""
WHOLE = 4
"""Batches of an animation that is measured whole."""


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        run: does the stage once, for `units` frames (or one portrait).
        unit: "frame" or "portrait".
        units: how many of them one call does.
        precision: of its convolutions and matrix products; empty where there are none, or several.
        flop, traffic: FLOP and bytes per unit, see `counting.work`; None where they are not counted.
        contains: another stage that `run` does too; its time is subtracted, round by round.
    """

    run: Callable[[], object]
    unit: str
    units: int
    precision: str = ""
    flop: float | None = None
    traffic: float | None = None
    contains: str | None = None

    def of_one(self) -> Stage:
        """The same for a stage that does one portrait, whatever the batch."""
        flop, traffic = (None if value is None else value * self.units for value in (self.flop, self.traffic))
        return replace(self, unit="portrait", units=1, flop=flop, traffic=traffic)


def stages(animator: Animator, batch: int, folder: Path) -> dict[str, Stage]:
    """All stages by name, in the order in which a frame passes through them; then whole frames.

    Input: the packaged portrait, the packaged motion `speech`, and a clip that moves the portrait.

    Args:
        animator: its engine is measured.
        batch: frames rendered together.
        folder: an existing folder for the clip and the encoded video.

    Raises:
        ConfigError: `batch` is below 1 or above the length of the motion.
        MissingExtra: the extra `face` is not installed.
    """
    longest = len(_motion())
    if not 1 <= batch <= longest:
        raise ConfigError(f"the batch must be 1 to {longest} frames (the length of the motion), got {batch}")
    source = animator.encode(bundled_portrait())
    made = _of_video(animator, folder)
    last = made.pop("encode video")
    parts = _of_network(animator, source, batch)
    per_frame = {name: stage.flop or 0.0 for name, stage in parts.items() if name != "encode"}
    orbit = sum(per_frame.values()) - per_frame["planes"]
    whole = _whole(animator, source, batch, orbit + per_frame["planes"], orbit)
    return made | parts | {"encode video": last} | whole


def _of_video(animator: Animator, folder: Path) -> dict[str, Stage]:
    """Decoding, tracking and encoding; traffic: the compressed file and the frames."""
    clip = write_clip(folder / "driving.mp4", CLIP_S, *CLIP_SIZE)
    frames = list(read_frames(clip, FPS))
    count, made = len(frames), folder / "encoded.mp4"
    drawn = [np.asarray(frame[::2, ::2][:256, :256]) for frame in frames]
    write_video(made, drawn, FPS)
    raw, small = frames[0].nbytes, drawn[0].nbytes
    return {
        "decode": Stage(
            lambda: list(read_frames(clip, FPS)), "frame", count, traffic=clip.stat().st_size / count + raw
        ),
        "track": Stage(lambda: animator.tracker.track_frames(frames, FPS), "frame", count, traffic=raw),
        "encode video": Stage(
            lambda: write_video(made, drawn, FPS), "frame", count, traffic=made.stat().st_size / count + small
        ),
    }


def _of_network(animator: Animator, source: Source, batch: int) -> dict[str, Stage]:
    """The parts of the network, on consecutive frames of a motion; FLOP and traffic are those of the PyTorch model."""
    model, engine, device = animator.model, animator.engine, animator.device
    motion = _motion()[:batch]

    def tensor(values: NDArray) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    track = animator.tracker.track_image(read_image(bundled_portrait()))
    image = to_tensor(source.image)[None].to(device)
    own, neutral = tensor(source.camera[None]), tensor(source.expression[None])
    places = tensor(track.landmarks[:1] / CROP_SIZE)
    known = (image, own, neutral, places, crop_mattes(model, image))
    driving, cameras = tensor(motion.expression), tensor(motion.camera)

    def planes(run: Engine) -> Planes:
        asked, regions = closing_eyes(model, source.features, neutral[0], driving, None)
        return run.planes(source.features, asked, None, regions)

    plain, fast = Engine(model), getattr(engine, "precision", "float32")
    moved = planes(plain)
    rendered = plain.render(moved, cameras)

    def stage(step: Callable[[Engine], object], precision: str) -> Stage:
        flop, traffic = work(lambda: step(plain))
        return Stage(_ready(lambda: step(engine), device), "frame", batch, precision, flop / batch, traffic / batch)

    made = {
        "encode": stage(lambda run: run.encode(*known), "float32").of_one(),
        "planes": stage(planes, fast),
        "render": stage(lambda run: run.render(moved, cameras), "float32"),
    }
    finish = stage(lambda run: run.frame_and_origin(moved, cameras, rendered), fast)
    if model.warp is None or model.warp.detail is None:
        return made | {"super-resolve": finish}
    detail, seen = model.warp.detail, plain.views(moved, cameras)
    flop, traffic = work(lambda: model.superres(rendered.feature, DetailGuide(detail, seen, rendered.feature)))
    return made | {
        "views": stage(lambda run: run.views(moved, cameras), "float32" if fast == "int8" else fast),
        "super-resolve": replace(finish, flop=flop / batch, traffic=traffic / batch, contains="views"),
    }


def _whole(animator: Animator, source: Source, batch: int, driven_flop: float, orbit_flop: float) -> dict[str, Stage]:
    """Frames as `Animator` gives them: driven by a motion, and of one expression seen from a moving camera.

    Each call makes a whole animation: one that is left half-way goes on in its threads while other stages are measured.
    """
    motion = _motion()[: WHOLE * batch]
    count = len(motion)
    return {
        "driven frame": Stage(
            lambda: list(animator.animate(source, motion, batch=batch)), "frame", count, flop=driven_flop
        ),
        "orbit frame": Stage(
            lambda: list(animator.orbit(source, seconds=count / FPS, batch=batch)), "frame", count, flop=orbit_flop
        ),
    }


def _motion() -> Motion:
    return Motion.load(bundled_motion("speech"))


def _ready(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The same without gradients, waiting for the device."""

    @torch.inference_mode()
    def inferred() -> object:
        result = run()
        wait(device)
        return result

    return inferred
