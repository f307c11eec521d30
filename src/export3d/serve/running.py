"""Runs the server with its renderers: a Ray of its own or one that is there, the application, and the end of both."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from export3d.errors import ConfigError, MissingExtra
from export3d.files import reason
from export3d.studio.app import Settings
from export3d.workers.cluster import LOCAL, Cluster, check_answers, own_signals

APPLICATION = "export3d"
_DRAIN_S = 60.0
"""At the end, jobs that run are given so many seconds."""
_OBJECTS = 500_000_000
"""Bytes of the object store of a Ray of our own: uploads and results on their way."""


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """How many renderers there are.

    Attributes:
        least, most: of them; between these Ray Serve decides by the requests that wait.
        gpus: share of a GPU that each has; None: 0.25 where there is a GPU, else 0.
        cpus: processor cores that each has.
        merge: requests whose frames a replica merges; 1: none.
        target: requests per replica that Ray Serve aims at.
    """

    least: int = 1
    most: int = 1
    gpus: float | None = None
    cpus: int = 1
    merge: int = 8
    target: float = 3.0

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most <= 10_000:
            raise ConfigError(f"{self.least} to {self.most} replicas are not possible; give 1 or more, such as 1:4")
        if self.gpus is not None and (self.gpus < 0 or (self.gpus > 1 and self.gpus != int(self.gpus))):
            raise ConfigError(f"a replica cannot have {self.gpus:g} GPUs; give a share, such as 0.25, or a number")

    @classmethod
    def parse(cls, text: str, gpus: float | None = None) -> Replicas:
        """From "MIN" or "MIN:MAX"; raises `ConfigError`."""
        least, colon, most = text.partition(":")
        if not (least.isdecimal() and (not colon or most.isdecimal())):
            raise ConfigError(f"{text!r} is no number of replicas; give one, such as 2, or a range, such as 1:4")
        return cls(least=int(least), most=int(most if colon else least), gpus=gpus)


def jobs_at_once(replicas: Replicas) -> int:
    """Jobs that the server hands on at a time."""
    from export3d.serve.renderer import JOBS

    return JOBS * replicas.most


@contextmanager
def deployed(replicas: Replicas, settings: Mapping[str, Any], address: str = LOCAL) -> Iterator[Any]:
    """The handle of renderers on Ray Serve, which are up; at the end they are gone, and so is a Ray of our own.

    Args:
        replicas: how many.
        settings: `weights`, `pure`, `device` and `engine`, see `Animator`.
        address: see `Cluster`; `local` is a Ray of our own.

    Raises:
        MissingExtra: Ray is not installed.
        ConfigError: the address does not answer, or the renderers cannot start.
    """
    Cluster(address)  # which refuses what is no address
    if address.startswith("ray://"):
        raise ConfigError(
            f"renderers are not reached by {address}; serve from a machine of the cluster with --ray auto"
        )
    with _ray(address, replicas.most * replicas.cpus):
        from ray import serve

        handle = _deploy(replicas, settings)
        try:
            yield handle
        finally:
            serve.delete(APPLICATION)  # replicas finish what runs


def serve_app(
    replicas: Replicas,
    settings: Settings,
    sock: socket.socket,
    ready: Callable[[], object],
    address: str = LOCAL,
    drain_s: float = _DRAIN_S,
) -> None:
    """Serve until Ctrl-C or SIGTERM: first new work is refused and what runs is finished, then all ends.

    Raises:
        Export3DError: see `deployed` and `studio.serving.serve`.
    """
    from export3d.studio.serving import serve

    options = {name: getattr(settings, name) for name in ("weights", "pure", "device", "engine")}
    with deployed(replicas, options, address) as handle:
        from export3d.serve.serve_engine import ServeEngine

        serve(settings, sock, ready, lambda policy: ServeEngine(APPLICATION, handle, policy), drain_s)


def _deploy(replicas: Replicas, settings: Mapping[str, Any]) -> Any:
    import ray
    from ray import serve

    from export3d.serve.renderer import ONGOING, Renderer

    gpus = replicas.gpus
    if gpus is None:
        gpus = 0.25 if settings["device"] != "cpu" and ray.cluster_resources().get("GPU") else 0.0
    quiet = {"log_level": "ERROR", "enable_access_log": False}
    renderer = serve.deployment(
        Renderer,
        name="Renderer",
        ray_actor_options={"num_cpus": replicas.cpus, "num_gpus": gpus},
        autoscaling_config={
            "min_replicas": replicas.least,
            "max_replicas": replicas.most,
            "target_ongoing_requests": replicas.target,
        },
        max_ongoing_requests=ONGOING,
        max_queued_requests=-1,
        health_check_period_s=5.0,
        health_check_timeout_s=30.0,
        graceful_shutdown_timeout_s=20.0,
        graceful_shutdown_wait_loop_s=0.2,
        max_constructor_retry_count=2,
        logging_config=quiet,
    )
    bound = renderer.bind({**settings, "threads": replicas.cpus, "merge": replicas.merge})
    serve.start(proxy_location="Disabled", logging_config=quiet)
    try:
        return serve.run(bound, name=APPLICATION, route_prefix=None, logging_config=quiet)
    except RuntimeError as problem:
        raise ConfigError(f"the renderers do not start ({str(problem).splitlines()[0]})") from problem


@contextmanager
def _ray(address: str, cpus: int) -> Iterator[None]:
    if find_spec("ray") is None:
        raise MissingExtra("cluster", "Ray")
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # a thread of Ray Serve would start another Ray at the end
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    options: dict[str, Any] = {"address": address}
    if address == LOCAL:
        cores = max(os.cpu_count() or 1, cpus)
        options |= {"num_cpus": cores, "object_store_memory": _OBJECTS, "include_dashboard": False}
    _start(options)
    try:
        yield
    finally:
        with suppress(Exception):
            ray.shutdown()


def _start(options: Mapping[str, Any]) -> None:
    import ray

    check_answers(options["address"])
    for attempt in (1, 2):
        try:
            with own_signals():
                ray.init(**options, namespace=APPLICATION, log_to_driver=False, logging_level=logging.ERROR)
            logging.getLogger("ray.serve").setLevel(logging.WARNING)
            return
        except Exception as problem:  # "The current node timed out" is one: a busy machine has it
            with suppress(Exception):
                ray.shutdown()
            if attempt == 1 and "timed out during startup" in str(problem):
                continue
            raise ConfigError(
                f"no Ray cluster can be used at {options['address']} ({reason(problem)}); start one with `ray start "
                f"--head`, or give {LOCAL}"
            ) from problem
