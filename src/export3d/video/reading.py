"""Reads the frames of a video file at a constant rate, one at a time.

Only local files are opened, and the demuxer is chosen by the first bytes of the file. A disguised playlist (HLS, DASH,
concat) therefore cannot make the reader open other files or addresses.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from export3d import files
from export3d.errors import BadVideo, ConfigError
from export3d.video import animated_image
from export3d.video.kinds import READ, demuxer_of, refusal
from export3d.video.view import MAX_SIDE, Pixels, View

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.stream import Stream
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

log = logging.getLogger(__name__)

AnyStream = TypeVar("AnyStream", bound="Stream")

FPS = 25.0
"""Default frame rate of everything after reading."""
MAX_DURATION_S = 24 * 3600.0

_REMEDY = "convert it to an H.264 .mp4"
_HDR_TRANSFERS = (16, 18)
_DECODING_TIMES = ("avi", "asf")
"""Containers that store when a frame is decoded, not when it is shown."""
_TO_THE_END = "matroska"
"""The container whose duration is the time at which it ends, even if its clock starts late."""
_RAW = ("h264", "hevc", "mpegvideo")
"""Streams without a container: no times, and a duration that FFmpeg only guesses from the bit rate."""
_MOST_HELD_BACK = 16
"""Frames that a decoder of H.264 or H.265 may hold back."""


@dataclass(frozen=True)
class VideoInfo:
    """The properties of a video, as a player shows it.

    Attributes:
        width, height: pixels, after rotation and with square pixels.
        fps: average frame rate of the file.
        duration_s: length of the video track, seconds.
        rotation: angle by which a player rotates the stored frames anticlockwise (0, 90, 180 or 270 degrees).
        has_audio: whether there is an audio track.
    """

    width: int
    height: int
    fps: float
    duration_s: float
    rotation: int
    has_audio: bool


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Size, frame rate, duration, rotation and sound of a video; decodes its first frame.

    Raises:
        BadVideo: the file cannot be read as a video.
    """
    with opened_frames(path) as film:
        first = next(film.timed)
        view = View(first.frame, film.pixel_aspect)
        duration = film.duration
        if duration is None:
            end = first.time + first.duration
            for later in film.timed:
                end = max(end, later.time + later.duration)
            duration = end - first.time
    return VideoInfo(view.width, view.height, float(film.rate), float(duration), view.rotation, film.has_audio)


def read_frames(
    path: str | os.PathLike[str], fps: float = FPS, *, start_s: float = 0.0, seconds: float | None = None
) -> Iterator[Pixels]:
    """Frames of a video at a constant rate: frame k is the one on screen k / fps seconds after the first frame appears.

    Rotation, mirroring, pixel aspect ratio, colour matrix and range, and variable frame rates are honoured.
    Transparent pixels are composited over white. A truncated file gives the frames it has, and a warning in the log.

    Args:
        path: a local mp4, mov, mkv, webm, avi, wmv, flv, ogg or mpeg file, a raw H.264, H.265 or MPEG stream, or an
            animated gif, png or webp.
        fps: output frames per second.
        start_s: start at this time after the first frame appears, seconds, rounded to a frame.
        seconds: maximum duration, seconds, rounded to frames; the file is read no further.

    Yields:
        uint8 (H, W, 3) RGB; all frames have the same size, and each is a separate array.

    Raises:
        BadVideo: on the first `next`, if the file does not exist or has no frame that can be decoded.
        ConfigError: `fps` is not a frame rate, or `start_s` and `seconds` select no frame.
    """
    rate = exact_rate(fps)
    first, end = frame_range(start_s, seconds, fps)
    with opened_frames(path) as film:
        shown = _on_screen(film.timed, 1 / rate, may_be_still=film.may_be_still, path=Path(path))
        view: View | None = None
        last: tuple[Timed, Pixels] | None = None
        count = 0
        for count, timed in enumerate(shown, 1):
            if count <= first:
                continue
            if view is None:
                view = View(timed.frame, film.pixel_aspect)
            if last is None or last[0] is not timed:
                last = (timed, view.picture(timed.frame))
                yield last[1]
            else:
                yield last[1].copy()
            if count == end:
                return
    if view is None:
        raise nothing_selected(path, count / fps)


