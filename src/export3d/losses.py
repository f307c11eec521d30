"""Training objectives (Sec. 3.4), one function per term.

Letters: B batch, H W pixels. Images are in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from export3d.errors import check_shape
from export3d.face.landmark_sets import EYES, MOUTH
from export3d.image import resize
from export3d.layers import constant
from export3d.perceptual import Distance


@dataclass(frozen=True, kw_only=True)
class ReconstructionWeights:
    """Weights of the four terms of Eq. 11; all 1 in the paper."""

    l2_raw: float = 1.0
    l2: float = 1.0
    lpips_raw: float = 1.0
    lpips: float = 1.0


def face_weight(landmarks: Tensor, size: int, emphasis: float) -> Tensor:
    """Weight map for `l2`: 1 in general, up to 1 + emphasis at eyes and mouth (not in the paper).

    `emphasis` is multiplied by the maximum of Gaussians at the landmarks `EYES` and `MOUTH`, each with a standard
    deviation of 0.04 image widths.

    Args:
        landmarks: (B, 478, 2), 0..1 across the image.

    Returns:
        (B, 1, size, size), divided by its mean, so the scale of the loss does not change.
    """
    check_shape(landmarks, "B 478 2", "landmarks")
    points = landmarks[:, constant(EYES + MOUTH, landmarks.device)].float()
    centre = (torch.arange(size, device=landmarks.device) + 0.5) / size
    across = (centre[None, None] - points[..., :1]).square()
    down = (centre[None, None] - points[..., 1:]).square()
    bumps = torch.exp(-(down[..., :, None] + across[..., None, :]) / (2 * 0.04**2))
    weight = 1.0 + emphasis * bumps.amax(dim=1, keepdim=True)
    return weight / weight.mean(dim=(1, 2, 3), keepdim=True)


def l2(image: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """L_2: mean squared error, a scalar; `weight` (B, 1, H', W'), resized to the image, weights the squared errors."""
    check_shape(target, f"{image.shape[0]} 3 {image.shape[2]} {image.shape[3]}", "target")
    if weight is None:
        return F.mse_loss(image, target)
    return ((image - target).square() * resize(weight, image.shape[-1])).mean()


def reconstruction(
    image: Tensor | None,
    raw: Tensor,
    target: Tensor,
    perceptual: Distance | None,
    weights: ReconstructionWeights = ReconstructionWeights(),
    weight: Tensor | None = None,
) -> dict[str, Tensor]:
    """L_rec = L_2^raw + L_2 + L_lpips^raw + L_lpips (Eq. 11): each weighted term, and their `total`.

    Args:
        image: (B, 3, H, W) final image, or None in phases without super-resolution.
        raw: (B, 3, R, R) raw rendered image; compared with the target downsampled to its size.
        target: (B, 3, H', W') driving frame; downsampled to the image's size if it is larger.
        perceptual: None omits the perceptual terms.
        weights: of the four terms.
        weight: (B, 1, H', W') weight map of the squared errors, see `face_weight`.
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


def between(image: Tensor, target: Tensor, taught: Tensor, group: int, weight: Tensor | None = None) -> Tensor:
    """Squared error of what differs within taught groups (not in the paper), a scalar.

    A group is n images of one source at one camera under n expressions. With o an image, t its target, and mean(.) over
    the group:

        L_between = mean of w ((o - mean(o)) - (t - mean(t)))^2

    over all pixels of the batch; images of no group count as 0, so that parts of a batch add up to the whole.

    Args:
        image, target: (B, 3, H, W), where every `group` consecutive images belong together.
        taught: (B,) bool; False for images of no group.
        group: n.
        weight: w, (B, 1, H', W'), resized to the image, see `face_weight`; None is 1.
    """
    check_shape(target, f"{image.shape[0]} 3 {image.shape[2]} {image.shape[3]}", "target")
    check_shape(taught, f"{image.shape[0]}", "taught")
    away = (image.float() - target).view(-1, group, *image.shape[1:])
    square = (away - away.mean(1, keepdim=True)).view(image.shape).square() * taught[:, None, None, None]
    if weight is not None:
        square = square * resize(weight, image.shape[-1])
    return square.mean()


def adversarial(fake: Tensor) -> Tensor:
    """L_adv of Eq. 12 for the generator: softplus(-D(fake)), a scalar.

    The non-saturating logistic loss (Goodfellow et al. 2014): binary cross-entropy of the scores (B,) of generated
    images against the label "real".
    """
    check_shape(fake, "B", "scores of generated images")
    return F.softplus(-fake).mean()


def discrimination(real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    """L_adv of Eq. 12 for the discriminator: softplus(-D(real)) in `real` and softplus(D(fake)) in `fake`, scalars.

    Binary cross-entropy of the scores (B,) against the labels "real" and "generated".
    """
    check_shape(real, "B", "scores of real images")
    check_shape(fake, "B", "scores of generated images")
    return {"real": F.softplus(-real).mean(), "fake": F.softplus(fake).mean()}


def r1_penalty(real: Tensor, pictures: Sequence[Tensor]) -> Tensor:
    """R1 without its weight: the squared norm of the scores' gradient with respect to real images, mean over the batch.

    R1 = gamma / 2 * E |grad D(x)|^2 (Mescheder et al. 2018, Eq. 9). The caller multiplies by gamma / 2. With lazy
    regularisation (R1 in every k-th step only; StyleGAN2, Sec. 4.1) it also multiplies by k. If a sample has several
    images (final and raw), their squared norms are added, as in EG3D.

    Args:
        real: scores (B,), computed from `pictures`.
        pictures: (B, ...) each, with `requires_grad`.

    Returns:
        A scalar, differentiable with respect to the discriminator's weights.
    """
    check_shape(real, "B", "scores of real images")
    gradients = torch.autograd.grad(real.sum(), list(pictures), create_graph=True)
    squares = [gradient.float().square().flatten(1).sum(dim=1) for gradient in gradients]
    return torch.stack(squares).sum(dim=0).mean()
