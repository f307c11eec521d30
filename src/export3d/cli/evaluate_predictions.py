"""`export3d evaluate predictions`: scores images that another model saved."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from export3d.cli.evaluate import ScoringOptions
from export3d.cli.terminal import job_progress, tell


def command(
    folder: tyro.conf.Positional[Path],
    scoring: ScoringOptions = ScoringOptions(),  # noqa: B008 - frozen
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("evaluation"),
    truth: bool = True,
    workers: int = 0,
    device: str = "auto",
) -> int:
    """Score images that any model saved, with the same code that scores our weights.

    Writes report.html, report.md and report.json. Repeating the command continues an interrupted run.

    Args:
        folder: images, as CLIP/source.png, CLIP/target/00000.png, CLIP/prediction/00000.png.
        scoring: measures and their networks.
        output: folder for the results; created if missing.
        truth: by default the targets are the true images; --no-truth: they show another person, and measures that need
            the true image are left out.
        workers: number of processes; 0 uses this process.
        device: cpu, cuda, or auto.
    """
    from export3d.evaluation.protocols.saved import score_predictions

    with job_progress("scoring", unit="frame") as progress:
        report = score_predictions(
            folder,
            output,
            truth=truth,
            scoring=scoring.scoring(),
            workers=workers,
            device=device,
            progress=progress,
        )
    print(report.markdown())
    tell(f"wrote {output / 'report.html'}")
    return 0
