"""Processes that each do one job after another, and whose death costs one job, not the batch.

`concurrent.futures` gives up a whole pool when one process dies, and native decoders and networks do die of odd files
or of memory. Here the parent knows which job each process holds: a job whose process died is tried once more in a fresh
one, then reported as crashed, and all others go on.
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
    """The outcome of a job whose process died each time it was tried."""

    exit_code: int | None


@dataclass(frozen=True)
class _Failure:
    """What a job raised, in a form that every exception survives on its way through a pipe."""

    kind: type[Export3DError]
    message: str

    @classmethod
    def of(cls, error: Exception) -> _Failure:
        if isinstance(error, Export3DError):
            return cls(type(error), str(error))
        return cls(Export3DError, f"{type(error).__name__}: {error}")

    def error(self) -> Export3DError:
        # Not by calling the class: some have an __init__ of other arguments, and only the words are left.
        return self.kind.__new__(self.kind, self.message)


def run_jobs(jobs: Sequence[J], start: Callable[[], Callable[[J], R]], workers: int) -> Iterator[tuple[J, R | Crash]]:
    """Do every job and yield (job, outcome) as they finish, in any order.

    Args:
        jobs: values that can be pickled.
        start: called once in each process; returns the function that does a job. Importable by name.
        workers: processes; 0 does the jobs in this one (where a crash is a crash).

    Raises:
        What a job raises (an `Export3DError` of its words where it is none of ours), after stopping all processes. They
        stop, too, when the caller stops iterating.
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
        with contextlib.suppress(OSError):  # already dead: `take` will see it
            self.pipe.send(job)

    def take(self) -> Any:
        """The outcome; a `Crash` if the process is gone."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            self.pipe.close()
            return Crash(self._process.exitcode)

    def dismiss(self) -> None:
        """Let the process end by itself."""
        self.pipe.close()
        self._process.join(timeout=10)
        self.kill()

    def kill(self) -> None:
        self.pipe.close()
        self._process.kill()
        self._process.join()


def _serve(pipe: Connection, start: Callable[[], Callable[[Any], Any]]) -> None:
    """The loop of a process: Ctrl-C is the parent's business, a closed pipe is the end."""
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
        except Exception as error:  # carried to the parent, which raises it
            outcome = _Failure.of(error)
        try:
            pipe.send(outcome)
        except OSError:
            return
