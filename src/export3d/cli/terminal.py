"""Shared by the commands: progress bars and messages on standard error, and options of the form KEY=NUMBER."""

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
    """Print a message on standard error; standard output is for results."""
    print(f"export3d: {sentence}", file=sys.stderr)


def progress_bar(title: str, total: int | None = None, unit: str = "frame") -> Any:
    """A tqdm bar on standard error; hidden if that is not a terminal."""
    from tqdm import tqdm

    return tqdm(desc=title, total=total, unit=unit, file=sys.stderr, disable=None, leave=False)


def with_progress(items: Iterable[Item], title: str, total: int) -> Iterator[Item]:
    """Yield the items and advance a progress bar with each."""
    with progress_bar(title, total) as bar:
        for item in items:
            yield item
            bar.update()


@contextmanager
def job_progress(title: str, unit: str) -> Iterator[Callable[..., None]]:
    """A `progress` callback that shows a bar; it is called with (done, total) or (done, total, name)."""
    with progress_bar(title, unit=unit) as bar:

        def progress(done: int, total: int, name: str = "") -> None:
            bar.total = total
            bar.set_postfix_str(name, refresh=False)
            bar.update(done - bar.n)

        yield progress


@contextmanager
def frame_counter(title: str, path: Path) -> Iterator[Callable[[int], None]]:
    """A `progress` callback for `Tracker.track_video` that shows a bar; it shows nothing for a motion file."""
    with progress_bar(f"{title} {path.name}") as bar:
        yield lambda done: bar.update(done - bar.n)


def pairs(wanted: str, key: Callable[[str], Key], texts: Iterable[str]) -> dict[Key, float]:
    """Parse a repeatable option KEY=NUMBER to a dictionary; if a key is repeated, its last number is used.

    Args:
        wanted: form of the option, for the error message.
        key: converts the text before the equals sign; raises `ValueError` if it is invalid.
        texts: values of the option.

    Raises:
        ConfigError: a text that is not of that form.

    >>> pairs("--set NAME=VALUE", str, ["jawOpen=0.8", "eyeBlinkLeft=1"])
    {'jawOpen': 0.8, 'eyeBlinkLeft': 1.0}
    """
    found: dict[Key, float] = {}
    for text in texts:
        name, _, number = text.partition("=")
        try:
            found[key(name)] = float(number)
        except ValueError:
            raise ConfigError(f"{text!r} cannot be read; use {wanted}") from None
    return found
