"""From the model's small frames to frames on the photo's own pixel grid.

With S the source crop as the model saw it, P the photo on the grid, I the model's image, o and g its origin
(`warping.origin`), a frame is

    F(p) = R(p) + (1 - v (1 - g)) P(p + w o),  R = v (I - g S(p + o))

and then what F, reduced to the model's size, lacks of v I is added. R, enlarged from the model's size, is what
the photo does not show: an opened mouth, the shading of a turn. v is 1 on the person and falls to 0 in the background
and where the photo continues beyond the crop; there w fades the motion out too. F is laid over the background with the
opacity of the person at p + w o.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from export3d.errors import check_shape
from export3d.face.crop import CropBox, crop
from export3d.image import resize
from export3d.layers import constant
from export3d.photo.canvas import Canvas
from export3d.photo.layers import Layers
from export3d.warping.elastic_mesh import softened
from export3d.warping.flow_field import look_up, pixel_grid
from export3d.warping.origin import Origin, torn

Picture = NDArray[np.uint8]

_REACH = 0.5
"""Beyond the face crop, in crop sides, motion fades out over this distance."""
_FADE = 0.08
"""Inside the face crop, in crop sides, the model's image fades in over this distance from the border."""
_EDGE = 0.07
"""Width of the edge of what the model saw, in half crop sides; there reduced frames are not compared."""
_BORDER = 0.1
"""Width of the border between the territories of two faces, in distances from their centres over their crop sides."""
_AGREED = 4.0
"""Pixels of a 256-pixel image: where the model's motion differs by less it is not continued, by more not trusted."""
_TEAR = 2.0
"""Offsets that change by so many pixels from one pixel to the next tear the contour."""
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
        border = canvas.window[0].start if canvas.whole else 0  # beyond a photo the crop and the canvas only resemble
        self._comparable = np.reshape(canvas.limits, (2, 2)) + np.array([[border], [-border]])
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
        self._person = _kept(layers.person[near_rows, near_columns], source)
        self._behind = _kept(layers.behind[self._rows, self._columns], source)
        self._still = None if self.alone else _kept(layers.still[self._rows, self._columns], source)
        self._x = torch.arange(self._columns.start, self._columns.stop, device=source.device) + 0.5
        self._y = torch.arange(self._rows.start, self._rows.stop, device=source.device) + 0.5
        self._open = [
            (canvas.whole and begin > first + 1.0, canvas.whole and begin + side < last - 1.0)
            for begin, first, last in zip(box.corner, canvas.limits[:2], canvas.limits[2:])
        ]  # for both axes, whether the photo goes on beyond the first and the last border of the crop
        self._window = self._fade_in(source.shape[-1])
        size = source.shape[-1]
        matte, opacity = (
            crop(np.repeat(layer[..., None], 3, axis=2), box, size) for layer in (layers.matte, layers.person[..., 3])
        )
        self._opacity = _tensor(opacity, source)[:, :1]
        inside = _span(top, top + side, self._rows), _span(left, left + side, self._columns)
        self._crop_rows, self._crop_columns = (
            slice(part.start - whole.start, part.stop - whole.start)
            for part, whole in zip(inside, (self._rows, self._columns))
        )
        self._reduce: tuple[Tensor, ...] | None = None
        if side >= size:
            axes = self._y[self._crop_rows] - top, self._x[self._crop_columns] - left
            down, across = (_reduction(at, side, size) for at in axes)
            softer_down, softer_across = (way @ _enlargement(at, side, size) for way, at in zip((down, across), axes))
            self._reduce = down, across.mT, softer_down, softer_across.mT
        self._people = _tensor(matte, source)[:, :1] / 255.0
        self._matte = F.max_pool2d(self._people, 5, 1, 2)

    def bands(self, image: Tensor, origin: Origin) -> Iterator[tuple[slice, slice, Picture]]:
        """Parts of the frame: their rows and columns, and uint8 (h, w, 3)."""
        origin = self._continued(origin)
        tear = torn(origin.offset, _TEAR) * _span_of(look_up(self._people, origin.offset))
        tear = softened(tear)
        image = torch.lerp(image, softened(softened(image)), tear)  # the contour runs in steps there
        drawn = self._window * look_up(self._matte, origin.offset)
        known = drawn * origin.trust
        share = 1.0 - drawn + known
        rest = 127.5 * (drawn * image - known * look_up(self._source, origin.offset) + 1.0 - share)
        opacity = look_up(self._opacity, origin.offset)
        maps = torch.cat([origin.offset * (self._box.side / 2.0), share, tear, opacity], dim=1)
        if self._reduce is None:
            side = max(round(self._box.side), 2)
            rest, maps = resize(rest, side), resize(maps, side)
        count = max(_BAND // max(len(self._x), 1), 1)
        parts = [slice(start, min(start + count, len(self._y))) for start in range(0, len(self._y), count)]
        made = [self._looked_up(rest, maps, part) for part in parts]
        correction = self._correction(image, drawn * self._known(origin.offset), made, parts)
        top, left = self._rows.start - self._first[0], self._columns.start - self._first[1]
        for layer, part in zip(made, parts):
            rows, columns = slice(top + part.start, top + part.stop), slice(left, left + len(self._x))
            yield rows, columns, self._laid_over(layer.float(), correction, part)

    def _looked_up(self, rest: Tensor, maps: Tensor, rows: slice) -> Tensor:
        """F and opacity (4, h, w), 0 to 255, of one band.

        Args:
            rest: (1, 3, h, h), R on the scale of bytes.
            maps: (1, 5, h, h), the offset in pixels, 1 - v (1 - g), 1 where the motion is torn, and the opacity there.
        """
        x, y = self._x[None, :], self._y[rows, None]
        moved = _enlarged(maps, self._grid(x[0], y[:, 0]), "bilinear")
        (left, top), side = self._box.corner, self._box.side
        free = _smooth(1.0 - torch.hypot(_outside((x - left) / side), _outside((y - top) / side)) / _REACH)
        territory = self._territory(x, y)
        if territory is not None:
            free = free * territory
        across, down = (
            at + _ashore(free * moved[axis], at - self._limits[axis], self._limits[2 + axis] - at)
            for axis, at in enumerate((x, y))
        )
        height, width = self._person.shape[1:]
        down, across = down - self._near[1], across - self._near[0]
        first = min(max(int(down.min()) - 2, 0), height - 1)
        part = self._person[:, first : max(min(int(down.max()) + 3, height), first + 1)]
        place = torch.stack([across * (2.0 / width), (down - first) * (2.0 / part.shape[1])], dim=-1)[None] - 1.0
        found = _enlarged(part[None].float(), place, "bicubic")
        found[:3] *= moved[2:3]
        found[3:] = torch.lerp(found[3:], moved[4:], moved[3:4])  # between places far apart lies nothing to look up
        self._add(found, rest, rows)
        return found if len(self._y) == rows.stop - rows.start else found.half()

    def _correction(
        self, image: Tensor, share: Tensor, made: Sequence[Tensor], parts: Sequence[slice]
    ) -> Tensor | None:
        """What F, reduced to the model's size, lacks of the model's image: (1, 3, h, h) on the scale of bytes.

        Details found in the photo are sharper than the model's and can lie a little beside them. A difference of
        one grey level is left alone, so that what does not move stays as it is.
        """
        if self._reduce is None:
            return None
        down, across, softer_down, softer_across = self._reduce
        small = torch.zeros_like(image)
        for layer, part in zip(made, parts):
            own, of_crop = self._within(part)
            small += down[:, of_crop] @ layer[:3, own, self._crop_columns].float() @ across
        lacking = 127.5 * (image + 1.0) - small
        lacking = share * (lacking - lacking.clamp(-1.0, 1.0))
        return 2.0 * lacking - softer_down @ lacking @ softer_across  # enlarging softens it

    def _known(self, offset: Tensor) -> Tensor:
        """(1, 1, h, h): 1 where the model looked pixels up in what the crop shows of the photo, 0 beyond."""
        place = pixel_grid(offset.shape[-1], offset.device) + offset
        limits = (self._comparable - self._box.corner) * (2.0 / self._box.side) - 1.0
        first, last = (constant(tuple(row), place.device, place.dtype)[:, None, None] for row in limits.clip(-1.0, 1.0))
        room = torch.minimum(place - first, last - place).amin(dim=1)
        return (room / _EDGE - 1.0).clamp(0.0, 1.0)[:, None]

    def _laid_over(self, layer: Tensor, correction: Tensor | None, rows: slice) -> Picture:
        """One band of F and its opacity (4, h, w) over the background: uint8 (h, w, 3)."""
        if correction is not None:
            self._add(layer, correction, rows)
        shown, opacity = layer.clamp_(0.0, 255.0)[:3], layer[3:].div_(255.0)
        out = torch.lerp(self._behind[:, rows].float(), shown, opacity)
        territory = self._territory(self._x[None, :], self._y[rows, None])
        if territory is not None and self._still is not None:
            out = torch.lerp(self._still[:, rows].float(), out, territory)
        pixels: Picture = out.add_(0.5).to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()
        return pixels

    def _add(self, layer: Tensor, image: Tensor, rows: slice) -> None:
        """Add an image (1, 3, h, h) that is 0 at the crop's border, enlarged, to one band."""
        own, of_crop = self._within(rows)
        x, y = self._x[self._crop_columns], self._y[self._crop_rows][of_crop]
        layer[:3, own, self._crop_columns] += _enlarged(image, self._grid(x, y), "bicubic")

    def _within(self, rows: slice) -> tuple[slice, slice]:
        """The rows of a band that lie in the crop: counted from the band's first row and from the crop's."""
        start, stop = max(rows.start, self._crop_rows.start), min(rows.stop, self._crop_rows.stop)
        stop = max(start, stop)
        first = self._crop_rows.start
        return slice(start - rows.start, stop - rows.start), slice(start - first, stop - first)

    def _grid(self, x: Tensor, y: Tensor) -> Tensor:
        """Places (1, h, w, 2) in the crop, [-1, 1] grid units, of rows and columns of the canvas."""
        (left, top), side = self._box.corner, self._box.side
        across, down = (2.0 / side) * (x - left) - 1.0, (2.0 / side) * (y - top) - 1.0
        shape = (len(down), len(across))
        return torch.stack([across[None, :].expand(shape), down[:, None].expand(shape)], dim=-1)[None]

    def _fade_in(self, size: int) -> Tensor:
        """v (1, 1, size, size): 1 in the crop, falling to 0 at those of its borders beyond which the photo goes on."""
        at = (torch.arange(size, device=self._source.device) - 1.0) / size  # 0 where the enlarged border begins
        fades = []
        for before, after in self._open:
            fade = torch.ones_like(at)
            if before:
                fade = torch.minimum(fade, at / _FADE)
            if after:
                fade = torch.minimum(fade, at.flip(0) / _FADE)
            fades.append(_smooth(fade))
        return (fades[1][:, None] * fades[0][None, :])[None, None]

    def _continued(self, origin: Origin) -> Origin:
        """The motion where the model's image has faded in, continued to those borders beyond which the photo goes on.

        The model sees nothing beyond them. There it does not move what comes in or goes out, and a head would be cut.
        """
        size = origin.offset.shape[-1]
        margin = int(np.ceil(_FADE * size)) + 1
        columns, rows = (
            torch.arange(size, device=origin.offset.device).clamp(margin * before, size - 1 - margin * after)
            for before, after in self._open
        )
        unit = 2.0 * _AGREED / 256.0
        apart = origin.offset[:, :, rows[:, None], columns] - origin.offset
        apart = apart * _smooth(_length(apart) / (2.0 * unit) - 0.5)  # a head at rest stays in place
        return replace(
            origin,
            offset=origin.offset + apart,
            trust=origin.trust * torch.exp(-(_length(apart) / unit).square()),
        )

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


def _enlarged(image: Tensor, places: Tensor, mode: str) -> Tensor:
    """(1, C, h, h) at places (1, h, w, 2) in [-1, 1] grid units: (C, h, w)."""
    return F.grid_sample(image, places, mode, "border", align_corners=False)[0]


def _reduction(places: Tensor, side: float, size: int) -> Tensor:
    """Weights (size, n) that reduce pixels, n places along an axis of the crop, to `size`: antialiased bicubic.

    As Pillow reduces images. Zero where the pixels do not reach.
    """
    step = side / size
    away = ((torch.arange(size, device=places.device)[:, None] + 0.5) * step - places).abs() / step
    near = (1.5 * away - 2.5) * away.square() + 1.0
    far = ((-0.5 * away + 2.5) * away - 4.0) * away + 2.0
    weights = torch.where(away < 1.0, near, torch.where(away < 2.0, far, 0.0))
    total = weights.sum(dim=1, keepdim=True)
    return torch.where(total > 0.9 * step, weights / total.clamp_min(1e-6), 0.0)


def _enlargement(places: Tensor, side: float, size: int) -> Tensor:
    """Weights (n, size) that enlarge `size` pixels to n places along an axis of the crop, as `_enlarged` does."""
    unit = torch.eye(size, device=places.device)[None, :, :, None]
    at = torch.stack([torch.zeros_like(places), places * (2.0 / side) - 1.0], dim=-1)[None, :, None]
    return _enlarged(unit, at, "bicubic")[..., 0].mT


def _ashore(offset: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Offsets along an axis that end inside the photo: nothing lies beyond its border.

    Where an offset t ends nearer to the border than t, the distance d that is left there becomes t exp(d / t - 1).

    Args:
        offset: pixels.
        before, after: distances to the photo's borders, pixels.
    """
    size = offset.abs()
    room = torch.where(offset > 0.0, after, before)
    short = (room < 2.0 * size) & (size > 0.0)
    if not bool(short.any()):
        return offset
    size, room = size[short], room[short]
    ended = room - size * torch.exp((room - 2.0 * size) / size)
    out = offset.clone()
    out[short] = torch.where(offset[short] > 0.0, ended, -ended)
    return out


def _span_of(image: Tensor) -> Tensor:
    """Largest minus smallest value near each pixel, 5 x 5, of (1, 1, h, h)."""
    image = F.pad(image, (2, 2, 2, 2), "replicate")
    return _nearby(torch.maximum, image) - _nearby(torch.minimum, image)


def _nearby(chosen: Callable[[Tensor, Tensor], Tensor], image: Tensor) -> Tensor:
    """One value of each 5 x 5 pixels: per axis of neighbours, of pairs, and of the last one (pooling is slower)."""
    for axis in (-1, -2):
        size = image.shape[axis] - 4
        two = chosen(image.narrow(axis, 0, size + 3), image.narrow(axis, 1, size + 3))
        four = chosen(two.narrow(axis, 0, size), two.narrow(axis, 2, size))
        image = chosen(four, image.narrow(axis, 4, size))
    return image


def _length(flow: Tensor) -> Tensor:
    """(B, 2, h, w) to (B, 1, h, w); `norm` across channels is slow."""
    return torch.hypot(flow[:, :1], flow[:, 1:])


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


def _kept(image: Picture, like: Tensor) -> Tensor:
    """uint8 (H, W, C) to (C, H, W) on the device of another tensor: float32 unless that would take much memory."""
    tensor = torch.tensor(image, device=like.device).permute(2, 0, 1)
    return tensor.float().contiguous() if tensor[0].numel() <= 2 * _BAND else tensor.contiguous()
