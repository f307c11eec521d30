"""Markdown tables and number formats."""

from __future__ import annotations

from dataclasses import replace

from export3d.evaluation.reports.report import Report
from export3d.evaluation.reports.tables import number


def test_titles_say_which_way_is_good(referenced: Report) -> None:
    head = referenced.summary_table().splitlines()[0]
    assert "PSNR (dB) ↑" in head
    assert "LPIPS ↓" in head
    assert "| flicker |" in head


def test_zero_has_no_minus() -> None:
    assert number(-0.004, 2) == "0.00"
    assert number(-0.004, 2, "+") == "+0.00"


def test_settings_are_told_in_words(referenced: Report) -> None:
    """As the page has them, not as Python writes a dictionary."""
    settings = {"trained": {"stage": "refine", "hours": 3.5, "on": ["a", "b"]}, "last_step": None, "frozen": True}
    lines = replace(referenced, settings=settings).markdown().splitlines()
    assert "- trained: stage: refine; hours: 3.5; on: a; b" in lines
    assert "- last step: –" in lines
    assert "- frozen: yes" in lines
