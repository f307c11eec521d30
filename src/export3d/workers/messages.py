"""What is told while something works: the log of a job as a list, and the output of native code as a log."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Iterator

logger = logging.getLogger(__name__)


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


@contextlib.contextmanager
def caught_warnings() -> Iterator[list[str]]:
    """Collect the package's warnings that this thread logs, as they come; other threads may log meanwhile."""
    package, handler = logging.getLogger("export3d"), _Collector(threading.get_ident())
    package.addHandler(handler)
    try:
        yield handler.messages
    finally:
        package.removeHandler(handler)


class _Collector(logging.Handler):
    """Keeps each warning of a thread once."""

    def __init__(self, thread: int) -> None:
        super().__init__(logging.WARNING)
        self._thread = thread
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.thread == self._thread and message not in self.messages:
            self.messages.append(message)


@contextlib.contextmanager
def quiet_stderr(source: str) -> Iterator[None]:
    """Redirect the standard error output of native code to the log (level debug), under the name of its source.

    Such code writes to file descriptor 2 whatever Python's streams are. Meanwhile, messages of other threads go to the
    log as well.
    """
    with contextlib.ExitStack() as stack:
        try:
            caught = stack.enter_context(tempfile.TemporaryFile())
            kept = os.dup(2)
        except OSError:  # no temporary file can be created, or there is no error stream
            yield
            return
        if sys.stderr is not None:
            sys.stderr.flush()
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            caught.seek(0)
            for line in caught.read().decode(errors="replace").splitlines():
                logger.debug("%s: %s", source, line)
