"""How still a head must be to be called still: what a face does to the fitted head angles, and how precise they are.

    python benchmarks/still_head.py DATA/manifest.csv [--split val]

First table: degrees of yaw, pitch and roll for each unit of a score in real clips, by linear regression of quick
changes (a second's moving mean is taken off). The angles are those of `pose.still_cameras`, and the pitch of the
tracker's cameras before smoothing too, minus those fitted to 23 points of forehead, temples, eye corners and bridge of
the nose, which jaw and cheeks do not move. Second: angles of the bundled portrait as rendered, seen once under shifts
of up to 4 pixels, and as `export3d sheet` sees it under pixel noise of 3 levels of 255.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

import export3d.camera as camera
from export3d.animate.animator import Animator
from export3d.animate.basis_sheet import look
from export3d.animate.drive import bundled_portrait
from export3d.face import pose
from export3d.face.mesh import canonical_mesh
from export3d.face.tracker import Tracker

UPPER = [10, 338, 297, 332, 284, 251, 389, 356, 109, 67, 103, 54, 21, 162, 127, 168, 6, 197, 8, 33, 263, 133, 362]
SCORES = ("jawOpen", "mouthSmile", "eyeBlink", "browInnerUp", "browDown", "mouthPucker", "mouthFunnel")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("manifest", type=Path)
    arguments.add_argument("--split", default="val")
    options = arguments.parse_args()
    with open(options.manifest, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == options.split and row["kind"] == "video"]
    scores, angles = [], []
    with Tracker() as tracker:
        for row in rows:
            track = tracker.track_video(options.manifest.parent / row["file"])
            scores.append(quick(np.stack([track.motion.scores(name) for name in SCORES], axis=1)))
            steady = camera.head_angles(pose.still_cameras(track.landmarks, 256)[0])
            cameras = pose.fit_cameras(track.landmarks, 256, scores=track.motion.expression)[0]
            upper = upper_angles(track.landmarks)
            angles.append(quick(np.c_[steady - upper, camera.head_angles(cameras)[:, 1] - upper[:, 1]]))
    slopes = np.linalg.lstsq(np.concatenate(scores), np.concatenate(angles), rcond=None)[0]
    print(f"{sum(map(len, angles))} frames\n\n| score | yaw | pitch | roll | tracker's pitch |\n|{' --- |' * 5}")
    for name, slope in zip(SCORES, slopes):
        print(f"| {name} | {' | '.join(f'{value:+.1f}' for value in slope)} |")
    print("\n| standard deviation, degrees | yaw | pitch | roll |\n| --- | --- | --- | --- |")
    animator, rng = Animator.from_pretrained(device="cpu"), np.random.default_rng(0)
    source = animator.encode(bundled_portrait())
    still = animator.render(source, source.expression, source.camera)
    shifted = [np.roll(still, tuple(rng.integers(-4, 5, 2)), (0, 1)) for _ in range(20)]
    tracks = [animator.tracker.track_image(picture) for picture in shifted]
    once = [camera.head_angles(pose.still_cameras(track.landmarks, 256)[0][0]) for track in tracks]
    noisy = [np.clip(still + rng.normal(0, 3, still.shape), 0, 255).astype(np.uint8) for _ in range(20)]
    mean = [look(animator.tracker, picture)[1] for picture in noisy]
    for name, found in (("seen once, shifted", once), ("as `sheet` sees it, with noise", mean)):
        print(f"| {name} | {' | '.join(f'{value:.2f}' for value in np.std(found, axis=0, ddof=1))} |")


def quick(values: np.ndarray, half: int = 12) -> np.ndarray:
    """(T, N) minus its moving mean over 25 frames."""
    total = np.cumsum(np.pad(values, ((half + 1, half), (0, 0)), mode="edge"), axis=0)
    return values - (total[2 * half + 1 :] - total[: -2 * half - 1]) / (2 * half + 1)


def upper_angles(landmarks: np.ndarray) -> np.ndarray:
    """(T, 478, 2) pixels to (T, 3) degrees, by the upper face alone."""
    image = (landmarks[:, UPPER, :2].astype(float) / 256 - 0.5) / camera.FOCAL
    rotation, _ = pose.solve(canonical_mesh().vertices[UPPER], image, np.full(len(UPPER), 1 / len(UPPER)))
    cam2world = np.tile(np.eye(4), (len(rotation), 1, 1))
    cam2world[:, :3, :3] = np.swapaxes(rotation, 1, 2)
    return camera.head_angles(camera.pack(cam2world, np.tile(camera.default_intrinsics(), (len(rotation), 1, 1))))


if __name__ == "__main__":
    main()
