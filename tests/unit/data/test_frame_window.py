"""A window that moves through more frames than memory holds."""

from __future__ import annotations

import gc
import itertools
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from export3d.data import frame_window
from export3d.data.contrastive import ContrastConfig, ContrastSampler, RotatingContrast
from export3d.data.frame_window import PARTS, RotatingSampler, Rotation, rows_of_block
from export3d.data.frames import FrameStore
from export3d.data.pairs import PairSampler
from export3d.data.shard_writer import update
from export3d.data.shards import Record, read_index
from export3d.data.training_frames import load_frames
from export3d.errors import ConfigError, InputError
from export3d.training.loop_config import LoopConfig
from export3d.training.reconstruction import ReconstructionConfig, run
from export3d.training.state import load_state
from tests.file_server import serving

Make = Callable[..., Record]
FRAMES = 5
BYTES_A_ROW = 3 * 16 * 16 + 52 * 4 + (25 + 5) * 4 + 478 * 2 * 2 + 1 + 8


@pytest.fixture
def many(tmp_path: Path, make_record: Make) -> Path:
    """A split of 24 clips of five frames and two stills, in seven shards or more."""
    folder = tmp_path / "data" / "train"
    records = [make_record(f"clip{i}", FRAMES) for i in range(24)] + [make_record(f"s{i}", still=True) for i in (0, 1)]
    assert len(update(folder, records, max_bytes=100_000).shards) >= 7
    return folder


def window(found: Rotation) -> list[bytes]:
    """What lies in the window, a name for each frame."""
    return [row.numpy().tobytes() for row in found.store.expression]


def turns(found: Rotation, numbers: range) -> Iterator[list[bytes]]:
    for turn in numbers:
        found.at(turn)
        yield window(found)


def test_every_frame_comes_once_an_epoch(many: Path) -> None:
    store = FrameStore.load(many, 16)
    every = Counter(row.numpy().tobytes() for row in store.expression)
    assert len(every) == len(store) == 122
    found = Rotation([many], 16, 4)
    assert found.frames == 122
    first = window(found)
    seen = first + [
        row for turn, rows in enumerate(turns(found, range(54))) if turn for row in rows_in(rows, turn + PARTS - 1)
    ]
    assert len(seen) == 4 * (PARTS + 53)
    assert Counter(seen[:122]) == every
    assert Counter(seen[122:244]) == every
    assert seen[:122] != seen[122:244]


def rows_in(rows: list[bytes], block: int) -> list[bytes]:
    """The rows of one block, in the slot it has in a window of blocks of four."""
    at = block % PARTS * 4
    return rows[at : at + 4]


def test_a_turn_changes_one_part_and_keeps_the_others(many: Path) -> None:
    for turn, (before, after) in enumerate(itertools.pairwise(turns(Rotation([many], 16, 4), range(12)))):
        changed = {slot for slot in range(PARTS) if rows_in(before, slot) != rows_in(after, slot)}
        assert changed == {turn % PARTS}


def test_the_window_is_a_store_of_whole_truths(many: Path) -> None:
    """Pictures, tracks, names and kinds belong together, also where a clip was cut in two."""
    store = FrameStore.load(many, 16)
    where = {row.numpy().tobytes(): number for number, row in enumerate(store.expression)}
    cut = 0
    for turn in (0, 1, 9, 30):
        found = Rotation([many], 16, 7).at(turn)
        rows = torch.tensor([where[row.numpy().tobytes()] for row in found.expression])
        for name in ("frames", "camera", "landmarks", "found"):
            assert torch.equal(getattr(found, name), getattr(store, name)[rows]), name
        for number, clip in enumerate(found.clips):
            original = store.clips[int(store.clip[rows[clip.start]])]
            assert (clip.name, clip.kind, clip.person) == (original.name, original.kind, original.person)
            assert (found.clip[clip.rows] == number).all()
            assert (rows[clip.rows].diff() == 1).all()
            cut += clip.frames < original.frames
    assert cut > 8


