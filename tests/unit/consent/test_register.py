"""The register of consent as a file: several writers, killed writers, damage, permissions, dates."""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest

from export3d.consent.register import LONGEST_NAME, Entry, Register, parsed_date, today
from export3d.errors import ConfigError, InputError, OutputError
from export3d.files import locked

VECTOR = np.full(128, 128**-0.5, np.float32)
WRITER = """
import sys
from pathlib import Path
import numpy as np
from export3d.consent.register import Register
register, vector = Register(Path(sys.argv[1])), np.full(128, 128**-0.5, np.float32)
for number in range(int(sys.argv[3])):
    register.add(vector, "network", f"{sys.argv[2]} {number}")
"""


@pytest.fixture
def register(tmp_path: Path) -> Register:
    return Register(tmp_path / "home" / "consent.json")


def writer(register: Register, name: str, count: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(register.path), name, str(count)])


def test_what_is_added_is_read_again(register: Register) -> None:
    assert register.entries() == []
    vector = np.random.default_rng(0).normal(size=128).astype(np.float32)
    vector /= np.linalg.norm(vector)
    made = register.add(vector, "network", " Ана\u0301 ", "signed form, folder 7", today())
    (read,) = register.entries()
    assert read == made
    assert np.array_equal(read.descriptor, vector)
    assert (read.name, read.note, read.added, read.expires) == ("Ана\u0301", "signed form, folder 7", today(), today())
    assert not read.expired


def test_the_same_photo_under_the_same_name_replaces_its_entry(register: Register) -> None:
    axis, last = np.eye(128, dtype=np.float32), today()
    first, _, other = (
        register.add(vector, "n", name) for vector, name in ((VECTOR, "A"), (axis[0], "A"), (VECTOR, "B"))
    )
    almost = VECTOR + 0.005 * axis[1]
    again = register.add(almost / np.linalg.norm(almost), "n", "A", "form 2", last)
    assert (again.id, again.note, again.expires) == (first.id, "form 2", last)
    assert [one.name for one in register.entries()] == ["A", "B", "A"]
    assert register.entries()[1:] == [other, again]
    register.add(VECTOR, "another network", "A")
    far = VECTOR + 0.05 * axis[1]
    register.add(far / np.linalg.norm(far), "n", "A")
    assert len(register.entries()) == 5


def test_a_register_that_would_be_too_large_to_read_is_refused(
    register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    register.add(VECTOR, "n", "A")
    before = register.path.read_bytes()
    monkeypatch.setattr("export3d.consent.register._LARGEST", len(before))
    with pytest.raises(OutputError, match=r"consent\.json is full: it would be larger than .* MB; remove entries"):
        register.add(VECTOR, "n", "B")
    assert register.path.read_bytes() == before
    assert len(register.entries()) == 1


@pytest.mark.slow
def test_two_writers_lose_nothing(register: Register) -> None:
    writers = [writer(register, name, 100) for name in "ab"]
    assert [one.wait() for one in writers] == [0, 0]
    found = register.entries()
    assert {entry.name for entry in found} == {f"{name} {k}" for name in "ab" for k in range(100)}
    assert len({entry.id for entry in found}) == 200


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_writer_leaves_a_readable_register(register: Register) -> None:
    """Killed at random moments among 1,000 additions; the next writer is not locked out and clears what was left."""
    rng, before = random.Random(0), 0
    register.add(VECTOR, "network", "first")
    for _ in range(6):
        one = writer(register, "w", 1000)
        while len(register.entries()) < before + 3:
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 0.05))
        one.send_signal(signal.SIGKILL)
        assert one.wait() == -signal.SIGKILL
        found = register.entries()
        assert len(found) > before
        before = len(found)
    register.add(VECTOR, "network", "last")
    assert len(register.entries()) == before + 1
    assert sorted(path.name for path in register.path.parent.iterdir()) == [".consent.json.lock", "consent.json"]


def test_what_a_killed_writer_left_is_removed(register: Register) -> None:
    register.add(VECTOR, "network", "A")
    left = register.path.with_name(".consent.abc123.json")
    left.write_text("half a regis")
    register.add(VECTOR, "network", "B")
    assert not left.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows knows other permissions")
def test_only_the_owner_may_read_it_whatever_the_umask(register: Register) -> None:
    before = os.umask(0)
    try:
        register.add(VECTOR, "network", "A")
        assert stat.S_IMODE(register.path.stat().st_mode) == 0o600
        register.path.chmod(0o666)
        register.add(VECTOR, "network", "B")
    finally:
        os.umask(before)
    assert stat.S_IMODE(register.path.stat().st_mode) == 0o600


def damages() -> dict[str, str | bytes]:
    entry = {
        "id": "0" * 8, "name": "A", "note": "", "added": "2026-01-01", "expires": None, "network": "n",
        "descriptor": "AACAPw==",
    }  # fmt: skip
    changes: dict[str, object] = {
        "a number as name": {"name": 7}, "no date": {"expires": "soon"}, "no base64": {"descriptor": "%"},
        "three bytes": {"descriptor": "AAAA"}, "not a number": {"descriptor": "AADAfw=="},
        "of no length": {"descriptor": "AAAAAA=="}, "one key more": {"photo": "x"}, "no name": {"name": ""},
        "a terminal's command as name": {"name": "A\x1b[2J"}, "two lines": {"note": "a\nb"}, "another id": {"id": "x"},
    }  # fmt: skip
    files: dict[str, str | bytes] = {
        "text": "hello", "no UTF-8": b"\xff\xfe{}", "a list": "[]", "no version": '{"entries": []}',
        "no entries": '{"version": 1}', "nested": "[" * 100_000, "cut": json.dumps({"version": 1, "entries": []})[:-4],
        "twice": json.dumps({"version": 1, "entries": [entry, entry]}),
        "no list": '{"version": 1, "entries": {}}', "text for a list": '{"version": 1, "entries": ""}',
        "a part more": '{"version": 1, "entries": [], "people": []}', "true": '{"version": true, "entries": []}',
    }  # fmt: skip
    for name, change in changes.items():
        assert isinstance(change, dict)
        files[name] = json.dumps({"version": 1, "entries": [entry | change]})
    return files


