"""`inference.render` in one pass, compiled by Numba: each ray goes from sampling to its colour within the cache.

In addition to what `inference` leaves out, nothing is computed behind an opaque surface. Rays are independent: the
result does not depend on the number of threads. Importing this module needs Numba. The first call compiles the pass, or
loads it from Numba's cache: see `compiled`.

Letters: P texels, R rays, S samples (coarse, then fine), H hidden width, F features. Arrays are float32.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export3d.render.compiled import compiled
from export3d.render.decoder import PlaneDecoder
from export3d.render.inference import Texels
from export3d.render.lanes import COUNT as LANES
from export3d.render.lanes import add_scaled, load, load_one, store, wide
from export3d.render.series import FLAGS, exp, softplus, tanh

_RAYS = 512
"""Rays per task of a thread."""
_AHEAD = 4
"""Samples that are decoded together; a ray may end after any of them."""
_NEGLIGIBLE = np.float32(9e-4)
"""The total weight that a ray may leave out. Divided by the number of its samples, this is the least weight of a sample
that adds colour, and the least light with which a ray goes on."""

_HALF, _ONE, _ZERO = np.float32(0.5), np.float32(1.0), np.float32(0.0)
_GAIN = np.float32(PlaneDecoder.COLOUR_GAIN)


def _compiled(function: Any, *more: str) -> Any:
    """Sums keep their order, NaN and infinity their meaning."""
    return compiled(function, fastmath={*FLAGS, *more})


def _regrouped(function: Any) -> Any:
    """As `_compiled`; a sum may be computed in parts."""
    return _compiled(function, "reassoc")


@_regrouped
def _dot(hidden: Any, weight: Any) -> Any:
    total = _ZERO
    for h in range(len(weight)):
        total += hidden[h] * weight[h]
    return total


@_compiled
def _texel(origin: Any, direction: Any, t: Any, half_extent: Any, size: Any) -> tuple[Any, Any]:
    """`inference._position` of origin + t * direction."""
    inner = np.float32(size - 3)
    at = (origin + t * direction) * (_HALF * inner / half_extent) + (_HALF * inner + _HALF)
    at = min(max(at, _ZERO), inner + _ONE)
    before = np.int64(at)
    return before, at - np.float32(before)


@_compiled
def _corners(texels: Any, ray: Any, t: Any, plane: int, width: int) -> tuple[Any, ...]:
    """Where the upper and the lower two of the four texels around a point start, and the shares of the four."""
    _, rows, columns, half_extent = texels
    other = (plane + 1) % 3  # PLANE_AXES
    column, right = _texel(ray[plane], ray[3 + plane], t, half_extent, columns)
    row, down = _texel(ray[other], ray[3 + other], t, half_extent, rows)
    upper = ((row * columns + column) * 3 + plane) * width
    both = right * down
    return upper, upper + 3 * columns * width, _ONE - right - down + both, right - both, down - both, both


@_compiled
def _decode(texels: Any, ray: Any, layers: Any, depths: Any, first: int, last: int, hidden: Any, density: Any) -> None:
    """Hidden features (S * H) and densities (S) of the samples from `first` to before `last`."""
    wide()
    values = texels[0]
    bias, weight, offset, gain = layers
    width = len(bias)
    for k in range(first, last):
        upper0, lower0, a0, b0, c0, d0 = _corners(texels, ray, depths[k], 0, width)
        upper1, lower1, a1, b1, c1, d1 = _corners(texels, ray, depths[k], 1, width)
        upper2, lower2, a2, b2, c2, d2 = _corners(texels, ray, depths[k], 2, width)
        for h in range(0, width, LANES):
            total = load(bias, h)
            total = add_scaled(total, a0, load(values, upper0 + h))
            total = add_scaled(total, b0, load(values, upper0 + 3 * width + h))
            total = add_scaled(total, c0, load(values, lower0 + h))
            total = add_scaled(total, d0, load(values, lower0 + 3 * width + h))
            total = add_scaled(total, a1, load(values, upper1 + h))
            total = add_scaled(total, b1, load(values, upper1 + 3 * width + h))
            total = add_scaled(total, c1, load(values, lower1 + h))
            total = add_scaled(total, d1, load(values, lower1 + 3 * width + h))
            total = add_scaled(total, a2, load(values, upper2 + h))
            total = add_scaled(total, b2, load(values, upper2 + 3 * width + h))
            total = add_scaled(total, c2, load(values, lower2 + h))
            total = add_scaled(total, d2, load(values, lower2 + 3 * width + h))
            store(hidden, k * width + h, total)
    block = hidden[first * width : last * width]
    for i in range(len(block)):
        block[i] = softplus(block[i])
    for k in range(first, last):
        density[k] = softplus(_dot(hidden[k * width : (k + 1) * width], weight) + offset) * gain


@_compiled
def _importance(depths: Any, density: Any, coarse: int, fine: int) -> None:
    """`importance_depths`: fills depths from `coarse` on."""
    weight, cdf = np.zeros(coarse + 1, np.float32), np.zeros(coarse, np.float32)
    left = _ONE
    for i in range(coarse - 1):  # the weight of interval i is at i + 1, between zeros
        passed = exp(-_HALF * (density[i] + density[i + 1]) * (depths[i + 1] - depths[i]))
        weight[i + 1] = left * (_ONE - passed)
        left *= passed
    for i in range(coarse - 1):
        spread = _HALF * (max(weight[i], weight[i + 1]) + max(weight[i + 1], weight[i + 2]))
        cdf[i + 1] = cdf[i] + spread + np.float32(0.01)
    at = 1
    for j in range(fine):
        u = (np.float32(j) + _HALF) / np.float32(fine) * cdf[coarse - 1]
        while at < coarse - 1 and cdf[at] <= u:
            at += 1
        part = min(max((u - cdf[at - 1]) / (cdf[at] - cdf[at - 1]), _ZERO), _ONE)
        depths[coarse + j] = depths[at - 1] + (depths[at] - depths[at - 1]) * part


@_compiled
def _march(
    texels: Any, ray: Any, layers: Any, coarse: int, fine: int, depths: Any, hidden: Any, density: Any, share: Any
) -> tuple[Any, Any]:
    """Front to back: fills the weights (S) of the samples; returns expected depth and opacity."""
    total = coarse + fine
    negligible = _NEGLIGIBLE / np.float32(total)
    ready = 0
    if fine:
        _decode(texels, ray, layers, depths, 0, coarse, hidden, density)
        _importance(depths, density, coarse, fine)
        ready = coarse
    share[:] = _ZERO
    left, far, before = _ONE, _ZERO, -1
    near, middle = 0, coarse
    for _ in range(total):
        if middle == total or (near < coarse and depths[near] <= depths[middle]):
            at = near
            near += 1
        else:
            at = middle
            middle += 1
        if at >= ready:
            last = min(ready + _AHEAD, total)
            _decode(texels, ray, layers, depths, ready, last, hidden, density)
            ready = last
        if before >= 0:
            passed = exp(-_HALF * (density[before] + density[at]) * (depths[at] - depths[before]))
            weight = left * (_ONE - passed)
            share[before] += _HALF * weight
            share[at] += _HALF * weight
            far += weight * _HALF * (depths[before] + depths[at])
            left *= passed
        before = at
        if left < negligible:
            break
    return far, _ONE - left


@_compiled
def _add_colours(hidden: Any, rows: Any, shares: Any, colour: Any, sums: Any, feature: Any, r: int) -> None:
    """Adds shares (4) of the colours of four samples to feature (R, F) of ray r; sums (4 * F) is overwritten.

    Args:
        rows: (4) where the hidden features of each sample start.
        colour: weight (H * W) and bias (W), W a multiple of two registers: the eight sums keep the processor busy.
    """
    wide()
    weight, bias = colour
    width = len(bias)
    count = len(weight) // width
    row0, row1, row2, row3 = rows[0], rows[1], rows[2], rows[3]
    for f in range(0, width, 2 * LANES):
        sum0 = sum1 = sum2 = sum3 = load(bias, f)
        more0 = more1 = more2 = more3 = load(bias, f + LANES)
        for h in range(count):
            column, further = load(weight, h * width + f), load(weight, h * width + f + LANES)
            x0, x1 = load_one(hidden, row0 + h), load_one(hidden, row1 + h)
            x2, x3 = load_one(hidden, row2 + h), load_one(hidden, row3 + h)
            sum0, more0 = add_scaled(sum0, x0, column), add_scaled(more0, x0, further)
            sum1, more1 = add_scaled(sum1, x1, column), add_scaled(more1, x1, further)
            sum2, more2 = add_scaled(sum2, x2, column), add_scaled(more2, x2, further)
            sum3, more3 = add_scaled(sum3, x3, column), add_scaled(more3, x3, further)
        store(sums, f, sum0)
        store(sums, f + LANES, more0)
        store(sums, width + f, sum1)
        store(sums, width + f + LANES, more1)
        store(sums, 2 * width + f, sum2)
        store(sums, 2 * width + f + LANES, more2)
        store(sums, 3 * width + f, sum3)
        store(sums, 3 * width + f + LANES, more3)
    for i in range(4 * width):
        sums[i] = tanh(sums[i])
    for s in range(4):
        for f in range(feature.shape[1]):
            feature[r, f] += shares[s] * _GAIN * sums[s * width + f]


@_compiled
def _render(
    texels: Any, rays: Any, stratified: Any, fine: int, layers: Any, colour: Any, scratch: Any, result: Any
) -> None:
    """Rays (R, 6), coarse depths (R, S) to feature (R, F), depth (R) and opacity (R), which are overwritten."""
    wide()
    hidden, sums = scratch
    feature, depth, opacity = result
    coarse = stratified.shape[1]
    total, width = coarse + fine, len(layers[0])
    negligible = _NEGLIGIBLE / np.float32(total)
    depths, density, share = np.empty(total, np.float32), np.empty(total, np.float32), np.empty(total, np.float32)
    rows, shares = np.zeros(4, np.int64), np.zeros(4, np.float32)
    for r in range(len(rays)):
        for k in range(coarse):
            depths[k] = stratified[r, k]
        depth[r], opacity[r] = _march(texels, rays[r], layers, coarse, fine, depths, hidden, density, share)
        for f in range(feature.shape[1]):
            feature[r, f] = _ZERO
        waiting = 0
        for k in range(total):
            if share[k] > negligible:
                rows[waiting], shares[waiting] = k * width, share[k]
                waiting += 1
            if waiting == 4 or (waiting and k == total - 1):
                for s in range(waiting, 4):
                    shares[s] = _ZERO
                _add_colours(hidden, rows, shares, colour, sums, feature, r)
                waiting = 0


def render(
    planes: Tensor, decoder: PlaneDecoder, rays: tuple[Tensor, Tensor], depths: Tensor, fine: int, half_extent: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As `inference.render`, within 1e-3, on as many threads as torch uses."""
    c, d, h = decoder.colour, decoder.density, decoder.hidden
    planes = planes[:1] if planes.stride(0) == 0 else planes
    weight = _filled(h.weight, 0)
    offset = np.float32(d.bias.item() - 1.0)
    layers = (_array(_filled(h.bias, 0)), _array(_filled(d.weight[0], 0)), offset, np.float32(decoder.density_gain))
    colour = (_array(_filled(_filled(c.weight, 0, 2 * LANES), 1).t()).ravel(), _array(_filled(c.bias, 0, 2 * LANES)))
    both, along = _array(torch.cat(rays, dim=-1)), _array(depths)
    b, r, s = depths.shape
    feature = np.empty((b, r, c.out_features), np.float32)
    depth, opacity = np.empty((2, b, r), np.float32)

    def part(texels: Any, item: int, start: int) -> None:
        at = (item, slice(start, start + _RAYS))
        # torch's memory starts at a cache line: registers of 512 bits then never span two
        scratch = (_array(torch.empty((s + fine) * len(layers[0]))), _array(torch.empty(4 * len(colour[1]))))
        _render(texels, both[at], along[at], fine, layers, colour, scratch, (feature[at], depth[at], opacity[at]))

    starts = range(0, r, _RAYS)
    threads = min(torch.get_num_threads(), len(starts))
    with ThreadPoolExecutor(threads) if threads > 1 else nullcontext() as pool:
        texels: Any = ()
        for item in range(b):
            if item < len(planes):  # one after the other: the texels of several would exceed `memory.SPARED_BLOCK`
                of = Texels.of(planes[item : item + 1], weight)
                texels = (_array(of.values.flatten()), of.rows, of.columns, np.float32(half_extent))
            list((map if pool is None else pool.map)(partial(part, texels, item), starts))
    return torch.from_numpy(feature), torch.from_numpy(depth), torch.from_numpy(opacity)


def trial() -> None:
    """Render one ray: compiles the pass."""
    depths = torch.linspace(0.5, 1.5, 3).view(1, 1, 3)
    render(
        torch.zeros(1, 3, 2, 4, 4), PlaneDecoder(2, 4, 3), (torch.zeros(1, 1, 3), torch.ones(1, 1, 3)), depths, 1, 1.0
    )


def _filled(tensor: Tensor, axis: int, count: int = LANES) -> Tensor:
    """Zeros appended along the axis, up to a multiple of a number."""
    shape = list(tensor.shape)
    shape[axis] = -shape[axis] % count
    return torch.cat([tensor, tensor.new_zeros(shape)], dim=axis) if shape[axis] else tensor


def _array(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().numpy()
