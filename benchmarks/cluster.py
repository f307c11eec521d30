"""What a Ray cluster costs: `prepare` by processes and by Ray in turn, on the same clips, in one run.

    python benchmarks/cluster.py [--clips 60] [--seconds 4] [--workers 2] [--rounds 2]

Makes clips of the bundled portrait in motion, starts a Ray of this machine, and lets both prepare them with the same
number of workers. A Ray that runs is what a cluster has: its start is told apart. Prints seconds, the ratio of each
round, and the throughput.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from export3d.bench.clip import portrait_frames
from export3d.data.prepare import prepare
from export3d.video import FPS, VideoWriter
from export3d.workers.cluster import Cluster
from export3d.workers.run import Workers


def make_clips(folder: Path, count: int, seconds: float) -> None:
    """Clips of 384 x 384 pixels that differ in their darkest pixels."""
    frames = [frame[:, 128:512] for frame in portrait_frames(round(seconds * FPS), 640, 384)]
    for number in range(count):
        with VideoWriter(folder / f"{number:03d}.mp4", FPS, 384) as writer:
            for frame in frames:
                writer.write(np.maximum(frame, np.uint8(number)))


def timed(clips: Path, out: Path, workers: Workers) -> float:
    """Seconds of one `prepare`, from nothing."""
    shutil.rmtree(out, ignore_errors=True)
    begun = time.perf_counter()
    report = prepare([clips], out, workers=workers, val_fraction=0.0)
    took = time.perf_counter() - begun
    assert not report.rejects, report.rejects[0]
    return took


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    import ray

    with tempfile.TemporaryDirectory() as name:
        clips = Path(name) / "clips"
        clips.mkdir()
        make_clips(clips, given.clips, given.seconds)
        begun = time.perf_counter()
        ray.init(address="local", num_cpus=given.workers, include_dashboard=False, log_to_driver=False)
        print(f"Ray started in {time.perf_counter() - begun:.1f} s")
        ratios = []
        for number in range(given.rounds):
            ways: list[tuple[str, Workers]] = [("processes", given.workers), ("Ray", Cluster())]
            took = {}
            for way, workers in ways if number % 2 == 0 else ways[::-1]:
                took[way] = timed(clips, Path(name) / "out", workers)
            ratios.append(took["Ray"] / took["processes"])
            print(f"processes {took['processes']:.1f} s, Ray {took['Ray']:.1f} s: {ratios[-1]:.3f}", flush=True)
        frames = given.clips * round(given.seconds * FPS)
        print(f"Ray's time over processes': median {statistics.median(ratios):.3f}")
        print(f"{frames / took['processes']:.0f} frames per second by {given.workers} processes")
        ray.shutdown()


if __name__ == "__main__":
    main()
