"""Detail from the source's own pixels, blended into the super-resolution (not in the paper).

Rendered pixels are blurry. Source pixels are sharp, but they show a closed mouth where one must open, and the old head
where it has moved away. `Detail` chooses at each pixel.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export3d.layers import activated, conv3x3, enlarge
from export3d.warping.elastic_mesh import softened
from export3d.warping.inner_mouth import Draw, Teeth, filled
from export3d.warping.origin import Origin, origin
from export3d.warping.shoulders import leaning_at_shoulders
from export3d.warping.teeth import chosen
from export3d.warping.turns import counts, fading, leaning

SEEN, SEEN_OF_MOUTH, SEEN_OF_MATTE = 12, 2, 3
"""Channels of the stacked views: without mouth and matte, then of these two."""
_CRISP = 1.6
"""How much is added of what two means of 3 x 3 pixels take away of a rendered pixel."""
_DETAIL_WIDTH = 16
_OVERVIEW_WIDTH = 32


@dataclass(frozen=True)
class Views:
    """The source as it may appear in a driving frame.

    Attributes:
        moved: (B, 3, H, W) the source in the driving view.
        stretched: (B, 1, H, W) how far it is stretched there, 0 to 1 (`flow_field.stretch`).
        offset: (B, 2, H, W) the flow that moved it.
        still: (B, 3, H, W) the source unmoved: the background does not turn with the head.
        turned: (B, 3, H, W) the whole source turned rigidly with the head (`average_head.turned_flow`), as hair far
            from the face moves.
        turn: (B, 2, H, W) the flow that turned it.
        head: (B, 2, H, W) nearness of the head in the driving view and in the source (`average_head.head_nearness`).
        mouth: (B, 2, H, W) where the mouth is open in the driving view and in `turned` (`flows.openings`): upper teeth
            move with the head, whatever the lips do. None without `WarpConfig.mouth`.
        teeth: (B, 2, H, W) where the mouth has opened, and where `turned` shows teeth (`teeth.upper_teeth`). None
            without `WarpConfig.teeth`.
        far: (B, 1, 1, 1) how far the head is turned from the source's view (`turns.far`). None without
            `WarpConfig.turns`.
        face: (B, 1, H/4, W/4) share of the pixels in which the mesh shows the face. None without `WarpConfig.turns`.
        person: (B, 3, H, W) opacity of the person in `moved`, `still` and `turned`. None without `WarpConfig.matte`.
        lips: (B, 478, 2) the landmarks in the driving view, 0..1; hidden: (B, 1, 1, 1) how far the mouth is drawn
            (`teeth.hidden`); kept: (B, 1, H/2, W/2) where it is not, since `turned` shows upper teeth there; and
            arches: (B, 11) of the teeth that are drawn (`dental_arch`). None without `WarpConfig.inside`.
        body: (B, 1, H/4, W/4) how far the person moves as the driving shoulders do (`shoulders.following`). None
            without `WarpConfig.shoulders`.
    """

    moved: Tensor
    stretched: Tensor
    offset: Tensor
    still: Tensor
    turned: Tensor
    turn: Tensor
    head: Tensor
    mouth: Tensor | None = None
    teeth: Tensor | None = None
    far: Tensor | None = None
    face: Tensor | None = None
    person: Tensor | None = None
    lips: Tensor | None = None
    hidden: Tensor | None = None
    kept: Tensor | None = None
    arches: Tensor | None = None
    body: Tensor | None = None

    @property
    def mean_offset(self) -> Tensor:
        """(B, 2, H/4, W/4) the mean of the offset over 4 x 4 pixels."""
        return F.avg_pool2d(self.offset, 4)

    def leaned(self, logits: Tensor) -> Tensor:
        """The logits of `Detail.overlook`, changed where shoulders follow and where the head is turned."""
        logits = logits.float()
        if self.body is not None and self.person is not None and counts(self.body):
            logits = leaning_at_shoulders(logits, self.body, self.person)
        if self.far is None or self.face is None or not counts(self.far):
            return logits
        return leaning(logits, self.far, self.face, self.mouth, self.person)

    def stacked(self) -> Tensor:
        """Images and masks (B, `SEEN`, H, W), then those of the mouth and `person`, if there are any."""
        seen = [self.moved, self.still, self.stretched, self.head, self.turned]
        seen += [part for part in (self.mouth, self.person) if part is not None]
        return torch.cat(seen, dim=1)


class Detail(nn.Module):
    """Chooses at each pixel between the rendered image and views of the source, and adds what none of them shows.

    Starts with mostly the rendered image.

    Args:
        features, mid, high: channels of the rendered features and of the super-resolution at H/2 and at H.
        mouth: whether the views carry the mouth's opening.
        matte: whether the views carry the person's opacity.
    """

    def __init__(self, features: int, mid: int, high: int, mouth: bool = False, matte: bool = False) -> None:
        super().__init__()
        self._matte = SEEN_OF_MATTE if matte else 0
        seen = SEEN + (SEEN_OF_MOUTH if mouth else 0) + self._matte
        widths = (features + SEEN + 2 + self._matte, *[_OVERVIEW_WIDTH] * 3)
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

    def overlook(self, feature: Tensor, half: Tensor, offset: Tensor) -> Tensor:
        """Which image to prefer, from the wider surroundings.

        Whether a pixel belongs to the moved head or to the background shows only in its surroundings.

        Args:
            feature: (B, F, H/4, W/4) rendered features.
            half: (B, C, H/2, W/2) the stacked views. Those of the mouth are not looked at: they decide nearby alone.
            offset: (B, 2, H/4, W/4) the flow of the moved source, see `Views.mean_offset`.

        Returns:
            (B, 4, H/4, W/4) logits of the rendered, moved, still and turned image.
        """
        small = F.avg_pool2d(half, 2)
        x = torch.cat([feature, small[:, :SEEN], 4.0 * offset, small[:, small.shape[1] - self._matte :]], dim=1)
        for layer in self.overview:
            x = activated(layer(x))
        out: Tensor = self.lean(x)
        return out

    def choose(self, x: Tensor, rendered: Tensor, stacked: Tensor) -> Tensor:
        """Which image each pixel prefers, and what none of them shows.

        Args:
            x: (B, high, H, W) features.
            rendered: (B, 3, H, W).
            stacked: `Views.stacked`.

        Returns:
            (B, 7, H, W): logits of the rendered, moved, still and turned image, and a colour to add.
        """
        x = torch.cat([x, rendered, stacked], dim=1)
        out: Tensor = self.choice(activated(self.second(activated(self.first(x)))))
        return out

    @staticmethod
    def blend(choice: Tensor, rendered: Tensor, lean: Tensor, views: Views) -> tuple[Tensor, Tensor]:
        """Blend the rendered image and the views.

        Args:
            choice: (B, 7, H, W), see `choose`.
            rendered: (B, 3, H, W).
            lean: (B, 4, H/4, W/4), see `overlook`.
            views: the views.

        Returns:
            (B, 3, H, W) the final image, and (B, 4, H, W) the shares of the rendered, moved, still and turned image in
            it, which sum to 1.
        """
        choice = choice.contiguous()
        logits, out = choice[:, :4], choice[:, 4:]
        share = (logits + enlarge(lean, 4)).softmax(dim=1)
        if views.teeth is not None:
            share = chosen(views.teeth, share)
            out = out * (1.0 - views.teeth[:, :1] * views.teeth[:, 1:])
        if views.far is not None and counts(views.far):
            out = fading(out, views.far, views.mouth)
        for part, image in zip(share.chunk(4, dim=1), (rendered, views.moved, views.still, views.turned)):
            out = torch.addcmul(out, part, image)
        return out, share


class DetailGuide:
    """`Detail` with one driving frame's views, as the super-resolution calls it (`superres.Guide`).

    Args:
        feature: (B, F, H/4, W/4) rendered features.
        inner: draws mouths of which the source shows nothing; None: nothing does.

    Attributes:
        share: (B, 4, H, W) shares of the four images in the final one, see `Detail`; None until it is finished.
        teeth: (B, 7, S, S) the teeth in it, see `inner_mouth.Teeth`; None also where no mouths are drawn.
    """

    def __init__(self, detail: Detail, views: Views, feature: Tensor, inner: Draw | None = None) -> None:
        self.views = views
        self.share: Tensor | None = None
        self.teeth: Tensor | None = None
        self._detail, self._inner = detail, inner
        self._stacked = views.stacked().contiguous(memory_format=torch.channels_last)
        self._half = F.avg_pool2d(self._stacked, 2)
        lean = detail.overlook(feature, self._half, views.mean_offset)
        self._lean = views.leaned(lean)

    def at_half(self, x: Tensor) -> Tensor:
        """Features (B, mid, H/2, W/2) with what the views add."""
        added: Tensor = self._detail.mid(self._half)
        return x + added

    def at_full(self, x: Tensor, image: Tensor) -> Tensor:
        """Features (B, high, H, W) and the rendered image (B, 3, H, W) to the final image."""
        choice = self._detail.choose(x, image, self._stacked)
        blended = self._detail.blend(choice, image, self._lean, self.views)
        out, self.share, self.teeth = finished(self._inner, blended, self.views)
        return out

    @property
    def origin(self) -> Origin | None:
        """Where the final image's pixels come from in the source; None until it is finished."""
        if self.share is None:
            return None
        return MixedOrigin(self.share, self.views, self.teeth)


