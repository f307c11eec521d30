"""`export3d refine`: the second training stage, against a discriminator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from export3d.cli.terminal import tell
from export3d.training.adversarial import AdversarialConfig, run
from export3d.training.loop_config import LoopConfig


def command(
    data: tyro.conf.Positional[str],
    config: AdversarialConfig = AdversarialConfig(),  # noqa: B008 - frozen
    loop: LoopConfig = LoopConfig(  # noqa: B008 - frozen
        batch_size=8, max_images=80_000, warmup_images=800, validate_every=8_000, sheet_every=8_000, save_every=8_000
    ),
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    from_pretrained: Path,
    resume: bool = True,
    pseudo: tuple[str, ...] = (),
    cache: Path | None = None,
) -> int:
    """Make trained weights sharper against a discriminator (Eq. 12), or go on with a run that was stopped.

    The paper's 10,000 steps of eight pairs unless told otherwise. By default the super-resolution alone is trained.

    Args:
        data: folder of prepared shards, with `train` and perhaps `val` in it, or its URL (http, https, s3, …).
        config: what is trained.
        loop: how it is trained.
        output: the run's folder: configuration, log, sheets, checkpoints, and weights.safetensors at the end.
        from_pretrained: weights of the first stage, by name, file or Hugging Face repository; the model is theirs.
        resume: go on from the folder's last checkpoint; with --no-resume a folder that has one is refused.
        pseudo: splits of pseudo-clips to train on beside the real ones.
        cache: folder that keeps decoded frames between runs.
    """
    result = run(data, output, config, loop, from_pretrained=from_pretrained, resume=resume, pseudo=pseudo, cache=cache)
    tell(f"wrote {output / 'weights.safetensors'} after {result.images_seen} images")
    return 0
