"""A landmark detector that finds the faces it was given, for tests of what reads faces."""

from __future__ import annotations

import numpy as np

from export3d.camera import Camera
from export3d.face import pose
from export3d.face.crop import CropBox
from export3d.face.landmarks import Face
from export3d.face.mesh import canonical_mesh
from export3d.motion.arkit import with_scores

Picture = np.ndarray


def drawn_landmarks(camera: Camera | None = None) -> np.ndarray:
    """(478, 2) pixels at 256: the canonical mesh as a camera sees it, irises at the eyes' outer corners."""
    label = (Camera.orbit() if camera is None else camera).label
    points = pose.project(canonical_mesh().vertices, label, 256)
    return np.concatenate([points, points[[33] * 5 + [263] * 5]])


def drawn_face(camera: Camera | None = None, **scores: float) -> Face:
    flat = drawn_landmarks(camera)
    points = np.concatenate([flat, np.zeros((478, 1))], axis=1)
    return Face(points.astype(np.float32), with_scores(np.zeros(52), scores).astype(np.float32))


class Drawn:
    """Sees in a picture of one colour the faces that belong to it, largest first, and counts how often it looks."""

    def __init__(self, faces: dict[int, list[Face]], only_within_a_margin: bool = False) -> None:
        self.faces, self.calls, self.closed = faces, 0, False
        self.only_within_a_margin = only_within_a_margin

    def detect(self, image: Picture, region: CropBox | None = None) -> list[Face]:
        assert image.shape == (256, 256, 3)
        self.calls += 1
        if self.only_within_a_margin and region is None:
            return []
        return self.faces.get(int(image[128, 128, 0]), [])

    def search(self, image: Picture, coarse: bool = False) -> list[Face]:
        raise AssertionError("small faces are not looked for")

    def close(self) -> None:
        self.closed = True


def plain(*colours: int, size: int = 256) -> list[Picture]:
    return [np.full((size, size, 3), colour, np.uint8) for colour in colours]
