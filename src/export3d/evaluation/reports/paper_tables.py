"""The paper's figures (Tables 1 to 3), to show beside ours.

They were measured on other clips (50 of VFHQ, 20 of TalkingHead-1KH), with other crops, another face tracker
(Deep3DFaceRecon) and another identity network. They show orders of magnitude and rank nothing here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from export3d.evaluation.measures.image import Measure

SAME, CROSS = "same identity", "cross identity"
CAVEAT = (
    "Not to be ranked against ours: the paper measured on other clips, cropped otherwise, with another face tracker "
    "(AED, APD), other landmarks (AKD) and another identity network (CSIM)."
)


@dataclass(frozen=True)
class Column:
    """A column of the paper's tables.

    Attributes:
        setting: `SAME` or `CROSS`.
        title: as printed, without its arrow.
        higher_is_better: the better direction.
        ours: equivalent measures of a report, in order of preference; a trailing `*` stands for any ending.
    """

    setting: str
    title: str
    higher_is_better: bool
    ours: tuple[str, ...]


@dataclass(frozen=True)
class PaperTable:
    """One table.

    Attributes:
        title: its number and data.
        rows: method to its figures, in the order of `COLUMNS`; † marks methods scored on the foreground face only.
    """

    title: str
    rows: dict[str, tuple[float, ...]]

    def best(self) -> tuple[float, ...]:
        """The best figure of each column."""
        return tuple(
            (max if column.higher_is_better else min)(values)
            for column, values in zip(COLUMNS, zip(*self.rows.values()))
        )


COLUMNS = (
    Column(SAME, "PSNR", True, ("psnr",)),
    Column(SAME, "SSIM", True, ("ssim",)),
    Column(SAME, "AKD", False, ("akd",)),
    Column(SAME, "CSIM", True, ("csim_*",)),
    Column(SAME, "AED", False, ("aed",)),
    Column(SAME, "APD", False, ("apd6",)),
    Column(CROSS, "CSIM", True, ("csim_*",)),
    Column(CROSS, "AED", False, ("aed",)),
    Column(CROSS, "APD", False, ("apd6",)),
)

TABLES = (
    PaperTable(
        "Table 1: VFHQ",
        {
            "StyleHEAT": (14.233, 0.428, 30.406, 0.464, 0.161, 0.139, 0.505, 0.242, 0.136),
            "DPE": (23.241, 0.750, 3.661, 0.831, 0.083, 0.032, 0.586, 0.253, 0.085),
            "ROME†": (14.185, 0.642, 7.281, 0.737, 0.111, 0.051, 0.641, 0.224, 0.074),
            "OTAvatar†": (17.441, 0.651, 11.502, 0.662, 0.176, 0.067, 0.610, 0.290, 0.198),
            "HiDe-NeRF†": (21.228, 0.728, 8.245, 0.867, 0.106, 0.049, 0.707, 0.255, 0.065),
            "Export3D (paper)": (23.555, 0.704, 3.453, 0.811, 0.082, 0.030, 0.694, 0.208, 0.080),
        },
    ),
    PaperTable(
        "Table 2: TalkingHead-1KH",
        {
            "StyleHEAT": (15.613, 0.517, 21.198, 0.575, 0.148, 0.095, 0.571, 0.218, 0.102),
            "DPE": (23.201, 0.786, 4.281, 0.807, 0.093, 0.029, 0.714, 0.216, 0.081),
            "ROME†": (15.921, 0.695, 13.444, 0.726, 0.123, 0.062, 0.667, 0.201, 0.084),
            "OTAvatar†": (16.952, 0.660, 11.615, 0.668, 0.181, 0.063, 0.682, 0.247, 0.150),
            "HiDe-NeRF†": (19.759, 0.729, 5.746, 0.843, 0.112, 0.043, 0.757, 0.232, 0.085),
            "Export3D (paper)": (23.239, 0.797, 3.581, 0.764, 0.092, 0.033, 0.772, 0.204, 0.076),
        },
    ),
    PaperTable(
        "Table 3: expression encoding, ablation on VFHQ",
        {
            "Direct 3DMM": (23.077, 0.688, 3.874, 0.789, 0.105, 0.044, 0.648, 0.209, 0.073),
            "E2E LeBS (n = 25)": (23.105, 0.672, 3.775, 0.745, 0.109, 0.040, 0.670, 0.218, 0.071),
            "E2E LeBS (n = 10)": (23.235, 0.676, 3.755, 0.751, 0.110, 0.038, 0.672, 0.238, 0.079),
            "E2E LeBS (n = 5)": (22.631, 0.646, 4.114, 0.658, 0.140, 0.046, 0.632, 0.246, 0.076),
            "Full (CLeBS)": (23.555, 0.704, 3.453, 0.811, 0.082, 0.030, 0.694, 0.208, 0.080),
        },
    ),
)


def setting_of(measures: Sequence[Measure]) -> str:
    """`SAME` if the measures compare with a true frame, else `CROSS`."""
    return SAME if any(measure.name == "psnr" for measure in measures) else CROSS


def ours_for(column: Column, measures: Sequence[Measure]) -> Measure | None:
    """The measure for a column of the paper; None if there is none, or if the column has the other setting."""
    if column.setting != setting_of(measures):
        return None
    for wanted in column.ours:
        for measure in measures:
            if measure.name == wanted or (wanted.endswith("*") and measure.name.startswith(wanted[:-1])):
                return measure
    return None
