"""Means over clips, their intervals, where they stand, and how they are written and read back."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from export3d.errors import InputError
from export3d.evaluation.measures.image import PSNR, SSIM, Measure
from export3d.evaluation.reports.clips import ClipResult
from export3d.evaluation.reports.report import Report
from tests.made_up_scores import FLICKER, LPIPS, scored


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
    assert report.groups == ("moving", "still", "all")


def test_a_copy_at_twenty_decibels_is_still() -> None:
    assert clip("x", 20.0, 20.0).group == "still"
    assert clip("x", 20.0, 19.99).group == "moving"


def test_without_a_copy_there_are_no_groups(report: Report) -> None:
    alone = replace(report, methods=("ours",), clips=(scored("a", ours={"psnr": 20.0}),))
    assert alone.clips[0].group == ""
    assert alone.groups == ("all",)
    assert math.isnan(alone.gain("all", "ours", PSNR).mean)
    assert "against" not in alone.summary_table()


def test_a_group_of_all_clips_is_shown_once(report: Report) -> None:
    moving = replace(report, clips=report.clips[:2])
    assert moving.groups == ("moving",)
    assert moving.summary_table().count("PSNR") == 1


def test_means_are_over_clips(report: Report) -> None:
    assert report.mean("moving", "ours", "psnr").mean == pytest.approx(22.0)
    assert report.mean("all", "copy", "psnr").mean == pytest.approx(64 / 3)


def test_gains_are_differences_and_for_distances_shares(report: Report) -> None:
    assert report.gain("moving", "ours", PSNR).mean == pytest.approx(5.0)
    ours, copy = (1 / 20 + 1 / 24) / 2, (1 / 16 + 1 / 18) / 2
    assert report.gain("moving", "ours", LPIPS).mean == pytest.approx(1 - ours / copy)
    assert report.gain("still", "ours", PSNR).mean == pytest.approx(-5.0)


def test_where_neither_way_is_better_the_gain_is_a_difference() -> None:
    clips = (scored("a", ours={"flicker_face": 1.5}, copy={"flicker_face": 0.5, "psnr": 10.0}),)
    assert Report("T", {}, ("ours", "copy"), (FLICKER,), clips).gain("all", "ours", FLICKER).mean == 1.0


def test_the_same_clips_give_the_same_interval(report: Report) -> None:
    assert report.mean("all", "ours", "psnr") == replace(report).mean("all", "ours", "psnr")


def test_one_clip_has_an_interval_without_width(report: Report) -> None:
    estimate = report.mean("still", "ours", "psnr")
    assert estimate.low == estimate.mean == estimate.high == 25.0


def test_means_are_over_the_clips_where_a_method_has_a_value(report: Report) -> None:
    holed = replace(
        report,
        clips=(
            scored("a", ours={"psnr": 20.0, "lpips": math.nan}, copy={"psnr": 10.0, "lpips": 0.4}),
            scored("b", ours={"psnr": 22.0, "lpips": 0.1}, copy={"psnr": 12.0, "lpips": 0.2}),
        ),
    )
    assert holed.mean("all", "ours", "lpips").mean == 0.1
    assert holed.defined("all", "ours", "lpips") == 1
    assert holed.mean("all", "copy", "lpips").mean == pytest.approx(0.3)
    # Clip a counts for neither in the comparison.
    assert holed.gain("all", "ours", LPIPS).mean == pytest.approx(0.5)
    assert "0.1000 [0.1000, 0.1000] (of 1)" in holed.summary_table()
    assert "(of 2)" not in holed.summary_table()
    assert json.loads(holed.to_json())["summary"]["all"]["mean"]["ours"]["lpips"]["clips"] == 1
    assert math.isnan(holed.mean("all", "ours", "ssim").mean)


def test_equal_images_stay_infinite_in_means_tables_and_json(report: Report) -> None:
    perfect = replace(report, clips=(clip("a", math.inf, 16.0), clip("b", 20.0, 17.0)))
    assert perfect.mean("all", "ours", "psnr").mean == math.inf
    assert "inf" in perfect.summary_table()
    value = json.loads(perfect.to_json())
    assert value["clips"][0]["scores"]["ours"]["psnr"] == "inf"
    assert value["summary"]["all"]["mean"]["ours"]["psnr"]["mean"] == "inf"


def test_the_worst_clips_come_first(report: Report, referenced: Report) -> None:
    assert [c.key for c in replace(report, clips=report.clips[::-1]).worst_first()] == ["a", "b", "c"]
    # Without PSNR the first measure decides, a distance the other way round; what is not defined comes last.
    distances = {"x": 0.1, "y": 0.9, "z": math.nan, "w": 0.5}
    clips = tuple(scored(key, ours={"lpips": value}) for key, value in distances.items())
    assert [c.key for c in Report("T", {}, ("ours",), (LPIPS,), clips).worst_first()] == ["y", "w", "x", "z"]


def test_the_json_is_strict_and_holds_everything(report: Report) -> None:
    value = json.loads(report.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert [c["key"] for c in value["clips"]] == ["a", "b", "c"]
    assert value["clips"][2]["group"] == "still"
    assert value["summary"]["moving"]["gain"]["ours"]["psnr"]["mean"] == pytest.approx(5.0)
    assert value["settings"] == {"every": 1}
    assert value["measures"]["ssim"]["definition"] == SSIM.definition


def test_a_report_that_is_read_back_is_the_same(report: Report) -> None:
    odd = replace(
        report,
        settings={"every": 1, "identity": ["dlib"], "trained": {"images": 3}},
        clips=(clip("a", math.inf, 16.0, worst_frame=7, note="a note"), scored("b", ours={"psnr": math.nan}, copy={})),
        overall={"ours": {"fd": 0.5}, "copy": {"fd": math.nan}},
        overall_measures=(Measure("fd", "Fréchet distance", False, 2, "of descriptors"),),
        skipped={"d": "no face"},
        credits=({"clip": "a", "terms": "open", "source": "somewhere"},),
    )
    again = Report.from_json(odd.to_json())
    assert again.to_json() == odd.to_json()
    assert again.markdown() == odd.markdown()
    assert again.clips[0] == odd.clips[0]
    assert again.measures[0] == Measure("psnr", PSNR.title, True, 2, PSNR.definition)
    assert again.clips[1].source_frame is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"title": "x", "clips": []}', "null"])
def test_what_is_not_a_report_is_refused(text: str, report: Report) -> None:
    with pytest.raises(InputError, match="not a report of export3d evaluate"):
        Report.from_json(text)


def test_a_damaged_report_is_refused(report: Report) -> None:
    value = json.loads(report.to_json())
    for broken in ({"methods": []}, {"clips": [{"key": "a"}]}, {"clips": [{**value["clips"][0], "scores": 3}]}):
        with pytest.raises(InputError):
            Report.from_json(json.dumps({**value, **broken}))


def test_an_empty_group_is_null_in_json_and_absent_from_the_table(report: Report) -> None:
    moving = replace(report, clips=report.clips[:2])
    assert json.loads(moving.to_json())["summary"]["still"]["mean"]["ours"]["psnr"]["mean"] is None
    assert "still" not in moving.summary_table()


def test_tables_are_rectangular_and_show_the_gain(report: Report, referenced: Report) -> None:
    blocks = [*report.summary_table().split("\n\n"), report.clip_table()]
    blocks += [*referenced.summary_table().split("\n\n"), *referenced.standing_table().split("\n\n")]
    for block in blocks:
        assert len({line.count("|") for line in block.splitlines()}) == 1
    row = next(line for line in report.summary_table().splitlines() if "ours against copy" in line)
    assert "+5.00 [+4.00, +6.00]" in row
    assert " % [" in row
    assert row.split("|")[4].strip().startswith("-")


def test_clips_are_listed_from_the_one_that_moves_most(report: Report) -> None:
    shuffled = replace(report, clips=(report.clips[2], report.clips[1], report.clips[0]))
    assert [line.split(" ")[1] for line in shuffled.clip_table().splitlines()[2:]] == ["a", "b", "c"]


def test_the_page_says_what_was_left_out_and_who_is_shown(report: Report) -> None:
    page = replace(
        report, skipped={"d": "no face"}, credits=({"clip": "a", "terms": "open", "source": "somewhere"},)
    ).markdown()
    assert "d was left out: no face" in page
    assert "a (open, somewhere)" in page


def test_figures_of_the_whole_split_have_their_own_table(report: Report) -> None:
    whole = replace(
        report, overall={"ours": {"fd": 0.5}}, overall_measures=(Measure("fd", "Fréchet distance", False, 2, "what"),)
    )
    assert "| ours | 0.50 |" in whole.markdown()
    assert "| copy | – |" in whole.markdown()
    assert "Fréchet distance: what" in whole.markdown()
    assert json.loads(whole.to_json())["overall"] == {"ours": {"fd": 0.5}}


@pytest.mark.slow
def test_two_thousand_clips_take_seconds(rng: np.random.Generator) -> None:
    """Ten thousand draws of that many clips for every figure one after the other would take minutes."""
    import time

    values = rng.normal(20.0, 2.0, size=(2000, 2, 8))
    measures = tuple(Measure(f"m{k}", "", True, 2, "") for k in range(8))
    clips = tuple(
        scored(f"{i}", **{m: {f"m{k}": float(v) for k, v in enumerate(row)} for m, row in zip(("ours", "copy"), clip)})
        for i, clip in enumerate(values)
    )
    before = time.process_time()
    summary = Report("T", {}, ("ours", "copy"), measures, clips).summary()
    assert time.process_time() - before < 20.0
    found = summary["all"]["mean"]["ours"]["m0"]
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * 2.0 / math.sqrt(2000), rel=0.1)
