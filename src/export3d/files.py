"""Reading and writing files: inputs are checked, outputs are whole or absent.

Every reader calls `check_input` first, so that the message for a missing file, a folder or an empty file is the same
everywhere. Every writer uses `replacing`, so that an interrupted run leaves no partial output. Code that only asks what
lies at a path uses `kind_at`, since `Path.is_file` and its like raise for long names and locked folders.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from export3d.errors import ConfigError, Export3DError, InputError, OutputError

_STILL_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), "HEIC"),
}
_GENERAL_STILL_BRANDS = (b"mif1", b"msf1", b"miaf")
"""Brands of image files that do not tell the codec; the compatible brands do."""


def check_input(path: str | os.PathLike[str], error: type[Export3DError], kind: str) -> Path:
    """The path of a readable, non-empty regular file; otherwise raises `error`.

    Args:
        path: what the user gave.
        error: class of the failure to raise.
        kind: what is expected there, with its article ("a portrait image").
    """
    path, kind_there = Path(path), kind_at(path, error)
    if kind_there == "folder":
        raise error(f"{path} is a folder, not {kind}; give the path of one file")
    if kind_there is None:
        raise error(f"{path} does not exist; give the path of {kind}")
    if kind_there == "other":
        raise error(f"{path} is not a regular file; copy it to disk and give the path of {kind}")
    with reading(path, error):
        if path.stat().st_size == 0:
            raise error(f"{path} is empty (0 bytes); it was probably not copied to its end, copy it again")
        with path.open("rb"):
            pass
    return path


def kind_at(
    path: str | os.PathLike[str], error: type[Export3DError] = InputError
) -> Literal["file", "folder", "other"] | None:
    """What lies at a path, symbolic links followed: a file, a folder, something else (a pipe, a device), or nothing.

    Raises:
        Export3DError: of class `error`: the system refuses to tell (a name too long, a locked folder, links in a
            circle).
    """
    with reading(path, error):
        try:
            mode = os.stat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"


def home() -> Path:
    """The user's folder: `EXPORT3D_HOME`, by default `export3d` in the system's place for application data.

    It may not exist yet.

    Raises:
        ConfigError: the user's home folder is unknown.
    """
    if chosen := os.environ.get("EXPORT3D_HOME"):
        return chosen_path("EXPORT3D_HOME", chosen, ConfigError)
    try:
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Application Support" / "export3d"
        variable, default = ("LOCALAPPDATA", "AppData/Local") if os.name == "nt" else ("XDG_DATA_HOME", ".local/share")
        named = Path(os.environ.get(variable, ""))
        return (named if named.is_absolute() else Path.home() / default) / "export3d"
    except RuntimeError as error:
        raise ConfigError("there is no home folder; set EXPORT3D_HOME to a folder") from error


def chosen_path(variable: str, text: str, error: type[Export3DError]) -> Path:
    """The path that an environment variable names, `~` replaced; raises `error` where `~NAME` is no user's folder."""
    try:
        return Path(text).expanduser()
    except RuntimeError as problem:
        raise error(f"{variable} is {text}, and there is no such home folder; give a full path") from problem


def paths_in(folder: Path, error: type[Export3DError] = InputError) -> list[Path]:
    """The paths in a folder, sorted by name; raises `error` if it cannot be listed."""
    with reading(folder, error):
        return sorted(folder.iterdir())


@contextmanager
def reading(path: str | os.PathLike[str], error: type[Export3DError] = InputError) -> Iterator[None]:
    """Report an `OSError` or an impossible name (`ValueError`: a NUL character) inside the block as an `error`."""
    try:
        yield
    except (OSError, ValueError) as problem:
        if isinstance(problem, Export3DError):
            raise
        raise error(f"{path} cannot be opened ({reason(problem)}); check its name and permissions") from problem


def sniff(path: Path, size: int = 4096) -> bytes:
    """The first `size` bytes of a file."""
    with path.open("rb") as file:
        return file.read(size)


def still_kind(head: bytes) -> str | None:
    """For a file that begins with `head`: "AVIF" or "HEIC" if it is such an image, else None.

    These share their container with MP4 (ISO/IEC 14496-12): the major brand, and where that is a general one the
    compatible brands, tell images from videos.

    >>> still_kind(bytes([0, 0, 0, 24]) + b"ftypmif1" + bytes(4) + b"mif1avif")
    'AVIF'
    >>> still_kind(bytes([0, 0, 0, 20]) + b"ftypisom" + bytes(4) + b"mp42")
    """
    if head[4:8] != b"ftyp":
        return None
    major, end = head[8:12], int.from_bytes(head[:4], "big")
    if major not in _GENERAL_STILL_BRANDS:
        return _STILL_BRANDS.get(major)
    compatible = (head[at : at + 4] for at in range(16, min(end, len(head)), 4))
    return next((_STILL_BRANDS[brand] for brand in compatible if brand in _STILL_BRANDS), "HEIC")


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
    if (still := still_kind(head)) is not None:
        return "an AVIF image" if still == "AVIF" else "a HEIC image"
    if head[4:8] == b"ftyp" or head[:4] == b"\x1a\x45\xdf\xa3" or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        return "a video"
    if head[:3] == b"\xff\xd8\xff" or head[:8] == b"\x89PNG\r\n\x1a\n":
        return "an image"
    return None


