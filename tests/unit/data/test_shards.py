from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export3d.data import shard_writer
from export3d.data.shard_writer import update, verify, write_tar
from export3d.data.shards import Record, Reject, read_index, read_shards, read_tar
from export3d.errors import InputError, OutputError, ShapeError

Make = Callable[..., Record]


def same(a: Record, b: Record) -> bool:
    arrays = all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in ("expression", "camera", "landmarks", "found")
    )
    return arrays and (a.key, a.media, a.suffix, a.info) == (b.key, b.media, b.suffix, b.info)


def test_a_record_comes_back_from_a_tar_as_it_went_in(tmp_path: Path, make_record: Make) -> None:
    records = [make_record("a", 3), make_record("b-1_x", still=True), make_record("c", 2, person="Zoë")]
    write_tar(tmp_path / "x.tar", records)
    back = list(read_tar(tmp_path / "x.tar"))
    assert len(back) == 3
    assert all(same(a, b) for a, b in zip(records, back))
    assert [record.kind for record in back] == ["video", "image", "video"]


def test_the_members_follow_the_webdataset_layout(tmp_path: Path, make_record: Make) -> None:
    write_tar(tmp_path / "x.tar", [make_record("a", 3), make_record("b", still=True)])
    with tarfile.open(tmp_path / "x.tar") as archive:
        names = archive.getnames()
    assert names == ["a.json", "a.track.safetensors", "a.mp4", "b.json", "b.track.safetensors", "b.png"]


def test_shoulders_are_kept_where_they_are_known(tmp_path: Path, make_record: Make) -> None:
    unknown, known = make_record("a", 3), replace(make_record("b", 3), shoulders=np.full((3, 5), 0.5))
    write_tar(tmp_path / "x.tar", [unknown, known])
    first, second = read_tar(tmp_path / "x.tar")
    assert not first.shoulders.any()
    assert second.shoulders.tolist() == second.motion("arkit52").shoulders.tolist() == [[0.5] * 5] * 3
    with pytest.raises(ShapeError, match="shoulders of b"):
        replace(known, shoulders=np.ones((2, 3)))


def test_the_same_records_give_the_same_bytes(tmp_path: Path, make_record: Make) -> None:
    for name in ("x.tar", "y.tar"):
        write_tar(tmp_path / name, [make_record("a", 3)])
    assert (tmp_path / "x.tar").read_bytes() == (tmp_path / "y.tar").read_bytes()


def test_the_index_counts_what_the_shards_hold(split: Path) -> None:
    index = read_index(split)
    assert index.frames == 6 + 9 + 4 + 3
    assert [entry.frames for entry in index.entries] == [6, 9, 4, 1, 1, 1]
    assert [record.key for record in read_shards(split)] == [entry.key for entry in index.entries]
    text = json.loads((split / "index.json").read_text())
    assert (text["records"], text["videos"], text["images"], text["frames"], text["people"]) == (6, 3, 3, 22, 6)
    assert verify(split) == []


def test_a_shard_is_closed_before_it_grows_too_large(tmp_path: Path, make_record: Make) -> None:
    index = update(tmp_path / "s", [make_record(f"k{i}", 4) for i in range(6)], max_bytes=60_000)
    assert len(index.shards) > 1
    assert all(shard.bytes <= 60_000 for shard in index.shards)
    assert [record.key for record in read_shards(tmp_path / "s")] == [f"k{i}" for i in range(6)]


def test_new_records_are_added_without_touching_the_old_shards(split: Path, make_record: Make) -> None:
    before = read_index(split).shards
    update(split, [make_record("later", 2)])
    after = read_index(split)
    assert after.shards[: len(before)] == before
    assert after.entries[-1].key == "later"
    assert verify(split) == []


def test_a_record_with_a_known_key_replaces_the_old_one(split: Path, make_record: Make) -> None:
    update(split, [make_record("clip1", 3, fingerprint="newer")])
    index = read_index(split)
    assert [entry.frames for entry in index.entries if entry.key == "clip1"] == [3]
    assert len(index.entries) == 6
    assert verify(split) == []
    assert {path.name for path in split.iterdir()} == {"index.json", *(shard.file for shard in index.shards)}


def test_dropping_a_fingerprint_takes_its_records_and_rejects_out(split: Path) -> None:
    update(split, [], [Reject("x.mp4", "train", "short", "3 frames", "print-x")])
    update(split, [], drop=["print-x", "print-clip0"])
    index = read_index(split)
    assert index.rejects == ()
    assert "clip0" not in [entry.key for entry in index.entries]
    assert index.frames == 16
    assert verify(split) == []


