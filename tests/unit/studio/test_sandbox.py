import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from export3d.studio.sandbox import confine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and Landlock of Linux")

BEGIN = """
import os, socket, sys, time
from pathlib import Path
from export3d.studio.sandbox import Limits, confine, limit
limit(Limits(memory=100_000_000, seconds=1, wall_s=2, file=1_000_000, files=20), os.getppid())
"""
CONFINED = (
    BEGIN + "done = confine([Path(sys.base_prefix, 'lib'), Path(sys.argv[1], 'mine')], Path(sys.argv[1], 'own'))\n"
)


def ran(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        ("bytearray(200_000_000)", "MemoryError"),
        ("open(sys.argv[1], 'wb').write(bytes(2_000_000))", "File too large"),
        ("kept = [open('/dev/null') for _ in range(40)]", "Too many open files"),
    ],
)
def test_limits_of_memory_and_files_hold(tmp_path: Path, code: str, failure: str) -> None:
    done = ran(BEGIN + code, str(tmp_path / "a"))
    assert done.returncode == 1
    assert failure in done.stderr


@pytest.mark.parametrize(("code", "ended"), [("while True: pass", signal.SIGKILL), ("time.sleep(60)", signal.SIGALRM)])
@pytest.mark.slow
def test_limits_of_time_end_the_process(code: str, ended: int) -> None:
    begin = BEGIN if ended == signal.SIGALRM else BEGIN.replace("wall_s=2", "wall_s=60")  # a second of a busy processor
    assert begin != BEGIN or ended == signal.SIGALRM
    assert ran(begin + code).returncode == -ended


def test_a_process_does_not_begin_without_its_parent() -> None:
    code = BEGIN.replace("os.getppid()", "1 << 30") + "print('began')"
    done = ran(code)
    assert (done.returncode, done.stdout) == (1, "")


def test_a_confined_process_reaches_its_own_files_alone(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "theirs").write_text("theirs")
    code = """
def tried(what):
    try:
        return what() and "done"
    except OSError as problem:
        return problem.strerror
own = Path(sys.argv[1], "own")
print(done)
print(tried(lambda: open(Path(sys.argv[1], "mine")).read()))
print(tried(lambda: (own / "a").write_text("a")), tried(lambda: (own / "a").rename(own / "b") and 1))
print(tried(lambda: open(Path(sys.argv[1], "theirs")).read()), tried(lambda: open("/etc/passwd").read()))
print(tried(lambda: Path(sys.argv[1], "b").write_text("b")), tried(lambda: Path(sys.argv[1], "mine").unlink() or 1))
print(tried(lambda: (own / "link").symlink_to("/etc/passwd") or 1))
print(tried(lambda: os.execv("/bin/true", ["true"])), tried(lambda: os.kill(os.getppid(), 0) or 1))
print(tried(lambda: socket.create_connection(("127.0.0.1", 9))))
"""
    done = ran(CONFINED + code, str(tmp_path))
    lines = done.stdout.splitlines()
    if lines[:1] == ["False"]:
        pytest.skip("this kernel has no Landlock")
    assert lines[1:3] == ["done", "done done"], done.stderr
    assert lines[3:6] == ["Permission denied Permission denied"] * 2 + ["Permission denied"]
    assert lines[6].startswith("Permission denied ")
    assert lines[7] in ("Permission denied", "Network is unreachable")
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_system_without_landlock_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert confine([tmp_path], tmp_path) is False
    assert os.listdir("/")
