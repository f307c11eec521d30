"""The register of consent: who agreed to be animated, as names, notes and face descriptors; it holds no photos.

One JSON file, `consent.json` in the user's folder (`files.home`), readable by its owner only. Writers hold a lock
while they read, change and replace it, so none of their entries is lost, and a killed writer leaves the file as it was.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export3d.errors import ConfigError, InputError, OutputError
from export3d.files import check_input, home, kind_at, locked, make_folder, reading, replacing

VERSION = 1
LONGEST_NAME, LONGEST_NOTE = 200, 2000
"""Characters."""
_LARGEST = 256_000_000
"""Bytes of a register that is read; an entry takes about 1,000."""
_SAME_PHOTO = 0.9999
"""Similarity from which two descriptors of one name are of one photo, added twice."""
_ID = re.compile("[0-9a-f]{8}")
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of characters that only change how others are shown."""
_JOINERS = {"\u200c", "\u200d", *map(chr, range(0xE0020, 0xE0080))}
"""Those of them that scripts and emoji need."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One photo of a person who agreed to be animated.

    Attributes:
        id: 8 hexadecimal digits.
        name: of the person; several photos of one person have the same name.
        note: what was agreed, where it is written.
        added: day of the entry, UTC.
        expires: the last day on which it counts, UTC; None: it does not end.
        network: `descriptor.NETWORK` of the release that made the descriptor.
        descriptor: float32 (D,), a unit vector.
    """

    id: str
    name: str
    note: str
    added: date
    expires: date | None
    network: str
    descriptor: NDArray[np.float32] = field(compare=False)

    @property
    def expired(self) -> bool:
        """Whether its last day has passed."""
        return self.expires is not None and self.expires < today()


