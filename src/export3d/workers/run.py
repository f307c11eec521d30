"""A pool of processes in which the crash of a process costs one job, not the whole batch.

`concurrent.futures` abandons the whole pool when one process dies, and native decoders and networks do crash on unusual
files or run out of memory. Here the parent knows which job each process holds. If a process dies, its job is tried once
more in a new process and then reported as crashed; all other jobs continue.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from export3d.errors import Export3DError

J = TypeVar("J")
R = TypeVar("R")

_ATTEMPTS = 2


@dataclass(frozen=True)
class Crash:
    """The outcome of a job whose process died on every attempt."""

    exit_code: int | None


@dataclass(frozen=True)
class _Failure:
    """An exception that a job raised, in a form that can always be pickled."""

    kind: type[Export3DError]
    message: str

    @classmethod
    def of(cls, error: Exception) -> _Failure:
        if isinstance(error, Export3DError):
            return cls(type(error), str(error))
        return cls(Export3DError, f"{type(error).__name__}: {error}")

    def error(self) -> Export3DError:
        # `__new__`, since some classes take other arguments in `__init__` and only the message is available.
        return self.kind.__new__(self.kind, self.message)


def run_jobs(jobs: Sequence[J], start: Callable[[], Callable[[J], R]], workers: int) -> Iterator[tuple[J, R | Crash]]:
    """Run every job and yield (job, outcome) as they finish, in any order.

    All processes are stopped when a job raises or when the caller stops iterating.

    Args:
        jobs: values that can be pickled.
        start: called once in each process; returns the function that runs a job. Importable by name.
        workers: number of processes; 0 runs the jobs in this process, without protection from crashes.

    Raises:
        Export3DError: raised by a job; any other exception of a job becomes an `Export3DError` with its message.
    """
    if not jobs:
        return
    if workers <= 0:
        work = start()
        for job in jobs:
            yield job, work(job)
        return
    context = multiprocessing.get_context("spawn")
    waiting = deque((job, 1) for job in jobs)
    crew: list[_Worker[J]] = []
    try:
        while waiting or crew:
            while waiting and len(crew) < workers:
                crew.append(_Worker(context, start))
                crew[-1].give(*waiting.popleft())
            ready = wait([worker.pipe for worker in crew])
            for worker in [worker for worker in crew if worker.pipe in ready]:
                outcome = worker.take()
                job, attempt = worker.job, worker.attempt
                if isinstance(outcome, _Failure):
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


class _Worker(Generic[J]):
    """One process and the job it holds."""

    job: J
    attempt: int

    def __init__(self, context: Any, start: Callable[[], Callable[[J], Any]]) -> None:
        self.pipe: Connection
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, start), daemon=True)
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


def _serve(pipe: Connection, start: Callable[[], Callable[[Any], Any]]) -> None:
    """The loop of a process. It ignores Ctrl-C, which the parent handles, and ends when the pipe is closed."""
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
            outcome = _Failure.of(error)
        try:
            pipe.send(outcome)
        except OSError:
            return
