"""Sharpness of a generated face: its fine detail over that of the source's face.

    sharpness = min(E / E', (E - L) / (E' - L'))    E, L of the result's face, E', L' of the source's

- *E*: energy of the luminance Y = 0.299 R + 0.587 G + 0.114 B in the band from 1/4 to 1/2 of the sampling rate (radial
  frequency; the upper half of what pixels can show), mean square in grey levels 0 to 255, from the Fourier transform of
  Y minus its mean under a window.
- *Window*: an ellipse along the axis from forehead to chin that spans the landmarks; 1 in its inner half, from there
  falling to 0 at its border as a raised cosine, so that no edge of the window enters the band. Each face has its own
  window: a moved face is compared with the source's face, not with the same pixels.
- *Size*: frequencies are compared in cycles per face. The band is that of the smaller face (by the spread of the 33
  pose landmarks), for both; the same content at another size has the same energy.
- *Noise*: L is the lower quartile of E over cells, a tenth of the face wide. Noise adds as much to L as to E and
  cancels in the second ratio; the first prevents that smoothed skin, which lowers L, counts as sharpness.

1 is as sharp as the source, 0 has nothing in the band; above 1 has been sharpened or has more contrast. Undefined if
the source's face has no such detail (E' - L' below 0.1, twice the noise of rounding to 8 bits) or a face is small.

What it does not see: *where* detail lies, so read it beside LPIPS, PSNR and AKD. Over-sharpening counts as sharpness,
up to and beyond 1. Strong noise and the blocks of strong JPEG compression cancel only in part; `docs/evaluation.md` has
figures for each. Closed eyes and a turned head have less detail than the source's open eyes, an open mouth has more.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export3d.errors import check_shape
from export3d.evaluation.measures.image import Measure
from export3d.face.landmark_sets import CHIN, FOREHEAD
from export3d.face.mesh import LANDMARKS, canonical_mesh

Array = NDArray[np.float64]
Floats = NDArray[np.floating[Any]]
Picture = NDArray[np.uint8]

BAND = (0.25, 0.5)
"""Cycles per pixel."""
LEAST_ENERGY = 0.1
"""Grey levels squared. Rounding to 8 bits has 1/12, of which the band holds 59%."""
LEAST_SIZE = 24.0
"""Smallest semi-axis of a face's ellipse, pixels."""
_FLAT = 0.5
_CELLS = 10
"""Cells across the ellipse's box, whose energies are compared."""
_QUARTILE = 0.25
_LUMA = np.array([0.299, 0.587, 0.114])

MEASURE = Measure(
    "sharpness",
    "sharpness, face",
    None,
    2,
    "energy of the face's luminance above a quarter of the sampling rate over that of the source's face, without "
    "noise; 1 is as sharp as the source, above 1 is sharpened or has more contrast",
)


class FaceDetail:
    """The spectrum of one face.

    Args:
        picture: uint8 (R, R, 3) or (H, W, 3) RGB.
        landmarks: (478, 2) pixels of the picture.

    Attributes:
        size: root mean square distance of the pose landmarks from their centre, pixels.
    """

    def __init__(self, picture: Picture, landmarks: Floats) -> None:
        check_shape(picture, "H W 3", "picture")
        check_shape(landmarks, f"{LANDMARKS} 2", "landmarks")
        points = np.asarray(landmarks, dtype=np.float64)
        mesh = canonical_mesh()
        rigid = points[mesh.pose_landmarks]
        self.size = float(np.sqrt(mesh.pose_weights @ np.square(rigid - mesh.pose_weights @ rigid).sum(axis=-1)))
        self._ellipse = _Ellipse.around(points)
        self._picture = picture

    @property
    def known(self) -> bool:
        """Whether the face is large enough, not larger than the picture, and its centre lies in the picture."""
        (height, width), semi_axes = self._picture.shape[:2], self._ellipse.semi_axes
        x, y = self._ellipse.centre
        fits = min(semi_axes) >= LEAST_SIZE and max(semi_axes) <= max(height, width)
        return bool(fits and 0 <= x < width and 0 <= y < height)

    def energy(self, low: float, high: float) -> tuple[float, float]:
        """Energy in a band and the lower quartile of its cells, grey levels squared.

        Args:
            low, high: cycles per pixel.
        """
        spectrum, frequency, window, cells = self._spectrum
        band = np.where((frequency >= low) & (frequency < high), spectrum, 0.0)
        power = np.square(np.fft.irfft2(band, s=window.shape))
        weight, most = np.bincount(cells.ravel(), window.ravel()), np.bincount(cells.ravel())
        inside = weight >= 0.5 * np.maximum(most, 1)
        per_cell = np.bincount(cells.ravel(), power.ravel())[inside] / weight[inside]
        return float(power.sum() / window.sum()), float(np.quantile(per_cell, _QUARTILE))

    @cached_property
    def _spectrum(self) -> tuple[NDArray[np.complex128], Array, Array, NDArray[np.int64]]:
        """Spectrum of the windowed luminance, its frequencies, the squared window, and the number of each pixel's cell.

        Beyond the picture's border the picture is mirrored.
        """
        (left, top), (right, bottom) = self._ellipse.box
        columns, rows = np.arange(left, right, dtype=np.int64), np.arange(top, bottom, dtype=np.int64)
        height, width = self._picture.shape[:2]
        part = self._picture[np.ix_(_mirrored(rows, height), _mirrored(columns, width))] @ _LUMA
        along, across = self._ellipse.place(0.5 + columns[None, :], 0.5 + rows[:, None])
        out = ((np.hypot(along, across) - _FLAT) / (1.0 - _FLAT)).clip(0.0, 1.0)
        window = 0.5 + 0.5 * np.cos(np.pi * out)
        spectrum = np.fft.rfft2(window * (part - (window * part).sum() / window.sum()))
        frequency = np.hypot(np.fft.fftfreq(len(rows))[:, None], np.fft.rfftfreq(len(columns))[None, :])
        cell = [((x.clip(-1.0, 0.999) + 1.0) / 2.0 * _CELLS).astype(np.int64) for x in (along, across)]
        return spectrum, frequency, np.square(window), cell[0] * _CELLS + cell[1]


