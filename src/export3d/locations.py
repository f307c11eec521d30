"""Locations of prepared data: a folder, or the URL of one, read through fsspec (http, https, s3, memory, …).

A folder is a `Path`; a URL stays a string, since a path would drop one of its slashes. Directories are never listed:
the index of a split names its shards, so any server that serves files is enough.
"""

from __future__ import annotations

import hashlib
import logging
import time
from pathlib import Path
from typing import Any

from export3d.errors import InputError, MissingExtra
from export3d.files import reason

log = logging.getLogger(__name__)

Place = Path | str
"""A folder or file on disk (`Path`), or its URL (`str`)."""

_WAITS_S = (0.5, 1.0, 2.0, 4.0)
_PASSING_STATUS = (408, 425, 429)
_PACKAGES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "s3a": "s3fs"}


def as_place(given: Path | str) -> Place:
    """A URL unchanged, anything else as a `Path`.

    >>> as_place("https://host/data"), as_place("data").name
    ('https://host/data', 'data')
    """
    return given if isinstance(given, str) and "://" in given else Path(given)


def inside(folder: Place, name: str) -> Place:
    """The file or folder `name` in a folder."""
    return f"{folder.rstrip('/')}/{name}" if isinstance(folder, str) else folder / name


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
    for wait_s in (*_WAITS_S, None):
        try:
            data = _get(url)
        except FileNotFoundError:
            return None
        except (InputError, MissingExtra):
            raise
        except Exception as error:  # every protocol raises its own exceptions
            problem = f"{url} cannot be read ({reason(error)}); check the address, your access and the connection"
            passing = _passes(error)
        else:
            problem = _difference(url, data, size, sha256)
            passing = True
            if not problem:
                return data
        if wait_s is None or not passing:
            break
        log.warning("%s; trying again in %g s", problem.partition(";")[0], wait_s)
        time.sleep(wait_s)
    raise InputError(problem)


def _get(url: str) -> bytes:
    import fsspec

    scheme = url.partition("://")[0]
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        if scheme in _PACKAGES:
            raise MissingExtra("remote", _PACKAGES[scheme]) from error
        raise MissingExtra("remote", f"the package that reads {scheme}://", str(error)) from error
    except ValueError as error:
        known = "give a folder, or a URL that starts with http://, https:// or s3://"
        raise InputError(f"{url} cannot be read: {scheme}:// is not a known protocol; {known}") from error
    data: bytes = system.cat_file(path)
    return data


def _passes(error: Any) -> bool:
    """Whether another attempt may help."""
    status = getattr(error, "status", 500)
    refused = isinstance(status, int) and 400 <= status < 500 and status not in _PASSING_STATUS
    return not refused and not isinstance(error, PermissionError)


def _difference(url: str, data: bytes, size: int | None, sha256: str | None) -> str:
    """How a downloaded file differs from the expected one; empty if it does not."""
    if size is not None and len(data) != size:
        return f"{url} has {len(data)} bytes instead of {size}; copy the prepared folder there again"
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        return f"{url} does not match its checksum; copy the prepared folder there again"
    return ""
