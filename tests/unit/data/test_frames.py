from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from export3d.data import frames
from export3d.data.decoding import decode
from export3d.data.frames import FrameStore
from export3d.data.shard_writer import update
from export3d.data.shards import Record, read_index, read_shards
from export3d.errors import ConfigError, InputError, MissingExtra, OutputError, ShapeError

Make = Callable[..., Record]
TENSORS = ("frames", "expression", "camera", "landmarks", "found", "clip")


def equal(a: FrameStore, b: FrameStore) -> bool:
    return a.clips == b.clips and a.space == b.space and all(torch.equal(getattr(a, t), getattr(b, t)) for t in TENSORS)


def test_a_store_holds_every_frame_and_its_track(split: Path) -> None:
    store = FrameStore.load(split, 64)
    assert store.frames.shape == (22, 3, 64, 64)
    assert store.frames.dtype == torch.uint8
    assert store.landmarks.dtype == torch.float16
    for clip, record in zip(store.clips, read_shards(split), strict=True):
        assert (clip.name, clip.kind, clip.person) == (record.key, record.kind, f"person-{record.key}")
        assert np.array_equal(store.expression[clip.rows], record.expression)
        assert np.array_equal(store.camera[clip.rows], record.camera)
        assert np.array_equal(store.landmarks[clip.rows], record.landmarks)
    assert store.clip.tolist() == [0] * 6 + [1] * 9 + [2] * 4 + [3, 4, 5]
    assert store.kinds == ["video"] * 3 + ["image"] * 3
    assert len(store) == 22


def test_decoded_pictures_are_those_that_were_written(split: Path, make_record: Make) -> None:
    still = make_record("still0", still=True)
    exact = decode(still, 64)[0]
    store = FrameStore.load(split, 64)
    assert np.array_equal(store.frames[19], exact)
    # The bright square of the clips walks one pixel a frame: its left edge tells the frame number.
    for t in range(9):
        row = store.frames[6 + t].float().mean(0)[24]
        assert int(torch.argmax(row[1:] - row[:-1])) + 1 == 2 + t


@pytest.mark.parametrize("key", ["still0", "clip0"])
def test_a_reduced_picture_is_the_mean_of_what_it_covers(make_record: Make, key: str) -> None:
    record = make_record(key, 2, still=key == "still0")
    large = decode(record, 64).astype(np.float64)
    small = decode(record, 16).astype(np.float64)
    inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    means = large.reshape(*large.shape[:2], 16, 4, 16, 4).mean((3, 5))
    assert np.abs(small - means)[inner].mean() < 3.0
    assert abs(small.mean() - large.mean()) < 1.0


def test_only_the_first_records_can_be_loaded(split: Path) -> None:
    store = FrameStore.load(split, 32, max_clips=2)
    assert store.names == ["clip0", "clip1"]
    assert equal(store, FrameStore.load(split, 32, max_clips=2, threads=1))


def test_a_cache_gives_the_same_store_without_the_shards(split: Path, tmp_path: Path) -> None:
    cache = tmp_path / "c.safetensors"
    plain, made = FrameStore.load(split, 32), FrameStore.load(split, 32, cache=cache)
    for shard in read_index(split).shards:
        (split / shard.file).unlink()
    again = FrameStore.load(split, 32, cache=cache)
    assert equal(plain, made)
    assert equal(plain, again)
    with pytest.raises(InputError):
        FrameStore.load(split, 16, cache=cache)  # of another resolution: the shards are needed


def test_a_cache_of_other_shards_or_a_damaged_one_is_made_again(split: Path, tmp_path: Path, make_record: Make) -> None:
    cache = tmp_path / "c.safetensors"
    FrameStore.load(split, 32, cache=cache)
    update(split, [make_record("more", 3)])
    assert "more" in FrameStore.load(split, 32, cache=cache).names
    cache.write_bytes(b"\x80\x04K\x01.")
    assert equal(FrameStore.load(split, 32, cache=cache), FrameStore.load(split, 32))


