"""`inference.render` in one pass, compiled by Numba: each ray goes from sampling to its colour within the cache.

In addition to what `inference` leaves out, nothing is computed behind an opaque surface. Rays are independent: the
result does not depend on the number of threads. Importing this module needs Numba. The first call compiles the pass, or
loads it from Numba's cache.

Letters: P texels, R rays, S samples (coarse, then fine), H hidden width, F features. Arrays are float32.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from export3d.render.decoder import PlaneDecoder
from export3d.render.inference import Texels

_RAYS = 256
"""Rays per task of a thread."""
_AHEAD = 4
"""Samples that are decoded together; a ray may end after any of them."""
_NEGLIGIBLE = np.float32(1e-5)
"""Samples of less weight contribute no colour; a ray ends where less light is left."""

_HALF, _ONE, _TWO, _ZERO = np.float32(0.5), np.float32(1.0), np.float32(2.0), np.float32(0.0)
_GAIN = np.float32(PlaneDecoder.COLOUR_GAIN)
_LOG2_E, _LN_2 = np.float32(np.log2(np.e)), np.float32(np.log(2.0))
_E2, _E3, _E4, _E5, _E6 = (1 / np.cumprod(np.arange(1.0, 7.0))).astype(np.float32)[1:]
"""1 / n!, of the exponential's series."""
_A3, _A5, _A7, _A9, _A11 = (1 / np.arange(3.0, 12.0, 2.0)).astype(np.float32)
"""1 / n, of the series of the inverse hyperbolic tangent."""


def _compiled(function: Any, *more: str) -> Any:
    """Machine code that runs without Python's lock; sums keep their order, NaN and infinity their meaning."""
    fastmath = {"contract", "nsz", "arcp", *more}
    return njit(cache=True, nogil=True, error_model="numpy", fastmath=fastmath)(function)


def _regrouped(function: Any) -> Any:
    """As `_compiled`; a sum may be computed in parts."""
    return _compiled(function, "reassoc")


@_compiled
def _exp(x: Any) -> Any:
    """e^x for x <= 0, relative error below 1e-6: 2^n times a polynomial on [-ln(2) / 2, ln(2) / 2]."""
    t = max(x * _LOG2_E, np.float32(-126.0))
    n = np.floor(t + _HALF)
    r = (t - n) * _LN_2
    p = _ONE + r * (_ONE + r * (_E2 + r * (_E3 + r * (_E4 + r * (_E5 + r * _E6)))))
    return p * np.int32((np.int32(n) + 127) << 23).view(np.float32)


@_compiled
def _softplus(x: Any) -> Any:
    """log(1 + e^x), error below 1e-6: max(x, 0) + 2 atanh(s) with s = y / (2 + y), y = e^-|x|."""
    y = _exp(-abs(x))
    s = y / (_TWO + y)
    q = s * s
    p = _ONE + q * (_A3 + q * (_A5 + q * (_A7 + q * (_A9 + q * _A11))))
    return max(x, _ZERO) + _TWO * s * p


@_compiled
def _tanh(x: Any) -> Any:
    y = _exp(-_TWO * abs(x))
    t = (_ONE - y) / (_ONE + y)
    return t if x > _ZERO else -t


@_regrouped
def _dot(hidden: Any, k: int, weight: Any) -> Any:
    total = _ZERO
    for h in range(len(weight)):
        total += hidden[k, h] * weight[h]
    return total


@_compiled
def _decode(texels: Any, ray: Any, layers: Any, depths: Any, first: int, last: int, hidden: Any, density: Any) -> None:
    """Hidden features (S, H) and densities (S) of the samples from `first` to before `last`."""
    values, rows, columns, half_extent = texels
    bias, weight, offset, gain = layers
    tall, wide = np.float32(rows - 3), np.float32(columns - 3)
    for k in range(first, last):
        for h in range(len(bias)):
            hidden[k, h] = bias[h]
        for plane in range(3):
            other = (plane + 1) % 3  # PLANE_AXES
            u = (ray[plane] + depths[k] * ray[3 + plane]) * (_HALF * wide / half_extent) + (_HALF * wide + _HALF)
            v = (ray[other] + depths[k] * ray[3 + other]) * (_HALF * tall / half_extent) + (_HALF * tall + _HALF)
            if u > _ZERO and v > _ZERO and u < wide + _ONE and v < tall + _ONE:
                column, line = np.int64(u), np.int64(v)
                right, down = u - np.float32(column), v - np.float32(line)
                at = (line * columns + column) * 3 + plane
                below = at + 3 * columns
                wd = right * down
                wb, wc = right - wd, down - wd
                wa = _ONE - right - wc
                for h in range(len(bias)):
                    above = wa * values[at, h] + wb * values[at + 3, h]
                    hidden[k, h] += above + (wc * values[below, h] + wd * values[below + 3, h])
    for k in range(first, last):
        for h in range(len(bias)):
            hidden[k, h] = _softplus(hidden[k, h])
    for k in range(first, last):
        density[k] = _softplus(_dot(hidden, k, weight) + offset) * gain


