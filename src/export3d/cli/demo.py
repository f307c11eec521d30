"""`export3d demo`: animates the bundled portrait with a bundled motion; needs no files of the user."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from export3d.cli.compare_motion import table
from export3d.cli.framing import Framing
from export3d.cli.marking import Marking
from export3d.cli.terminal import frame_counter, with_progress


def command(
    marking: Marking = Marking(),  # noqa: B008 - frozen
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("out"),
    motion: Literal["speech", "expressions", "turns"] = "speech",
    absolute: bool = False,
    weights: Path | None = None,
    pure: bool = False,
    device: str = "auto",
) -> int:
    """Animate the bundled portrait, track the result and report how well it follows the motion.

    Args:
        marking: whether the video and the sheet are marked as AI-generated, and how.
        output: folder for demo.mp4 and demo_sheet.png; created if missing.
        motion: name of a bundled motion.
        absolute: use the driving face's pose and expression unchanged (default: relative to the portrait's own).
        weights: a name that `export3d weights` lists, or a .safetensors file; by default the packaged weights.
        pure: render with the core alone: no pixel of the source is warped into the frame.
        device: cpu, cuda, or auto.
    """
    from export3d.animate.drive import bundled_motion, bundled_portrait, read_motion
    from export3d.animate.export import write_animation
    from export3d.files import make_folder

    marking.check()
    folder = make_folder(output)
    video, sheet = folder / "demo.mp4", folder / "demo_sheet.png"

    from export3d.animate.animator import Animator
    from export3d.motion.compare import compare

    animator = Animator.from_pretrained(weights, device, pure)
    moved_by = read_motion(bundled_motion(motion))
    source = animator.encode(bundled_portrait())
    write_animation(
        animator,
        source,
        moved_by,
        video,
        sheet,
        relative=not absolute,
        marks=marking.marks(animator.statement(source, bundled_motion(motion))),
        **Framing().options(animator, relative=not absolute),
        watch=lambda frames: with_progress(frames, "rendering", len(moved_by.motion)),
    )
    with frame_counter("tracking", video) as count:
        result = compare(moved_by.motion, animator.tracker.track_video(video, progress=count).motion)
    print(f"{video}\n{sheet}\n\n{video.name}, tracked again and compared with its driving motion {motion!r}:")
    print(table(result))
    if not absolute:
        print("\nRelative motion adds the driving face's change to the portrait's own pose and expression.")
        print("Correlations near 1 mean that it follows; constant differences in degrees are its own pose.")
    return 0