def frame_range(start_s: float, seconds: float | None, fps: float) -> tuple[int, int | None]:
    """The first frame of a part of a video or motion, and the one after its last (None: to the end).

    Raises `ConfigError` where the part is empty, or begins before 0 or after `MAX_DURATION_S`.

    >>> frame_range(0.5, 2.0, 25.0), frame_range(0.5, None, 25.0)
    ((12, 62), (12, None))
    """
    if not 0 <= start_s <= MAX_DURATION_S:
        raise ConfigError(f"a start of {start_s:g} s is not possible; use 0 to {MAX_DURATION_S:.0f}")
    first = round(start_s * fps)
    if seconds is None:
        return first, None
    if not np.isfinite(seconds):
        raise ConfigError(f"a duration of {seconds:g} s is not possible; leave it out to read to the end")
    seconds = min(seconds, MAX_DURATION_S)
    if seconds * fps <= 0.5:
        raise ConfigError(f"a duration of {seconds:g} s holds no frame at {fps:g} fps; use a longer one")
    return first, first + round(seconds * fps)


def nothing_selected(path: str | os.PathLike[str], duration_s: float) -> ConfigError:
    """The sentence for a part that begins after the end."""
    return ConfigError(f"{path} is {duration_s:.2f} s long; --start and --seconds select no frame of it")


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Timed:
    """A decoded frame with its presentation time, duration and clock tick, in seconds of the file's clock."""

    frame: VideoFrame
    time: Fraction
    duration: Fraction
    tick: Fraction


@dataclass(frozen=True, eq=False)
class Film:
    """The frames of an open file, and what the file states about them.

    Attributes:
        timed: the decoded frames in presentation order; the first `next` raises `BadVideo` if there is none.
        pixel_aspect: width of a pixel over its height.
        rate: frames per second; 0 if unknown.
        duration: seconds; None if the file states none.
        has_audio: whether there is an audio track.
        may_be_still: whether a file of one frame is still a video.
    """

    timed: Iterator[Timed]
    pixel_aspect: Fraction
    rate: Fraction
    duration: Fraction | None
    has_audio: bool
    may_be_still: bool


@contextmanager
def opened_frames(path: str | os.PathLike[str]) -> Iterator[Film]:
    """Open a file for its frames; every failure raises `BadVideo`."""
    path = files.check_input(path, BadVideo, "a video")
    if animated_image.is_animated(path):
        timed = _image_frames(path)
        first = next(timed)
        yield Film(chain([first], timed), Fraction(1), 1 / first.duration, None, False, False)
        return
    with opened(path) as (container, stream, demuxer):
        yield Film(
            timed_frames(container, stream, path),
            Fraction(stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1),
            _rate(container, stream),
            _declared_duration(container, stream),
            bool(container.streams.audio),
            demuxer != "gif",
        )


def _image_frames(path: Path) -> Iterator[Timed]:
    import av

    time = Fraction(0)
    for pixels, duration in animated_image.frames(path, MAX_SIDE):
        _check_length(path, time)
        yield Timed(av.VideoFrame.from_ndarray(pixels, format="rgb24"), time, duration, Fraction(1, 1000))
        time += duration


def _check_length(path: Path, time: Fraction) -> None:
    if time > MAX_DURATION_S:
        raise BadVideo(f"{path} has time stamps more than {MAX_DURATION_S / 3600:.0f} hours apart; {_REMEDY}")


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[tuple[InputContainer, VideoStream, str]]:
    """Open a file: its container, its video stream and the demuxer's name; every failure raises `BadVideo`."""
    with opened_container(path) as (container, demuxer):
        streams = videos(container)
        if not streams:
            has = "only sound" if container.streams.audio else "no frames"
            raise BadVideo(f"{path} holds {has}; give a video that shows a face")
        stream = default_stream(streams)
        if stream.codec_context is None:
            raise BadVideo(f"{path} uses a codec that cannot be decoded here; {_REMEDY}")
        if max(stream.width, stream.height) > MAX_SIDE:
            raise BadVideo(f"{path} is {stream.width} x {stream.height}; make it at most {MAX_SIDE} pixels a side")
        stream.thread_type = "AUTO"  # type: ignore[assignment]
        stream.codec_context.options = {"max_pixels": str(MAX_SIDE * MAX_SIDE)}
        yield container, stream, demuxer


