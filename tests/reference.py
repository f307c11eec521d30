"""Slow, obvious twins of the fast code, in NumPy float64 with loops, for tests to compare with.

One pixel, one ray, one point at a time, straight from the paper's formulas; nothing here is imported from the package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


# ---------------------------------------------------------------------------------------------------------------------
# Volume rendering


def ray(label: Array, column: int, row: int, resolution: int) -> tuple[Array, Array]:
    """Origin (3,) and unit direction (3,) of the ray through one pixel's centre.

    The intrinsics map (x/z, y/z) to image coordinates 0..1, so the direction solves K d = (u, v, 1).
    """
    cam2world = label[:16].reshape(4, 4)
    intrinsics = label[16:].reshape(3, 3)
    pixel = np.array([(column + 0.5) / resolution, (row + 0.5) / resolution, 1.0])
    direction = cam2world[:3, :3] @ np.linalg.solve(intrinsics, pixel)
    return cam2world[:3, 3], direction / math.sqrt(float(direction @ direction))


def texel(plane: Array, column: int, row: int) -> Array:
    """(C,) at one texel of (C, H, W); zero outside."""
    _, height, width = plane.shape
    if not (0 <= column < width and 0 <= row < height):
        return np.zeros(plane.shape[0])
    return plane[:, row, column]


def bilinear(plane: Array, u: float, v: float) -> Array:
    """(C,) of a plane (C, H, W) at (u, v) in [-1, 1], whose ends are the outer edges of the outer texels."""
    _, height, width = plane.shape
    x, y = (u + 1) / 2 * width - 0.5, (v + 1) / 2 * height - 0.5
    left, top = math.floor(x), math.floor(y)
    total = np.zeros(plane.shape[0])
    for column, wx in ((left, 1 - (x - left)), (left + 1, x - left)):
        for row, wy in ((top, 1 - (y - top)), (top + 1, y - top)):
            total += wx * wy * texel(plane, column, row)
    return total


def plane_feature(planes: Array, point: Array, half_extent: float) -> Array:
    """Eq. 7: the mean of three look-ups of one point in planes (3, C, H, W) in the order xy, yz, zx."""
    x, y, z = point / half_extent
    xy, yz, zx = planes
    return (bilinear(xy, x, y) + bilinear(yz, y, z) + bilinear(zx, z, x)) / 3


def softplus(x: Array) -> Array:
    return np.logaddexp(0.0, x)


def decode(weights: Mapping[str, Array], feature: Array, density_gain: float) -> tuple[Array, float]:
    """Eq. 8 for one feature (C,): colour features (F,) and density."""
    hidden = softplus(weights["hidden.weight"] @ feature + weights["hidden.bias"])
    colour = np.tanh(weights["colour.weight"] @ hidden + weights["colour.bias"]) * 1.002
    density = softplus(weights["density.weight"] @ hidden + weights["density.bias"] - 1.0) * density_gain
    return colour, float(density[0])


def stratified(near: float, far: float, samples: int) -> Array:
    """Middles of equal bins of [near, far]."""
    step = (far - near) / samples
    return np.array([near + (i + 0.5) * step for i in range(samples)])


def spread(weights: Array) -> Array:
    """What an interval's chance is made of: maxima over neighbours, then means over neighbours, plus 0.01."""
    n = len(weights)
    padded = [-math.inf, *weights, -math.inf]
    peaks = [max(padded[i], padded[i + 1]) for i in range(n + 1)]
    return np.array([(peaks[i] + peaks[i + 1]) / 2 + 0.01 for i in range(n)])


def importance(depths: Array, weights: Array, samples: int, offsets: Sequence[float] | None = None) -> Array:
    """Inverse transform sampling of the piecewise-constant density over the intervals of `depths` (S,)."""
    chance = spread(weights)
    chance = chance / chance.sum()
    found = []
    for i in range(samples):
        u = (i + (0.5 if offsets is None else offsets[i])) / samples
        done = 0.0
        for j, part in enumerate(chance):
            if u < done + part or j == len(chance) - 1:
                fraction = min(max((u - done) / part, 0.0), 1.0)
                found.append(depths[j] + (depths[j + 1] - depths[j]) * fraction)
                break
            done += part
    return np.array(found)


def ray_weights(density: Array, delta: Array) -> Array:
    """Eq. 10 for one ray (S,): light that reaches an interval, times what the interval absorbs of it."""
    light = 1.0
    found = []
    for sigma, length in zip(density, delta, strict=True):
        alpha = 1.0 - math.exp(-sigma * length)
        found.append(light * alpha)
        light *= 1.0 - alpha
    return np.array(found)


