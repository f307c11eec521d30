"""`export3d refine`: the second training stage, with a discriminator."""

from __future__ import annotations

from pathlib import Path

import tyro

from export3d.cli.settings import Changes, Data, Output, Recipe, both
from export3d.cli.terminal import tell
from export3d.errors import ConfigError


def command(
    data: tyro.conf.Positional[Data[str]] = None,
    *,
    output: Output = None,
    from_pretrained: Path | None = None,
    recipe: Recipe = "base",
    config: Path | None = None,
    changes: Changes = (),
    pseudo: tuple[str, ...] = (),
    cache: Path | None = None,
    resume: bool = True,
    print_config: bool = False,
) -> int:
    """Train weights of the first stage further with a discriminator (Eq. 12), or resume a run.

    By default only the super-resolution is trained, for 10,000 steps of eight pairs as in the paper.

    Examples:
      export3d refine data -o runs/sharp --from-pretrained base --set loop.max_minutes=60
      export3d refine --recipe paper --print-config

    Args:
        data: folder of prepared shards with split train and optionally val, or its URL (http, https, s3, …).
        output: the run's folder: configuration, log, sheets, checkpoints, and weights.safetensors at the end.
        from_pretrained: weights of the first stage: a name, a file or a Hugging Face repository. They set the model.
        recipe: packaged settings.
        config: TOML file of settings in the form of a recipe; overrides the recipe.
        changes: a setting, such as loop.max_minutes=60; overrides recipe and file; may be repeated.
        pseudo: splits of pseudo-clips to train on as well.
        cache: folder that keeps decoded frames between runs.
        resume: by default a run resumes from the folder's last checkpoint; with --no-resume such a folder is refused.
        print_config: print all settings as JSON and exit; needs neither DATA nor -o.
    """
    from export3d.training.adversarial import AdversarialConfig, run
    from export3d.training.recipes import resolve

    settings = resolve(AdversarialConfig, recipe or "base", config, changes)
    if print_config:
        print(settings.to_json())
        return 0
    data, output = both(data, output)
    if from_pretrained is None:
        raise ConfigError("the weights of the first stage are missing; give them with --from-pretrained")
    result = run(
        data,
        output,
        settings.config,
        settings.loop,
        from_pretrained=from_pretrained,
        resume=resume,
        pseudo=pseudo,
        cache=cache,
    )
    tell(f"wrote {output / 'weights.safetensors'} after {result.images_seen} images")
    return result.exit_code
