"""Pairs of source and driver: by rule, from a file, and those that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from export3d.data.shards import Entry, Index
from export3d.errors import InputError
from export3d.evaluation.protocols.pairs import choose_pairs, read_pairs
from export3d.evaluation.reports.cross import Pair

LIST = Path(__file__).parents[4] / "benchmarks" / "pairs_val.csv"


def index_of(*entries: tuple[str, str]) -> Index:
    """An index of (key, kind), people named by the letter that begins the key."""
    return Index("arkit52", 52, tuple(Entry(key, "s.tar", kind, 5, key[0], "open", key) for key, kind in entries))


def test_every_clip_drives_the_next_two_people() -> None:
    index = index_of(("c1", "image"), ("a2", "video"), ("a1", "image"), ("b1", "video"), ("d1", "image"))
    assert [(pair.source, pair.driver) for pair in choose_pairs(index)] == [
        ("b1", "a2"), ("c1", "a2"),  # a's clip, although a picture comes first
        ("c1", "b1"), ("d1", "b1"),
    ]  # fmt: skip


def test_the_last_people_drive_the_first_and_nobody_himself() -> None:
    assert choose_pairs(index_of(("a1", "image"), ("b1", "image"), ("c1", "video"))) == (
        Pair("a1", "c1"), Pair("b1", "c1"),
    )  # fmt: skip
    assert choose_pairs(index_of(("a1", "image"), ("b1", "video"))) == (Pair("a1", "b1"),)
    assert choose_pairs(index_of(("a1", "video"))) == ()


def test_the_list_in_the_repository_has_enough_pairs_of_different_people() -> None:
    pairs = read_pairs(LIST)
    assert len(pairs) >= 24
    assert len({pair.driver for pair in pairs}) == 16
    assert all(pair.source.split("_")[0] != pair.driver.split("_")[0] for pair in pairs)


@pytest.mark.parametrize(
    "text", ["", "# only a remark\n", "a,b\nx,y\n", "source,driver\nx\n", "source,driver\nx,y\nx,y\n"]
)
def test_a_list_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(InputError, match=r"pairs\.csv"):
        read_pairs(tmp_path / "pairs.csv")
