"""The log of a job, as a list of messages that travels with its outcome."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def caught_log() -> Iterator[list[str]]:
    """Collect the package's log messages instead of printing them, which would break the progress bar.

    The list is filled when the block ends.
    """
    package, stream, messages = logging.getLogger("export3d"), io.StringIO(), list[str]()
    handler, propagate = logging.StreamHandler(stream), package.propagate
    package.addHandler(handler)
    package.propagate = False
    try:
        yield messages
    finally:
        package.removeHandler(handler)
        package.propagate = propagate
        messages += stream.getvalue().splitlines()
