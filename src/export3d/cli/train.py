"""`export3d train`: the first training stage on prepared shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from export3d.cli.terminal import tell
from export3d.training import fine_tuning
from export3d.training.loop import Result
from export3d.training.loop_config import LoopConfig
from export3d.training.reconstruction import ReconstructionConfig, run


def command(
    data: tyro.conf.Positional[str],
    config: ReconstructionConfig = ReconstructionConfig(),  # noqa: B008 - frozen
    loop: LoopConfig = LoopConfig(),  # noqa: B008 - frozen
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    resume: bool = True,
    from_pretrained: Path | None = None,
    pseudo: tuple[str, ...] = (),
    cache: Path | None = None,
) -> int:
    """Train the generator to reconstruct driving frames (Eq. 11), or go on with a run that was stopped.

    With --from-pretrained the model is that of the weights, and the defaults are those for a few videos of your own:
    `export3d train --from-pretrained base --help` shows them.

    Args:
        data: folder of prepared shards, with `train` and perhaps `val` in it, or its URL (http, https, s3, …).
        config: what is trained.
        loop: how it is trained.
        output: the run's folder: configuration, log, sheets, checkpoints, and weights.safetensors at the end.
        resume: go on from the folder's last checkpoint; with --no-resume a folder that has one is refused.
        from_pretrained: weights to begin with, of any image size, with a fresh optimiser: a name that
            `export3d weights` lists, a .safetensors file, or a Hugging Face repository owner/name.
        pseudo: splits of pseudo-clips to train on beside the real ones.
        cache: folder that keeps decoded frames between runs.
    """
    result = run(data, output, config, loop, resume=resume, from_pretrained=from_pretrained, pseudo=pseudo, cache=cache)
    _tell(result, output / "weights.safetensors")
    return 0


def defaults(arguments: Sequence[str]) -> dict[str, Any]:
    """Values of `command`'s parameters that take the place of their defaults where these arguments are given."""
    given = {argument.partition("=")[0].replace("_", "-") for argument in arguments}
    if "--from-pretrained" not in given:
        return {}
    loop = fine_tuning.LOOP
    if "--max-minutes" in given and "--max-images" not in given:
        loop = replace(loop, max_images=None, max_minutes=1.0, decay="clock")  # the minutes that are given replace ours
    return {"config": fine_tuning.PAIRS, "loop": loop}


def _tell(result: Result, weights: Path) -> None:
    """Where the weights are, how good, and what to do with them."""
    tell(f"wrote {weights} after {result.images_seen} images")
    if {"psnr", "psnr_copy"} <= set(result.validation):
        psnr, copy = result.validation["psnr"], result.validation["psnr_copy"]
        tell(f"on held-out videos: PSNR {psnr:.2f} dB, of the source frame itself {copy:.2f} dB")
    tell(f"try: export3d animate portrait.jpg --motion speech --weights {weights} -o {weights.with_name('speech.mp4')}")
