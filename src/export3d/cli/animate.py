"""`export3d animate`: animates a portrait with a driving video or a motion file, or all that a list names."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import tyro

from export3d.cli.animate_batch import animate_list
from export3d.cli.framing import Framing
from export3d.cli.marking import Marking
from export3d.cli.terminal import arkit_scores, frame_counter, tell, took, with_progress
from export3d.cli.working import who_works
from export3d.engines.names import EngineName
from export3d.errors import BadVideo, ConfigError
from export3d.files import check_input
from export3d.photo.options import check_batch

_MOVER = tyro.conf.create_mutex_group(required=False, title="driving motion (exactly one of)")
_WAY = tyro.conf.create_mutex_group(required=False, title="how the motion is applied")


def command(
    source: tyro.conf.Positional[Path | None] = None,
    framing: Framing = Framing(),  # noqa: B008 - frozen
    marking: Marking = Marking(),  # noqa: B008 - frozen
    *,
    output: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="PATH")],
    driving: Annotated[Path | None, _MOVER] = None,
    motion: Annotated[Path | None, _MOVER] = None,
    driving_face: str = "largest",
    relative: Annotated[bool, _WAY] = False,
    absolute: Annotated[bool, _WAY] = False,
    start: float = 0.0,
    seconds: float | None = None,
    head_motion: Literal["steady", "full", "rotation"] = "steady",
    scores: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(name="set", metavar="NAME=VALUE")] = (),
    sheet: Path | None = None,
    weights: Path | None = None,
    pure: bool = False,
    device: str = "auto",
    batch_size: int = 6,
    engine: EngineName = "auto",
    batch: Annotated[str | None, tyro.conf.arg(metavar="LIST.csv")] = None,
    workers: int | None = None,
    ray: str | None = None,
    ray_gpus: float = 0.0,
) -> int:
    """Animate a portrait with a driving video or a motion file, or all that a list names.

    Args:
        source: the portrait, an image with a face; with --batch, that of the rows that name none.
        framing: which face, and what the frames show.
        marking: whether the output is marked as AI-generated, and how.
        output: the video to write (.mp4, 25 fps, with the driving video's sound); with --batch, the folder or URL for
            the videos and the report.
        driving: a video of a face.
        motion: a motion file (from `export3d track`), a Live Link Face recording (.csv), or the name of a bundled
            motion: speech, expressions, turns.
        driving_face: of several in the driving video: largest (largest and longest in view), left, right, or a number
            counted from the left.
        relative: add the driving face's movement to the portrait's own pose and expression; done unless absolute is
            set.
        absolute: use the driving face's pose and expression unchanged.
        start: start at this time of the driving video or motion, seconds.
        seconds: maximum duration, seconds.
        head_motion: how the head's place and size follow the driving face: steady removes drift, zoom and shaking of
            the driving video, full follows it as far as the frame allows, rotation turns the head in its place.
        scores: keep an ARKit score of the result at this value, 0 to 1, such as jawOpen=0.8; may be repeated.
        sheet: also write a contact sheet (.png).
        weights: a name that `export3d weights` lists, or a .safetensors file; by default the packaged weights.
        pure: render with the core alone: no pixel of the source is warped into the frame.
        device: cpu, cuda, or auto.
        batch_size: number of frames to render together.
        engine: how the network is run: reference (float32), torch (the processor's or GPU's fast number format),
            openvino (extra fast), or auto: openvino on x86 processors where it is installed, else torch.
        batch: a list of animations: a CSV file or its URL, with the columns portrait, motion or driving, output, and
            options of a row; the other options hold for all rows. Repeating the command makes what is missing.
        workers: with --batch, the number of processes (1 by default); 0 uses this process.
        ray: with --batch, use a Ray cluster instead (extra cluster): its address, HOST:PORT or auto; without one, the
            processors of this machine.
        ray_gpus: share of a GPU that each worker of the cluster holds; by default they use processors.
    """
    begun = time.perf_counter()
    held, crew = arkit_scores(scores), who_works(workers, ray, ray_gpus)
    check_batch(batch_size)
    if batch is not None:
        if sheet is not None:
            raise ConfigError("--sheet names one file, and --batch makes many; give the list a column sheet")
        shared = {
            "portrait": source,
            "driving": driving,
            "motion": motion,
            "driving_face": driving_face,
            "relative": "yes" if relative else None,
            "absolute": "yes" if absolute else None,
            "start": start,
            "seconds": seconds,
            "head_motion": head_motion,
            "set": " ".join(scores),
            **framing.cells(),
            **marking.cells(),
        }
        return animate_list(batch, output, shared, crew, weights, pure, device, batch_size, engine)
    if crew is not None:
        raise ConfigError("--workers and --ray are for --batch; leave them out")
    if source is None:
        raise ConfigError("the portrait is missing; give an image with a face, or a list of them with --batch")
    mover = driving or motion
    if mover is None:
        raise ConfigError("the driving motion is missing; give --driving VIDEO or --motion FILE")

    from export3d.animate.drive import FPS, driving_meanwhile, motion_path, read_motion
    from export3d.animate.export import STILL_SUFFIXES, VIDEO_SUFFIXES, check_output, write_animation
    from export3d.face.tracker import face_choice
    from export3d.video.reading import frame_range

    marking.check()
    frame_range(start, seconds, FPS)
    if absolute and head_motion != "steady":
        raise ConfigError("--absolute takes over the driver's framing; leave out --head-motion")
    read = framing.check(relative=not absolute)
    face_choice(driving_face, one=True)
    if motion is not None and driving_face != "largest":
        raise ConfigError(
            "--driving-face chooses a face of a driving video; a motion file holds one face, so leave it out"
        )
    mover = motion_path(mover)
    if motion is None:
        check_input(mover, BadVideo, "a driving video")
    inputs = [path for path in (source, mover, weights, *read) if path is not None]
    check_output(output, VIDEO_SUFFIXES, inputs)
    if sheet is not None:
        check_output(sheet, STILL_SUFFIXES, inputs, [output])
    given = None if motion is None else read_motion(mover, start, seconds)

    with (
        frame_counter("tracking", mover) as count,
        driving_meanwhile(mover, count, face=driving_face, start_s=start, seconds=seconds)
        if given is None
        else nullcontext(lambda: given) as driven,
    ):
        from export3d.animate.animator import Animator

        animator = Animator.from_pretrained(weights, device, pure, engine)
        portrait = framing.sources(animator, source)
        animator.close_tracker()
        options = framing.options(animator, relative=not absolute)
        if given is None:
            animator.warm_up(portrait, batch_size, **options)  # while the video is being tracked
        moved_by = driven()
    if held:
        moved_by.motion.require_space("arkit52")
    frames = write_animation(
        animator,
        portrait,
        moved_by,
        output,
        sheet,
        relative=not absolute,
        batch=batch_size,
        head_motion=head_motion,
        scores=held,
        marks=marking.marks(animator.statement(portrait, mover)),
        **options,
        watch=lambda frames: with_progress(frames, "rendering", len(moved_by.motion)),
    )
    written = f"{output}" if sheet is None else f"{output} and {sheet}"
    tell(f"wrote {written}{marking.remark} {took(frames, begun, animator.engine.description)}")
    return 0
