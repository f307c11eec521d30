"""The studio's folder: room is made, what is held stays, and what a killed server left is removed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from export3d.studio import workspace as module
from export3d.studio.refusals import Refused
from export3d.studio.workspace import PREFIX, Workspace, sweep


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path, quota=1000, kept_s=60.0)


def filled(workspace: Workspace, size: int) -> str:
    entry = workspace.new(size)
    (entry.folder / "file").write_bytes(bytes(size))
    return entry.id


def test_the_folder_is_private_and_goes_with_the_server(workspace: Workspace, tmp_path: Path) -> None:
    assert workspace.folder.stat().st_mode & 0o077 == 0
    filled(workspace, 10)
    workspace.close()
    assert list(tmp_path.iterdir()) == []
    workspace.close()


def test_the_oldest_unused_entry_makes_room(workspace: Workspace) -> None:
    first, second = filled(workspace, 400), filled(workspace, 400)
    assert workspace.entry(first) is not None, "now the second is the oldest"
    third = filled(workspace, 400)
    assert workspace.entry(second) is None
    assert workspace.entry(first) is not None
    assert workspace.entry(third) is not None
    assert workspace.bytes == 800


def test_a_relative_folder_is_meant_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    workspace = Workspace(Path("studio"))
    try:
        assert workspace.folder.parent == tmp_path / "studio"
    finally:
        workspace.close()


def test_what_is_held_stays_and_the_quota_holds(workspace: Workspace) -> None:
    first = filled(workspace, 800)
    with workspace.holding(first), pytest.raises(Refused, match="full") as refused:
        workspace.new(400)
    assert refused.value.status == 507
    assert workspace.entry(first) is not None
    workspace.new(400)
    assert workspace.entry(first) is None


def test_what_is_still_coming_counts_as_if_it_were_there(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    first = workspace.new(600)
    with workspace.holding(first.id), pytest.raises(Refused, match="full"):
        workspace.new(600)
    assert workspace.bytes == 600
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage(10**12, 10**12, module.SPARE + 700))
    with workspace.holding(first.id), pytest.raises(Refused, match="full"):
        workspace.new(200)
    (first.folder / "file").write_bytes(bytes(600))
    assert workspace.new(200).expected == 200


def test_a_full_disk_is_a_sentence(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage(10**12, 10**12, 1000))
    with pytest.raises(Refused, match="disk is full"):
        workspace.new()


def test_entries_expire(workspace: Workspace) -> None:
    old, held = filled(workspace, 10), filled(workspace, 10)
    with workspace.holding(held):
        for name in (old, held):
            entry = workspace.entry(name)
            assert entry is not None
            entry.used -= 61.0
        workspace.expire()
        assert workspace.entry(old) is None
        assert workspace.entry(held) is not None


def test_what_a_killed_server_left_is_swept_and_a_living_one_stays(workspace: Workspace, tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from export3d.studio.workspace import Workspace;"
        "w = Workspace(Path(sys.argv[1])); (w.new().folder / 'x').write_bytes(b'1'); print(w.folder, flush=True);"
        "time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    folder = Path(other.stdout.readline().strip())
    assert folder.is_dir()
    assert sweep(tmp_path) == []
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    other.stdout.close()
    assert sweep(tmp_path) == [folder]
    assert not folder.exists()
    assert workspace.folder.is_dir()


def test_nothing_is_left_where_ctrl_c_comes_early(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from export3d.studio.workspace import Workspace;"
        "w = Workspace(Path(sys.argv[1])); raise KeyboardInterrupt"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, check=False)
    assert list(tmp_path.iterdir()) == []


def test_a_link_with_our_name_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("kept")
    (tmp_path / f"{PREFIX}link").symlink_to(victim)
    assert sweep(tmp_path) == []
    assert (victim / "file").read_text() == "kept"


def test_servers_that_start_together_keep_their_folders(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from export3d.studio.workspace import Workspace;"
        "w = Workspace(Path(sys.argv[1])); print(w.folder.is_dir(), flush=True); sys.stdin.read();"
        "print(w.folder.is_dir()); w.close()"
    )
    many = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    time.sleep(0.2)
    for one in many:
        assert one.stdout is not None
        assert one.stdout.readline() == "True\n"
    for one in many:
        assert one.communicate()[0] == "True\n"
    assert list(tmp_path.iterdir()) == []
