"""From the model's small frames to frames on the photo's own pixel grid.

With S the source crop as the model saw it, P the photo on the grid, I the model's image, o and g its origin
(`warping.origin`), a frame is

    F(p) = R(p) + (1 - v (1 - g)) P(p + w o),  R = v (I - g S(p + o))

and then what F, reduced to the model's size, lacks of v I is added. R, enlarged from the model's size, is what
the photo does not show: an opened mouth, the shading of a turn. v is 1 on the person and along contours where the
motion is torn. It falls to 0 in the background and where the photo continues beyond the crop; there w fades the motion
out too. F is laid over the background with the opacity of the person at p + w o.
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
from export3d.layers import constant, smooth_step
from export3d.photo.canvas import Canvas
from export3d.photo.layers import Layers
from export3d.warping.elastic_mesh import softened
from export3d.warping.flow_field import look_up, pixel_grid
from export3d.warping.inner_mouth import Teeth
from export3d.warping.origin import Origin, torn

Picture = NDArray[np.uint8]

_REACH = 0.5
"""Beyond the face crop, in crop sides, motion fades out over this distance."""
_FADE = 0.08
"""Inside the face crop, in crop sides, the model's image fades in over this distance from the border."""
_BESIDE = 0.05
"""Along the crop's border, in crop sides, the motion of a person counts by 1/e less over this distance."""
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
_FEW = 1 << 22
"""Pixels of which what does not change is kept as float32."""


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

    @property
    def pixels(self) -> int:
        """Of a frame; what is kept for them takes 4 to 50 bytes for each."""
        height, width, _ = self._still.shape
        return int(height * width)

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
        (rows, columns), limits = canvas.window, np.reshape(canvas.limits, (2, 2))
        if canvas.whole:  # beyond a photo the crop and the canvas only resemble
            limits = np.array([[columns.start, rows.start], [columns.stop, rows.stop]], float)
        self._comparable = limits
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
        size = source.shape[-1]
        self._window = self._fade_in(size)
        at = torch.arange(size, device=source.device) / size
        self._beside = torch.exp((at[:, None] - at).abs() / -_BESIDE)
        self._ramp = smooth_step((at - at[-1]) / _FADE + 1.0)
        matte, opacity = (
            crop(np.repeat(layer[..., None], 3, axis=2), box, size) for layer in (layers.matte, layers.person[..., 3])
        )
        people = _tensor(matte, source)[:, :1] / 255.0
        self._small = torch.cat([people, F.max_pool2d(people, 5, 1, 2), _tensor(opacity, source)[:, :1], source], dim=1)
        inside = _span(top, top + side, self._rows), _span(left, left + side, self._columns)
        own_rows, self._crop_columns = (
            slice(part.start - whole.start, part.stop - whole.start)
            for part, whole in zip(inside, (self._rows, self._columns))
        )
        places = self._y - top, self._x - left
        self._across = _Taps(_enlargement(places[1], side, size, "bilinear"))
        self._crop_across = _Taps(_enlargement(places[1][self._crop_columns], side, size))
        reduction: Tensor | None = None
        if side >= size:
            axes = places[0][own_rows], places[1][self._crop_columns]
            ways = [_reduction(at, side, size) for at in axes]
            reduction = torch.zeros(size, len(self._y), device=source.device)
            reduction[:, own_rows] = ways[0]
            self._reduce_across = _Taps(ways[1])
            self._softer = [_Taps(way @ _enlargement(at, side, size)) for way, at in zip(ways, axes)]
        self._reduces = reduction is not None
        bilinear, bicubic = (_enlargement(places[0], side, size, mode) for mode in ("bilinear", "bicubic"))
        count = max(_BAND // max(len(self._x), 1), 1)
        self._bands = [
            _Band(slice(start, min(start + count, len(self._y))), own_rows, bilinear, bicubic, reduction)
            for start in range(0, len(self._y), count)
        ]
        self._scale = (
            2.0 / self._person.shape[2],
            2.0 / self._person.shape[1],
        )  # from pixels to grid units of the person
        few = len(self._x) * len(self._y) <= _FEW
        self._grids = [self._grid(band.rows) for band in self._bands] if few else None

    def bands(self, image: Tensor, origin: Origin) -> Iterator[tuple[slice, slice, Picture]]:
        """Parts of the frame: their rows and columns, and uint8 (h, w, 3)."""
        origin = self._continued(origin)
        found = look_up(self._small, origin.offset)
        people, matte, opacity, source = found[:, :1], found[:, 1:2], found[:, 2:3], found[:, 3:]
        tear = softened(torn(origin.offset, _TEAR) * _span_of(people))
        image = torch.lerp(image, softened(softened(image)), tear)  # the contour runs in steps there
        drawn = self._window * torch.maximum(matte, tear)  # between places far apart lies nothing to look up
        known = drawn * origin.trust
        share = 1.0 - drawn + known
        rest = 127.5 * (drawn * image - known * source + 1.0 - share)
        cut = self._window * tear  # beyond the crop the photo's own opacity holds
        maps = torch.cat([share, cut, opacity], dim=1) if bool((cut > 0.0).any()) else share
        offset = origin.offset[0] * constant(self._scale, image.device)[:, None, None] * (self._box.side / 2.0)
        flow, maps = self._across(offset.mT).permute(2, 1, 0).flatten(1)[None], self._across(maps[0].mT).mT
        farthest = offset.abs().amax(dim=(1, 2)).tolist()
        made = [self._looked_up(flow, maps, farthest, number) for number in range(len(self._bands))]
        if self._reduces:
            rest = rest + self._correction(image, rest, drawn * self._known(origin.offset), made)
        rest, teeth = self._crop_across(rest[0].mT).mT, self._teeth(origin.teeth)
        top, left = self._rows.start - self._first[0], self._columns.start - self._first[1]
        for layer, band in zip(made, self._bands):
            rows, columns = slice(top + band.rows.start, top + band.rows.stop), slice(left, left + len(self._x))
            yield rows, columns, self._laid_over(layer.float(), rest, teeth, band)

    def _grid(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Places (h, w, 2) of a band's pixels in the person, grid units, x first, and how far each moves, 0 to 1."""
        x, y = self._x[None, :], self._y[rows, None]
        (left, top), side = self._box.corner, self._box.side
        free = smooth_step(1.0 - torch.hypot(_outside((x - left) / side), _outside((y - top) / side)) / _REACH)
        territory = self._territory(x, y)
        if territory is not None:
            free = free * territory
        place = [((at - self._near[axis]) * self._scale[axis] - 1.0).expand_as(free) for axis, at in enumerate((x, y))]
        return torch.stack(place, dim=-1), torch.stack([free, free], dim=-1)

    def _looked_up(self, flow: Tensor, maps: Tensor, farthest: Sequence[float], number: int) -> Tensor:
        """What of F and its opacity (4, h, w), 0 to 255, is looked up in the photo, of one band.

        Args:
            flow: (1, h, 2 W), the offset in grid units of the person, x and y of each of the frame's columns.
            maps: (3, h, W), 1 - v (1 - g), 1 where the motion is torn, and the opacity there; or the first alone.
            farthest: the largest offset along each axis.
            number: of the band.
        """
        band = self._bands[number]
        own, free = self._grid(band.rows) if self._grids is None else self._grids[number]
        place = band.enlarge(flow)[0].view(own.shape) * free
        for axis, at in enumerate((self._x[None, :], self._y[band.rows, None])):
            before, after = (
                (at - self._limits[axis]) * self._scale[axis],
                (self._limits[2 + axis] - at) * self._scale[axis],
            )
            near = [int((room < 2.0 * farthest[axis]).sum()) for room in (before, after)]
            count = at.numel()
            for start, stop in ((0, near[0]), (max(near[0], count - near[1]), count)):
                if start < stop:
                    part = place.narrow(1 - axis, start, stop - start)[..., axis]
                    rooms = (room.narrow(1 - axis, start, stop - start) for room in (before, after))
                    part.copy_(_ashore(part, *rooms))
        place += own
        person = self._person
        if not person.is_floating_point():  # too large to be converted at once
            height = person.shape[1]
            down = (place[..., 1] + 1.0) * (height / 2.0)
            first = min(max(int(down.min()) - 2, 0), height - 1)
            person = person[:, first : max(min(int(down.max()) + 3, height), first + 1)].float()
            place[..., 1] = (down - first) * (2.0 / person.shape[1]) - 1.0
        found = _enlarged(person[None], place[None], "bicubic")
        moved = band.enlarge(maps)
        found[:3] *= moved[:1]
        if len(moved) > 1:
            found[3:] = torch.lerp(found[3:], moved[2:], moved[1:2])
        return found.half() if self._grids is None else found

    def _correction(self, image: Tensor, rest: Tensor, share: Tensor, made: Sequence[Tensor]) -> Tensor:
        """What F, reduced to the model's size, lacks of the model's image: (1, 3, h, h) on the scale of bytes.

        Details found in the photo are sharper than the model's and can lie a little beside them. A difference of
        one grey level is left alone, so that what does not move stays as it is.
        """
        small = self._softened(rest)
        for layer, band in zip(made, self._bands):
            if band.reduce is not None:
                reduced = band.reduce(layer[:3].float())[..., self._crop_columns]
                small += self._reduce_across(reduced.mT).mT
        lacking = 127.5 * (image + 1.0) - small
        lacking = share * (lacking - lacking.clamp(-1.0, 1.0))
        return 2.0 * lacking - self._softened(lacking)  # enlarging softens it

    def _softened(self, image: Tensor) -> Tensor:
        """An image (1, 3, h, h) enlarged to the crop and reduced again."""
        down, across = self._softer
        return down(across(image[0].mT).mT)[None]

    def _known(self, offset: Tensor) -> Tensor:
        """(1, 1, h, h): 1 where the crop shows the photo and the model looked pixels up there, 0 beyond."""
        own = pixel_grid(offset.shape[-1], offset.device)
        place = own + offset
        limits = (self._comparable - self._box.corner) * (2.0 / self._box.side) - 1.0
        first, last = (constant(tuple(row), place.device, place.dtype)[:, None, None] for row in limits.clip(-1.0, 1.0))
        room = torch.minimum(torch.minimum(place, own) - first, last - torch.maximum(place, own)).amin(dim=1)
        return (room / _EDGE - 1.0).clamp(0.0, 1.0)[:, None]

    def _teeth(self, teeth: Teeth | None) -> tuple[slice, slice, Tensor] | None:
        """Rows and columns of what the model's image lacks of drawn teeth, and that (h, w) on the scale of bytes."""
        box = None if teeth is None or not self._reduces else teeth.box()
        if teeth is None or box is None:
            return None
        corner, side = self._box.corner, self._box.side
        spans = [
            _span(
                begin + side * float(low) - float(at[0]), begin + side * float(high) - float(at[0]), slice(0, len(at))
            )
            for at, begin, low, high in zip((self._x, self._y), corner, *box)
        ]
        x, y = (self._x[spans[0]] - corner[0]) / side, (self._y[spans[1]] - corner[1]) / side
        places = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1)
        return spans[1], spans[0], 255.0 * teeth.finer(places, side)

    def _laid_over(
        self, layer: Tensor, rest: Tensor, teeth: tuple[slice, slice, Tensor] | None, band: _Band
    ) -> Picture:
        """One band of F and its opacity (4, h, w) over the background: uint8 (h, w, 3).

        Args:
            rest: (3, h, W), what is added to what was looked up, as wide as the crop.
            teeth: see `_teeth`.
        """
        if band.own.start < band.own.stop:
            layer[:3, band.own, self._crop_columns] += band.enlarge_rest(rest)
        if teeth is not None:
            rows, columns, finer = teeth
            first, last = max(rows.start, band.rows.start), min(rows.stop, band.rows.stop)
            if first < last:
                part = layer[:3, first - band.rows.start : last - band.rows.start, columns]
                part += finer[first - rows.start : last - rows.start]
        shown, opacity = layer.clamp_(0.0, 255.0)[:3], layer[3:].div_(255.0)
        out = torch.lerp(self._behind[:, band.rows].float(), shown, opacity)
        territory = self._territory(self._x[None, :], self._y[band.rows, None])
        if territory is not None and self._still is not None:
            out = torch.lerp(self._still[:, band.rows].float(), out, territory)
        pixels: Picture = np.stack(list(out.add_(0.5).to(torch.uint8).cpu().numpy()), axis=-1)
        return pixels

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
            fades.append(smooth_step(fade))
        return (fades[1][:, None] * fades[0][None, :])[None, None]

    def _continued(self, origin: Origin) -> Origin:
        """The motion where the model's image has faded in, continued to those borders beyond which the photo goes on.

        The model sees nothing beyond them. There it does not move what comes in or goes out, and a head would be cut.
        """
        size = origin.offset.shape[-1]
        margin = int(np.ceil(_FADE * size)) + 1
        columns, rows = ((margin * before, margin * after) for before, after in self._open)
        inner = origin.offset[..., rows[0] : size - rows[1], columns[0] : size - columns[1]]
        apart = F.pad(inner, (*columns, *rows), "replicate") - origin.offset
        unit = 2.0 * _AGREED / 256.0
        apart = apart * smooth_step(_length(apart) / (2.0 * unit) - 0.5)  # a head at rest stays in place
        return replace(
            origin,
            offset=self._of_the_person(origin.offset + apart),
            trust=origin.trust * torch.exp(-(_length(apart) / unit).square()),
        )

    def _of_the_person(self, offset: Tensor) -> Tensor:
        """The offset (1, 2, h, h), at those borders the nearest person's where the background lies.

        Beyond the border the person may begin there, as shoulders do beside a neck. They move with it.
        """
        size = offset.shape[-1]
        people = look_up(self._small[:, :1], offset)
        for axis, sides in enumerate(self._open):
            for end, goes_on in enumerate(sides):
                moved, known = (part.select(3 - axis, end * (size - 1)) for part in (offset, people))
                if not goes_on or not bool((known > 0.5).any()):
                    continue
                along = (moved * known) @ self._beside / (known @ self._beside)
                ramp = self._ramp if end else self._ramp.flip(0)
                ramp = ramp[None, :] if axis == 0 else ramp[:, None]
                offset = torch.lerp(offset, along.unsqueeze(3 - axis), (1.0 - known).unsqueeze(3 - axis) * ramp)
        return offset

    def _territory(self, x: Tensor, y: Tensor) -> Tensor | None:
        """How far places belong to this face, 0 to 1; None if there is no other."""
        if not self._others:
            return None
        own = _away(x, y, self._box)
        nearest = torch.stack([_away(x, y, box) for box in self._others]).amin(dim=0)
        return smooth_step(0.5 + (nearest - own) / _BORDER)


class _Taps:
    """A matrix (n, m) of which each row is 0 but for a few neighbours, to be multiplied with images.

    A sum of rows with weights, as an embedding bag computes it, is many times as fast as sampling or a dense product.
    """

    def __init__(self, matrix: Tensor) -> None:
        self._rows, size = matrix.shape
        used = matrix != 0.0
        first = used.int().argmax(dim=1)
        last = size - 1 - used.flip(1).int().argmax(dim=1)
        count = max((last - first)[used.any(dim=1)].tolist(), default=0) + 1
        first = first.clamp_max(size - count)
        self._index = first[:, None] + torch.arange(count, device=matrix.device)
        self._weight = matrix.gather(1, self._index)

    def __call__(self, image: Tensor) -> Tensor:
        """(C, m, w) to (C, n, w)."""
        channels, size, width = image.shape
        first = torch.arange(channels, device=image.device)[:, None, None] * size
        weight = self._weight.expand(channels, -1, -1)
        made = F.embedding_bag(
            (self._index + first).flatten(0, 1),
            image.reshape(-1, width),
            mode="sum",
            per_sample_weights=weight.flatten(0, 1),
        )
        return made.view(channels, self._rows, width)


class _Band:
    """Rows of a face's part of the frame that are computed at once.

    Attributes:
        rows: counted from the part's first.
        own: those in the crop, counted from the band's first.
        enlarge, enlarge_rest: (C, h, w) on the model's rows to all rows, bilinear, and to those in the crop, bicubic.
        reduce: (C, rows, w) to what they contribute to the model's; None if the crop is not reduced.
    """

    def __init__(
        self, rows: slice, crop_rows: slice, bilinear: Tensor, bicubic: Tensor, reduction: Tensor | None
    ) -> None:
        self.rows = rows
        start, stop = max(rows.start, crop_rows.start), min(rows.stop, crop_rows.stop)
        self.own = slice(start - rows.start, max(start, stop) - rows.start)
        self.enlarge, self.enlarge_rest = _Taps(bilinear[rows]), _Taps(bicubic[start : max(start, stop)])
        self.reduce = None if reduction is None else _Taps(reduction[:, rows])


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


def _enlargement(places: Tensor, side: float, size: int, mode: str = "bicubic") -> Tensor:
    """Weights (n, size) that enlarge `size` pixels to n places along an axis of the crop.

    A crop of fewer pixels than that first reduces them to its own.
    """
    unit = torch.eye(size, device=places.device)[None]
    if side < size:
        unit = resize(unit, (max(round(side), 2), size))
    unit = unit.mT[..., None]
    at = torch.stack([torch.zeros_like(places), places * (2.0 / side) - 1.0], dim=-1)[None, :, None]
    return _enlarged(unit, at, mode)[..., 0].mT


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


def _away(x: Tensor, y: Tensor, box: CropBox) -> Tensor:
    return torch.hypot(x - box.centre[0], y - box.centre[1]) / box.side


def _tensor(image: Picture, like: Tensor) -> Tensor:
    """uint8 (H, W, C) to float32 (1, C, H, W), 0 to 255, on the device of another one."""
    return torch.tensor(image).to(like.device).permute(2, 0, 1)[None].float()


def _kept(image: Picture, like: Tensor) -> Tensor:
    """uint8 (H, W, C) to (C, H, W) on the device of another tensor: float32 unless that would take much memory."""
    tensor = torch.tensor(image, device=like.device).permute(2, 0, 1)
    return tensor.float().contiguous() if tensor[0].numel() <= _FEW else tensor.contiguous()
