"""Chooses how a model is run."""

from __future__ import annotations

from typing import get_args

from export3d.engines.engine import Engine
from export3d.engines.names import EngineName
from export3d.engines.torch_engine import TorchEngine
from export3d.errors import ConfigError
from export3d.model import Export3D


def pick_engine(model: Export3D, name: EngineName = "auto") -> Engine:
    """The engine of that name for a model in evaluation mode on its device.

    `auto` depends only on the machine and on what is installed: the same input gives the same bytes there.

    Raises:
        ConfigError: there is no such engine, or it does not run on the model's device.
    """
    if name not in get_args(EngineName):
        raise ConfigError(f"there is no engine {name!r}; choose from {', '.join(get_args(EngineName))}")
    return Engine(model) if name == "reference" else TorchEngine(model)
