"""Optical flow that teaches the warp where it should have looked (not in the paper).

Dense inverse search (Kroeger et al. 2016, OpenCV's) finds how the moved source must shift to match the driving frame.
Added to the flow that moved it, this is where each pixel lies in the source. A picture tells it for hair, neck and
shoulders too, which no landmark describes.

Letters: B batch, H pixels.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from export3d.errors import MissingExtra
from export3d.warping.flow_field import look_up

_BETTER = 0.7
"""Largest error after the correction, in errors before it, at which the correction is believed."""
_WINDOW = 5
"""Pixels across the window in which errors are compared."""


@torch.no_grad()
def corrected(offset: Tensor, moved: Tensor, driving: Tensor) -> tuple[Tensor, Tensor]:
    """The flow that moved a source, corrected by the optical flow from there to the driving frame.

    Args:
        offset: (B, 2, H, H) to places of the source, x first, in [-1, 1] grid units.
        moved, driving: (B, 3, H, H) in [-1, 1]: the source moved by it, and the truth.

    Returns:
        (B, 2, H, H) offsets, and (B, 1, H, H), 1 where they explain the driving frame better and 0 elsewhere.

    Raises:
        MissingExtra: OpenCV is not installed.
    """
    search = _search()
    found = [search.calc(after, before, None) for after, before in zip(_grey(driving), _grey(moved))]
    residual = torch.from_numpy(np.stack(found)).movedim(-1, 1).to(offset) * (2.0 / moved.shape[-1])
    before, after = (_error(image, driving) for image in (moved, look_up(moved, residual)))
    return look_up(offset, residual) + residual, (after < _BETTER * before).to(offset.dtype)


def _search() -> Any:
    try:
        cv2: Any = importlib.import_module("cv2")
    except ImportError as error:
        raise MissingExtra("train", "OpenCV, which loss.optical needs,") from error
    return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)


def _grey(image: Tensor) -> NDArray[np.uint8]:
    """(B, 3, H, H) in [-1, 1] to (B, H, H)."""
    levels = (image.float().mean(dim=1) + 1.0) * 127.5
    return np.ascontiguousarray(levels.round().clamp(0.0, 255.0).byte().cpu().numpy())


def _error(image: Tensor, target: Tensor) -> Tensor:
    """(B, 1, H, H) mean absolute difference around each pixel."""
    away = (image - target).abs().mean(dim=1, keepdim=True)
    return F.avg_pool2d(away, _WINDOW, 1, _WINDOW // 2, count_include_pad=False)