def test_an_interrupted_cache_is_not_left_behind(split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise InputError("stop")

    monkeypatch.setattr(frames, "decode", fail)
    (tmp_path / "k").mkdir()
    with pytest.raises(InputError):
        FrameStore.load(split, 32, cache=tmp_path / "k" / "c.safetensors")
    assert list((tmp_path / "k").iterdir()) == []


def test_packed_frames_come_back_nearly_equal_in_small_parts(split: Path, tmp_path: Path) -> None:
    store = FrameStore.load(split, 64)
    store.save(tmp_path / "packed", quality=95, max_bytes=40_000)
    parts = list((tmp_path / "packed").glob("*.safetensors"))
    assert len(parts) > 2
    assert all(part.stat().st_size <= 40_000 for part in parts)
    back = FrameStore.load_packed(tmp_path / "packed")
    assert back.clips == store.clips
    for name in TENSORS[1:]:
        assert torch.equal(getattr(back, name), getattr(store, name))
    assert (back.frames.float() - store.frames.float()).abs().mean() < 2.0


def test_masks_of_people_come_along(split: Path, tmp_path: Path) -> None:
    store = FrameStore.load(split, 64)
    store = replace(store, masks=torch.randint(0, 256, (len(store), 1, 16, 16)).byte())
    store.save(tmp_path / "packed", max_bytes=40_000)
    back = FrameStore.load_packed(tmp_path / "packed").to("cpu")
    assert back.masks is not None
    assert store.masks is not None
    assert torch.equal(back.masks, store.masks)
    both = FrameStore.join([back, back.thinned(2)])
    assert both.masks is not None
    assert torch.equal(both.masks[: len(back)], store.masks)
    assert len(both.masks) == len(both)
    assert FrameStore.join([back, FrameStore.load(split, 64)]).masks is None


@pytest.mark.slow
def test_packed_frames_and_caches_need_no_pyav(split: Path, tmp_path: Path) -> None:
    FrameStore.load(split, 32, cache=tmp_path / "c.safetensors").save(tmp_path / "packed")
    program = (
        "import sys; sys.modules['av'] = None; sys.modules['cv2'] = None\n"
        "from export3d.data.frames import FrameStore\n"
        f"a = FrameStore.load({str(split)!r}, 32, cache={str(tmp_path / 'c.safetensors')!r})\n"
        f"b = FrameStore.load_packed({str(tmp_path / 'packed')!r})\n"
        "assert len(a) == len(b) == 22\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_packed_frames_stand_in_place_of_a_split_at_their_size_or_smaller(split: Path, tmp_path: Path) -> None:
    store = FrameStore.load(split, 64)
    store.save(tmp_path / "packed")
    small = FrameStore.load(tmp_path / "packed", 32)
    assert small.clips == store.clips
    assert (small.frames.float() - FrameStore.load(split, 32).frames.float()).abs().mean() < 2.0
    with pytest.raises(ConfigError, match="64 px, but 96 px are needed"):
        FrameStore.load(tmp_path / "packed", 96)
    with pytest.raises(ConfigError, match="leave the cache out"):
        FrameStore.load(tmp_path / "packed", 64, cache=tmp_path / "c.safetensors")


def test_thinning_keeps_every_third_frame_of_videos_and_all_others(split: Path) -> None:
    store = FrameStore.load(split, 32)
    pseudo = replace(store, clips=(replace(store.clips[0], kind="pseudo"), *store.clips[1:]))
    thin = pseudo.thinned(3)
    assert [clip.frames for clip in thin.clips] == [6, 3, 2, 1, 1, 1]
    assert thin.clip.tolist() == [0] * 6 + [1] * 3 + [2] * 2 + [3, 4, 5]
    rows = [*range(6), 6, 9, 12, 15, 18, 19, 20, 21]
    assert torch.equal(thin.camera, store.camera[rows])
    assert torch.equal(thin.frames, store.frames[rows])


def test_without_pyav_shards_of_videos_are_refused_in_one_sentence(
    make_record: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make_record("clip0")
    monkeypatch.setitem(sys.modules, "av", None)
    assert decode(make_record("still0", still=True), 64).shape == (1, 3, 64, 64)
    with pytest.raises(
        MissingExtra, match="PyAV, which decodes shards of videos, is not installed; install it, or use"
    ):
        decode(clip, 64)


def test_saving_again_replaces_the_former_parts(split: Path, tmp_path: Path) -> None:
    FrameStore.load(split, 64).save(tmp_path / "packed", max_bytes=20_000)
    FrameStore.load(split, 64, max_clips=1).save(tmp_path / "packed")
    assert len(list((tmp_path / "packed").glob("*.safetensors"))) == 1
    assert len(FrameStore.load_packed(tmp_path / "packed")) == 6


def spoil(folder: Path, damage: str) -> None:
    """Damage packed frames of one part."""
    part, index = folder / "part-0000.safetensors", folder / "packed.json"
    value, arrays = json.loads(index.read_text()), load_file(part)
    clips = value["clips"]
    changes: dict[str, Callable[[], object]] = {
        "no part": part.unlink,
        "truncated part": lambda: part.write_bytes(part.read_bytes()[:-100]),
        "truncated index": lambda: index.write_text('{"format"'),
        "no index": index.unlink,
        "deep index": lambda: index.write_text("[" * 100_000),
        "list as index": lambda: index.write_text("[]"),
        "part outside": lambda: value["parts"][0].update(file="../part-0000.safetensors"),
        "endless clip": lambda: [entry.update(frames=10**15) for entry in (value["parts"][0], clips[0])],
        "endless clips": lambda: value.update(
            clips=[{**clips[0], "frames": 10**15}], parts=[{**value["parts"][0], "frames": 10**15}]
        ),
        "negative clip": lambda: clips[0].update(frames=-6),
        "clip elsewhere": lambda: clips[1].update(start=0),
        "kind": lambda: clips[0].update(kind="film"),
        "unknown word": lambda: clips[0].update(colour="red"),
        "space": lambda: value.update(space="flame"),
        "other space": lambda: value.update(space="bfm64"),
        "resolution": lambda: value.update(resolution=48),
        "large resolution": lambda: value.update(resolution=10**6),
        "text resolution": lambda: value.update(resolution="large"),
        "no resolution": lambda: value.update(resolution=-32),
        "endless resolution": lambda: value.update(resolution=math.inf),
        "person": lambda: clips[0].update(person=["me"]),
        "box outside": lambda: clips[0].update(inside=[-1, 0, 1, 1]),
        "box of words": lambda: clips[0].update(inside=["a", "b", "c", "d"]),
        "nan": lambda: arrays["camera"].fill(np.nan),
        "infinite": lambda: arrays["landmarks"].fill(np.inf),
        "short track": lambda: arrays.update(found=arrays["found"][:-1]),
        "type": lambda: arrays.update(expression=arrays["expression"].astype(np.float64)),
        "no track": lambda: arrays.pop("camera"),
        "no image": lambda: arrays["jpeg"].fill(0),
        "offsets": lambda: arrays["offsets"].fill(-1),
        "few offsets": lambda: arrays.update(offsets=arrays["offsets"][:-1]),
    }
    changes[damage]()
    if damage not in NO_INDEX:
        index.write_text(json.dumps(value))
    if part.is_file() and damage != "truncated part":
        save_file(arrays, part)


NO_INDEX = ("truncated index", "no index", "deep index", "list as index")
DAMAGES = (
    *("no part", "truncated part", *NO_INDEX, "part outside", "endless clip", "endless clips", "negative clip"),
    *("clip elsewhere", "kind", "unknown word", "space", "other space", "resolution", "large resolution"),
    *("no resolution", "endless resolution", "person", "box outside", "box of words"),
    *("text resolution", "nan", "infinite", "short track", "type", "no track", "no image", "offsets", "few offsets"),
)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_packed_frames_are_an_input_error(split: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "packed"
    FrameStore.load(split, 32).save(folder)
    spoil(folder, damage)
    with pytest.raises(InputError, match="pack them again") as caught:
        FrameStore.load_packed(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(folder))


def test_a_record_with_fewer_pictures_than_its_track_is_refused(make_record: Make, tmp_path: Path) -> None:
    short, long = make_record("a", 3), make_record("a", 4)
    wrong = Record("a", short.media, "mp4", long.expression, long.camera, long.landmarks, long.found, long.info)
    update(tmp_path / "s", [wrong])
    with pytest.raises(InputError, match="3 images for 4 tracked frames"):
        FrameStore.load(tmp_path / "s", 32)


@pytest.mark.parametrize("still", [True, False])
def test_damaged_media_are_an_input_error(make_record: Make, still: bool) -> None:
    good = make_record("a", 3, still)
    bad = Record("a", good.media[:60], good.suffix, good.expression, good.camera, good.landmarks, good.found)
    with pytest.raises(InputError, match="record a cannot be decoded"):
        decode(bad, 32)


def test_a_resolution_above_the_crops_is_refused(split: Path) -> None:
    with pytest.raises(ConfigError, match="needs larger crops"):
        FrameStore.load(split, 128)


def test_an_empty_or_missing_split_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="export3d prepare"):
        FrameStore.load(tmp_path, 32)
    update(tmp_path / "s", [])
    with pytest.raises(InputError, match="no records"):
        FrameStore.load(tmp_path / "s", 32)


def test_a_store_that_cannot_be_written_is_an_output_error(split: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        FrameStore.load(split, 16).save(tmp_path / "file")


def test_tensors_that_do_not_fit_together_are_refused(split: Path) -> None:
    from dataclasses import replace

    store = FrameStore.load(split, 16)
    with pytest.raises(ShapeError):
        replace(store, camera=store.camera[:3])


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no way to reserve room on the disk")
def test_a_cache_reserves_its_room_before_it_is_mapped(tmp_path: Path) -> None:
    """On a full disk, writing to a hole in a mapped file ends the process by a signal."""
    frames._mapped_safetensors(tmp_path / "cache", {"images": ((100, 3, 64, 64), "|u1")}, {})
    status = (tmp_path / "cache").stat()
    assert status.st_blocks * 512 >= status.st_size > 1_000_000


def test_packing_on_a_full_disk_is_refused_in_a_sentence(split: Path, tmp_path: Path) -> None:
    """The limit on file sizes stands for the full disk."""
    resource = pytest.importorskip("resource")
    store = FrameStore.load(split, 64)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OutputError, match=r"cannot write .*part-0000.* choose another folder"):
            store.save(tmp_path / "packed")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "packed").iterdir()) == []
