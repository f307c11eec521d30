"""Files on their way to renderers: the object store holds their bytes, names are SHA-256 hashes.

A renderer may be on another machine, and knows a file that it has had before by its name.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export3d import files

_MOST_BYTES = 500_000_000
"""Bytes of files that are kept for another request."""
_FIELDS = ("motion", "background", "sound")
"""Fields of a request that may hold the path of a file; `faces` holds several, `portrait` one of its own."""


@dataclass(frozen=True)
class Parcel:
    """One file.

    Attributes:
        name: the SHA-256 of its bytes, and the ending of its path.
        bytes: how many there are.
        ref: stands for the bytes in the object store.
    """

    name: str
    bytes: int
    ref: Any


class Sender:
    """Puts files into the object store, and keeps those that were sent last.

    Args:
        put: the object store's: bytes to what stands for them.
    """

    def __init__(self, put: Callable[[bytes], Any]) -> None:
        self._put = put
        self._kept: OrderedDict[str, Parcel] = OrderedDict()
        self._known: dict[tuple[str, int, int], Parcel] = {}

    def packed(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """A request with parcels in place of the paths of files."""
        out = {name: value for name, value in message.items() if name not in ("out", "driving")}
        names = dict(message.get("names") or {})
        for field in _FIELDS:
            value = message.get(field)
            if isinstance(value, str) and os.path.isabs(value):
                out[field] = self.parcel(value)
                names[out[field].name] = names.get(value, field)
        out["faces"] = [self.parcel(path) for path in message.get("faces") or ()]
        out["names"] = {name: shown for name, shown in names.items() if not os.path.isabs(name)}
        if message.get("portrait") is not None:
            out["portrait"] = {**message["portrait"], "path": self.parcel(message["portrait"]["path"])}
        return out

    def parcel(self, path: str | Path) -> Parcel:
        """The parcel of a file, which does not change."""
        at = os.stat(path)
        key = str(path), at.st_mtime_ns, at.st_size
        known = self._known.get(key)
        if known is not None and known.name in self._kept:
            self._kept.move_to_end(known.name)
            return known
        data = Path(path).read_bytes()
        name = hashlib.sha256(data).hexdigest() + Path(path).suffix.lower()
        if name not in self._kept:
            self._kept[name] = Parcel(name, len(data), self._put(data))
        self._kept.move_to_end(name)
        while len(self._kept) > 1 and sum(one.bytes for one in self._kept.values()) > _MOST_BYTES:
            self._kept.popitem(last=False)
        self._known = {key: one for key, one in self._known.items() if one.name in self._kept}
        self._known[key] = made = self._kept[name]
        return made


class Receiver:
    """Files that have arrived, in a folder; those that no request holds are removed, the oldest first.

    Args:
        folder: exists, and holds nothing else.
        fetch: parcel to bytes.
    """

    def __init__(self, folder: Path, fetch: Callable[[Any], Awaitable[bytes]]) -> None:
        self._folder, self._fetch = folder, fetch
        self._held: OrderedDict[str, int] = OrderedDict()
        self._bytes: dict[str, int] = {}

    async def unpacked(self, message: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """A request with paths of this machine in place of parcels, and the names of the files; they are now held."""
        held: list[str] = []

        async def path(value: Any) -> Any:
            if not isinstance(value, Parcel):
                return value
            self._held[value.name] = self._held.get(value.name, 0) + 1
            held.append(value.name)
            self._held.move_to_end(value.name)
            at = self._folder / value.name
            if files.kind_at(at) != "file":
                files.write_bytes(at, await self._fetch(value.ref))
            self._bytes[value.name] = value.bytes
            return str(at)

        try:
            out = {name: await path(value) for name, value in message.items()}
            out["faces"] = [await path(value) for value in message.get("faces") or ()]
            out["names"] = {str(self._folder / name): shown for name, shown in (message.get("names") or {}).items()}
            if message.get("portrait") is not None:
                out["portrait"] = {**message["portrait"], "path": await path(message["portrait"]["path"])}
        except BaseException:
            self.release(held)
            raise
        return out, held

    def release(self, names: list[str]) -> None:
        """Let go of files of a request."""
        for name in names:
            self._held[name] -= 1
        unheld = [name for name, count in self._held.items() if not count]
        while unheld and sum(self._bytes.values()) > _MOST_BYTES:
            oldest = unheld.pop(0)
            del self._held[oldest]
            self._bytes.pop(oldest, None)
            with suppress(OSError):
                (self._folder / oldest).unlink()


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder by their names."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def deliver(made: Mapping[str, bytes], folder: Path) -> None:
    """Write the files of a job into its empty folder, all or none.

    Raises:
        OutputError: they cannot be written.
    """
    try:
        for name, data in made.items():
            files.write_bytes(folder / Path(name).name, data)
    except BaseException:
        for path in folder.iterdir():
            path.unlink(missing_ok=True)
        raise
