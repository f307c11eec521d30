"""Carries the sound of a video into another file: AAC is copied, other codecs are re-encoded."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from export3d import files
from export3d.errors import BadVideo
from export3d.video.animated_image import is_animated
from export3d.video.reading import default_stream, opened_container, opened_frames, videos

if TYPE_CHECKING:
    from av import Packet
    from av.audio.frame import AudioFrame
    from av.container import InputContainer, OutputContainer

log = logging.getLogger(__name__)

_AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)
_AAC_FRAME = 1024
_LEAST_GAP_S, _MOST_JITTER_S = Fraction(15, 1000), Fraction(40, 1000)


class Sound:
    """Feeds sound to the muxer, never beyond the frames written so far."""

    def __init__(self, pieces: Iterator[tuple[Any, Fraction]], put: Callable[[Any], None]) -> None:
        self._pieces = pieces
        self._put = put
        self._next = next(pieces, None)

    def write_until(self, end: Fraction) -> None:
        """Write all pieces that begin before `end`, seconds of the output."""
        while self._next is not None and self._next[1] < end:
            self._put(self._next[0])
            self._next = next(self._pieces, None)

    def finish(self, end: Fraction) -> None:
        """Write the remaining pieces that begin before `end` and flush the encoder."""
        self.write_until(end)
        self._put(None)


@contextmanager
def carried_sound(path: str | os.PathLike[str], output: OutputContainer, start_s: float) -> Iterator[Sound | None]:
    """The sound of a video, ready to be muxed into `output`; None if there is none.

    Of several tracks it is the one that players choose: the first that the container marks as default. Time 0 is
    `start_s` seconds after the first frame of the video, or of a file of sound alone after its own time 0. A track that
    cannot be decoded is left out with a warning.
    """
    start = _first_frame(path) + Fraction(start_s).limit_denominator(1_000_000)
    if is_animated(Path(path)):
        yield None
        return
    with opened_container(path) as (container, demuxer):
        tracks = [track for track in container.streams.audio if track.codec_context is not None]
        if not container.streams.audio:
            yield None
            return
        if not tracks:
            log.warning("%s: the sound cannot be decoded and is left out", path)
            yield None
            return
        track = default_stream(tracks)
        copied = track.codec_context.name == "aac" and demuxer in ("mov", "matroska") and track.codec_context.extradata
        stream: Any
        pieces: Iterator[tuple[Any, Fraction]]
        if copied:
            stream = output.add_stream_from_template(track)
            pieces = _copied_packets(container, track, start)
        else:
            rate = min(_AAC_RATES, key=lambda known: (abs(known - track.codec_context.sample_rate), -known))
            layout = "mono" if len(track.codec_context.layout.channels) == 1 else "stereo"
            stream = output.add_stream("aac", rate=rate)
            stream.layout, stream.bit_rate = layout, 96_000 if layout == "mono" else 160_000
            pieces = _resampled_audio(container, track, start, rate, layout)

        def put(piece: Any) -> None:
            if not copied:
                output.mux(stream.encode(piece))
            elif piece is not None:
                piece.stream = stream
                output.mux(piece)

        yield Sound(pieces, put)


def write_sound(path: str | os.PathLike[str], video: str | os.PathLike[str], start_s: float, seconds: float) -> None:
    """Write the sound of a part of a video to an MP4 file of sound alone, whose time 0 is `start_s`.

    The file of a video without sound is empty.

    Raises:
        BadVideo: the video cannot be read.  OutputError: the file cannot be written.
    """
    import av

    with (
        files.replacing(path) as temporary,
        av.open("file:" + str(temporary.absolute()), "w", format="mp4") as container,
        carried_sound(video, container, start_s) as sound,
    ):
        if sound is not None:
            container.start_encoding()
            sound.finish(Fraction(seconds).limit_denominator(1_000_000))


def _first_frame(path: str | os.PathLike[str]) -> Fraction:
    """The time of a video's first frame, seconds; 0 in a file of sound alone."""
    if not is_animated(files.check_input(path, BadVideo, "a video")):
        with opened_container(path) as (container, _):
            if container.streams.audio and not videos(container):
                return Fraction(0)
    with opened_frames(path) as film:
        return next(film.timed).time


def _copied_packets(container: InputContainer, track: Any, start: Fraction) -> Iterator[tuple[Packet, Fraction]]:
    """Encoded packets from one packet before `start` (the codec overlaps packets), with times relative to `start`."""
    tick = Fraction(track.time_base)
    shift = round(start / tick)
    previous: int | None = None
    for packet in _packets(container, track):
        if packet.pts is None:
            continue
        length = packet.duration or round(Fraction(_AAC_FRAME, track.codec_context.sample_rate) / tick)
        moved = packet.pts - shift
        if moved + 2 * length <= 0 or (previous is not None and moved <= previous):
            continue
        previous = packet.pts = packet.dts = moved
        yield packet, moved * tick


