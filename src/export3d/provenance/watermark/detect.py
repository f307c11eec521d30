"""Finding the mark, and the probability of finding it where there is none.

Frames are whitened on the canonical scale: the local mean is subtracted and the rest divided by a power of its local
rms, so that strong edges do not outweigh the mark. They are then averaged, since the mark is static. The first frame is
also searched by itself: video codecs code it without reference to others, while later frames, where the whole image
moves, carry the mark along with the motion. Each of the two is resized to the scales that a crop may have left, folded
into one tile and compared with the patterns, in the frequency domain and mostly by phase (symmetrical phase-only
matched filter: T. Kalker, G. Depovere, J. Haitsma, M. Maes, SPIE 3657, 1999).

The score of a hypothesis (scale, mirrored or not, position of the tile, payload) is

    S = sum_p sum_f a_p w_f cos(phi_f - theta_pf + 2 pi f.x_p) / sqrt(sum_p a_p^2 sum_f w_f^2 / 2)

where the folded image has weight w_f and phase phi_f at frequency f, and pattern p has amplitude a_p, phases theta_pf
and position x_p. The phases are the key: independent, uniform, and independent of every image that does not carry the
mark. E exp(u cos(theta)) <= exp(u^2 / 4) for uniform theta, so P(S >= s) <= exp(-s^2 / 2) whatever the image, a photo
or a checkerboard. The union bound over all hypotheses gives `Finding.false_positive`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export3d.errors import ShapeError
from export3d.provenance.watermark import pattern
from export3d.provenance.watermark.embed import check_frame
from export3d.provenance.watermark.matching import correlation, decode, fold, spectra
from export3d.provenance.watermark.warped import LOG_WARPS, best_warped

SMALLEST = 190
"""Canonical pixels that the smallest crop leaves of the shorter side: 74 % of it."""
SIZES = range(pattern.SHORTER_SIDE, SMALLEST - 1, -3)
"""Shorter sides searched first; the best are then tried one pixel smaller and larger."""
LARGEST_FALSE_POSITIVE = 1e-7
"""Files with a larger `false_positive` count as unmarked."""
_LARGEST_MISREADING = 1e-4
_LOG_PAYLOADS = 32 * math.log(2)
LOG_HYPOTHESES = math.log(2 * (pattern.SHORTER_SIDE - SMALLEST + 3) * 2 * pattern.TILE**2) + _LOG_PAYLOADS
"""Logarithm of the number of hypotheses: average or first frame, scale, mirrored or not, position, payload."""
MOST_FRAMES = 250
"""Frames that are read at most; more do not raise the score."""
_REFINED = 4
_WHITENING_RADIUS = 2


@dataclass(frozen=True)
class Finding:
    """What the detector found in the frames of one file.

    Attributes:
        found: whether the frames carry the mark.
        payload: the 32 bits; None where no mark was found, or where the data patterns are too weak to tell them: noise
            alone would show some payload as well with a probability of more than 1e-4.
        score: the best hypothesis's score S; about 8 in unmarked images.
        false_positive: upper bound of the probability that an unmarked file reaches this score.
        mirrored: whether the frames were mirrored after marking.
        scale: shorter side of the frames, relative to that of the marked frames at the same magnification.
        frames: number of frames examined.
    """

    found: bool
    payload: int | None
    score: float
    false_positive: float
    mirrored: bool
    scale: float
    frames: int


def find_watermark(frames: Iterable[NDArray[np.uint8]]) -> Finding:
    """Search the frames of one image or video for the mark of `embed.Watermark`.

    Args:
        frames: uint8 (H, W, 3), RGB, all of one size; at most MOST_FRAMES are read. Two or more frames without a mark
            at rest are searched for a mark in perspective as well, which takes three seconds.

    Raises:
        ShapeError: other arrays, frames of different sizes, or no frames.
    """
    first, average, count = _whitened_frames(islice(frames, MOST_FRAMES))
    score, payload, data_score, mirrored, size = max(
        _best(white) for white in ([first] if count == 1 else [first, average])
    )
    false_positive = _bound(score, LOG_HYPOTHESES)
    if count > 1 and false_positive > LARGEST_FALSE_POSITIVE:
        warped = best_warped(average)
        warped_bound = _bound(warped[0], LOG_HYPOTHESES + LOG_WARPS)
        if warped_bound <= LARGEST_FALSE_POSITIVE:
            score, payload, data_score, mirrored = warped
            false_positive, size = warped_bound, pattern.SHORTER_SIDE
    found = false_positive <= LARGEST_FALSE_POSITIVE
    scale = size / pattern.SHORTER_SIDE if found else 1.0
    legible = found and _bound(data_score, _LOG_PAYLOADS) <= _LARGEST_MISREADING
    return Finding(found, payload if legible else None, score, false_positive, found and mirrored, scale, count)


def _bound(score: float, log_hypotheses: float) -> float:
    """Upper bound of the probability that any of the hypotheses reaches a score in an unmarked image."""
    return min(1.0, math.exp(min(0.0, log_hypotheses - score * score / 2)))


def _whitened_frames(frames: Iterable[NDArray[np.uint8]]) -> tuple[NDArray[np.float32], NDArray[np.float32], int]:
    """The first frame and the mean of all, on the canonical scale and whitened, and the number of frames."""
    first, total, shape, count = np.zeros((1, 1), np.float32), np.zeros((1, 1)), (0, 0, 3), 0
    for frame in frames:
        check_frame(frame)
        if count and frame.shape != shape:
            raise ShapeError(f"frame {count} is {frame.shape} and the first is {shape}; give frames of one size")
        height, width = (max(1, round(side)) for side in pattern.canonical_size(*frame.shape[:2]))
        grey = Image.fromarray(frame).convert("L").convert("F")
        white = _whitened(np.asarray(grey.resize((width, height), Image.Resampling.BICUBIC)), 1.0, 1.5)
        if not count:
            first, shape = white, frame.shape
        total, count = total + white, count + 1
    if not count:
        raise ShapeError("there are no frames to search for the watermark; give at least one")
    return first, _whitened(total / count, 0.1, 0.5), count


def _whitened(image: NDArray[Any], floor: float, exponent: float) -> NDArray[np.float32]:
    """An image (H, W) without its local mean, divided by (floor + local rms) ** exponent."""
    detail = image - _box_mean(image)
    rms = np.sqrt(np.maximum(_box_mean(detail * detail), 0))
    return np.asarray(detail / (floor + rms) ** exponent, np.float32)


def _box_mean(image: NDArray[Any]) -> NDArray[np.float64]:
    size = 2 * _WHITENING_RADIUS + 1
    padded = np.pad(image.astype(np.float64), _WHITENING_RADIUS, mode="edge")
    sums = np.pad(padded, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    return np.asarray(sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]) / size**2


def _best(white: NDArray[np.float32]) -> tuple[float, int, float, bool, int]:
    """Score, payload, score of the data patterns alone, mirrored, shorter side of the best hypothesis."""
    levels = _reference_levels(white, SIZES)
    neighbours = {middle + step for middle, _ in _highest(levels) for step in (-1, 1)}
    levels |= _reference_levels(white, sorted(neighbours))
    best = (0.0, 0, 0.0, False, pattern.SHORTER_SIDE)
    for size, mirrored in _highest(levels):
        best = max(best, (*decode(spectra(fold(white, size))[mirrored]), bool(mirrored), size))
    return best


def _reference_levels(white: NDArray[np.float32], sizes: Iterable[int]) -> dict[tuple[int, int], float]:
    """The reference pattern's highest score by (shorter side, mirrored)."""
    levels: dict[tuple[int, int], float] = {}
    for size in sizes:
        scores = correlation(spectra(fold(white, size)), pattern.phases()[0])
        levels |= {(size, mirrored): float(score) for mirrored, score in enumerate(scores.max(axis=(1, 2)))}
    return levels


def _highest(levels: dict[tuple[int, int], float]) -> list[tuple[int, int]]:
    return sorted(levels, key=levels.__getitem__)[-_REFINED:]
