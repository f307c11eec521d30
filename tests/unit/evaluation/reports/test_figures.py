"""Who is shown on a contact sheet."""

from __future__ import annotations

import numpy as np
import pytest

from export3d.errors import ShapeError
from export3d.evaluation.reports.figures import Case, Gallery, sheet_rows
from export3d.image import contact_sheet


def case(person: str, movement: float, terms: str = "open", origin: str = "") -> Case:
    picture = np.zeros((8, 8, 3), np.uint8)
    return Case(f"{person}_01", person, terms, origin, movement, 3, picture, picture + 1, picture + 2)


def test_only_people_who_may_be_shown_are_shown() -> None:
    gallery = Gallery()
    assert gallery.offer(case("a", 1.0))
    assert gallery.offer(case("b", 2.0, "non-commercial", "FreedomIntelligence/talk-vid"))
    assert not gallery.offer(case("c", 3.0, "non-commercial", "filby89/spectre"))
    assert not gallery.offer(case("d", 4.0, "unstated"))
    assert not gallery.offer(case("e", 5.0, ""))
    assert [c.person for c in gallery.cases] == ["b", "a"]


def test_a_private_sheet_shows_anyone() -> None:
    gallery = Gallery(publishable_only=False)
    assert gallery.offer(case("d", 4.0, "unstated"))


def test_the_people_who_move_most_are_kept_whatever_the_order(rng: np.random.Generator) -> None:
    movements = rng.permutation(20)
    gallery = Gallery(people=8)
    for movement in movements:
        gallery.offer(case(f"p{movement}", float(movement)))
    assert [c.movement for c in gallery.cases] == [19, 18, 17, 16, 15, 14, 13, 12]


def test_a_person_is_shown_once_with_the_clip_that_moves_more() -> None:
    gallery = Gallery()
    assert gallery.offer(case("a", 1.0))
    assert gallery.offer(case("a", 3.0))
    assert not gallery.offer(case("a", 2.0))
    assert [c.movement for c in gallery.cases] == [3.0]


@pytest.mark.parametrize(("people", "lengths"), [(1, [3]), (2, [6]), (5, [6, 6, 3]), (8, [6, 6, 6, 6])])
def test_two_people_stand_in_a_row(people: int, lengths: list[int]) -> None:
    rows, labels = sheet_rows([case(str(i), i, origin="a/b") for i in range(people)])
    assert [len(row) for row in rows] == lengths
    assert labels[0].startswith("source, driving, ours of 0_01 (a/b, open)")
    assert len(labels) == len(rows)
    assert [picture[0, 0, 0] for picture in rows[0][:3]] == [0, 1, 2]
    assert contact_sheet(rows, labels).ndim == 3


def test_an_empty_sheet_is_refused() -> None:
    with pytest.raises(ShapeError):
        sheet_rows([])
