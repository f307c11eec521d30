"""`export3d orbit`: a camera travels around the head of a portrait."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import tyro

from export3d.cli.framing import Framing
from export3d.cli.marking import Marking
from export3d.cli.terminal import arkit_scores, tell, took, with_progress
from export3d.engines.names import EngineName


def command(
    source: tyro.conf.Positional[Path],
    framing: Framing = Framing(),  # noqa: B008 - frozen
    marking: Marking = Marking(),  # noqa: B008 - frozen
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    motion: Path | None = None,
    scores: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(name="set", metavar="NAME=VALUE")] = (),
    path: Literal["circle", "swing", "spiral"] = "circle",
    yaw: float = 30.0,
    pitch: float = 15.0,
    seconds: float = 4.0,
    weights: Path | None = None,
    pure: bool = False,
    device: str = "auto",
    engine: EngineName = "auto",
) -> int:
    """Show a portrait from a camera that travels around its head and returns to where it started.

    Args:
        source: the portrait, an image with a face.
        framing: which face, and what the frames show.
        marking: whether the output is marked as AI-generated, and how.
        output: the video to write (.mp4, 25 fps).
        motion: take the expressions of this motion, but not its head motion: a motion file (from `export3d track`), a
            Live Link Face recording (.csv), or the name of a bundled motion: speech, expressions, turns. By default the
            portrait keeps its own expression.
        scores: keep an ARKit score at this value, 0 to 1, such as jawOpen=0.8; may be repeated.
        path: circle around the portrait's own view, swing to the sides and then up and down, or spiral out and back.
        yaw: largest angle to the sides, degrees, below 90.
        pitch: largest angle up and down, degrees, below 90.
        seconds: time of one round. With a motion the camera makes as many whole rounds as fit its length best.
        weights: a name that `export3d weights` lists, or a .safetensors file; by default the packaged weights.
        pure: render with the core alone: no pixel of the source is warped into the frame.
        device: cpu, cuda, or auto.
        engine: how the network is run: reference (float32), torch (the processor's or GPU's fast number format),
            openvino (extra fast), or auto: openvino on x86 processors where it is installed, else torch.
    """
    begun = time.perf_counter()
    held = arkit_scores(scores)

    from export3d.animate.drive import FPS, motion_path, read_motion
    from export3d.animate.export import VIDEO_SUFFIXES, check_output, write_video
    from export3d.animate.orbit import path_angles, round_frames

    marking.check()
    read = framing.check()
    frames = len(path_angles(path, round_frames(seconds), yaw, pitch))
    mover = None if motion is None else motion_path(motion)
    check_output(output, VIDEO_SUFFIXES, [file for file in (source, mover, weights, *read) if file is not None])
    expressions = None if mover is None else read_motion(mover).motion

    from export3d.animate.animator import Animator

    animator = Animator.from_pretrained(weights, device, pure, engine)
    portrait = framing.sources(animator, source)
    views = animator.orbit(
        portrait,
        expressions,
        path=path,
        yaw_deg=yaw,
        pitch_deg=pitch,
        seconds=seconds,
        scores=held,
        **framing.options(animator),
    )
    shown = with_progress(views, "rendering", len(expressions) if expressions else frames)
    count = write_video(output, shown, FPS, marks=marking.marks(animator.statement(portrait, mover)))
    tell(f"wrote {output}{marking.remark} {took(count, begun, animator.engine.description)}")
    return 0
