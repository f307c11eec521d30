"""The share of a generated image that is rendered; the rest are the source's own pixels, moved by the warp.

At each pixel the warp weighs the rendered image (volume and super-resolution) against views of the source
(`warping.detail.Detail`). The share is the mean weight of the rendered image, over the whole image and over the face
(the hull of the landmarks). Without a warp it is 100%.
"""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from export3d.evaluation.measures.image import Measure
from export3d.evaluation.measures.temporal import GRID, grid_places, regions

Array = NDArray[np.float64]

_WHAT = "share of the pixel weight that the volume and super-resolution render, {}; the rest are the source's pixels"
MEASURES = (
    Measure("rendered", "rendered (%)", None, 1, _WHAT.format("whole image")),
    Measure("rendered_face", "rendered, face (%)", None, 1, _WHAT.format("hull of the face's landmarks")),
)


def on_grid(share: Tensor) -> NDArray[np.float32]:
    """Shares (N, 1, R, R) averaged over the 64 x 64 squares of the image: (N, 4096)."""
    return np.asarray(F.adaptive_avg_pool2d(share.float(), GRID).flatten(1).cpu().numpy())


def rendered_scores(shares: NDArray[np.float32], landmarks: Array, size: int) -> dict[str, Array]:
    """Rendered share of each image, percent.

    Args:
        shares: (N, 4096) from `on_grid`.
        landmarks: (N, 478, 2), pixels of an image of `size`; NaN without a face.
        size: width of the image that the landmarks refer to.

    Returns:
        `rendered` and `rendered_face`, (N,); the latter is NaN without a face.
    """
    at = np.broadcast_to(grid_places(size), (len(shares), GRID * GRID, 2))
    known: NDArray[np.bool_] = np.asarray(~np.isnan(landmarks).any(axis=(1, 2)))
    face = regions(np.nan_to_num(landmarks), at)[0] & known[:, None]
    count = face.sum(axis=1)
    inside = np.where(count > 0, (shares * face).sum(axis=1) / np.maximum(count, 1), np.nan)
    return {"rendered": 100.0 * shares.mean(axis=1, dtype=np.float64), "rendered_face": 100.0 * inside}
