"""From the model's small frames to frames on the photo's own pixel grid.

With S the source crop as the model saw it, P the photo on the grid, I the model's image, o and g its origin
(`warping.origin`), a frame is

    F(p) = R(p) + (1 - v (1 - g)) P(p + w o),  R = v (I - g S(p + o))

R, computed at the model's size and enlarged, is what the photo does not show: an opened mouth, the shading of a turn. v
is 1 on the person and falls to 0 in the background and where the photo continues beyond the crop; there w fades the
motion out too. F is laid over the background with the opacity of the person at p + w o.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from export3d.errors import check_shape
from export3d.face.crop import CropBox, crop
from export3d.image import resize
from export3d.photo.canvas import Canvas
from export3d.photo.layers import Layers
from export3d.warping.flow_field import look_up
from export3d.warping.origin import Origin

Picture = NDArray[np.uint8]

_REACH = 0.5
"""Beyond the face crop, in crop sides, motion fades out over this distance."""
_FADE = 0.08
"""Inside the face crop, in crop sides, the model's image fades in over this distance from the border."""
_SHORE = 0.25
"""Near the photo's border, in crop sides, motion across it fades out over this distance: nothing lies beyond."""
_BORDER = 0.1
"""Width of the border between the territories of two faces, in distances from their centres over their crop sides."""
_SLACK = 0.15
"""Of the photo around what a face moves, in crop sides, that its pixels may be looked up in."""
_BAND = 1 << 20
"""Pixels that are computed at a time."""


class Compositor:
    """Makes frames of a canvas.

    Args:
        canvas: the photo on the frames' pixel grid.
        layers: of the canvas.
        faces: the moving faces' crops on the canvas, and each source crop as the model saw it, (1, 3, h, h) in [-1, 1].
        others: crops of faces that do not move. What is nearer to another face does not move with this one.
    """

    def __init__(
        self,
        canvas: Canvas,
        layers: Layers,
        faces: Sequence[tuple[CropBox, Tensor]],
        others: Sequence[CropBox] = (),
    ) -> None:
        boxes = [box for box, _ in faces]
        self._still = np.ascontiguousarray(layers.still[canvas.window])
        self._canvas = canvas
        self._faces = [
            _Face(canvas, layers, box, source, [*boxes[:number], *boxes[number + 1 :], *others])
            for number, (box, source) in enumerate(faces)
        ]

    def frame(self, parts: Sequence[tuple[Tensor, Origin]]) -> Picture:
        """Each face's image (1, 3, h, h) in [-1, 1] and its origin to a frame, uint8 (H, W, 3)."""
        frame = self._still.copy()
        for face, (image, origin) in zip(self._faces, parts, strict=True):
            for rows, columns, pixels in face.bands(image, origin):
                shown = frame[rows, columns]
                if face.alone:
                    shown[:] = pixels
                else:  # what this face changes is added: another one may have changed the same pixels
                    change = pixels.astype(np.int16) - self._still[rows, columns]
                    shown[:] = (shown + change).clip(0, 255)
        return frame


