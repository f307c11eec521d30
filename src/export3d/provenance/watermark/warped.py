"""The mark in a video seen in perspective, such as one recorded from a screen.

A perspective that moves the corners by a few percent leaves no single tile: its parts lie up to ten canonical pixels
off. The image is divided into windows small enough for one displacement each. Their correlations with the reference
pattern are summed along displacements that are bilinear over the image,

    u = b0 + b1 x + b2 y + b3 x y    (likewise v; x and y from -1 at the first window to 1 at the last),

on a grid of coefficients. The best of these are refined as displacements of the four corners, by coordinate ascent on
the reference pattern's score in the rectified image, and then decoded there. Small rotations and changes of aspect are
such displacements too.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise, product

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image

from export3d.provenance.watermark import pattern
from export3d.provenance.watermark.matching import correlation, decode, fold, spectra

_ROWS = 4
"""Windows along the shorter side."""
_SLOPES = np.arange(-8, 9, 2)
_TWISTS = (-4, -2, 0, 2, 4)
"""Values of b1 and b2, and of b3, canonical pixels."""
_SHIFT = 12
"""Largest b0: the image may have moved by 5 % of its shorter side, cropped or not."""
_REFINED = 6
_DECISIVE = 16.0
"""A score, well above what a finding needs, that ends the search."""
_STEPS = (2.0, 1.0, 0.5)
_FARTHEST = 16
"""Corners move by multiples of the last step up to this far."""
LOG_WARPS = 8 * math.log(2 * _FARTHEST / _STEPS[-1] + 1)
"""Logarithm of the number of such displacements of four corners."""


def best_warped(white: NDArray[np.float32]) -> tuple[float, int, float, bool]:
    """Score, payload, score of the data patterns alone, mirrored of the best hypothesis in a whitened image."""
    images = (white, np.ascontiguousarray(white[:, ::-1]))
    coarse = [(*found, mirrored) for mirrored in (0, 1) for found in _coarse(images[mirrored])]
    best = (0.0, 0, 0.0, False)
    for _, corners, mirrored in sorted(coarse, key=lambda found: -found[0])[:_REFINED]:
        image = images[mirrored]
        read = decode(spectra(fold(_rectified(image, _refined(image, corners)), pattern.SHORTER_SIDE))[0])
        best = max(best, (*read, bool(mirrored)))
        if read[0] > _DECISIVE:
            break
    return best


def _coarse(white: NDArray[np.float32]) -> list[tuple[float, NDArray[np.float64]]]:
    """The highest sums of the windows' correlations, each with its displacements (4, 2) of the corners."""
    scores = _window_scores(white)
    ys, xs = (np.linspace(-1, 1, count) for count in scores.shape[:2])

    @cache
    def row_sum(row: int, slope_u: int, slope_v: int) -> NDArray[np.float32]:
        """Sum along a row of windows, for u = slope_u x and v = slope_v x."""
        size = 2 * (_SHIFT + 8) + 1
        moved = [
            window[12 + round(slope_v * x) :, 12 + round(slope_u * x) :][:size, :size]
            for window, x in zip(scores[row], xs, strict=True)
        ]
        return np.asarray(np.sum(moved, axis=0), np.float32)

    found = []
    for b1, c1, b3, c3 in product(_SLOPES.tolist(), _SLOPES.tolist(), _TWISTS, _TWISTS):
        total = np.zeros((_SLOPES.size, _SLOPES.size, 2 * _SHIFT + 1, 2 * _SHIFT + 1), np.float32)
        for row, y in enumerate(ys.tolist()):
            sums = row_sum(row, round(b1 + b3 * y), round(c1 + c3 * y))
            moves = 8 + np.rint(_SLOPES * y).astype(np.intp)
            total += sliding_window_view(sums, total.shape[2:])[moves[:, None], moves[None]]
        highest = total.max(axis=(2, 3))
        c2, b2 = np.unravel_index(int(highest.argmax()), highest.shape)
        found.append((float(highest.max()), (b1, int(_SLOPES[b2]), b3), (c1, int(_SLOPES[c2]), c3)))
    found.sort(reverse=True)
    return [(score, _corners(np.array([u, v]), len(xs))) for score, u, v in found[:_REFINED]]


def _window_scores(white: NDArray[np.float32]) -> NDArray[np.float32]:
    """(rows, columns, 65, 65) scores of the reference pattern in each window, at displacements of -32..32."""
    height, width = white.shape
    shape = (_ROWS * max(1, round(height / pattern.SHORTER_SIDE)), _ROWS * max(1, round(width / pattern.SHORTER_SIDE)))
    edges = [
        np.linspace(0, side, count + 1).astype(int).tolist() for side, count in zip(white.shape, shape, strict=True)
    ]
    values = []
    for (top, bottom), (left, right) in product(pairwise(edges[0]), pairwise(edges[1])):
        window = np.zeros_like(white)
        window[top:bottom, left:right] = white[top:bottom, left:right]
        values.append(spectra(fold(window, pattern.SHORTER_SIDE))[0])
    spectrum = np.array(values)
    rms = math.sqrt(float((np.abs(spectrum) ** 2).sum()) / 2)
    near = np.arange(-32, 33)
    scores = pattern.from_band(spectrum * np.conj(pattern.phases()[0]))[:, near[:, None], near[None]]
    return np.asarray(scores / np.float32(rms if rms > 0 else 1)).reshape(*shape, near.size, near.size)


def _corners(slopes: NDArray[np.int_], columns: int) -> NDArray[np.float64]:
    """Displacements (4, 2) of the corners, clockwise from the top left, for (u, v) x (x, y, x y)."""
    x = np.array([-1, 1, 1, -1]) * columns / (columns - 1)
    y = np.array([-1, -1, 1, 1]) * _ROWS / (_ROWS - 1)
    return np.asarray(np.rint(np.stack([x, y, x * y], axis=1) @ slopes.T / _STEPS[-1]) * _STEPS[-1])


def _refined(white: NDArray[np.float32], corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """The corners' displacements at a local maximum of the reference pattern's score."""

    def level(corners: NDArray[np.float64]) -> float:
        values = spectra(fold(_rectified(white, corners), pattern.SHORTER_SIDE))[0]
        return float(correlation(values, pattern.phases()[0]).max())

    highest = level(corners)
    for step in _STEPS:
        improved = True
        while improved:
            improved = False
            for index, move in product(np.ndindex(corners.shape), (step, -step)):
                moved = corners.copy()
                moved[index] += move
                if abs(moved[index]) <= _FARTHEST and (score := level(moved)) > highest:
                    highest, corners, improved = score, moved, True
    return corners


def _rectified(white: NDArray[np.float32], corners: NDArray[np.float64]) -> NDArray[np.float32]:
    """The image as it was before its corners moved by `corners` (4, 2)."""
    height, width = white.shape
    places = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float64)
    rows, targets = [], []
    for (x, y), (moved_x, moved_y) in zip(places, places + corners, strict=True):
        rows += [(x, y, 1, 0, 0, 0, -moved_x * x, -moved_x * y), (0, 0, 0, x, y, 1, -moved_y * x, -moved_y * y)]
        targets += [moved_x, moved_y]
    transform = np.linalg.solve(np.array(rows), np.array(targets)).tolist()
    image = Image.fromarray(white)
    return np.asarray(image.transform(image.size, Image.Transform.PERSPECTIVE, transform, Image.Resampling.BICUBIC))
