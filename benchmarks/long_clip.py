"""The memory of `export3d animate` over a long clip: makes the clip, animates it, and plots the memory.

    python benchmarks/long_clip.py CLIP -o docs/images/memory.webp

CLIP: a short video of a face. Its frames are played to and fro in a frame of 1920 x 1080 pixels, for ten minutes, with
a tone. The command runs as a process of its own, whose resident memory is read every half second. Ends with code 1 if
it was ever 1 GB or more, or if the last quarter of tracking or of rendering needed a twentieth more than the second.
Other options go to the command.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image

from export3d.animate.drive import bundled_portrait
from export3d.video import FPS, VideoWriter, read_frames

PIECE_FRAMES = 250
MOST_MB = 1000
EVERY_S = 0.5


def piece(clip: Path, size: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
    """PIECE_FRAMES frames of the clip, to and fro, in the middle of a frame of (width, height)."""
    width, height = size
    frames = list(islice(read_frames(clip), PIECE_FRAMES // 2))
    frames += frames[::-1]
    for number in range(PIECE_FRAMES):
        face = Image.fromarray(frames[number % len(frames)])
        scale = 0.9 * height / face.height
        face = face.resize((round(face.width * scale), round(face.height * scale)), Image.Resampling.BICUBIC)
        canvas = Image.new("RGB", size, (70, 90, 110))
        canvas.paste(face, ((width - face.width) // 2, height - face.height))
        yield np.asarray(canvas)


def make_clip(clip: Path, path: Path, size: tuple[int, int], minutes: float) -> None:
    """A long video: one encoded piece, whose packets are repeated, and a tone."""
    short = path.with_name("piece.mp4")
    with VideoWriter(short, FPS, size) as writer:
        for frame in piece(clip, size):
            writer.write(frame)
    with av.open(str(path), "w") as out, av.open(str(short)) as source:
        stream = source.streams.video[0]
        video = out.add_stream_from_template(stream)
        sound = out.add_stream("aac", rate=48000, layout="mono")
        packets = [packet for packet in source.demux(stream) if packet.size]
        length = round(PIECE_FRAMES / FPS / stream.time_base)
        for repeat in range(round(minutes * 60 * FPS / PIECE_FRAMES)):
            for packet in packets:
                copied = av.Packet(bytes(packet))
                copied.pts, copied.dts = packet.pts + repeat * length, packet.dts + repeat * length
                copied.time_base, copied.is_keyframe, copied.stream = packet.time_base, packet.is_keyframe, video
                out.mux(copied)
            second = np.arange(round(PIECE_FRAMES / FPS) * 48000, dtype=np.float32) / 48000
            tone = 0.1 * np.sin(2 * np.pi * 300 * second)
            frame = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = 48000, Fraction(1, 48000), repeat * tone.size
            out.mux(sound.encode(frame))
        out.mux(sound.encode(None))


def sample(command: list[str], output: Path) -> tuple[list[float], list[float], float]:
    """Run a command; times (s) and resident memory (MB), and when the output's temporary file appeared (s)."""
    began = time.monotonic()
    times, sizes, rendering = [], [], 0.0
    with subprocess.Popen(command) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            size = watched.memory_info().rss / 1e6
            if size:  # a process that has ended has none
                sizes.append(size)
                times.append(time.monotonic() - began)
            if not rendering and any(output.parent.iterdir()):
                rendering = times[-1]
            time.sleep(EVERY_S)
    if process.wait():
        raise SystemExit(process.returncode)
    return times, sizes, rendering


def growth(times: list[float], sizes: list[float], first: float, last: float) -> float:
    """Largest memory of the last quarter of a span over that of its second quarter."""
    at, mb = np.array(times), np.array(sizes)
    place = (at - first) / (last - first)
    return float(mb[(place > 0.75) & (place <= 1.0)].max() / mb[(place > 0.25) & (place <= 0.5)].max())


def plot(path: Path, times: list[float], sizes: list[float], rendering: float, title: str) -> None:
    """Memory over time, as an image whose format the path's ending tells."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(np.array(times) / 60, sizes, linewidth=1.2)
    axes.axvline(rendering / 60, color="grey", linestyle=":", linewidth=1)
    axes.axhline(MOST_MB, color="firebrick", linestyle="--", linewidth=1)
    axes.set(xlabel="minutes", ylabel="resident memory, MB", ylim=(0, 1.1 * max(MOST_MB, *sizes)), title=title)
    axes.text(rendering / 60, 40, " rendering", color="grey")
    axes.text(rendering / 60, 40, "tracking ", color="grey", ha="right")
    figure.savefig(path, dpi=110)


def main() -> int:
    """Make the clip, run the command, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("clip", type=Path, help="a short video of a face")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the plot (.webp or .png)")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--size", type=int, nargs=2, default=(1920, 1080), metavar=("WIDTH", "HEIGHT"))
    given, options = parser.parse_known_args()
    with TemporaryDirectory() as folder:
        clip, out = Path(folder) / "long.mp4", Path(folder) / "out" / "animated.mp4"
        out.parent.mkdir()
        make_clip(given.clip, clip, tuple(given.size), given.minutes)
        command = [sys.executable, "-m", "export3d", "animate", str(bundled_portrait()), "--driving", str(clip)]
        times, sizes, rendering = sample([*command, "-o", str(out), *options], out)
    spans = {"tracking": (0.0, rendering), "rendering": (rendering, times[-1])}
    grown = {name: growth(times, sizes, *span) for name, span in spans.items()}
    width, height = given.size
    plot(
        given.output,
        times,
        sizes,
        rendering,
        f"animate, {given.minutes:g} minutes of {width} x {height} at {FPS:g} fps",
    )
    print(f"largest {max(sizes):.0f} MB; {times[-1]:.0f} s, of which tracking {rendering:.0f} s")
    print("last quarter over second quarter: " + ", ".join(f"{name} {ratio:.3f}" for name, ratio in grown.items()))
    return int(max(sizes) >= MOST_MB or max(grown.values()) > 1.05)


if __name__ == "__main__":
    raise SystemExit(main())
