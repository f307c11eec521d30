"""Sinks: a file with real times, and sentences where there is no display and no virtual camera."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import pytest

from export3d.animate.sinks import QUIT, Sink, Window, sink
from export3d.errors import BadVideo, ConfigError, OutputError
from export3d.provenance.writing import NO_MARKS
from tests.made_videos import number, numbered


def test_a_file_keeps_the_real_times_of_its_frames(tmp_path: Path) -> None:
    times, path = [0.0, 0.071, 0.3, 1.234], tmp_path / "a.mp4"
    frames = [numbered(k) for k in range(4)]
    with sink(str(path)) as out:
        for time_s, frame in zip(times, frames):
            assert out.show(frame, time_s) == ""
            out.show(frame, time_s + 0.01)  # nothing new
    with av.open(str(path)) as container:
        read = [
            (round(float(one.time), 3), number(one.to_ndarray(format="rgb24"))) for one in container.decode(video=0)
        ]
    assert read == [*zip(times, range(4)), (1.244, 3)]  # the last one again, at the end


def _break_off(out: Sink) -> None:
    out.show(numbered(1), 0.0)
    raise BadVideo("unplugged")


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    with pytest.raises(BadVideo, match="unplugged"), sink(str(tmp_path / "a.mp4")) as out:
        _break_off(out)
    with sink(str(tmp_path / "b.mp4")):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_sink_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"use window, virtual, or a file that ends in \.mp4"):
        sink("screen")
    with pytest.raises(OutputError, match="no folder"), sink(str(tmp_path / "none" / "a.mp4")) as out:
        out.show(numbered(1), 0.0)


@pytest.fixture
def display(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A display: a virtual one of X on Linux; skips where there is none."""
    pytest.importorskip("tkinter")
    if not sys.platform.startswith("linux"):
        pytest.skip("windows would open on the screen")
    server = shutil.which("Xvfb")
    if server is None:
        pytest.skip("Xvfb is not installed")
    reading, writing = os.pipe()
    with subprocess.Popen(
        [server, "-displayfd", str(writing), "-screen", "0", "800x700x24"],
        pass_fds=[writing],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        os.close(writing)
        with os.fdopen(reading) as number:
            monkeypatch.setenv("DISPLAY", f":{number.readline().strip()}")
        yield
        process.terminate()


def test_a_window_shows_frames_takes_keys_and_says_that_it_was_closed(display: None) -> None:
    with Window(NO_MARKS, "title") as window:
        assert window.show(numbered(5, 100, 60), 0.0, "12 fps") == ""
        window._root.focus_force()
        window._root.event_generate("<Key>", keysym="c")
        assert window.show(numbered(6, 100, 60), 0.1) == "c"
        shown = window._image
        assert (shown.width(), shown.height()) == (600, 360)  # small frames are enlarged
        assert [window._label.tk.call(str(shown), "get", x, 100)[0] for x in (30, 90, 150, 210)] == [0, 255, 255, 0]
        window._close()
        assert window.show(numbered(7, 100, 60), 0.2) == QUIT


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only X can be without a display")
def test_without_a_display_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tkinter")
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(OutputError, match=r"no display for a window; use --sink virtual, or --sink FILE\.mp4"):
        sink("window")


@pytest.mark.skipif(bool(list(Path("/dev").glob("video*"))) or not sys.platform.startswith("linux"), reason="a device")
def test_without_a_virtual_camera_there_is_a_sentence() -> None:
    pytest.importorskip("pyvirtualcam")
    with (
        pytest.raises(OutputError, match="no virtual camera that is free; install v4l2loopback"),
        sink("virtual") as out,
    ):
        out.show(numbered(1), 0.0)
