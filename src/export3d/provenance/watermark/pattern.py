"""The tile that carries a payload, and the canonical scale on which it lies.

An image's canonical scale gives its shorter side 256 canonical pixels, so resizing an image as a whole leaves the mark
as it is. On it a tile of 128 x 128 canonical pixels repeats over the image (JAWS: T. Kalker, G. Depovere, J. Haitsma,
M. Maes, "A video watermarking system for broadcast monitoring", SPIE 3657, 1999).

The tile is the sum of a reference pattern and eight data patterns. Symbol p of the payload's codeword, 0..255, moves
data pattern p cyclically against the reference by (8 (symbol // 16), 8 (symbol % 16)) canonical pixels; a translation
of the image moves all of them together. Every pattern has the same flat amplitude spectrum inside a band and its own
phases, independent and uniform: they are the key, and the only random numbers in the detector's statistic.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export3d.provenance.watermark.code import SYMBOLS, encode

SHORTER_SIDE = 256
LONGEST_SIDE = 4096
"""Of an image more than sixteen times as long as wide; it bounds memory."""
TILE = 128
STEP = 8
"""Canonical pixels between the positions of a data pattern; (TILE / STEP) squared is the number of symbol values."""
REFERENCE_AMPLITUDE = 2.0
"""Of the reference pattern against a data pattern: it must be found first, among more positions."""
LOWEST, HIGHEST = 0.06, 0.27
"""Band of the patterns, cycles per canonical pixel."""
_KEY = b"export3d watermark 1"


@cache
def band() -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Row and column indices, in a TILE x TILE real FFT, of the band's independent frequencies."""
    row, column = np.fft.fftfreq(TILE)[:, None], np.fft.rfftfreq(TILE)[None, :]
    radius = np.hypot(row, column)
    inside = (radius >= LOWEST) & (radius <= HIGHEST) & ((column > 0) | (row > 0))
    rows, columns = np.nonzero(inside)
    return rows, columns


@cache
def phases() -> NDArray[np.complex64]:
    """(1 + 8, frequencies of the band) unit complex numbers: the reference's, then the data patterns'."""
    count = (1 + SYMBOLS) * band()[0].size
    numbers = np.frombuffer(hashlib.shake_256(_KEY).digest(4 * count), "<u4").reshape(1 + SYMBOLS, -1)
    return np.asarray(np.exp(2j * np.pi * numbers / 2.0**32), np.complex64)


def from_band(values: NDArray[Any]) -> NDArray[np.float32]:
    """(..., TILE, TILE) sums over the band of |v| cos(2 pi f.x + arg v), for complex values (..., frequencies)."""
    rows, columns = band()
    spectrum = np.zeros((*values.shape[:-1], TILE, TILE // 2 + 1), np.complex64)
    spectrum[..., rows, columns] = values
    zero = columns == 0
    spectrum[..., -rows[zero] % TILE, 0] = np.conj(values[..., zero])
    sums = np.fft.irfft2(spectrum, axes=(-2, -1), norm="forward").astype(np.float32)
    return np.asarray(sums / np.float32(2))


def tile(payload: int) -> NDArray[np.float32]:
    """The tile (TILE, TILE) of a payload, with zero mean and unit variance."""
    rows, columns = band()
    symbols = encode(payload).astype(np.int64)
    down, right = STEP * (symbols // (TILE // STEP)), STEP * (symbols % (TILE // STEP))
    turns = (down[:, None] * rows[None] + right[:, None] * columns[None]) / TILE
    spectrum = REFERENCE_AMPLITUDE * phases()[0] + (phases()[1:] * np.exp(-2j * np.pi * turns)).sum(axis=0)
    values = from_band(spectrum)
    return np.asarray(values / values.std(), np.float32)


def canonical_size(height: int, width: int) -> tuple[float, float]:
    """Height and width of an image in canonical pixels: the smaller is SHORTER_SIDE, or the larger LONGEST_SIDE."""
    scale = min(SHORTER_SIDE / min(height, width), LONGEST_SIDE / max(height, width))
    return height * scale, width * scale


def over_image(payload: int, height: int, width: int) -> NDArray[np.float32]:
    """The tile repeated from the top left corner over an image (height, width), at the image's resolution."""
    rows, columns = canonical_size(height, width)
    repeated = np.tile(tile(payload), (int(rows // TILE) + 2, int(columns // TILE) + 2))
    resized = Image.fromarray(repeated).resize((width, height), Image.Resampling.BICUBIC, box=(0, 0, columns, rows))
    return np.asarray(resized, np.float32)