def _resampled_audio(
    container: InputContainer, track: Any, start: Fraction, rate: int, layout: str
) -> Iterator[tuple[AudioFrame, Fraction]]:
    """Decoded sound from `start` on, in planar float frames of 1024 samples; silence where the track has none."""
    import av

    waiting: NDArray[np.float32] = np.zeros((1 if layout == "mono" else 2, 0), np.float32)
    count = 0

    def frame_of(samples: NDArray[np.float32]) -> tuple[AudioFrame, Fraction]:
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, count * _AAC_FRAME, Fraction(1, rate)
        return frame, Fraction(count * _AAC_FRAME, rate)

    for samples in _placed(_decoded_audio(container, track), start, rate, layout):
        waiting = np.concatenate([waiting, samples], axis=1)
        while waiting.shape[1] >= _AAC_FRAME:
            yield frame_of(waiting[:, :_AAC_FRAME])
            waiting = waiting[:, _AAC_FRAME:]
            count += 1
    if waiting.shape[1]:
        yield frame_of(np.pad(waiting, ((0, 0), (0, _AAC_FRAME - waiting.shape[1]))))


def _placed(decoded: Iterator[AudioFrame], start: Fraction, rate: int, layout: str) -> Iterator[NDArray[np.float32]]:
    """Samples (channels, N) that follow one another without gaps from `start` on.

    Frames are placed by their time stamps: silence fills gaps, and what lies before `start` or overlaps earlier sound
    is dropped. Errors of time stamps that are smaller than a frame are left alone, since a correction would be heard.
    """
    given = 0
    for run, time in _runs(decoded):
        skip = given - round((time - start) * rate)
        while skip < 0:
            pause = np.zeros((1 if layout == "mono" else 2, min(-skip, rate)), np.float32)
            skip, given = skip + pause.shape[1], given + pause.shape[1]
            yield pause
        for samples in _resampled(run, rate, layout):
            kept = samples[:, skip:]
            skip, given = max(skip - samples.shape[1], 0), given + kept.shape[1]
            yield kept


def _runs(decoded: Iterator[AudioFrame]) -> Iterator[tuple[Iterator[AudioFrame], Fraction]]:
    """Runs of frames of one format without a gap, each with the time of its first frame, seconds of the file's clock.

    Two frames belong to one run if the second is where the first ends, to within half of its own length, which is less
    than a lost frame (but at least 15 ms, since clocks of containers are coarse, and at most 40 ms).
    """
    waiting = next(decoded, None)
    due = Fraction(0)

    def time_of(frame: AudioFrame) -> Fraction:
        return due if frame.pts is None or not frame.time_base else frame.pts * Fraction(frame.time_base)

    def format_of(frame: AudioFrame) -> tuple[str, str, int]:
        return frame.format.name, frame.layout.name, frame.sample_rate

    def run(first: AudioFrame) -> Iterator[AudioFrame]:
        nonlocal waiting, due
        kind, start, samples = format_of(first), time_of(first), 0
        while waiting is not None:
            length = Fraction(waiting.samples, waiting.sample_rate)
            slack = min(max(length / 2, _LEAST_GAP_S), _MOST_JITTER_S)
            if format_of(waiting) != kind or (samples and abs(time_of(waiting) - due) > slack):
                return
            frame = waiting
            samples += frame.samples
            due = start + Fraction(samples, frame.sample_rate)
            waiting = next(decoded, None)
            yield frame

    while waiting is not None:
        yield run(waiting), time_of(waiting)


def _resampled(run: Iterator[AudioFrame], rate: int, layout: str) -> Iterator[NDArray[np.float32]]:
    """(channels, N) float samples of frames of one format."""
    import av

    resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
    for frame in chain(run, [None]):
        if frame is not None:
            frame.pts = None  # or else the resampler fills gaps between time stamps
        for part in resampler.resample(frame):
            if part is not None:
                yield np.asarray(part.to_ndarray(), dtype=np.float32)


def _decoded_audio(container: InputContainer, track: Any) -> Iterator[AudioFrame]:
    import av

    for packet in _packets(container, track):
        with suppress(av.FFmpegError):
            yield from packet.decode()
    with suppress(av.FFmpegError):
        yield from track.codec_context.decode(None)


def _packets(container: InputContainer, track: Any) -> Iterator[Any]:
    """Non-empty packets, up to the end of the file or the point where it is cut off."""
    import av

    with suppress(av.FFmpegError):
        for packet in container.demux(track):
            if packet.size:
                yield packet
