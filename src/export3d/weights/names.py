"""Weights by name: those inside the package, those that were installed, and how a name or a path becomes a file.

Installed weights are `HOME/weights/NAME/` with `model.safetensors`, its sidecar `config.json` and, where there was one,
the model card `README.md`. HOME is the environment variable `EXPORT3D_HOME`, by default `export3d` in the user's folder
for application data. A folder appears under its name by one rename: weights are installed whole or not at all.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export3d.errors import CheckpointError, ConfigError, OutputError
from export3d.files import reason, write_bytes, write_failure
from export3d.weights.file import copy_weights, has_weights

PACKAGED = Path(__file__).parents[1] / "assets" / "base.safetensors"
"""The weights that are installed with the package: preset `base`."""

PACKAGED_ENCODER = PACKAGED.with_name("clebs.safetensors")
"""The pre-trained expression encoder (CLeBS) that the packaged weights were trained with."""

PACKAGED_NAMES = {"base": PACKAGED, "clebs": PACKAGED_ENCODER}

FILE, CARD = "model.safetensors", "README.md"
"""What the weights and their model card are called in a folder of the Hub's shape."""

_CARD_LIMIT = 1_000_000
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")


def home() -> Path:
    """The user's folder for export3d's data; it need not exist. Raises `ConfigError` where none can be told."""
    if chosen := os.environ.get("EXPORT3D_HOME"):
        return Path(chosen).expanduser()
    try:
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Application Support" / "export3d"
        variable, default = ("LOCALAPPDATA", "AppData/Local") if os.name == "nt" else ("XDG_DATA_HOME", ".local/share")
        named = Path(os.environ.get(variable, ""))
        return (named if named.is_absolute() else Path.home() / default) / "export3d"
    except RuntimeError as error:
        raise ConfigError("there is no home folder to keep weights in; set EXPORT3D_HOME to a folder") from error


def installed() -> dict[str, Path]:
    """Name to file of the weights that were installed, sound or not, in alphabetical order."""
    folder = home() / "weights"
    try:
        found = sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise CheckpointError(f"cannot read {folder}: {reason(error)}; check its permissions") from error
    names = {path.name: path / FILE for path in found if _is_name(path.name) and path.is_dir()}
    return {name: file for name, file in names.items() if name not in PACKAGED_NAMES}


def known() -> dict[str, Path]:
    """Name to file: the package's own weights, then the installed ones."""
    return PACKAGED_NAMES | installed()


def look_up(which: Path | str | None) -> Path | None:
    """The `.safetensors` file that is meant, or None where `which` is nothing that is here.

    Args:
        which: a file, a folder that holds `model.safetensors`, a name, or None for the packaged weights. A file or a
            folder goes before a name.
    """
    if which is None:
        return PACKAGED
    path = Path(which)
    if path.suffix == ".safetensors" or path.is_file():
        return path
    if has_weights(path / FILE):
        return path / FILE
    return known().get(str(which))


def find(which: Path | str | None) -> Path:
    """As `look_up`; raises `CheckpointError` that lists the known names where there is nothing."""
    path = look_up(which)
    if path is not None:
        return path
    if Path(str(which)).is_dir():
        raise CheckpointError(f"{which} is a folder without {FILE}; name the .safetensors file inside it")
    raise CheckpointError(
        f"there are no weights {str(which)!r}; give the path of a .safetensors file or a name ({', '.join(known())}), "
        "or install them first: export3d weights install"
    )


def title(path: Path) -> str:
    """What to call a file of weights in a report: the name of the folder where the file's own tells nothing."""
    return path.resolve().parent.name if path.name == FILE else path.name


def card_of(path: Path) -> str | None:
    """The model card of a file of weights: the package's own, or the one that lies beside `model.safetensors`."""
    if path in PACKAGED_NAMES.values():
        return _read(Path(__file__).parents[3] / "MODEL_CARD.md") or _with_the_licences("MODEL_CARD.md")
    return _read(path.with_name(CARD)) if path.name == FILE else None


def name_for(wanted: str) -> str:
    """`wanted` if weights can be installed under that name; raises `ConfigError` otherwise."""
    if not _is_name(wanted):
        raise ConfigError(
            f"{wanted!r} cannot be the name of weights; use letters, digits, - and _ (at most 64), and . in between"
        )
    if wanted.lower() in PACKAGED_NAMES:
        raise ConfigError(f"{wanted} is the name of weights inside the package; choose another one with --name")
    return wanted


def install(source: Path, name: str, info: Mapping[str, Any] | None = None) -> Path:
    """Copy weights, verified, with their model card, to where `name` finds them.

    Args:
        source: a `.safetensors` file with its sidecar, whole or in parts.
        name: see `name_for`.
        info: added to what the sidecar tells, such as where they came from.

    Returns:
        the installed file.

    Raises:
        CheckpointError: missing or damaged.  ConfigError: the name cannot be used or is taken.
        OutputError: they cannot be written; nothing is installed.
    """
    target = home() / "weights" / name_for(name)
    if target.exists():
        raise ConfigError(f"weights {name} are installed already; remove them first, or choose another --name")
    card = card_of(source)
    unfinished = target.with_name(f".{name}.tmp-{os.getpid()}")
    try:
        for left in target.parent.glob(f".{name}.tmp-*"):  # by a process that was killed
            shutil.rmtree(left)
        unfinished.mkdir(parents=True)
        copy_weights(source, unfinished / FILE, info)
        if card is not None:
            write_bytes(unfinished / CARD, card.encode())
        unfinished.rename(target)
    except OSError as error:
        raise write_failure(target, error) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target / FILE


def remove(name: str) -> Path:
    """Delete installed weights and return the folder that held them; raises `ConfigError` where there are none."""
    if name in PACKAGED_NAMES:
        raise ConfigError(f"{name} is inside the package and cannot be removed; it goes with the package")
    if name not in installed():
        names = ", ".join(installed()) or "none"
        raise ConfigError(f"no weights {name!r} are installed, so they cannot be removed; installed are: {names}")
    folder = home() / "weights" / name
    trash = folder.with_name(f".{name}.trash-{os.getpid()}")
    try:
        folder.rename(trash)
        shutil.rmtree(trash)
    except OSError as error:
        raise OutputError(f"cannot remove {folder}: {reason(error)}; check its permissions") from error
    return folder


def _read(card: Path) -> str | None:
    try:
        return card.read_text(encoding="utf-8") if card.stat().st_size <= _CARD_LIMIT else None
    except (OSError, UnicodeDecodeError):
        return None


def _with_the_licences(name: str) -> str | None:
    """A file that pip puts with the licences; a checkout has it at its root."""
    try:
        return importlib.metadata.distribution("export3d").read_text(f"licenses/{name}")
    except importlib.metadata.PackageNotFoundError:
        return None


def _is_name(text: str) -> bool:
    return bool(_NAME.fullmatch(text)) and not text.endswith((".safetensors", ".json"))
