"""Resolves the settings of a training stage: a packaged recipe, overridden by a TOML file and by single settings.

A recipe is a TOML file with tables for each stage: `[pretrain.*]`, `[train.*]`, `[refine.*]`. Settings that it leaves
out keep the default of their settings class. TOML has no null: `"none"` unsets an optional setting.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import tomllib
import types
import typing
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from export3d.errors import ConfigError, InputError
from export3d.files import check_input, reason
from export3d.training.adversarial import AdversarialConfig
from export3d.training.loop_config import LoopConfig
from export3d.training.pretrain import PretrainConfig
from export3d.training.reconstruction import ReconstructionConfig

RECIPES = ("paper", "base", "core", "fine-tune")
"""Names of the files in `export3d/recipes`."""

STAGES: dict[type, str] = {PretrainConfig: "pretrain", ReconstructionConfig: "train", AdversarialConfig: "refine"}
"""Settings class of a stage to the stage's name in recipes."""

Config = TypeVar("Config", PretrainConfig, ReconstructionConfig, AdversarialConfig)


def _same(table: str, names: str, inside: str = "") -> dict[str, str]:
    return {f"{table}.{name}": f"config.{inside}{name}" for name in names.split()}


_LOOP = {
    key: key
    for line in (
        "batch_size accumulate max_images max_minutes lr betas weight_decay warmup_images decay decay_from",
        "final_lr_ratio grad_clip ema_halflife_images ema_rampup log_every sheet_every validate_every save_every keep",
        "weights_part_mb seed precision channels_last compile cpu tensorboard progress",
    )
    for key in (f"loop.{name}" for name in line.split())
}
_LOSS = {
    **_same("loss", "l2_raw l2 lpips_raw lpips", "weights."),
    **_same("loss", "backbone backbone_file heads_file face_emphasis landmarks flow moved optical mouth eyes"),
    "loss.identity": "config.identity_weight",
    "loss.expression": "config.expression_weight",
    "loss.reader": "config.expression_reader",
    "loss.reading": "config.reading_weight",
    "loss.density": "config.density_weight",
}
_RENDER = _same("render", "coarse fine")
_DATA = _same("data", "still_fraction pseudo_fraction hard_fraction curriculum_images mirror augment memory")

KEYS: dict[str, dict[str, str]] = {
    "pretrain": {
        **_same("expression", "hidden n d", "model.expression."),
        "expression.settle": "config.settle",
        **_same("image", "width groups", "model."),
        **_same("loss", "objective temperature", "model."),
        **_same("data", "frames draw positives crop size augment noise near", "frames."),
        **_same("data", "standardise pseudo_share memory"),
        **_LOOP,
    },
    "train": {
        **_same("model", "preset variants image_size expression motion_steps score_steps freeze"),
        **_RENDER,
        **_LOSS,
        "loss.between": "config.between",
        **_DATA,
        **_same("data", "taught taught_share"),
        **_LOOP,
    },
    "refine": {
        "model.image_size": "config.image_size",
        "model.trainable": "config.adv_trainable",
        "model.freeze": "config.freeze",
        **_RENDER,
        **_LOSS,
        **_same("loss", "lambda_rec lambda_adv"),
        "discriminator.size": "config.discriminator",
        "discriminator.dual": "config.dual",
        "discriminator.lr": "config.d_lr",
        "discriminator.betas": "config.d_betas",
        "discriminator.r1_gamma": "config.r1_gamma",
        "discriminator.r1_every": "config.r1_every",
        **_DATA,
        **_LOOP,
    },
}
"""The settings of each stage: dotted key to the path of its field in `Settings`."""

_ENDS = {"loop.max_images": "images", "loop.max_minutes": "clock"}
"""Settings that end a run, and the learning-rate decay that matches each."""


@dataclass(frozen=True)
class Settings(Generic[Config]):
    """The resolved settings of a stage: its own settings and those of the loop."""

    config: Config
    loop: LoopConfig

    def tables(self) -> dict[str, dict[str, Any]]:
        """Every setting as JSON-able tables, in the order of `KEYS`; paths become strings."""
        found: dict[str, dict[str, Any]] = {}
        for key, path in KEYS[STAGES[type(self.config)]].items():
            value: Any = self
            for name in path.split("."):
                value = getattr(value, name)
            table, _, name = key.partition(".")
            found.setdefault(table, {})[name] = str(value) if isinstance(value, Path) else value
        return found

    def to_json(self) -> str:
        """`tables` as readable JSON; unset settings are `null`."""
        return json.dumps(self.tables(), indent=2)


