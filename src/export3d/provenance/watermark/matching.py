"""Comparing an image with the patterns; `detect` says what the scores mean."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export3d.provenance.watermark import code, pattern

_POSITIONS = 4
"""Of the highest scores of the reference pattern, at which the data patterns are compared."""
_WEIGHT_EXPONENT = 0.3
"""0 would compare phases only, 1 would weight frequencies by their amplitude."""


def fold(white: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """The tile (TILE, TILE) into which an image sums up once its shorter side is resized to `size` pixels."""
    height, width = white.shape
    scale = size / pattern.SHORTER_SIDE
    columns, rows = max(1, round(width * scale)), max(1, round(height * scale))
    if (rows, columns) != (height, width):
        white = np.asarray(Image.fromarray(white).resize((columns, rows), Image.Resampling.BICUBIC))
    tile = pattern.TILE
    padded = np.zeros((-(-rows // tile) * tile, -(-columns // tile) * tile), np.float32)
    padded[:rows, :columns] = white
    return np.asarray(padded.reshape(-1, tile, padded.shape[1] // tile, tile).sum(axis=(0, 2)))


def spectra(folded: NDArray[np.float32]) -> NDArray[np.complex64]:
    """(2, frequencies of the band) w exp(i phi) of a folded image and of its mirror image."""
    rows, columns = pattern.band()
    values = np.fft.rfft2(np.stack([folded, folded[:, ::-1]]))[:, rows, columns]
    size = np.abs(values)
    return np.asarray(values * np.maximum(size, 1e-12) ** (_WEIGHT_EXPONENT - 1))


def correlation(values: NDArray[np.complex64], phases: NDArray[np.complex64]) -> NDArray[np.float32]:
    """(..., TILE, TILE) scores at every position, of spectra and pattern phases (..., frequencies)."""
    rms = np.sqrt((np.abs(values) ** 2).sum(axis=-1) / 2)[..., None, None]
    return np.asarray(pattern.from_band(values * np.conj(phases)) / np.where(rms > 0, rms, 1), np.float32)


def decode(values: NDArray[np.complex64]) -> tuple[float, int, float]:
    """The best score in one spectrum, its payload, and the score of the data patterns alone."""
    reference, *data = correlation(values, pattern.phases())
    weight, best = pattern.REFERENCE_AMPLITUDE, (0.0, 0, 0.0)
    for position in np.argpartition(reference, -_POSITIONS, axis=None)[-_POSITIONS:].tolist():
        row, column = divmod(position, pattern.TILE)
        places = np.roll(data, (-row, -column), axis=(1, 2))[:, :: pattern.STEP, :: pattern.STEP]
        payload, total = code.decode(places.reshape(code.SYMBOLS, code.VALUES))
        score = (weight * float(reference[row, column]) + total) / math.sqrt(weight**2 + code.SYMBOLS)
        best = max(best, (score, payload, total / math.sqrt(code.SYMBOLS)))
    return best
