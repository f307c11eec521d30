"""Trained weights of the model and of its expression encoder: the packaged ones, or files of the same format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from export3d.config import variant
from export3d.errors import CheckpointError, ConfigError
from export3d.expression.encoder import ExpressionConfig, ExpressionEncoder
from export3d.model import Export3D
from export3d.triplane.blocks import EAdaLN
from export3d.warping.source_warp import inherited
from export3d.weights.blob import Json
from export3d.weights.file import load_into, load_weights, read_sidecar, save_weights
from export3d.weights.hub import locate
from export3d.weights.names import PACKAGED as PACKAGED
from export3d.weights.names import PACKAGED_CORE, PACKAGED_NAMES, find, install
from export3d.weights.names import PACKAGED_ENCODER as PACKAGED_ENCODER

_AVERAGE = "generator.average.value"
_WARP = "warp."
_EXPRESSION = "expression."
_SUPERRES = "superres."


def load_pretrained(path: Path | str | None = None, pure: bool = False) -> Export3D:
    """Load a model, frozen and in eval mode, on the CPU; nothing is downloaded.

    Args:
        path: a `.safetensors` file with its sidecar, a folder that `Export3D.save_pretrained` wrote, or the name of
            installed weights (`export3d weights`); None: the packaged ones.
        pure: load the core alone. For the packaged `base` these are the weights `core`. Other weights keep their values
            and lose what moves the source's pixels and features (variant `pure`).

    Raises:
        CheckpointError: the file is missing, damaged, or not a model.
    """
    found = find(path)
    if pure and found == PACKAGED:
        found = PACKAGED_CORE
    model = Export3D.from_file(found)
    return (_core_of(model) if pure else model).requires_grad_(False)


def _core_of(model: Export3D) -> Export3D:
    core = Export3D(variant(model.config, "pure"))
    own, values = core.state_dict(), model.state_dict()
    core.load_state_dict({name: values[name] for name in own})
    core.info, core.card, core.digest = model.info, model.card, model.digest
    return core.eval()


def save_pretrained(model: Export3D, path: Path | str, info: Mapping[str, Any], **options: Any) -> Path:
    """Write a model's weights with the configuration that rebuilds it; `options` go to `weights.file.save_weights`."""
    return save_weights(path, model.state_dict(), {"model": model.config.to_dict()}, info, **options)


def load_encoder(path: Path | str | None = None) -> ExpressionEncoder:
    """Load an expression encoder, frozen and in eval mode, from a file or by name; None: the packaged one.

    Raises `CheckpointError` if the file is missing, damaged, or not an encoder.
    """
    path = find(PACKAGED_ENCODER if path is None else path)
    tensors, config, _ = load_weights(path)
    settings = config.get("expression")
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} does not contain an expression encoder; make one with: export3d pretrain")
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
    """Check the weights of a model or an expression encoder by loading them; returns their sidecar.

    Args:
        which: a file, a folder or a name, see `load_pretrained`.

    Raises:
        CheckpointError: the file is missing, its SHA-256 is not the sidecar's, or it is neither a model nor an encoder.
        ConfigError: it has settings of a newer export3d.
    """
    path = find(which)
    config = load_weights(path)[1]
    if "model" in config:
        load_pretrained(path)
    elif "expression" in config:
        load_encoder(path)
    else:
        raise CheckpointError(f"{path} contains neither an export3d model nor an expression encoder; use another file")
    return read_sidecar(path)