def test_a_kill_before_the_index_is_written_leaves_the_old_split(
    split: Path, make_record: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [record.key for record in read_shards(split)]

    real = shard_writer.write

    def killed(place: Path, data: bytes) -> None:
        if place.name == "index.json":
            raise KeyboardInterrupt
        real(place, data)

    monkeypatch.setattr(shard_writer, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        update(split, [make_record("clip0", 2), make_record("new", 2)])
    monkeypatch.undo()
    assert [record.key for record in read_shards(split)] == before
    assert verify(split) == []
    update(split, [make_record("new", 2)])
    index = read_index(split)
    assert {path.name for path in split.iterdir()} == {"index.json", *(shard.file for shard in index.shards)}


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, make_record: Make) -> None:
    def records() -> list[Record]:
        yield make_record("a")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_tar(tmp_path / "x.tar", records())
    assert list(tmp_path.iterdir()) == []


def test_verify_names_every_damage(tmp_path: Path, make_record: Make) -> None:
    index = update(tmp_path, [make_record(f"k{i}", 4) for i in range(6)], max_bytes=40_000)
    first, second = (tmp_path / shard.file for shard in index.shards[:2])
    first.unlink()
    data = bytearray(second.read_bytes())
    data[3000] ^= 1
    second.write_bytes(data)
    assert verify(tmp_path) == [f"{first.name} is missing", f"{second.name} does not match its checksum"]


@pytest.mark.parametrize("damage", ["truncated", "text", "missing", "foreign member", "no track", "not a tensor file"])
def test_a_damaged_tar_is_an_input_error(tmp_path: Path, make_record: Make, damage: str) -> None:
    path = tmp_path / "x.tar"
    write_tar(path, [make_record("a")])
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "text":
        path.write_text("not a tar")
    elif damage == "missing":
        path.unlink()
    else:
        content = {
            "foreign member": {"../a/b.json": b"{}"},
            "no track": {"a.json": b"{}", "a.png": b""},
            "not a tensor file": {"a.json": b"{}", "a.track.safetensors": b"\x80\x04K\x01.", "a.png": b""},
        }[damage]
        with tarfile.open(path, "w") as archive:
            for name, data in content.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    with pytest.raises(InputError):
        list(read_tar(path))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "other", "version": 1}', '{"format": "export3d.shards"}'])
def test_a_damaged_index_is_an_input_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(InputError, match="prepare the data again"):
        read_index(tmp_path)


def test_an_index_cannot_name_files_outside_its_folder(split: Path) -> None:
    path = split / "index.json"
    path.write_text(path.read_text().replace(read_index(split).shards[0].file, "../../secret.tar"))
    with pytest.raises(InputError, match="outside"):
        read_index(split)


def test_the_folder_above_the_splits_gets_a_hint(split: Path) -> None:
    with pytest.raises(InputError, match="name one of its splits: train"):
        read_index(split.parent)


def test_an_unwritable_folder_is_an_output_error(tmp_path: Path, make_record: Make) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        update(tmp_path / "file", [make_record("a")])


def test_records_that_do_not_fit_together_are_refused(make_record: Make, tmp_path: Path) -> None:
    record = make_record("a", 3)
    args = (record.expression, record.camera, record.landmarks, record.found)
    with pytest.raises(ShapeError):
        Record("a", b"", "mp4", record.expression[:2], *args[1:])
    with pytest.raises(ShapeError):
        Record("a", b"", "png", *args)
    with pytest.raises(InputError, match="letters"):
        Record("a.b/c", b"", "mp4", *args)
    with pytest.raises(InputError, match="not finite"):
        Record("a", b"", "mp4", record.expression * np.nan, *args[1:])
    with pytest.raises(InputError, match="avi"):
        Record("a", b"", "avi", *args)
    other = Record("b", record.media, "mp4", record.expression[:, :40], *args[1:])
    with pytest.raises(ShapeError, match="expression"):
        update(tmp_path / "s", [record, other])


@pytest.mark.parametrize("frames", [-5, 0, 2.5, "five", None])
def test_an_index_with_impossible_numbers_of_frames_is_damaged(split: Path, frames: object) -> None:
    value = json.loads((split / "index.json").read_text())
    value["entries"][0]["frames"] = frames
    (split / "index.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match="is damaged"):
        read_index(split)