@contextmanager
def opened_container(path: str | os.PathLike[str]) -> Iterator[tuple[InputContainer, str]]:
    """Open a file, which may hold sound alone: its container and the demuxer's name; failures raise `BadVideo`."""
    import av

    path = files.check_input(path, BadVideo, "a video")
    demuxer = demuxer_of(path)
    if demuxer is None:
        raise refusal(path)
    try:
        container = av.open(
            "file:" + str(path.absolute()),
            "r",
            format=demuxer,
            container_options={"protocol_whitelist": "file"},
            metadata_errors="replace",  # titles in other encodings than UTF-8
        )
    except (av.FFmpegError, OSError, ValueError) as problem:
        raise BadVideo(
            f"{path} cannot be opened as a video ({reason(problem)}): it is damaged or incomplete; "
            "copy or record it again"
        ) from problem
    with container:
        yield container, demuxer


def videos(container: InputContainer) -> list[VideoStream]:
    """The video streams of a file, without the cover images of audio files."""
    from av.stream import Disposition

    return [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]


def default_stream(streams: Sequence[AnyStream]) -> AnyStream:
    """The first stream that the container marks as default; without such marks the first."""
    from av.stream import Disposition

    return next((stream for stream in streams if stream.disposition & Disposition.default), streams[0])


def timed_frames(container: InputContainer, stream: VideoStream, path: Path) -> Iterator[Timed]:
    """Decoded frames in presentation order, with their times; `BadVideo` if there is none.

    Damaged packets are skipped and counted; a warning in the log gives their number at the end.
    """
    rate = _rate(container, stream)
    usual = 1 / rate if rate else Fraction(1, 25)
    first: Fraction | None = None
    due: Fraction | None = None
    previous: Fraction | None = None
    read = _Read()
    stamp = _Stamps(container, read, usual)
    for frame in _decoded(container, stream, read):
        if max(frame.width, frame.height) > MAX_SIDE:
            raise BadVideo(f"{path} has frames of {frame.width} x {frame.height}; make it at most {MAX_SIDE} a side")
        tick = Fraction(frame.time_base or stream.time_base or Fraction(1, 90000))
        duration = frame.duration * tick if getattr(frame, "duration", None) else usual
        ticks = stamp(frame)
        time = ticks * tick if ticks is not None else due if due is not None else Fraction(0)
        if first is None:
            first = time
            if int(frame.color_trc) in _HDR_TRANSFERS:
                log.warning("%s is a high-dynamic-range video; its colours will look pale", path)
        if previous is not None and time <= previous:
            read.damaged += 1
            continue
        _check_length(path, time - first)
        previous, due = time, time + duration
        yield Timed(frame, time, duration, tick)
    if first is None or due is None:
        raise BadVideo(f"{path} holds no frame that can be decoded: it is damaged or incomplete; copy it again")
    if read.damaged:
        log.warning("%s is damaged: %d packets could not be decoded and were skipped", path, read.damaged)
    declared = _declared_duration(container, stream)
    if declared is not None and declared - (due - first) > max(Fraction(1, 2), declared / 20):
        log.warning("%s is incomplete: it ends after %.2f of %.2f s", path, float(due - first), float(declared))


@dataclass
class _Read:
    """What was met while reading: the number of damaged packets, and the first packet's decoding time in ticks."""

    damaged: int = 0
    first_dts: int | None = None


