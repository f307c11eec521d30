"""What the commands share: progress bars and remarks on standard error, and options KEY=NUMBER."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from export3d.errors import ConfigError

Item = TypeVar("Item")
Key = TypeVar("Key", int, str)


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
def job_progress(title: str, unit: str) -> Iterator[Callable[..., None]]:
    """What functions that know how much there is to do take as `progress`: (done, total) or (done, total, of what)."""
    with progress_bar(title, unit=unit) as bar:

        def progress(done: int, total: int, name: str = "") -> None:
            bar.total = total
            bar.set_postfix_str(name, refresh=False)
            bar.update(done - bar.n)

        yield progress


@contextmanager
def frame_counter(title: str, path: Path) -> Iterator[Callable[[int], None]]:
    """What `Tracker.track_video` takes as `progress`, shown as a bar; nothing is shown for a motion file."""
    with progress_bar(f"{title} {path.name}") as bar:
        yield lambda done: bar.update(done - bar.n)


def pairs(wanted: str, key: Callable[[str], Key], texts: Iterable[str]) -> dict[Key, float]:
    """The texts of a repeatable option KEY=NUMBER as a dictionary; of two with one key the last counts.

    Args:
        wanted: how the option is written, for the `ConfigError` that any other text raises.
        key: makes a key of what stands before the sign; raises `ValueError` where it cannot.
        texts: as given.

    >>> pairs("--set NAME=VALUE", str, ["jawOpen=0.8", "eyeBlinkLeft=1"])
    {'jawOpen': 0.8, 'eyeBlinkLeft': 1.0}
    """
    found: dict[Key, float] = {}
    for text in texts:
        name, _, number = text.partition("=")
        try:
            found[key(name)] = float(number)
        except ValueError:
            raise ConfigError(f"it is {wanted}, but {text!r} was given") from None
    return found
