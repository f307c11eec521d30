"""Where a method stands between the references."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from export3d.evaluation.measures.image import Measure
from export3d.evaluation.reports.html.page import page
from export3d.evaluation.reports.report import Report


def test_ours_stands_between_behind_or_beyond(referenced: Report) -> None:
    psnr, lpips, csim = referenced.standing("moving")
    assert (psnr.place, psnr.simple_name) == ("between", "warp")
    assert psnr.way == pytest.approx((20.5 - 18.0) / (24.5 - 18.0))
    assert psnr.margin.mean == pytest.approx(2.5)
    assert (psnr.margin.low, psnr.margin.high) == (2.0, 3.0)
    assert (lpips.place, lpips.simple_name) == ("behind the best simple", "warp")
    assert lpips.way == pytest.approx(-1.0)
    assert lpips.margin.mean == pytest.approx(-0.1)
    assert (csim.place, csim.simple_name) == ("beyond the oracle", "copy")
    assert "behind the best simple" in referenced.standing_table()


def test_a_measure_without_a_good_way_has_no_standing(referenced: Report) -> None:
    assert "flicker_face" not in [row.measure.name for row in referenced.standing("moving")]


def test_standings_use_the_clips_that_all_have(referenced: Report) -> None:
    first, second = referenced.clips
    scores = {**second.scores, "oracle": {**second.scores["oracle"], "psnr": math.nan}}
    row = replace(referenced, clips=(first, replace(second, scores=scores))).standing("moving")[0]
    assert row.clips == 1
    assert (row.ours.mean, row.oracle.mean) == (20.0, 24.0)


def test_a_reference_that_hardly_has_a_value_is_not_compared(referenced: Report) -> None:
    yaw = Measure("yaw", "yaw", True, 2, "")
    clips = tuple(
        replace(c, scores={m: {**s, "yaw": math.nan if m == "copy" else 0.5} for m, s in c.scores.items()})
        for c in referenced.clips
    )
    (row,) = replace(referenced, measures=(yaw,), clips=clips).standing("all")
    assert (row.clips, row.place) == (2, "level with the best simple")
    assert row.simple_name != "copy"


def test_standings_without_an_oracle_or_without_simple_references(referenced: Report) -> None:
    assert [row.place for row in replace(referenced, methods=("ours", "copy", "warp")).standing("all")] == [
        "ahead of the best simple",
        "behind the best simple",
        "ahead of the best simple",
    ]
    assert replace(referenced, methods=("ours", "oracle")).standing("all")[0].place == "behind the oracle"
    assert replace(referenced, methods=("ours",)).standing("all") == ()
    assert math.isnan(replace(referenced, methods=("ours", "copy")).standing("all")[0].way)


def test_there_is_no_way_to_an_oracle_that_is_worse_than_a_copy(referenced: Report) -> None:
    clips = tuple(replace(c, scores={**c.scores, "copy": {**c.scores["copy"], "psnr": 30.0}}) for c in referenced.clips)
    row = replace(referenced, clips=clips).standing("still")[0]
    assert row.place == "behind the best simple"
    assert math.isnan(row.way)


def test_equal_figures_are_level(referenced: Report) -> None:
    """Equal as tables show them: 20.001 and 20.004 dB are both 20.00."""

    def with_psnr(ours: float, warp: float, oracle: float) -> Report:
        psnr = {"ours": ours, "copy": 5.0, "warp": warp, "mesh": 5.0, "oracle": oracle}
        clips = (replace(c, scores={m: {**s, "psnr": psnr[m]} for m, s in c.scores.items()}) for c in referenced.clips)
        return replace(referenced, clips=tuple(clips))

    assert with_psnr(20.001, 20.004, 24.0).standing("all")[0].place == "level with the best simple"
    assert with_psnr(20.004, 20.001, 24.0).standing("all")[0].place == "level with the best simple"
    assert with_psnr(24.001, 20.0, 24.004).standing("all")[0].place == "level with the oracle"
    without_simple = replace(with_psnr(24.0, 20.0, 24.0), methods=("ours", "oracle"))
    assert without_simple.standing("all")[0].place == "level with the oracle"
    assert with_psnr(20.01, 20.02, 24.0).standing("all")[0].place == "behind the best simple"
    level = with_psnr(20.0, 20.0, 24.0)
    assert "level with the best simple" in level.standing_table()
    assert "1 level with one of them (PSNR" in page(level)