class _Stamps:
    """Presentation times of decoded frames, in ticks; None where the file has none.

    AVI and ASF store decoding times only. Their frames are shown in the order in which they leave the decoder, earlier
    by the time for which the decoder holds back the first one.
    """

    def __init__(self, container: InputContainer, read: _Read, usual: Fraction) -> None:
        self._by_decoding = container.format.name in _DECODING_TIMES
        self._read, self._longest = read, _MOST_HELD_BACK * usual
        self._held_back: int | None = None

    def __call__(self, frame: VideoFrame) -> int | None:
        if not self._by_decoding:
            return frame.pts
        if frame.dts is None:
            return None
        if self._held_back is None:
            held_back = frame.dts - (frame.dts if self._read.first_dts is None else self._read.first_dts)
            self._held_back = held_back if held_back * Fraction(frame.time_base or 0) <= self._longest else 0
        return frame.dts - self._held_back


def _rate(container: InputContainer, stream: VideoStream) -> Fraction:
    """Frames per second that the file states, or 0."""
    raw = container.format.name in _RAW  # FFmpeg reports 25 as their average rate, whatever the stream states
    rate = (raw and stream.guessed_rate) or stream.average_rate or stream.guessed_rate or stream.base_rate
    return Fraction(rate or 0)


def _decoded(container: InputContainer, stream: VideoStream, read: _Read) -> Iterator[VideoFrame]:
    """All frames that can be decoded; damaged packets between them are skipped."""
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except (av.FFmpegError, OSError):
            read.damaged += 1
            packet = None
        if packet is not None and packet.size == 0:
            continue  # AVI repeats a frame with an empty packet; the decoder would take it for the end
        if read.first_dts is None and packet is not None:
            read.first_dts = packet.dts
        try:
            yield from stream.decode(packet)
        except av.error.EOFError:
            return
        except (av.FFmpegError, OSError):
            read.damaged += 1
        if packet is None:
            return


def _on_screen(timed: Iterable[Timed], period: Fraction, *, may_be_still: bool, path: Path) -> Iterator[Timed]:
    """The frame on screen at 0, period, 2 * period, ... after the first appears, until the last disappears.

    A frame whose rounded time stamp is late by less than half a tick (at most half a millisecond) counts as on time.
    """
    shown: Timed | None = None
    start = end = Fraction(0)
    slack = Fraction(0)
    count = seen = 0
    for following in timed:
        seen += 1
        if shown is None:
            start = following.time
            slack = min(following.tick / 2, Fraction(1, 2000))
        while shown is not None and start + count * period < following.time - slack:
            yield shown
            count += 1
        shown = following
        end = following.time + following.duration
    if shown is None:
        return
    if seen == 1 and not may_be_still:
        raise BadVideo(f"{path} is a still image, not a video; give a video ({READ})")
    while count == 0 or start + count * period < end - slack:
        yield shown
        count += 1


def _declared_duration(container: InputContainer, stream: VideoStream) -> Fraction | None:
    """Duration in seconds that the file declares; None if it declares none."""
    if container.format.name in _RAW:
        return None
    if stream.duration and stream.time_base:
        return stream.duration * Fraction(stream.time_base)
    if container.streams.audio:
        return None  # the container's duration may be the sound's
    length = container.duration or 0
    if container.format.name == _TO_THE_END:
        length -= max(container.start_time or 0, 0)
    return Fraction(length, 1_000_000) if length > 0 else None


def exact_rate(fps: float | Fraction) -> Fraction:
    """A frame rate as a fraction (29.97 becomes 30000 / 1001)."""
    rate = Fraction(fps).limit_denominator(1001) if np.isfinite(float(fps)) else Fraction(0)
    if not 0 < rate <= 1000:
        raise ConfigError(f"fps must be above 0 and at most 1000, got {fps}")
    return rate


def reason(problem: BaseException) -> str:
    """FFmpeg's words for a failure, without the name of what was opened."""
    words = getattr(problem, "strerror", None) or files.reason(problem)
    return str(words).strip().rstrip(".").lower()
