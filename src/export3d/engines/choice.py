"""Chooses how a model is run."""

from __future__ import annotations

import logging
import platform
from functools import cache
from importlib.util import find_spec
from typing import get_args

from export3d.engines.cuda_engine import CudaEngine
from export3d.engines.engine import Engine
from export3d.engines.names import EngineName
from export3d.engines.openvino_engine import OpenVinoEngine, load_openvino
from export3d.engines.torch_engine import TorchEngine
from export3d.errors import ConfigError, Export3DError
from export3d.model import Export3D

log = logging.getLogger(__name__)
_MEASURED = ("x86_64", "AMD64")
"""Processors on which OpenVINO was measured to be faster."""


def pick_engine(model: Export3D, name: EngineName = "auto") -> Engine:
    """The engine of that name for a model in evaluation mode on its device.

    - `reference`: PyTorch in float32.
    - `torch`: PyTorch in the device's fast number format, on a GPU as CUDA graphs.
    - `openvino`: OpenVINO for the costly parts, on a CPU (extra `fast`).
    - `auto`: `openvino` on x86 processors if it is installed and loads, else `torch`. It depends only on the machine
      and on what is installed, never on a measurement: there the same input gives the same pixels.

    Raises:
        ConfigError: there is no such engine, its package is damaged, or it does not run on the model's device.
        MissingExtra: its package is not installed.
    """
    if name not in get_args(EngineName):
        raise ConfigError(f"there is no engine {name!r}; choose from {', '.join(get_args(EngineName))}")
    device = next(model.parameters()).device.type
    if name == "auto":
        measured = device == "cpu" and platform.machine() in _MEASURED
        name = "openvino" if measured and _has_openvino() else "torch"
    if name == "reference":
        return Engine(model)
    if name == "openvino":
        return OpenVinoEngine(model)
    return CudaEngine(model) if device == "cuda" else TorchEngine(model)


def _has_openvino() -> bool:
    if find_spec("openvino") is None:
        return False
    try:
        load_openvino()
    except Export3DError as error:
        _warn(f"the engine is torch: {error}")
        return False
    return True


@cache
def _warn(sentence: str) -> None:
    """Log a warning, once per process."""
    log.warning(sentence)