def composite(density: Array, feature: Array, depths: Array) -> tuple[Array, float, Array]:
    """Eq. 9 for one ray: density (S,), feature (S, C), depths (S,) to feature (C,), depth and weights (S - 1,)."""
    middle = [(density[i] + density[i + 1]) / 2 for i in range(len(depths) - 1)]
    weights = ray_weights(np.array(middle), np.diff(depths))
    colour, depth = np.zeros(feature.shape[1]), 0.0
    for i, w in enumerate(weights):
        colour += w * (feature[i] + feature[i + 1]) / 2
        depth += float(w * (depths[i] + depths[i + 1]) / 2)
    return colour, depth, weights


def render(
    planes: Array,
    label: Array,
    decoder: Mapping[str, Array],
    *,
    resolution: int,
    coarse: int,
    fine: int,
    half_extent: float,
    reach: float,
    density_gain: float,
    given: Array | None = None,
) -> tuple[Array, Array, Array, Array]:
    """The whole renderer for one tri-plane (3, C, H, W) and one label (25,).

    Args:
        given: (R, R, S) sample depths; found by coarse and importance sampling without it.

    Returns:
        feature (F, R, R), depth (R, R), opacity (R, R) and the sample depths (R, R, S).
    """
    distance = math.sqrt(float((label[[3, 7, 11]] ** 2).sum()))
    near, far = max(distance - reach, 1e-3), distance + reach
    features = np.zeros((len(decoder["colour.bias"]), resolution, resolution))
    depth_map, opacity = np.zeros((2, resolution, resolution))
    all_depths = np.zeros((resolution, resolution, coarse + fine))
    for row in range(resolution):
        for column in range(resolution):
            origin, direction = ray(label, column, row, resolution)

            def look(t: float, o: Array = origin, d: Array = direction) -> tuple[Array, float]:
                return decode(decoder, plane_feature(planes, o + t * d, half_extent), density_gain)

            if given is not None:
                depths = given[row, column]
            else:
                depths = stratified(near, far, coarse)
                if fine:
                    colour, density = _looked_up([look(t) for t in depths])
                    weights = composite(density, colour, depths)[2]
                    depths = np.sort(np.concatenate([depths, importance(depths, weights, fine)]))
            colour, density = _looked_up([look(t) for t in depths])
            found, depth, weights = composite(density, colour, depths)
            total = float(weights.sum())
            features[:, row, column] = found - (1 - total)
            depth_map[row, column] = depth + (1 - total) * far
            opacity[row, column] = total
            all_depths[row, column] = depths
    return features, depth_map, opacity, all_depths


def _looked_up(samples: list[tuple[Array, float]]) -> tuple[Array, Array]:
    return np.stack([colour for colour, _ in samples]), np.array([density for _, density in samples])


# ---------------------------------------------------------------------------------------------------------------------
# Perceptual distance


def convolve(image: Array, kernel: Array, bias: Array, stride: int = 1, padding: int = 0) -> Array:
    """(C, H, W) with (O, C, k, k) to (O, h, w), zeros around the border."""
    image = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    size = kernel.shape[-1]
    height, width = (image.shape[1] - size) // stride + 1, (image.shape[2] - size) // stride + 1
    out = np.zeros((len(kernel), height, width))
    for row in range(height):
        for column in range(width):
            patch = image[:, row * stride : row * stride + size, column * stride : column * stride + size]
            out[:, row, column] = np.tensordot(kernel, patch, 3) + bias
    return out


def max_pool(image: Array, size: int, stride: int, ceil: bool = False) -> Array:
    """(C, H, W) to (C, h, w); with `ceil` a window may hang over the far edge."""
    rounded = math.ceil if ceil else math.floor
    height, width = (rounded((n - size) / stride) + 1 for n in image.shape[1:])
    out = np.zeros((len(image), height, width))
    for row in range(height):
        for column in range(width):
            window = image[:, row * stride : row * stride + size, column * stride : column * stride + size]
            out[:, row, column] = window.max(axis=(1, 2))
    return out


def lpips(first: Sequence[Array], second: Sequence[Array], heads: Sequence[Array]) -> float:
    """Zhang et al. 2018, Eq. 1, from activations (C, h, w) of two images and weights (C,) a layer."""
    total = 0.0
    for a, b, weight in zip(first, second, heads, strict=True):
        _, height, width = a.shape
        for row in range(height):
            for column in range(width):
                x, y = a[:, row, column], b[:, row, column]
                gap = x / math.sqrt(float(x @ x) + 1e-10) - y / math.sqrt(float(y @ y) + 1e-10)
                total += float(weight @ gap**2) / (height * width)
    return total
