"""The mean of weights that were trained from the same ones (Wortsman et al. 2022, *Model soups*, uniform)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from export3d.errors import CheckpointError, ConfigError
from export3d.files import output_file
from export3d.weights.file import load_weights, save_weights
from export3d.weights.names import title


def save_mean(paths: Sequence[Path], output: Path, parts: Sequence[str] = ()) -> Path:
    """Write the mean of weights of one configuration, in the types of the first; its ranges for 8 bits are left out.

    Args:
        paths: two or more, each ending in `.safetensors`; one that is named twice counts twice.
        output: ends in `.safetensors`; its folder must exist.
        parts: names that tensors begin with, such as `warp.dense`; all others are the first weights' own. None: all
            are averaged.

    Returns:
        `output`.

    Raises:
        ConfigError: fewer than two weights, or a part that they do not have.
        CheckpointError: one is damaged, or another model's.  OutputError: as `save_weights`.
    """
    if len(paths) < 2:
        raise ConfigError(f"average takes two weights or more, and {len(paths)} was given; name another")
    output_file(output)
    first, config, info = load_weights(paths[0])
    config.pop("ranges", None)
    part_of = {name: any((name + ".").startswith(part + ".") for part in parts or [name]) for name in first}
    for part in parts:
        if not any((name + ".").startswith(part + ".") for name in first):
            known = ", ".join(sorted({name.split(".")[0] for name in first}))
            raise ConfigError(
                f"{title(paths[0])} has no part {part!r}; it has {known}, and parts of these such as warp.dense"
            )
    sums = {name: value.double() for name, value in first.items() if part_of[name] and value.is_floating_point()}
    for path in paths[1:]:
        tensors, other, _ = load_weights(path)
        other.pop("ranges", None)
        if other != config or {k: v.shape for k, v in tensors.items()} != {k: v.shape for k, v in first.items()}:
            raise CheckpointError(
                f"{title(path)} is another model than {title(paths[0])}; average weights of one model"
            )
        for name, total in sums.items():
            total += tensors[name].double()
    made = first | {name: (total / len(paths)).to(first[name].dtype) for name, total in sums.items()}
    whole = {"mean_of": [path.name for path in paths], **({"mean_parts": list(parts)} if parts else {})}
    stored = torch.float16 if any(value.dtype == torch.float16 for value in made.values()) else None
    return save_weights(output, made, config, {**info, **whole}, dtype=stored)
