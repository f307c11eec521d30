"""Temporal flicker of a prediction, relative to the flicker of the driving clip.

Flicker is the second difference in time, |I(t-1) - 2 I(t) + I(t+1)|, of the grey image (mean of RGB, 0 to 255, averaged
over squares of a 64th of the image so that grain counts less than visible structure). Steady changes of brightness or
position have little of it; jitter and shimmer have much.

- *Regions*: the face is the hull of the target's landmarks in the middle frame. The background lies outside that hull
  grown to 1.9 times its size, above the chin and beside the area below the grown hull, which excludes most of hair and
  shoulders. Target and prediction use the same locations.
- *Real motion* moves edges, which is not flicker. In the face the three frames are therefore also compared at locations
  that move with the target's head (the similarity that maps the middle frame's 33 pose landmarks to a neighbour's), and
  the smaller of both figures counts. A prediction is moved by the target's landmarks, not by its own, so that its
  jitter stays visible.
- *Medians* over locations, then over the clip's frames, so that single edges, blinks or quick turns do not dominate.
- *Ratio*: (prediction + floor) / (target + floor) with a floor of a quarter of a grey level: two still clips give 1,
  and differences below 8-bit precision do not become large ratios.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from export3d.errors import ShapeError, check_shape
from export3d.evaluation.measures.image import Measure
from export3d.face.landmark_sets import CHIN
from export3d.face.mesh import LANDMARKS, canonical_mesh

Array = NDArray[np.float64]

GRID = 64
"""Locations across the image."""
FLOOR = 0.25
"""Grey levels added to both sides of the ratio."""
GROWN = 1.9
"""Scale of the face's hull that is excluded from the background."""
_DIRECTIONS = 32
_FEWEST = 32
"""Fewest locations of a region."""

_WHAT = (
    "flicker of the prediction over that of the driving clip: median second difference in time of grey levels in the "
    f"{{}}, both plus {FLOOR:g}; 1 is ideal, above 1 flickers or jitters, below 1 is stiller or softer than the truth"
)
MEASURES = (
    Measure("flicker_face", "flicker, face", None, 2, _WHAT.format("face, still or moved with the head")),
    Measure("flicker_background", "flicker, background", None, 2, _WHAT.format("background")),
)


class Flicker:
    """Temporal flicker of one prediction of one clip, relative to the driving clip.

    Frames are added chunk by chunk; only the last two frames and two numbers per frame are kept.
    """

    def __init__(self) -> None:
        self._rows = np.zeros(0, dtype=np.int64)
        self._landmarks = np.zeros((0, LANDMARKS, 2))
        self._grey: tuple[Tensor, Tensor] | None = None
        self._size = 0
        self._found: list[Array] = []

    def add(
        self,
        rows: NDArray[np.integer[Any]],
        targets: NDArray[np.uint8],
        predictions: NDArray[np.uint8],
        target_landmarks: NDArray[np.floating[Any]],
    ) -> None:
        """The next N frames.

        Args:
            rows: (N,) their numbers; only frames whose two neighbours were also added count.
            targets, predictions: (N, R, R, 3) uint8 RGB.
            target_landmarks: (N, 478, 2) MediaPipe's, pixels of the frame; NaN without a face.

        Raises:
            ShapeError: other shapes, or another size than before.
        """
        check_shape(targets, "N R R 3", "targets")
        count, size = targets.shape[:2]
        check_shape(predictions, f"{count} {size} {size} 3", "predictions")
        check_shape(target_landmarks, f"{count} {LANDMARKS} 2", "landmarks of the targets")
        check_shape(np.asarray(rows), f"{count}", "frame numbers")
        if self._size not in (0, size):
            raise ShapeError(f"the frames of a clip must be of one size, got {size} px after {self._size} px")
        if count == 0:
            return
        self._size = size
        new = (_grey(targets), _grey(predictions))
        if self._grey is not None:
            new = (torch.cat([self._grey[0], new[0]]), torch.cat([self._grey[1], new[1]]))
        self._rows = np.concatenate([self._rows, np.asarray(rows, dtype=np.int64)])
        self._landmarks = np.concatenate([self._landmarks, np.asarray(target_landmarks, dtype=np.float64)])
        self._compare(*new)
        self._rows, self._landmarks, self._grey = self._rows[-2:], self._landmarks[-2:], (new[0][-2:], new[1][-2:])

    def result(self) -> dict[str, float]:
        """The clip's ratios, at least 0, ideally 1; NaN without three neighbouring faces or if a region is too small.

        Returns:
            `flicker_face` and `flicker_background`.
        """
        found = np.concatenate([np.zeros((0, 2, 2)), *self._found])
        out = {}
        for measure, values in zip(MEASURES, np.moveaxis(found, 1, 0)):
            known = values[~np.isnan(values).any(axis=1)]
            theirs, ours = np.median(known, axis=0) if len(known) else (np.nan, np.nan)
            out[measure.name] = float((ours + FLOOR) / (theirs + FLOOR))
        return out

    def _compare(self, *clips: Tensor) -> None:
        """Keep, per frame between two neighbours, the flicker of face and background in both clips."""
        follows: NDArray[np.bool_] = np.asarray(self._rows[1:] - self._rows[:-1] == 1)
        seen: NDArray[np.bool_] = np.asarray(~np.isnan(self._landmarks).any(axis=(1, 2)))
        middle = np.flatnonzero(follows[:-1] & follows[1:] & seen[:-2] & seen[1:-1] & seen[2:]) + 1
        if not len(middle):
            return
        here = self._landmarks[middle]
        still = np.broadcast_to(grid_places(self._size), (len(middle), GRID * GRID, 2))
        before, after = (_along(here, self._landmarks[middle + step], still) for step in (-1, 1))
        face, background = regions(here, still)
        out = np.full((len(middle), 2, len(clips)), np.nan)
        for clip, grey in enumerate(clips):
            first, now, last = (grey[torch.from_numpy(middle + step)] for step in (-1, 0, 1))
            centre = 2.0 * _sample(now, still, self._size)
            standing = np.abs(_sample(first, still, self._size) - centre + _sample(last, still, self._size))
            moving = np.abs(_sample(first, before, self._size) - centre + _sample(last, after, self._size))
            for i in range(len(middle)):
                if face[i].sum() >= _FEWEST:
                    out[i, 0, clip] = min(np.median(standing[i, face[i]]), np.median(moving[i, face[i]]))
                if background[i].sum() >= _FEWEST:
                    out[i, 1, clip] = np.median(standing[i, background[i]])
        self._found.append(out)


