"""Resolves names and paths of weights to files; installs and removes named weights.

Named weights are either packaged or installed. Installed weights are a folder `HOME/weights/NAME/` that holds
`model.safetensors`, its sidecar `config.json` and, if there is one, the model card `README.md`. HOME is the user's
folder (`files.home`). The last step of an installation renames the folder to its final name, so weights are installed
completely or not at all.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export3d.errors import CheckpointError, ConfigError, OutputError
from export3d.files import home, kind_at, paths_in, reason, write_bytes, write_failure
from export3d.weights.file import copy_weights, has_weights

PACKAGED = Path(__file__).parents[1] / "assets" / "base.safetensors"
"""The weights inside the package: preset `base`."""

PACKAGED_ENCODER = PACKAGED.with_name("clebs.safetensors")
"""The pre-trained expression encoder (CLeBS) that the packaged weights were trained with."""

PACKAGED_CORE = PACKAGED.with_name("core.safetensors")
"""The weights of the core alone: everything is rendered, and no pixel of the source reaches the image."""

PACKAGED_NAMES = {"base": PACKAGED, "core": PACKAGED_CORE, "clebs": PACKAGED_ENCODER}

FILE, CARD = "model.safetensors", "README.md"
"""File names of the weights and their model card in a folder in the Hub's layout."""

_CARD_LIMIT = 1_000_000
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")


def installed() -> dict[str, Path]:
    """Name to file of the installed weights, in alphabetical order; the files are not verified."""
    folder = home() / "weights"
    found = paths_in(folder, CheckpointError) if kind_at(folder, CheckpointError) == "folder" else []
    names = {
        path.name: path / FILE for path in found if _is_name(path.name) and kind_at(path, CheckpointError) == "folder"
    }
    return {name: file for name, file in names.items() if name not in PACKAGED_NAMES}


def known() -> dict[str, Path]:
    """Name to file: the packaged weights, then the installed ones."""
    return PACKAGED_NAMES | installed()


def look_up(which: Path | str | None) -> Path | None:
    """The `.safetensors` file that `which` refers to; None if there is no such file, folder or name.

    Args:
        which: a file, a folder that holds `model.safetensors`, a name, or None for the packaged weights. Files and
            folders take precedence over names.
    """
    if which is None:
        return PACKAGED
    path = Path(which)
    if path.suffix == ".safetensors" or kind_at(path, CheckpointError) == "file":
        return path
    if has_weights(path / FILE):
        return path / FILE
    return known().get(str(which))


def find(which: Path | str | None) -> Path:
    """As `look_up`, but raises a `CheckpointError` that lists the known names if there is no such file."""
    path = look_up(which)
    if path is not None:
        return path
    if kind_at(str(which), CheckpointError) == "folder":
        raise CheckpointError(f"{which} is a folder without {FILE}; name the .safetensors file inside it")
    raise CheckpointError(
        f"there are no weights {str(which)!r}; give the path of a .safetensors file or a name ({', '.join(known())}), "
        "or install them first: export3d weights install"
    )


def title(path: Path) -> str:
    """The name of a weights file in a report: its folder's name for `model.safetensors`, otherwise its file name."""
    return path.resolve().parent.name if path.name == FILE else path.name


def card_of(path: Path) -> str | None:
    """The model card of a weights file: the packaged card, or the one next to `model.safetensors`; None if missing."""
    if path in PACKAGED_NAMES.values():
        return _read(Path(__file__).parents[3] / "MODEL_CARD.md") or _with_the_licences("MODEL_CARD.md")
    return _read(path.with_name(CARD)) if path.name == FILE else None


def name_for(wanted: str) -> str:
    """`wanted`, if weights can be installed under that name; otherwise raises `ConfigError`."""
    if not _is_name(wanted):
        raise ConfigError(
            f"{wanted!r} cannot be the name of weights; use letters, digits, - and _ (at most 64), and . in between"
        )
    if wanted.lower() in PACKAGED_NAMES:
        raise ConfigError(f"{wanted} is the name of packaged weights; choose another one with --name")
    return wanted


def install(source: Path, name: str, info: Mapping[str, Any] | None = None) -> Path:
    """Verify weights and install them, with their model card, under a name.

    Args:
        source: a `.safetensors` file with its sidecar, whole or in parts.
        name: see `name_for`.
        info: entries to add to the sidecar's `info`, such as the origin of the weights.

    Returns:
        The installed file.

    Raises:
        CheckpointError: the weights are missing or damaged.  ConfigError: the name is invalid or taken.
        OutputError: the weights cannot be written; nothing is installed.
    """
    target = home() / "weights" / name_for(name)
    if kind_at(target, OutputError):
        raise ConfigError(f"weights {name} are installed already; remove them first, or choose another --name")
    card = card_of(source)
    unfinished = target.with_name(f".{name}.tmp-{os.getpid()}")
    try:
        for left in target.parent.glob(f".{name}.tmp-*"):  # left by a process that was killed
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
    """Delete installed weights and return the folder that held them.

    Raises:
        ConfigError: the weights are packaged or not installed.  OutputError: the folder cannot be removed.
    """
    if name in PACKAGED_NAMES:
        raise ConfigError(f"{name} is part of the package and cannot be removed separately")
    if name not in installed():
        names = ", ".join(installed()) or "none"
        raise ConfigError(f"there are no installed weights {name!r} to remove; installed weights: {names}")
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
    """The text of a file that pip installs with the licences (in a checkout it is at the root)."""
    try:
        return importlib.metadata.distribution("export3d").read_text(f"licenses/{name}")
    except importlib.metadata.PackageNotFoundError:
        return None


def _is_name(text: str) -> bool:
    return bool(_NAME.fullmatch(text)) and not text.endswith((".safetensors", ".json"))
