import errno
import json
import os
import pickle

import pytest
import torch
from torch import nn

from export3d.errors import CheckpointError, OutputError
from export3d.weights.file import copy_weights, load_into, load_weights, read_sidecar, save_weights
from tests.hostile import Bomb


def assert_equal_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_weights_come_back_as_they_went(weights, tensors):
    loaded, config, info = load_weights(weights)
    assert_equal_tensors(loaded, tensors)
    assert config == {"width": 8}
    assert info == {"images_seen": 12}
    assert sorted(path.name for path in weights.parent.iterdir()) == ["w.json", "w.safetensors"]


def test_the_sidecar_can_be_read_by_people_and_names_hash_and_versions(weights):
    words = json.loads(weights.with_suffix(".json").read_text())
    assert len(words["file"]["sha256"]) == 64
    assert torch.__version__.startswith(words["versions"]["torch"])
    assert words["config"] == {"width": 8}


def test_writing_into_a_missing_folder_names_the_remedy(tmp_path):
    with pytest.raises(OutputError, match="create it first"):
        save_weights(tmp_path / "no" / "w.safetensors", {"a": torch.zeros(1)}, {}, {})


def test_a_full_disk_is_one_sentence_and_leaves_the_old_weights(weights, tensors, monkeypatch):
    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="no space left on device"):
        save_weights(weights, {"a": torch.zeros(1)}, {}, {})
    monkeypatch.undo()
    assert_equal_tensors(load_weights(weights)[0], tensors)
    assert len(list(weights.parent.iterdir())) == 2


def _missing(path):
    path.unlink()


def _no_sidecar(path):
    path.with_suffix(".json").unlink()


def _truncated(path):
    path.write_bytes(path.read_bytes()[:-7])


def _emptied(path):
    path.write_bytes(b"")


def _folder(path):
    path.unlink()
    path.mkdir()


def _torch_pickle(path):
    torch.save({"a": Bomb(path.with_name("executed"))}, path)


def _bare_pickle(path):
    path.write_bytes(pickle.dumps(Bomb(path.with_name("executed"))))


def _sidecar_of_another(path):
    save_weights(path.with_name("x.safetensors"), {"a": torch.zeros(1)}, {}, {})
    path.with_name("x.json").replace(path.with_suffix(".json"))


def _sidecar_not_json(path):
    path.with_suffix(".json").write_text("hello")


def _sidecar_other_format(path):
    path.with_suffix(".json").write_text('{"format": "something"}')


def _sidecar_edited(path):
    sidecar = path.with_suffix(".json")
    sidecar.write_text(sidecar.read_text().replace('"width": 8', '"width": 9'))


def _sidecar_from_the_future(path):
    sidecar = path.with_suffix(".json")
    sidecar.write_text(sidecar.read_text().replace('"version": 1', '"version": 2'))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_missing, "no weights at"),
        (_no_sidecar, "is missing; it belongs beside the weights"),
        (_truncated, "is truncated"),
        (_emptied, "is truncated"),
        (_folder, "is a folder"),
        (_torch_pickle, "pickle"),
        (_bare_pickle, "pickle"),
        (_sidecar_of_another, "is truncated|is damaged"),
        (_sidecar_not_json, "not JSON"),
        (_sidecar_other_format, "not an export3d.weights file"),
        (_sidecar_edited, "was edited"),
        (_sidecar_from_the_future, "update export3d"),
    ],
)
def test_damaged_weights_are_refused_in_one_sentence(weights, damage, sentence):
    damage(weights)
    with pytest.raises(CheckpointError, match=sentence) as caught:
        load_weights(weights)
    assert "\n" not in str(caught.value)
    assert weights.stem in str(caught.value)
    assert not weights.with_name("executed").exists()


