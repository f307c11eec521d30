"""Training objectives (Sec. 3.4). One function a term; weights live with the training step.

Letters: B batch, H W pixels. Images are in [-1, 1].
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from export3d.errors import check_shape
from export3d.face.mesh import LANDMARKS
from export3d.face.repose import INNER_LIPS
from export3d.face.sheet import EYE_CORNERS, LOWER_LIDS, UPPER_LIDS
from export3d.image import resize
from export3d.layers import pixel_grid
from export3d.perceptual import Perceptual
from export3d.triplane.align import plane_positions
from export3d.triplane.motion import IRISES, projected


@dataclass(frozen=True, kw_only=True)
class ReconstructionWeights:
    """Weights of the four terms of Eq. 11; all 1 in the paper."""

    l2_raw: float = 1.0
    l2: float = 1.0
    lpips_raw: float = 1.0
    lpips: float = 1.0


EYES = (33, 133, 159, 145, 263, 362, 386, 374)
"""Corners and lid middles of both eyes among the 478 landmarks."""
MOUTH = (61, 291, 0, 17, 13, 14)
"""Corners, outer and inner middles of the lips among the 478 landmarks."""


def face_weight(landmarks: Tensor, size: int, emphasis: float) -> Tensor:
    """Weight map for `l2`: 1 everywhere, up to 1 + emphasis at eyes and mouth (not in the paper).

    A Gaussian of a twenty-fifth of the image stands on each landmark of `EYES` and `MOUTH`; the map is the largest.

    Args:
        landmarks: (B, 478, 2), 0..1 across the image.

    Returns:
        (B, 1, size, size), divided by its mean, so that the loss keeps its scale.
    """
    check_shape(landmarks, "B 478 2", "landmarks")
    points = landmarks[:, list(EYES + MOUTH)].float()
    centre = (torch.arange(size, device=landmarks.device) + 0.5) / size
    across = (centre[None, None] - points[..., :1]).square()
    down = (centre[None, None] - points[..., 1:]).square()
    bumps = torch.exp(-(down[..., :, None] + across[..., None, :]) / (2 * 0.04**2))
    weight = 1.0 + emphasis * bumps.amax(dim=1, keepdim=True)
    return weight / weight.mean(dim=(1, 2, 3), keepdim=True)


_LIPS = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146, *INNER_LIPS)
_LIDS = tuple(n for loops in (EYE_CORNERS, UPPER_LIDS, LOWER_LIDS) for loop in loops for n in loop)
_IRIS_WEIGHT = 5.0
_SHAPE_WEIGHT = 3.0


@functools.lru_cache(maxsize=4)
def _landmark_weight(device: torch.device) -> Tensor:
    """(478,) lips and lids count three times, irises five times; sums to 1."""
    weight = torch.ones(LANDMARKS)
    weight[list(_LIPS + _LIDS)] = _SHAPE_WEIGHT
    weight[IRISES[0].start :] = _IRIS_WEIGHT
    return (weight / weight.sum()).to(device)


def landmark_error(points: Tensor, landmarks: Tensor, camera: Tensor) -> Tensor:
    """How far moved landmarks are from where the driving frame has them (not in the paper).

    Weighted mean of the L1 distance, in widths of the picture: lips and lids, few and small, and the irises, on which
    the gaze hangs alone, count more.

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
    """How far the skips' flow is from the one that carries each landmark to its place (not in the paper).

    Where the driving face has landmark k (on the xy plane), the source's detail of the same landmark should be looked
    up (in the aligned source, on the average head): mean over the landmarks of the L1 distance between the flow there
    and the wanted one, in [-1, 1] grid units of the plane. The ten of the irises count five times, since the gaze hangs
    on them alone. Each pair has its own mean first, so that parts of a batch add up to the whole.

    Args:
        flow: (B, 2, H, W), see `TriplaneGenerator.generate`.
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


def moved_error(moved: Tensor, target: Tensor, perceptual: Perceptual | None) -> Tensor:
    """How far what the source offers for a driving frame is from that frame (not in the paper).

    The perceptual distance, where there is a network for it, and half the mean absolute difference at full size and
    averaged over 4 x 4 and 8 x 8 pixels: the coarse ones also tell what lies far beside its place.

    Args:
        moved, target: (B, 3, H, W), see `superres.Views`.
    """
    pooled = (F.avg_pool2d(moved - target, size) for size in (1, 4, 8))
    error = 0.5 * torch.stack([difference.abs().mean() for difference in pooled]).sum()
    return error if perceptual is None else error + perceptual(moved, target).mean()


def mouth_error(image: Tensor, target: Tensor, landmarks: Tensor, perceptual: Perceptual | None) -> Tensor:
    """How far the mouth is from the driving frame's, looked at closely (not in the paper).

    Teeth and lips are a few pixels of a picture, whose perceptual distance hardly sees them. Here a square about the
    lips, half as large again as they are and at least a fifth of the picture, is enlarged to half the picture's size;
    there the perceptual distance, where there is a network for it, and half the mean absolute difference are taken.

    Args:
        image, target: (B, 3, H, H).
        landmarks: (B, 478, 2), 0..1 across the driving frame.
    """
    lips = landmarks[:, list(_LIPS)].float()
    low, high = lips.amin(dim=1), lips.amax(dim=1)
    half = (0.75 * (high - low).amax(dim=1)).clamp_min(0.1)
    steps = pixel_grid(image.shape[-1] // 2, image.device).permute(0, 2, 3, 1)
    places = (high + low)[:, None, None] - 1.0 + 2.0 * half[:, None, None, None] * steps
    near = (F.grid_sample(x.float(), places, padding_mode="border", align_corners=False) for x in (image, target))
    mouth, wanted = near
    error = 0.5 * (mouth - wanted).abs().mean()
    return error if perceptual is None else error + perceptual(mouth, wanted).mean()


def l2(image: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """L_2: mean squared error over all values, a scalar; `weight` (B, 1, H, W) multiplies the squares."""
    check_shape(target, f"{image.shape[0]} 3 {image.shape[2]} {image.shape[3]}", "target")
    if weight is None:
        return F.mse_loss(image, target)
    return ((image - target).square() * resize(weight, image.shape[-1])).mean()


def reconstruction(
    image: Tensor | None,
    raw: Tensor,
    target: Tensor,
    perceptual: Perceptual | None,
    weights: ReconstructionWeights = ReconstructionWeights(),
    weight: Tensor | None = None,
) -> dict[str, Tensor]:
    """L_rec = L_2^raw + L_2 + L_lpips^raw + L_lpips (Eq. 11), term by term and in `total`.

    Args:
        image: (B, 3, H, W) final image, or None in phases without super-resolution.
        raw: (B, 3, R, R) raw rendered image; compared with the target reduced to its size.
        target: (B, 3, H', W') driving frame; reduced to the image's size where it is larger.
        weight: (B, 1, H', W') weight map of the squared errors, see `face_weight`.
        perceptual: None leaves the perceptual terms out.
    """
    target_raw = resize(target, raw.shape[-1])
    terms = {"l2_raw": weights.l2_raw * l2(raw, target_raw, weight)}
    if perceptual is not None and weights.lpips_raw:
        terms["lpips_raw"] = weights.lpips_raw * perceptual(raw, target_raw).mean()
    if image is not None:
        target = resize(target, image.shape[-1])
        terms["l2"] = weights.l2 * l2(image, target, weight)
        if perceptual is not None and weights.lpips:
            terms["lpips"] = weights.lpips * perceptual(image, target).mean()
    terms["total"] = sum(terms.values(), start=raw.new_zeros(()))
    return terms


def adversarial(fake: Tensor) -> Tensor:
    """L_adv of Eq. 12 for the generator: softplus(-D(fake)), a scalar.

    The non-saturating logistic loss (Goodfellow et al. 2014): binary cross-entropy of the scores (B,) of generated
    pictures against the label "real".
    """
    check_shape(fake, "B", "scores of generated pictures")
    return F.softplus(-fake).mean()


def discrimination(real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    """The discriminator's side of L_adv: softplus(-D(real)) in `real` and softplus(D(fake)) in `fake`, scalars.

    Binary cross-entropy of scores (B,) against "real" and "generated".
    """
    check_shape(real, "B", "scores of real pictures")
    check_shape(fake, "B", "scores of generated pictures")
    return {"real": F.softplus(-real).mean(), "fake": F.softplus(fake).mean()}


def r1_penalty(real: Tensor, pictures: Sequence[Tensor]) -> Tensor:
    """R1 without its weight: the squared norm of the scores' gradient in the real pictures, mean over the batch.

    R1 = gamma / 2 * E |grad D(x)|^2 (Mescheder et al. 2018, Eq. 9). The caller multiplies by gamma / 2, and by the
    interval where it is taken in every so-many-th step only (lazy regularisation, StyleGAN2, Sec. 4.1). Of several
    pictures of a sample (final and raw) the squares add up, as in EG3D.

    Args:
        real: scores (B,), a function of `pictures`.
        pictures: (B, ...) each; they require a gradient.

    Returns:
        A scalar that can be differentiated in the discriminator's weights.
    """
    check_shape(real, "B", "scores of real pictures")
    gradients = torch.autograd.grad(real.sum(), list(pictures), create_graph=True)
    squares = [gradient.float().square().flatten(1).sum(dim=1) for gradient in gradients]
    return torch.stack(squares).sum(dim=0).mean()
