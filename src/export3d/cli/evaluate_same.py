"""`export3d evaluate same`: scores weights on people driven by other frames of the same clip."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from export3d.cli.evaluate import ScoringOptions, scored, told
from export3d.cli.terminal import job_progress, tell
from export3d.evaluation.protocols.settings import RunSettings


def command(
    data: tyro.conf.Positional[str | None] = None,
    scoring: ScoringOptions = ScoringOptions(),  # noqa: B008 - frozen
    run: RunSettings = RunSettings(),  # noqa: B008 - frozen
    *,
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])] = "evaluation",
    split: str = "val",
    clips: Path | None = None,
    weights: Path | None = None,
    references: tuple[Literal["copy", "warp", "mesh", "oracle"], ...] = ("copy", "warp", "mesh", "oracle"),
    every: int = 1,
    max_clips: int | None = None,
    size: int | None = None,
) -> int:
    """Score weights on held-out clips, each driven by its own frames, against simple references and an oracle.

    Writes report.html, report.md, report.json and sheet.png. Repeating the command continues an interrupted run.

    Args:
        data: folder that `export3d prepare` made, or one split in it; or its URL (s3, http, …); by default
            the folder data.
        scoring: measures and their networks.
        run: how the clips are rendered.
        output: folder for the results, created if missing, or its URL (s3, …).
        split: name of the split.
        clips: folder of your own videos, instead of DATA; with DATA and --size, the folder that it was prepared from.
        weights: a name that `export3d weights` lists, or a .safetensors file; by default the packaged weights.
        references: other rows of the table; the copy is always included.
        every: use every N-th of the other frames as driving frame; flicker is only measured for 1.
        max_clips: use only the first clips of the split.
        size: pixels across the face crop that are scored, 256 to 1024; clips with fewer are left out.
    """
    from export3d.evaluation.protocols.same import same_identity

    shown = scored(data, split, clips, output, size)
    with job_progress("scoring", unit="frame") as progress:
        report = same_identity(
            shown.split,
            output,
            weights=weights,
            references=references,
            scoring=scoring.scoring(),
            every=every,
            max_clips=max_clips,
            size=size,
            originals=shown.originals,
            publishable_only=not shown.own,
            run=run,
            progress=progress,
        )
    print(report.markdown())
    tell(told(output, report.credits, not shown.own))
    return 0
