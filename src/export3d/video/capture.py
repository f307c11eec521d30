"""The newest frame of a camera, a network stream, or a video file that plays in real time.

A thread decodes. Whoever asks gets the newest frame, and frames that nobody asked for are dropped. No queue can grow:
a slow reader gets fewer frames, never old ones.
"""

from __future__ import annotations

import errno
import math
import re
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Generic, TypeVar

from export3d.errors import BadVideo, ConfigError, Export3DError
from export3d.files import check_input, kind_at
from export3d.video.reading import opened_frames, reason
from export3d.video.view import MAX_SIDE, Pixels, View

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

Value = TypeVar("Value")

TIMEOUT_S = 5.0
"""A camera or stream that gives no frame for so long has failed."""
_PROTOCOLS = "http,https,tcp,tls,udp,rtp,rtsp,rtmp,rtmps,crypto"
"""What a stream may open: never a local file."""
_JOIN_S = 1.0
_PAUSE_S = 1.0
"""A frame that is so much too late was held up by a pause."""
_RETRY_S = 0.005
_BEHIND_S, _FAR_S, _FREQUENT_S, _JUMP_S = 0.3, 1.0, 3.0, 10.0
"""See `_Backlog`; a time stamp that is so much too early begins a new count."""
_WAITED_S = 0.01
"""A packet that took so long to read was not there before."""
_WANTED = {"video_size": "640x480", "framerate": "30"}
"""What a camera is asked for first; most have it, and some open with nothing else."""


