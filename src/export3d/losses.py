"""Training objectives (Sec. 3.4). One function a term; weights live with the training step.

Letters: B batch, H W pixels. Images are in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from export3d.errors import check_shape
from export3d.image import resize
from export3d.perceptual import Perceptual


@dataclass(frozen=True, kw_only=True)
class ReconstructionWeights:
    """Weights of the four terms of Eq. 11; all 1 in the paper."""

    l2_raw: float = 1.0
    l2: float = 1.0
    lpips_raw: float = 1.0
    lpips: float = 1.0


def l2(image: Tensor, target: Tensor) -> Tensor:
    """L_2: mean squared error over all values, a scalar."""
    check_shape(target, f"{image.shape[0]} 3 {image.shape[2]} {image.shape[3]}", "target")
    return F.mse_loss(image, target)


def reconstruction(
    image: Tensor | None,
    raw: Tensor,
    target: Tensor,
    perceptual: Perceptual | None,
    weights: ReconstructionWeights = ReconstructionWeights(),  # noqa: B008 (frozen)
) -> dict[str, Tensor]:
    """L_rec = L_2^raw + L_2 + L_lpips^raw + L_lpips (Eq. 11), term by term and in `total`.

    Args:
        image: (B, 3, H, W) final image, or None in phases without super-resolution.
        raw: (B, 3, R, R) raw rendered image; compared with the target reduced to its size.
        target: (B, 3, H', W') driving frame; reduced to the image's size where it is larger.
        perceptual: None leaves the perceptual terms out.
    """
    target_raw = resize(target, raw.shape[-1])
    terms = {"l2_raw": weights.l2_raw * l2(raw, target_raw)}
    if perceptual is not None and weights.lpips_raw:
        terms["lpips_raw"] = weights.lpips_raw * perceptual(raw, target_raw).mean()
    if image is not None:
        target = resize(target, image.shape[-1])
        terms["l2"] = weights.l2 * l2(image, target)
        if perceptual is not None and weights.lpips:
            terms["lpips"] = weights.lpips * perceptual(image, target).mean()
    terms["total"] = sum(terms.values(), start=raw.new_zeros(()))
    return terms
