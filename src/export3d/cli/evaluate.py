"""`export3d evaluate`: scores of weights on held-out clips."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from export3d.cli.terminal import progress_bar, tell


def command(
    split: tyro.conf.Positional[Path],
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    weights: Path | None = None,
    every: int = 1,
    backbone: Literal["alex", "squeeze", "none"] = "alex",
    backbone_file: Path | None = None,
    heads_file: Path | None = None,
    retrack: bool = False,
    max_clips: int | None = None,
    device: str = "auto",
    batch: int = 4,
) -> int:
    """Score weights on a prepared split, same identity: one frame of a clip is driven by all others.

    Args:
        split: a folder of shards, such as DIR/val made by `export3d prepare ... -o DIR`.
        output: folder for report.json, report.md and sheet.png; created if need be.
        weights: a .safetensors file of weights; by default those inside the package.
        every: drive every N-th of the further frames.
        backbone: of LPIPS; none leaves it out.
        backbone_file: weights of the backbone; torchvision's where none are given.
        heads_file: weights of the LPIPS heads.
        retrack: also track the result and correlate it with the driving motion.
        max_clips: only the first clips of the split.
        device: cpu, cuda, or auto.
        batch: frames driven together.
    """
    from export3d.evaluation.protocol import same_identity

    with progress_bar("driving") as bar:

        def progress(done: int, frames: int) -> None:
            bar.total = frames
            bar.update(done - bar.n)

        report = same_identity(
            split,
            output,
            weights=weights,
            every=every,
            backbone=backbone,
            backbone_file=backbone_file,
            heads_file=heads_file,
            retrack=retrack,
            max_clips=max_clips,
            device=device,
            batch=batch,
            progress=progress,
        )
    print(report.markdown())
    tell(f"wrote {output / 'report.json'}")
    return 0
