"""Shared by the commands: progress bars and messages on standard error, and options of the form KEY=NUMBER."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from export3d.errors import ConfigError, counted

Item = TypeVar("Item")
Key = TypeVar("Key", int, str)


def tell(sentence: str) -> None:
    """Print a message on standard error; standard output is for results."""
    print(f"export3d: {sentence}", file=sys.stderr)


def progress_bar(title: str, total: int | None = None, unit: str = "frame") -> Any:
    """A tqdm bar on standard error; hidden if that is not a terminal."""
    from tqdm import tqdm

    return tqdm(desc=title, total=total, unit=unit, file=sys.stderr, disable=None, leave=False)


def took(frames: int, since: float, engine: str) -> str:
    """How a video was made, for the last message; `since` is when that began (`time.perf_counter`)."""
    seconds = time.perf_counter() - since
    duration = f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}"
    return f"({counted(frames, 'frame')} in {duration} s, engine {engine})"


def tell_stage(title: str) -> None:
    """Say what begins, where standard error is no terminal and shows no bar."""
    if not sys.stderr.isatty():
        tell(title)


def with_progress(items: Iterable[Item], title: str, total: int) -> Iterator[Item]:
    """Yield the items and advance a progress bar with each; where there is no terminal, a line says what begins."""
    tell_stage(f"{title}, {counted(total, 'frame')}")
    with progress_bar(title, total) as bar:
        for item in items:
            yield item
            bar.update()


@contextmanager
def job_progress(title: str, unit: str, stages: bool = False) -> Iterator[Callable[..., None]]:
    """A `progress` callback that shows a bar; it is called with (done, total) or (done, total, name).

    `stages`: the names are few; where there is no terminal, each is a
    line.
    """
    last = ""
    with progress_bar(title, unit=unit) as bar:

        def progress(done: int, total: int, name: str = "") -> None:
            nonlocal last
            if stages and name not in ("", last):
                last = name
                tell_stage(f"{title}: {name}")
            if not done:
                tell_stage(f"{title}, {counted(total, unit)}")
            bar.total = total
            bar.set_postfix_str(name, refresh=not done)
            bar.update(done - bar.n)

        yield progress


@contextmanager
def frame_counter(title: str, path: Path) -> Iterator[Callable[[int], None]]:
    """A `progress` callback for `Tracker.track_video` that shows a bar; it shows nothing for a motion file.

    Where there is no terminal, the first frame writes a line: a file that cannot be read is one sentence.
    """
    begun = False
    with progress_bar(f"{title} {path.name}") as bar:

        def progress(done: int) -> None:
            nonlocal begun
            if not begun:
                begun = True
                tell_stage(f"{title} {path.name}")
            bar.update(done - bar.n)

        yield progress


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


def arkit_scores(texts: Iterable[str]) -> dict[str, float]:
    """Parse `--set NAME=VALUE`, ARKit scores from 0 to 1, before anything heavy is loaded.

    Raises:
        ConfigError: a text that is not of that form, an unknown name, or a value outside 0..1.
    """
    from export3d.motion.arkit import ARKIT52, with_scores

    scores = pairs("--set NAME=VALUE, such as jawOpen=0.8", str, texts)
    with_scores([0.0] * len(ARKIT52), scores)
    return scores
