"""engines/at_once.py: two items at a time, in order, each with its share of the threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from export3d.engines.at_once import AT_ONCE, at_once, threads_beside


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_two_are_made_at_a_time_and_the_order_stays() -> None:
    meeting = threading.Barrier(AT_ONCE, timeout=20.0)

    def make(number: int) -> int:
        if number:  # the first is made alone
            meeting.wait()  # ends only if another one is being made
        return number * number

    assert list(at_once(make, range(9))) == [number * number for number in range(9)]


def test_where_all_is_ready_the_first_is_not_alone() -> None:
    meeting = threading.Barrier(AT_ONCE, timeout=20.0)
    assert len(list(at_once(lambda _: meeting.wait(), range(4), ready=True))) == 4


def test_each_thread_has_its_share_and_others_keep_theirs() -> None:
    shares = set(at_once(lambda _: (torch.get_num_threads(), threads_beside()), range(6)))
    assert shares == {(2, AT_ONCE)}
    others: list[int] = []
    thread = threading.Thread(target=lambda: others.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert (torch.get_num_threads(), threads_beside()) == (4, 1)
    assert others == [4]


@pytest.mark.parametrize(("threads", "items"), [(1, 3), (4, 1), (4, 0)])
def test_where_nothing_can_overlap_this_thread_makes_the_items(threads: int, items: int) -> None:
    torch.set_num_threads(threads)
    assert list(at_once(lambda _: threading.current_thread(), range(items))) == [threading.current_thread()] * items


def test_a_failure_comes_after_the_results_before_it() -> None:
    def make(number: int) -> int:
        if number == 3:
            raise ValueError("the fourth")
        return number

    made, results = [], at_once(make, range(9))
    with pytest.raises(ValueError, match="the fourth"):
        made.extend(results)  # what was taken before the failure stays
    assert made == [0, 1, 2]


def test_what_is_closed_makes_no_more_and_leaves_no_thread() -> None:
    before, begun = threading.active_count(), []
    results = at_once(begun.append, range(100))
    next(results)
    results.close()
    assert len(begun) < 10
    assert threading.active_count() == before