class Register:
    """The register at a path, by default the user's; a file that is not there is a register without entries.

    Args:
        path: of the JSON file.

    Raises:
        ConfigError: there is no path and no home folder.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = home() / "consent.json" if path is None else path

    @property
    def state(self) -> tuple[int, ...]:
        """What changes whenever the file does; empty where it cannot be found."""
        with suppress(OSError):
            found = self.path.stat()
            return found.st_ino, found.st_mtime_ns, found.st_size
        return ()

    def entries(self) -> list[Entry]:
        """All entries, oldest first, expired ones too.

        Raises:
            InputError: the file cannot be read or is damaged.
        """
        if kind_at(self.path) is None and not self.path.is_symlink():  # a broken link is a register that is lost
            return []
        check_input(self.path, InputError, "the register of consent")
        with reading(self.path):
            if self.path.stat().st_size > _LARGEST:
                raise self._damaged("it is too large")
            data = self.path.read_bytes()
        try:
            content = json.loads(data)
            version = content["version"]
            if isinstance(version, int) and version > VERSION:
                raise InputError(f"the register of consent {self.path} was written by a newer release; update export3d")
            if version != VERSION or version is True or set(content) != {"version", "entries"}:
                raise ValueError("another version or other keys")
            if not isinstance(content["entries"], list):
                raise ValueError("no list")
            found = [_entry(item) for item in content["entries"]]
            if len({one.id for one in found}) < len(found):
                raise ValueError("two entries have one id")
        except InputError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as problem:
            raise self._damaged("it is not what export3d wrote") from problem
        return found

    def add(
        self, descriptor: NDArray[np.float32], network: str, name: str, note: str = "", expires: date | None = None
    ) -> Entry:
        """Add one photo of a person; an entry of this name with the same photo is replaced and keeps its id.

        Args:
            descriptor, network: see `Entry`.
            name: at most 200 characters on one line.
            note: at most 2,000 characters.
            expires: the last day on which it counts, today or later.

        Raises:
            ConfigError: a name, note or date that cannot be.
            InputError: the register is damaged; it stays as it is.
            OutputError: it cannot be written, or would be larger than what `entries` reads; it stays as it is.
        """
        name, note = checked_text(name, "name", LONGEST_NAME), checked_text(note, "note", LONGEST_NOTE)
        if not name:
            raise ConfigError("the name is empty; give the person's name with --name")
        if expires is not None and expires < today():
            raise ConfigError(f"the consent would have expired already, on {expires}; give a later day")
        make_folder(self.path.parent)
        with locked(self.path):
            before = self.entries()
            taken, number = {one.id for one in before}, secrets.token_hex(4)
            while number in taken:
                number = secrets.token_hex(4)
            vector = np.asarray(descriptor, np.float32)
            same = [one.id for one in before if one.name == name and _same_photo(one, vector, network)]
            entry = Entry(
                id=same[0] if same else number,
                name=name,
                note=note,
                added=today(),
                expires=expires,
                network=network,
                descriptor=vector,
            )
            self._write([*(one for one in before if one.id not in same), entry])
        return entry

    def remove(self, which: str) -> list[Entry]:
        """Remove the entry with an id, or all entries of a name; returns them.

        Raises:
            ConfigError: there is none.  InputError, OutputError: as in `add`.
        """
        which = unicodedata.normalize("NFC", which.strip())
        if not self.entries():  # and no lock where nothing was ever written
            raise ConfigError(f"the register of consent {self.path} has no entries; there is no {which!r} to remove")
        with locked(self.path):
            before = self.entries()
            gone = [one for one in before if one.id == which] or [one for one in before if one.name == which]
            if not gone:
                raise ConfigError(f"nobody in the register has the name or id {which!r}; see export3d consent list")
            ids = {one.id for one in gone}
            self._write([one for one in before if one.id not in ids])
        return gone

    def _write(self, entries: Sequence[Entry]) -> None:
        """Replace the file; only while it is locked."""
        path = self.path.resolve()
        for left in path.parent.glob(f".{path.stem}.*{path.suffix}"):  # of a writer that was killed
            left.unlink(missing_ok=True)
        content = {"version": VERSION, "entries": [_item(entry) for entry in entries]}
        data = (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()
        if len(data) > _LARGEST:
            raise OutputError(
                f"the register of consent {self.path} is full: it would be larger than {_LARGEST / 1e6:.0f} MB; remove "
                "entries that have expired"
            )
        with replacing(self.path, 0o600) as temporary:
            temporary.write_bytes(data)

    def _damaged(self, why: str) -> InputError:
        return InputError(
            f"the register of consent {self.path} is damaged: {why}; put back a copy, or move the file away and add "
            "the photos again"
        )


def today() -> date:
    """The day, UTC."""
    return datetime.now(UTC).date()


def checked_text(text: str, what: str, longest: int) -> str:
    """A name or note without spaces around it, in Unicode's composed form.

    Raises:
        ConfigError: it is too long, or has control or invisible characters, which could disguise it in a terminal.
    """
    text = unicodedata.normalize("NFC", text.strip())
    if len(text) > longest:
        raise ConfigError(f"the {what} has {len(text):,} characters; give at most {longest:,}")
    odd = next((c for c in text if unicodedata.category(c) in _UNSEEN and c not in _JOINERS), None)
    if odd is not None:
        raise ConfigError(f"the {what} contains the control character U+{ord(odd):04X}; give plain text on one line")
    return text


def parsed_date(text: str) -> date:
    """A day as YYYY-MM-DD; raises `ConfigError`.

    >>> parsed_date("2031-12-31")
    datetime.date(2031, 12, 31)
    """
    with suppress(ValueError):
        if str(day := date.fromisoformat(text)) == text:
            return day
    raise ConfigError(f"{text!r} is not a day; write YYYY-MM-DD, such as 2031-12-31")


def _same_photo(entry: Entry, vector: NDArray[np.float32], network: str) -> bool:
    if entry.network != network or entry.descriptor.shape != vector.shape:
        return False
    return float(entry.descriptor @ vector) >= _SAME_PHOTO


def _item(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "name": entry.name,
        "note": entry.note,
        "added": entry.added.isoformat(),
        "expires": None if entry.expires is None else entry.expires.isoformat(),
        "network": entry.network,
        "descriptor": base64.b64encode(entry.descriptor.astype("<f4").tobytes()).decode(),
    }


def _entry(item: dict[str, Any]) -> Entry:
    """An entry of the file; raises `ValueError`, `TypeError`, `KeyError` or `AttributeError` if it is none."""
    if set(item) != {"id", "name", "note", "added", "expires", "network", "descriptor"}:
        raise ValueError("other keys")
    if any(not isinstance(value, str) for key, value in item.items() if key != "expires"):
        raise ValueError("no text")
    if not _ID.fullmatch(item["id"]) or not item["name"]:
        raise ValueError("no id or no name")
    for key, longest in (("name", LONGEST_NAME), ("note", LONGEST_NOTE)):  # nothing that could disguise a listing
        if checked_text(item[key], key, longest) != item[key]:
            raise ValueError("a text that add does not write")
    vector = np.frombuffer(base64.b64decode(item["descriptor"], validate=True), dtype="<f4").astype(np.float32)
    if not abs(float(np.linalg.norm(vector)) - 1.0) < 1e-3:  # NaN too
        raise ValueError("no unit vector")
    return Entry(
        id=item["id"],
        name=item["name"],
        note=item["note"],
        added=date.fromisoformat(item["added"]),
        expires=None if item["expires"] is None else date.fromisoformat(item["expires"]),
        network=item["network"],
        descriptor=vector,
    )
