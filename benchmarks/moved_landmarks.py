"""Are landmarks found where they were moved to, and do they read as what was asked for?

    python benchmarks/moved_landmarks.py DATA/train --sources 160

DATA/train is a split that `export3d prepare` made. Sources are chosen by a fixed seed, half of them videos; each is
moved by up to six frames of a video, a quarter of them of its own. Landmarks are tracked again in the pictures.
Printed per part: the slope of the way from the rigidly turned source to where the tracker finds a landmark, over the
way to where it was moved (1 is ideal), across and down; and the mean absolute error of the 52 scores, as the moved
landmarks read (`face.scores`) and as the tracker reads the pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from export3d.camera import head_angles, projected
from export3d.data.frames import FrameStore
from export3d.face.landmark_sets import BROWS, IRISES, LIPS, LOWER_LIDS, UPPER_LIDS
from export3d.face.landmarks import FaceLandmarker
from export3d.face.scores import ScoreReader
from export3d.image import to_uint8
from export3d.model import Export3D
from export3d.photo.matte import crop_mattes
from export3d.pretrained import load_pretrained
from export3d.weights.hub import locate

PARTS = {
    "brows": list(BROWS),
    "upper lids": [number for lid in UPPER_LIDS for number in lid],
    "lower lids": [number for lid in LOWER_LIDS for number in lid],
    "irises": [number for iris in IRISES for number in iris],
    "lips": list(LIPS),
}
_FRAMES, _FARTHEST_YAW = 6, 25.0


def cases(store: FrameStore, count: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Rows of sources and of the frames that drive each."""
    rng = np.random.default_rng(5)
    videos = [clip for clip in store.clips if clip.kind == "video"]
    images = [clip for clip in store.clips if clip.kind == "image"] or videos
    yaw = np.abs(head_angles(store.camera.double().numpy())[:, 0])
    for number in range(count):
        kind = images if number % 2 else videos
        own = kind[rng.integers(len(kind))]
        driver = own if number % 4 == 0 else videos[rng.integers(len(videos))]
        source = own.start + int(rng.integers(own.frames))
        rows = driver.start + np.sort(rng.choice(driver.frames, min(_FRAMES, driver.frames), replace=False))
        rows = rows[store.found[rows].numpy() & (yaw[rows] < _FARTHEST_YAW)]
        if len(rows) and store.found[source]:
            yield source, torch.from_numpy(rows)


@torch.no_grad()
def moved(model: Export3D, store: FrameStore, source: int, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Landmarks (N, 478, 2) of the source turned rigidly and moved, 0..1, and the images (N, 3, H, H)."""
    assert model.warp is not None
    at = slice(source, source + 1)
    shown = store.frames[at].float() / 127.5 - 1.0
    own = (store.camera[at], store.expression[at], store.landmarks[at].float())
    mask = None if store.masks is None else store.masks[at].float() / 255.0
    features = model.encode(shown, *own, crop_mattes(model, shown, mask)).expand(len(rows))
    planes, camera = model.planes(features, store.expression[rows]), store.camera[rows]
    view, motion = planes.source.view, planes.motion
    assert view is not None
    assert view.face is not None
    assert motion is not None
    assert motion.points is not None
    still, gone = (projected(points, camera)[0] for points in (view.face.points, motion.points))
    return still, gone, model.frame(planes, camera)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("split", type=Path)
    parser.add_argument("--weights", default="base", help="a name or a file")
    parser.add_argument("--sources", type=int, default=160)
    parser.add_argument("--cache", type=Path, help="file with decoded frames of an earlier training run")
    given = parser.parse_args()
    store = FrameStore.load(given.split, 256, cache=given.cache)
    model, reader = load_pretrained(locate(given.weights)[0]), ScoreReader()
    ways, errors = [], []
    with FaceLandmarker() as tracker:
        for source, rows in cases(store, given.sources):
            still, gone, images = moved(model, store, source, rows)
            pictures = (to_uint8(image) for image in images)
            for row, before, after, picture in zip(rows, still.numpy(), gone.numpy(), pictures):
                faces = tracker.detect(picture)
                if faces:
                    found = faces[0].landmarks[:, :2] / picture.shape[0]
                    ways.append((after - before, found - before))
                    with torch.no_grad():
                        read = reader(torch.from_numpy(after[None])).numpy()[0]
                    asked = store.expression[row].numpy()
                    errors.append([np.abs(scores - asked).mean() for scores in (read, faces[0].scores)])
    asked, seen = (np.stack(way) for way in zip(*ways))
    print(
        f"{len(ways)} frames; error of the scores: moved {np.mean(errors, 0)[0]:.4f}, seen {np.mean(errors, 0)[1]:.4f}"
    )
    print("| part | across | down |\n| --- | --- | --- |")
    for name, part in PARTS.items():
        slopes = [np.polyfit(asked[:, part, axis].ravel(), seen[:, part, axis].ravel(), 1)[0] for axis in (0, 1)]
        print(f"| {name} | {slopes[0]:.2f} | {slopes[1]:.2f} |")


if __name__ == "__main__":
    main()
