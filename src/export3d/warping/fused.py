"""Steps of the warp compiled by Numba, without gradients, each in one pass over an image.

`paint` and `show` of `elastic_mesh`, `mended` of `flows`, `stretch` of `flow_field`, `mixed` of `dense_motion`, and
`Detail.blend`. `paint` gives the same bits, the others the same values within 1e-5. Importing this module needs Numba.
The first call compiles the passes, or loads them from Numba's cache: see `render.compiled`. The images of a batch are
computed in as many threads as PyTorch uses.

Letters: V vertices, T triangles, R pixels per side, H W pixels, C channels. Arrays are float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export3d.render.compiled import compiled
from export3d.render.series import FLAGS, exp, log1p
from export3d.warping.detail import Views
from export3d.warping.elastic_mesh import SLIVER, jump, levels
from export3d.warping.turns import counts, fading

_ZERO, _QUARTER, _HALF, _ONE, _TWO, _FOUR = (np.float32(x) for x in (0.0, 0.25, 0.5, 1.0, 2.0, 4.0))
_SLIVER = np.float32(SLIVER)
_LOG2_E = np.float32(np.log2(np.e))


def _by_row(function: Any) -> Any:
    """A step along one row of pixels with few arrays, which the compiler turns into steps of many pixels."""
    return compiled(function, fastmath=set(FLAGS))


@compiled
def _pixel(x: Any, size: int) -> int:
    """The first pixel whose centre is not before x, 0 to size; 0 for NaN."""
    first = np.ceil(x - _HALF)
    if not first > _ZERO:
        return 0
    return size if first > size else int(first)


@compiled
def _crossing(xa: Any, ya: Any, xb: Any, yb: Any, y: Any) -> Any:
    return xa + (y - ya) * ((xb - xa) / (yb - ya if yb > ya else _ONE))


@compiled
def _paint(places: Any, texture: Any, triangles: Any, order: Any, shown: Any, number: Any) -> None:
    """Places and texture (V, 2), triangles (T, 3), order (T,) to the texture (2, R, R) and triangle (R, R) shown."""
    size = number.shape[0]
    scale = np.float32(size)
    for k in range(len(order)):
        t = order[k]
        a, b, c = triangles[t]
        x, y = places[a]
        ax, ay, bx, by = places[b, 0] - x, places[b, 1] - y, places[c, 0] - x, places[c, 1] - y
        area = ax * by - ay * bx
        if k > 0 and not abs(area) > _SLIVER:
            continue
        share = _ONE / area if abs(area) > _SLIVER else _ZERO
        ax, ay, bx, by = ax * share, ay * share, bx * share, by * share
        u, v = texture[a]
        au, av, bu, bv = texture[b, 0] - u, texture[b, 1] - v, texture[c, 0] - u, texture[c, 1] - v
        upper, middle, lower = a, b, c  # by their rows; a stable sort
        if places[middle, 1] < places[upper, 1]:
            upper, middle = middle, upper
        if places[lower, 1] < places[middle, 1]:
            middle, lower = lower, middle
            if places[middle, 1] < places[upper, 1]:
                upper, middle = middle, upper
        x0, y0 = places[upper, 0] * scale, places[upper, 1] * scale
        x1, y1 = places[middle, 0] * scale, places[middle, 1] * scale
        x2, y2 = places[lower, 0] * scale, places[lower, 1] * scale
        first, end = (_pixel(y0, size), _pixel(y2, size)) if k > 0 else (0, size)
        for row in range(first, end):
            line = np.float32(row) + _HALF
            one = _crossing(x0, y0, x2, y2, line)
            other = _crossing(x0, y0, x1, y1, line) if line < y1 else _crossing(x1, y1, x2, y2, line)
            left, right = (_pixel(min(one, other), size), _pixel(max(one, other), size)) if k > 0 else (0, size)
            down = line / scale - y
            for column in range(left, right):
                across = (np.float32(column) + _HALF) / scale - x
                p = min(max(across * by - down * bx, _ZERO), _ONE)
                q = min(max(down * ax - across * ay, _ZERO), _ONE)
                shown[0, row, column] = u + p * au + q * bu
                shown[1, row, column] = v + p * av + q * bv
                number[row, column] = t


def paint(places: Tensor, texture: Tensor, triangles: Tensor, order: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """See `elastic_mesh.paint`."""
    count = len(places)
    shown, number = torch.empty(count, 2, size, size), torch.empty(count, size, size, dtype=torch.long)
    given = [_array(x) for x in (places, texture, order, shown, number)]
    corners = _array(triangles)

    def one(k: int) -> None:
        at, carried, turn, out, top = (x[k] for x in given)
        _paint(at, carried, corners, turn, out, top)

    _each(count, one)
    return shown.permute(0, 2, 3, 1), number


@compiled
def _stretch(flow: Any, out: Any) -> None:
    """Flow (2, H, W) to (H, W)."""
    height, width = out.shape
    x_scale, y_scale = np.float32(width / 4.0), np.float32(height / 4.0)
    for y in range(height):
        above, below = max(y - 1, 0), min(y + 1, height - 1)
        for x in range(width):
            before, after = max(x - 1, 0), min(x + 1, width - 1)
            xx = (flow[0, y, after] - flow[0, y, before]) * x_scale
            yx = (flow[1, y, after] - flow[1, y, before]) * x_scale
            xy = (flow[0, below, x] - flow[0, above, x]) * y_scale
            yy = (flow[1, below, x] - flow[1, above, x]) * y_scale
            out[y, x] = min(max(_ONE - ((_ONE + xx) * (_ONE + yy) - yx * xy), _ZERO), _ONE)


def stretch(flow: Tensor) -> Tensor:
    """See `flow_field.stretch`."""
    given = _array(flow)
    out = np.empty((len(given), *given.shape[2:]), np.float32)
    _each(len(given), lambda k: _stretch(given[k], out[k]))
    return torch.from_numpy(out)[:, None]


@compiled
def _largest_jump(flow: Any, top: int, left: int, step: int) -> Any:
    """From a pixel of a cell to the next one, across or down."""
    size, largest = flow.shape[1], _ZERO
    for c in range(2):
        for y in range(top, top + step):
            for x in range(left, left + step):
                if x + 1 < size:
                    largest = max(largest, abs(flow[c, y, x + 1] - flow[c, y, x]))
                if y + 1 < size:
                    largest = max(largest, abs(flow[c, y + 1, x] - flow[c, y, x]))
    return largest


@compiled
def _only_jumps(flow: Any, near: Any) -> bool:
    """Multiply the parts (n, n) by what `flows.mended` finds of jumps; whether any is left."""
    size, cells = flow.shape[1], len(near)
    largest = np.full((cells, cells), -_ONE, np.float32)
    some = False
    for y in range(cells):
        for x in range(cells):
            if not near[y, x] > _ZERO:
                continue
            around = _ZERO
            for j in range(max(y - 1, 0), min(y + 2, cells)):
                for i in range(max(x - 1, 0), min(x + 2, cells)):
                    if largest[j, i] < _ZERO:
                        step = size // cells
                        largest[j, i] = _largest_jump(flow, j * step, i * step, step)
                    around = max(around, largest[j, i])
            near[y, x] *= min(max(np.float32(size) * around / _TWO - _ONE, _ZERO), _ONE)
            some |= near[y, x] > _ZERO
    return some


@compiled
def _bilinear(values: Any, rows: Any, columns: Any) -> Any:
    (upper, lower, down), (left, right, across) = rows, columns
    above = values[upper, left] + across * (values[upper, right] - values[upper, left])
    below = values[lower, left] + across * (values[lower, right] - values[lower, left])
    return above + down * (below - above)


@compiled
def _mend(flow: Any, soft: Any, near: Any) -> None:
    """Flow (2, R, R), mean flow (2, n, n) and parts (n, n)."""
    before, after, part = _steps(flow.shape[1], len(near))
    for y in range(flow.shape[1]):
        rows = before[y], after[y], part[y]
        for x in range(flow.shape[1]):
            columns = before[x], after[x], part[x]
            share = _bilinear(near, rows, columns)
            if share > _ZERO:
                for c in range(2):
                    flow[c, y, x] += share * (_bilinear(soft[c], rows, columns) - flow[c, y, x])


def mended(flow: Tensor, soft: Tensor, near: Tensor) -> Tensor:
    """See `flows.mended`."""
    out, means, parts = _array(flow).copy(), _array(soft), _array(near).copy()

    def one(k: int) -> None:
        if _only_jumps(out[k], parts[k, 0]):
            _mend(out[k], means[k], parts[k, 0])

    _each(len(out), one)
    return torch.from_numpy(out)


@_by_row
def _jumps(here: Any, next: Any, limit: Any, jumps: Any) -> None:
    for x in range(len(jumps)):
        jumps[x] |= abs(next[x] - here[x]) > limit


@_by_row
def _either(here: Any, jumps: Any) -> None:
    for x in range(len(jumps)):
        here[x] |= jumps[x]


@_by_row
def _spread(u: Any, v: Any, below_u: Any, below_v: Any, share: Any) -> None:
    """Of places (R) and those one row below the areas (R - 1) between neighbours."""
    for x in range(len(share)):
        share[x] = abs((u[x + 1] - u[x]) * (below_v[x] - v[x]) - (v[x + 1] - v[x]) * (below_u[x] - u[x]))


@_by_row
def _coarseness(share: Any, texels: Any) -> None:
    """Half the binary logarithm of the areas in texels, 0 to 1."""
    for x in range(len(share)):
        area = min(max(share[x] * texels, _ONE), _FOUR)
        more = area > _TWO
        area = area * _HALF if more else area
        share[x] = (_HALF if more else _ZERO) + _HALF * _LOG2_E * log1p(area - _ONE)


@_by_row
def _between(fine: Any, coarse: Any, share: Any, shown: Any) -> None:
    for x in range(len(shown)):
        shown[x] = fine[x] + share[x] * (coarse[x] - fine[x])


@compiled
def _blur(fine: Any, coarse: Any, lookup: Any, limit: Any, texels: Any, shown: Any, torn: Any) -> None:
    """Two levels of an image (C, R, R), looked up at places (2, R, R), to what is shown (C, R, R).

    `torn` (R, R) becomes true at jumps. The image has `texels` pixels.
    """
    size = torn.shape[0]
    share, jumps = np.zeros(size, np.float32), np.empty(size, np.bool_)
    torn[:] = False
    for y in range(size):
        u, v = lookup[0, y], lookup[1, y]
        jumps[:] = False
        for axis in (u, v):
            _jumps(axis[:-1], axis[1:], limit, jumps[:-1])
        _either(torn[y], jumps)
        _either(torn[y, 1:], jumps[:-1])
        share[:] = _ZERO
        if y + 1 < size:
            jumps[:] = False
            for axis in range(2):
                _jumps(lookup[axis, y], lookup[axis, y + 1], limit, jumps)
            _either(torn[y], jumps)
            _either(torn[y + 1], jumps)
            _spread(u, v, lookup[0, y + 1], lookup[1, y + 1], share[:-1])
        _coarseness(share, texels)
        for c in range(len(shown)):
            _between(fine[c, y], coarse[c, y], share, shown[c, y])


@compiled
def _soften(shown: Any, torn: Any) -> None:
    """Where `torn` (R, R), the weighted mean of 3 x 3 pixels of `shown` (C, R, R), as of `elastic_mesh.softened`."""
    size = torn.shape[0]
    before = shown[:, 0].copy()  # the row above and this one as they were
    here = before.copy()
    for y in range(size):
        before[:] = here
        here[:] = shown[:, y]
        below = shown[:, y + 1] if y + 1 < size else here
        for x in range(size):
            if not torn[y, x]:
                continue
            left, right = max(x - 1, 0), min(x + 1, size - 1)
            for c in range(len(shown)):
                total = before[c, left] + _TWO * before[c, x] + before[c, right]
                total += _TWO * (here[c, left] + _TWO * here[c, x] + here[c, right])
                total += below[c, left] + _TWO * below[c, x] + below[c, right]
                shown[c, y, x] = total / np.float32(16.0)


def show(image: Tensor, lookup: Tensor, half: Tensor) -> Tensor:
    """See `elastic_mesh.show`."""
    count, size = len(lookup), lookup.shape[1]
    fine, coarse = (_array(level) for level in levels(image, lookup, half))
    places = _array(lookup.permute(0, 3, 1, 2))
    limit, texels = np.float32(jump(size)), np.float32(image.shape[-1] ** 2)
    out = np.empty(fine.shape, np.float32)

    def one(k: int) -> None:
        torn = np.empty((size, size), np.bool_)
        _blur(fine[k], coarse[k], places[k], limit, texels, out[k], torn)
        _soften(out[k], torn)

    _each(count, one)
    return torch.from_numpy(out)


@compiled
def _halve(image: Any, half: Any) -> None:
    """The mean of each 2 x 2 pixels of (C, H, W)."""
    for c in range(half.shape[0]):
        for y in range(half.shape[1]):
            for x in range(half.shape[2]):
                upper = image[c, 2 * y, 2 * x] + image[c, 2 * y, 2 * x + 1]
                lower = image[c, 2 * y + 1, 2 * x] + image[c, 2 * y + 1, 2 * x + 1]
                half[c, y, x] = (upper + lower) * _QUARTER


def halved(image: Tensor) -> Tensor:
    """The mean of each 2 x 2 pixels: (B, C, H, W) to (B, C, H/2, W/2)."""
    given = _array(image)
    count, channels, height, width = given.shape
    out = np.empty((count, channels, height // 2, width // 2), np.float32)
    _each(count, lambda k: _halve(given[k], out[k]))
    return torch.from_numpy(out)


@compiled
def _steps(size: int, coarse: int) -> Any:
    """Where pixels lie among fewer: the one before, the one after, and the part of the way between them."""
    before, after, part = np.empty(size, np.int32), np.empty(size, np.int32), np.empty(size, np.float32)
    for x in range(size):
        at = max((np.float32(x) + _HALF) * (np.float32(coarse) / np.float32(size)) - _HALF, _ZERO)
        before[x] = int(at)
        after[x] = min(before[x] + 1, coarse - 1)
        part[x] = at - np.float32(before[x])
    return before, after, part


@_by_row
def _lerp(one: Any, other: Any, part: Any, between: Any) -> None:
    for x in range(len(between)):
        between[x] = one[x] + part * (other[x] - one[x])


@compiled
def _widen(coarse: Any, size: int) -> Any:
    """(C, h, w) to (C, h, size), bilinear."""
    wide = np.empty((coarse.shape[0], coarse.shape[1], size), np.float32)
    before, after, part = _steps(size, coarse.shape[2])
    for c in range(coarse.shape[0]):
        for y in range(coarse.shape[1]):
            short, row = coarse[c, y], wide[c, y]
            for x in range(size):
                row[x] = short[before[x]] + part[x] * (short[after[x]] - short[before[x]])
    return wide


@compiled
def _mix(mixture: Any, flows: Any, out: Any) -> None:
    """Mixture (K + 2, G, G) and K - 1 flows (2, H, H) to (2, H, H)."""
    wide, share = _widen(mixture, out.shape[2]), np.empty(out.shape[2], np.float32)
    before, after, part = _steps(out.shape[1], mixture.shape[1])
    for y in range(out.shape[1]):
        for c in range(2):
            rows = wide[len(flows) + 1 + c]
            _lerp(rows[before[y]], rows[after[y]], part[y], out[c, y])
        for k in range(len(flows)):
            _lerp(wide[k, before[y]], wide[k, after[y]], part[y], share)
            for c in range(2):
                _add_part(share, flows[k][c, y], out[c, y])


def mixed(mixture: Tensor, flows: Sequence[Tensor]) -> Tensor:
    """See `dense_motion.mixed`."""
    given, moving = _array(mixture), [_array(flow) for flow in flows]
    count, size = max(len(given), *map(len, moving)), moving[0].shape[-1]
    out = np.empty((count, 2, size, size), np.float32)
    one, two, three = (np.broadcast_to(flow, (count, *flow.shape[1:])) for flow in moving)
    _each(count, lambda k: _mix(given[k], (one[k], two[k], three[k]), out[k]))
    return torch.from_numpy(out)


@_by_row
def _raise(values: Any, largest: Any) -> None:
    for x in range(len(values)):
        values[x] = exp(values[x] - largest[x])


@_by_row
def _larger(one: Any, other: Any, larger: Any) -> None:
    for x in range(len(larger)):
        larger[x] = max(one[x], other[x])


@_by_row
def _add(one: Any, other: Any, total: Any) -> None:
    for x in range(len(total)):
        total[x] = one[x] + other[x]


@_by_row
def _add_part(part: Any, image: Any, total: Any) -> None:
    for x in range(len(total)):
        total[x] += part[x] * image[x]


@_by_row
def _divide(value: Any, total: Any, part: Any) -> None:
    for x in range(len(part)):
        part[x] = value[x] / total[x]


@_by_row
def _clamp(values: Any, result: Any) -> None:
    for x in range(len(result)):
        result[x] = min(max(values[x], -_ONE), _ONE)


@_by_row
def _choose(share: Any, here: Any, own: Any) -> None:
    for x in range(len(share)):
        share[x] += here[x] * (own[x] - share[x])


@compiled
def _blend(choice: Any, lean: Any, images: Any, teeth: Any, image: Any, share: Any) -> None:
    """Choice (7, H, W), lean (4, H/4, W/4), images (4 of 3, H, W) and teeth (2 or 0, H, W).

    To the image (3, H, W) in [-1, 1] and the shares (4, H, W).
    """
    height, width = choice.shape[1:]
    logits, total, beyond = np.empty((4, width), np.float32), np.empty(width, np.float32), np.empty(width, np.float32)
    none, outside = np.zeros(width, np.float32), np.empty(width, np.float32)
    wide, (before, after, part) = _widen(lean, width), _steps(height, lean.shape[1])
    for y in range(height):
        for k in range(4):
            _lerp(wide[k, before[y]], wide[k, after[y]], part[y], total)
            _add(choice[k, y], total, logits[k])
        _larger(logits[0], logits[1], total)
        _larger(total, logits[2], total)
        _larger(total, logits[3], total)
        for k in range(4):
            _raise(logits[k], total)
        _add(logits[0], logits[1], total)
        _add(total, logits[2], total)
        _add(total, logits[3], total)
        for k in range(4):
            _divide(logits[k], total, share[k, y])
        if len(teeth):
            here, inside = teeth[0, y], teeth[1, y]
            for x in range(width):
                outside[x] = _ONE - inside[x]
            for k in range(4):
                _choose(share[k, y], here, outside if k == 0 else inside if k == 3 else none)
            for x in range(width):
                beyond[x] = _ONE - here[x] * inside[x]
        for c in range(3):
            total[:] = choice[4 + c, y]
            if len(teeth):
                for x in range(width):
                    total[x] *= beyond[x]
            for k in range(4):
                _add_part(share[k, y], images[k][c, y], total)
            _clamp(total, image[c, y])


def blend(choice: Tensor, rendered: Tensor, lean: Tensor, views: Views) -> tuple[Tensor, Tensor]:
    """See `Detail.blend`; the image is clamped to [-1, 1]."""
    count, _, height, width = choice.shape
    if views.far is not None and counts(views.far):
        choice = torch.cat([choice[:, :4], fading(choice[:, 4:], views.far, views.mouth)], dim=1)
    teeth = choice.new_empty(count, 0, height, width) if views.teeth is None else views.teeth
    given = [_array(x) for x in (choice, lean, teeth)]
    mixed = [_array(x) for x in (rendered, views.moved, views.still, views.turned)]
    image, share = np.empty((count, 3, height, width), np.float32), np.empty((count, 4, height, width), np.float32)

    def one(k: int) -> None:
        chosen, leaning, bite = (x[k] for x in given)
        _blend(chosen, leaning, (mixed[0][k], mixed[1][k], mixed[2][k], mixed[3][k]), bite, image[k], share[k])

    _each(count, one)
    return torch.from_numpy(image), torch.from_numpy(share)


def trial() -> None:
    """Compute the smallest images: compiles the passes."""
    triangle = torch.arange(3)[None]
    paint(torch.eye(3, 2)[None], torch.eye(3, 2)[None], triangle, torch.zeros(1, 1, dtype=torch.long), 1)
    flow, image, mask = torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4)
    stretch(flow)
    mended(flow, flow, mask)
    show(image, torch.zeros(1, 4, 4, 2), image[..., :2, :2])
    views = Views(image, mask, flow, image, image, flow, flow, flow, flow)
    halved(image)
    mixed(torch.zeros(1, 6, 2, 2), [flow] * 3)
    blend(torch.zeros(1, 7, 4, 4), image, torch.zeros(1, 4, 1, 1), views)


def _each(count: int, one: Callable[[int], None]) -> None:
    """Call `one` with each number below the count, in as many threads as PyTorch uses."""
    threads = min(torch.get_num_threads(), count)
    if threads == 1:
        for k in range(count):
            one(k)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(one, range(count)))


def _array(tensor: Tensor) -> Any:
    tensor = tensor.detach()
    if tensor.is_floating_point():
        tensor = tensor.float()
    return tensor.contiguous().numpy()
