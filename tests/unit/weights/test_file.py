import errno
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from export3d.errors import CheckpointError, OutputError
from export3d.training.state import latest_state, load_state, save_state, states
from export3d.weights import blob
from export3d.weights.blob import files_of
from export3d.weights.file import copy_weights, load_into, load_weights, read_sidecar, save_weights


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    base = torch.randn(6, 5)
    return {
        "matrix": base,
        "transposed": base.t(),  # a view of the same memory
        "tied": base,
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "count": torch.tensor([1, 2**40]),
        "mask": torch.tensor([True, False]),
        "half": torch.randn(3).bfloat16(),
        "kernel": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }


@pytest.fixture
def weights(tmp_path, tensors) -> Path:
    return save_weights(tmp_path / "w.safetensors", tensors, {"width": 8}, {"images_seen": 12})


def assert_equal_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert torch.equal(a[name], b[name])


def state_of(images_seen: int, fill: float = 1.0) -> dict:
    torch.manual_seed(images_seen)
    module = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, betas=(0.5, 0.75))
    module(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    return {
        "model": module.state_dict(),
        "ema": {name: torch.full_like(value, fill) for name, value in module.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "counters": {"images_seen": images_seen, "step": 1, "minutes": 0.1},
        "config": {"lr": 1e-3},
    }


# ---- weights ---------------------------------------------------------------------------------------------------------


def test_weights_come_back_as_they_went(weights, tensors):
    loaded, config, info = load_weights(weights)
    assert_equal_tensors(loaded, tensors)
    assert config == {"width": 8}
    assert info == {"images_seen": 12}
    assert sorted(path.name for path in weights.parent.iterdir()) == ["w.json", "w.safetensors"]


def test_the_sidecar_can_be_read_by_people_and_names_hash_and_versions(weights):
    words = json.loads(weights.with_suffix(".json").read_text())
    assert len(words["file"]["sha256"]) == 64
    assert words["versions"]["torch"] == torch.__version__
    assert words["config"] == {"width": 8}


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


# ---- what is refused -------------------------------------------------------------------------------------------------


class Hostile:
    """A pickle that would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


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
    torch.save({"a": Hostile(path.with_name("executed"))}, path)


def _bare_pickle(path):
    path.write_bytes(pickle.dumps(Hostile(path.with_name("executed"))))


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


def test_a_text_file_with_an_honest_sidecar_is_not_safetensors(weights):
    sidecar = json.loads(weights.with_suffix(".json").read_text())
    sidecar.pop("checksum")
    sidecar["file"] = blob.write_blob(weights, b"I am a poem, not a tensor.", None)
    weights.with_suffix(".json").write_bytes(blob.to_json(sidecar))
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_weights(weights)


def test_a_sidecar_cannot_point_outside_its_folder(weights):
    sidecar = json.loads(weights.with_suffix(".json").read_text())
    sidecar.pop("checksum")
    sidecar["file"]["parts"] = [{"name": "../../etc/passwd", "size": 1}]
    weights.with_suffix(".json").write_bytes(blob.to_json(sidecar))
    with pytest.raises(CheckpointError, match="not a plain file name"):
        load_weights(weights)


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w"])
def test_only_safetensors_names_are_read_and_written(tmp_path, name):
    with pytest.raises(CheckpointError, match=r"\.safetensors"):
        load_weights(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"\.safetensors"):
        save_weights(tmp_path / name, {}, {}, {})


# ---- strict loading --------------------------------------------------------------------------------------------------


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


# ---- parts -----------------------------------------------------------------------------------------------------------


def test_a_large_file_is_cut_into_parts_and_read_back_as_one(tmp_path):
    tensors = {"a": torch.arange(1000.0), "b": torch.arange(300)}
    path = save_weights(tmp_path / "w.safetensors", tensors, {}, {}, part_size_mb=0.002)
    parts = sorted(tmp_path.glob("w.safetensors.part*"))
    assert [part.name for part in parts] == [f"w.safetensors.part{n:02d}" for n in range(4)]
    assert all(part.stat().st_size <= 2000 for part in parts)
    assert not path.exists()
    assert_equal_tensors(load_weights(path)[0], tensors)


@pytest.mark.parametrize("damage", [Path.unlink, lambda part: part.write_bytes(part.read_bytes()[:-1])])
def test_a_lost_or_short_part_is_noticed(tmp_path, damage):
    path = save_weights(tmp_path / "w.safetensors", {"a": torch.arange(1000.0)}, {}, {}, part_size_mb=0.002)
    damage(tmp_path / "w.safetensors.part01")
    with pytest.raises(CheckpointError, match=r"is missing|is truncated"):
        load_weights(path)


@pytest.mark.parametrize("sizes", [(0.002, None), (None, 0.002), (0.001, 0.002)])
def test_overwriting_leaves_no_stale_part(tmp_path, sizes):
    for size in sizes:
        path = save_weights(tmp_path / "w.safetensors", {"a": torch.arange(1000.0)}, {}, {}, part_size_mb=size)
    entry = json.loads(path.with_suffix(".json").read_text())["file"]
    names = {part["name"] for part in entry.get("parts", [])} or {path.name}
    assert {other.name for other in tmp_path.iterdir()} == names | {"w.json"}
    assert torch.equal(load_weights(path)[0]["a"], torch.arange(1000.0))


@pytest.mark.parametrize(
    "name", ["..", "w.json", "w.safetensors.part1", "other.safetensors.part00", "a\\w.safetensors"]
)
def test_a_part_has_the_name_of_its_file(tmp_path, name):
    with pytest.raises(CheckpointError, match="not a plain file name"):
        files_of(tmp_path / "w.safetensors", {"file": {"parts": [{"name": name}]}})


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


def test_the_sidecar_of_a_file_that_the_hub_knows_is_called_as_there(tmp_path):
    path = save_weights(tmp_path / "model.safetensors", {"a": torch.zeros(1)}, {"c": 1}, {})
    assert {other.name for other in tmp_path.iterdir()} == {"model.safetensors", "config.json"}
    assert load_weights(path)[1] == {"c": 1}


def test_a_state_in_parts_comes_back(tmp_path):
    given = state_of(8)
    given["model"] = {"weight": torch.arange(300.0)}
    loaded = load_state(save_state(tmp_path, **given, part_size_mb=0.0005))
    assert len(list(loaded.path.glob("model.safetensors.part*"))) > 1
    assert_equal_tensors(loaded.model, dict(given["model"]))


# ---- training states -------------------------------------------------------------------------------------------------


def test_a_state_comes_back_as_it_went(tmp_path):
    given = state_of(1234)
    path = save_state(tmp_path / "checkpoints", **given)
    assert path.name == "checkpoint-00001234"
    loaded = load_state(path)
    assert_equal_tensors(loaded.model, dict(given["model"]))
    assert_equal_tensors(loaded.ema, given["ema"])
    assert loaded.counters == given["counters"]
    assert loaded.config == given["config"]
    module = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(module.parameters())
    optimizer.load_state_dict(loaded.optimizer)
    again = optimizer.state_dict()
    assert again["param_groups"] == given["optimizer"]["param_groups"]
    for index, entries in given["optimizer"]["state"].items():
        assert_equal_tensors(again["state"][index], entries)


def test_a_second_network_and_its_optimiser_come_back_beside_the_first(tmp_path):
    given, other = state_of(4), state_of(9)
    assert load_state(save_state(tmp_path / "one", **given)).opponent is None
    path = save_state(tmp_path / "two", **given, opponent=(other["model"], other["optimizer"]))
    loaded = load_state(path)
    assert loaded.opponent is not None
    assert_equal_tensors(loaded.model, dict(given["model"]))
    assert_equal_tensors(loaded.opponent[0], dict(other["model"]))
    for found, wanted in ((loaded.optimizer, given["optimizer"]), (loaded.opponent[1], other["optimizer"])):
        assert found["param_groups"] == wanted["param_groups"]
        for index, entries in wanted["state"].items():
            assert_equal_tensors(found["state"][index], entries)
    (path / "opponent_optimizer.safetensors").unlink()
    assert latest_state(tmp_path / "two") is None  # half a state is none


def test_optimisers_with_plain_numbers_in_their_state_come_back(tmp_path):
    given = {**state_of(4), "optimizer": {"state": {0: {"step": 3, "name": "x"}}, "param_groups": [{"params": [0]}]}}
    assert load_state(save_state(tmp_path, **given)).optimizer == given["optimizer"]


def test_nothing_in_a_state_is_a_pickle(tmp_path):
    path = save_state(tmp_path, **state_of(4))
    assert sorted(file.name for file in path.iterdir()) == [
        "ema.safetensors", "model.safetensors", "optimizer.safetensors", "state.json",
    ]  # fmt: skip
    assert not any(file.read_bytes().startswith((b"PK", b"\x80")) for file in path.iterdir())


def test_the_newest_complete_state_is_found_by_number_not_by_name(tmp_path):
    for images_seen in (99_999_998, 100_000_002, 5):
        save_state(tmp_path, **state_of(images_seen), keep=9)
    assert [path.name for path in states(tmp_path)] == [
        "checkpoint-00000005", "checkpoint-99999998", "checkpoint-100000002",
    ]  # fmt: skip
    assert latest_state(tmp_path) == tmp_path / "checkpoint-100000002"


def test_no_folder_and_an_empty_folder_hold_no_state(tmp_path):
    assert latest_state(tmp_path / "none") is None
    assert latest_state(tmp_path) is None


@pytest.mark.parametrize("file", ["state.json", "model.safetensors", "ema.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("damage", ["removed", "cut"])
def test_an_incomplete_state_is_passed_over(tmp_path, file, damage):
    good = save_state(tmp_path, **state_of(4))
    bad = save_state(tmp_path, **state_of(8)) / file
    bad.unlink() if damage == "removed" else bad.write_bytes(bad.read_bytes()[:-1])
    if (file, damage) == ("state.json", "cut"):  # the last byte is a line feed: cut the brace too
        bad.write_bytes(bad.read_bytes()[:-1])
    assert latest_state(tmp_path) == good


def test_a_flipped_bit_in_a_state_is_refused_on_loading(tmp_path):
    path = save_state(tmp_path, **state_of(4))
    for name in ("model", "ema", "optimizer"):
        file = path / f"{name}.safetensors"
        good = file.read_bytes()
        file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(CheckpointError, match="is damaged"):
            load_state(path)
        file.write_bytes(good)
    load_state(path)


def test_a_pickle_in_a_state_is_refused(tmp_path):
    path = save_state(tmp_path, **state_of(4))
    torch.save({"a": Hostile(tmp_path / "executed")}, path / "model.safetensors")
    with pytest.raises(CheckpointError, match="pickle"):
        load_state(path)
    assert not (tmp_path / "executed").exists()


def test_a_missing_state_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no training state"):
        load_state(tmp_path / "checkpoint-00000004")


def test_a_sound_state_of_the_same_name_stays_and_a_damaged_one_is_replaced(tmp_path):
    path = save_state(tmp_path, **state_of(4, fill=1.0))
    save_state(tmp_path, **state_of(4, fill=2.0))
    assert float(load_state(path).ema["bias"][0]) == 1.0
    (path / "ema.safetensors").write_bytes(b"")
    save_state(tmp_path, **state_of(4, fill=2.0))
    assert float(load_state(path).ema["bias"][0]) == 2.0


def test_a_full_disk_keeps_the_earlier_state_and_leaves_nothing_else(tmp_path, monkeypatch):
    good = save_state(tmp_path, **state_of(4))
    calls = []

    def full_at_the_third(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full_at_the_third)
    with pytest.raises(OutputError, match="no space left on device"):
        save_state(tmp_path, **state_of(8))
    assert list(tmp_path.iterdir()) == [good]
    load_state(good)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        save_state(tmp_path / "x", **state_of(4))


KILLER = '''
"""Children that die by SIGKILL: at every system call of a save in turn, then at random moments of many slow saves."""
import json, os, random, signal, sys, time, warnings
warnings.simplefilter("ignore")
from pathlib import Path
import torch
from export3d.training.state import latest_state, load_state, save_state

folder = Path(sys.argv[1])
CALLS = ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir", "open")

def save(images_seen):
    value = {"a": torch.full((2000,), float(images_seen)), "b": torch.tensor(images_seen)}
    optimizer = {"state": {0: {"exp_avg": value["a"]}}, "param_groups": [{"params": [0], "lr": 0.1}]}
    counters = {"images_seen": images_seen}
    save_state(folder, model=value, ema=value, optimizer=optimizer, counters=counters, config={}, keep=2)

def check():
    state = load_state(latest_state(folder))
    n = state.counters["images_seen"]
    for value in (state.model["a"], state.ema["a"], state.optimizer["state"][0]["exp_avg"]):
        assert torch.equal(value, torch.full((2000,), float(n))), n
    assert int(state.model["b"]) == n
    return n

def in_child(work):
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child

def dying_at(number, images_seen):
    count = 0
    def counted(call):
        def wrapped(*a, **k):
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*a, **k)
        return wrapped
    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    save(images_seen)

save(1); save(2)
reached, points, finished = 2, 0, False
while not finished:
    points += 1
    target = reached + 1
    _, status = os.waitpid(in_child(lambda: dying_at(points, target)), 0)
    finished = not os.WIFSIGNALED(status)
    now = check()
    assert now in (reached, target), (now, reached)
    reached = now

def many():
    real = os.fsync
    def slow(handle):
        time.sleep(0.004)
        real(handle)
    os.fsync = slow
    for n in range(reached + 1, reached + 10_000):
        save(n)

random.seed(0)
torn = 0
for _ in range(12):
    child = in_child(many)
    time.sleep(random.uniform(0.05, 0.25))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    torn += any(".tmp-" in path.name or ".trash-" in path.name for path in folder.iterdir())
    now = check()
    assert now >= reached, (now, reached)
    reached = now
save(reached + 1)
left = sorted(path.name for path in folder.iterdir())
print(json.dumps({"points": points, "torn": torn, "left": len(left), "hidden": [n for n in left if n[0] == "."]}))
'''


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kill_9_at_any_moment_of_a_save_leaves_a_loadable_state(tmp_path):
    source = str(Path(__file__).parents[3] / "src")
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path / "states")],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["points"] > 20  # system calls at which a save was killed
    assert report["torn"] >= 6  # random kills that hit a save in progress
    assert (report["left"], report["hidden"]) == (2, [])  # the next save tidies up


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
