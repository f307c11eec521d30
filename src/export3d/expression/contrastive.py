"""CLeBS: contrastive pre-training of the expression encoder (Sec. 3.1, Eq. 1; supplement 6.2).

The image and the expression of one frame are a positive pair. The negatives are the other frames of the same clip,
which show the same person. Appearance is common to all frames of a clip, so it does not help to tell them apart.
The paper has one positive and 32 negatives per clip.

Letters: G clips in a batch, T frames per clip, d dimensions of the embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export3d.errors import ConfigError, check_shape
from export3d.expression.encoder import ExpressionConfig, ExpressionEncoder

Objective = Literal["printed", "infonce", "symmetric"]


@dataclass(frozen=True, kw_only=True)
class CLeBSConfig:
    """Sizes of both towers and the objective.

    Attributes:
        expression: sizes of f_e (LeBS).
        width: channels of the first stage of f_I; the next three double it (64 in a standard ResNet18).
        groups: groups of GroupNorm in f_I; 0: BatchNorm.
        temperature: tau, 0.07 in the paper.
        objective: see `contrastive_loss`.
    """

    expression: ExpressionConfig = field(default_factory=ExpressionConfig)
    width: int = 64
    groups: int = 8
    temperature: float = 0.07
    objective: Objective = "infonce"

    def __post_init__(self) -> None:
        if self.width < 1 or (self.groups and self.width % self.groups):
            raise ConfigError(
                f"width {self.width} of the image encoder must be a positive multiple of groups {self.groups}"
            )
        if not self.temperature > 0.0:
            raise ConfigError(f"temperature {self.temperature} must be positive")


class SEBlock(nn.Module):
    """Basic residual block with squeeze and excitation (reduction 8): conv-norm-ReLU-conv-norm-SE, plus the input."""

    def __init__(self, channels_in: int, channels: int, stride: int, groups: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.first_norm = _norm(channels, groups)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.second_norm = _norm(channels, groups)
        self.squeeze = nn.Linear(channels, max(channels // 8, 4))
        self.excite = nn.Linear(max(channels // 8, 4), channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), _norm(channels, groups)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H / stride, W / stride)."""
        y = F.relu(self.first_norm(self.first(x)))
        y = self.second_norm(self.second(y))
        weight = torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean(dim=(2, 3))))))
        out: Tensor = F.relu(y * weight[:, :, None, None] + self.shortcut(x))
        return out


class ResNetSE18(nn.Module):
    """f_I: stages of [2, 2, 2, 2] SE blocks, global pooling, one fully connected layer to R^d.

    GroupNorm instead of BatchNorm by default: a batch holds few clips, whose frames resemble each other.
    """

    def __init__(self, width: int, d: int, groups: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, 2, 3, bias=False), _norm(width, groups), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        blocks = []
        for stage in range(4):
            channels_in, channels = widths[stage], widths[stage + 1]
            blocks += [SEBlock(channels_in, channels, 1 if stage == 0 else 2, groups)]
            blocks += [SEBlock(channels, channels, 1, groups)]
        self.blocks = nn.Sequential(*blocks)
        self.out = nn.Linear(8 * width, d)

    def forward(self, image: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] to (B, d)."""
        out: Tensor = self.out(self.blocks(self.stem(image)).mean(dim=(2, 3)))
        return out


class CLeBS(nn.Module):
    """Both towers: f_I for images, f_e (LeBS) for expressions."""

    def __init__(self, config: CLeBSConfig) -> None:
        super().__init__()
        self.config = config
        self.image = ResNetSE18(config.width, config.expression.d, config.groups)
        self.expression = ExpressionEncoder(config.expression)

    def forward(self, image: Tensor, expression: Tensor) -> tuple[Tensor, Tensor]:
        """Images (G, T, 3, H, W) and expressions (G, T, E) to embeddings (G, T, d) of both."""
        g, t = image.shape[:2]
        return self.image(image.flatten(0, 1)).view(g, t, -1), self.expression(expression.flatten(0, 1)).view(g, t, -1)


def contrastive_loss(
    image: Tensor,
    expression: Tensor,
    temperature: float,
    objective: Objective = "infonce",
    same: Tensor | None = None,
    positive: Tensor | None = None,
) -> Tensor:
    """Eq. 1, averaged over clips; the positive of a clip is one of its frames, and the other frames are its negatives.

    Args:
        image: (G, T, d), f_I(X_j).
        expression: (G, T, d), f_e(beta_k).
        temperature: tau.
        objective: "printed": Eq. 1 as printed, where the denominator excludes the positive. It can be negative, and its
            gradient persists for pairs that are already separated. "infonce": the denominator includes the positive,
            a cross-entropy. "symmetric": the mean of "infonce" and of the same loss with images as anchors.
        same: (G, T, T) bool, pairs of frames that are not negatives of each other; the diagonal is ignored.
        positive: (G,) int64, the frame k of each clip; None: each frame once, averaged.

    Returns:
        A scalar. It is smallest where paired embeddings are equal and those of different frames have a cosine of
        -1 / (T - 1), as far apart as T vectors can be: log(1 + (T - 1) exp(-T / ((T - 1) tau))), or
        log(T - 1) - T / ((T - 1) tau) for "printed".

    Raises:
        ShapeError: the embeddings do not pair.  ConfigError: a clip has fewer than two frames.
    """
    check_shape(expression, f"{image.shape[0]} {image.shape[1]} {image.shape[2]}", "expression embeddings")
    frames = image.shape[1]
    if frames < 2:
        raise ConfigError("contrastive training needs at least two frames per clip")
    # Rows are expressions (anchors), columns images. In float32, since exp(cos / 0.07) spans twelve decades.
    with torch.autocast(image.device.type, enabled=False):
        logits = unit(expression) @ unit(image).mT / temperature
    pairs = torch.eye(frames, dtype=torch.bool, device=logits.device)
    if same is not None:
        logits = logits.masked_fill(same & ~pairs, -torch.inf)
    right = logits.diagonal(dim1=1, dim2=2)
    if objective == "printed":
        others = (logits.isfinite() & ~pairs).any(dim=2, keepdim=True)  # a frame without negatives has loss 0
        loss = logits.masked_fill(pairs & others, -torch.inf).logsumexp(dim=2) - right
    else:
        loss = logits.logsumexp(dim=2) - right
    if objective == "symmetric":
        loss = (loss + logits.logsumexp(dim=1) - right) / 2
    return (loss if positive is None else loss.gather(1, positive[:, None])).mean()


def unit(x: Tensor) -> Tensor:
    """Normalise vectors along the last axis to length 1, in float32; gradients stay finite at zero vectors."""
    x = x.float()
    return x * (x.square().sum(-1, keepdim=True) + 1e-12).rsqrt()


def _norm(channels: int, groups: int) -> nn.Module:
    return nn.GroupNorm(groups, channels) if groups else nn.BatchNorm2d(channels)
