import json
from pathlib import Path

import pytest
import torch

from export3d.errors import CheckpointError, OutputError
from export3d.weights import blob
from export3d.weights.blob import files_of
from export3d.weights.file import load_weights, save_weights


def assert_equal_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_half_precision_touches_only_floating_tensors(tmp_path, tensors):
    loaded, _, _ = load_weights(save_weights(tmp_path / "w.safetensors", tensors, {}, {}, dtype=torch.float16))
    assert {name: value.dtype for name, value in loaded.items() if not value.is_floating_point()} == {
        "count": torch.int64,
        "mask": torch.bool,
    }
    assert torch.equal(loaded["matrix"], tensors["matrix"].half())
    assert torch.equal(loaded["count"], tensors["count"])


def test_a_value_beyond_half_precision_is_refused_not_turned_into_infinity(tmp_path):
    with pytest.raises(CheckpointError, match=r"scale reaches 7e\+04.*float32"):
        save_weights(tmp_path / "w.safetensors", {"scale": torch.tensor([7e4])}, {}, {}, dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_that_is_not_json_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="JSON"):
        save_weights(tmp_path / "w.safetensors", {"a": torch.zeros(1)}, {"path": Path("x")}, {})


def test_a_text_file_with_an_honest_sidecar_is_not_safetensors(weights):
    sidecar = json.loads(weights.with_suffix(".json").read_text())
    sidecar.pop("checksum")
    sidecar["file"] = blob.write_blob(weights, b"I am a poem, not a tensor.", None)
    weights.with_suffix(".json").write_bytes(blob.json_bytes(sidecar))
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_weights(weights)


def test_a_sidecar_cannot_point_outside_its_folder(weights):
    sidecar = json.loads(weights.with_suffix(".json").read_text())
    sidecar.pop("checksum")
    sidecar["file"]["parts"] = [{"name": "../../etc/passwd", "size": 1}]
    weights.with_suffix(".json").write_bytes(blob.json_bytes(sidecar))
    with pytest.raises(CheckpointError, match="not a plain file name"):
        load_weights(weights)


def test_a_large_file_is_cut_into_parts_and_read_back_as_one(tmp_path):
    tensors = {"a": torch.arange(1000.0), "b": torch.arange(300)}
    path = save_weights(tmp_path / "w.safetensors", tensors, {}, {}, part_size_mb=0.002)
    parts = sorted(tmp_path.glob("w.safetensors.part*"))
    assert [part.name for part in parts] == [f"w.safetensors.part{n:02d}" for n in range(4)]
    assert all(part.stat().st_size <= 2000 for part in parts)
    assert not path.exists()
    assert_equal_tensors(load_weights(path)[0], tensors)


def test_a_file_is_not_cut_into_thousands_of_parts(tmp_path):
    with pytest.raises(OutputError, match=r"into more than 1000 parts; give a size above 1e-06 MB"):
        save_weights(tmp_path / "w.safetensors", {"a": torch.arange(1000.0)}, {}, {}, part_size_mb=1e-6)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", [Path.unlink, lambda part: part.write_bytes(part.read_bytes()[:-1])])
def test_a_lost_or_short_part_is_noticed(tmp_path, damage):
    path = save_weights(tmp_path / "w.safetensors", {"a": torch.arange(1000.0)}, {}, {}, part_size_mb=0.002)
    damage(tmp_path / "w.safetensors.part01")
    with pytest.raises(CheckpointError, match=r"is missing|is truncated"):
        load_weights(path)


@pytest.mark.parametrize(
    "name", ["..", "w.json", "w.safetensors.part1", "other.safetensors.part00", "a\\w.safetensors"]
)
def test_a_part_has_the_name_of_its_file(tmp_path, name):
    with pytest.raises(CheckpointError, match="not a plain file name"):
        files_of(tmp_path / "w.safetensors", {"file": {"parts": [{"name": name}]}})


def test_the_sidecar_of_a_file_that_the_hub_knows_is_called_as_there(tmp_path):
    path = save_weights(tmp_path / "model.safetensors", {"a": torch.zeros(1)}, {"c": 1}, {})
    assert {other.name for other in tmp_path.iterdir()} == {"model.safetensors", "config.json"}
    assert load_weights(path)[1] == {"c": 1}


def test_a_header_length_that_begins_like_a_pickle_is_no_pickle(tmp_path):
    """A safetensors file begins with its header's length: one in thirty-two has 0x80 as its first byte."""
    path = tmp_path / "weights.safetensors"
    for letters in range(1, 400):
        save_weights(path, {"x" * letters: torch.ones(1)}, {}, {})
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes()[0] == 0x80
    tensors, _, _ = load_weights(path)
    assert torch.equal(tensors["x" * letters], torch.ones(1))
