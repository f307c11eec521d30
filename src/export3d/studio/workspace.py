"""The folder of a running studio: uploads and results, under random names, within a quota, gone when it ends.

The folder is locked while its server lives. The system releases the lock of a killed server, so the next one knows
which folders are left over and removes them. Names of users are never part of a path.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from export3d.errors import OutputError
from export3d.files import make_folder, write_failure
from export3d.studio.refusals import FULL_DISK, Refused

PREFIX = "export3d-studio-"
QUOTA = 4_000_000_000
"""Bytes of all uploads and results; the oldest unused ones are removed for new ones."""
KEPT_S = 3600.0
"""How long something that nobody uses is kept, seconds."""
SPARE = 300_000_000
"""Bytes of the disk that stay free."""


@dataclass(eq=False)
class Entry:
    """One upload or job and its folder.

    Attributes:
        id: 32 hexadecimal digits, from the system's random numbers.
        folder: its own.
        used: when it was last asked for (`time.monotonic`).
        holders: how many jobs and requests need it now.
        expected: bytes that it will have when all of it has come.
    """

    id: str
    folder: Path
    used: float = field(default_factory=time.monotonic)
    holders: int = 0
    expected: int = 0

    @property
    def bytes(self) -> int:
        """Size of its files, those that are still coming included."""
        return max(self.size, self.expected)

    @property
    def size(self) -> int:
        """Size of its files now."""
        total = 0
        for folder, _, names in os.walk(self.folder):
            for name in names:
                with suppress(OSError):
                    total += os.lstat(os.path.join(folder, name)).st_size
        return total


class Workspace:
    """The folder and what is in it.

    Args:
        parent: where the folder is made; by default the system's place for temporary files.
        quota: bytes.
        kept_s: seconds.

    Raises:
        OutputError: the folder cannot be made.
    """

    def __init__(self, parent: Path | None = None, quota: int = QUOTA, kept_s: float = KEPT_S) -> None:
        self.quota, self.kept_s = quota, kept_s
        parent = make_folder(tempfile.gettempdir() if parent is None else parent).absolute()  # children work elsewhere
        sweep(parent)
        self._entries: dict[str, Entry] = {}
        self.folder, self._lock = _locked_folder(parent)
        self.spool = self.folder / "spool"
        """For files without a name yet."""
        self.spool.mkdir()
        atexit.register(self.close)  # where Ctrl-C comes before the server runs

    def new(self, expected: int = 0) -> Entry:
        """A new entry with an empty folder.

        Args:
            expected: bytes that will come; room is made for them.

        Raises:
            Refused: the quota or the disk is full (507).
        """
        self.make_room(expected)
        name = secrets.token_hex(16)
        entry = Entry(name, self.folder / name, expected=expected)
        try:
            entry.folder.mkdir(mode=0o700)
        except OSError as problem:
            raise write_failure(entry.folder, problem) from problem
        self._entries[name] = entry
        return entry

    def entry(self, name: str) -> Entry | None:
        """The entry of an id, which counts as used now; None if there is none."""
        found = self._entries.get(name)
        if found is not None:
            found.used = time.monotonic()
        return found

    def has(self, name: str) -> bool:
        """Whether there is an entry of this id; it does not count as used."""
        return name in self._entries

    @contextmanager
    def holding(self, *names: str) -> Iterator[None]:
        """Keep entries for the duration of the block, whatever else is removed."""
        held = [entry for name in names if (entry := self.entry(name)) is not None]
        for entry in held:
            entry.holders += 1
        try:
            yield
        finally:
            for entry in held:
                entry.holders -= 1
                entry.used = time.monotonic()

    def remove(self, name: str) -> None:
        """Remove an entry and its files; one that is not there is no error."""
        entry = self._entries.pop(name, None)
        if entry is not None:
            shutil.rmtree(entry.folder, ignore_errors=True)

    def make_room(self, expected: int = 0) -> None:
        """Remove what has expired, then the oldest unused entries, until so many bytes fit.

        Raises:
            Refused: they do not fit (507).
        """
        self.expire()
        unused = sorted((one for one in self._entries.values() if not one.holders), key=lambda one: one.used)
        total = self.bytes
        while total + expected > self.quota and unused:
            oldest = unused.pop(0)
            total -= oldest.bytes
            self.remove(oldest.id)
        try:
            free = shutil.disk_usage(self.folder).free
        except OSError as problem:
            raise write_failure(self.folder, problem) from problem
        promised = self.bytes - sum(entry.size for entry in self._entries.values())
        if total + expected > self.quota or free - promised - expected < SPARE:
            raise Refused(507, FULL_DISK)

    def expire(self) -> None:
        """Remove what nobody has used for `kept_s`."""
        now = time.monotonic()
        for entry in [one for one in self._entries.values() if not one.holders and now - one.used > self.kept_s]:
            self.remove(entry.id)

    @property
    def bytes(self) -> int:
        """Size of all entries."""
        return sum(entry.bytes for entry in self._entries.values())

    def close(self) -> None:
        """Remove the folder."""
        atexit.unregister(self.close)
        self._entries.clear()
        if self._lock >= 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def sweep(parent: Path) -> list[Path]:
    """Remove folders of servers that were killed; returns them. Those of living servers are locked and stay."""
    removed = []
    for path in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(lock).st_uid != os.getuid():
                    continue
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
                removed.append(path)
            finally:
                os.close(lock)
    return removed


def _locked_folder(parent: Path) -> tuple[Path, int]:
    """A new folder and the descriptor that holds its lock; a sweep may take a folder before it is locked."""
    for _ in range(100):
        try:
            path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        except OSError as problem:
            raise OutputError(f"cannot work in {parent}: {problem.strerror}; choose another --folder") from problem
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.stat(path), os.fstat(lock)):
                return path, lock
        os.close(lock)
    raise OutputError(f"cannot work in {parent}: new folders disappear; choose another --folder")
