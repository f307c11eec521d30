"""The tile's spectrum is what the detector's statistic assumes."""

from __future__ import annotations

import numpy as np
import pytest

from export3d.provenance.watermark import pattern


def test_the_key_is_the_same_everywhere():
    """Marks of earlier versions must stay readable: neither band nor phases may ever change."""
    assert pattern.phases().shape == (9, 1788)
    angles = [0.30878, 2.8033, 1.21712, 0.82678, -0.72611, -1.14184, 0.29354, 2.7384, 0.80314]
    assert np.angle(pattern.phases()[:, 0]) == pytest.approx(angles, abs=1e-4)


def test_sums_over_the_band_are_sums_of_cosines(rng):
    rows, columns = pattern.band()
    values = rng.standard_normal(rows.size) + 1j * rng.standard_normal(rows.size)
    y, x = 5, 17
    expected = (values * np.exp(2j * np.pi * (rows * y + columns * x) / pattern.TILE)).real.sum()
    assert pattern.from_band(values)[y, x] == pytest.approx(expected, rel=1e-4)


def test_a_tile_has_unit_variance_and_only_the_bands_frequencies():
    tile = pattern.tile(0xDEADBEEF)
    assert (tile.mean(), tile.std()) == pytest.approx((0, 1), abs=1e-4)
    spectrum = np.abs(np.fft.rfft2(tile))
    inside = spectrum[pattern.band()]
    row, column = np.fft.fftfreq(pattern.TILE)[:, None], np.fft.rfftfreq(pattern.TILE)[None, :]
    outside = spectrum[(np.hypot(row, column) < pattern.LOWEST) | (np.hypot(row, column) > pattern.HIGHEST)]
    assert outside.max() < 1e-3 * inside.mean()


def test_payloads_move_the_data_patterns_only():
    """Tiles of two payloads have in common what the reference pattern adds."""
    one, other = pattern.tile(0), pattern.tile(2**32 - 1)
    share = pattern.REFERENCE_AMPLITUDE**2 / (pattern.REFERENCE_AMPLITUDE**2 + 8)
    assert (one * other).mean() == pytest.approx(share, abs=0.06)


@pytest.mark.parametrize(
    ("size", "expected"), [((256, 256), (256, 256)), ((1080, 1920), (256, 455.1)), ((1, 9000), (0.455, 4096))]
)
def test_the_shorter_side_has_256_canonical_pixels(size, expected):
    assert pattern.canonical_size(*size) == pytest.approx(expected, rel=1e-3)


def test_the_pattern_of_a_larger_image_is_the_smaller_ones_enlarged():
    small, large = pattern.over_image(7, 256, 320), pattern.over_image(7, 768, 960)
    assert np.corrcoef(large[1::3, 1::3].ravel(), small.ravel())[0, 1] > 0.97
