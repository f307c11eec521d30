"""A pool of processes in which the crash of a process costs one job, not the whole batch.

`concurrent.futures` abandons the whole pool when one process dies, and native decoders and networks do crash on unusual
files or run out of memory. Here the parent knows which job each process holds. If a process dies, its job is tried once
more in a new process and then reported as crashed; all other jobs continue.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from export3d.workers.outcome import Crash, Failure

J = TypeVar("J")
R = TypeVar("R")

_ATTEMPTS = 2


def run_in_processes(
    jobs: Sequence[J], start: Callable[[], Callable[[J], R]], workers: int
) -> Iterator[tuple[J, R | Crash]]:
    """See `run.run_jobs`; 0 workers run the jobs in this process, without protection from crashes."""
    if workers <= 0:
        work = start()
        for job in jobs:
            yield job, work(job)
        return
    context = multiprocessing.get_context("spawn")
    waiting = deque((job, 1) for job in jobs)
    crew: list[_Worker[J]] = []
    temporary = tempfile.TemporaryDirectory(prefix="export3d-", ignore_cleanup_errors=True)
    try:
        while waiting or crew:
            while waiting and len(crew) < workers:
                with _interrupts_held():
                    crew.append(_Worker(context, start, temporary.name))
                crew[-1].give(*waiting.popleft())
            ready = wait([worker.pipe for worker in crew])
            for worker in [worker for worker in crew if worker.pipe in ready]:
                outcome = worker.take()
                job, attempt = worker.job, worker.attempt
                if isinstance(outcome, Failure):
                    raise outcome.error()
                if isinstance(outcome, Crash):
                    crew.remove(worker)
                    if attempt < _ATTEMPTS:
                        waiting.append((job, attempt + 1))
                        continue
                elif waiting:
                    worker.give(*waiting.popleft())
                else:
                    worker.dismiss()
                    crew.remove(worker)
                yield job, outcome
    finally:
        for worker in crew:
            worker.kill()
        temporary.cleanup()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back until the block ends. A process that starts in it never gets one, from its first instruction
    on: it would print a traceback of what it was importing.

    Not on Windows, which has no signal masks.
    """
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # its own start would let signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Worker(Generic[J]):
    """One process and the job it holds."""

    job: J
    attempt: int

    def __init__(self, context: Any, start: Callable[[], Callable[[J], Any]], temporary: str) -> None:
        self.pipe: Connection
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, start, temporary), daemon=True)
        self._process.start()
        theirs.close()

    def give(self, job: J, attempt: int) -> None:
        self.job, self.attempt = job, attempt
        with contextlib.suppress(OSError):  # already dead: `take` reports it
            self.pipe.send(job)

    def take(self) -> Any:
        """The outcome of the job; a `Crash` if the process has died."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            self.pipe.close()
            return Crash(self._process.exitcode)

    def dismiss(self) -> None:
        """Let the process end; kill it after ten seconds."""
        self.pipe.close()
        self._process.join(timeout=10)
        self.kill()

    def kill(self) -> None:
        self.pipe.close()
        self._process.kill()
        self._process.join()


def _serve(pipe: Connection, start: Callable[[], Callable[[Any], Any]], temporary: str) -> None:
    """The loop of a process. It ignores Ctrl-C, which the parent handles, and ends when the pipe is closed.

    Its temporary files lie in a folder of the parent, which removes them even if this process is killed.
    """
    tempfile.tempdir = temporary
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    work = None
    while True:
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            work = work or start()
            outcome: Any = work(job)
        except Exception as error:  # sent to the parent, which raises it
            outcome = Failure.of(error)
        try:
            pipe.send(outcome)
        except OSError:
            return
