"""Small videos whose frames show their number, and the sound in them: for tests only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS = 10


def numbered(k: int, width: int = 80, height: int = 48) -> np.ndarray:
    """A frame that shows its number: ten stripes, white for a one."""
    stripes = np.array([(k >> bit) & 1 for bit in range(BITS)], np.uint8) * 255
    row = stripes[np.arange(width) * BITS // width]
    return np.ascontiguousarray(np.broadcast_to(row[None, :, None], (height, width, 3)))


def number(frame: np.ndarray) -> int:
    """The number that a frame shows."""
    width = frame.shape[1]
    middle = frame[frame.shape[0] // 2, (np.arange(BITS) * width + width // 2) // BITS].mean(axis=-1)
    return sum(1 << bit for bit in range(BITS) if middle[bit] > 127)


def clip(
    path: Path,
    frames: int | Iterable[np.ndarray] = 10,
    fps: float | Fraction = 25,
    times: Sequence[float] | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    sound: np.ndarray | None = None,
    sound_codec: str = "aac",
    sound_rate: int = 48000,
    sound_at: float = 0.0,
    aspect: Fraction | None = None,
    transfer: int | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    title: str = "",
) -> Path:
    """A small video made with PyAV alone; `times` are the frames' seconds, `sound` is (channels, samples) in -1..1."""
    pictures = [numbered(k) for k in range(frames)] if isinstance(frames, int) else list(frames)
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(str(path), "w", options=container_options or {}) as container:
        container.metadata.update({"title": title} if title else {})
        stream = container.add_stream(
            codec, rate=rate, options=options or ({"crf": "10"} if codec == "libx264" else {})
        )
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pix_fmt
        tick = Fraction(1, 1000) if times is not None else 1 / rate
        if times is not None:
            stream.codec_context.time_base = tick
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if transfer is not None:
            stream.codec_context.color_trc = transfer
        track = None
        if sound is not None:
            track = container.add_stream(sound_codec, rate=sound_rate)
            track.layout = "mono" if len(sound) == 1 else "stereo"
        for k, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = round(times[k] * 1000) if times is not None else k
            frame.time_base = tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if track is not None:
            assert sound is not None
            for start in range(0, sound.shape[1], 1024):
                part = np.ascontiguousarray(sound[:, start : start + 1024], np.float32)
                samples = av.AudioFrame.from_ndarray(part, format="fltp", layout=track.layout.name)
                samples.sample_rate, samples.time_base = sound_rate, Fraction(1, sound_rate)
                samples.pts = start + round(sound_at * sound_rate)
                container.mux(track.encode(samples))
            container.mux(track.encode(None))
    return path


def beep(at: float, seconds: float, channels: int = 1, rate: int = 48000) -> np.ndarray:
    """Silence with a loud tone from `at` on for 0.2 s."""
    t = np.arange(round(seconds * rate)) / rate
    tone = 0.8 * np.sin(2 * np.pi * 1000 * t) * ((t >= at) & (t < at + 0.2))
    return np.tile(tone, (channels, 1))


def heard(path: Path) -> tuple[np.ndarray, int]:
    """The sound track as a player plays it, (samples,), from the time of the first picture on, and its rate."""
    with av.open(str(path)) as container:
        start = next(container.decode(video=0)).time
    with av.open(str(path)) as container:
        out: list[np.ndarray] = []
        origin = None
        resampler = av.AudioResampler(format="fltp", layout="mono")
        for frame in container.decode(audio=0):
            origin = frame.time if origin is None else origin
            out += [part.to_ndarray()[0] for part in resampler.resample(frame)]
        rate = container.streams.audio[0].rate
    assert origin is not None
    sound = np.concatenate(out)
    shift = round((origin - start) * rate)
    return (np.pad(sound, (shift, 0)) if shift >= 0 else sound[-shift:]), rate


def onset(path: Path) -> float:
    """When the beep begins, seconds after the first picture."""
    sound, rate = heard(path)
    return float(np.flatnonzero(np.abs(sound) > 0.3)[0]) / rate


def animation(path: Path, frames: int, **options: object) -> Path:
    """An animated image made with Pillow."""
    from PIL import Image

    first, *others = (Image.fromarray(numbered(k)) for k in range(frames))
    first.save(path, save_all=True, append_images=others, **options)
    return path
