"""Packing prepared data, and training data from packed frames."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from export3d.cli.main import main
from export3d.data import packing
from export3d.data.frames import FrameStore, space_of
from export3d.data.packing import pack
from export3d.data.training_frames import load_frames
from export3d.errors import ConfigError, InputError
from export3d.motion.motion import SHOULDERS


@pytest.fixture
def data(split: Path, tmp_path: Path) -> Path:
    """A prepared folder: train, val and pseudo/train, all alike."""
    for name in ("train", "val", "pseudo/train"):
        shutil.copytree(split, tmp_path / "data" / name)
    return tmp_path / "data"


def test_a_packed_folder_trains_like_the_one_it_was_made_of(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "packed"
    assert main(["pack", str(data), "-o", str(out), "--size", "64", "--every", "2"]) == 0
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == [
        "train: 13 frames", "val: 13 frames", "pseudo/train: 13 frames",
    ]  # fmt: skip
    assert not [path for path in out.rglob("*") if "packing" in path.name]
    clips, val = load_frames(out, 32, [out / "pseudo" / "train"])
    wanted, held_out = load_frames(data, 32, [data / "pseudo" / "train"])
    assert isinstance(clips, FrameStore)
    assert isinstance(wanted, FrameStore)
    assert val is not None
    assert held_out is not None
    assert clips.kinds == wanted.kinds
    assert clips.kinds.count("pseudo") == 3
    thin = held_out.thinned(2)
    assert torch.equal(val.camera, thin.camera)
    assert val.masks is not None
    assert val.masks.shape == (len(val), 1, 64, 64)
    assert thin.masks is None
    assert (val.frames.float() - thin.frames.float()).abs().mean() < 2.0


def test_packed_frames_keep_the_shoulders_and_those_of_earlier_versions_know_less(data: Path, tmp_path: Path) -> None:
    store = FrameStore.load(data / "val", 32)
    store.shoulders[:] = torch.rand(len(store), SHOULDERS)
    store.save(tmp_path / "new")
    assert torch.equal(FrameStore.load(tmp_path / "new", 32).shoulders, store.shoulders)
    for columns in (3, 0):
        for part in (tmp_path / "new").glob("part-*"):
            tensors = load_file(part)
            tensors["shoulders"] = tensors["shoulders"][:, :columns].contiguous()
            if not columns:
                del tensors["shoulders"]
            save_file(tensors, part)
        read = FrameStore.load(tmp_path / "new", 32).shoulders
        assert torch.equal(read[:, :columns], store.shoulders[:, :columns])
        assert not read[:, columns:].any()


def test_without_mediapipe_packed_frames_have_no_masks(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(packing, "find_spec", lambda name: None)
    pack(data / "val", tmp_path / "one", 32)
    assert FrameStore.load(tmp_path / "one", 32).masks is None
    assert "without MediaPipe" in caplog.text


def test_a_single_split_is_packed_by_itself(data: Path, tmp_path: Path) -> None:
    assert main(["pack", str(data / "val"), "-o", str(tmp_path / "one"), "--size", "32"]) == 0
    assert len(FrameStore.load(tmp_path / "one", 32)) == 22


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--size", "40"], "export3d: frames cannot have a size of 40 pixels; give a multiple of 32\n"),
        (["--every", "0"], "export3d: one of every 0 frames cannot be kept; give 1 or more\n"),
        (["--quality", "101"], "export3d: JPEG images cannot have a quality of 101; give 1 to 100\n"),
        (["--size", "128"], "resolution 128 needs larger crops"),
    ],
)
def test_what_cannot_be_packed_is_said_in_one_sentence(
    data: Path, tmp_path: Path, options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pack", str(data), "-o", str(tmp_path / "packed"), *options]) == 2
    assert sentence in capsys.readouterr().err
    assert not list((tmp_path / "packed").rglob("*"))


def test_an_empty_folder_cannot_be_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "none").mkdir()
    assert main(["pack", str(tmp_path / "none"), "-o", str(tmp_path / "packed")]) == 2
    assert "no split train or val to pack" in capsys.readouterr().err
    assert not (tmp_path / "packed").exists()


def test_packed_frames_never_take_the_place_of_shards(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(data.rglob("*"))
    for given, out in ((data, data), (data / "val", data / "val"), (data / "train", data / "val")):
        assert main(["pack", str(given), "-o", str(out), "--size", "32"]) == 2
        assert "holds prepared shards, which stay as they are" in capsys.readouterr().err
    assert sorted(data.rglob("*")) == before


def test_packed_frames_are_not_packed_again(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", str(data), "-o", str(tmp_path / "packed"), "--size", "32"]) == 0
    assert main(["pack", str(tmp_path / "packed"), "-o", str(tmp_path / "again"), "--size", "32"]) == 2
    assert "holds packed frames already" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_a_packed_split_that_the_data_lack_is_not_left_beside_new_ones(data: Path, tmp_path: Path) -> None:
    pack(data, tmp_path / "packed", 32)
    shutil.rmtree(data / "val")
    with pytest.raises(ConfigError, match=r"packed split val but .*data has none; choose another folder"):
        pack(data, tmp_path / "packed", 32)


def test_one_frame_of_each_video_is_the_fewest(data: Path, tmp_path: Path) -> None:
    assert main(["pack", str(data / "val"), "-o", str(tmp_path / "few"), "--size", "32", "--every", str(10**20)]) == 0
    assert [clip.frames for clip in FrameStore.load(tmp_path / "few", 32).clips] == [1] * 6


def test_packed_frames_are_not_read_through_a_window(data: Path, tmp_path: Path) -> None:
    assert main(["pack", str(data), "-o", str(tmp_path / "packed"), "--size", "32"]) == 0
    with pytest.raises(ConfigError, match=r"data\.memory reads shards"):
        load_frames(tmp_path / "packed", 32, memory=1.0)


def test_the_expression_space_is_known_before_frames_are_read(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    assert main(["pack", str(data), "-o", str(out), "--size", "32"]) == 0
    for part in out.rglob("*.safetensors"):
        part.unlink()
    assert space_of(data) == space_of(out) == "arkit52"
    assert space_of(tmp_path / "nothing") is None
    (out / "train" / "packed.json").write_text("{}")
    with pytest.raises(InputError, match="cannot read packed frames from"):
        space_of(out)
