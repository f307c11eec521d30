"""Files and folders by path or URL: the same answers from disk, from fsspec's memory and from a real S3 server."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from export3d import locations
from export3d.errors import InputError, OutputError
from export3d.locations import (
    Place,
    as_place,
    exists,
    file_size,
    inside,
    kind_of,
    local_copy,
    make_place,
    name_of,
    names,
    read,
    read_part,
    remove,
    sizes,
    upload,
    write,
)
from tests.file_server import serving
from tests.s3_server import s3_server


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server("bucket") as address:
        yield address


@pytest.fixture(params=["disk", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty folder, under a name of its own."""
    if request.param == "disk":
        return tmp_path / "data"
    if request.param == "s3":
        request.getfixturevalue("s3")
        return f"s3://bucket/{tmp_path.name}"
    return f"memory://{tmp_path.name}"


def test_what_is_written_is_read_and_listed(folder: Place) -> None:
    place = inside(folder, "a b.bin")
    assert read(place) is None
    assert not exists(place)
    assert names(folder, 3) == []
    write(place, b"0123456789")
    write(inside(folder, "sub/deep/c.bin"), b"")
    assert read(place) == b"0123456789"
    assert (read_part(place, 3, 4), read_part(place, 8, 9), read_part(place, 0, 0)) == (b"3456", b"89", b"")
    assert (file_size(place), name_of(place)) == (10, "a b.bin")
    assert [kind_of(at) for at in (folder, place, inside(folder, "none"))] == ["folder", "file", None]
    assert names(folder) == ["a b.bin"]
    assert names(folder, 3) == ["a b.bin", "sub/deep/c.bin"]
    assert sizes(folder, 3) == {name: file_size(inside(folder, name)) for name in names(folder, 3)}
    write(place, b"anew")
    assert read(place) == b"anew"


def test_files_and_folders_are_removed(folder: Place) -> None:
    for name in ("a", "sub/b", "sub/c", "subway"):
        write(inside(folder, name), b"x")
    remove(inside(folder, "a"))
    remove(inside(folder, "sub"))
    remove(inside(folder, "none"))
    assert names(folder, 2) == ["subway"]


def test_large_files_travel_through_the_disk(folder: Place, tmp_path: Path) -> None:
    given, place = tmp_path / "given.mp4", inside(folder, "clip.mp4")
    given.write_bytes(bytes(range(256)) * 4096)
    upload(given, place)
    with local_copy(place) as copy:
        assert copy.name == "clip.mp4"
        assert copy.read_bytes() == given.read_bytes()
        assert (copy == place) is isinstance(place, Path)
    assert copy.exists() is isinstance(place, Path)


def test_an_output_folder_can_be_written_and_stays_empty(folder: Place) -> None:
    assert make_place(folder) == folder
    assert names(folder, 2) == []


def test_errors_about_a_copy_name_the_url(tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}/clip.mp4"
    with pytest.raises(InputError, match=f"{url} does not exist; check the address"), local_copy(url):
        pass
    write(url, b"x")
    with pytest.raises(InputError, match=f"^{url} is no video$"), local_copy(url) as copy:
        raise InputError(f"{copy} is no video")


def test_a_url_of_this_machine_is_a_path(tmp_path: Path) -> None:
    assert as_place(f"file://{tmp_path}") == tmp_path


def test_web_servers_are_read_only(tmp_path: Path) -> None:
    (tmp_path / "a b.bin").write_bytes(b"0123456789")
    with serving(tmp_path) as server:
        url = f"{server.address}/a%20b.bin"
        assert (read(url), file_size(url), read_part(url, 3, 4)) == (b"0123456789", 10, b"3456")
        assert [kind_of(at) for at in (url, f"{server.address}/none")] == ["file", None]
        with local_copy(url) as copy:
            assert (copy.name, copy.read_bytes()) == ("a b.bin", b"0123456789")
        with pytest.raises(OutputError, match=r"web servers are only read; give a folder or an s3:// URL"):
            write(url, b"x")
        with pytest.raises(InputError, match="a web server lists no folders; give files, or a manifest"):
            names(server.address)


def test_a_bucket_that_is_not_there_is_told(s3: str) -> None:
    with pytest.raises(OutputError, match=r"s3://nowhere/a cannot be written: .*; create the bucket first"):
        write("s3://nowhere/a", b"x")
    assert read("s3://nowhere/a") is None
    assert names("s3://nowhere") == []


@pytest.mark.parametrize(
    ("failure", "attempts"),
    [(PermissionError("Access Denied"), 1), (ValueError("Invalid IPv6 URL"), 1), (ConnectionResetError("lost"), 3)],
)
def test_what_passes_is_written_again(
    failure: Exception, attempts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    tried = []

    def fail(*given: Any, **options: Any) -> None:
        tried.append(given)
        raise failure

    url = f"memory://{tmp_path.name}/a"
    monkeypatch.setattr(locations, "_WAITS_S", (0.01, 0.01))
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(MemoryFileSystem, "pipe_file", fail)
        with pytest.raises(OutputError, match=f"{url} cannot be written .*; check the address, your access"):
            write(url, b"x")
    assert len(tried) == attempts
    assert len(caplog.records) == attempts - 1
    write(url, b"x")
    assert read(url) == b"x"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "report.json")
    with pytest.raises(InputError, match="is not a regular file"):
        read(tmp_path / "report.json")
