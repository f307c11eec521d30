"""The table of an ablation."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from export3d.ablation.rows import PAPER, ROWS
from export3d.ablation.table import Ablation, Column, RowResult

NAN = math.nan
PSNR = Column("same", "psnr", "PSNR (dB) ↑", 2, "of the difference")
LEAK = Column("cross", "leak_dlib", "leak dlib ↓", 3, "cosine")
HIDDEN = Column("same", "flicker_face", "flicker", 2, "restlessness")


def result(name: Any, psnr: list[float], leak: list[float], note: str = "") -> RowResult:
    values = {
        PSNR.key: {f"clip{i}": value for i, value in enumerate(psnr)},
        LEAK.key: {f"pair{i}": value for i, value in enumerate(leak)},
        HIDDEN.key: {"clip0": 1.0},
    }
    return RowResult(name, 3000, 20.0, 1_234_567, 1_000_000, 21.5, values, note)


def compared() -> Ablation:
    rows = (
        result("direct_3dmm", [20.0, 30.0, 25.0], [0.5, 0.7, NAN]),
        result("e2e_lebs_n5", [19.0, 31.0, 25.0], [NAN] * 3, "no face came out"),
        result("clebs", [22.0, 32.0, 27.0], [0.4, 0.6, 0.5]),
    )
    reference = {PSNR.key: {f"clip{i}": 18.0 for i in range(3)}, LEAK.key: {f"pair{i}": 0.8 for i in range(3)}}
    return Ablation({"max_images": 3000}, (PSNR, HIDDEN, LEAK), rows, reference, ("anna (somewhere, open)",))


def line(text: str, name: str) -> list[str]:
    """The cells of the first row of a Markdown table that begins with a name."""
    found = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_the_table_has_a_row_a_variant_with_means_and_intervals_over_cases() -> None:
    found = compared()
    text = found.table()
    assert line(text, "variant") == ["variant", "same: PSNR (dB) ↑", "cross: leak dlib ↓"]
    direct = line(text, "Direct 3DMM")
    assert direct[1].startswith("25.00 [20.00, 30.00]")
    assert direct[2] == "0.600 [0.500, 0.700] (of 2)"  # and says over how many
    assert line(text, "E2E LeBS (n = 5)")[2] == "–"
    assert line(text, "Full (CLeBS)")[1].startswith("27.00")
    assert line(text, "*no model*")[1:] == ["18.00 [18.00, 18.00]", "0.800 [0.800, 0.800]"]


def test_differences_are_paired_and_clear_ones_are_bold() -> None:
    found = compared()
    text = found.difference_table()
    direct = line(text, "Direct 3DMM")
    assert direct[1] == "**-2.00 [-2.00, -2.00]**"  # the clips differ by ten, the rows by two on every one
    assert direct[2] == "**+0.100 [+0.100, +0.100]**"
    assert line(text, "E2E LeBS (n = 5)")[1].startswith("**-2.00 [-3.00")
    assert line(text, "E2E LeBS (n = 5)")[2] == "–"
    assert "Full (CLeBS)" not in text
    unclear = replace(found, rows=(result("direct_3dmm", [22.5, 31.5, 27.0], [0.4] * 3), found.rows[-1]))
    assert not line(unclear.difference_table(), "Direct 3DMM")[1].startswith("**")


def test_the_page_has_the_budget_the_papers_figures_and_the_caveats() -> None:
    text = compared().markdown()
    assert line(text[text.index("## Budget") :], "Direct 3DMM") == [
        "Direct 3DMM", "direct_3dmm", "3,000", "20", "1,234,567", "1,000,000", "21.50",
    ]  # fmt: skip
    paper = text[text.index("## The paper's Table 3") :]
    assert line(paper, "Full (CLeBS)")[1:] == [
        "23.555", "0.704", "3.453", "0.811", "0.082", "0.030", "0.694", "0.208", "0.080",
    ]  # fmt: skip
    assert line(paper, "Direct 3DMM")[1] == "23.077"
    assert "E2E LeBS (n = 25)" not in paper  # only the rows that were run
    assert "Not to be ranked" in paper
    assert "E2E LeBS (n = 5): no face came out" in text
    assert "- max images: 3000" in text
    assert "1. anna (somewhere, open)" in text


def test_the_papers_rows_are_named_in_its_order() -> None:
    assert list(PAPER) == list(ROWS)
    assert PAPER["e2e_lebs_n25"] == "E2E LeBS (n = 25)"
    assert PAPER["clebs"] == "Full (CLeBS)"


def test_the_json_is_strict_and_has_what_the_tables_leave_out() -> None:
    found = json.loads(compared().to_json(), parse_constant=lambda name: pytest.fail(name))
    assert found["compared_with"] == "clebs"
    direct = found["rows"][0]
    assert direct["mean"]["same psnr"]["mean"] == 25.0
    assert direct["difference"]["cross leak_dlib"]["mean"] == pytest.approx(0.1)
    assert direct["values"]["cross leak_dlib"]["pair2"] is None
    assert "same flicker_face" in direct["mean"]
    assert found["paper"]["Full (CLeBS)"]["same identity PSNR"] == 23.555


def test_one_row_alone_has_nothing_to_be_compared_with() -> None:
    alone = replace(compared(), rows=compared().rows[-1:])
    assert "case by case" not in alone.markdown()
    assert alone.difference(alone.rows[0], PSNR).mean == 0.0
