"""A photo taken apart: what moves, what is behind it, and what a frame is while nothing moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export3d.errors import BadImage
from export3d.face.crop import CropBox
from export3d.photo.background import apart, replaced
from export3d.photo.canvas import Canvas
from export3d.photo.extension import extended
from export3d.photo.fields import strips
from export3d.photo.matte import foreground, person_matte, person_share
from export3d.photo.options import check_background

Picture = NDArray[np.uint8]

_ROUND = 0.35
"""Radius of the top of a head, crop sides."""
_FOUND = 0.5
"""Share of a face below which the matte is of no use, as in many drawings."""


@dataclass(frozen=True)
class Layers:
    """What the frames of a photo are made of.

    Attributes:
        still: uint8 (H, W, 3), the frame while nothing moves.
        behind: uint8 (H, W, 3), the background without the person.
        person: uint8 (H, W, 4), what moves: colours and opacity.
        matte: uint8 (H, W), where people are, closely.
    """

    still: Picture
    behind: Picture
    person: Picture
    matte: Picture

    @classmethod
    def opaque(cls, image: Picture) -> Layers:
        """An image (H, W, 3) all of which may move with the face."""
        everything = np.full(image.shape[:2], 255, np.uint8)
        return cls(image, image, _with_opacity(image, everything), everything)


def layers(
    canvas: Canvas,
    boxes: Sequence[CropBox],
    background: str = "keep",
    others: Sequence[CropBox] = (),
) -> Layers:
    """Take a canvas apart.

    With "keep" the person moves before the photo in which they are filled in (`background.apart`); while nothing moves
    that is the photo. With another background the matte cuts them out. People are looked for in the photo alone: in
    the smooth colours beyond its border the network finds some that are none.

    Args:
        boxes: crops of the faces that move, on the canvas.
        background: see `background.replaced`.
        others: crops of the other faces; those that are no persons, as on a poster, are part of the background.

    Raises:
        ConfigError: no such background.
        BadImage: the background cannot be read, or no person to cut out is found. "keep" then moves the background near
            the face too.
    """
    check_background(background)
    image, photo = canvas.image, canvas.image[canvas.photo]
    top, left = (part.start for part in canvas.photo)
    inside, beside = (
        [CropBox((box.centre[0] - left, box.centre[1] - top), box.side) for box in group] for group in (boxes, others)
    )
    if min(person_share(photo, box) for box in inside) < _FOUND:
        if background == "keep":
            return Layers.opaque(image)
        raise BadImage(
            "no person that could be cut out was found in the portrait, as in many drawings; leave out the background"
        )
    people = [person_share(photo, box) >= _FOUND for box in beside]
    close = person_matte(photo, *inside, *(box for box, found in zip(beside, people) if found))
    matte = _on_canvas(close, canvas, _ROUND * max(box.side for box in boxes))
    if background == "keep":
        seen = [*boxes, *(box for box, found in zip(others, people) if found)]
        return Layers(image, *apart(image, matte, seen, canvas.photo), matte)
    behind = replaced(image, matte, background, canvas.window)
    person, still = foreground(image, matte), np.empty_like(image)
    for first, last in strips(*matte.shape):
        own, share = person[first:last].astype(np.float32), matte[first:last, :, None].astype(np.float32) / 255.0
        still[first:last] = (behind[first:last] + share * (own - behind[first:last])).round()
    return Layers(still, behind, _with_opacity(person, matte), matte)


def _on_canvas(matte: Picture, canvas: Canvas, radius: float) -> Picture:
    """The matte of a canvas, uint8 (H, W), from that of its photo (h, w), which goes on beyond the photo's border.

    It is blurred there as the colours are, and made steeper, so that nobody is left far from the photo. `radius`: see
    `_domes`, which take its place above whole photos.
    """
    (top, bottom), (left, right) = ((part.start, part.stop) for part in canvas.photo)
    height, width = canvas.image.shape[:2]
    margins = (top, height - bottom), (left, width - right)
    blurred = extended(np.repeat(matte[..., None], 3, 2), *margins)[..., 0].astype(np.int16)
    out = (4 * blurred - 382).clip(0, 255).astype(np.uint8)
    out[canvas.photo] = matte
    if canvas.whole and top:
        out[:top] = 0
        out[:top, left:right] = _domes(matte[0], top, radius)
    return out


def _domes(row: NDArray[np.uint8], margin: int, radius: float) -> Picture:
    """Heads that the upper border of a photo cuts off go on as flat domes: uint8 (margin, W).

    Args:
        row: uint8 (W,), the uppermost of the matte.
        margin: pixels above it.
        radius: of the heads, pixels.
    """
    x, up = np.arange(len(row)) + 0.5, np.arange(margin, 0, -1)[:, None] - 0.5
    out = np.zeros((margin, len(row)))
    ends = np.flatnonzero(np.diff(np.pad(row > 127, 1).astype(np.int8)))
    for first, last in zip(ends[::2], ends[1::2]):
        half = (last - first) / 2
        high = half * min(half / (2 * radius), 0.7)
        wide = half * np.sqrt((1 - (up / high) ** 2).clip(0.0))
        out = np.maximum(out, (wide - np.abs(x - first - half) + 0.5).clip(0.0, 1.0) * (wide > 0.0))
    return np.asarray((255 * out).round(), np.uint8)


def _with_opacity(image: Picture, opacity: Picture) -> Picture:
    return np.concatenate([image, opacity[..., None]], axis=2)
