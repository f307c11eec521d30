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

    Setting loop.max_images removes the recipe's limit loop.max_minutes, and vice versa.

    Examples:
      export3d train data -o my_model --from-pretrained base --set loop.max_minutes=30
      export3d train data -o run --recipe paper --set loss.lpips=2 --set loop.batch_size=16

    Args:
        data: folder of prepared shards with split train and optionally val, or its URL (http, https, s3, …).
        output: the run's folder: configuration, log, sheets, checkpoints, and weights.safetensors at the end.
        recipe: packaged settings; by default fine-tune with --from-pretrained, otherwise base.
        config: TOML file of settings in the form of a recipe; overrides the recipe.
        changes: a setting, such as loop.max_minutes=30; overrides recipe and file; may be repeated.
        from_pretrained: initial weights, of any image size, with a new optimiser: a name that `export3d weights` lists,
            a .safetensors file, or a Hugging Face repository owner/name.
        pseudo: splits of pseudo-clips to train on as well.
        cache: folder that keeps decoded frames between runs.
        resume: by default a run resumes from the folder's last checkpoint; with --no-resume such a folder is refused.
        print_config: print all settings as JSON and exit; needs neither DATA nor -o.
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
    return result.exit_code


def _tell(result: Result, weights: Path) -> None:
    """Report where the weights are, their validation figures, and how to try them."""
    tell(f"wrote {weights} after {result.images_seen} images")
    if {"psnr", "psnr_copy"} <= set(result.validation):
        psnr, copy = result.validation["psnr"], result.validation["psnr_copy"]
        tell(f"on held-out videos: PSNR {psnr:.2f} dB (copying the source frame: {copy:.2f} dB)")
    tell(f"try: export3d animate portrait.jpg --motion speech --weights {weights} -o {weights.with_name('speech.mp4')}")
