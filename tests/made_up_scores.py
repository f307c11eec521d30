"""Measures and made-up scores of clips, for tests of reports."""

from __future__ import annotations

from export3d.evaluation.measures.image import Measure
from export3d.evaluation.reports.clips import ClipResult

LPIPS = Measure("lpips", "LPIPS", False, 4, "a distance")
CSIM = Measure("csim_x", "CSIM x", True, 3, "a cosine")
FLICKER = Measure("flicker_face", "flicker", None, 2, "1 is ideal")


def scored(key: str, **methods: dict[str, float]) -> ClipResult:
    return ClipResult(key, "", "", "", 10, None, 0, methods)
