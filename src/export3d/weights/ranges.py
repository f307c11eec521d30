"""The ranges of layers' inputs, which 8-bit integers need (`engines.int8`): in the sidecar of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from export3d.errors import CheckpointError
from export3d.files import write_bytes, writing_to
from export3d.weights.blob import Json, json_bytes, sidecar_of
from export3d.weights.file import read_sidecar

_LARGEST, _SMALLEST = 1e30, 1e-30
"""Float32 holds these and their inverse."""

Ranges = Mapping[str, tuple[float, float]]
"""Smallest and largest input of layers, by the layer's name in the model; 0 lies between them."""


def ranges_in(config: Json, path: Path) -> Ranges:
    """The ranges that a configuration of the weights `path` tells; none if it has none.

    Raises:
        CheckpointError: they are not pairs of numbers around 0.
    """
    given = config.get("ranges", {})
    if not isinstance(given, dict) or not all(_is_range(pair) for pair in given.values()):
        raise CheckpointError(f"the ranges in the sidecar of {path} are not pairs of numbers; measure them again")
    return {name: (float(low), float(high)) for name, (low, high) in given.items()}


def write_ranges(path: Path, ranges: Ranges) -> None:
    """Exchange the ranges in the sidecar of the weights `path`.

    Raises:
        CheckpointError: there is no such sidecar, or it is damaged.
        OutputError: it cannot be written.
    """
    sidecar = read_sidecar(path)
    sidecar["config"]["ranges"] = {name: list(pair) for name, pair in ranges.items()}
    with writing_to(sidecar_of(path)):
        write_bytes(sidecar_of(path), json_bytes(sidecar))


def _is_range(pair: object) -> bool:
    if not isinstance(pair, list) or len(pair) != 2 or not all(type(end) in (int, float) for end in pair):
        return False
    low, high = pair
    return bool(-_LARGEST < low <= 0.0 <= high < _LARGEST and high - low > _SMALLEST)
