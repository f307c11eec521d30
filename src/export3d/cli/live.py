"""`export3d live`: a portrait follows a camera in real time."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Literal

import tyro

from export3d.cli.marking import Marking
from export3d.cli.terminal import tell
from export3d.engines.names import EngineName

if TYPE_CHECKING:
    from export3d.animate.live import Live, Shown

_EVERY_S = 1.0
"""The line in the terminal is renewed this often."""
_RECENT = 50
"""Frames whose rate and latency it shows."""


def command(
    source: tyro.conf.Positional[Path],
    marking: Marking = Marking(),  # noqa: B008 - frozen
    *,
    camera: str = "0",
    sink: str = "window",
    face: str = "largest",
    frame: Literal["crop", "photo"] = "crop",
    size: str | None = None,
    background: str = "keep",
    head_motion: Literal["steady", "full", "rotation"] = "steady",
    seconds: float | None = None,
    weights: Path | None = None,
    pure: bool = False,
    device: str = "auto",
    engine: EngineName = "auto",
) -> int:
    """Animate a portrait by a camera, in real time. Keys: c measures the neutral face anew, q ends.

    Args:
        source: the portrait, an image with a face.
        marking: whether the frames are marked as AI-generated, and how.
        camera: the number of a camera, a video file, which plays in real time, or an rtsp, http or https URL.
        sink: window, virtual (a virtual camera for video calls), or a file to write (.mp4).
        face: of several in the portrait: largest, left, right, or a number counted from the left.
        frame: crop shows the square around the face, photo the whole photo, which takes longer.
        size: pixels across the face crop, 256 to 1024, or native; by default what is fastest.
        background: keep, blur, a colour such as #00ff00, or an image file.
        head_motion: how the head's place and size follow the camera's, as in `export3d animate`.
        seconds: end after this time, seconds.
        weights: a name that `export3d weights` lists, or a .safetensors file; by default the packaged weights.
        pure: render with the core alone: no pixel of the source is warped into the frame.
        device: cpu, cuda, or auto.
        engine: how the network is run: reference (float32), torch (the processor's or GPU's fast number format),
            openvino (extra fast), or auto: openvino on x86 processors where it is installed, else torch.
    """
    from export3d.animate.export import VIDEO_SUFFIXES, check_output
    from export3d.animate.sinks import QUIT
    from export3d.animate.sinks import sink as open_sink
    from export3d.cli.framing import Framing
    from export3d.errors import ConfigError
    from export3d.face.tracker import face_choice
    from export3d.photo.options import parse_size
    from export3d.video.capture import check_source, is_file

    if seconds is not None and not seconds > 0:
        raise ConfigError(f"{seconds:g} seconds are not possible; use a positive number, or leave it out")
    face_choice(face, one=True)
    read = Framing(face, frame, size, background).check()
    inputs = [source, *([Path(camera)] if is_file(camera) else []), *([weights] if weights else []), *read]
    pixels = None if size is None else parse_size(size)
    marking.check()
    check_source(camera)
    shown_in = open_sink(sink, marking.marks())
    if sink not in ("window", "virtual"):
        check_output(sink, VIDEO_SUFFIXES, inputs)

    from export3d.animate.animator import Animator
    from export3d.animate.live import Live

    with shown_in as out:
        animator = Animator.from_pretrained(weights, device, pure, engine)
        portrait = animator.encode(source, face)
        out.marks = out.marks.about(animator.statement(portrait))
        live = Live(
            animator, portrait, camera, head_motion=head_motion, size=pixels, frame=frame, background=background
        )
        with _ending_on_interrupt(live) as begin, _keys() as pressed, _line(live) as line:
            for shown in live:
                begin()
                keys = pressed() + out.show(shown.frame, shown.time_s, line(shown))
                if QUIT in keys or (seconds is not None and shown.time_s >= seconds):
                    live.stop()
                if "c" in keys:
                    live.calibrate()
    stats = live.stats
    tell(
        f"showed {stats.shown} new frames in {stats.seconds:.1f} s ({stats.fps():.1f} per second); latency median "
        f"{stats.latency_ms():.0f} ms, 95th percentile {stats.latency_ms(95):.0f} ms; {stats.dropped} of "
        f"{stats.captured} camera frames dropped"
    )
    if sink not in ("window", "virtual"):
        tell(f"wrote {sink}{marking.remark}")
    if live.problem is not None:
        raise live.problem
    return 0


@contextmanager
def _ending_on_interrupt(live: Live) -> Iterator[Callable[[], None]]:
    """A function to call once there is a frame: then Ctrl-C ends the run as its normal end does, but only the first."""
    previous = signal.getsignal(signal.SIGINT)
    waiting = threading.current_thread() is threading.main_thread()

    def end(number: int, frame: FrameType | None) -> None:
        live.stop()
        signal.signal(signal.SIGINT, previous)

    def begin() -> None:
        nonlocal waiting
        if waiting:
            waiting = False
            signal.signal(signal.SIGINT, end)

    try:
        yield begin
    finally:
        if signal.getsignal(signal.SIGINT) is end:
            signal.signal(signal.SIGINT, previous)


@contextmanager
def _line(live: Live) -> Iterator[Callable[[Shown], str]]:
    """A function that gives the state in words, and renews it in the terminal, if there is one."""
    terminal, last, words = sys.stderr.isatty(), 0.0, ""

    def line(shown: Shown) -> str:
        nonlocal last, words
        now = time.perf_counter()
        if now - last >= _EVERY_S or not words:
            last = now
            words = _words(live, shown)
            if terminal:
                print(f"\r\033[K{words}", end="", file=sys.stderr, flush=True)
        return words

    try:
        yield line
    finally:
        if terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _words(live: Live, shown: Shown) -> str:
    stats = live.stats
    if not shown.face:
        state = "no face; "
    else:
        state = "calibrating: look straight ahead, at rest; " if shown.calibrating else ""
    return (
        f"{state}{stats.fps(_RECENT):.1f} fps, latency {stats.latency_ms(50, _RECENT):.0f} ms "
        f"(95th percentile {stats.latency_ms(95, _RECENT):.0f} ms), {stats.dropped} dropped"
    )


@contextmanager
def _keys() -> Iterator[Callable[[], str]]:
    """A function that gives the keys pressed in the terminal since its last call; always "" without a terminal."""
    if not sys.stdin.isatty():
        yield lambda: ""
        return
    try:
        import select
        import termios
        import tty
    except ImportError:  # Windows
        yield _windows_keys
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)

    def pressed() -> str:
        keys = ""
        while select.select([terminal], [], [], 0.0)[0] and (typed := os.read(terminal, 64)):
            keys += typed.decode("utf-8", "ignore")
        return keys

    tty.setcbreak(terminal)
    try:
        yield pressed
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _windows_keys() -> str:
    import msvcrt

    keys = ""
    while msvcrt.kbhit():  # type: ignore[attr-defined]
        keys += msvcrt.getwch()  # type: ignore[attr-defined]
    return keys
