"""Taught groups as training samples, alone and among real pairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from export3d.data import frame_window
from export3d.data.frame_window import RotatingSampler, Rotation
from export3d.data.frames import FrameStore
from export3d.data.packing import pack
from export3d.data.pairs import PairSampler
from export3d.data.shard_writer import update
from export3d.data.shards import Record
from export3d.data.taught import GROUP, MixedSampler, TaughtSampler, load_taught
from export3d.errors import ConfigError, InputError
from tests.file_server import serving

Make = Callable[..., Record]


@pytest.fixture
def folder(tmp_path: Path, make_record: Make) -> Path:
    """A taught folder of 20 groups of seven frames."""
    update(tmp_path / "taught" / "train", [make_record(f"p{i}-taught00", 7) for i in range(20)], max_bytes=100_000)
    return tmp_path / "taught"


@pytest.fixture
def mixed(folder: Path, split: Path) -> MixedSampler:
    real = PairSampler(FrameStore.load(split, 32), seed=2)
    return MixedSampler(real, TaughtSampler(load_taught([folder], 32)[0], seed=2), 0.5)


def rows_of(sampler: TaughtSampler, numbers: range) -> list[tuple[int, int]]:
    return [sampler._draw(number).rows for number in numbers]


def test_a_group_shows_one_real_source_under_different_expressions_at_one_camera(folder: Path) -> None:
    store, _ = load_taught([folder], 32)
    sampler = TaughtSampler(store, seed=1)
    seen = set()
    for first in range(0, 80, GROUP):
        rows = rows_of(sampler, range(first, first + GROUP))
        (source,) = {source for source, _ in rows}
        assert source % 7 == 0, "the first frame of a group is real"
        assert len({driving for _, driving in rows}) == GROUP
        assert all(source < driving < source + 7 for _, driving in rows)
        seen.add(source)
        draws = [sampler._draw(number) for number in range(first, first + GROUP)]
        assert len({draw.mirrored for draw in draws}) == 1
        for draw in draws:
            np.testing.assert_array_equal(draw.geometry, np.tile(draws[0].geometry[0], (2, 1)))
            np.testing.assert_array_equal(draw.colour, draws[0].colour)
    assert len(seen) > 10
    batch = sampler.batch(0, GROUP)
    assert torch.equal(batch["source"], batch["source"][:1].expand_as(batch["source"]))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_mixed_batch_crosses_in_three_transfers(mixed: MixedSampler) -> None:
    """Real pairs, taught groups and their order, however many groups there are; see `test_transfers.py`."""

    class Copies(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += func.__name__.startswith("lift_fresh")
            return func(*args, **(kwargs or {}))

    mixed.batch(0, 40)  # fills caches
    with Copies() as seen:
        mixed.batch(40, 40)
    assert seen.count == 3


def test_taught_groups_are_spread_evenly_and_real_pairs_stay_theirs(mixed: MixedSampler) -> None:
    batch = mixed.batch(0, 40)
    assert batch["taught"].view(-1, GROUP).all(1).tolist() == [False, True] * 5
    for name, value in mixed.real.batch(8, 4).items():
        assert torch.equal(value, batch[name][8:12]), name
    for name, value in mixed.taught.batch(12, 4).items():
        assert torch.equal(value, batch[name][12:16]), name
    for share, wanted in ((0.0, 0), (0.25, 5), (0.67, 13), (1.0, 20)):
        taught = MixedSampler(mixed.real, mixed.taught, share).batch(0, 80)["taught"]
        assert int(taught.sum()) == GROUP * wanted


def test_a_mixed_batch_follows_from_its_number_on_one_process_or_two(mixed: MixedSampler) -> None:
    whole = mixed.batch(16, 8)
    assert same(whole, mixed.batch(16, 8))
    halves = [mixed.batch(16, 8, rank, 2) for rank in (0, 1)]
    for name, value in whole.items():
        torch.testing.assert_close(torch.cat([half[name] for half in halves]), value, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("start", "size", "world"), [(0, 6, 1), (2, 8, 1), (0, 8, 4)])
def test_batches_that_cut_a_group_are_refused(mixed: MixedSampler, start: int, size: int, world: int) -> None:
    with pytest.raises(ConfigError, match=f"make batch_size a multiple of {4 * world}"):
        mixed.batch(start, size, 0, world)


def test_a_window_holds_whole_groups(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_window, "_MIN_BLOCK", 1)
    row = 3 * 16 * 16 + 52 * 4 + 25 * 4 + 478 * 2 * 2 + 1 + 8
    found, val = load_taught([folder], 16, memory=90 * row / 1e9)
    assert val is None
    assert isinstance(found, Rotation)
    assert found.rows == 7
    sampler = RotatingSampler(found, lambda store: TaughtSampler(store, seed=1))
    for start in range(0, 240, 8):
        sampler.batch(start, 8)
        assert {clip.frames for clip in sampler.store.clips} == {7}
    again = RotatingSampler(load_taught([folder], 16, memory=90 * row / 1e9)[0], lambda store: TaughtSampler(store, 1))
    assert same(again.batch(120, 8), sampler.batch(120, 8))


def test_taught_groups_can_be_read_by_url_and_kept(folder: Path, tmp_path: Path, make_record: Make) -> None:
    pytest.importorskip("aiohttp", reason="aiohttp is not installed (extra `remote`)")
    update(folder / "val", [make_record(f"v{i}-taught00", 7) for i in range(2)])
    here = load_taught([folder], 32, cache=tmp_path)
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {
        "taught0-train-32.safetensors",
        "taught0-val-32.safetensors",
    }
    with serving(folder) as server:
        for far, near in zip(load_taught([server.address], 32), here, strict=True):
            assert isinstance(far, FrameStore)
            assert isinstance(near, FrameStore)
            assert torch.equal(far.frames, near.frames)


def test_packed_groups_are_the_same(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "packed", 32)
    packed, plain = (load_taught([place], 32, cache=tmp_path)[0] for place in (tmp_path / "packed", folder))
    assert [(clip.name, clip.frames) for clip in packed.clips] == [(clip.name, clip.frames) for clip in plain.clips]
    assert (packed.frames.float() - plain.frames.float()).abs().mean() < 4.0
    with pytest.raises(ConfigError, match="taught frames are packed"):
        load_taught([tmp_path / "packed"], 32, memory=1.0)
    pack(folder, tmp_path / "thin", 32, every=2)
    with pytest.raises(InputError, match="groups of 4 frames"):
        load_taught([tmp_path / "thin"], 32)


def test_other_clips_and_groups_of_several_sizes_are_refused(folder: Path, split: Path, make_record: Make) -> None:
    with pytest.raises(InputError, match="holds the clip clip0; name folders that export3d teach made"):
        load_taught([split.parent], 32)
    with pytest.raises(InputError, match="is not a prepared split"):
        load_taught([folder / "train"], 32)
    update(folder / "train", [make_record("q-taught00", 9)])
    with pytest.raises(InputError, match="groups of 7 and 9 frames; teach all with the same number"):
        load_taught([folder], 32)
    update(split.parent / "few" / "train", [make_record("q-taught00", 4)])
    with pytest.raises(InputError, match="at least 4"):
        load_taught([split.parent / "few"], 32)
    update(split.parent / "none" / "train", [])
    with pytest.raises(InputError, match="holds no records"):
        load_taught([split.parent / "none"], 32)
