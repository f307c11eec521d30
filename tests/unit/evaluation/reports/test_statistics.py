"""Bootstrap intervals and paired differences."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from export3d.evaluation.measures.image import PSNR, SSIM, Measure
from export3d.evaluation.reports.clips import ClipResult
from export3d.evaluation.reports.report import Report
from export3d.evaluation.reports.statistics import bootstrap, paired_difference

LPIPS = Measure("lpips", "LPIPS", False, 4, "a distance")


def clip(key: str, ours: float, copy: float, **more) -> ClipResult:
    scores = {
        name: {"psnr": db, "ssim": db / 50, "lpips": 1 / db if db < math.inf else 0.0}
        for name, db in (("ours", ours), ("copy", copy))
    }
    return ClipResult(key, f"p-{key}", "open", "somewhere", 10, 3, 0, scores, **more)


def scored(key: str, **methods: dict[str, float]) -> ClipResult:
    return ClipResult(key, "", "", "", 10, None, 0, methods)


@pytest.fixture
def report() -> Report:
    clips = (clip("a", 20.0, 16.0), clip("b", 24.0, 18.0), clip("c", 25.0, 30.0))
    return Report("Title", {"every": 1}, ("ours", "copy"), (PSNR, SSIM, LPIPS), clips)


def test_intervals_are_those_of_the_plain_bootstrap(rng: np.random.Generator) -> None:
    """The fast way for all columns against drawing clip numbers, also when some values are missing or infinite."""
    ours, copy = rng.normal(25, 3, size=(2, 30))
    clips = tuple(scored(f"{i}", ours={"psnr": a}, copy={"psnr": b}) for i, (a, b) in enumerate(zip(ours, copy)))
    report = Report("T", {}, ("ours", "copy"), (PSNR,), clips)
    mean = bootstrap(30, lambda draws: ours[draws].mean(axis=-1))
    found = report.mean("all", "ours", "psnr")
    assert (found.mean, found.low, found.high) == pytest.approx((mean.mean, mean.low, mean.high))
    difference = bootstrap(30, lambda draws: (ours - copy)[draws].mean(axis=-1))
    gain = report.gain("all", "ours", PSNR)
    assert (gain.mean, gain.low, gain.high) == pytest.approx((difference.mean, difference.low, difference.high))

    ours[[3, 7]] = math.nan, math.inf
    holed = replace(report, clips=tuple(scored(f"{i}", ours={"psnr": a}) for i, a in enumerate(ours)))
    nan_mean = bootstrap(30, lambda draws: np.nanmean(ours[draws], axis=-1))
    found = holed.mean("all", "ours", "psnr")
    assert (found.mean, found.low, found.high) == pytest.approx((nan_mean.mean, nan_mean.low, nan_mean.high))
    assert nan_mean.low < nan_mean.high == math.inf


def test_intervals_cover_the_true_mean_about_as_often_as_they_say(rng: np.random.Generator) -> None:
    covered = 0
    for _ in range(60):
        values = rng.normal(5.0, 2.0, size=40)
        estimate = bootstrap(40, lambda draws, values=values: values[draws].mean(axis=-1))
        assert estimate.low < estimate.mean < estimate.high
        covered += estimate.low <= 5.0 <= estimate.high
    assert 51 <= covered <= 60


def test_an_interval_has_the_width_that_theory_gives(rng: np.random.Generator) -> None:
    values = rng.normal(size=400)
    estimate = bootstrap(400, lambda draws: values[draws].mean(axis=-1))
    assert (estimate.high - estimate.low) == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.05)


def test_a_paired_difference_is_surer_than_two_means() -> None:
    """Cases that differ much and a change that is the same for all: the interval is that of the change."""
    rng = np.random.default_rng(0)
    case = rng.normal(0, 1.0, 30)
    a = {str(i): float(value) for i, value in enumerate(case + 0.1 + rng.normal(0, 0.01, 30))}
    b = {str(i): float(value) for i, value in enumerate(case)}
    difference = paired_difference(a, b)
    assert difference.mean == pytest.approx(0.1, abs=0.01)
    assert 0.09 < difference.low < difference.mean < difference.high < 0.11
    swapped = paired_difference(b, a)
    assert swapped.mean == pytest.approx(-difference.mean)


def test_only_common_cases_that_are_defined_count() -> None:
    found = paired_difference({"a": 2.0, "b": math.nan, "c": 1.0, "d": 5.0}, {"a": 1.0, "b": 0.0, "c": None})
    assert (found.mean, found.low, found.high) == (1.0, 1.0, 1.0)
    assert math.isnan(paired_difference({"a": 1.0}, {"b": 1.0}).mean)
