"""A report with every reference."""

from __future__ import annotations

import pytest

from export3d.evaluation.measures.image import PSNR
from export3d.evaluation.reports.report import Report
from tests.made_up_scores import CSIM, FLICKER, LPIPS, scored


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
