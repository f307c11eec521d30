"""Jobs on the machines of a Ray cluster (extra `cluster`), by Ray Data.

Ray Data holds one actor per processor and gives each the next jobs as it becomes free. If an actor or its machine dies,
its jobs go to others. A job may therefore run twice; its outcome is taken once.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, TypeVar

from export3d.errors import ConfigError, MissingExtra
from export3d.files import reason
from export3d.workers.messages import quiet_stderr
from export3d.workers.outcome import Crash, Failure

J = TypeVar("J")
R = TypeVar("R")

LOCAL, RUNNING = "local", "auto"
_ADDRESS = re.compile(r"(?P<host>[\w.-]+|\[[0-9a-fA-F:]+\]):(?P<port>\d{1,5})")
_ANSWER_S = 5.0
_MOST_BLOCKS = 2_000
_IN_FLIGHT = 2
"""Jobs that an actor has: one runs, one waits."""
_ATTEMPTS = 3
"""Of a job whose process or machine is lost."""


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster.

    Attributes:
        address: `local`, the processors of this machine, under a Ray that ends with this process; `auto`, the Ray that
            runs on this machine; or HOST:PORT of a cluster's head.
        gpus: share of a GPU that each worker holds; 0 for workers on processors, which see no GPU.

    Raises:
        ConfigError: this is no address, or no share.
    """

    address: str = LOCAL
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if not is_address(self.address):
            raise ConfigError(
                f"{self.address} is not the address of a Ray cluster; give HOST:PORT, {RUNNING} or {LOCAL}"
            )
        if self.gpus < 0 or (self.gpus > 1 and self.gpus != int(self.gpus)):
            raise ConfigError(f"a worker cannot hold {self.gpus} GPUs; give a share from 0 to 1, or a whole number")


def is_address(text: str) -> bool:
    """Whether a text has the form of a cluster's address.

    >>> is_address("10.0.0.7:6379"), is_address("auto"), is_address("videos")
    (True, True, False)
    """
    return text in (LOCAL, RUNNING) or _ADDRESS.fullmatch(text) is not None


def run_on_cluster(
    jobs: Sequence[J], start: Callable[[], Callable[[J], R]], cluster: Cluster
) -> Iterator[tuple[J, R | Crash]]:
    """See `run.run_jobs`. The cluster's machines need export3d in the same version, and the files that the jobs name.

    Raises:
        MissingExtra: Ray is not installed.  ConfigError: no cluster answers.
    """
    actors = _connect(cluster)
    import ray
    from ray import cloudpickle
    from ray.data import ActorPoolStrategy
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    name = f"attempts-{uuid.uuid4().hex}"
    attempts = ray.remote(_Attempts).options(name=name, num_cpus=0, scheduling_strategy=here).remote()
    # The start travels with each job: what an actor was made with is lost with the machine that holds it.
    all_need = name, os.getcwd(), start
    rows = [{"number": number, "job": cloudpickle.dumps((*all_need, job))} for number, job in enumerate(jobs)]
    pool = ActorPoolStrategy(
        min_size=min(actors, len(rows)), max_size=len(rows), max_tasks_in_flight_per_actor=_IN_FLIGHT
    )
    blocks = ray.data.from_items(rows, override_num_blocks=min(len(rows), _MOST_BLOCKS))
    waiting = dict(enumerate(jobs))
    try:
        done = blocks.map_batches(_Actor, batch_size=1, compute=pool, num_cpus=1, num_gpus=cluster.gpus or None)
        for row in done.iter_rows():
            outcome = cloudpickle.loads(row["outcome"])
            if isinstance(outcome, Failure):
                raise outcome.error()
            if row["number"] in waiting:
                yield waiting.pop(row["number"]), outcome
    finally:
        ray.kill(attempts)


class _Attempts:
    """Counts how often each job was begun: Ray itself repeats for ever a job that kills its process."""

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()

    def begin(self, number: int) -> int:
        self._begun[number] += 1
        return self._begun[number]


class _Actor:
    """One process: loads with its first job what all need, and keeps it."""

    def __init__(self) -> None:
        self._work: Callable[[Any], Any] | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        from ray import cloudpickle

        numbers = [int(number) for number in batch["number"]]
        outcomes = [cloudpickle.dumps(self._outcome(*one)) for one in zip(numbers, batch["job"])]
        return {"number": numbers, "outcome": outcomes}

    def _outcome(self, number: int, given: bytes) -> Any:
        import ray
        from ray import cloudpickle

        try:
            name, folder, start, job = cloudpickle.loads(given)
            with contextlib.suppress(OSError):  # not there: jobs by URL need none
                os.chdir(folder)  # relative paths are the command's; Ray works where the node was started
            if ray.get(ray.get_actor(name).begin.remote(number)) > _ATTEMPTS:
                return Crash(None)
            self._work = self._work or start()
            return self._work(job)
        except Exception as error:  # sent to the driver, which raises it
            return Failure.of(error)


def _connect(cluster: Cluster) -> int:
    """Join a cluster, or start one on this machine; how many workers it holds now.

    A Ray that this process already uses is used further.
    """
    if find_spec("ray") is None:
        raise MissingExtra("cluster", "Ray")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it warns of what Ray Data does
    import ray

    if not ray.is_initialized():
        check_answers(cluster.address)
        try:
            with own_signals(), quiet_stderr("ray"):
                context = ray.init(
                    address=cluster.address,
                    include_dashboard=False if cluster.address == LOCAL else None,
                    log_to_driver=False,
                    logging_level="ERROR",
                )
            if cluster.address == LOCAL:
                atexit.register(_end, context.address_info["session_dir"])
        except (ConnectionError, RuntimeError, ValueError) as problem:
            raise ConfigError(
                f"no Ray cluster can be used at {cluster.address} ({reason(problem)}); start one with `ray start "
                f"--head`, or give {LOCAL}"
            ) from problem
    import ray.data

    settings = ray.data.DataContext.get_current()
    settings.enable_progress_bars = False
    settings.print_on_execution_start = False
    settings.log_internal_stack_trace_to_stdout = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    there = ray.cluster_resources()
    actors = int(there.get("CPU", 1))
    if cluster.gpus:
        actors = min(actors, int(there.get("GPU", 0) / cluster.gpus))
        if not actors:
            raise ConfigError(f"the Ray cluster has not {cluster.gpus:g} of a GPU for a worker; leave out --ray-gpus")
    return max(actors, 1)


@contextlib.contextmanager
def own_signals() -> Iterator[None]:
    """Keep this process's handlers of signals: Ray's own would end it at once, with a dump.

    Processes that Ray starts meanwhile are deaf to SIGTERM and SIGHUP, as Ray makes them to SIGINT: these are often
    sent to all processes of a command, and if Ray ends first, Ray ends this process too, with code 1 and without a
    word.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    heard = None
    if sys.platform != "win32":
        heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        if heard is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, heard)
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _end(folder: str) -> None:
    """End a Ray of our own, and remove its folder of logs and sockets."""
    import ray

    with quiet_stderr("ray"):
        ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def check_answers(address: str) -> None:
    """Raise `ConfigError` where nothing listens at an address: Ray would wait for minutes."""
    found = _ADDRESS.fullmatch(address)
    if found is None:
        return
    try:
        socket.create_connection((found["host"].strip("[]"), int(found["port"])), _ANSWER_S).close()
    except (OSError, OverflowError) as problem:
        raise ConfigError(
            f"no Ray cluster answers at {address} ({reason(problem)}); check the address, or start one with `ray start "
            "--head`"
        ) from problem
