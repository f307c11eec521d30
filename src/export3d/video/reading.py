"""Reads the frames of a video file at a constant rate, one at a time.

Only local files are opened, and the demuxer is chosen by the first bytes of the file. A disguised playlist (HLS, DASH,
concat) therefore cannot make the reader open other files or addresses.
"""

from __future__ import annotations

import codecs
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from export3d import files
from export3d.errors import BadVideo, ConfigError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.stream import Stream
    from av.video.frame import VideoFrame
    from av.video.reformatter import VideoReformatter
    from av.video.stream import VideoStream

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]

FPS = 25.0
"""Default frame rate of everything after reading."""
MAX_SIDE = 8192
"""Longest side of a frame, pixels."""
MAX_DURATION_S = 24 * 3600.0

_REMEDY = "convert it to an H.264 .mp4"
SWS_QUALITY = 0x4 | 0x2000 | 0x40000
"""Bicubic chroma, full horizontal chroma interpolation, accurate rounding (8 dB better than the default)."""
BT709, _BT601, _FCC, _SMPTE240M, _BT2020 = 1, 5, 4, 7, 9
_MATRICES = {1: BT709, 4: _FCC, 5: _BT601, 6: _BT601, 7: _SMPTE240M, 9: _BT2020, 10: _BT2020}
"""Colour matrix code in the file (ISO 23001-8) to swscale's code."""
LIMITED, FULL = 1, 2
_HDR_TRANSFERS = (16, 18)


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
    with opened(path) as (container, stream, _):
        first = next(timed_frames(container, stream, Path(path)))
        view = _View(first.frame, stream)
        rate = stream.average_rate or stream.guessed_rate or stream.base_rate
        duration = _declared_duration(container, stream)
        has_audio = bool(container.streams.audio)
        if duration is None:
            end = first.time + first.duration
            for later in timed_frames(container, stream, Path(path)):
                end = max(end, later.time + later.duration)
            duration = end - first.time
    return VideoInfo(view.width, view.height, float(rate or 0), float(duration), view.rotation, has_audio)


def read_frames(path: str | os.PathLike[str], fps: float = FPS) -> Iterator[Pixels]:
    """Frames of a video at a constant rate: frame k is the one on screen k / fps seconds after the first frame appears.

    Rotation, mirroring, pixel aspect ratio, colour matrix and range, and variable frame rates are honoured.
    Transparent pixels are composited over white. A truncated file gives the frames it has, and a warning in the log.

    Args:
        path: a local mp4, mov, mkv, webm, avi, mpeg or animated gif file.
        fps: output frames per second.

    Yields:
        uint8 (H, W, 3) RGB; all frames have the same size, and each is a separate array.

    Raises:
        BadVideo: on the first `next`, if the file does not exist or has no frame that can be decoded.
    """
    period = 1 / exact_rate(fps)
    with opened(path) as (container, stream, demuxer):
        shown = _on_screen(
            timed_frames(container, stream, Path(path)), period, may_be_still=demuxer != "gif", path=Path(path)
        )
        view: _View | None = None
        last: tuple[Timed, Pixels] | None = None
        for timed in shown:
            if view is None:
                view = _View(timed.frame, stream)
            if last is None or last[0] is not timed:
                last = (timed, view.picture(timed.frame))
                yield last[1]
            else:
                yield last[1].copy()


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Timed:
    """A decoded frame with its presentation time, duration and clock tick, in seconds of the file's clock."""

    frame: VideoFrame
    time: Fraction
    duration: Fraction
    tick: Fraction


