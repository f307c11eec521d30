"""Means over clips, their intervals, and how they are written."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from export3d.evaluation.metrics import PSNR, SSIM, Metric
from export3d.evaluation.report import ClipResult, Report, bootstrap

LPIPS = Metric("lpips", "LPIPS", False, 4, "a distance", PSNR.score)


def clip(key: str, ours: float, copy: float, **more) -> ClipResult:
    scores = {
        name: {"psnr": db, "ssim": db / 50, "lpips": 1 / db if db < math.inf else 0.0}
        for name, db in (("ours", ours), ("copy", copy))
    }
    return ClipResult(key, f"p-{key}", "open", "somewhere", 10, 3, 0, scores, **more)


@pytest.fixture
def report() -> Report:
    clips = (clip("a", 20.0, 16.0), clip("b", 24.0, 18.0), clip("c", 25.0, 30.0))
    return Report("Title", {"every": 1}, ("ours", "copy"), (PSNR, SSIM, LPIPS), clips)


def test_clips_are_grouped_by_how_well_a_copy_does(report: Report) -> None:
    assert [c.key for c in report.group("moving")] == ["a", "b"]
    assert [c.key for c in report.group("still")] == ["c"]
    assert len(report.group("all")) == 3


def test_a_copy_at_twenty_decibels_is_still() -> None:
    assert clip("x", 20.0, 20.0).group == "still"
    assert clip("x", 20.0, 19.99).group == "moving"


def test_means_are_over_clips(report: Report) -> None:
    assert report.mean("moving", "ours", "psnr").mean == pytest.approx(22.0)
    assert report.mean("all", "copy", "psnr").mean == pytest.approx(64 / 3)


def test_gains_are_differences_and_for_distances_shares(report: Report) -> None:
    assert report.gain("moving", "ours", PSNR).mean == pytest.approx(5.0)
    ours, copy = (1 / 20 + 1 / 24) / 2, (1 / 16 + 1 / 18) / 2
    assert report.gain("moving", "ours", LPIPS).mean == pytest.approx(1 - ours / copy)
    assert report.gain("still", "ours", PSNR).mean == pytest.approx(-5.0)


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


def test_the_same_clips_give_the_same_interval(report: Report) -> None:
    assert report.mean("all", "ours", "psnr") == report.mean("all", "ours", "psnr")


def test_one_clip_has_an_interval_without_width(report: Report) -> None:
    estimate = report.mean("still", "ours", "psnr")
    assert estimate.low == estimate.mean == estimate.high == 25.0


def test_equal_images_stay_infinite_in_means_tables_and_json(report: Report) -> None:
    perfect = replace(report, clips=(clip("a", math.inf, 16.0), clip("b", 20.0, 17.0)))
    assert perfect.mean("all", "ours", "psnr").mean == math.inf
    assert "inf" in perfect.summary_table()
    value = json.loads(perfect.to_json())
    assert value["clips"][0]["scores"]["ours"]["psnr"] == "inf"
    assert value["summary"]["all"]["mean"]["ours"]["psnr"]["mean"] == "inf"


def test_the_json_is_strict_and_holds_everything(report: Report) -> None:
    value = json.loads(report.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert [c["key"] for c in value["clips"]] == ["a", "b", "c"]
    assert value["clips"][2]["group"] == "still"
    assert value["summary"]["moving"]["gain"]["ours"]["psnr"]["mean"] == pytest.approx(5.0)
    assert value["settings"] == {"every": 1}
    assert value["metrics"]["ssim"]["definition"] == SSIM.definition


def test_an_empty_group_is_null_in_json_and_absent_from_the_table(report: Report) -> None:
    moving = replace(report, clips=report.clips[:2])
    assert json.loads(moving.to_json())["summary"]["still"]["mean"]["ours"]["psnr"]["mean"] is None
    assert "still" not in moving.summary_table()


def test_tables_are_rectangular_and_show_the_gain(report: Report) -> None:
    for table in (report.summary_table(), report.clip_table()):
        assert len({line.count("|") for line in table.splitlines()}) == 1
    row = next(line for line in report.summary_table().splitlines() if "ours against copy" in line)
    assert "+5.00 [+4.00, +6.00]" in row
    assert " % [" in row
    assert row.split("|")[5].strip().startswith("-")


def test_clips_are_listed_from_the_one_that_moves_most(report: Report) -> None:
    assert [line.split(" ")[1] for line in report.clip_table().splitlines()[2:]] == ["a", "b", "c"]


def test_correlations_that_are_not_defined_do_not_count(report: Report) -> None:
    tracked = replace(
        report,
        clips=(
            clip("a", 20.0, 16.0, retracked={"ours": {"yaw": 0.9, "jawOpen": math.nan, "eyeBlink": 0.5}}),
            clip("b", 24.0, 18.0, retracked={"ours": {"yaw": 0.7, "jawOpen": 0.6, "eyeBlink": 0.5}}),
        ),
    )
    assert tracked.retracked("all", "ours", "yaw").mean == pytest.approx(0.8)
    assert tracked.retracked("all", "ours", "jawOpen").mean == pytest.approx(0.6)
    assert "–" in tracked.retracked_table()
    assert "Tracked again" in tracked.markdown()
    assert report.retracked_table() == ""


def test_the_page_says_what_was_left_out_and_who_is_shown(report: Report) -> None:
    page = replace(
        report, skipped={"d": "no face"}, credits=({"clip": "a", "terms": "open", "source": "somewhere"},)
    ).markdown()
    assert "d was left out: no face" in page
    assert "a (open, somewhere)" in page
