"""`elastic_mesh.paint` compiled by Numba, without gradients: the same bits in one pass over the triangles.

Importing this module needs Numba. The first call compiles the pass, or loads it from Numba's cache: see
`render.compiled`. The images of a batch are painted in as many threads as PyTorch uses.

Letters: V vertices, T triangles, R pixels per side. Arrays are float32.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export3d.render.compiled import compiled
from export3d.warping.elastic_mesh import SLIVER

_ZERO, _HALF, _ONE = np.float32(0.0), np.float32(0.5), np.float32(1.0)
_SLIVER = np.float32(SLIVER)


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

    threads = min(torch.get_num_threads(), count)
    if threads == 1:
        for k in range(count):
            one(k)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(one, range(count)))
    return shown.permute(0, 2, 3, 1), number


def trial() -> None:
    """Paint one triangle: compiles the pass."""
    triangle = torch.arange(3)[None]
    paint(torch.eye(3, 2)[None], torch.eye(3, 2)[None], triangle, torch.zeros(1, 1, dtype=torch.long), 1)


def _array(tensor: Tensor) -> Any:
    tensor = tensor.detach()
    if tensor.is_floating_point():
        tensor = tensor.float()
    return tensor.contiguous().numpy()