def sharpness(
    pictures: Picture,
    landmarks: Floats,
    source: Picture,
    source_landmarks: Floats,
) -> Array:
    """Sharpness of T faces relative to the source's (the formula at the top of this file).

    Args:
        pictures: uint8 (T, H, W, 3) RGB.
        landmarks: (T, 478, 2) pixels of the pictures; NaN without a face.
        source: uint8 (H, W, 3); another size is allowed.
        source_landmarks: (478, 2) pixels of the source.

    Returns:
        (T,) at least 0, ideally 1; NaN where it is undefined.

    Raises:
        ShapeError: other shapes.
    """
    check_shape(pictures, "T H W 3", "pictures")
    check_shape(landmarks, f"{len(pictures)} {LANDMARKS} 2", "landmarks")
    check_shape(source_landmarks, f"{LANDMARKS} 2", "landmarks of the source")
    found = np.full(len(pictures), np.nan)
    if not np.isfinite(source_landmarks).all():
        return found
    own = FaceDetail(source, source_landmarks)
    if not own.known:
        return found
    for t in np.flatnonzero(np.isfinite(landmarks).all(axis=(1, 2))):
        face = FaceDetail(pictures[t], landmarks[t])
        if not face.known:
            continue
        smaller = min(face.size, own.size)
        energies = [detail.energy(*(edge * smaller / detail.size for edge in BAND)) for detail in (face, own)]
        (ours, ours_low), (theirs, theirs_low) = energies
        if theirs - theirs_low >= LEAST_ENERGY:
            found[t] = max(0.0, min(ours / theirs, (ours - ours_low) / (theirs - theirs_low)))
    return found


@dataclass(frozen=True)
class _Ellipse:
    """An ellipse: its centre, the unit vector along its first axis, and its semi-axes, pixels."""

    centre: tuple[float, float]
    axis: tuple[float, float]
    semi_axes: tuple[float, float]

    @classmethod
    def around(cls, points: Array) -> _Ellipse:
        """The ellipse along a face that spans landmarks (478, 2)."""
        down = points[CHIN] - points[FOREHEAD]
        x, y = down / max(float(np.linalg.norm(down)), 1e-9)
        turned = points @ np.array([[x, -y], [y, x]])
        low, high = turned.min(axis=0), turned.max(axis=0)
        along, across = (low + high) / 2
        (a, b) = (high - low) / 2
        return cls((along * x - across * y, along * y + across * x), (float(x), float(y)), (float(a), float(b)))

    def place(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Coordinates of positions along and across, -1 to 1 inside."""
        dx, dy = x - self.centre[0], y - self.centre[1]
        return (
            (dx * self.axis[0] + dy * self.axis[1]) / self.semi_axes[0],
            (dy * self.axis[0] - dx * self.axis[1]) / self.semi_axes[1],
        )

    @property
    def box(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Corners of the pixels that it touches."""
        (a, b), (x, y) = self.semi_axes, self.axis
        reach = np.array([np.hypot(a * x, b * y), np.hypot(a * y, b * x)])
        low, high = np.floor(self.centre - reach).astype(int), np.ceil(self.centre + reach).astype(int)
        return (int(low[0]), int(low[1])), (int(high[0]), int(high[1]))


def _mirrored(numbers: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Numbers of pixels, mirrored at the border into 0 to count - 1."""
    inside = numbers % (2 * count)
    return np.asarray(np.minimum(inside, 2 * count - 1 - inside), dtype=np.int64)
