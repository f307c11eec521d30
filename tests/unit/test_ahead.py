"""Items are made in a thread of their own: in order, not too many, and without anything left behind."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from export3d.video import VideoWriter, read_frames
from export3d.video.ahead import ahead


def threads() -> set[str]:
    return {thread.name.split("_")[0] for thread in threading.enumerate()} & {"ahead", "encode"}


@pytest.mark.parametrize("depth", [1, 4])
def test_the_next_items_are_made_while_one_is_used_but_not_all(depth: int) -> None:
    made: list[int] = []
    enough = threading.Event()

    def numbers() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            if number == depth:
                enough.set()
            yield number

    with closing(ahead(numbers(), depth)) as items:
        assert next(items) == 0
        assert enough.wait(10), "made in another thread while this one uses the first"
        assert next(items) == 1
        assert len(made) <= depth + 2
        assert list(items) == list(range(2, 100))
    assert not threads()


def test_an_exception_comes_after_the_items_before_it_and_shows_where_it_was_raised() -> None:
    def broken() -> Iterator[int]:
        yield from (0, 1, 2)
        raise ValueError("mine")

    items = ahead(broken())
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="mine") as caught:
        next(items)
    assert "broken" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert not threads()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_user_that_stops_early_ends_the_thread_and_closes_the_iterable(error: type[BaseException]) -> None:
    closed = []

    def numbers() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.append(True)

    def use() -> None:
        with closing(ahead(numbers())) as items:
            for item in items:
                if item == 3:
                    raise error

    with pytest.raises(error):
        use()
    assert closed == [True]
    assert not threads()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_writer_that_is_left_early_ends_its_thread_and_leaves_no_file(
    tmp_path: Path, error: type[BaseException]
) -> None:
    def write() -> None:
        with VideoWriter(tmp_path / "a.mp4", 25, 64) as writer:
            for number in range(20):
                writer.write(np.zeros((64, 64, 3), np.uint8))
                if number == 15:
                    assert "encode" in threads()
                    raise error

    with pytest.raises(error):
        write()
    assert not threads()
    assert not list(tmp_path.iterdir())


def test_an_array_may_be_used_again_as_soon_as_it_was_written(tmp_path: Path) -> None:
    frame = np.zeros((48, 48, 3), np.uint8)
    with VideoWriter(tmp_path / "a.mp4", 25, 48) as writer:
        for number in range(10):
            frame[:] = 20 * number
            writer.write(frame)
        frame[:] = 255
    levels = [float(frame.mean()) for frame in read_frames(tmp_path / "a.mp4")]
    assert np.abs(np.array(levels) - 20 * np.arange(10)).max() < 3
