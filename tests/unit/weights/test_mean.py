"""weights/mean.py: the mean of weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from export3d.errors import CheckpointError, ConfigError
from export3d.pretrained import load_pretrained, verify
from export3d.weights.file import load_weights, save_weights
from export3d.weights.mean import save_mean
from export3d.weights.ranges import write_ranges


def other_than(path: Path, weights: Path) -> Path:
    """The same model with other numbers."""
    tensors, config, info = load_weights(weights)
    torch.manual_seed(1)
    moved = {k: v + torch.randn_like(v.float()).to(v.dtype) if v.is_floating_point() else v for k, v in tensors.items()}
    return save_weights(path, moved, config, info)


def test_it_lies_between_and_loads(tiny_weights: Path, tmp_path: Path) -> None:
    second, out = other_than(tmp_path / "b.safetensors", tiny_weights), tmp_path / "mean.safetensors"
    save_mean([tiny_weights, second, second], out)
    (a, _, _), (b, _, _), (mean, _, info) = (load_weights(path) for path in (tiny_weights, second, out))
    for name, value in mean.items():
        assert value.dtype == a[name].dtype
        if value.is_floating_point():
            wanted = (a[name].double() + 2.0 * b[name].double()) / 3.0
            torch.testing.assert_close(value.double(), wanted, atol=2e-3, rtol=1e-3)
    assert info["mean_of"] == [tiny_weights.name, second.name, second.name]
    assert verify(out)["file"]["size"] == out.stat().st_size
    load_pretrained(out)


def test_only_some_parts_are_averaged(tiny_weights: Path, tmp_path: Path) -> None:
    second, out = other_than(tmp_path / "b.safetensors", tiny_weights), tmp_path / "mean.safetensors"
    save_mean([tiny_weights, second], out, ["superres"])
    (a, _, _), (mean, _, info) = (load_weights(path) for path in (tiny_weights, out))
    changed = {name for name in a if not torch.equal(a[name], mean[name])}
    assert changed
    assert all(name.startswith("superres.") for name in changed)
    assert info["mean_parts"] == ["superres"]
    for wrong in ("super", "superres.nothing"):
        with pytest.raises(ConfigError, match=f"has no part '{wrong}'"):
            save_mean([tiny_weights, second], out, [wrong])


def test_measured_ranges_are_not_those_of_the_mean(tiny_weights: Path, tmp_path: Path) -> None:
    second, out = other_than(tmp_path / "b.safetensors", tiny_weights), tmp_path / "mean.safetensors"
    write_ranges(second, {"superres.mid_first": (-1.5, 0.25)})
    save_mean([second, tiny_weights], out)
    assert load_pretrained(out).ranges == {}


def test_other_models_are_refused(tiny_weights: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="average weights of one model"):
        save_mean([tiny_weights, weights], tmp_path / "mean.safetensors")
    with pytest.raises(ConfigError, match="two weights or more, and 1 was given"):
        save_mean([tiny_weights], tmp_path / "mean.safetensors")
    assert not (tmp_path / "mean.safetensors").exists()
