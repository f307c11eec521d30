"""Which records are animated by which clips in the cross-identity protocol: by rule or from a file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from export3d.data.shards import Index
from export3d.errors import InputError
from export3d.evaluation.reports.cross import Pair
from export3d.files import check_input

_DRIVEN_BY_EACH = 2


def choose_pairs(index: Index) -> tuple[Pair, ...]:
    """The pairs of a split by rule: in the order of names, each person's first clip drives the next two people.

    "First" is by key. People without a clip only serve as sources. The last people drive the first ones.
    """
    people: dict[str, list[str]] = {}
    for entry in sorted(index.entries, key=lambda entry: (entry.person, entry.key)):
        people.setdefault(entry.person, []).append(entry.key)
    videos = {entry.key for entry in index.entries if entry.kind == "video"}
    names = list(people)
    pairs = []
    for i, person in enumerate(names):
        clip = next((key for key in people[person] if key in videos), None)
        others = [names[(i + step) % len(names)] for step in range(1, _DRIVEN_BY_EACH + 1)]
        if clip is not None:
            pairs += [Pair(people[other][0], clip) for other in dict.fromkeys(others) if other != person]
    return tuple(pairs)


def read_pairs(path: Path | str) -> tuple[Pair, ...]:
    """Pairs from a CSV file with the columns `source` and `driver`; lines that begin with # are comments.

    Raises:
        InputError: no such file, other columns, an empty field or no pair.
    """
    path = check_input(path, InputError, "a list of pairs")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text; give a CSV file with the columns source and driver") from error
    rows = list(csv.DictReader(line for line in lines if line.strip() and not line.startswith("#")))
    if not rows or not {"source", "driver"} <= set(rows[0]):
        raise InputError(f"{path} holds no pairs; give a CSV file with the columns source and driver")
    pairs = [Pair(row["source"] or "", row["driver"] or "") for row in rows]
    if not all(pair.source and pair.driver for pair in pairs) or len(set(pairs)) != len(pairs):
        raise InputError(f"{path} has an incomplete or repeated pair; correct it")
    return tuple(pairs)


def check_pairs(pairs: Sequence[Pair], index: Index) -> None:
    """Refuse pairs that the split cannot serve.

    Raises:
        InputError: no pair, an unknown record, a still driver, or one person as source and driver.
    """
    entries = {entry.key: entry for entry in index.entries}
    for pair in pairs:
        missing = [key for key in (pair.source, pair.driver) if key not in entries]
        if missing:
            raise InputError(
                f"the pair {pair.name} names {missing[0]}, which the split does not hold; name records of this split"
            )
        if entries[pair.driver].kind != "video":
            raise InputError(f"the pair {pair.name} is driven by a still image; name a clip as driver")
        if entries[pair.driver].person == entries[pair.source].person:
            raise InputError(f"the pair {pair.name} has one and the same person twice; name two people")
    if not pairs:
        raise InputError("the split holds no clip that could drive another person; prepare more clips")