@pytest.mark.parametrize("content", damages().values(), ids=damages())
def test_a_damaged_register_is_never_an_empty_one(content: str | bytes, register: Register) -> None:
    register.path.parent.mkdir()
    data = content if isinstance(content, bytes) else content.encode()
    register.path.write_bytes(data)
    for use in (register.entries, lambda: register.add(VECTOR, "n", "B"), lambda: register.remove("A")):
        with pytest.raises(InputError, match=r"consent\.json is damaged: .*; put back a copy"):
            use()
    assert register.path.read_bytes() == data


def test_the_entry_that_is_damaged_above_is_whole_without_the_damage(register: Register) -> None:
    content = json.loads(damages()["twice"])
    content["entries"].pop()
    register.path.parent.mkdir()
    register.path.write_text(json.dumps(content))
    assert [entry.name for entry in register.entries()] == ["A"]


def test_other_things_at_its_place_are_named(register: Register) -> None:
    register.path.parent.mkdir()
    register.path.touch()
    with pytest.raises(InputError, match=r"consent\.json is empty"):
        register.entries()
    register.path.write_text('{"version": 2, "people": []}')
    with pytest.raises(InputError, match="newer release"):
        register.entries()
    register.path.unlink()
    register.path.mkdir()
    with pytest.raises(InputError, match="is a folder"):
        register.entries()


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_is_followed_and_a_broken_one_is_no_empty_register(register: Register, tmp_path: Path) -> None:
    register.path.parent.mkdir()
    register.path.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(InputError, match=r"consent\.json does not exist"):
        register.entries()
    Register(tmp_path / "elsewhere.json").add(VECTOR, "n", "A")
    register.add(VECTOR, "n", "B")
    assert [entry.name for entry in Register(tmp_path / "elsewhere.json").entries()] == ["A", "B"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_writers_by_different_links_wait_for_each_other(register: Register, tmp_path: Path) -> None:
    register.add(VECTOR, "n", "A")
    link = tmp_path / "link.json"
    link.symlink_to(register.path)
    late = pytest.raises(OutputError, match="locked for 0 s")
    with locked(register.path), late, locked(link, timeout_s=0.0):
        pass
    left = register.path.with_name(".consent.abc123.json")
    left.write_text("half a regis")
    Register(link).add(VECTOR, "n", "B")
    assert not left.exists()


def test_consent_lasts_through_its_last_day(register: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    last = date(2031, 12, 31)
    register.add(VECTOR, "n", "A", expires=last)
    for day, expired in ((last, False), (last + timedelta(days=1), True)):
        monkeypatch.setattr("export3d.consent.register.today", lambda day=day: day)
        assert [entry.expired for entry in register.entries()] == [expired]
    with pytest.raises(ConfigError, match="expired already"):
        register.add(VECTOR, "n", "B", expires=last)


@pytest.mark.parametrize("text", ["2031-02-30", "31.12.2031", "20311231", "2031-W01-1", "tomorrow", ""])
def test_other_dates_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="YYYY-MM-DD"):
        parsed_date(text)


@pytest.mark.parametrize(
    "name",
    ["", " ", "A\nB", "A\x1b[31m", "A\u202eB", "A\u200f", "A\u200bB", "\ud800", "A" * (LONGEST_NAME + 1)],
)
def test_names_that_cannot_be_are_refused(name: str, register: Register) -> None:
    with pytest.raises(ConfigError, match=r"^the name "):
        register.add(VECTOR, "n", name)
    assert not register.path.parent.exists()


def test_removing_many_photos_compares_no_pairs(register: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 photos of one name took 210 s."""
    for axis in np.eye(3, dtype=np.float32):
        register.add(axis, "n", "A")
    compared: list[Entry] = []
    monkeypatch.setattr(Entry, "__eq__", lambda one, other: compared.append(one) or one is other)
    assert len(register.remove("A")) == 3
    assert not compared


def test_joiners_of_scripts_and_emoji_stay_in_names(register: Register) -> None:
    for name in ("\u0645\u06cc\u200c\u0631\u0648\u062f", "\U0001f469\u200d\U0001f680"):
        assert register.add(VECTOR, "n", name).name == name
        assert register.remove(name)


def test_a_person_is_removed_whole_or_photo_by_photo(register: Register) -> None:
    first, second, other, third = (
        register.add(axis, "n", name) for axis, name in zip(np.eye(4, dtype=np.float32), "AABA", strict=True)
    )
    assert register.remove(first.id) == [first]
    assert register.remove("A") == [second, third]
    assert register.entries() == [other]
    with pytest.raises(ConfigError, match="nobody in the register has the name or id 'A'"):
        register.remove("A")
    register.remove("B")
    with pytest.raises(ConfigError, match="no entries"):
        register.remove("B")