@_compiled
def _importance(depths: Any, density: Any, coarse: int, fine: int) -> None:
    """`importance_depths`: fills depths from `coarse` on."""
    weight, cdf = np.zeros(coarse + 1, np.float32), np.zeros(coarse, np.float32)
    left = _ONE
    for i in range(coarse - 1):  # the weight of interval i is at i + 1, between zeros
        passed = _exp(-_HALF * (density[i] + density[i + 1]) * (depths[i + 1] - depths[i]))
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
            passed = _exp(-_HALF * (density[before] + density[at]) * (depths[at] - depths[before]))
            weight = left * (_ONE - passed)
            share[before] += _HALF * weight
            share[at] += _HALF * weight
            far += weight * _HALF * (depths[before] + depths[at])
            left *= passed
        before = at
        if left < _NEGLIGIBLE:
            break
    return far, _ONE - left


@_compiled
def _colour(hidden: Any, k: int, weight: Any, bias: Any, share: Any, sums: Any, feature: Any, r: int) -> None:
    """Adds `share` of the colour of sample k to feature (R, F) of ray r; sums (F) is overwritten."""
    width, count = len(bias), len(weight)
    for f in range(width):
        sums[f] = bias[f]
    eight = count - count % 8
    for h in range(0, eight, 8):  # eight rows at once: fewer passes over `sums`
        x0, x1, x2, x3 = hidden[k, h], hidden[k, h + 1], hidden[k, h + 2], hidden[k, h + 3]
        x4, x5, x6, x7 = hidden[k, h + 4], hidden[k, h + 5], hidden[k, h + 6], hidden[k, h + 7]
        for f in range(width):
            low = (x0 * weight[h, f] + x1 * weight[h + 1, f]) + (x2 * weight[h + 2, f] + x3 * weight[h + 3, f])
            high = (x4 * weight[h + 4, f] + x5 * weight[h + 5, f]) + (x6 * weight[h + 6, f] + x7 * weight[h + 7, f])
            sums[f] += low + high
    for h in range(eight, count):
        for f in range(width):
            sums[f] += hidden[k, h] * weight[h, f]
    for f in range(width):
        feature[r, f] += share * _GAIN * _tanh(sums[f])


@_compiled
def _render(
    texels: Any,
    rays: Any,
    stratified: Any,
    layers: Any,
    colour: Any,
    scratch: Any,
    feature: Any,
    depth: Any,
    opacity: Any,
) -> None:
    """Rays (R, 6), coarse depths (R, S) to feature (R, F), depth (R) and opacity (R), which are overwritten."""
    hidden, sums = scratch
    total, coarse = len(hidden), stratified.shape[1]
    fine = total - coarse
    depths, density, share = np.empty(total, np.float32), np.empty(total, np.float32), np.empty(total, np.float32)
    for r in range(len(rays)):
        for k in range(coarse):
            depths[k] = stratified[r, k]
        depth[r], opacity[r] = _march(texels, rays[r], layers, coarse, fine, depths, hidden, density, share)
        for f in range(len(sums)):
            feature[r, f] = _ZERO
        for k in range(total):
            if share[k] > _NEGLIGIBLE:
                _colour(hidden, k, colour[0], colour[1], share[k], sums, feature, r)


def render(
    planes: Tensor, decoder: PlaneDecoder, rays: tuple[Tensor, Tensor], depths: Tensor, fine: int, half_extent: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As `inference.render`, within 1e-3, on as many threads as torch uses."""
    texels = Texels.of(planes, decoder)
    shape = (texels.rows, texels.columns, np.float32(half_extent))
    d, c = decoder.density, decoder.colour
    offset = np.float32(d.bias.item() - 1.0)
    layers = (_array(decoder.hidden.bias), _array(d.weight[0]), offset, np.float32(decoder.density_gain))
    colour = (_array(c.weight.t()), _array(c.bias))
    values, both, along = _array(texels.values), _array(torch.cat(rays, dim=-1)), _array(depths)
    b, r, _ = depths.shape
    feature = np.empty((b, r, c.out_features), np.float32)
    depth, opacity = np.empty((2, b, r), np.float32)

    def part(item: int, start: int) -> None:
        at = (item, slice(start, start + _RAYS))
        own = (values[item if len(values) > 1 else 0], *shape)
        # torch's memory starts at a cache line: registers of 512 bits then never span two
        scratch = (_array(torch.empty(along.shape[2] + fine, len(layers[0]))), _array(torch.empty(c.out_features)))
        _render(own, both[at], along[at], layers, colour, scratch, feature[at], depth[at], opacity[at])

    tasks = [(item, start) for item in range(b) for start in range(0, r, _RAYS)]
    threads = min(torch.get_num_threads(), len(tasks))
    if threads == 1:
        for task in tasks:
            part(*task)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(part, *zip(*tasks)))
    return torch.from_numpy(feature), torch.from_numpy(depth), torch.from_numpy(opacity)


def _array(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().numpy()
