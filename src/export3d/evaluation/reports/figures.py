"""Contact sheets of an evaluation: source, driving frame, ours.

The choice does not depend on the results: the people whose clips move most, and of each clip the driven frame farthest
from its source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export3d.errors import ShapeError

Picture = NDArray[np.uint8]

PEOPLE = 8
COLUMNS = ("source", "driving", "ours")
_PEOPLE_IN_A_ROW = 2
_ATTRIBUTED = ("talk-vid", "talkvid")
"""Sources with non-commercial terms whose images may be shown with attribution."""


@dataclass(frozen=True)
class Case:
    """One person's three images, uint8 (R, R, 3), and their origin.

    Attributes:
        movement: of the clip; the greatest are shown first.
        frame: number of the driving frame in the clip.
    """

    clip: str
    person: str
    terms: str
    origin: str
    movement: float
    frame: int
    source: Picture
    driving: Picture
    ours: Picture

    @property
    def credit(self) -> dict[str, str]:
        """The content of a caption."""
        return {"clip": self.clip, "person": self.person, "terms": self.terms, "source": self.origin,
                "frame": str(self.frame)}  # fmt: skip


def publishable(terms: str, origin: str) -> bool:
    """Whether images of a clip may be published: open terms, or TalkVid, which requires attribution.

    >>> publishable("open", "anywhere"), publishable("unstated", "anywhere")
    (True, False)
    >>> publishable("non-commercial", "FreedomIntelligence/talk-vid"), publishable("non-commercial", "CelebA-HQ")
    (True, False)
    """
    return terms == "open" or (terms == "non-commercial" and any(name in origin.lower() for name in _ATTRIBUTED))


class Gallery:
    """Keeps the cases that a contact sheet will show; memory does not grow with the number of clips.

    Args:
        people: most people on the sheet.
        publishable_only: refuse cases that may not be published.
    """

    def __init__(self, people: int = PEOPLE, publishable_only: bool = True) -> None:
        self._people, self._publishable_only = people, publishable_only
        self._best: dict[str, Case] = {}

    def offer(self, case: Case) -> bool:
        """Keep the case if it is among those to show so far, one per person; returns whether it was kept."""
        if self._publishable_only and not publishable(case.terms, case.origin):
            return False
        rival = self._best.get(case.person)
        if rival is not None and rival.movement >= case.movement:
            return False
        self._best[case.person] = case
        if len(self._best) > self._people:
            del self._best[min(self._best, key=lambda person: self._best[person].movement)]
        return case.person in self._best

    @property
    def cases(self) -> list[Case]:
        """The kept cases, the greatest movement first."""
        return sorted(self._best.values(), key=lambda case: (-case.movement, case.clip))


def sheet_rows(cases: Sequence[Case]) -> tuple[list[list[Picture]], list[str]]:
    """Rows of images, two people per row, and a heading per row, for `export3d.image.contact_sheet`.

    Raises:
        ShapeError: there are no cases.
    """
    if not cases:
        raise ShapeError("a contact sheet needs at least one case")
    rows, headings = [], []
    for i in range(0, len(cases), _PEOPLE_IN_A_ROW):
        part = cases[i : i + _PEOPLE_IN_A_ROW]
        rows.append([picture for case in part for picture in (case.source, case.driving, case.ours)])
        people = "; ".join(f"{case.clip} ({case.origin}, {case.terms})" for case in part)
        headings.append(f"{', '.join(COLUMNS)} of {people}")
    return rows, headings