def install_weights(
    source: Path | str, name: str | None = None, *, revision: str | None = None, token: str | None = None
) -> Path:
    """Verify weights and copy them to the user's data folder, under `name`.

    Args:
        source: a file, a folder or a name (see `load_pretrained`), or a Hugging Face repository `owner/name`.
        name: by default the repository's, the folder's or the file's.
        revision, token: see `Export3D.from_pretrained`.

    Returns:
        The installed file. Packaged weights are copied only if `name` is given.

    Raises:
        CheckpointError: missing or damaged; nothing is installed.  OutputError: they cannot be written.
        ConfigError: the name is taken or not allowed.  MissingExtra: huggingface_hub is not installed.
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
    """Tensors of a model trained at another image size, adapted to `model`.

    Convolutions and token-wise layers fit any size; only the tri-plane EMA has the planes' resolution and is resized.
    """
    adapted = {name: value.float() for name, value in tensors.items()}
    wanted = model.generator.average.value
    if _AVERAGE in adapted and adapted[_AVERAGE].shape != wanted.shape:
        adapted[_AVERAGE] = F.interpolate(adapted[_AVERAGE], wanted.shape[-2:], mode="bilinear", align_corners=False)
    return adapted


def inherit(model: Export3D, former: Export3D, expression: Tensor) -> None:
    """Initialise `model` from `former`, which may differ in image size, expression encoder, warp and super-resolution.

    Everything outside the expression encoder is copied. Parts of the warp that `former` lacks keep their initial
    weights (`warping.source_warp.inherited`), and so does a super-resolution of other widths. With the same encoder the
    rest of the copy is complete. With another one (of another architecture, or pre-trained separately) the model keeps
    its own. The linear maps inside EAdaLN are then fitted by least squares to reproduce the former modulations from the
    new beta'. The landmark motion, which also takes beta', starts at zero (`training.reconstruction` fits it).

    Args:
        expression: (N, E) coefficients of the training data, for the fit.

    Raises:
        CheckpointError: the models differ in anything else.
    """
    exchanged = former.config.expression != model.config.expression or (
        model.config.expression.frozen and not _equal(former.expression, model.expression)
    )
    own = model.state_dict()
    tensors = adapt_resolution(former.state_dict(), model)
    warp = {name: tensors.pop(name) for name in list(tensors) if name.startswith(_WARP)}
    if model.warp is not None:
        taken = {name.removeprefix(_WARP): value for name, value in warp.items()}
        tensors |= {_WARP + name: value for name, value in inherited(model.warp.state_dict(), taken, exchanged).items()}
    if former.config.superres != model.config.superres:
        tensors |= {name: value for name, value in own.items() if name.startswith(_SUPERRES)}
    if exchanged:
        kept = {name for name in own if name.startswith(_EXPRESSION) or name.endswith("modulation.weight")}
        tensors = {name: value for name, value in tensors.items() if not name.startswith(_EXPRESSION)}
        tensors |= {name: own[name] for name in kept}
    load_into(model, tensors, what="the former weights")
    if exchanged:
        _refit_modulation(model, former, expression)


def _equal(a: ExpressionEncoder, b: ExpressionEncoder) -> bool:
    """Whether two encoders of one architecture have equal weights in half precision, in which weights ship."""
    other = b.state_dict()
    names = (name for name in other if name not in ("low", "high"))
    return all(torch.equal(a.state_dict()[name].half(), other[name].half()) for name in names)


@torch.no_grad()
def _refit_modulation(model: Export3D, former: Export3D, expression: Tensor) -> None:
    before, after = former.expression(expression).double(), model.expression(expression).double()
    ones = torch.ones(len(expression), 1, dtype=torch.float64)
    # Without a basis beta' varies slightly along many dimensions; maps that depend on those diverge in training.
    cutoff = 1e-6 if model.expression.basis is not None else 1e-2
    pairs = zip(
        (m for m in former.modules() if isinstance(m, EAdaLN)), (m for m in model.modules() if isinstance(m, EAdaLN))
    )
    for old, new in pairs:
        wanted = old.modulation(old.gain * before.float()).double()
        # gelsd returns the minimum-norm solution, needed since beta' spans only n of d dimensions.
        fit = torch.linalg.lstsq(torch.cat([new.gain * after, ones], 1), wanted, rcond=cutoff, driver="gelsd").solution
        new.modulation.weight.copy_(fit[:-1].T)
        new.modulation.bias.copy_(fit[-1])
