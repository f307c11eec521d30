"""Writes frames and sound to a video file that browsers can play."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from export3d import files
from export3d.errors import ConfigError, OutputError, ShapeError, check_shape
from export3d.video.ahead import DEPTH
from export3d.video.reading import exact_rate
from export3d.video.sound import Sound, carried_sound
from export3d.video.view import BT709, FULL, LIMITED, MAX_SIDE, SWS_QUALITY, Pixels

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.reformatter import VideoReformatter
    from av.video.stream import VideoStream

_ENCODERS = ("libx264", "h264_videotoolbox", "h264_nvenc", "h264_qsv", "h264_amf", "libopenh264", "h264_mf")
_SUFFIXES = (".mp4", ".m4v", ".mov")


class VideoWriter:
    """Writes an H.264 video that browsers can play, with the sound of another video; a context manager.

    The format is 8-bit 4:2:0 in BT.709 limited range, tagged as such, with the index at the front (fast start). The
    file appears under its name when the block ends without an exception; otherwise nothing is left. The same frames
    give the same bytes, unless `seal` adds others. Frames are encoded in a thread of their own while the caller makes
    the next ones.

    Args:
        path: output file, .mp4 (or .m4v, .mov).
        fps: frame rate.
        size: (width, height) in pixels, both even; or one number for a square.
        audio_from: a video whose sound is carried over, from the time of its first frame and for as long as frames are
            written. AAC is copied, other codecs are re-encoded as AAC. A video without sound adds none.
        audio_start_s: seconds to skip at the start of that sound.
        crf: x264's constant rate factor; lower is better (17 is visually lossless).
        metadata: container tags, such as title or comment.
        timed: frames come with their own times, in milliseconds; `fps` is only what the file states.
        paint: changes each frame, in the encoding thread: uint8 (H, W, 3) to the same shape.
        seal: changes the complete file, under its temporary name, before it appears.

    Raises:
        OutputError: on entering, writing or leaving, if the file cannot be written.
        ConfigError: an odd size, an invalid frame rate, or an unsupported suffix.
        BadVideo: `audio_from` is not a video.

    >>> with VideoWriter("out.mp4", 25, 256) as writer:      # doctest: +SKIP
    ...     for frame in frames:
    ...         writer.write(frame)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fps: float | Fraction,
        size: tuple[int, int] | int,
        audio_from: str | os.PathLike[str] | None = None,
        *,
        audio_start_s: float = 0.0,
        crf: float = 17.0,
        metadata: dict[str, str] | None = None,
        timed: bool = False,
        paint: Callable[[Pixels], Pixels] | None = None,
        seal: Callable[[Path], None] | None = None,
    ) -> None:
        self.path = Path(path)
        self.fps = exact_rate(fps)
        self.width, self.height = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        self._tick = Fraction(1, 1000) if timed else 1 / self.fps
        self.frames_written = 0
        self._audio_from = audio_from
        self._audio_start_s = audio_start_s
        self._crf = crf
        self._metadata = dict(metadata or {})
        self._paint, self._seal = paint, seal
        self._stack = ExitStack()
        if self.path.suffix.lower() not in _SUFFIXES:
            raise ConfigError(f"{self.path} must end in {' or '.join(_SUFFIXES)}; rename the output")
        if self.width < 2 or self.height < 2 or self.width % 2 or self.height % 2:
            raise ConfigError(
                f"a video needs an even width and height, got {self.width} x {self.height}; crop or resize"
            )
        if max(self.width, self.height) > MAX_SIDE:
            raise ConfigError(f"a video may have at most {MAX_SIDE} pixels a side, got {self.width} x {self.height}")

    def __enter__(self) -> VideoWriter:
        import av
        from av.video.reformatter import VideoReformatter

        with ExitStack() as stack:
            self._temporary = stack.enter_context(files.replacing(self.path))
            stack.enter_context(self._named_failures())
            self._container: OutputContainer = av.open(
                "file:" + str(self._temporary.absolute()),
                "w",
                format="mov" if self.path.suffix.lower() == ".mov" else "mp4",
                options={"movflags": "+faststart", "fflags": "+bitexact"},
            )
            stack.callback(self._abandon)
            self._container.metadata.update(self._metadata)
            self._stream = self._add_video()
            self._reformatter: VideoReformatter = VideoReformatter()
            self._sound: Sound | None = None
            if self._audio_from is not None:
                sound = stack.enter_context(carried_sound(self._audio_from, self._container, self._audio_start_s))
                self._sound = sound
            self._container.start_encoding()
            self._thread = ThreadPoolExecutor(1, "encode")
            self._waiting: deque[Future[None]] = deque()
            stack.callback(self._thread.shutdown, cancel_futures=True)
            self._stack = stack.pop_all()
        return self

    def write(self, frame: Pixels, time_ms: int | None = None) -> None:
        """Append one frame, uint8 (H, W, 3) RGB; `ShapeError` for any other size or type.

        `time_ms`, ascending, is needed for a writer with `timed`, and for no other.
        """
        check_shape(frame, f"{self.height} {self.width} 3", "a video frame")
        if frame.dtype != np.uint8:
            raise ShapeError(f"a video frame must be uint8, got {frame.dtype}")
        copied = np.array(frame, order="C")
        self._waiting.append(self._thread.submit(self._encode, copied, self.frames_written, time_ms))
        self.frames_written += 1
        if len(self._waiting) > DEPTH:
            self._waiting.popleft().result()

    def _encode(self, frame: Pixels, number: int, time_ms: int | None) -> None:
        """Encode one frame, and write it with the sound that ends with it; in the thread."""
        import av

        painted = frame if self._paint is None else np.ascontiguousarray(self._paint(frame))
        picture = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(painted, format="rgb24"),
            format="yuv420p",
            src_colorspace=BT709,
            dst_colorspace=BT709,
            interpolation=SWS_QUALITY,
            src_color_range=FULL,
            dst_color_range=LIMITED,
            threads=1,
        )
        picture.pts = number if time_ms is None else time_ms
        picture.time_base = self._tick
        for packet in self._stream.encode(picture):
            self._container.mux(packet)
        if self._sound is not None:
            self._sound.write_until((number + 1) / self.fps)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            with self._stack:
                self._finish()
        else:
            self._stack.__exit__(kind, error, trace)

    def _add_video(self) -> VideoStream:
        import av

        name = next((name for name in _ENCODERS if name in av.codecs_available), None)
        if name is None:
            raise OutputError(f"cannot write {self.path}: PyAV has no H.264 encoder here; run: pip install -U av")
        x264 = {"crf": f"{self._crf:g}", "preset": "medium", "mbtree": "0"} if name == "libx264" else {}
        stream: VideoStream = self._container.add_stream(name, rate=self.fps, options=x264)  # type: ignore[assignment]
        stream.width, stream.height, stream.pix_fmt = self.width, self.height, "yuv420p"
        if name != "libx264":
            stream.bit_rate = max(1_000_000, self.width * self.height * 20)
        context = stream.codec_context
        context.time_base = self._tick
        context.thread_count = 1  # x264's bytes depend on the number of threads (and, with mbtree, on stale memory)
        context.color_range, context.colorspace = LIMITED, BT709
        context.color_primaries, context.color_trc = 1, 1
        return stream

    def _finish(self) -> None:
        if self.frames_written == 0:
            raise OutputError(f"cannot write {self.path}: there are no frames")
        for encoded in self._waiting:
            encoded.result()
        for packet in self._stream.encode(None):
            self._container.mux(packet)
        if self._sound is not None:
            self._sound.finish(self.frames_written / self.fps)
        self._container.close()
        if not _is_whole_mp4(self._temporary):  # FFmpeg does not report a failure of the last write
            raise OutputError(f"cannot write {self.path}: the disk is full; free some space or choose another folder")
        if self._seal is not None:
            self._seal(self._temporary)

    def _abandon(self) -> None:
        with suppress(Exception):  # after a failure, closing fails again; only the first failure is reported
            self._container.close()

    @contextmanager
    def _named_failures(self) -> Iterator[None]:
        import av

        try:
            yield
        except (av.FFmpegError, OSError) as problem:
            raise files.write_failure(self.path, problem) from problem


def _is_whole_mp4(path: Path) -> bool:
    """Whether the file is a sequence of complete boxes that includes an index and data."""
    size = path.stat().st_size
    kinds, at = set(), 0
    with path.open("rb") as file:
        while at + 8 <= size:
            file.seek(at)
            head = file.read(16)
            length = int.from_bytes(head[:4], "big")
            if length == 1:
                length = int.from_bytes(head[8:16], "big")
            if length < 8:
                return False
            kinds.add(head[4:8])
            at += length
    return at == size and {b"moov", b"mdat"} <= kinds
