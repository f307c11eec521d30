"""`export3d pretrain`: contrastive pre-training of the expression encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from export3d.cli.terminal import tell
from export3d.training.loop_config import LoopConfig
from export3d.training.pretrain import PretrainConfig, run


def command(
    data: tyro.conf.Positional[str],
    config: PretrainConfig = PretrainConfig(),  # noqa: B008 - frozen
    loop: LoopConfig = LoopConfig(batch_size=8, log_every=400, validate_every=800, warmup_images=400),  # noqa: B008
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    pseudo: tuple[str, ...] = (),
    resume: bool = True,
    cache: Path | None = None,
) -> int:
    """Train the expression encoder to forget whose face it is (CLeBS, Eq. 1), or go on with a run that was stopped.

    Counts clips where other stages count images: one sample is a clip with its 33 frames.

    Args:
        data: folder of prepared shards, with `train` and perhaps `val` in it, or its URL (http, https, s3, …).
        config: what is trained.
        loop: how it is trained.
        output: the run's folder: configuration, log, sheets, checkpoints, and clebs.safetensors (with
            reader.safetensors, for `train --expression-reader`) at the end.
        pseudo: splits of pseudo-clips to draw from beside the real clips.
        resume: go on from the folder's last checkpoint; with --no-resume a folder that has one is refused.
        cache: folder that keeps decoded frames between runs.
    """
    result = run(data, output, config, loop, pseudo=pseudo, resume=resume, cache=cache)
    tell(f"wrote {output / 'clebs.safetensors'} after {result.images_seen} clips")
    return 0
