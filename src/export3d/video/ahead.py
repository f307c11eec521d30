"""Makes the items of an iterable in a thread of its own, so that making and using them overlap.

Decoders, networks and encoders release Python's lock while they compute: two of them use two cores.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")

DEPTH = 2
"""Items that wait between two threads at most."""


def ahead(items: Iterable[Item], depth: int = DEPTH) -> Generator[Item]:
    """The items of an iterable in their order, at most `depth` of them made ahead of their use.

    An exception of the iterable is raised here, with its traceback, after the items before it. When this generator
    ends or is closed, the thread has ended and the iterable is closed, if it is a generator.

    >>> list(ahead(range(3)))
    [0, 1, 2]
    """
    source, end = iter(items), object()
    thread = ThreadPoolExecutor(1, "ahead")
    try:
        waiting: deque[Future[Item | object]] = deque(thread.submit(next, source, end) for _ in range(depth))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(thread.submit(next, source, end))
            yield item  # type: ignore[misc]
    finally:
        thread.shutdown(cancel_futures=True)
        if isinstance(source, Generator):
            source.close()
