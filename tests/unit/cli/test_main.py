"""cli/main.py: failures become sentences, bugs keep their traceback."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from types import ModuleType

import pytest

from export3d.cli import main as door
from export3d.errors import BadVideo, CheckpointError, MissingExtra
from export3d.files import replacing


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module whose `command` is replaced by each test; it is called `try`."""
    module = ModuleType("made_command")
    monkeypatch.setitem(sys.modules, "made_command", module)
    monkeypatch.setitem(door.COMMANDS, "try", ("made_command", "a made-up command"))
    return module


@pytest.mark.parametrize(
    "error",
    [
        BadVideo("clip.mp4 holds no video;\n  use another file"),
        CheckpointError("damaged"),
        MissingExtra("face", "mediapipe"),
    ],
)
def test_a_failure_on_purpose_is_one_sentence_and_code_2(
    command: ModuleType, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        """Fail."""
        raise error

    command.command = fail
    assert door.main(["try"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"export3d: {' '.join(str(error).split())}\n"


def test_a_path_that_the_system_refuses_is_one_sentence(
    command: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        """Open a name that is too long."""
        open("n" * 300)  # noqa: SIM115

    command.command = fail
    assert door.main(["try"]) == 2
    assert capsys.readouterr().err == f"export3d: {'n' * 300}: file name too long; check its name and permissions\n"


def test_an_interrupt_is_code_130_without_a_traceback(command: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        """Be interrupted."""
        raise KeyboardInterrupt

    command.command = interrupted
    assert door.main(["try"]) == 130
    assert capsys.readouterr().err == "export3d: interrupted\n"


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system's terminals send no such signal")
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_to_end_leaves_no_partial_file(name: str, code: int, command: ModuleType, tmp_path: Path) -> None:
    number = signal.Signals[name]

    def ended() -> None:
        """End in the middle of writing."""
        with replacing(tmp_path / "out.bin") as temporary:
            temporary.write_bytes(b"half")
            os.kill(os.getpid(), number)
            time.sleep(5.0)

    def never(number: int, frame: object) -> None:
        raise AssertionError("the command handles the signal itself")

    command.command = ended
    before = signal.signal(number, never)
    try:
        assert door.main(["try"]) == code
        assert signal.getsignal(number) is never
    finally:
        signal.signal(number, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system's terminals send no such signal")
def test_a_hangup_that_is_ignored_stays_ignored(command: ModuleType) -> None:
    def hung_up() -> None:
        """Lose the terminal under nohup."""
        os.kill(os.getpid(), signal.SIGHUP)

    command.command = hung_up
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert door.main(["try"]) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_that_a_callback_loses_ends_the_command(
    command: ModuleType, tmp_path: Path, number: int, code: int
) -> None:
    """Python drops what a callback of a weak reference raises, and would print its traceback (a warning of pytest)."""

    class Thing:
        pass

    def run() -> None:
        """Get the signal inside such a callback, then wait."""
        thing = Thing()
        watched = weakref.ref(thing, lambda _: (os.kill(os.getpid(), number), time.sleep(0)))
        with replacing(tmp_path / "out.bin") as temporary:
            temporary.write_bytes(b"half")
            del thing
            assert watched() is None
            time.sleep(30)

    command.command = run
    since = time.monotonic()
    assert door.main(["try"]) == code
    assert time.monotonic() - since < 20
    assert not list(tmp_path.iterdir())


def test_a_signal_is_not_sent_again_into_what_the_next_one_cleans_up(command: ModuleType) -> None:
    class Thing:
        pass

    cleaned = []

    def run() -> None:
        """Lose a signal, get another one, and take a while to end."""
        thing = Thing()
        watched = weakref.ref(thing, lambda _: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(0)))
        try:
            del thing
            assert watched() is None
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        finally:
            time.sleep(0.2)
            cleaned.append(True)

    command.command = run
    assert door.main(["try"]) == 143
    assert cleaned


def test_another_exception_that_a_callback_loses_is_shown(command: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    class Thing:
        def __del__(self) -> None:
            raise ZeroDivisionError

    def run() -> None:
        """Lose an exception."""
        Thing()

    seen: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: seen.append(what.exc_type))
    command.command = run
    assert door.main(["try"]) == 0
    assert seen == [ZeroDivisionError]


def test_our_own_bugs_are_not_hidden(command: ModuleType) -> None:
    def buggy() -> None:
        """Have a bug."""
        raise ZeroDivisionError

    command.command = buggy
    with pytest.raises(ZeroDivisionError):
        door.main(["try"])


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (1, 1)])
def test_the_commands_result_is_the_exit_code(command: ModuleType, result: int | None, code: int) -> None:
    def run() -> int | None:
        """Run."""
        return result

    command.command = run
    assert door.main(["try"]) == code


def test_the_librarys_warnings_are_shown_once_and_only_while_a_command_runs(
    command: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    def warn() -> None:
        """Warn."""
        logging.getLogger("export3d.face.tracker").warning("%s: the face was lost in 3 of 40 frames; bridged", "a.mp4")

    command.command = warn
    for _ in range(2):
        assert door.main(["try"]) == 0
        assert capsys.readouterr().err == "export3d: a.mp4: the face was lost in 3 of 40 frames; bridged\n"
    assert logging.getLogger("export3d").handlers == []


def test_a_driving_video_without_its_option_is_told_which(capsys: pytest.CaptureFixture[str]) -> None:
    assert door.main(["animate", "me.jpg", "her.mp4", "-o", "a.mp4"]) == 2
    assert capsys.readouterr().err == (
        "export3d: animate takes one portrait; for 'her.mp4' write --driving or --motion before it\n"
    )


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert door.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("export3d 0.")


@pytest.mark.slow
@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["weights", "list"]])
def test_a_reader_that_leaves_ends_the_command_quietly(arguments: list[str], buffered: bool) -> None:
    """As `export3d --help | head -1` does."""
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"}
    command = [sys.executable, "-m", "export3d", *arguments]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    os.close(write)
    assert "Traceback" not in done.stderr
    assert done.returncode == 141


def test_another_broken_pipe_is_our_own_bug(command: ModuleType) -> None:
    def broken() -> None:
        """Lose a worker."""
        raise BrokenPipeError("a worker died")

    command.command = broken
    with pytest.raises(BrokenPipeError, match="worker"):
        door.main(["try"])


@pytest.mark.parametrize("columns", [1, 5])
@pytest.mark.parametrize(("options", "code"), [(["--help"], 0), (["--no-such-option"], 2)])
def test_a_help_page_ends_in_a_terminal_of_few_columns(
    command: ModuleType,
    columns: int,
    options: list[str],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(number: int = 1) -> None:
        """Run.

        Args:
            number: how often; the description has more words than fit.
        """

    command.command = run
    monkeypatch.setenv("COLUMNS", str(columns))
    assert door.main(["try", *options]) == code
    assert any(capsys.readouterr())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("arguments", ["--help", "edit --help", "weights"])
def test_a_full_standard_output_is_one_sentence(arguments: str) -> None:
    line = f"exec {sys.executable} -m export3d {arguments} > /dev/full"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.stderr.startswith("export3d: standard output: no space left on device; ")
    assert done.stderr.count("\n") == 1
    assert done.returncode == 2


@pytest.mark.skipif(sys.platform == "win32", reason="a shell closes them")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_needs_no_standard_streams(closed: str, tmp_path: Path) -> None:
    """A file that it writes must not get their numbers either: messages would land in it."""
    code = (
        "import os, sys; from export3d.cli.main import main; from export3d.cli.terminal import tell_stage;"
        f"code = main(['--version']); tell_stage('x'); file = open({str(tmp_path / 'made')!r}, 'w');"
        "sys.exit(code if file.fileno() > 2 else 3)"
    )
    done = subprocess.run(["bash", "-c", f'exec {sys.executable} -c "$0" {closed}', code], check=False)
    assert done.returncode == 0
    assert (tmp_path / "made").read_bytes() == b""
