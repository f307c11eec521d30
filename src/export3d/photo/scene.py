"""A photo, ready for frames: its canvas, the person, the background, and what puts the moving faces in."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from export3d.face.crop import CropBox
from export3d.photo.canvas import Picture, canvas
from export3d.photo.compositor import Compositor
from export3d.photo.layers import layers
from export3d.photo.options import Frame, Size


def scene(
    photo: Picture,
    faces: Sequence[tuple[CropBox, Tensor]],
    others: Sequence[CropBox] = (),
    *,
    size: Size,
    frame: Frame,
    background: str,
    long_side: int | None,
) -> Compositor:
    """What makes the frames of a photo; takes a second or more, once per photo.

    Args:
        photo: uint8 (H, W, 3).
        faces: crops of the faces that move, in the photo, and each as the model saw it, (1, 3, h, h) in [-1, 1].
        others: crops of faces that do not move.
        size, frame, long_side: see `canvas.canvas`.
        background: see `layers.layers`.

    Raises:
        ConfigError, BadImage: as there.
    """
    boxes = sorted((box for box, _ in faces), key=lambda box: -box.side)
    grid = canvas(photo, boxes[0], size, frame, long_side, boxes[1:])
    placed = [(grid.place(box), source) for box, source in faces]
    still = [grid.place(box) for box in others]
    parts = layers(grid, [box for box, _ in placed], background, still)
    return Compositor(grid, parts, placed, still)
