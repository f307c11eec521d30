"""`export3d sheet views`: renders expressions from several cameras, with depth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from export3d.cli.marking import Marking
from export3d.cli.terminal import arkit_scores, progress_bar, tell

_EXPRESSIONS = tyro.conf.create_mutex_group(required=False, title="expressions (at most one of)")


def command(
    portraits: tyro.conf.Positional[tuple[Path, ...]] = (),
    marking: Marking = Marking(),  # noqa: B008 - frozen
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    motion: Annotated[Path | None, _EXPRESSIONS] = None,
    scores: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(name="set", metavar="NAME=VALUE"), _EXPRESSIONS
    ] = (),
    size: str | None = None,
    weights: Path | None = None,
    pure: bool = False,
    device: str = "auto",
) -> int:
    """Render portraits with several expressions (rows) from several cameras (columns), each with its depth map.

    Args:
        portraits: images with a face; by default the bundled portrait.
        marking: whether the sheets are marked as AI-generated, and how.
        output: folder for views_NAME.png, one per portrait; created if missing.
        motion: show the three frames of this motion whose expressions differ most: a motion file (from `export3d
            track`), a Live Link Face recording (.csv), or the name of a bundled motion: speech, expressions, turns. By
            default an open jaw, a pucker and closed eyes.
        scores: show one expression with this ARKit score, 0 to 1, such as jawOpen=0.8; may be repeated.
        size: pixels across each image, 256 to 1024, or native, the photo's own; by default the model's.
        weights: a name that `export3d weights` lists, or a .safetensors file; by default the packaged weights.
        pure: render with the core alone: no pixel of the source is warped into the frame.
        device: cpu, cuda, or auto.
    """
    held = arkit_scores(scores)

    from export3d.animate.drive import bundled_portrait, motion_path, read_motion
    from export3d.files import make_folder
    from export3d.photo.options import parse_size
    from export3d.provenance.statement import Statement, digest_of_file

    mover = None if motion is None else read_motion(motion_path(motion)).motion
    statement = Statement(motion=None if motion is None else digest_of_file(motion_path(motion)))
    wanted = None if size is None else parse_size(size)
    marking.check()
    folder = make_folder(output)
    chosen = portraits or (bundled_portrait(),)

    from export3d.animate.animator import Animator
    from export3d.animate.views_sheet import write_views

    animator = Animator.from_pretrained(weights, device, pure)
    with progress_bar("portraits", len(chosen), "portrait") as bar:
        written = write_views(animator, chosen, folder, mover, held, bar.update, wanted, marking.marks(statement))
    tell(f"wrote {', '.join(map(str, written))}{marking.remark}")
    return 0