def sampler(folder: Path, rows: int = 8, **changes: int) -> RotatingSampler:
    return RotatingSampler(Rotation([folder], 16, rows, **changes), lambda store: PairSampler(store, seed=3))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_pairs_follow_from_their_numbers_whoever_asks_and_when(many: Path) -> None:
    steady = sampler(many)
    batches = [steady.batch(start, 6) for start in range(0, 60, 6)]  # several of them lie across two turns
    resumed = sampler(many)
    assert all(same(resumed.batch(6 * number, 6), batches[number]) for number in (7, 8, 2, 9))
    other = sampler(many, threads=3)
    for number in (1, 2, 5):
        halves = [other.batch(6 * number, 6, rank, 2) for rank in (0, 1)]
        joined = {name: torch.cat([half[name] for half in halves]) for name in halves[0]}
        for name, tensor in batches[number].items():
            torch.testing.assert_close(joined[name], tensor, rtol=0, atol=1e-5)
    assert not same(sampler(many, seed=1).batch(0, 6), batches[0])
    with pytest.raises(ConfigError, match="cannot be shared by 4 processes"):
        steady.batch(0, 6, 0, 4)


def test_a_window_gives_the_pairs_of_the_same_frames_in_memory(many: Path) -> None:
    found = Rotation([many], 16, 16)
    plain = PairSampler(found.store, seed=3)
    assert same(RotatingSampler(found, lambda store: PairSampler(store, seed=3)).batch(0, 16), plain.batch(0, 16))


def test_groups_for_contrast_come_from_the_window_of_their_number(many: Path) -> None:
    config = ContrastConfig(frames=4, size=32, augment=False, crop="whole", positives="one")

    def flat(groups: list[dict[str, torch.Tensor]]) -> list[bytes]:
        """What each clip's group holds, in order of its frames' number."""
        return sorted(clip.numpy().tobytes() for group in groups for clip in group["expression"])

    steady = RotatingContrast(Rotation([many], 32, 16), config)
    batches = [steady.batch(start, 6) for start in range(0, 36, 6)]  # a turn of 16 frames lasts for 4 groups of 4
    plain = ContrastSampler([Rotation([many], 32, 16).store], config)
    assert flat(steady.batch(0, 4)) == flat(plain.batch(0, 4))
    later = Rotation([many], 32, 16)
    for turn in (1, 2):
        later.at(turn)
    assert flat(steady.batch(8, 4)) == flat(ContrastSampler([later.store], config).batch(8, 4))
    resumed = RotatingContrast(Rotation([many], 32, 16), config)
    for number in (3, 1, 5):
        halves = [group for rank in (0, 1) for group in resumed.batch(6 * number, 6, rank, 2)]
        assert flat(halves) == flat(batches[number])


