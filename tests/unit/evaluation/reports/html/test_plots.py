"""Axes of the plots."""

from __future__ import annotations

import pytest

from export3d.evaluation.reports.html.plots import _ticks


def test_ticks_are_round_and_inside() -> None:
    for low, high in [(0.0, 1.0), (-3.2, 7.9), (19.9, 20.1), (0.00012, 0.00019), (1e3, 9e4)]:
        ticks = _ticks(low, high)
        assert 2 <= len(ticks) <= 6
        assert all(low <= at <= high for at, _ in ticks)
        assert len({text for _, text in ticks}) == len(ticks)
        assert all(float(text.replace("−", "-")) == pytest.approx(at, abs=1e-9) for at, text in ticks)
