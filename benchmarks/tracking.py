"""How well faces are tracked: a table of the clips of one split, in Markdown.

    python benchmarks/tracking.py DATA/manifest.csv [--split val]

Columns: frames found; mean distance of the 33 pose landmarks from their projections (median over frames, pixels at
256), through the tracked camera with the person's own face shape, and with the canonical mesh alone; range of yaw;
tremor (median absolute second difference of yaw, degrees); the camera's distance, scene units; milliseconds a frame.
"""

from __future__ import annotations

import argparse
import csv
import logging
import time
from pathlib import Path

import numpy as np

import export3d.camera as camera
from export3d.face import pose
from export3d.face.tracker import Tracker

HEADER = "| clip | frames | found % | own shape px | canonical px | yaw | tremor | distance | ms |"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("manifest", type=Path)
    arguments.add_argument("--split", default="val")
    options = arguments.parse_args()
    logging.basicConfig(level=logging.WARNING)
    with open(options.manifest, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == options.split and row["kind"] == "video"]
    print(HEADER)
    print("|" + " --- |" * (HEADER.count("|") - 1))
    found, own, canonical = [], [], []
    with Tracker() as tracker:
        for row in rows:
            start = time.perf_counter()
            track = tracker.track_video(options.manifest.parent / row["file"])
            spent = time.perf_counter() - start
            labels, count = track.motion.camera, len(track.motion)
            average = pose.fit_cameras(track.landmarks[track.found], 256, scores=track.motion.expression[track.found])[
                1
            ]
            yaw, distance = camera.head_angles(labels)[:, 0], camera.head_position(labels)[:, 2]
            tremor = np.median(np.abs(np.diff(yaw, 2))) if count > 2 else 0.0
            print(
                f"| {Path(row['file']).stem} | {count} | {100 * track.found.mean():.1f} "
                f"| {track.median_reprojection:.2f} | {np.median(average):.2f} "
                f"| {yaw.min():+.0f} to {yaw.max():+.0f} | {tremor:.2f} "
                f"| {distance.mean():.2f} ± {distance.std():.2f} | {1000 * spent / count:.0f} |",
                flush=True,
            )
            found.append(track.found)
            own.append(track.reprojection[track.found])
            canonical.append(average)
    frames = np.concatenate(found)
    print(
        f"| all | {len(frames)} | {100 * frames.mean():.1f} | {np.median(np.concatenate(own)):.2f} "
        f"| {np.median(np.concatenate(canonical)):.2f} | | | | |"
    )


if __name__ == "__main__":
    main()
