"""`export3d animate`: a portrait moved by a driving video or a motion file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from export3d.cli.terminal import frame_counter, tell, with_progress

_MOVER = tyro.conf.create_mutex_group(required=True, title="what moves the portrait (one of)")
_WAY = tyro.conf.create_mutex_group(required=False, title="how the motion is applied")


def command(
    source: tyro.conf.Positional[Path],
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    driving: Annotated[Path | None, _MOVER] = None,
    motion: Annotated[Path | None, _MOVER] = None,
    relative: Annotated[bool, _WAY] = False,
    absolute: Annotated[bool, _WAY] = False,
    sheet: Path | None = None,
    weights: Path | None = None,
    device: str = "auto",
    batch: int = 4,
) -> int:
    """Move a portrait by a driving video or a motion file.

    Args:
        source: the portrait, an image with a face.
        output: the video to write (.mp4, 256 x 256, 25 fps, with the driving video's sound).
        driving: a video of one face.
        motion: a motion file (from `export3d track`), or one of the package by name: speech, expressions, turns.
        relative: add the driving face's movement to the portrait's own pose and expression (the default).
        absolute: take the driving face's pose and expression as they are.
        sheet: also write a contact sheet (.png).
        weights: a .safetensors file of weights; by default those inside the package.
        device: cpu, cuda, or auto.
        batch: frames rendered together.
    """
    from export3d.animate.drive import BUNDLED, bundled_motion, read_motion
    from export3d.animate.drive import driving as drive
    from export3d.animate.export import STILL_SUFFIXES, VIDEO_SUFFIXES, check_output, write_animation

    mover = driving or motion
    assert mover is not None  # tyro lets exactly one through
    if motion is not None and str(motion) in BUNDLED and not motion.exists():
        mover = bundled_motion(str(motion))
    inputs = [path for path in (source, mover, weights) if path is not None]
    check_output(output, VIDEO_SUFFIXES, inputs)
    if sheet is not None:
        check_output(sheet, STILL_SUFFIXES, inputs)

    from export3d.animate.animator import Animator

    animator = Animator.from_pretrained(weights, device)
    portrait = animator.encode(source)
    if motion is not None:
        moved_by = read_motion(mover)
    else:
        with frame_counter("tracking", mover) as count:
            moved_by = drive(mover, animator.tracker, count)
    write_animation(
        animator,
        portrait,
        moved_by,
        output,
        sheet,
        relative=not absolute,
        batch=batch,
        watch=lambda frames: with_progress(frames, "rendering", len(moved_by.motion)),
    )
    tell(f"wrote {output}" + (f" and {sheet}" if sheet is not None else ""))
    return 0
