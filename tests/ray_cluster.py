"""A Ray cluster on this machine: a few nodes, each as if it were a machine of its own."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any


class Nodes:
    """Nodes of one processor each. The folder's path must be short: sockets lie in it."""

    def __init__(self, count: int, folder: str) -> None:
        from ray.cluster_utils import Cluster

        settings: dict[str, Any] = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 * 2**20}
        self._cluster = Cluster(initialize_head=True, head_node_args={**settings, "temp_dir": folder})
        settings.pop("include_dashboard")
        self._others = [self._cluster.add_node(**settings) for _ in range(count - 1)]
        self._cluster.wait_for_nodes()
        self._folder = folder

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def actors(self) -> set[int]:
        """Processes that hold an actor of Ray Data; their parents are the nodes."""
        nodes = processes_of(self._folder)
        return {process for process in _processes("ray::MapWorker") if _parent(process) in nodes}

    def remove_one(self) -> None:
        """Kill a node that is not the head, with all that runs on it."""
        self._cluster.remove_node(self._others.pop(), allow_graceful=False)

    def __enter__(self) -> Nodes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import ray

        ray.shutdown()
        self._cluster.shutdown()


def processes_of(folder: str) -> set[int]:
    """Ray's processes whose sockets and logs lie in a folder."""
    return _processes(folder)


def _parent(process: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _processes(words: str) -> set[int]:
    found = set()
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            with suppress(OSError):
                if words.encode() in (process / "cmdline").read_bytes():
                    found.add(int(process.name))
    return found
