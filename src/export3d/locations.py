"""Locations of inputs and outputs: a folder or file, or its URL, through fsspec (http, https, s3, memory, …).

A local one is a `Path`; a URL stays a string, since a path would drop one of its slashes. Prepared splits are read
without listing a folder: the index names the shards, so any server that serves files is enough. Web servers are only
read. A store such as S3 holds a file whole or not at all, and so does `write` on disk.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar
from urllib.parse import unquote, urlsplit

from export3d.errors import Export3DError, InputError, MissingExtra, OutputError
from export3d.files import kind_at, make_folder, reading, reason, replacing, write_bytes, writing_to

log = logging.getLogger(__name__)

Place = Path | str
"""A folder or file on disk (`Path`), or its URL (`str`)."""

_WAITS_S = (0.5, 1.0, 2.0, 4.0)
_PASSING_STATUS = (408, 425, 429)
_NO_CREDENTIALS = "NoCredentialsError"
"""Of botocore, which is only there with S3."""
_WEB = ("http", "https")
_PACKAGES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "s3a": "s3fs"}


def as_place(given: Path | str) -> Place:
    """A URL unchanged, anything else as a `Path`, and so is a URL of this machine's files.

    >>> as_place("https://host/data"), as_place("data").name, as_place("file:///data").name
    ('https://host/data', 'data', 'data')
    """
    if isinstance(given, str) and given.startswith("file://"):
        return Path(given.removeprefix("file://"))
    return given if isinstance(given, str) and "://" in given else Path(given)


def inside(folder: Place, name: str) -> Place:
    """The file or folder `name` in a folder."""
    return f"{folder.rstrip('/')}/{name}" if isinstance(folder, str) else folder / name


def name_of(place: Place) -> str:
    """The last part of a path or of the path in a URL.

    >>> name_of("https://host/clips/a%20b.mp4?key=1"), name_of("s3://bucket/clips/"), name_of("https://host/..%2Fa")
    ('a b.mp4', 'clips', 'a')
    """
    if isinstance(place, Path):
        return place.name
    path = urlsplit(place).path if _scheme(place) in _WEB else place.partition("://")[2]
    name = PurePosixPath(path).name
    name = PurePosixPath(unquote(name)).name if _scheme(place) in _WEB else name
    return "" if name == ".." else name


def fetch(url: str, size: int | None = None, sha256: str | None = None) -> bytes | None:
    """Download a whole file. Transient failures (lost connection, cut transfer, busy server) get up to five attempts.

    Args:
        url: address of the file.
        size, sha256: expected size in bytes and checksum, if known.

    Returns:
        The bytes of the file; None if it does not exist.

    Raises:
        InputError: the file cannot be read, or is not the expected one.
        MissingExtra: no installed package reads such URLs.
    """

    def get(system: Any, path: str) -> bytes:
        data: bytes = system.cat_file(path)
        if problem := _difference(url, data, size, sha256):
            raise _Unlike(problem)
        return data

    with suppress(FileNotFoundError):
        return _persist(url, get)
    return None


def read(place: Place) -> bytes | None:
    """The bytes of a file; None if it does not exist.

    Raises:
        InputError, MissingExtra: see `fetch`.
    """
    if isinstance(place, str):
        return fetch(place)
    kind = kind_at(place)
    if kind is None:
        return None
    if kind == "other":  # a pipe would be waited for
        raise InputError(f"{place} is not a regular file; remove it, or choose another place")
    with reading(place):
        return place.read_bytes()


def read_part(place: Place, start: int, size: int) -> bytes:
    """`size` bytes of a file from `start` on; fewer where it ends.

    Raises:
        InputError: the file does not exist or cannot be read.
    """
    if isinstance(place, Path):
        with reading(place), place.open("rb") as file:
            file.seek(start)
            return file.read(size)

    def get(system: Any, path: str) -> bytes:
        data: bytes = system.cat_file(path, start=start, end=start + size)
        return data if len(data) <= size else data[start : start + size]  # a server that knows no ranges

    try:
        return _persist(place, get) if size else b""
    except FileNotFoundError as error:
        raise _absent(place) from error


def file_size(place: Place) -> int:
    """The size of a file in bytes.

    Raises:
        InputError: the file does not exist or cannot be read.
    """
    if isinstance(place, Path):
        with reading(place):
            return place.stat().st_size
    size = (_info(place) or {}).get("size")
    if size is None:  # a web server that does not tell
        data = fetch(place)
        if data is None:
            raise _absent(place)
        size = len(data)
    return int(size)


def kind_of(place: Place) -> Literal["file", "folder", "other"] | None:
    """What lies at a path (`files.kind_at`) or URL; None if there is nothing. A web server has files only.

    Raises:
        InputError, MissingExtra: see `fetch`.
    """
    if isinstance(place, Path):
        return kind_at(place)
    info = _info(place)
    return None if info is None else "folder" if info["type"] == "directory" else "file"


def exists(place: Place) -> bool:
    """Whether there is a file or a folder; raises like `kind_of`."""
    return kind_of(place) is not None


def names(folder: Place, depth: int = 1) -> list[str]:
    """Names of the files in a folder, sorted; with `depth`, also "SUB/NAME" of those in its subfolders, and so on.

    Returns:
        An empty list if there is no such folder.

    Raises:
        InputError: the folder cannot be listed; web servers list none.
        MissingExtra: see `fetch`.
    """
    if isinstance(folder, str):
        return list(sizes(folder, depth))
    levels = ("*/" * level + "*" for level in range(depth))
    with reading(folder):
        found = [path for level in levels for path in folder.glob(level) if kind_at(path) == "file"]
    return sorted(path.relative_to(folder).as_posix() for path in found)


def sizes(folder: Place, depth: int = 1) -> dict[str, int]:
    """The size in bytes of each file that `names` lists, in its order; at a URL, one listing tells them."""
    if isinstance(folder, Path):
        return {name: file_size(folder / name) for name in names(folder, depth)}
    if _scheme(folder) in _WEB:
        raise InputError(f"{folder} cannot be listed, since a web server lists no folders; give files, or a manifest")

    def find(system: Any, path: str) -> dict[str, int]:
        root = path.rstrip("/") + "/"
        system.invalidate_cache()  # other processes write too
        return {
            file.removeprefix(root): info.get("size") or 0
            for file, info in sorted(system.find(path, maxdepth=depth, detail=True).items())
            if file.startswith(root) and not file.endswith("/")
        }

    try:
        return _persist(folder, find)
    except FileNotFoundError:
        return {}


def write(place: Place, data: bytes) -> None:
    """Write a whole file or nothing, and the folders above it. Transient failures get up to five attempts.

    Raises:
        OutputError: the file cannot be written.
        MissingExtra: no installed package writes to such URLs.
    """
    if isinstance(place, Path):
        make_folder(place.parent)
        write_bytes(place, data)
    else:
        _put(place, lambda system, path: system.pipe_file(path, data))


def upload(path: Path, place: Place) -> None:
    """Copy a local file, however large, to a place; raises like `write`."""
    if isinstance(place, Path):
        make_folder(place.parent)
        with replacing(place) as temporary:
            shutil.copyfile(path, temporary)
    else:
        _put(place, lambda system, target: system.put_file(str(path), target))


def make_place(folder: Place) -> Place:
    """Create a folder for outputs; at a URL, where folders need not exist, make sure that files can be written.

    Raises:
        OutputError, MissingExtra: see `write`.
    """
    if isinstance(folder, Path):
        return make_folder(folder)
    probe = inside(folder, ".export3d-probe")
    write(probe, b"")
    remove(probe)
    return folder.rstrip("/")


def remove(place: Place) -> None:
    """Remove a file, or a folder with everything in it; nothing happens if there is none.

    Raises:
        OutputError: it cannot be removed.
    """
    if isinstance(place, Path):
        with writing_to(place):
            if kind_at(place) == "folder" and not place.is_symlink():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)
    elif (kind := kind_of(place)) is not None:
        with suppress(FileNotFoundError):
            _put(place, lambda system, path: system.rm(path, recursive=kind == "folder"))


@contextmanager
def local_copy(place: Place) -> Iterator[Path]:
    """The path of a local file; that of a URL is downloaded, and removed when the block ends.

    The copy keeps the file's name. Errors that the block raises name the URL instead of the copy.

    Raises:
        InputError: a URL's file does not exist or cannot be read.
        MissingExtra: no installed package reads such URLs.
    """
    if isinstance(place, Path):
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="export3d-") as folder:
        copy = Path(folder, name_of(place) or "file")
        try:
            _persist(place, lambda system, path: system.get_file(path, str(copy)))
        except FileNotFoundError as error:
            raise _absent(place) from error
        try:
            yield copy
        except Export3DError as error:
            error.args = tuple(str(part).replace(str(copy), place) for part in error.args)
            raise


_T = TypeVar("_T")


class _Unlike(Exception):
    """A download differs from what was expected; the message is a sentence."""


def _persist(
    url: str, act: Callable[[Any, str], _T], kind: type[Export3DError] = InputError, failed: str = "cannot be read"
) -> _T:
    """The result of `act(file system, path)`, tried up to five times; a `FileNotFoundError` is passed on."""
    for wait_s in (*_WAITS_S, None):
        try:
            return act(*_system(url))
        except (FileNotFoundError, Export3DError):
            raise
        except _Unlike as error:
            sentence, passing, cause = str(error), True, None
        except Exception as error:  # every protocol raises its own exceptions
            sentence = f"{url} {failed} ({reason(error)}); check the address, your access and the connection"
            passing, cause = _passes(error), error
        if wait_s is None or not passing:
            raise kind(sentence) from cause
        log.warning("%s; trying again in %g s", sentence.partition(";")[0], wait_s)
        time.sleep(wait_s)
    raise AssertionError("the last attempt returns or raises")


def _put(url: str, act: Callable[[Any, str], Any]) -> None:
    if _scheme(url) in _WEB:
        raise OutputError(f"{url} cannot be written, since web servers are only read; give a folder or an s3:// URL")
    try:
        _persist(url, act, OutputError, "cannot be written")
    except FileNotFoundError as error:
        raise OutputError(f"{url} cannot be written: {reason(error)}; create the bucket first") from error


def _info(url: str) -> dict[str, Any] | None:
    def look(system: Any, path: str) -> dict[str, Any]:
        system.invalidate_cache()  # other processes write too
        found: dict[str, Any] = system.info(path)
        return found

    with suppress(FileNotFoundError):
        return _persist(url, look)
    return None


def _absent(url: str) -> InputError:
    return InputError(f"{url} does not exist; check the address")


def _scheme(url: str) -> str:
    return url.partition("://")[0]


def _system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    import fsspec

    scheme = _scheme(url)
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        if scheme in _PACKAGES:
            raise MissingExtra("remote", _PACKAGES[scheme]) from error
        raise MissingExtra("remote", f"the package that reads {scheme}://", str(error)) from error
    except ValueError as error:
        known = "give a folder, or a URL that starts with http://, https:// or s3://"
        raise InputError(f"{url} cannot be read: {scheme}:// is not a known protocol; {known}") from error
    return system, path


def _passes(error: Any) -> bool:
    """Whether another attempt may help."""
    status = getattr(error, "status", 500)
    refused = isinstance(status, int) and 400 <= status < 500 and status not in _PASSING_STATUS
    final = isinstance(error, PermissionError | ValueError)  # the latter: an address that is none
    return not refused and not final and type(error).__name__ != _NO_CREDENTIALS


def _difference(url: str, data: bytes, size: int | None, sha256: str | None) -> str:
    """How a downloaded file differs from the expected one; empty if it does not."""
    if size is not None and len(data) != size:
        return f"{url} has {len(data)} bytes instead of {size}; copy the prepared folder there again"
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        return f"{url} does not match its checksum; copy the prepared folder there again"
    return ""