def peak(folder: Path) -> int:
    """Most bytes held while a rotation is filled and turned far enough to have read every shard."""
    gc.collect()
    tracemalloc.start()
    try:
        found = Rotation([folder], 64, 8, threads=1)
        for turn in range(found.frames // 8):
            found.at(turn)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_shards(tmp_path: Path, make_record: Make) -> None:
    records = [make_record(f"clip{i}", 8) for i in range(64)]
    few, many = (update(tmp_path / n, records[:c], max_bytes=80_000) for n, c in (("few", 16), ("many", 64)))
    assert len(many.shards) == 4 * len(few.shards) >= 16
    decoded = 64 * 8 * 3 * 64 * 64
    peaks = [peak(tmp_path / "few"), peak(tmp_path / "many")]
    assert peaks[1] - peaks[0] < 0.1 * decoded
    assert peaks[1] < 0.4 * decoded  # the window is an eighth of it; besides: the next block, shards as they are


def test_only_shards_that_are_needed_are_fetched(many: Path) -> None:
    pytest.importorskip("aiohttp", reason="aiohttp is not installed (extra `remote`)")
    with serving(many.parent) as server:
        found = Rotation([f"{server.address}/train"], 16, 1, threads=1)
        found.at(1)
        assert len({path for path in server.asked if path.endswith("tar")}) == 4
        local = Rotation([many], 16, 1, threads=1)
        local.at(1)
        assert window(found) == window(local)


@pytest.mark.parametrize("gone", [True, False])
def test_a_shard_that_fails_in_the_background_stops_the_run(many: Path, gone: bool) -> None:
    found = Rotation([many], 16, 2, threads=1)
    found.at(1)
    for shard in read_index(many).shards:
        path = many / shard.file
        path.unlink() if gone else path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(InputError, match=r"train-\w+\.tar"):
        list(turns(found, range(2, 200)))


def test_shards_that_are_not_what_the_index_says_are_refused(many: Path) -> None:
    path = many / "index.json"
    path.write_text(path.read_text().replace(f'"frames": {FRAMES},', f'"frames": {FRAMES + 1},'))
    with pytest.raises(InputError, match=r"does not match the index at .*; prepare it again"):
        Rotation([many], 16, 4)


def test_pseudo_clips_are_mixed_in_evenly(many: Path, tmp_path: Path, make_record: Make) -> None:
    update(tmp_path / "pseudo", [make_record(f"p{i}", FRAMES) for i in range(24)], max_bytes=100_000)
    found = Rotation([many], 16, 8, pseudo=[tmp_path / "pseudo"])
    shares = []
    for turn in range(0, 30, 3):
        store = found.at(turn)
        assert {clip.kind for clip in store.clips if clip.name.startswith("p")} <= {"pseudo"}
        shares.append(np.mean([clip.kind == "pseudo" for clip in store.clips for _ in range(clip.frames)]))
    assert 0.4 < np.mean(shares) < 0.6
    assert min(shares) > 0.1


def test_splits_that_do_not_fit_together_or_are_empty_are_refused(
    many: Path, tmp_path: Path, make_record: Make
) -> None:
    update(tmp_path / "other", [make_record("a", 3)], space="bfm64")
    with pytest.raises(InputError, match="arkit52 and in bfm64"):
        Rotation([many], 16, 4, pseudo=[tmp_path / "other"])
    update(tmp_path / "empty", [])
    for splits in ([tmp_path / "empty"], [many, tmp_path / "empty"]):
        with pytest.raises(InputError, match="empty holds no records"):
            Rotation(splits[:1], 16, 4, pseudo=splits[1:])


def test_memory_decides_how_many_frames_are_held(many: Path) -> None:
    assert rows_of_block(122 * BYTES_A_ROW / 1e9, [many], 16) is None
    with pytest.raises(ConfigError, match=r"0.0003 GB is too little for frames of 16 px; give at least 0.01"):
        rows_of_block(0.0003, [many], 16)


def test_frames_that_fit_are_held_as_ever(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = load_frames(many.parent, 16, memory=1.0)
    assert isinstance(store, FrameStore)
    monkeypatch.setattr(frame_window, "_MIN_BLOCK", 1)
    found, _ = load_frames(many.parent, 16, memory=90 * BYTES_A_ROW / 1e9)
    assert isinstance(found, Rotation)
    assert found.rows == 10
    assert len(found.store) == 80
    with pytest.raises(ConfigError, match="leave one out"):
        load_frames(many.parent, 16, cache=tmp_path / "cache", memory=1.0)


@pytest.mark.slow
def test_a_run_on_a_window_goes_on_bit_for_bit(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_window, "_MIN_BLOCK", 1)
    row = 3 * 32 * 32 + BYTES_A_ROW - 3 * 16 * 16
    config = ReconstructionConfig(
        preset="tiny", image_size=32, backbone="none", sheet_pairs=2, motion_steps=2, memory=45 * row / 1e9
    )

    def go(name: str, images: int) -> dict[str, torch.Tensor]:
        loop = LoopConfig(
            batch_size=4, max_images=images, sheet_every=0, validate_every=0, save_every=0, lr=1e-3, warmup_images=0,
            precision="fp32", cpu=True, tensorboard=False, progress=False,
        )  # fmt: skip
        return dict(load_state(run(many.parent, tmp_path / name, config, loop).checkpoint).model)

    whole = go("whole", 12)  # turns change after 5 and 10 images
    go("parts", 8)
    parts = go("parts", 12)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