class _View:
    """Converts decoded frames to images as a player shows them, with the size and orientation of the first frame."""

    def __init__(self, first: VideoFrame, stream: VideoStream) -> None:
        from av.video.reformatter import VideoReformatter

        self._reformatter: VideoReformatter = VideoReformatter()
        shape = Fraction(stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1)
        self._stored = (first.width, first.height)
        if Fraction(1, 8) <= shape <= 8 and shape != 1:
            self._stored = (min(MAX_SIDE, max(1, round(first.width * shape))), first.height)
        self._swap, self._mirror_x, self._mirror_y = _orientation(first)
        self.width, self.height = self._stored[::-1] if self._swap else self._stored
        self.rotation = {
            (False, False, False): 0,
            (True, False, True): 90,
            (False, True, True): 180,
            (True, True, False): 270,
        }.get((self._swap, self._mirror_x, self._mirror_y), 0)

    def picture(self, frame: VideoFrame) -> Pixels:
        """(H, W, 3) uint8 RGB, contiguous."""
        name = frame.format.name
        full = frame.color_range == FULL or name.startswith(("yuvj", "gray", "pal", "mono")) or frame.format.is_rgb
        matrix = _MATRICES.get(int(frame.colorspace), BT709 if frame.height >= 720 else _BT601)
        alpha = name == "pal8" or any(component.is_alpha for component in frame.format.components)
        rgb = self._reformatter.reformat(
            frame,
            *self._stored,
            "rgba" if alpha else "rgb24",
            src_colorspace=matrix,
            dst_colorspace=matrix,
            interpolation=SWS_QUALITY,
            src_color_range=FULL if full else LIMITED,
            dst_color_range=FULL,
            threads=1,
        )
        pixels: Pixels = np.asarray(rgb.to_ndarray())
        if alpha:
            weight = pixels[..., 3:].astype(np.uint16)
            pixels = ((pixels[..., :3] * weight + 255 * (255 - weight) + 127) // 255).astype(np.uint8)
        if self._swap:
            pixels = pixels.swapaxes(0, 1)
        if self._mirror_x:
            pixels = pixels[:, ::-1]
        if self._mirror_y:
            pixels = pixels[::-1]
        return np.ascontiguousarray(pixels)


def _orientation(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """From a frame's display matrix: whether to swap its axes, then mirror x, then mirror y."""
    side_data: Any = frame.side_data
    data = side_data.get("DISPLAYMATRIX")
    if data is None:
        return False, False, False
    a, b, _, c, d, *_ = (float(v) for v in np.frombuffer(bytes(data), dtype=np.int32))
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, c < 0, b < 0
    return False, a < 0, d < 0


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[tuple[InputContainer, VideoStream, str]]:
    """Open a file: its container, its video stream and the demuxer's name; every failure raises `BadVideo`."""
    import av

    path = files.check_input(path, BadVideo, "a video")
    demuxer = _demuxer(path)
    try:
        container = av.open(
            "file:" + str(path.absolute()),
            "r",
            format=demuxer,
            container_options={"protocol_whitelist": "file"},
        )
    except (av.FFmpegError, OSError, ValueError) as problem:
        raise BadVideo(
            f"{path} cannot be opened as a video ({_reason(problem)}): it is damaged or incomplete; "
            "copy or record it again"
        ) from problem
    with container:
        streams = [stream for stream in container.streams.video if not _is_cover(stream)]
        if not streams:
            has = "only sound" if container.streams.audio else "no frames"
            raise BadVideo(f"{path} holds {has}; give a video that shows a face")
        stream = streams[0]
        if stream.codec_context is None:
            raise BadVideo(f"{path} uses a codec that cannot be decoded here; {_REMEDY}")
        if max(stream.width, stream.height) > MAX_SIDE:
            raise BadVideo(f"{path} is {stream.width} x {stream.height}; make it at most {MAX_SIDE} pixels a side")
        stream.thread_type = "AUTO"  # type: ignore[assignment]
        stream.codec_context.options = {"max_pixels": str(MAX_SIDE * MAX_SIDE)}
        yield container, stream, demuxer


def _demuxer(path: Path) -> str:
    """FFmpeg's demuxer for a file, by its first bytes; `BadVideo` unless it is a known kind of video."""
    head = files.sniff(path, 1024)
    if files.still_kind(head) is not None:
        raise BadVideo(f"{path} is {files.foreign_kind(head)}, not a video; give a video that shows a face")
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"):
        return "mov"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if head[:4] == b"\x00\x00\x01\xba":
        return "mpeg"
    if len(head) > 576 and (all(head[i] == 0x47 for i in (0, 188, 376)) or all(head[i] == 0x47 for i in (4, 196, 388))):
        return "mpegts"
    if (
        head[:3] == b"\xff\xd8\xff"
        or head[:8] == b"\x89PNG\r\n\x1a\n"
        or head[:2] == b"BM"
        or head[:4] in (b"II*\x00", b"MM\x00*")
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
    ):
        raise BadVideo(f"{path} is a still image, not a video; give a video (mp4, mov, mkv, webm, avi or animated gif)")
    if head[:4] in (b"fLaC", b"OggS") or head[:3] == b"ID3" or (head[:4] == b"RIFF" and head[8:12] == b"WAVE"):
        raise BadVideo(f"{path} holds only sound; give a video that shows a face")
    kind = files.foreign_kind(head) or ("text" if _is_text(head) else "an unknown kind of file")
    raise BadVideo(f"{path} is not a video but {kind}; give an mp4, mov, mkv, webm, avi or animated gif file")


def _is_text(head: bytes) -> bool:
    """Whether bytes are UTF-8 text; a character cut off at the end is ignored."""
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(head)
    return "\ufffd" not in text and all(character.isprintable() or character.isspace() for character in text)


def _is_cover(stream: Stream) -> bool:
    """Whether a video stream is the cover image of an audio file."""
    from av.stream import Disposition

    return bool(stream.disposition & Disposition.attached_pic)


def timed_frames(container: InputContainer, stream: VideoStream, path: Path) -> Iterator[Timed]:
    """Decoded frames in presentation order, with their times; `BadVideo` if there is none.

    Damaged packets are skipped and counted; a warning in the log gives their number at the end.
    """
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate
    usual = 1 / Fraction(rate) if rate else Fraction(1, 25)
    first: Fraction | None = None
    due: Fraction | None = None
    previous: Fraction | None = None
    damage = _Damage()
    for frame in _decoded(container, stream, damage):
        if max(frame.width, frame.height) > MAX_SIDE:
            raise BadVideo(f"{path} has frames of {frame.width} x {frame.height}; make it at most {MAX_SIDE} a side")
        tick = Fraction(frame.time_base or stream.time_base or Fraction(1, 90000))
        duration = frame.duration * tick if getattr(frame, "duration", None) else usual
        time = frame.pts * tick if frame.pts is not None else due if due is not None else Fraction(0)
        if first is None:
            first = time
            if int(frame.color_trc) in _HDR_TRANSFERS:
                log.warning("%s is a high-dynamic-range video; its colours will look pale", path)
        if previous is not None and time <= previous:
            damage.packets += 1
            continue
        if time - first > MAX_DURATION_S:
            raise BadVideo(f"{path} has time stamps more than {MAX_DURATION_S / 3600:.0f} hours apart; {_REMEDY}")
        previous, due = time, time + duration
        yield Timed(frame, time, duration, tick)
    if first is None or due is None:
        raise BadVideo(f"{path} holds no frame that can be decoded: it is damaged or incomplete; copy it again")
    if damage.packets:
        log.warning("%s is damaged: %d packets could not be decoded and were skipped", path, damage.packets)
    declared = _declared_duration(container, stream)
    if declared is not None and declared - (due - first) > max(Fraction(1, 2), declared / 20):
        log.warning("%s is incomplete: it ends after %.2f of %.2f s", path, float(due - first), float(declared))


@dataclass
class _Damage:
    packets: int = 0


def _decoded(container: InputContainer, stream: VideoStream, damage: _Damage) -> Iterator[VideoFrame]:
    """All frames that can be decoded; damaged packets between them are skipped."""
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except (av.FFmpegError, OSError):
            damage.packets += 1
            packet = None
        if packet is not None and packet.size == 0:
            continue  # AVI repeats a frame with an empty packet; the decoder would take it for the end
        try:
            yield from stream.decode(packet)
        except av.error.EOFError:
            return
        except (av.FFmpegError, OSError):
            damage.packets += 1
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
        raise BadVideo(f"{path} is a still image, not a video; give a video (mp4, mov, mkv, webm, avi or animated gif)")
    while count == 0 or start + count * period < end - slack:
        yield shown
        count += 1


def _declared_duration(container: InputContainer, stream: VideoStream) -> Fraction | None:
    """Duration in seconds that the file declares; None if it declares none."""
    if stream.duration and stream.time_base:
        return stream.duration * Fraction(stream.time_base)
    if container.duration and container.duration > 0:
        return Fraction(container.duration, 1_000_000)
    return None


def exact_rate(fps: float | Fraction) -> Fraction:
    """A frame rate as a fraction (29.97 becomes 30000 / 1001)."""
    rate = Fraction(fps).limit_denominator(1001) if np.isfinite(float(fps)) else Fraction(0)
    if not 0 < rate <= 1000:
        raise ConfigError(f"fps must be above 0 and at most 1000, got {fps}")
    return rate


def _reason(problem: BaseException) -> str:
    words = getattr(problem, "strerror", None) or files.reason(problem)
    return str(words).strip().rstrip(".").lower()
