"""`export3d train`: the first training stage on prepared shards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from export3d.cli.settings import Changes, Data, Output, Recipe, both
from export3d.cli.terminal import tell

if TYPE_CHECKING:
    from export3d.training.loop import Result


def command(
    data: tyro.conf.Positional[Data[str]] = None,
    *,
    output: Output = None,
    recipe: Recipe = None,
    config: Path | None = None,
    changes: Changes = (),
    from_pretrained: Path | None = None,
    pseudo: tuple[str, ...] = (),
    cache: Path | None = None,
    resume: bool = True,
    print_config: bool = False,
) -> int:
    """Train the generator to reconstruct driving frames (Eq. 11), or resume a run.

    A new loop.max_images lifts the recipe's loop.max_minutes, and the other way round.

    Examples:
      export3d train data -o my_model --from-pretrained base --set loop.max_minutes=30
      export3d train data -o run --recipe paper --set loss.lpips=2 --set loop.batch_size=16

    Args:
        data: folder of prepared shards, with `train` and perhaps `val` in it, or its URL (http, https, s3, …).
        output: the run's folder: configuration, log, sheets, checkpoints, and weights.safetensors at the end.
        recipe: settings of the package; fine-tune with --from-pretrained, otherwise base.
        config: TOML file of settings in the form of a recipe; overrides it.
        changes: one setting, such as loop.max_minutes=30; overrides recipe and file; may be repeated.
        from_pretrained: weights to begin with, of any image size, with a fresh optimiser: a name that
            `export3d weights` lists, a .safetensors file, or a Hugging Face repository owner/name.
        pseudo: splits of pseudo-clips to train on beside the real ones.
        cache: folder that keeps decoded frames between runs.
        resume: resume from the folder's last checkpoint; with --no-resume a folder that has one is refused.
        print_config: print all settings as JSON and end; needs neither DATA nor -o.
    """
    from export3d.training.recipes import resolve
    from export3d.training.reconstruction import ReconstructionConfig, run

    recipe = recipe or ("base" if from_pretrained is None else "fine-tune")
    settings = resolve(ReconstructionConfig, recipe, config, changes)
    if print_config:
        print(settings.to_json())
        return 0
    data, output = both(data, output)
    result = run(
        data,
        output,
        settings.config,
        settings.loop,
        resume=resume,
        from_pretrained=from_pretrained,
        pseudo=pseudo,
        cache=cache,
    )
    _tell(result, output / "weights.safetensors")
    return 0


def _tell(result: Result, weights: Path) -> None:
    """Where the weights are, how good, and what to do with them."""
    tell(f"wrote {weights} after {result.images_seen} images")
    if {"psnr", "psnr_copy"} <= set(result.validation):
        psnr, copy = result.validation["psnr"], result.validation["psnr_copy"]
        tell(f"on held-out videos: PSNR {psnr:.2f} dB, of the source frame itself {copy:.2f} dB")
    tell(f"try: export3d animate portrait.jpg --motion speech --weights {weights} -o {weights.with_name('speech.mp4')}")
