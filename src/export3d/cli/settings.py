"""Options for training settings, shared by `pretrain`, `train`, `refine` and `ablate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from export3d.errors import ConfigError
from export3d.files import check_folder

Place = TypeVar("Place", str, Path)
Recipe = Annotated[str | None, tyro.conf.arg(metavar="{paper,base,core,fine-tune}")]
Changes = Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(name="set", metavar="KEY=VALUE")]
Output = Annotated[Path | None, tyro.conf.arg(aliases=["-o"], help_behavior_hint="(required)")]
Data = Annotated[Place | None, tyro.conf.arg(help_behavior_hint="(required)")]


def both(data: Place | None, output: Path | None) -> tuple[Place, Path]:
    """DATA and -o, which are required unless --print-config is given.

    Raises:
        ConfigError: one of them is missing.  OutputError: the output cannot be a folder.
    """
    if data is None:
        raise ConfigError("DATA is missing; give a folder that export3d prepare made, or its URL")
    if output is None:
        raise ConfigError("the folder for the run is missing; give it with -o RUN")
    return data, check_folder(output)
