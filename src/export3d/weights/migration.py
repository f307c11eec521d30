"""Weights of earlier forms: their settings and tensors under today's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from export3d.errors import CheckpointError

_PARTS = {"generator": ("align", "skip", "flow", "redraw"), "superres": ("detail", "dense", "mouth")}
"""Settings that were switches of the generator and of the super-resolution; those missing were off."""
_PREFIXES = {
    r"motion\.": "warp.motion.",
    r"dense\.": "warp.dense.",
    r"generator\.skips\.": "warp.skip.gates.",
    r"generator\.flows\.": "warp.skip.flows.",
    r"superres\.detail\.": "warp.detail.",
}
_FIRST_OF_MOUTHS, _FORMER_MOUTH = "warp.inner.first.weight", 16
"""What draws mouths saw so many channels in its first form."""


def migrate(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A model's settings (`ModelConfig.to_dict`) and tensors with the warp in `warp`; today's come back as they are.

    What draws mouths is left out in its first form.

    Raises `CheckpointError` where two tensors would get one name.
    """
    settings = dict(values)
    if "warp" in settings:
        return _without_former_mouths(settings, dict(tensors))
    warp: dict[str, Any] = {}
    for part, names in _PARTS.items():
        given = settings.get(part)
        if isinstance(given, dict):
            warp |= {name: given.get(name, False) for name in names}
            settings[part] = {name: value for name, value in given.items() if name not in names}
    settings["warp"] = warp if any(warp.values()) else None
    renamed = {_renamed(name): value for name, value in tensors.items()}
    if len(renamed) < len(tensors):
        raise CheckpointError(
            "these weights name some tensors in two ways, an earlier release's and today's; save anew"
        )
    return settings, renamed


def _renamed(name: str) -> str:
    for former, today in _PREFIXES.items():
        if match := re.match(former, name):
            return today + name[match.end() :]
    return name


def _without_former_mouths(
    settings: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    first = tensors.get(_FIRST_OF_MOUTHS)
    if first is None or first.shape[1] != _FORMER_MOUTH:
        return settings, tensors
    settings["warp"] = {**settings["warp"], "inside": False}
    return settings, {name: value for name, value in tensors.items() if not name.startswith("warp.inner.")}
