"""Two batches at a time, each with half of PyTorch's threads.

A batch alone keeps its threads waiting for each other: what is small or runs in Python uses one core. Two batches that
have nothing in common use the cores in full.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

Item = TypeVar("Item")
Made = TypeVar("Made")

AT_ONCE = 2
"""Batches."""
_WAITING = AT_ONCE + 1
"""Results that are being made, or are made and wait: a thread that is done early has another item to go on with."""

_own = threading.local()


def threads_beside() -> int:
    """How many threads of `at_once` compute side by side, if this is one of them; else 1."""
    return int(getattr(_own, "beside", 1))


def at_once(make: Callable[[Item], Made], items: Sequence[Item], *, ready: bool = False) -> Generator[Made]:
    """`make` of each item, in the items' order; `AT_ONCE` of them are made at a time.

    The first one is made alone, since its thread loads and compiles for all, unless all is `ready`. A single item, or
    any number of them where PyTorch has one thread, is made in this thread. An exception of `make` is raised here,
    after the results before it. When this generator ends or is closed, its threads have ended.

    >>> list(at_once(abs, [-1, 2, -3]))
    [1, 2, 3]
    """
    threads = torch.get_num_threads()
    if len(items) < 2 or threads < AT_ONCE:
        yield from map(make, items)
        return
    pool = ThreadPoolExecutor(AT_ONCE, "render", initializer=_share, initargs=(threads,))
    try:
        waiting = deque([pool.submit(make, items[0])])
        if not ready:
            wait(waiting)
        for item in items[1:]:
            waiting.append(pool.submit(make, item))
            if len(waiting) == _WAITING:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _share(threads: int) -> None:
    """Give this thread its share of PyTorch's threads; those that are started later keep all of them."""
    _own.beside = AT_ONCE
    torch.get_num_threads()  # the first call in a thread takes over what is set for all
    torch.set_num_threads(threads // AT_ONCE)  # of this thread, and of threads to come
    other = threading.Thread(target=torch.set_num_threads, args=(threads,))
    other.start()
    other.join()
