"""Dense motion: whether each pixel of a driving frame follows the face, the head, or nothing (not in the paper).

Landmarks give the face's motion (`landmark_motion`), cameras the head's. Hair moves rigidly with the head, the neck
about half as much, shoulders independently; the background is static. Only the image tells these regions apart. As in
the dense motion network of the first-order motion model (Siarohin et al. 2019), a small network mixes a few candidate
flows at each pixel, given the source and the source moved by each candidate, and adds a residual flow.

Letters: B batch, K = 4 candidates, H pixels, G pixels across the network's input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export3d.errors import ShapeError, check_shape
from export3d.image import resize
from export3d.layers import activated
from export3d.warping.flow_field import look_up, pixel_grid

Mix = Callable[[Tensor, Sequence[Tensor]], Tensor]

GRID = 64
"""G is fixed, so that a head has the same size for the network at any image size."""
CANDIDATES = ("elastic", "as the head", "as the face", "still")
"""On the elastic mesh; the whole image turned with the head, or moved in its plane with the face; unmoved.

All but the last one move.
"""
_WIDTHS = (48, 64, 96, 128)
_LAST = 24
_LEAD = 2.0
"""The elastic mesh's lead before training, in logits."""


class DenseMotion(nn.Module):
    """Mixes candidate flows; before training mostly the elastic mesh's.

    Args:
        matte: whether it also sees the person's opacity.
    """

    def __init__(self, matte: bool = False) -> None:
        super().__init__()
        seen = 5 * len(CANDIDATES) + 3  # three channels of an image and two of an offset per candidate; the hints
        seen += len(CANDIDATES) if matte else 0
        self.fold = nn.Conv2d(4 * seen, _WIDTHS[0], 1)
        self.down = nn.ModuleList()
        before = _WIDTHS[0]
        for width in _WIDTHS:
            self.down.append(nn.Sequential(_block(before, width), _block(width, width)))
            before = width
        self.up = nn.ModuleList()
        for width in _WIDTHS[-2::-1]:
            self.up.append(_block(before + width, width))
            before = width
        self.last = nn.Conv2d(before + seen, _LAST, 3, padding=1)
        self.share = nn.Conv2d(_LAST, len(CANDIDATES), 3, padding=1)
        self.beyond = nn.Conv2d(_LAST, 2, 3, padding=1)
        for layer in (self.share, self.beyond):
            nn.init.zeros_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        assert self.share.bias is not None
        nn.init.constant_(self.share.bias[:1], _LEAD)

    def forward(self, source: Tensor, flows: Sequence[Tensor], hints: Tensor, mix: Mix | None = None) -> Tensor:
        """The flow that moves the source into the driving frame.

        Args:
            source: (B, 3, G, G), with the person's opacity (B, 4, G, G).
            flows: (B, 2, H, H) of each moving candidate, in the order of `CANDIDATES`: offsets to the places of the
                source, x first, in [-1, 1] grid units.
            hints: (B, 3, H, H), 0 to 1: the elastic mesh's stretch, and the head's nearness in the driving view and in
                the source (`average_head.head_nearness`).
            mix: `mixed`, or its compiled twin in `fused`, which has no gradients.

        Returns:
            (B, 2, H, H), offsets like the candidates.
        """
        check_shape(source, f"B C {GRID} {GRID}", "source")
        if len(flows) != len(CANDIDATES) - 1:
            raise ShapeError(f"there are {len(flows)} flows for the moving candidates {', '.join(CANDIDATES[:-1])}")
        seen = self._seen(source, flows, hints).contiguous(memory_format=torch.channels_last)
        skips = [F.leaky_relu(self.fold(F.pixel_unshuffle(seen, 2)), 0.2)]
        for step, block in enumerate(self.down):
            skips.append(block(F.avg_pool2d(skips[-1], 2) if step else skips[-1]))
        x = skips.pop()
        for block in self.up:
            x = block(torch.cat([_twice(x), skips.pop()], dim=1))
        x = activated(self.last(torch.cat([_twice(x), seen], dim=1)))
        mixture = torch.cat([self.share(x).softmax(dim=1), 0.1 * self.beyond(x)], dim=1)
        return (mix or mixed)(mixture, flows)

    @staticmethod
    def _seen(source: Tensor, flows: Sequence[Tensor], hints: Tensor) -> Tensor:
        """What the network sees: (B, 23, G, G), with the person's opacity (B, 27, G, G).

        The source moved by each candidate, the moving candidates, the hints, the pixel grid, and the moved opacities.
        """
        offsets = [resize(flow, GRID) for flow in flows]
        views = [*(look_up(source, offset) for offset in offsets), source]
        images, people = [view[:, :3] for view in views], [view[:, 3:] for view in views]
        where = pixel_grid(GRID, source.device).expand(hints.shape[0], -1, -1, -1)
        moving = [4.0 * offset for offset in offsets]
        return torch.cat([*images, *moving, resize(hints, GRID), where, *people], dim=1)


def mixed(mixture: Tensor, flows: Sequence[Tensor]) -> Tensor:
    """The flows (B, 2, H, H), each in its share of the mixture (B, K + 2, G, G), plus the residual, its last two."""
    mixture = F.interpolate(mixture, flows[0].shape[-1], mode="bilinear", align_corners=False).float()
    total = mixture[:, -2:]
    for k, flow in enumerate(flows):
        total = torch.addcmul(total, mixture[:, k : k + 1], flow)
    return total


def _block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(8, after), nn.LeakyReLU(0.2, inplace=True)
    )


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