def output_file(path: str | os.PathLike[str]) -> tuple[Path, int]:
    """Where a new file at `path` goes, symbolic links followed, and its permissions: those of the file it replaces.

    Raises:
        OutputError: a folder, a pipe or a device is there, the file is write-protected, or its folder is missing.
    """
    path = Path(path)
    try:
        target = Path(os.path.realpath(path))
        try:
            mode = target.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            if not target.parent.is_dir():
                raise OutputError(f"cannot write {path}: there is no folder {target.parent}; create it first") from None
            return target, 0o666 & ~_umask()
        if stat.S_ISDIR(mode):
            raise OutputError(f"cannot write {path}: it is a folder; add a file name")
        if not stat.S_ISREG(mode):
            raise OutputError(f"cannot write {path}: it is a pipe or a device; give the name of a file")
        if not os.access(target, os.W_OK):
            raise OutputError(f"cannot write {path}: the file there is write-protected; choose another name")
    except (OSError, ValueError) as problem:
        raise write_failure(path, problem) from problem
    return target, stat.S_IMODE(mode)


@contextmanager
def replacing(path: str | os.PathLike[str], mode: int | None = None) -> Iterator[Path]:
    """A temporary path beside `path`, renamed onto it when the block ends, removed when the block fails.

    The name starts with a dot and keeps the suffix (encoders choose the container by it). Data are flushed to the disk
    before the rename, so `path` holds either what it held before or the whole new file. Where `path` is a symbolic
    link, the file it points to is replaced. A file that is replaced passes on its permissions, unless `mode` names
    others.

    Raises:
        OutputError: see `output_file`; or the folder is not writable or the disk is full. An `OSError` inside the block
            is reported the same way.
    """
    target, usual = output_file(path)
    mode = usual if mode is None else mode
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.stem[:40]}.", suffix=target.suffix, dir=target.parent)
    except OSError as problem:
        raise write_failure(Path(path), problem) from problem
    temporary = Path(name)
    try:
        os.close(handle)
        yield temporary
        _put(temporary, target, mode)
    except OSError as problem:
        raise write_failure(Path(path), problem) from problem
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def deliver(made: Path, path: str | os.PathLike[str]) -> None:
    """Rename a whole file onto `path`; links and permissions as in `replacing`.

    Nothing else ever lies beside `path`, even if the process is killed, unless it is on another file system: the file
    is then copied beside it first. The data are flushed before the rename.

    Raises:
        OutputError: as `replacing`.
    """
    try:
        _put(made, *output_file(path))
    except OSError as problem:
        if problem.errno != errno.EXDEV:
            raise write_failure(Path(path), problem) from problem
        with replacing(path) as temporary:
            shutil.copyfile(made, temporary)


def _put(made: Path, target: Path, mode: int) -> None:
    with made.open("rb+") as file:
        os.fsync(file.fileno())
    made.chmod(mode)
    made.replace(target)
    sync_folder(target.parent)


def check_folder(path: str | os.PathLike[str]) -> Path:
    """Refuse a folder for outputs, which may not exist yet, that cannot be one; raises `OutputError`."""
    path = Path(path)
    if re.match(r"[a-z][a-z0-9+.-]+:[/\\]", os.fspath(path)):  # a path has lost one slash
        raise OutputError(f"{path} is the address of a store, and this output lies on disk; give a folder")
    if kind_at(path, OutputError) not in (None, "folder"):
        raise OutputError(f"cannot create the folder {path}: a file has this name; choose another one")
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as problem:  # safetensors takes text only
        raise OutputError(f"cannot write to {path}: its name is not UTF-8; choose another folder") from problem
    return path


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Create a folder for outputs, with its parents; raises `OutputError` where that is impossible."""
    path = check_folder(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise OutputError(f"cannot create the folder {path}: {reason(problem)}; choose another one") from problem
    return path


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a whole file or nothing; raises `OutputError` like `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def locked(path: str | os.PathLike[str], timeout_s: float = 60.0) -> Iterator[None]:
    """Keep other processes and threads that lock the same path out of the block; waits until it is free.

    The lock is on a file beside `path`, `.NAME.lock`, which stays there; symbolic links are followed first, as in
    `replacing`. The system frees it when a process ends, however that happens. A process that is stopped keeps it.

    Raises:
        OutputError: the folder is missing or not writable, or the lock is not free after `timeout_s`.
    """
    target = Path(os.path.realpath(path))
    lock = target.with_name(f".{target.name}.lock")
    with writing_to(lock):
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        end = time.monotonic() + timeout_s
        while not _locks(handle, lock):
            if time.monotonic() >= end:
                raise OutputError(
                    f"cannot write {path}: another program has kept it locked for {timeout_s:g} s; end that program, "
                    "which may be stopped, and try again"
                )
            time.sleep(0.01)
        yield
    finally:
        os.close(handle)


def _locks(handle: int, lock: Path) -> bool:
    """Whether an open file could be locked; closing it frees it."""
    with writing_to(lock), suppress(PermissionError if sys.platform == "win32" else BlockingIOError):  # another has it
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


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
    """The operating system's words for a failure, without numbers and paths; otherwise at most 120 of its own."""
    if isinstance(problem, OSError) and problem.errno:
        return os.strerror(problem.errno).lower()
    text = str(problem).strip().partition("\n")[0] or type(problem).__name__
    return text if len(text) <= 120 else f"{text[:120]}…"


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current
