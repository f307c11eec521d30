"""Reading and writing files: inputs are checked, outputs are whole or absent.

Every reader calls `check_input` first, so that the message for a missing file, a folder or an empty file is the same
everywhere. Every writer uses `replacing`, so that an interrupted run leaves no partial output.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from export3d.errors import InputError, OutputError


def check_input(path: str | os.PathLike[str], error: type[InputError], kind: str) -> Path:
    """The path of a readable, non-empty regular file; otherwise raises `error`.

    Args:
        path: what the user gave.
        error: class of the failure to raise.
        kind: what is expected there, with its article ("a portrait image").
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise error(f"{path} is a folder, not {kind}; give the path of one file")
        if not path.exists():
            raise error(f"{path} does not exist; give the path of {kind}")
        if not path.is_file():
            raise error(f"{path} is not a regular file; copy it to disk and give the path of {kind}")
        if path.stat().st_size == 0:
            raise error(f"{path} is empty (0 bytes); it was probably not copied to its end, copy it again")
        with path.open("rb"):
            pass
    except (OSError, ValueError) as problem:  # ValueError: a NUL character in the name
        raise error(f"{path} cannot be opened ({reason(problem)}); check its name and permissions") from problem
    return path


def sniff(path: Path, size: int = 4096) -> bytes:
    """The first `size` bytes of a file."""
    with path.open("rb") as file:
        return file.read(size)


def foreign_kind(head: bytes) -> str | None:
    """What a file that begins with `head` is, when it is one of the kinds people mistake for ours; else None.

    Only looks: nothing is ever unpickled or unpacked.

    >>> foreign_kind(bytes([128, 4, 149]))
    'a Python pickle, which is never loaded because it can run code'
    """
    if head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return "a Python pickle, which is never loaded because it can run code"
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "a zip archive (.npz, .pt and .pth files are zip archives, and a .pt can run code)"
    if head[:6] == b"\x93NUMPY":
        return "a bare NumPy array"
    if head[:8] == b"\x89HDF\r\n\x1a\n" or head[:4] == b"\x89HDF":
        return "an HDF5 file"
    if head[:19] == b"MATLAB 5.0 MAT-file":
        return "a MATLAB file"
    if head[4:8] == b"ftyp" or head[:4] == b"\x1a\x45\xdf\xa3" or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        return "a video"
    if head[:3] == b"\xff\xd8\xff" or head[:8] == b"\x89PNG\r\n\x1a\n":
        return "an image"
    return None


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path`, renamed onto it when the block ends, removed when the block fails.

    The name starts with a dot and keeps the suffix (encoders choose the container by it). Data are flushed to the disk
    before the rename, so `path` holds either what it held before or the whole new file.

    Raises:
        OutputError: the folder is missing or not writable, the target is a folder, or the disk is full. An `OSError`
            inside the block is reported the same way.
    """
    target = Path(path)
    try:
        if target.is_dir():
            raise OutputError(f"cannot write {target}: it is a folder; add a file name")
        if not target.parent.is_dir():
            raise OutputError(f"cannot write {target}: its folder {target.parent} does not exist; create it first")
        handle, name = tempfile.mkstemp(prefix=f".{target.stem[:40]}.", suffix=target.suffix, dir=target.parent)
    except (OSError, ValueError) as problem:
        raise write_failure(target, problem) from problem
    temporary = Path(name)
    try:
        os.close(handle)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
        sync_folder(target.parent)
    except OSError as problem:
        raise write_failure(target, problem) from problem
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a whole file or nothing; raises `OutputError` like `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Report an `OSError` inside the block as an `OutputError` that names `path`."""
    try:
        yield
    except OSError as problem:
        raise write_failure(path, problem) from problem


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut, where the system can (not on Windows)."""
    if hasattr(os, "O_DIRECTORY"):
        with suppress(OSError):
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def write_failure(path: Path, problem: BaseException) -> OutputError:
    """The sentence for a file that could not be written."""
    code = problem.errno if isinstance(problem, OSError) else None
    remedy = {
        errno.ENOSPC: "free some space or choose another folder",
        errno.EDQUOT: "free some space or choose another folder",
        errno.EFBIG: "the file system does not allow files of this size; choose another folder",
        errno.EROFS: "choose a folder that is not read-only",
        errno.ENAMETOOLONG: "choose a shorter name",
    }.get(code or 0, "check that the folder exists and that you may write there")
    return OutputError(f"cannot write {path}: {reason(problem)}; {remedy}")


def reason(problem: BaseException) -> str:
    """The operating system's words for a failure, without numbers and paths."""
    if isinstance(problem, OSError) and problem.errno:
        return os.strerror(problem.errno).lower()
    return str(problem).splitlines()[0] if str(problem) else type(problem).__name__


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current
