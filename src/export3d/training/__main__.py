"""`python -m export3d.training PACKED -o RUN`: stage one with only torch, safetensors, accelerate and Pillow.

It is `export3d train` without the packages that a GPU machine often lacks (tyro, PyAV, MediaPipe): the data are frames
that `export3d pack` wrote.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from export3d.errors import ConfigError, Export3DError
from export3d.training.recipes import RECIPES, resolve
from export3d.training.reconstruction import ReconstructionConfig, run


def main(argv: Sequence[str] | None = None) -> int:
    """Train or resume; returns the exit code (2: a bad input or setting, said in one sentence; 130: interrupted)."""
    given = _options().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="export3d: %(message)s", stream=sys.stderr)
    try:
        recipe = given.recipe or ("base" if given.from_pretrained is None else "fine-tune")
        settings = resolve(ReconstructionConfig, recipe, given.config, given.changes)
        if given.print_config:
            print(settings.to_json())
            return 0
        if given.data is None or given.output is None:
            raise ConfigError(
                "DATA or -o RUN is missing; give frames that export3d pack wrote, and a folder for the run"
            )
        result = run(
            given.data,
            given.output,
            settings.config,
            settings.loop,
            resume=given.resume,
            from_pretrained=given.from_pretrained,
            pseudo=given.pseudo,
        )
    except Export3DError as error:
        print(f"export3d: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before the first step, or a second one
        print("export3d: interrupted", file=sys.stderr)
        return 130
    figures = ", ".join(f"{name} {value:.4g}" for name, value in result.validation.items())
    print(f"{result.images_seen} images, {result.minutes:.1f} minutes, stopped by {result.reason}: {figures}")
    print(f"wrote {given.output / 'weights.safetensors'}")
    return result.exit_code


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser("python -m export3d.training", description=(__doc__ or "").replace("`", ""))
    options.add_argument("data", nargs="?", help="folder that export3d pack wrote, or prepared shards")
    options.add_argument("-o", "--output", type=Path, help="the run's folder; a run in it is resumed")
    options.add_argument("--recipe", choices=RECIPES, help="packaged settings, as for export3d train")
    options.add_argument("--config", type=Path, help="TOML file of settings in the form of a recipe")
    options.add_argument(
        "--set", dest="changes", action="append", default=[], metavar="KEY=VALUE", help="a setting; may be repeated"
    )
    options.add_argument("--from-pretrained", help="initial weights: a name or a .safetensors file")
    options.add_argument(
        "--pseudo",
        action="append",
        default=[],
        help="folder of packed pseudo-clips to train on as well; may be repeated",
    )
    options.add_argument("--no-resume", dest="resume", action="store_false", help="refuse a folder that holds a run")
    options.add_argument("--print-config", action="store_true", help="print all settings as JSON and exit")
    return options


if __name__ == "__main__":
    sys.exit(main())
