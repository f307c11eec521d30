"""What a process that decodes a stranger's file may use: memory, time, files, and no network.

`limit` sets the limits of the system (setrlimit) and lets the process end with its parent. `confine` uses Landlock
(Linux 5.13 and later, https://docs.kernel.org/userspace-api/landlock.html): the process may read the packages it runs
from and its input, write to one folder, start no program, and from Linux 6.7 on open no TCP connection. Where an
ordinary user may have a network namespace, its own is empty. All this holds for the rest of the process's life. Where
the system lacks a part, that part is left out: `confine` says whether files are out of reach.
"""

from __future__ import annotations

import ctypes
import os
import signal
import stat
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
"""Numbers of the system calls, the same on all processors but alpha."""
_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_FILE, _MAKE_REG = 1, 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 8
_TRUNCATE = 1 << 14
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
"""Version of Landlock to all the rights on files that it knows."""
_TCP, _TCP_SINCE = 0b11, 4
_SCOPES, _SCOPES_SINCE = 0b11, 6
"""Abstract Unix sockets and signals of processes outside."""
_READ = _READ_FILE | _READ_DIR
_WRITE = _READ | _WRITE_FILE | _TRUNCATE | _REMOVE_FILE | _MAKE_REG
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
SYSTEM = (
    *("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/etc/ssl/openssl.cnf"),
    *("/dev/null", "/dev/zero", "/dev/urandom", "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat"),
    *("/proc/sys/vm/overcommit_memory", "/sys/devices/system/cpu"),
)
"""What Python and the native libraries read; the same on every machine, and nobody's own."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one process may use.

    Attributes:
        memory: bytes of writable memory.
        seconds: processor time.
        wall_s: time from the start.
        file: bytes of the largest file that it writes.
        files: files open at a time.
        processors: of the machine's, for threads.
    """

    memory: int
    seconds: int
    wall_s: int
    file: int
    files: int = 128
    processors: int = 4


def limit(limits: Limits, parent: int) -> None:
    """Set limits for this process; it is killed when it reaches one of time, or when `parent`, its process id, ends."""
    if hasattr(signal, "alarm"):
        signal.alarm(limits.wall_s)  # for a parent that was killed, where the system has nothing better
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        usable = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, (usable * 2)[os.getpid() % len(usable) :][: limits.processors])
    with suppress(ImportError):
        import resource

        for kind, value in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_CPU, limits.seconds),
            (resource.RLIMIT_FSIZE, limits.file),
            (resource.RLIMIT_NOFILE, limits.files),
            (resource.RLIMIT_DATA, limits.memory),
        ):
            with suppress(OSError, ValueError):  # the system has no such limit, or a stricter one
                resource.setrlimit(kind, (value, value))


def confine(readable: Iterable[Path], folder: Path) -> bool:
    """Restrict this process to reading `readable` (files and folders) and the system's libraries, and to `folder`.

    Returns whether the system did so; False where it has no Landlock.
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    libc.unshare(_NEW_USER | _NEW_NETWORK)
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    if version < 1:
        return False
    rights = _FILE_RIGHTS[max(known for known in _FILE_RIGHTS if known <= version)]
    attributes = (ctypes.c_uint64 * 3)(
        rights, _TCP if version >= _TCP_SINCE else 0, _SCOPES if version >= _SCOPES_SINCE else 0
    )
    size = 24 if version >= _SCOPES_SINCE else 16 if version >= _TCP_SINCE else 8
    rules = libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(size), ctypes.c_uint32(0))
    if rules < 0:
        return False
    try:
        for path in (*map(Path, SYSTEM), *readable):
            _allow(libc, rules, path, _READ & rights)
        _allow(libc, rules, Path("/dev/null"), _WRITE & rights)
        _allow(libc, rules, folder, _WRITE & rights)
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            return False
        return bool(libc.syscall(_RESTRICT_SELF, ctypes.c_int(rules), ctypes.c_uint32(0)) == 0)
    finally:
        os.close(rules)


class _Beneath(ctypes.Structure):
    """struct landlock_path_beneath_attr"""

    _pack_ = 1
    _fields_ = (("rights", ctypes.c_uint64), ("parent", ctypes.c_int32))


def _allow(libc: ctypes.CDLL, rules: int, path: Path, rights: int) -> None:
    """Add a rule for a file, or a folder and all that is in it; nothing where the path does not exist."""
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(handle).st_mode):
            rights &= _OF_FILES
        rule = _Beneath(rights, handle)
        libc.syscall(
            _ADD_RULE, ctypes.c_int(rules), ctypes.c_int(_PATH_BENEATH), ctypes.byref(rule), ctypes.c_uint32(0)
        )
    finally:
        os.close(handle)