def resolve(
    stage: type[Config],
    recipe: str = "base",
    file: Path | None = None,
    changes: Sequence[str] = (),
    *,
    instead: Mapping[str, Any] | None = None,
) -> Settings[Config]:
    """Resolve the settings of a stage.

    If a later layer sets only one of `loop.max_images` and `loop.max_minutes`, the other is unset, and a learning-rate
    decay follows the new limit.

    Args:
        stage: settings class, a key of `STAGES`.
        recipe: one of `RECIPES`.
        file: TOML file in the form of a recipe; overrides the recipe.
        changes: settings KEY=VALUE with TOML values; bare words are strings. They override recipe and file. A key that
            begins with a stage (`train.loss.lpips`) is left out in the other stages.
        instead: values by key that override the recipe but not `file`.

    Raises:
        ConfigError: an unknown recipe, key or stage, a wrong type, or an invalid value.
        InputError: `file` cannot be read as TOML.
    """
    name = STAGES[stage]
    layers = [_recipe(recipe, name), dict(instead or {})]
    if file is not None:
        layers.append(_file(file, name))
    layers.append(_changes(changes, name))
    values = _merged(layers)
    fields = {KEYS[name][key]: value for key, value in values.items()}
    try:
        return _replaced(Settings(stage(), LoopConfig()), fields)
    except ConfigError as error:
        raise ConfigError(_with_keys(str(error), name)) from None


def parse(text: str, where: str) -> dict[str, dict[str, Any]]:
    """Parse and check a recipe: stage to values by key.

    Args:
        text: the recipe, TOML.
        where: name of the recipe in messages.

    Raises:
        InputError: `text` is not valid TOML.
        ConfigError: an unknown key or stage, or a wrong type.
    """
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} cannot be read as TOML: {_short(str(error))}") from None
    unknown = [stage for stage in content if stage not in KEYS]
    if unknown:
        raise ConfigError(f"{where}: there is no stage {unknown[0]!r}; tables begin with {', '.join(KEYS)}")
    found: dict[str, dict[str, Any]] = {}
    for stage, tables in content.items():
        if not isinstance(tables, dict):
            raise ConfigError(f"{where}: {stage} must be a table of tables, such as [{stage}.loop]")
        pairs = list(_flat(tables, stage))
        found[stage] = {key: _checked(stage, key, value, where) for key, value in pairs}
        if len(found[stage]) < len(pairs):
            twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise ConfigError(f"{where} sets {stage}.{twice} twice; keep one of the lines")
    return found


def _recipe(name: str, stage: str) -> dict[str, Any]:
    if name not in RECIPES:
        raise ConfigError(f"there is no recipe {name!r}{_near(name, RECIPES)}; the recipes are {', '.join(RECIPES)}")
    text = (resources.files("export3d") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    found = parse(text, f"recipe {name}")
    if stage not in found:
        raise ConfigError(f"recipe {name} has no stage {stage}; choose another with --recipe")
    return found[stage]


def _file(path: Path, stage: str) -> dict[str, Any]:
    check_input(path, InputError, "a TOML file of settings")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path} cannot be read as TOML: it is not UTF-8 text") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({reason(error)})") from None
    found = parse(text, str(path))
    if stage not in found:
        raise ConfigError(f"{path} sets nothing for {stage}; its tables begin with [{stage}., such as [{stage}.loop]")
    return found[stage]


def _changes(texts: Iterable[str], stage: str) -> dict[str, Any]:
    found = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign:
            raise ConfigError(f"{text!r} is not a setting; use --set KEY=VALUE, such as --set loop.max_minutes=30")
        key = key.strip()
        first, _, rest = key.partition(".")
        meant, key = (first, rest) if rest and first in KEYS else (stage, key)
        value = _checked(meant, key, _value(key, value.strip()), "--set")
        if meant == stage:
            found[key] = value
    return found


def _value(key: str, text: str) -> Any:
    try:
        content = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        content = {}
    if list(content) == ["value"]:
        return content["value"]
    if text[:1] in tuple("\"'[{") or "\n" in text:
        raise ConfigError(f"--set: the value of {key} cannot be read as TOML: {_short(text)}")
    return text


