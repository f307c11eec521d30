"""Frame rate, latency and memory of `export3d live` from a file that plays in real time.

    python benchmarks/live.py [--camera VIDEO] [--minutes 5] [--engine auto]

The video is repeated until it fills the time. By default it is the bundled portrait, animated by the bundled motion
`speech`. One row per half minute: frames per second are new ones, shown; latency runs from the time at which the
video's frame was due until its image was handed over. Memory is the process's resident set; the last line compares its
largest value in the second and in the last fifth of the run.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import av
from tqdm import tqdm

from export3d.animate.animator import Animator
from export3d.animate.drive import bundled_motion, bundled_portrait, driving_motion
from export3d.animate.export import write_video
from export3d.animate.live import Live

ROW_S = 30.0


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--camera", type=Path)
    arguments.add_argument("--minutes", type=float, default=5.0)
    arguments.add_argument("--engine", default="auto")
    options = arguments.parse_args()
    animator = Animator.from_pretrained(device="cpu", engine=options.engine)
    source = animator.encode(bundled_portrait())
    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder) / "film.mp4"
        once = options.camera or Path(folder) / "once.mp4"
        if options.camera is None:
            motion = driving_motion(bundled_motion("speech"))
            write_video(once, tqdm(animator.animate(source, motion), "rendering the video", len(motion)))
        repeat(once, film, 60.0 * options.minutes)
        print(
            "| seconds | frames per second | latency, median, ms | 95th percentile, ms | memory, MB |\n|"
            + " ---: |" * 5
        )
        memory = rows(Live(animator, source, str(film)))
    fifth = max(len(memory) // 5, 1)
    print(
        f"\nmemory: {max(memory[fifth : 2 * fifth]):.1f} MB in the second fifth, {max(memory[-fifth:]):.1f} in the last"
    )


def repeat(once: Path, film: Path, seconds: float) -> None:
    """Write a video that repeats another one, without encoding it again."""
    with av.open(str(once)) as reader, av.open(str(film), "w") as writer:
        stream = reader.streams.video[0]
        copy = writer.add_stream_from_template(stream)
        packets = [packet for packet in reader.demux(stream) if packet.size]
        for number in range(max(round(seconds / float(stream.duration * stream.time_base)), 1)):
            for packet in packets:
                again = av.Packet(bytes(packet))
                again.stream, again.time_base, again.is_keyframe = copy, packet.time_base, packet.is_keyframe
                again.pts, again.dts = (at + number * stream.duration for at in (packet.pts, packet.dts))
                writer.mux(again)


def rows(live: Live) -> list[float]:
    """Print a row per `ROW_S` and one of the whole run; returns the resident set of every second, MB."""
    memory: list[float] = []
    since, shown = 0.0, 0
    for frame in live:
        if frame.time_s >= len(memory):
            memory.append(resident_mb())
        if frame.time_s - since >= ROW_S:
            count = live.stats.shown - shown
            row(frame.time_s, count / (frame.time_s - since), live, count, memory[-1])
            since, shown = frame.time_s, live.stats.shown
    row(live.stats.seconds, live.stats.fps(), live, None, max(memory))
    return memory


def row(seconds: float, fps: float, live: Live, last: int | None, memory: float) -> None:
    latency = f"{live.stats.latency_ms(50, last):.0f} | {live.stats.latency_ms(95, last):.0f}"
    print(f"| {seconds:.0f} | {fps:.1f} | {latency} | {memory:.0f} |", flush=True)


def resident_mb() -> float:
    """Of this process, on Linux."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


if __name__ == "__main__":
    main()
