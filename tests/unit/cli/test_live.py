"""`export3d live`: to a file, in real time; every way to end it, and every refusal."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from export3d.cli.live import _keys
from export3d.cli.main import main
from export3d.video import VideoWriter, probe
from tests.made_videos import clip

Run = Callable[..., int]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def film(astronaut_turns: list[np.ndarray], tmp_path: Path) -> Path:
    """Two seconds of a face."""
    with VideoWriter(tmp_path / "film.mp4", 25.0, 256) as writer:
        for number in range(50):
            writer.write(astronaut_turns[number % len(astronaut_turns)])
    return tmp_path / "film.mp4"


@pytest.fixture
def live(astronaut_path: Path, rigid_weights: Path, out: Path) -> Run:
    """Runs the command; the sink is `live.mp4` in the folder for results."""

    def run(camera: str | Path, *options: str, sink: str | Path = out / "live.mp4") -> int:
        files = ["--camera", str(camera), "--sink", str(sink), "--weights", str(rigid_weights)]
        return main(["live", str(astronaut_path), *files, "--device", "cpu", *options])

    return run


@pytest.mark.slow
def test_a_file_is_written_in_real_time_and_the_figures_are_told(
    live: Run, film: Path, out: Path, capsys: Capture
) -> None:
    start = time.perf_counter()
    assert live(film) == 0
    seconds = time.perf_counter() - start
    err = capsys.readouterr().err
    assert "new frames in" in err
    assert "latency median" in err
    assert "of 50 camera frames dropped" in err
    assert f"wrote {out / 'live.mp4'}" in err
    info = probe(out / "live.mp4")
    assert (info.width, info.height) == (64, 64)
    assert 0.0 < info.duration_s < seconds


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_finishes_the_file(live: Run, film: Path, out: Path, capsys: Capture) -> None:
    def interrupt() -> None:
        while not list(out.iterdir()):  # the first frame has been written
            time.sleep(0.02)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    assert live(film) == 0
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before
    assert [path.name for path in out.iterdir()] == ["live.mp4"]
    assert 0.0 < probe(out / "live.mp4").duration_s < 1.9
    assert "interrupted" not in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_before_the_first_frame_interrupts(live: Run, out: Path, capsys: Capture) -> None:
    over = threading.Event()
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    with closing(socket.create_server(("127.0.0.1", 0))) as server:

        def interrupt() -> None:
            with server.accept()[0]:
                signal.pthread_kill(main_thread, signal.SIGINT)
                over.wait(30)

        thread = threading.Thread(target=interrupt)
        thread.start()
        assert live(f"http://127.0.0.1:{server.getsockname()[1]}/a.mp4") == 130
        over.set()
        thread.join()
    err = capsys.readouterr().err
    assert "interrupted" in err
    assert "wrote" not in err
    assert list(out.iterdir()) == []


@pytest.mark.slow
def test_it_ends_after_the_seconds_asked_for(live: Run, film: Path, out: Path, capsys: Capture) -> None:
    assert live(film, "--seconds", "0.4", "--frame", "photo") == 0
    info = probe(out / "live.mp4")
    assert (info.width, info.height) == (512, 512)
    assert "of 50 camera frames" not in capsys.readouterr().err


@pytest.mark.slow
def test_without_a_face_the_run_ends_with_a_sentence(live: Run, tmp_path: Path, out: Path, capsys: Capture) -> None:
    assert live(clip(tmp_path / "wall.mp4", 10)) == 2
    assert "no face found in" in capsys.readouterr().err
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("camera", "options", "words"),
    [
        ("0", ["--seconds", "-1"], "not possible; use a positive number"),
        ("0", ["--size", "3"], "size"),
        ("0", ["--face", "middle"], "no face 'middle'"),
        ("film.mp4", ["--sink", "screen"], "no sink 'screen'"),
        ("0", ["--background", "nosuch.png"], "nosuch.png"),
        ("film.mp4", ["--sink", "film.mp4"], "would overwrite the input"),
        ("", [], "no camera ''; give its number"),
        ("-1", [], "no camera '-1'; give its number"),
    ],
)
def test_what_cannot_be_is_refused_before_weights_are_loaded(
    camera: str, options: list[str], words: str, live: Run, out: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(out)
    (out / "film.mp4").write_bytes(b"x")
    assert live(camera, *options) == 2
    assert words in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["film.mp4"]


@pytest.mark.skipif(sys.platform != "linux", reason="cameras are looked for on Linux only")
@pytest.mark.parametrize(
    ("camera", "sentence"),
    [
        ("987", "there is no camera 987 here; connect one, or give another number, a video file or a URL"),
        ("/dev/video987", "there is no camera 987 here; connect one, or give another number, a video file or a URL"),
        ("none.mp4", "none.mp4 does not exist; give the path of a video"),
    ],
)
def test_a_camera_that_is_not_there_is_refused_before_pytorch_is_loaded(
    camera: str, sentence: str, astronaut_path: Path, out: Path
) -> None:
    line = ["live", str(astronaut_path), "--camera", camera, "--sink", str(out / "live.mp4")]
    code = f"import sys; from export3d.cli.main import main; sys.exit(main({line}) + ('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == f"export3d: {sentence}\n"
    assert done.returncode == 2


def test_a_camera_that_is_not_there_is_told_before_a_display(
    astronaut_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    assert main(["live", str(astronaut_path), "--camera", "none.mp4"]) == 2
    assert capsys.readouterr().err.startswith("export3d: none.mp4 does not exist")


@pytest.mark.parametrize("camera", ["987", "none.mp4", "http://127.0.0.1:9/a.mp4"])
def test_a_camera_that_is_not_there_leaves_no_file(camera: str, live: Run, out: Path, capsys: Capture) -> None:
    assert live(camera) == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert err.startswith("export3d: ")
    assert "Traceback" not in err
    assert list(out.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="terminals")
def test_keys_are_read_from_the_terminal_without_enter(monkeypatch: pytest.MonkeyPatch) -> None:
    import pty
    import termios

    ours, theirs = pty.openpty()
    with os.fdopen(theirs) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        before = termios.tcgetattr(theirs)
        with _keys() as pressed:
            assert pressed() == ""
            os.write(ours, b"cq")
            assert pressed() == "cq"
        assert termios.tcgetattr(theirs) == before
    os.close(ours)
