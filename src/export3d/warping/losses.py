"""Training objectives of the warp (not in the paper)."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from export3d.camera import projected
from export3d.face.landmark_sets import EYE_LOOPS, EYELIDS, IRISES, LIPS
from export3d.face.mesh import LANDMARKS
from export3d.layers import constant
from export3d.perceptual import Distance
from export3d.warping.average_head import plane_positions
from export3d.warping.flow_field import pixel_grid
from export3d.warping.optical_flow import corrected


@dataclass(frozen=True, kw_only=True)
class WarpWeights:
    """Weights of the warp's terms in the loss; a term is left out where the model has nothing to train by it.

    Attributes:
        landmarks: of `landmark_error`, where the landmark motion is trained.
        flow: of `flow_error`.
        moved: of `moved_error`, where the source's motion is trained.
        optical: of `optical_error`, likewise.
        mouth: of `mouth_error`.
        eyes: of `eyes_error`.
    """

    landmarks: float = 10.0
    flow: float = 0.0
    moved: float = 0.5
    optical: float = 0.0
    mouth: float = 0.0
    eyes: float = 0.0


_IRIS_WEIGHT = 5.0
_SHAPE_WEIGHT = 3.0


@functools.lru_cache(maxsize=4)
def _landmark_weight(device: torch.device) -> Tensor:
    """(478,) lips and eyelids count three times, irises five times; sums to 1."""
    weight = torch.ones(LANDMARKS)
    weight[list(LIPS + EYELIDS)] = _SHAPE_WEIGHT
    weight[IRISES[0].start :] = _IRIS_WEIGHT
    return (weight / weight.sum()).to(device)


def landmark_error(points: Tensor, landmarks: Tensor, camera: Tensor) -> Tensor:
    """Distance of moved landmarks from those of the driving frame (not in the paper).

    Weighted mean L1 distance in image widths. Lips, eyelids and irises get higher weights: they are small but carry
    speech, blinks and gaze.

    Args:
        points: (B, 478, 3), see `LandmarkMotion`.
        landmarks: (B, 478, 2), 0..1 across the driving frame.
        camera: (B, 25) of the driving frame.
    """
    away = (projected(points, camera)[0] - landmarks.float()).abs().sum(-1)
    return (away * _landmark_weight(away.device)).sum(-1).mean()


def flow_error(
    flow: Tensor,
    source_landmarks: Tensor,
    source_camera: Tensor,
    landmarks: Tensor,
    camera: Tensor,
    depth: Tensor,
    half_extent: float,
) -> Tensor:
    """Distance of the skips' flow from the flow that carries each landmark to its place (not in the paper).

    At landmark k of the driving face (on the xy plane) the flow should point to landmark k of the source (in the
    aligned source, on the average head). Mean over the landmarks of the L1 distance between both, in [-1, 1] grid units
    of the plane. The ten iris landmarks count five times, since they alone carry the gaze. The mean is taken per pair
    first, so that parts of a batch add up to the whole.

    Args:
        flow: (B, 2, H, W), see `SourceMotion.flow`.
        source_landmarks, landmarks: (B, 478, 2), 0..1 across source and driving frame.
        source_camera, camera: (B, 25).
        depth: (B, 478) or (478,) z of the driving landmarks in the head's own axes, scene units.
        half_extent: of the planes, scene units.
    """
    here = plane_positions(landmarks, camera, half_extent, depth)
    there = plane_positions(source_landmarks, source_camera, half_extent)
    found = F.grid_sample(flow.float(), here[:, :, None], align_corners=False, padding_mode="border")[..., 0].mT
    inside = (here.abs().amax(-1) < 1.0) & (there.abs().amax(-1) < 1.0)
    weight = inside.float()
    weight[:, IRISES[0].start :] *= _IRIS_WEIGHT
    error = (found - (there - here)).abs().sum(-1) * weight
    return (error.sum(1) / weight.sum(1).clamp_min(1.0)).mean()


def moved_error(moved: Tensor, target: Tensor, perceptual: Distance | None) -> Tensor:
    """Distance of the moved source from the driving frame (not in the paper).

    The perceptual distance, if there is a network for it, plus half the mean absolute difference at full size and
    averaged over 4 x 4 and 8 x 8 pixels: the coarse terms also penalise large misplacements.

    Args:
        moved, target: (B, 3, H, W), see `detail.Views`.
    """
    pooled = (F.avg_pool2d(moved - target, size) for size in (1, 4, 8))
    error = 0.5 * torch.stack([difference.abs().mean() for difference in pooled]).sum()
    return error if perceptual is None else error + perceptual(moved, target).mean()


def optical_error(offset: Tensor, moved: Tensor, target: Tensor) -> Tensor:
    """Distance of the flow from the one that explains the driving frame, where that is known (not in the paper).

    Mean L1 distance in [-1, 1] grid units; pixels whose place `optical_flow.corrected` does not find count as 0.

    Args:
        offset: (B, 2, H, H) the flow that moved the source.
        moved, target: (B, 3, H, H), see `detail.Views`.
    """
    wanted, known = corrected(offset, moved, target)
    return ((offset - wanted).abs().sum(dim=1, keepdim=True) * known).mean()


def mouth_error(image: Tensor, target: Tensor, landmarks: Tensor, perceptual: Distance | None) -> Tensor:
    """Distance of the enlarged mouth from the driving frame's, see `_enlarged_error` (not in the paper).

    Teeth and lips cover few pixels, to which a perceptual distance of the whole image is insensitive.

    Args:
        image, target: (B, 3, H, H).
        landmarks: (B, 478, 2), 0..1 across the driving frame.
    """
    return _enlarged_error(image, target, landmarks[:, constant(LIPS, landmarks.device)], 0.1, perceptual)


def eyes_error(image: Tensor, target: Tensor, landmarks: Tensor, perceptual: Distance | None) -> Tensor:
    """Distance of the enlarged eyes from the driving frame's, mean of both; arguments as of `mouth_error`."""
    eyes = (landmarks[:, constant(loop, landmarks.device)] for loop in EYE_LOOPS)
    right, left = (_enlarged_error(image, target, eye, 0.05, perceptual) for eye in eyes)
    return (right + left) / 2.0


def _enlarged_error(image: Tensor, target: Tensor, points: Tensor, least: float, perceptual: Distance | None) -> Tensor:
    """The perceptual distance of a part, if there is a network for it, and half its mean absolute difference.

    The part is a square around points (B, N, 2), 1.5 times their extent and at least 2 `least` image widths, and is
    enlarged to half the image's size.
    """
    low, high = points.float().aminmax(dim=1)
    half = (0.75 * (high - low).amax(dim=1)).clamp_min(least)
    steps = pixel_grid(image.shape[-1] // 2, image.device).permute(0, 2, 3, 1)
    places = (high + low)[:, None, None] - 1.0 + 2.0 * half[:, None, None, None] * steps
    near = (F.grid_sample(x.float(), places, padding_mode="border", align_corners=False) for x in (image, target))
    part, wanted = near
    error = 0.5 * (part - wanted).abs().mean()
    return error if perceptual is None else error + perceptual(part, wanted).mean()
