"""Finding the mark."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export3d.errors import ShapeError
from export3d.provenance.watermark import code, pattern
from export3d.provenance.watermark.embed import check_frame

SCALES = tuple(1.01**-step for step in range(30))
FALSE_POSITIVE = 1e-7
_HYPOTHESES = math.log(len(SCALES) * 2 * pattern.TILE**2) + 32 * math.log(2)
_CANDIDATES = 12


@dataclass(frozen=True)
class Finding:
    found: bool
    payload: int | None
    score: float
    false_positive: float
    mirrored: bool
    scale: float
    frames: int


def find_watermark(frames: Iterable[NDArray[np.uint8]]) -> Finding:
    total, count = None, 0
    for frame in frames:
        check_frame(frame)
        height, width = frame.shape[:2]
        rows, columns = pattern.canonical_size(height, width)
        size = (max(1, round(columns)), max(1, round(rows)))
        grey = np.asarray(Image.fromarray(frame).convert("L").convert("F").resize(size, Image.Resampling.BICUBIC))
        total = grey.copy() if total is None else total + grey
        count += 1
    if total is None:
        raise ShapeError("no frames")
    white = whiten(total / count)
    best = (0.0, 0, False, 1.0)
    heap = []
    for scale in SCALES:
        folded = fold(white, scale)
        for mirrored in (False, True):
            values = phase_only(folded[:, ::-1] if mirrored else folded)
            reference = correlation(values, 0)
            for place in np.argpartition(-reference.ravel(), 4)[:4]:
                heap.append((float(reference.flat[place]), int(place), scale, mirrored, values))
    heap.sort(key=lambda item: -item[0])
    for level, place, scale, mirrored, values in heap[:_CANDIDATES]:
        row, column = divmod(place, pattern.TILE)
        maps = pattern.from_band(values * np.conj(pattern.phases()[1:])) * _unit(values)
        maps = np.roll(maps, (-row, -column), axis=(1, 2))[:, :: pattern.STEP, :: pattern.STEP]
        payload, total_ = code.decode(maps.reshape(code.SYMBOLS, code.VALUES))
        score = (pattern.REFERENCE_AMPLITUDE * level + total_) / math.sqrt(
            pattern.REFERENCE_AMPLITUDE**2 + code.SYMBOLS
        )
        if score > best[0]:
            best = (score, payload, mirrored, scale)
    score, payload, mirrored, scale = best
    chance = min(1.0, math.exp(min(0.0, _HYPOTHESES - score * score / 2)))
    found = chance < FALSE_POSITIVE
    return Finding(found, payload if found else None, score, chance, mirrored, scale, count)


def _unit(values):
    return 1 / math.sqrt(max(1e-12, (np.abs(values) ** 2).sum() / 2))


def correlation(values, index):
    return pattern.from_band(values * np.conj(pattern.phases()[index])) * _unit(values)


def box(image, radius):
    size = 2 * radius + 1
    padded = np.pad(image, ((radius + 1, radius), (radius + 1, radius)), mode="edge").astype(np.float64)
    sums = padded.cumsum(0).cumsum(1)
    return (sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]) / size**2


def whiten(grey):
    high = grey - box(grey, 4)
    level = np.sqrt(np.maximum(box(high * high, 4), 0))
    return np.asarray(high / (level + 1.0), np.float32)


def fold(white, scale):
    height, width = white.shape
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    resized = (
        np.asarray(Image.fromarray(white).resize(size, Image.Resampling.BICUBIC)) if size != (width, height) else white
    )
    rows, columns = -size[1] % pattern.TILE, -size[0] % pattern.TILE
    padded = np.pad(resized, ((0, rows), (0, columns)))
    return padded.reshape(-1, pattern.TILE, padded.shape[1] // pattern.TILE, pattern.TILE).sum(axis=(0, 2))


def phase_only(folded):
    values = np.fft.rfft2(folded)[pattern.band()]
    size = np.abs(values)
    return np.where(size > 1e-6, values / np.maximum(size, 1e-6), 0)
