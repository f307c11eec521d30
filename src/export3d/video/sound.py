"""Carries the sound of one video into another: AAC is copied, other codecs are re-encoded."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from export3d.video.reading import opened, opened_frames

if TYPE_CHECKING:
    from av import Packet
    from av.audio.frame import AudioFrame
    from av.container import InputContainer, OutputContainer

log = logging.getLogger(__name__)

_AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)
_AAC_FRAME = 1024


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

    Time 0 is `start_s` seconds after the first frame of the video. A track that cannot be decoded is left out with a
    warning.
    """
    with opened_frames(path) as film:
        start = next(film.timed).time + Fraction(start_s).limit_denominator(1_000_000)
    with opened(path) as (container, _, demuxer):
        tracks = [track for track in container.streams.audio if track.codec_context is not None]
        if not tracks:
            if container.streams.audio:
                log.warning("%s: the sound cannot be decoded and is left out", path)
            yield None
            return
        track = tracks[0]
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
    """Decoded sound from `start` on, in planar float frames of 1024 samples; silence if the track begins later."""
    import av

    resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
    channels = 1 if layout == "mono" else 2
    waiting: NDArray[np.float32] = np.zeros((channels, 0), np.float32)
    begun = False
    count = 0

    def frame_of(samples: NDArray[np.float32]) -> tuple[AudioFrame, Fraction]:
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, count * _AAC_FRAME, Fraction(1, rate)
        return frame, Fraction(count * _AAC_FRAME, rate)

    skip = 0
    for decoded in _decoded_audio(container, track):
        if not begun:
            at = Fraction(decoded.pts or 0) * Fraction(decoded.time_base or track.time_base) - start
            lead = round(at * rate)
            waiting, skip, begun = np.zeros((channels, min(max(lead, 0), rate * 3600)), np.float32), max(-lead, 0), True
        decoded.pts = None  # or else the resampler fills gaps between time stamps
        for part in resampler.resample(decoded):
            samples: NDArray[np.float32] = np.asarray(part.to_ndarray(), dtype=np.float32)
            dropped = min(skip, samples.shape[1])
            skip -= dropped
            waiting = np.concatenate([waiting, samples[:, dropped:]], axis=1)
        while waiting.shape[1] >= _AAC_FRAME:
            yield frame_of(waiting[:, :_AAC_FRAME])
            waiting = waiting[:, _AAC_FRAME:]
            count += 1
    if waiting.shape[1]:
        yield frame_of(np.pad(waiting, ((0, 0), (0, _AAC_FRAME - waiting.shape[1]))))


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