class _Face:
    """One face in a canvas: what it moves, and where that lies in the frame."""

    def __init__(self, canvas: Canvas, layers: Layers, box: CropBox, source: Tensor, others: Sequence[CropBox]) -> None:
        check_shape(source, "1 3 h h", "source")
        self.alone = not others
        self._box, self._others, self._limits, self._source = box, others, canvas.limits, source
        (left, top), side = box.corner, box.side
        reach = _REACH * side if canvas.whole else 0.0
        self._first = (canvas.window[0].start, canvas.window[1].start)
        self._rows = _span(top - reach, top + side + reach, canvas.window[0])
        self._columns = _span(left - reach, left + side + reach, canvas.window[1])
        slack = round(_SLACK * side)
        height, width = layers.person.shape[:2]
        near_rows = slice(max(self._rows.start - slack, 0), min(self._rows.stop + slack, height))
        near_columns = slice(max(self._columns.start - slack, 0), min(self._columns.stop + slack, width))
        self._near = (near_columns.start, near_rows.start)
        self._person = _tensor(layers.person[near_rows, near_columns], source)
        self._behind, self._still = (layer[self._rows, self._columns] for layer in (layers.behind, layers.still))
        self._x = torch.arange(self._columns.start, self._columns.stop, device=source.device) + 0.5
        self._y = torch.arange(self._rows.start, self._rows.stop, device=source.device) + 0.5
        self._window = self._fade_in(source.shape[-1]) if canvas.whole else torch.ones((), device=source.device)
        matte = crop(np.repeat(layers.matte[..., None], 3, axis=2), box, source.shape[-1])
        self._matte = F.max_pool2d(_tensor(matte, source)[:, :1] / 255.0, 5, 1, 2)

    def bands(self, image: Tensor, origin: Origin) -> Iterator[tuple[slice, slice, Picture]]:
        """Parts of the frame: their rows and columns, and uint8 (h, w, 3)."""
        drawn = self._window * look_up(self._matte, origin.offset)
        known = drawn * origin.trust
        share = 1.0 - drawn + known
        rest = 127.5 * (drawn * image - known * look_up(self._source, origin.offset) + 1.0 - share)
        maps = torch.cat([origin.offset * (self._box.side / 2.0), share], dim=1)
        side = round(self._box.side)
        if side < image.shape[-1]:
            rest, maps = resize(rest, max(side, 2)), resize(maps, max(side, 2))
        count = max(_BAND // max(len(self._x), 1), 1)
        for start in range(0, len(self._y), count):
            part = slice(start, min(start + count, len(self._y)))
            top, left = self._rows.start - self._first[0], self._columns.start - self._first[1]
            rows, columns = slice(top + part.start, top + part.stop), slice(left, left + len(self._x))
            yield rows, columns, self._pixels(rest, maps, part)

    def _pixels(self, rest: Tensor, maps: Tensor, rows: slice) -> Picture:
        """One band, from R on the scale of bytes, and the offset in pixels with 1 - v (1 - g): (1, 3, h, h) each."""
        x, y = self._x[None, :], self._y[rows, None]
        (left, top), side = self._box.corner, self._box.side
        across, down = (x - left) / side, (y - top) / side
        shape = (len(y), x.shape[1])
        grid = torch.stack([(2.0 * across - 1.0).expand(shape), (2.0 * down - 1.0).expand(shape)], dim=-1)[None]
        moved = F.grid_sample(maps, grid, "bilinear", "border", align_corners=False)[0]
        beyond = torch.hypot(_outside(across), _outside(down))
        free, territory = _smooth(1.0 - beyond / _REACH), self._territory(x, y)
        if territory is not None:
            free = free * territory
        first, last = self._limits[:2], self._limits[2:]
        place = []
        for axis, at in enumerate((x, y)):
            shore = torch.minimum(at - first[axis], last[axis] - at) / (_SHORE * side)
            at = at + moved[axis] * (free * _smooth(shore))
            place.append((at - self._near[axis]) * (2.0 / self._person.shape[3 - axis]) - 1.0)
        looked_up = F.grid_sample(
            self._person, torch.stack(place, dim=-1)[None], "bicubic", "border", align_corners=False
        )[0]
        shown = F.grid_sample(rest, grid, "bicubic", "border", align_corners=False)[0]
        shown.addcmul_(moved[2:], looked_up[:3])
        opacity = looked_up[3:].clamp_(0.0, 255.0).div_(255.0)
        behind, still = (_tensor(layer[rows], rest)[0] for layer in (self._behind, self._still))
        out = torch.lerp(behind, shown.clamp_(0.0, 255.0), opacity)
        if territory is not None:
            out = torch.lerp(still, out, territory)
        pixels: Picture = out.add_(0.5).to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()
        return pixels

    def _fade_in(self, size: int) -> Tensor:
        """v (1, 1, size, size): 1 in the crop, falling to 0 at those of its borders beyond which the photo goes on."""
        at = (torch.arange(size, device=self._source.device) - 1.0) / size  # 0 where the enlarged border begins
        fades = []
        for axis in range(2):
            begin, side = self._box.corner[axis], self._box.side
            fade = torch.ones_like(at)
            if begin > self._limits[axis] + 1.0:
                fade = torch.minimum(fade, at / _FADE)
            if begin + side < self._limits[2 + axis] - 1.0:
                fade = torch.minimum(fade, at.flip(0) / _FADE)
            fades.append(_smooth(fade))
        return (fades[1][:, None] * fades[0][None, :])[None, None]

    def _territory(self, x: Tensor, y: Tensor) -> Tensor | None:
        """How far places belong to this face, 0 to 1; None if there is no other."""
        if not self._others:
            return None
        own = _away(x, y, self._box)
        nearest = torch.stack([_away(x, y, box) for box in self._others]).amin(dim=0)
        return _smooth(0.5 + (nearest - own) / _BORDER)


def _span(first: float, end: float, limits: slice) -> slice:
    """The pixels between two places, within limits."""
    start = min(max(int(np.floor(first)), limits.start), limits.stop)
    return slice(start, max(min(int(np.ceil(end)), limits.stop), start))


def _outside(share: Tensor) -> Tensor:
    """How far places 0..1 lie outside that range."""
    return torch.maximum(-share, share - 1.0).clamp_min(0.0)


def _smooth(x: Tensor) -> Tensor:
    """0 below 0, 1 above 1, smooth between."""
    x = x.clamp(0.0, 1.0)
    return x * x * (3.0 - 2.0 * x)


def _away(x: Tensor, y: Tensor, box: CropBox) -> Tensor:
    return torch.hypot(x - box.centre[0], y - box.centre[1]) / box.side


def _tensor(image: Picture, like: Tensor) -> Tensor:
    """uint8 (H, W, C) to float32 (1, C, H, W), 0 to 255, on the device of another one."""
    return torch.tensor(image).to(like.device).permute(2, 0, 1)[None].float()