class Newest(Generic[Value]):
    """A place for one value between two threads: a new value replaces one that was not taken."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._value: Value | None = None
        self.closed = False

    def put(self, value: Value) -> None:
        """Replace the value."""
        with self._changed:
            self._value = value
            self._changed.notify_all()

    def take(self, wait_s: float) -> Value | None:
        """Remove and return the value, waiting for one; None after `wait_s`, or if it is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._value is not None or self.closed, wait_s)
            value, self._value = self._value, None
            return value

    def close(self) -> None:
        """No value follows."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()


@dataclass(frozen=True, eq=False)
class Captured:
    """A frame and when it was captured.

    Attributes:
        pixels: uint8 (H, W, 3) RGB.
        time_s: of `time.perf_counter`: when the frame left the decoder, less the time by which the decoder was
            behind the stream, where time stamps tell it; for a file, when it was due.
    """

    pixels: Pixels
    time_s: float


class Capture:
    """Captures frames while a `with` block runs.

    Args:
        where: the number of a camera ("0" is the first), an rtsp, rtmp, udp, http or https URL, or a video file.
        long_side: frames are reduced to this, pixels.
        timeout_s: see `TIMEOUT_S`.

    Attributes:
        name: what messages call it; without the password of a URL.
        count: number of frames captured so far.

    Raises:
        BadVideo: on entering, if there is no such camera, file or stream.
    """

    def __init__(self, where: str, long_side: int = MAX_SIDE, timeout_s: float = TIMEOUT_S) -> None:
        self.name = _name(where)
        self.count = 0
        self._where, self._long_side, self._timeout_s = where, long_side, timeout_s
        self._newest: Newest[tuple[VideoFrame, float]] = Newest()
        self._problem: BaseException | None = None
        self._stop = threading.Event()
        self._view: View | None = None
        self._opened: Future[Fraction] = Future()
        self._aspect = Fraction(1)
        self._due = 0.0

    def __enter__(self) -> Capture:
        import av  # noqa: F401 - not in the thread: a signal could leave the import lock taken

        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        self._thread.start()
        try:
            self._aspect = self._opened.result()  # FFmpeg waits in the thread, so that Ctrl-C interrupts at once
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        self._thread.join(_JOIN_S)  # a device that hangs keeps its thread, which ends with the program

    def stop(self) -> None:
        """Capture nothing more; a reader that waits gets None."""
        self._stop.set()
        self._newest.close()

    def newest(self) -> Captured | None:
        """Wait for a frame newer than the last one; None once the file or stream has ended.

        Raises:
            BadVideo: the camera or stream failed, or gave nothing for `timeout_s`.
        """
        taken = self._newest.take(self._timeout_s)
        while taken is None and not self._newest.closed and time.perf_counter() < self._due + self._timeout_s:
            taken = self._newest.take(max(self._due + self._timeout_s - time.perf_counter(), 0.0))
        if taken is None and self._problem is not None:
            raise self._problem
        if taken is None and not self._newest.closed:
            raise BadVideo(f"{self.name} gave no frame for {self._timeout_s:g} s; check it and start again")
        if taken is None:
            return None
        frame, at = taken
        if self._view is None:
            self._view = View(frame, self._aspect, self._long_side)
        return Captured(self._view.picture(frame), at)

    def _run(self) -> None:
        start = time.perf_counter()
        try:
            with _frames(self._where, self._timeout_s) as frames:
                self._opened.set_result(frames.aspect)
                for frame, due in frames.timed:
                    self._due = time.perf_counter() if due is None else due
                    if due is not None and self._stop.wait(max(due - time.perf_counter(), 0.0)):
                        return
                    if self._stop.is_set():
                        return
                    self._newest.put((frame, self._due))
                    self.count += 1
        except BaseException as problem:
            opened = self._opened.done()
            silent = not opened and time.perf_counter() - start >= self._timeout_s
            self._problem = _explained(problem, self.name, self._where, self._timeout_s, silent)
            if not opened:
                self._opened.set_exception(self._problem)
        finally:
            self._newest.close()


# --- cameras, streams and files ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Frames:
    """Decoded frames with the time at which each is due, None for as soon as it is there, and their pixel aspect."""

    timed: Iterator[tuple[VideoFrame, float | None]]
    aspect: Fraction = Fraction(1)


def _number(where: str) -> int | None:
    """The number of a camera; None for a file or a URL."""
    found = re.fullmatch(r"(?:/dev/video)?(\d{1,4})", where)
    return int(found[1]) if found else None


def is_file(where: str) -> bool:
    """Whether this names a file, not a camera or a URL.

    Raises:
        ConfigError: it is empty, or a negative number.
    """
    if re.fullmatch(r"\s*|-\d+", where):
        raise ConfigError(f"there is no camera {where!r}; give its number from 0, a video file or a URL")
    return _number(where) is None and not _is_url(where)


def check_source(where: str) -> None:
    """Refuse a file or camera that is not there, before anything is loaded. Cameras are looked for on Linux only.

    Raises:
        ConfigError, BadVideo: as `is_file`, and as `Capture` on entering.
    """
    if is_file(where):
        check_input(where, BadVideo, "a video")
    elif (number := _number(where)) is not None and sys.platform == "linux" and not kind_at(_device(number), BadVideo):
        raise _no_camera(where)


def _is_url(where: str) -> bool:
    return re.match(r"(?:rtsps?|rtmps?|https?|udp|rtp|tcp)://", where, re.IGNORECASE) is not None


def _is_http(where: str) -> bool:
    return re.match(r"https?://", where, re.IGNORECASE) is not None


def _stamped(container: InputContainer) -> bool:
    """Whether frames have the times of whoever filmed them, and not those of a usual rate."""
    from av.format import Flags

    return not Flags(container.format.flags) & Flags.no_timestamps


def _name(where: str) -> str:
    if _number(where) is not None:
        return f"camera {_number(where)}"
    return re.sub(r"(?<=://)[^/@]*@", "", where) if _is_url(where) else where


@contextmanager
def _frames(where: str, timeout_s: float) -> Iterator[_Frames]:
    """Open a camera, stream or file; `BadVideo` or an error of FFmpeg where that fails."""
    if is_file(where):
        with opened_frames(where) as film:
            yield _Frames(_in_real_time((one.frame, float(one.time)) for one in film.timed), film.pixel_aspect)
        return
    container = _stream(where, timeout_s) if _is_url(where) else _camera(_number(where) or 0, timeout_s)
    with container:
        if not container.streams.video:
            raise BadVideo(f"{_name(where)} has no video; give a camera, a video file or the URL of a video stream")
        backlog = _Backlog(container.streams.video[0])
        if container.duration is not None or container.format.name == "hls":
            yield _Frames(_in_real_time(_decoded(container, timeout_s)))
        elif not _is_url(where) or not _stamped(container):  # arrives in real time by itself
            yield _Frames((frame, None) for frame, _ in _decoded(container, timeout_s))
        elif _is_http(where):  # may be a file, or live: what was late is caught up with
            yield _Frames(_in_real_time(_decoded(container, timeout_s, backlog), math.inf))
        else:
            frames = _decoded(container, timeout_s, backlog)
            yield _Frames((frame, time.perf_counter() - backlog.lag_s) for frame, _ in frames)


class _Backlog:
    """How far the reading of a live stream is behind its sender, and what the decoder skips to catch up.

    The packet with the least delay, by its time stamp, counts as read at once. Behind by more than `_BEHIND_S`, the
    decoder skips frames that no other frame needs; by more than `_FAR_S`, all but key frames, if these are frequent,
    and up to the next of them. A read that has to wait shows that there is nothing left to catch up with.

    Attributes:
        lag_s: of the last packet, seconds.
    """

    def __init__(self, stream: VideoStream) -> None:
        self._context, self.lag_s = stream.codec_context, 0.0
        self._least = math.inf
        self._key_s, self._between_keys_s = -math.inf, math.inf

    def read(self, packet: Packet[VideoStream], waited_s: float) -> None:
        """Take note of a packet before it is decoded, and of how long its reading took."""
        if packet.dts is None or packet.time_base is None:
            return
        stamp = float(packet.dts * packet.time_base)
        if packet.is_keyframe:
            self._between_keys_s, self._key_s = stamp - self._key_s, stamp
        delay = time.perf_counter() - stamp
        if delay < self._least or delay - self._least > _JUMP_S or (self.lag_s > _BEHIND_S and waited_s > _WAITED_S):
            self._least = delay
        self.lag_s = delay - self._least
        skipped = str(self._context.skip_frame)
        if self.lag_s > _FAR_S and self._between_keys_s < _FREQUENT_S:
            self._context.skip_frame = "NONKEY"
        elif skipped != "NONKEY" or (packet.is_keyframe and self.lag_s < _BEHIND_S):
            self._context.skip_frame = "NONREF" if self.lag_s > _BEHIND_S else "DEFAULT"


def _in_real_time(
    frames: Iterator[tuple[VideoFrame, float]], pause_s: float = _PAUSE_S
) -> Iterator[tuple[VideoFrame, float]]:
    """Frames with the time of `perf_counter` at which each is due if the first is due now.

    After a pause (a network that stalls, a computer that sleeps) that makes a frame later than `pause_s`, the clock
    starts anew.
    """
    start: float | None = None
    for frame, at in frames:
        now = time.perf_counter()
        if start is None or now - (start + at) > pause_s:
            start = now - at
        yield frame, start + at


def _packets(container: InputContainer, timeout_s: float) -> Iterator[Packet[VideoStream] | None]:
    """The packets of the first video stream, and None where it breaks off as it may.

    Waits where the device does not: macOS says that there is no packet yet.
    """
    last = time.perf_counter()
    while True:
        try:
            for packet in container.demux(container.streams.video[0]):
                last = time.perf_counter()
                yield packet
            return
        except BlockingIOError:
            if time.perf_counter() - last > timeout_s:
                raise TimeoutError from None
            time.sleep(_RETRY_S)
        except OSError as problem:
            if problem.errno == errno.EIO and _is_http(container.name) and container.size < 0:
                yield None  # a body of unknown length ends so
                return
            raise


def _decoded(
    container: InputContainer, timeout_s: float, backlog: _Backlog | None = None
) -> Iterator[tuple[VideoFrame, float]]:
    """The frames of a camera or stream and their times, seconds; damaged packets are skipped."""
    import av

    stream = container.streams.video[0]
    due, usual = 0.0, 1.0 / float(stream.average_rate or 25)
    asked = time.perf_counter()
    for packet in _packets(container, timeout_s):
        if backlog is not None and packet is not None:
            backlog.read(packet, time.perf_counter() - asked)
        with suppress(av.error.InvalidDataError, av.error.EOFError):
            for frame in stream.decode(packet):
                if max(frame.width, frame.height) > MAX_SIDE:
                    raise BadVideo(f"frames of {frame.width} x {frame.height}; at most {MAX_SIDE} pixels a side work")
                tick = frame.time_base or stream.time_base
                at = due if frame.pts is None or tick is None else float(frame.pts * tick)
                due = at + usual
                yield frame, at
        asked = time.perf_counter()


def _stream(url: str, timeout_s: float) -> InputContainer:
    import av

    container: InputContainer = av.open(
        url,
        "r",
        options={"rtsp_transport": "tcp"},
        container_options={"protocol_whitelist": _PROTOCOLS},
        timeout=timeout_s,
        metadata_errors="replace",
    )
    return container


def _camera(number: int, timeout_s: float) -> InputContainer:
    """A camera of Linux (v4l2), macOS (avfoundation) or Windows (dshow), in 640 x 480 if it has that."""
    import av

    name, kind = _device(number), "v4l2"
    if sys.platform == "darwin":
        name, kind = f"{number}:none", "avfoundation"
    elif sys.platform == "win32":
        devices = [one.name for one in av.enumerate_input_devices("dshow") if "video" in one.media_types]
        if number >= len(devices):
            raise FileNotFoundError(number)
        name, kind = f"video={devices[number]}", "dshow"
    container: InputContainer
    try:
        container = av.open(name, "r", format=kind, options=dict(_WANTED), timeout=timeout_s)
    except (FileNotFoundError, PermissionError):
        raise
    except (av.FFmpegError, OSError):
        container = av.open(name, "r", format=kind, timeout=timeout_s)
    return container


def _explained(problem: BaseException, name: str, where: str, timeout_s: float, silent: bool) -> BaseException:
    """The sentence for a camera or stream that cannot be opened, or fails; what is no such failure stays as it is."""
    import av

    if isinstance(problem, Export3DError) or not isinstance(problem, (av.FFmpegError, OSError)):
        return problem
    check = "the address and the network" if _is_url(where) else "its cable"
    if isinstance(problem, (av.error.ExitError, TimeoutError)) or (silent and _is_url(where)):
        return BadVideo(f"{name} sent nothing for {timeout_s:g} s; check {check}")
    if _is_url(where):
        return BadVideo(f"{name} cannot be read ({reason(problem)}); check the address and the network")
    if isinstance(problem, FileNotFoundError):
        return _no_camera(where)
    if isinstance(problem, PermissionError):
        return BadVideo(f"{name} may not be used (permission denied); allow cameras for this program in the system")
    return BadVideo(f"{name} cannot be read ({reason(problem)}); connect it, and close other programs that use it")


def _device(number: int) -> str:
    return f"/dev/video{number}"


def _no_camera(where: str) -> BadVideo:
    return BadVideo(f"there is no {_name(where)} here; connect one, or give another number, a video file or a URL")
