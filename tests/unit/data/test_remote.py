"""Shards from elsewhere: real downloads from a server on loopback, and from fsspec's own memory."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from export3d import locations
from export3d.cli.main import main
from export3d.data.frames import FrameStore
from export3d.data.shard_writer import update
from export3d.data.shards import Record, has_split, read_index, read_shards
from export3d.errors import InputError, MissingExtra
from export3d.training.recipes import resolve
from export3d.training.reconstruction import ReconstructionConfig
from tests.file_server import FileServer, serving

Make = Callable[..., Record]

pytest.importorskip("aiohttp", reason="aiohttp is not installed (extra `remote`)")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locations, "_WAITS_S", (0.01, 0.01))


@pytest.fixture
def server(split: Path) -> Iterator[FileServer]:
    """The folder above the split `train`, over HTTP."""
    with serving(split.parent) as state:
        yield state


def keys(folder: str | Path) -> list[str]:
    return [record.key for record in read_shards(folder)]


def test_a_split_is_read_from_a_server_that_lists_nothing(server: FileServer, split: Path) -> None:
    url = f"{server.address}/train"
    assert read_index(url) == read_index(split)
    here, there = FrameStore.load(split, 32), FrameStore.load(url, 32)
    assert torch.equal(here.frames, there.frames)
    assert here.clips == there.clips
    assert {path.rpartition(".")[2] for path in server.asked} == {"json", "tar"}
    assert [has_split(server.address, name) for name in ("train", "val")] == [True, False]
    assert keys(url + "/") == keys(split)


def test_a_split_is_read_from_any_file_system_of_fsspec(split: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(split), "/data/train", recursive=True)
    assert keys("memory://data/train") == keys(split)
    assert keys(f"file://{split}") == keys(split)


def test_a_split_is_read_from_s3(server: FileServer, split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs", reason="s3fs is not installed (extra `remote`)")
    from fsspec.config import conf

    monkeypatch.setitem(conf, "s3", {"anon": True, "endpoint_url": server.address})
    (server.folder / "bucket").mkdir()
    split.rename(server.folder / "bucket" / "train")
    assert keys("s3://bucket/train") == keys(server.folder / "bucket" / "train")
    assert not has_split("s3://bucket", "val")


@pytest.mark.parametrize("faults", [[503, "cut"], ["short", 429]])
def test_what_passes_is_tried_again(
    server: FileServer, split: Path, faults: list[int | str], caplog: pytest.LogCaptureFixture
) -> None:
    server.faults = faults
    assert keys(f"{server.address}/train") == keys(split)
    assert [record.message.count("trying again") for record in caplog.records] == [1, 1]


@pytest.mark.parametrize(
    ("faults", "sentence"),
    [
        (["short"] * 9, r"train/train-\w+\.tar has \d+ bytes instead of \d+; copy the prepared folder there again"),
        (["cut"] * 9, r"train/train-\w+\.tar cannot be read .*; check the address"),
        ([503] * 9, r"503.*; check the address, your access and the connection"),
    ],
)
def test_what_does_not_pass_is_told_in_one_sentence(server: FileServer, faults: list[int | str], sentence: str) -> None:
    server.faults = faults
    with pytest.raises(InputError, match=sentence):
        keys(f"{server.address}/train")
    assert len(server.asked) == 1 + 3


@pytest.mark.parametrize("status", [401, 403, 410])
def test_a_refusal_is_not_asked_for_again(server: FileServer, status: int) -> None:
    server.faults = [status] * 9
    with pytest.raises(InputError, match=str(status)):
        keys(f"{server.address}/train")
    assert len(server.asked) == 2


def test_a_shard_that_is_not_there_is_named(server: FileServer, split: Path) -> None:
    shard = split / read_index(split).shards[0].file
    shard.unlink()
    with pytest.raises(InputError, match=rf"http://.*/train/{shard.name} is missing, although the index names it"):
        keys(f"{server.address}/train")


def test_a_shard_of_other_bytes_is_refused(server: FileServer, split: Path) -> None:
    shard = split / read_index(split).shards[0].file
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(InputError, match="does not match its checksum"):
        keys(f"{server.address}/train")


def test_a_server_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/data"
    assert main(["train", url, "-o", str(tmp_path / "run"), "--set", "model.preset=tiny"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert f"{url}/train/index.json cannot be read" in told
    assert told.endswith("check the address, your access and the connection")
    assert not (tmp_path / "run").exists()


def test_a_url_that_was_not_prepared_gets_the_remedy(server: FileServer, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("train", "pretrain"):
        assert main([command, f"{server.address}/nothing", "-o", "run"]) == 2
        assert "export3d prepare CLIPS" in capsys.readouterr().err
    with pytest.raises(InputError, match="nothing is not a prepared split"):
        read_index(f"{server.address}/nothing")


@pytest.mark.parametrize(("url", "package"), [("http://h/d", "aiohttp"), ("s3://b/d", "s3fs")])
def test_without_the_extra_its_name_is_told(url: str, package: str) -> None:
    program = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from export3d.locations import fetch\n"
        "from export3d.errors import MissingExtra\n"
        f"try:\n    fetch({url!r})\nexcept MissingExtra as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == f"{package} is not installed; run: pip install -c constraints.txt '.[remote]'\n"


def test_other_protocols_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"ftpx:// is not a known protocol; give a folder, or a URL that starts with http://"
    ):
        read_index("ftpx://host/data")
    with pytest.raises(MissingExtra, match="gcsfs"):
        read_index("gs://bucket/data")
    with pytest.raises(InputError, match="no readable index"):
        read_index(str(tmp_path))


def test_a_shard_served_over_http_trains(server: FileServer, split: Path, tmp_path: Path, make_record: Make) -> None:
    update(split.parent / "val", [make_record("other", 4)])
    run = tmp_path / "run"
    loop = ("batch_size=2", "cpu=true", "progress=false", "sheet_every=0", "max_images=6", "log_every=2")
    settings = ["model.preset=tiny", "model.variants=[]", "model.motion_steps=2", "loss.backbone=none"]
    settings += ["loop.tensorboard=false", *(f"loop.{setting}" for setting in loop)]
    given = [word for setting in settings for word in ("--set", setting)]
    assert main(["train", server.address, "-o", str(run), *given]) == 0
    shown = json.loads(resolve(ReconstructionConfig, "base", changes=settings).to_json())
    written = json.loads((run / "config.json").read_text())
    assert shown["loop"] == written["loop"], "what --print-config shows is what a run notes"
    noted = written["task"]["reconstruction"] | written["task"]["reconstruction"]["weights"]
    for table in ("model", "render", "data"):
        assert shown[table] == {name: noted[name] for name in shown[table]}
    assert all(noted[name] == value for name, value in shown["loss"].items() if name in noted and name != "expression")
    assert (run / "weights.safetensors").is_file()
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["images_seen"] for line in lines if "losses" in line] == [2, 4, 6]
    assert "psnr" in next(line["figures"] for line in lines if "figures" in line)
