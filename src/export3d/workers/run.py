"""Runs many jobs: in this process, in several, or on the machines of a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from export3d.workers.cluster import Cluster, run_on_cluster
from export3d.workers.outcome import Crash
from export3d.workers.processes import run_in_processes

J = TypeVar("J")
R = TypeVar("R")

Workers = int | Cluster
"""Number of processes of this machine, 0 for this one; or a cluster."""


def run_jobs(
    jobs: Sequence[J], start: Callable[[], Callable[[J], R]], workers: Workers
) -> Iterator[tuple[J, R | Crash]]:
    """Run every job and yield (job, outcome) as they finish, in any order.

    If a process dies, its job is tried again and then reported as crashed; all other jobs continue. All processes are
    stopped when a job raises or when the caller stops iterating.

    Args:
        jobs: values that can be pickled.
        start: called once in each process; returns the function that runs a job. Importable by name.
        workers: who runs them.

    Raises:
        Export3DError: raised by a job; any other exception of a job becomes an `Export3DError` with its message.
        MissingExtra, ConfigError: the cluster cannot be used.
    """
    if not jobs:
        return
    if isinstance(workers, Cluster):
        yield from run_on_cluster(jobs, start, workers)
    else:
        yield from run_in_processes(jobs, start, workers)
