"""Throughput of one renderer of `export3d serve` with and without merging, in one run: the table in docs/cluster.md.

    python benchmarks/serve.py [--users 4] [--seconds 20] [--device auto] [--engine auto]

Starts a Ray of its own and one replica, which merges and does not in turn. `--users` clients animate the bundled
portrait with crops of 256 pixels at the same time, for a while, through the deployment's handle. Prints frames per
second, frames per second of the replica's processor time (which other programs disturb less), and how many calls a
batch had.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from typing import Any

from export3d.animate.drive import bundled_portrait
from export3d.serve.parcels import Sender
from export3d.serve.renderer import ONGOING
from export3d.serve.running import Replicas, deployed

FRAMES = 25
"""Of a job."""
POLICY = 'marks = "required"\nlabel = false\nconsent = "open"\n'


async def user(handle: Any, number: int, end: float, sender: Sender) -> int:
    """Jobs one after the other until the end; frames that were delivered."""
    portrait = {"id": f"user-{number}", "path": str(bundled_portrait()), "digest": None, "name": "astronaut.png"}
    frames = job = 0
    while time.monotonic() < end:
        job += 1
        asked = {
            "id": f"{number}-{job}", "verb": "animate", "portrait": portrait, "motion": "speech", "frame": "crop",
            "size": 256, "start": 0.2 * number, "seconds": FRAMES / 25.0, "sheet": False, "policy": POLICY,
        }  # fmt: skip
        async for event in handle.options(stream=True).job.remote({**sender.packed(asked), "policy": POLICY}):
            if event["op"] == "failed":
                raise SystemExit(event["error"])
        frames += FRAMES
    return frames


async def measured(
    handle: Any, sender: Sender, merge: int, users: int, seconds: float
) -> tuple[float, float, Counter[int]]:
    """Frames per second, and per second of processor time; batches by their number of calls."""
    await handle.merge.remote(merge)
    before = await handle.load.remote()
    begun = time.monotonic()
    frames = await asyncio.gather(*(user(handle, number, begun + seconds, sender) for number in range(users)))
    took = time.monotonic() - begun
    after = await handle.load.remote()
    busy = after["processor_s"] - before["processor_s"]
    return sum(frames) / took, sum(frames) / busy, Counter(after["batches"]) - Counter(before["batches"])


async def compared(handle: Any, users: int, seconds: float, rounds: int) -> None:
    """Both ways in turn, after a round that compiles and encodes."""
    import ray

    sender = Sender(ray.put)
    await measured(handle, sender, ONGOING, users, 0.1)
    for merge in (1, ONGOING) * rounds:
        speed, own, batches = await measured(handle, sender, merge, users, seconds)
        calls = sum(size * count for size, count in batches.items()) / max(sum(batches.values()), 1)
        print(
            f"merging at most {merge}: {speed:.2f} frames/s, {own:.2f} per processor-second, {calls:.2f} calls a batch",
            flush=True,
        )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--engine", default="auto")
    options = parser.parse_args()
    settings = {"weights": None, "pure": False, "device": options.device, "engine": options.engine}
    with deployed(Replicas(), settings) as handle:
        asyncio.run(compared(handle, options.users, options.seconds, options.rounds))


if __name__ == "__main__":
    main()