def test_any_flipped_bit_in_weights_or_sidecar_is_noticed(weights):
    generator = torch.Generator().manual_seed(1)
    for path in (weights, weights.with_suffix(".json")):
        good = path.read_bytes()
        for position in torch.randint(len(good), (60,), generator=generator).tolist():
            bad = bytearray(good)
            bad[position] ^= 1 << (position % 8)
            path.write_bytes(bytes(bad))
            try:
                loaded = load_weights(weights)
            except CheckpointError:
                continue
            assert path.suffix == ".json"  # a flip between two kinds of white space says the same
            assert loaded[1:] == ({"width": 8}, {"images_seen": 12})
        path.write_bytes(good)


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w"])
def test_only_safetensors_names_are_read_and_written(tmp_path, name):
    with pytest.raises(CheckpointError, match=r"\.safetensors"):
        load_weights(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"\.safetensors"):
        save_weights(tmp_path / name, {}, {}, {})


def test_weights_load_into_their_module_and_are_converted_to_its_type():
    module = nn.Linear(3, 2)
    given = {"weight": torch.ones(2, 3).half(), "bias": torch.full((2,), 0.5).half()}
    load_into(module, given)
    assert module.weight.dtype == torch.float32
    assert torch.equal(module.weight, torch.ones(2, 3))
    assert torch.equal(module.bias, torch.full((2,), 0.5))


def test_up_to_five_names_of_each_problem_are_listed_and_nothing_is_loaded():
    module = nn.Sequential(*(nn.Linear(2, 2) for _ in range(6)))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    given = {"0.weight": torch.zeros(3, 2), "0.bias": torch.zeros(2), "extra": torch.zeros(1)}
    with pytest.raises(CheckpointError) as caught:
        load_into(module, given, what="the weights x")
    text = str(caught.value)
    assert text.startswith("the weights x do not fit")
    assert "10 missing (1.weight; 1.bias; 2.weight; 2.bias; 3.weight; …)" in text
    assert "1 unexpected (extra)" in text
    assert "1 mismatched (0.weight (3, 2) float32, expected (2, 2) float32)" in text
    assert_equal_tensors(dict(module.state_dict()), before)


def test_integers_are_not_taken_for_floats():
    module = nn.BatchNorm1d(2)
    given = {**module.state_dict(), "num_batches_tracked": torch.tensor(1.0)}
    with pytest.raises(CheckpointError, match="num_batches_tracked"):
        load_into(module, given)


@pytest.mark.parametrize("sizes", [(0.002, None), (None, 0.002), (0.001, 0.002)])
def test_overwriting_leaves_no_stale_part(tmp_path, sizes):
    for size in sizes:
        path = save_weights(tmp_path / "w.safetensors", {"a": torch.arange(1000.0)}, {}, {}, part_size_mb=size)
    entry = json.loads(path.with_suffix(".json").read_text())["file"]
    names = {part["name"] for part in entry.get("parts", [])} or {path.name}
    assert {other.name for other in tmp_path.iterdir()} == names | {"w.json"}
    assert torch.equal(load_weights(path)[0]["a"], torch.arange(1000.0))


def test_a_copy_is_verified_and_in_one_piece(tmp_path):
    tensors = {"a": torch.arange(1000.0), "b": torch.arange(300)}
    path = save_weights(tmp_path / "w.safetensors", tensors, {"c": 1}, {"seen": 2}, part_size_mb=0.002)
    copy = copy_weights(path, tmp_path / "copy.safetensors", {"from": "w"})
    loaded, config, info = load_weights(copy)
    assert_equal_tensors(loaded, tensors)
    assert (config, info) == ({"c": 1}, {"seen": 2, "from": "w"})
    assert read_sidecar(copy)["file"] == {k: v for k, v in read_sidecar(path)["file"].items() if k != "parts"}
    (tmp_path / "w.safetensors.part01").write_bytes(b"x")
    with pytest.raises(CheckpointError):
        copy_weights(path, tmp_path / "again.safetensors")
    assert not list(tmp_path.glob("again*"))
