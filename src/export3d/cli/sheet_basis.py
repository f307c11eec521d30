"""`export3d sheet basis`: renders the effect of every direction of the expression basis."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from export3d.cli.marking import Marking
from export3d.cli.terminal import progress_bar, tell


def command(
    portraits: tyro.conf.Positional[tuple[Path, ...]] = (),
    marking: Marking = Marking(),  # noqa: B008 - frozen
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    limits: Annotated[tuple[float, float] | None, tyro.conf.arg(name="range", metavar="LOW HIGH")] = None,
    check: bool = False,
    size: str | None = None,
    weights: Path | None = None,
    pure: bool = False,
    device: str = "auto",
) -> int:
    """Render every direction of the expression basis over its natural range, and tabulate its effects.

    Args:
        portraits: images with a face; by default the bundled portrait.
        marking: whether the sheets are marked as AI-generated, and how.
        output: folder for basis_NAME.png (one per portrait) and basis.md; created if missing.
        limits: instead of the natural range, set the coefficient lambda of each direction in turn to seven values from
            LOW to HIGH, as Fig. 8 and 12 of the paper do, such as 1 -10. These are values of lambda, not amounts added
            to the portrait's own.
        check: exit with code 1 if a direction turns the head of any portrait by 1.5 degrees or more.
        size: pixels across each image, 256 to 1024, or native, the photo's own; by default the model's.
        weights: a name that `export3d weights` lists, or a .safetensors file; by default the packaged weights.
        pure: render with the core alone: no pixel of the source is warped into the frame.
        device: cpu, cuda, or auto.
    """
    from export3d.animate.drive import bundled_portrait
    from export3d.expression.sliders import check_limits
    from export3d.files import make_folder
    from export3d.photo.options import parse_size

    if limits is not None:
        check_limits(*limits)
    wanted = None if size is None else parse_size(size)
    marking.check()
    folder = make_folder(output)
    chosen = portraits or (bundled_portrait(),)

    from export3d.animate.animator import Animator
    from export3d.animate.basis_sheet import STILL_DEG, write_basis

    animator = Animator.from_pretrained(weights, device, pure)
    with progress_bar("portraits", len(chosen), "portrait") as bar:
        summary = write_basis(animator, chosen, folder, bar.update, limits, wanted, marking.marks())
    print(summary.markdown(), end="")
    tell(f"wrote {folder / 'basis.md'} and a sheet for each of {', '.join(summary.portraits)}{marking.remark}")
    if check and summary.moving:
        tell(f"these directions turn the head by {STILL_DEG} degrees or more: v{', v'.join(map(str, summary.moving))}")
        return 1
    return 0
