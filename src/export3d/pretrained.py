"""Trained weights of the whole model and of its expression encoder: the packaged ones, or files of the same form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from export3d.errors import CheckpointError, ConfigError
from export3d.expression.encoder import ExpressionConfig, ExpressionEncoder
from export3d.model import Export3D
from export3d.triplane.blocks import EAdaLN
from export3d.warping.source_warp import inherited
from export3d.weights.blob import Json
from export3d.weights.file import load_into, load_weights, read_sidecar, save_weights
from export3d.weights.hub import locate
from export3d.weights.names import PACKAGED as PACKAGED
from export3d.weights.names import PACKAGED_ENCODER as PACKAGED_ENCODER
from export3d.weights.names import PACKAGED_NAMES, find, install

_AVERAGE = "generator.average.value"
_WARP = "warp."
_EXPRESSION = "expression."


def load_pretrained(path: Path | str | None = None) -> Export3D:
    """The model that `path` holds, frozen, in eval mode on the CPU; nothing is looked for outside this machine.

    Args:
        path: a `.safetensors` file with its sidecar, a folder that `Export3D.save_pretrained` wrote, or the name of
            installed weights (`export3d weights`); None means the packaged ones.

    Raises:
        CheckpointError: missing, damaged or of another kind.
    """
    return Export3D.from_file(find(path)).requires_grad_(False)


def save_pretrained(model: Export3D, path: Path | str, info: Mapping[str, Any], **options: Any) -> Path:
    """Write a model's weights with the configuration that rebuilds it; `options` go to `checkpoint.save_weights`."""
    return save_weights(path, model.state_dict(), {"model": model.config.to_dict()}, info, **options)


def load_encoder(path: Path | str | None = None) -> ExpressionEncoder:
    """The encoder that `path` (a file or a name) holds, in eval mode, frozen; None: the packaged one.

    Raises `CheckpointError` where the file is missing, damaged or of another kind.
    """
    path = find(PACKAGED_ENCODER if path is None else path)
    tensors, config, _ = load_weights(path)
    settings = config.get("expression")
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} does not hold an expression encoder; make one with: export3d pretrain")
    unknown = sorted(set(settings) - {f.name for f in fields(ExpressionConfig)})
    if unknown:
        raise ConfigError(f"unknown setting expression.{unknown[0]} in {path}; this encoder needs a newer export3d")
    encoder = ExpressionEncoder(ExpressionConfig(**settings))
    load_into(encoder, tensors, what=str(path))
    return encoder.eval().requires_grad_(False)


def save_encoder(encoder: ExpressionEncoder, path: Path | str, info: Mapping[str, Any]) -> Path:
    """Write an encoder with the configuration that rebuilds it."""
    return save_weights(path, encoder.state_dict(), {"expression": asdict(encoder.config)}, info)


def verify(which: Path | str | None) -> Json:
    """Read weights, of a model or of an expression encoder, as they will be used; returns what their sidecar tells.

    Args:
        which: a file, a folder or a name, see `load_pretrained`.

    Raises:
        CheckpointError: missing, another SHA-256 than the sidecar's, or neither a model nor an encoder.
        ConfigError: settings of a newer export3d.
    """
    path = find(which)
    config = load_weights(path)[1]
    if "model" in config:
        load_pretrained(path)
    elif "expression" in config:
        load_encoder(path)
    else:
        raise CheckpointError(f"{path} holds neither an export3d model nor an expression encoder; use another file")
    return read_sidecar(path)


def install_weights(
    source: Path | str, name: str | None = None, *, revision: str | None = None, token: str | None = None
) -> Path:
    """Verify weights and keep them in the user's data folder, where `name` finds them.

    Args:
        source: a file, a folder or a name (see `load_pretrained`), or a Hugging Face repository `owner/name`.
        name: by default the repository's, the folder's or the file's.
        revision, token: see `Export3D.from_pretrained`.

    Returns:
        the installed file; the package's own weights stay where they are unless they are given a name.

    Raises:
        CheckpointError: missing or damaged; nothing is installed.  OutputError: they cannot be written.
        ConfigError: the name is taken or cannot be used.  MissingExtra: huggingface_hub is not installed.
    """
    path, origin = locate(source, revision, token)
    verify(path)
    if name is None:
        if path in PACKAGED_NAMES.values():
            return path
        telling = path.stem not in ("model", "weights")
        name = Path(str(source)).name if origin else path.stem if telling else path.resolve().parent.name
    return install(path, name, origin)


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


def inherit(model: Export3D, former: Export3D, expression: Tensor) -> None:
    """Give `model` what `former` learned, also where the image size, the expression encoder or the warp differs.

    Everything outside the expression encoder is copied; parts of the warp that the former does not have start where
    they change nothing (`source_warp.inherited`). With the same encoder the copy is complete. With another one (of
    another form or pre-trained separately) the model keeps its own. The linear maps inside EAdaLN are then fitted by
    least squares to give the former modulations as closely as the new beta' allows, and the landmark motion, which
    sees beta' too, starts at zero (`training.reconstruction` fits it).

    Args:
        expression: (N, E) coefficients to fit on, of the training data.

    Raises:
        CheckpointError: the two differ in more than that.
    """
    exchanged = former.config.expression != model.config.expression or (
        model.config.expression.frozen and not _equal(former.expression, model.expression)
    )
    own = model.state_dict()
    tensors = adapt_resolution(former.state_dict(), model)
    wing = {name: tensors.pop(name) for name in list(tensors) if name.startswith(_WARP)}
    if model.warp is not None:
        taken = {name.removeprefix(_WARP): value for name, value in wing.items()}
        tensors |= {_WARP + name: value for name, value in inherited(model.warp.state_dict(), taken, exchanged).items()}
    if exchanged:
        kept = {name for name in own if name.startswith(_EXPRESSION) or name.endswith("modulation.weight")}
        tensors = {name: value for name, value in tensors.items() if not name.startswith(_EXPRESSION)}
        tensors |= {name: own[name] for name in kept}
    load_into(model, tensors, what="the former weights")
    if exchanged:
        _refit_modulation(model, former, expression)


def _equal(a: ExpressionEncoder, b: ExpressionEncoder) -> bool:
    """Whether two encoders of one form give the same beta', as far as half precision tells, in which weights ship."""
    other = b.state_dict()
    names = (name for name in other if name not in ("low", "high"))
    return all(torch.equal(a.state_dict()[name].half(), other[name].half()) for name in names)


@torch.no_grad()
def _refit_modulation(model: Export3D, former: Export3D, expression: Tensor) -> None:
    before, after = former.expression(expression).double(), model.expression(expression).double()
    ones = torch.ones(len(expression), 1, dtype=torch.float64)
    # Without a basis beta' varies a little along many dimensions; maps that lean on those diverge in training.
    cutoff = 1e-6 if model.expression.basis is not None else 1e-2
    pairs = zip(
        (m for m in former.modules() if isinstance(m, EAdaLN)), (m for m in model.modules() if isinstance(m, EAdaLN))
    )
    for old, new in pairs:
        wanted = old.modulation(old.gain * before.float()).double()
        # gelsd: the smallest of the maps that fit, since beta' spans n of d dimensions.
        fit = torch.linalg.lstsq(torch.cat([new.gain * after, ones], 1), wanted, rcond=cutoff, driver="gelsd").solution
        new.modulation.weight.copy_(fit[:-1].T)
        new.modulation.bias.copy_(fit[-1])
