"""Markdown tables and number formats."""

from __future__ import annotations

import pytest

from export3d.evaluation.measures.image import PSNR, Measure
from export3d.evaluation.reports.clips import ClipResult
from export3d.evaluation.reports.report import Report
from export3d.evaluation.reports.tables import number

LPIPS = Measure("lpips", "LPIPS", False, 4, "a distance")
CSIM = Measure("csim_x", "CSIM x", True, 3, "a cosine")
FLICKER = Measure("flicker_face", "flicker", None, 2, "1 is ideal")


def scored(key: str, **methods: dict[str, float]) -> ClipResult:
    return ClipResult(key, "", "", "", 10, None, 0, methods)


@pytest.fixture
def referenced() -> Report:
    """Two moving clips and every reference; ours between on PSNR, behind on LPIPS, beyond the oracle on CSIM."""

    def psnr_lpips_csim(psnr: float, lpips: float, csim: float) -> dict[str, float]:
        return {"psnr": psnr, "lpips": lpips, "csim_x": csim, "flicker_face": 1.2}

    clips = tuple(
        scored(
            key,
            ours=psnr_lpips_csim(20.0 + i, 0.30, 0.95),
            copy=psnr_lpips_csim(15.0, 0.35, 0.90),
            warp=psnr_lpips_csim(18.0, 0.20, 0.80),
            mesh=psnr_lpips_csim(17.0, 0.40, 0.70),
            oracle=psnr_lpips_csim(24.0 + i, 0.10, 0.93),
        )
        for i, key in enumerate("ab")
    )
    return Report("T", {}, ("ours", "copy", "warp", "mesh", "oracle"), (PSNR, LPIPS, CSIM, FLICKER), clips)


def test_titles_say_which_way_is_good(referenced: Report) -> None:
    head = referenced.summary_table().splitlines()[0]
    assert "PSNR (dB) ↑" in head
    assert "LPIPS ↓" in head
    assert "| flicker |" in head


def test_zero_has_no_minus() -> None:
    assert number(-0.004, 2) == "0.00"
    assert number(-0.004, 2, "+") == "+0.00"
