"""Detail from the source's own pixels, blended into the super-resolution (not in the paper)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export3d.layers import conv3x3, enlarge

_DETAIL_WIDTH = 16
_OVERVIEW_WIDTH = 32


@dataclass(frozen=True)
class Views:
    """What the source itself offers for a driving frame.

    Attributes:
        moved: (B, 3, H, W) the source in the driving view.
        stretched: (B, 1, H, W) how far it is stretched there, 0 to 1 (`triplane.align.stretch`).
        offset: (B, 2, H, W) from where it comes, [-1, 1] grid units from the pixel's own place, x first.
        still: (B, 3, H, W) the source as it is: a room does not turn with the head.
        turned: (B, 3, H, W) the whole source turned as the head is (`triplane.align.turned_flow`): hair far from the
            face goes that way.
        head: (B, 2, H, W) where the head is in the driving view and was in the source (`triplane.align.head_nearness`).
        mouth: (B, 2, H, W) where the mouth is open in the driving view, and in `turned`: upper teeth go with the head,
            whatever the lips do (`triplane.motion.openings`). None where the model does not ask.
    """

    moved: Tensor
    stretched: Tensor
    offset: Tensor
    still: Tensor
    turned: Tensor
    head: Tensor
    mouth: Tensor | None = None

    def around(self) -> Tensor:
        """What may be seen from afar, (B, 12, H, W)."""
        return torch.cat([self.moved, self.still, self.stretched, self.head, self.turned], dim=1)

    def stacked(self) -> Tensor:
        """All but the offset, (B, 12, H, W), with the mouth (B, 14, H, W)."""
        return self.around() if self.mouth is None else torch.cat([self.around(), self.mouth], dim=1)


class Detail(nn.Module):
    """Chooses at each pixel between drawn, moved and still pictures, and adds what none of them shows.

    Drawn pixels are soft, the source's are sharp but shut where a mouth must open, and of the past where the head
    was. Begins with mostly what is drawn.
    """

    def __init__(self, features: int, mid: int, high: int, mouth: bool = False) -> None:
        super().__init__()
        seen = 14 if mouth else 12
        widths = (features + 14, *[_OVERVIEW_WIDTH] * 3)
        self.overview = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=2**step, dilation=2**step)
            for step, (before, after) in enumerate(itertools.pairwise(widths))
        )
        self.lean = nn.Conv2d(_OVERVIEW_WIDTH, 4, 1)
        self.mid = conv3x3(seen, mid)
        self.first = conv3x3(high + 3 + seen, _DETAIL_WIDTH)
        self.second = conv3x3(_DETAIL_WIDTH, _DETAIL_WIDTH)
        self.choice = conv3x3(_DETAIL_WIDTH, 7)
        for layer in (self.mid, self.choice, self.lean):
            nn.init.zeros_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        assert self.choice.bias is not None
        nn.init.constant_(self.choice.bias[:1], 3.0)

    def at_half(self, views: Views) -> Tensor:
        """What the views add to the features at H/2: (B, mid, H/2, W/2)."""
        out: Tensor = self.mid(F.avg_pool2d(views.stacked(), 2))
        return out

    def overlook(self, feature: Tensor, views: Views) -> Tensor:
        """Which picture to lean to, from afar.

        Whether a pixel belongs to the head that moved or to the room behind it shows only in its surroundings.

        Args:
            feature: (B, F, H/4, W/4) rendered features.

        Returns:
            (B, 4, H/4, W/4) logits of the drawn, moved, still and turned picture.
        """
        x = torch.cat([feature, F.avg_pool2d(torch.cat([views.around(), 4.0 * views.offset], dim=1), 4)], dim=1)
        for layer in self.overview:
            x = F.leaky_relu(layer(x), 0.2)
        out: Tensor = self.lean(x)
        return out

    def forward(self, x: Tensor, drawn: Tensor, views: Views, lean: Tensor) -> Tensor:
        """Features (B, high, H, W), the drawn picture (B, 3, H, W) and what `overlook` gave to the final one."""
        x = torch.cat([x, drawn, views.stacked()], dim=1)
        x = F.leaky_relu(self.second(F.leaky_relu(self.first(x), 0.2)), 0.2)
        choice, added = self.choice(x).split([4, 3], dim=1)
        share = (choice + enlarge(lean, 4)).softmax(dim=1)
        pictures = (drawn, views.moved, views.still, views.turned)
        out: Tensor = sum((part * picture for part, picture in zip(share.split(1, dim=1), pictures)), start=added)
        return out
