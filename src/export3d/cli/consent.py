"""`export3d consent`: keeps the register of people who agreed to be animated, and checks photos against it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from export3d.cli.terminal import tell
from export3d.errors import InputError, counted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from export3d.consent.register import Entry


def add(
    photo: tyro.conf.Positional[Path], *, name: str, note: str = "", expires: str | None = None, face: str = "only"
) -> int:
    """Add a photo of a person who agreed to be animated; the register keeps a face descriptor, not the photo.

    A person with several photos, added under one name, is recognised more often.

    Args:
        photo: an image with the person's face, upright, frontal and in even light.
        name: of the person.
        note: what was agreed, how and when, such as "signed form of 2026-03-01".
        expires: the last day of the consent (UTC), YYYY-MM-DD; by default it does not end.
        face: of several: largest, left, right, or a number counted from the left.
    """
    from export3d.consent.register import LONGEST_NAME, LONGEST_NOTE, Register, checked_text, parsed_date

    until = None if expires is None else parsed_date(expires)
    name, note = checked_text(name, "name", LONGEST_NAME), checked_text(note, "note", LONGEST_NOTE)
    register = Register()
    register.entries()

    from export3d.consent import descriptor
    from export3d.consent.check import THRESHOLD, nearest

    vector = _describe(photo, face)
    before = register.entries()
    own, other = (nearest(vector, [one for one in before if (one.name == name) is same]) for same in (True, False))
    entry = register.add(vector, descriptor.network(), name, note, until)
    all_own = [one for one in register.entries() if one.name == name]
    place = f"{name} as {entry.id} to {register.path} ({counted(len(all_own), 'photo')})"
    replaced = any(one.id == entry.id for one in before)
    tell(f"added {place}; replaced the entry of the same photo" if replaced else f"added {place}")
    if own is not None and not own.same_person:
        tell(
            f"this photo does not resemble the others of {name} (similarity {own.similarity:.3f}, threshold "
            f"{THRESHOLD:.3f}); if it shows somebody else: export3d consent remove {entry.id}"
        )
    if other is not None and other.same_person:
        tell(
            f"warning: this face matches {other.entry.name} (similarity {other.similarity:.3f}), who is registered "
            f"under another name: if they are one person, remove {entry.id} and add the photo as {other.entry.name}, "
            "so that removing the name revokes the whole consent"
        )
    longer = [
        one for one in all_own if one.network == entry.network and (one.expires or date.max) > (until or date.max)
    ]
    if longer:
        ends = ", ".join(f"{one.id} ({f'until {one.expires}' if one.expires else 'no end'})" for one in longer)
        tell(
            f"{name} has other photos that count longer: {ends}; to end these too, remove them or add them again with "
            "--expires"
        )
    return 0


def list_(*, as_json: Annotated[bool, tyro.conf.arg(name="json")] = False) -> int:
    """List the people who agreed to be animated: one line per photo.

    Args:
        as_json: print JSON.
    """
    from export3d.consent.register import Register

    register = Register()
    entries = register.entries()
    if as_json:
        print(json.dumps([_facts(entry) for entry in entries], indent=1))
        return 0
    count = Counter(entry.name for entry in entries)
    rows = [("id", "name", "photos", "added", "expires", "note")]
    for entry in sorted(entries, key=lambda entry: (entry.name, entry.added)):
        end = "" if entry.expires is None else f"{entry.expires}{' (expired)' if entry.expired else ''}"
        rows.append((entry.id, entry.name, str(count[entry.name]), str(entry.added), end, entry.note))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows if entries else []:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    tell(f"{counted(len(count), 'person', 'people')}, {counted(len(entries), 'photo')} in {register.path}")
    return 0


def remove(who: tyro.conf.Positional[str]) -> int:
    """Remove a person, or one photo of a person, from the register.

    Args:
        who: a name, for all photos of that person, or the id of one photo.
    """
    from export3d.consent.register import Register

    register = Register()
    gone = register.remove(who)
    tell(f"removed {gone[0].name} ({counted(len(gone), 'photo')}) from {register.path}")
    if others := [one for one in register.entries() if one.name != gone[0].name]:
        from export3d.consent.check import names_matching

        if names := names_matching(gone, others):
            tell(f"warning: this face is still allowed, because photos under other names match it: {', '.join(names)}")
    return 0


def check(photo: tyro.conf.Positional[Path], *, face: str = "largest") -> int:
    """Tell whom of the people who agreed a photo shows; exit code 3 if nobody.

    Args:
        photo: an image with a face.
        face: of several: largest, left, right, or a number counted from the left.
    """
    from export3d.consent.register import Register

    entries = Register().entries()

    from export3d.consent.check import THRESHOLD, closeness, nearest
    from export3d.consent.descriptor import network

    vector = _describe(photo, face)
    match = nearest(vector, [entry for entry in entries if not entry.expired])
    if match is not None and match.same_person:
        print(f"{photo}: {match.entry.name} (similarity {match.similarity:.3f}, threshold {THRESHOLD:.3f})")
        return 0
    print(f"{photo}: nobody in the register ({closeness(match)})")
    if other := sum(entry.network != network() for entry in entries):
        again = "add it again" if other == 1 else "add them again"
        tell(f"cannot compare {counted(other, 'photo')} of the register, added by another release; {again}")
    old = nearest(vector, [entry for entry in entries if entry.expired])
    if old is not None and old.same_person:
        tell(f"the consent of {old.entry.name} expired on {old.entry.expires}")
    return 3


def subcommand_for(argv: Sequence[str]) -> str:
    """The subcommand that options without one belong to."""
    words = {word.partition("=")[0] for word in argv}
    return "add" if words & {"--name", "--note", "--expires"} else "list" if not argv or "--json" in words else "check"


def _describe(photo: Path, face: str) -> NDArray:
    """The descriptor of a face of a photo; "only" refuses a photo with several."""
    from export3d.consent.descriptor import describe
    from export3d.face.tracker import Tracker, face_choice
    from export3d.image import read_image

    if face != "only":
        face_choice(face, one=True)
    image = read_image(photo)
    with Tracker() as tracker:
        if face != "only":
            return describe(image, tracker.track_image(image, str(photo), face))
        tracks = tracker.track_faces(image, str(photo))
    if len(tracks) > 1:
        raise InputError(
            f"{photo} shows {len(tracks)} faces; choose one with --face left, right, largest, or a number counted from "
            "the left"
        )
    return describe(image, tracks[0])


def _facts(entry: Entry) -> dict[str, str | bool | None]:
    return {
        "id": entry.id,
        "name": entry.name,
        "note": entry.note,
        "added": str(entry.added),
        "expires": None if entry.expires is None else str(entry.expires),
        "expired": entry.expired,
    }
