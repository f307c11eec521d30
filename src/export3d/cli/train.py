"""`export3d train`: the first training stage on prepared shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from export3d.cli.terminal import tell
from export3d.training.loop import LoopConfig
from export3d.training.reconstruction import ReconstructionConfig, run


def command(
    data: tyro.conf.Positional[Path],
    config: ReconstructionConfig = ReconstructionConfig(),  # noqa: B008 - frozen
    loop: LoopConfig = LoopConfig(),  # noqa: B008 - frozen
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    resume: bool = True,
    init_from: Path | None = None,
    pseudo: tuple[Path, ...] = (),
    cache: Path | None = None,
) -> int:
    """Train the generator to reconstruct driving frames (Eq. 11), or go on with a run that was stopped.

    Args:
        data: folder of prepared shards, with `train` and perhaps `val` in it.
        config: what is trained.
        loop: how it is trained.
        output: the run's folder: configuration, log, sheets, checkpoints, and weights.safetensors at the end.
        resume: go on from the folder's last checkpoint; with --no-resume a folder that has one is refused.
        init_from: weights to begin with (.safetensors), of any image size, with a fresh optimiser.
        pseudo: splits of pseudo-clips to train on beside the real ones.
        cache: folder that keeps decoded frames between runs.
    """
    result = run(data, output, config, loop, resume=resume, init_from=init_from, pseudo=pseudo, cache=cache)
    tell(f"wrote {output / 'weights.safetensors'} after {result.images_seen} images")
    return 0
