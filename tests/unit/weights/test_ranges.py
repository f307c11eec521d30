"""weights/ranges.py: ranges beside weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from export3d.errors import CheckpointError
from export3d.pretrained import load_pretrained
from export3d.weights.file import load_weights, read_sidecar
from export3d.weights.ranges import ranges_in, write_ranges


def test_they_are_written_read_and_saved_with_the_model(tiny_weights: Path, tmp_path: Path) -> None:
    assert load_pretrained(tiny_weights).ranges == {}
    before = read_sidecar(tiny_weights)
    write_ranges(tiny_weights, {"superres.mid_first": (-1.5, 0.25)})
    model = load_pretrained(tiny_weights)
    assert model.ranges == {"superres.mid_first": (-1.5, 0.25)}
    after = read_sidecar(tiny_weights)
    assert after["file"] == before["file"]
    assert after["config"].pop("ranges") == {"superres.mid_first": [-1.5, 0.25]}
    assert after == before
    model.save_pretrained(tmp_path / "saved")
    assert load_pretrained(tmp_path / "saved").ranges == model.ranges
    write_ranges(tiny_weights, {})
    assert load_pretrained(tiny_weights).ranges == {}


def test_the_core_of_other_weights_has_none(tiny_weights: Path) -> None:
    write_ranges(tiny_weights, {"superres.mid_first": (-1.5, 0.25)})
    assert load_pretrained(tiny_weights, pure=True).ranges == {}


@pytest.mark.parametrize(
    "wrong",
    [[], {"a": 1.0}, {"a": [1.0, 2.0]}, {"a": [0.0, 0.0]}, {"a": [-1.0]}, {"a": [-1.0, "1"]}, {"a": [-1e999, 1.0]}],
)
def test_what_is_no_range_is_refused(weights: Path, wrong: Any) -> None:
    config = load_weights(weights)[1] | {"ranges": wrong}
    with pytest.raises(CheckpointError, match=r"w\.safetensors .*measure them again"):
        ranges_in(config, weights)