def _squares(size: int) -> tuple[int, int]:
    """Side of the averaged squares and their spacing, pixels."""
    side = max(size // GRID, 1)
    return side, max(side // 2, 1)


def _grey(pictures: NDArray[np.uint8]) -> Tensor:
    """(N, R, R, 3) to (N, n, n) float32: RGB and the pixels of overlapping squares averaged."""
    side, step = _squares(pictures.shape[1])
    grey = torch.from_numpy(np.ascontiguousarray(pictures)).float().mean(dim=-1)
    return F.avg_pool2d(grey[:, None], side, step)[:, 0]


def _sample(grey: Tensor, places: Array, size: int) -> NDArray[np.float32]:
    """(N, P) values of `_grey` images (N, n, n) of R pixels at locations (N, P, 2), pixels; bilinear."""
    square, step = _squares(size)
    at = (places - square / 2) * (2.0 / (step * (grey.shape[-1] - 1))) - 1.0
    points = torch.from_numpy(at.astype(np.float32))[:, None]
    drawn = F.grid_sample(grey[:, None], points, padding_mode="border", align_corners=True)
    return np.asarray(drawn[:, 0, 0].numpy())


def grid_places(size: int) -> Array:
    """(4096, 2) locations on a grid, pixels of the image."""
    centres = (np.arange(GRID) + 0.5) * (size / GRID)
    return np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)


def _along(here: Array, there: Array, places: Array) -> Array:
    """Locations (N, P, 2) moved with the head: by the similarity that best maps landmarks (N, 478, 2) to others."""
    mesh = canonical_mesh()
    # Complex numbers are the plane's similarities: z -> a z + b.
    z, u = (points[:, mesh.pose_landmarks] @ np.array([1.0, 1.0j]) for points in (here, there))
    middle, goal = (points @ mesh.pose_weights for points in (z, u))
    z, u = z - middle[:, None], u - goal[:, None]
    a = (np.conj(z) * u) @ mesh.pose_weights / ((np.conj(z) * z).real @ mesh.pose_weights)
    moved = a[:, None] * (places @ np.array([1.0, 1.0j]) - middle[:, None]) + goal[:, None]
    return np.stack([moved.real, moved.imag], axis=-1)


def regions(landmarks: Array, places: Array) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Masks (N, P) of the locations in the face and in the background; landmarks (N, 478, 2)."""
    angle = np.arange(_DIRECTIONS) * (2.0 * np.pi / _DIRECTIONS)
    direction = np.stack([np.cos(angle), np.sin(angle)])
    low, high = landmarks.min(axis=1), landmarks.max(axis=1)
    centre = (low + high)[:, None] / 2
    reach = ((landmarks - centre) @ direction).max(axis=1)[:, None]
    offset = places - centre
    away = offset @ direction
    face = (away <= reach).all(axis=-1)
    head = (away <= GROWN * reach).all(axis=-1)
    below = (offset[..., 1] > 0) & (np.abs(offset[..., 0]) <= GROWN / 2 * (high - low)[:, :1])
    return face, ~head & ~below & (places[..., 1] < landmarks[:, CHIN, 1][:, None])
