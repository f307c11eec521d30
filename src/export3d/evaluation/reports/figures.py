"""Contact sheets of an evaluation: source, driving frame, ours.

Which clips and frames are shown does not depend on how well they came out: the people whose clips move most, and of
each clip the driven frame that lies farthest from its source.
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
"""Sources of non-commercial terms whose pictures may be shown with attribution."""


@dataclass(frozen=True)
class Case:
    """One person's three pictures, uint8 (R, R, 3), and where they come from.

    Attributes:
        movement: how far the clip is from standing still; the greatest are shown first.
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
        """What a caption has to say."""
        return {"clip": self.clip, "person": self.person, "terms": self.terms, "source": self.origin,
                "frame": str(self.frame)}  # fmt: skip


def publishable(terms: str, origin: str) -> bool:
    """Whether pictures of a clip may be published: open terms, or TalkVid, which asks for attribution.

    >>> publishable("open", "anywhere"), publishable("unstated", "anywhere")
    (True, False)
    >>> publishable("non-commercial", "FreedomIntelligence/talk-vid"), publishable("non-commercial", "CelebA-HQ")
    (True, False)
    """
    return terms == "open" or (terms == "non-commercial" and any(name in origin.lower() for name in _ATTRIBUTED))


class Gallery:
    """Keeps the cases that a contact sheet will show, so that memory does not grow with the number of clips.

    Args:
        people: how many.
        publishable_only: refuse whoever may not be shown in public.
    """

    def __init__(self, people: int = PEOPLE, publishable_only: bool = True) -> None:
        self._people, self._publishable_only = people, publishable_only
        self._best: dict[str, Case] = {}

    def offer(self, case: Case) -> bool:
        """Keep the case if it is among those to be shown so far; one for each person."""
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
        """What is kept, the greatest movement first."""
        return sorted(self._best.values(), key=lambda case: (-case.movement, case.clip))


def sheet_rows(cases: Sequence[Case]) -> tuple[list[list[Picture]], list[str]]:
    """Rows of pictures, two people a row, and a heading for each row, as `export3d.image.contact_sheet` takes them.

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