def crisp(image: Tensor, share: Tensor, stretched: Tensor) -> Tensor:
    """An image (B, 3, H, W) that is as sharp where it is rendered as elsewhere: an unsharp mask by that share.

    Losses on pixels blur what is rendered. Where the moved source is stretched, as between lids that close, the mask
    would sharpen its stripes. While the image is trained it stays as it is: the network would learn to be softer.
    """
    if torch.is_grad_enabled() and image.requires_grad:
        return image
    image, part = image.clamp(-1.0, 1.0), share[:, :1] * (1.0 - stretched)
    return torch.addcmul(image, part, image - softened(softened(image)), value=_CRISP).clamp(-1.0, 1.0)


def finished(draw: Draw | None, made: tuple[Tensor, Tensor], views: Views) -> tuple[Tensor, Tensor, Tensor | None]:
    """What `Detail.blend` has made, crisp, with mouths that the source does not show; and `DetailGuide.teeth`."""
    image, share = crisp(*made, views.stretched), made[1]
    if draw is None or views.lips is None or views.hidden is None or views.kept is None or views.arches is None:
        return image, share, None
    return filled(draw, image, share, views.lips, views.hidden, views.kept, views.arches)


class MixedOrigin(Origin):
    """The origin of the images of `Detail`. It is computed when it is asked for: the face crop itself needs none."""

    _made_of: tuple[Tensor, Views, Tensor | None]

    def __init__(self, share: Tensor, views: Views, teeth: Tensor | None = None) -> None:
        object.__setattr__(self, "_made_of", (share, views, teeth))  # the base is frozen

    def rows(self, rows: slice) -> Origin:
        """That of some of the images, computed when it is asked for."""
        share, views, teeth = self._made_of
        seen = {field.name: getattr(views, field.name) for field in fields(views)}
        kept: dict[str, Any] = {name: x if x is None else x[rows] for name, x in seen.items()}
        return MixedOrigin(share[rows], Views(**kept), None if teeth is None else teeth[rows])

    @cached_property
    def _places(self) -> Origin:
        share, views, _ = self._made_of
        return origin(share, views.offset, views.turn)

    @property
    def offset(self) -> Tensor:
        return self._places.offset

    @property
    def trust(self) -> Tensor:
        return self._places.trust

    @property
    def teeth(self) -> Teeth | None:
        _, views, teeth = self._made_of
        if teeth is None or views.arches is None or views.lips is None:
            return None
        return Teeth(views.arches, views.lips, teeth)

    @cached_property
    def taken(self) -> Tensor:
        share, views, _ = self._made_of
        taken = share[:, 1:2] * views.moved
        taken = torch.addcmul(torch.addcmul(taken, share[:, 2:3], views.still), share[:, 3:], views.turned)
        return torch.cat([taken, share[:, 1:].sum(dim=1, keepdim=True)], dim=1)
