"""Trained weights of the whole model: the packaged ones, or a file of the same form."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from export3d.checkpoint import load_into, load_weights, save_weights
from export3d.config import ModelConfig
from export3d.errors import CheckpointError
from export3d.model import Export3D

PACKAGED = Path(__file__).parent / "assets" / "base.safetensors"
"""The weights that are installed with the package: preset `base`."""

_AVERAGE = "generator.average.value"


def load_pretrained(path: Path | str | None = None) -> Export3D:
    """The model that `path` (`….safetensors` with its `….json`) holds, in eval mode on the CPU.

    None means the packaged one. Raises `CheckpointError` where the file is missing, damaged or of another kind.
    """
    tensors, config, _ = load_weights(PACKAGED if path is None else path)
    if "model" not in config:
        raise CheckpointError(f"{path} does not hold an export3d model; its sidecar has no model configuration")
    model = Export3D(ModelConfig.from_dict(config["model"]))
    load_into(model, {name: value.float() for name, value in tensors.items()}, what=str(path or PACKAGED.name))
    return model.eval().requires_grad_(False)


def save_pretrained(model: Export3D, path: Path | str, info: Mapping[str, Any], **options: Any) -> Path:
    """Write a model's weights with the configuration that rebuilds it; `options` go to `checkpoint.save_weights`."""
    return save_weights(path, model.state_dict(), {"model": model.config.to_dict()}, info, **options)


def adapt_resolution(tensors: Mapping[str, Tensor], model: Export3D) -> dict[str, Tensor]:
    """Tensors of a model trained at another image size, made to fit `model`.

    All weights are convolutions and token-wise layers and fit any size; only the tri-plane EMA lives on the planes'
    grid, and is resized.
    """
    adapted = {name: value.float() for name, value in tensors.items()}
    wanted = model.generator.average.value
    if _AVERAGE in adapted and adapted[_AVERAGE].shape != wanted.shape:
        adapted[_AVERAGE] = F.interpolate(adapted[_AVERAGE], wanted.shape[-2:], mode="bilinear", align_corners=False)
    return adapted
