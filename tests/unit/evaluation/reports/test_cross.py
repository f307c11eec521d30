"""The report of the cross-identity protocol."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from export3d.errors import InputError
from export3d.evaluation.measures.image import Measure
from export3d.evaluation.protocols.cross import cross_identity
from export3d.evaluation.reports.clips import ClipResult
from export3d.evaluation.reports.cross import CrossReport, Pair
from export3d.evaluation.reports.html.page import page


def test_a_report_of_another_kind_is_refused(split: Path, tiny_weights: Path, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"clips": []}')
    with pytest.raises(InputError, match="not the report"):
        cross_identity(split, tmp_path / "out", weights=tiny_weights, against=tmp_path / "report.json")


def test_undefined_figures_are_left_out_of_means_and_null_in_json() -> None:
    scores = [{"ours": {"yaw": value}, "real pictures": {"yaw": 0.9}} for value in (0.5, math.nan)]
    clips = tuple(ClipResult(Pair(str(i), "x").name, "", "", "", 2, 0, 0, s) for i, s in enumerate(scores))
    report = CrossReport("t", {}, ("ours", "real pictures"), (Measure("yaw", "yaw", True, 2, "d"),), clips)
    assert report.mean("all", "ours", "yaw").mean == 0.5
    assert "| – |" in report.clip_table()
    assert [(result.pair, result.reference) for result in report.pairs] == [
        (Pair("0", "x"), {"yaw": 0.9}), (Pair("1", "x"), {"yaw": 0.9}),
    ]  # fmt: skip
    assert json.loads(report.to_json())["pairs"][1]["values"]["yaw"] is None


def test_an_earlier_report_without_a_measure_has_no_difference_in_it() -> None:
    def clips(**ours: float) -> tuple[ClipResult, ...]:
        scores = {"ours": {"yaw": 0.5, **ours}, "real pictures": {}}
        return tuple(ClipResult(Pair(name, "x").name, "", "", "", 2, 0, 0, scores) for name in "ab")

    methods = ("ours", "real pictures")
    measures = (Measure("yaw", "yaw", True, 2, "d"), Measure("lip_gap", "lip gap", None, 2, "d"))
    other = CrossReport("t", {"weights": "old, v"}, methods, measures[:1], clips())
    report = CrossReport("t", {}, methods, measures, clips(lip_gap=0.8), other=other)
    assert report.difference("yaw").mean == 0.0
    assert math.isnan(report.difference("lip_gap").mean)
    assert report.summary_table().splitlines()[-1].endswith("| – |")
    assert json.loads(report.to_json())["against"]["lip_gap"]["mean"] is None
    assert "lip gap" in page(report, {}, previous=other)
