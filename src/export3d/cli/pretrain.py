"""`export3d pretrain`: contrastive pre-training of the expression encoder."""

from __future__ import annotations

from pathlib import Path

import tyro

from export3d.cli.settings import Changes, Data, Output, Recipe, both
from export3d.cli.terminal import tell


def command(
    data: tyro.conf.Positional[Data[str]] = None,
    *,
    output: Output = None,
    recipe: Recipe = "base",
    config: Path | None = None,
    changes: Changes = (),
    pseudo: tuple[str, ...] = (),
    cache: Path | None = None,
    resume: bool = True,
    print_config: bool = False,
) -> int:
    """Pre-train the expression encoder to ignore the person's appearance (CLeBS, Eq. 1), or resume a run.

    A sample is 33 frames of a clip. Settings that count images in other stages count clips here.

    Examples:
      export3d pretrain data -o runs/clebs --set loop.max_minutes=60
      export3d pretrain --recipe paper --print-config

    Args:
        data: folder of prepared shards with split train and optionally val, or its URL (http, https, s3, …).
        output: the run's folder: configuration, log, sheets, checkpoints, and at the end clebs.safetensors and
            reader.safetensors (for `train --set loss.reader=FILE`).
        recipe: packaged settings: paper or base.
        config: TOML file of settings in the form of a recipe; overrides the recipe.
        changes: a setting, such as loop.max_minutes=60; overrides recipe and file; may be repeated.
        pseudo: splits of pseudo-clips to train on as well.
        cache: folder that keeps decoded frames between runs.
        resume: by default a run resumes from the folder's last checkpoint; with --no-resume such a folder is refused.
        print_config: print all settings as JSON and exit; needs neither DATA nor -o.
    """
    from export3d.training.pretrain import PretrainConfig, run
    from export3d.training.recipes import resolve

    settings = resolve(PretrainConfig, recipe or "base", config, changes)
    if print_config:
        print(settings.to_json())
        return 0
    data, output = both(data, output)
    result = run(data, output, settings.config, settings.loop, pseudo=pseudo, resume=resume, cache=cache)
    tell(f"wrote {output / 'clebs.safetensors'} after {result.images_seen} clips")
    return result.exit_code
