"""What the commands share: progress bars and remarks on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

Item = TypeVar("Item")


def tell(sentence: str) -> None:
    """A remark for the person at the terminal; standard output stays free for results."""
    print(f"export3d: {sentence}", file=sys.stderr)


def progress_bar(title: str, total: int | None = None, unit: str = "frame") -> Any:
    """A tqdm bar on standard error, silent where that is not a terminal."""
    from tqdm import tqdm

    return tqdm(desc=title, total=total, unit=unit, file=sys.stderr, disable=None, leave=False)


def with_progress(items: Iterable[Item], title: str, total: int) -> Iterator[Item]:
    """The items, with a bar that moves as they are taken."""
    with progress_bar(title, total) as bar:
        for item in items:
            yield item
            bar.update()


@contextmanager
def frame_counter(title: str, path: Path) -> Iterator[Callable[[int], None]]:
    """What `Tracker.track_video` takes as `progress`, shown as a bar; nothing is shown for a motion file."""
    with progress_bar(f"{title} {path.name}") as bar:
        yield lambda done: bar.update(done - bar.n)
