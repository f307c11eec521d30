"""Compiled graphs in the user's folder (`files.home`): a program starts a second sooner the next time.

A graph is found again by a key of all that it depends on. It is compiled anew where its file is missing or damaged, and
kept in memory alone where the folder cannot be written.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import zlib
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from torch import nn

from export3d.errors import OutputError
from export3d.files import home, kind_at, make_folder, write_bytes

Graph = TypeVar("Graph")

MOST = 8
"""Graphs that are kept; those of the packaged weights have up to 24 MB each."""
_CHECK = 4
"""Bytes of the checksum before the graph."""
_LARGEST = 1_000_000_000
"""Bytes of a file that is read."""


def kept_graph(
    key: str, compiled: Callable[[], Graph], written: Callable[[Graph], bytes], read: Callable[[bytes], Graph]
) -> Graph:
    """The graph of a key: read from its file, or compiled, and then written for the next time.

    Args:
        key: of `graph_key`.
        compiled: compiles the graph.
        written: the graph as bytes.
        read: the graph from these bytes.
    """
    with contextlib.suppress(Exception):  # a file is missing, damaged, or not what this OpenVINO reads: compiled anew
        path = _path(key)
        data = path.read_bytes() if kind_at(path, OutputError) == "file" and path.stat().st_size <= _LARGEST else b""
        if data[:_CHECK] == _checksum(key, data[_CHECK:]):
            graph = read(data[_CHECK:])
            with contextlib.suppress(OSError):
                os.utime(path)
            return graph
    graph = compiled()
    with contextlib.suppress(Exception):  # no home, no rights, no space: nothing is kept
        path, data = _path(key), written(graph)
        make_folder(path.parent)
        write_bytes(path, _checksum(key, data) + data)
        _forget(path.parent)
    return graph


def graph_key(part: nn.Module, about: Iterable[object]) -> str:
    """A key of a part's weights, of this package's code, and of what else the graph depends on, by its `repr`."""
    key = hashlib.sha256(_code())
    for name, value in [*part.named_parameters(), *part.named_buffers()]:
        key.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        key.update(np.ascontiguousarray(value.detach().float().numpy()).data)
    for word in about:
        key.update(repr(word).encode())
    return key.hexdigest()


@cache
def _code() -> bytes:
    """A digest of this package's source: a graph is traced from it."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).resolve().parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.digest()


def _path(key: str) -> Path:
    return home() / "graphs" / f"{key}.graph"


def _checksum(key: str, data: bytes) -> bytes:
    return zlib.crc32(data, zlib.crc32(key.encode())).to_bytes(_CHECK, "big")


def _forget(folder: Path) -> None:
    """Remove all graphs but those last used."""
    found = sorted(folder.glob("*.graph"), key=lambda path: path.stat().st_mtime)
    for path in found[:-MOST]:
        with contextlib.suppress(OSError):
            path.unlink()