def _flat(tables: Mapping[str, Any], stage: str, before: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in tables.items():
        key = before + name
        if isinstance(value, dict) and any(known.startswith(f"{key}.") for known in KEYS[stage]):
            yield from _flat(value, stage, f"{key}.")
        else:
            yield key, value


def _checked(stage: str, key: str, value: Any, where: str) -> Any:
    """Check a setting and convert its value to the type of its field."""
    known = KEYS[stage]
    if key not in known:
        raise ConfigError(
            f"{where}: stage {stage} has no setting {key!r}{_near(key, known)}; --print-config shows all settings"
        )
    try:
        return _converted(value, _hint(stage, known[key]))
    except _WrongType as error:
        raise ConfigError(f"{where}: {stage} setting {key} must be {error}, got {_short(repr(value))}") from None


def _near(name: str, known: Iterable[str]) -> str:
    """` (did you mean ...?)`, or nothing."""
    known, last = list(known), name.replace("-", "_").rpartition(".")[2]
    found = [key for key in known if "." in key and key.rpartition(".")[2] == last]
    found = found or difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(found)}?)" if found else ""


def _short(text: str) -> str:
    """The beginning of what somebody typed, for a message."""
    return text if len(text) <= 100 else f"{text[:100]}…"


class _WrongType(Exception):
    """A value has the wrong type; the message names the right one."""


_MOST = 10**12
"""Largest whole number that a setting may have."""
_WANTED = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", Path: "a path"}


def _converted(value: Any, hint: Any) -> Any:
    """Convert a TOML value to the type `hint`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value == "none":
            return None
        (inner,) = (kind for kind in arguments if kind is not type(None))
        try:
            return _converted(value, inner)
        except _WrongType as error:
            raise _WrongType(f"{error} or none") from None
    if origin is Literal:
        if isinstance(value, str) and value in arguments:
            return value
        raise _WrongType(f"one of {', '.join(arguments)}")
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            items = value.split(",") if isinstance(value, str) else value
            kinds: Sequence[Any] = [arguments[0]] * (len(items) if isinstance(items, list) else 0)
            wanted = "a list of words"
        else:
            items, kinds, wanted = value, arguments, f"a list of {len(arguments)} numbers"
        if not isinstance(items, list) or len(items) != len(kinds):
            raise _WrongType(wanted)
        try:
            return tuple(_converted(item, kind) for item, kind in zip(items, kinds))
        except _WrongType:
            raise _WrongType(wanted) from None
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    if hint is int and type(value) is int and abs(value) > _MOST:
        raise _WrongType(f"a whole number of at most {_MOST}")
    if hint in (int, bool, str) and type(value) is hint:
        return value
    if hint is Path and isinstance(value, str) and value and "\0" not in value:
        return Path(value)
    raise _WrongType(_WANTED[hint])


def _hint(stage: str, path: str) -> Any:
    """The type of a field, given its path in `Settings`."""
    first, *names = path.split(".")
    kind: Any = LoopConfig if first == "loop" else next(one for one, name in STAGES.items() if name == stage)
    for name in names:
        kind = typing.get_type_hints(kind)[name]
    return kind


def _merged(layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge layers, later ones over earlier ones; see `resolve`."""
    merged: dict[str, Any] = {}
    for layer in layers:
        ends = [key for key in _ENDS if layer.get(key) is not None]
        if len(ends) == 1 and merged:
            (end,) = ends
            merged |= dict.fromkeys(_ENDS)
            if merged.get("loop.decay", "none") != "none":
                merged["loop.decay"] = _ENDS[end]
        merged |= layer
    return merged


T = TypeVar("T")


def _replaced(settings: T, values: Mapping[str, Any]) -> T:
    """A copy of a dataclass with changed fields; dotted names such as `weights.l2` change fields of its parts."""
    parts: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        name, _, rest = path.partition(".")
        parts.setdefault(name, {})[rest] = value
    changed = {
        name: inner[""] if "" in inner else _replaced(getattr(settings, name), inner) for name, inner in parts.items()
    }
    return typing.cast(T, dataclasses.replace(typing.cast(Any, settings), **changed))


def _with_keys(message: str, stage: str) -> str:
    """Replace field names in a settings class's message by their keys."""
    for key, path in KEYS[stage].items():
        field = path.rpartition(".")[2]
        if field != key.rpartition(".")[2] and "_" in field:
            message = re.sub(rf"\b{field}\b", key, message)
    return message
