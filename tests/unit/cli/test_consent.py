"""`export3d consent`, and the policy that asks for it at the doors of animation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export3d.cli.main import main
from export3d.consent import register
from export3d.consent.register import Register
from export3d.image import write_png
from tests.group_photo import group_photo

AXIS = np.eye(128, dtype=np.float32)[0]
"""A descriptor that no face has."""
Capture = pytest.CaptureFixture[str]

pytest.importorskip("mediapipe")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, and no policy."""
    monkeypatch.setenv("EXPORT3D_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("EXPORT3D_POLICY", raising=False)
    return tmp_path / "home"


@pytest.fixture
def portrait(astronaut: np.ndarray, tmp_path: Path) -> Path:
    """The bundled portrait, cut: another file, with other pixels, of the same person."""
    write_png(tmp_path / "portrait.png", astronaut[:256, 90:346])
    return tmp_path / "portrait.png"


@pytest.fixture
def asking(home: Path) -> None:
    """The policy that asks for consent, in the home."""
    home.mkdir()
    (home / "policy.toml").write_text('consent = "register"\n')


def test_a_person_is_added_listed_recognised_and_removed(portrait: Path, home: Path, capsys: Capture) -> None:
    assert main(["consent", "check", str(portrait)]) == 3
    assert "nobody in the register (no entry to compare with, threshold 0." in capsys.readouterr().out
    assert main(["consent", "add", str(portrait), "--name", "Eileen", "--note", "form 1"]) == 0
    assert "(1 photo)" in capsys.readouterr().err
    Register().add(AXIS, "n", "Eileen", "form 2")
    assert main(["consent", "list"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [row.split()[1:3] for row in out[1:]] == [["Eileen", "2"]] * 2
    assert main(["consent", "list", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [(one["name"], one["note"], one["expires"], one["expired"]) for one in facts] == [
        ("Eileen", "form 1", None, False), ("Eileen", "form 2", None, False)
    ]  # fmt: skip
    assert main(["consent", "check", str(portrait)]) == 0
    assert "Eileen (similarity 1.000, threshold 0." in capsys.readouterr().out
    assert main(["consent", "remove", facts[0]["id"]]) == 0
    assert main(["consent", "remove", "Eileen"]) == 0
    assert Register().entries() == []


@pytest.mark.slow
def test_the_same_photo_replaces_its_entry_and_others_that_end_later_are_told(portrait: Path, capsys: Capture) -> None:
    first = ["consent", "add", str(portrait), "--name", "Eileen", "--note", "form 1"]
    assert main(first) == 0
    (before,) = Register().entries()
    last = str(register.today())
    capsys.readouterr()
    assert main([*first[:-1], "form 2", "--expires", last]) == 0
    (said,) = capsys.readouterr().err.splitlines()
    assert said.endswith("(1 photo); replaced the entry of the same photo")
    (after,) = Register().entries()
    assert (after.id, after.note, str(after.expires)) == (before.id, "form 2", last)
    for name, network, axis, end in (
        ("Eileen", "another", 0, None), ("Eileen", after.network, 1, after.expires), ("Anna", after.network, 2, None)
    ):  # fmt: skip
        Register().add(np.eye(128, dtype=np.float32)[axis], network, name, expires=end)
    longer = Register().add(AXIS, after.network, "Eileen")
    assert main([*first, "--expires", last]) == 0
    assert f"Eileen has other photos that count longer: {longer.id} (no end); to end" in capsys.readouterr().err


@pytest.mark.slow
def test_a_face_that_is_registered_under_another_name_is_told(portrait: Path, capsys: Capture) -> None:
    for name in ("Anna", "Ana"):
        assert main(["consent", "add", str(portrait), "--name", name]) == 0
    told = "warning: this face matches Anna (similarity 1.000), who is registered under another name: if they are one"
    assert capsys.readouterr().err.count(told) == 1
    Register().add(AXIS, Register().entries()[0].network, "Zoe")
    for name, sentence in (("Anna", "photos under other names match it: Ana\n"), ("Ana", "")):
        assert main(["consent", "remove", name]) == 0
        said = capsys.readouterr().err
        assert said.endswith(sentence)
        assert ("still allowed" in said) is bool(sentence)


def test_the_register_holds_no_photo(portrait: Path, home: Path) -> None:
    main(["consent", "add", str(portrait), "--name", "Eileen"])
    assert (home / "consent.json").stat().st_size < 2000
    assert set(json.loads((home / "consent.json").read_text())["entries"][0]) == {
        "id", "name", "note", "added", "expires", "network", "descriptor",
    }  # fmt: skip


@pytest.mark.slow
def test_an_expired_consent_is_told(portrait: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    last = register.today()
    main(["consent", "add", str(portrait), "--name", "Eileen", "--expires", str(last)])
    monkeypatch.setattr(register, "today", lambda: last.replace(year=last.year + 1))
    capsys.readouterr()
    assert main(["consent", "list"]) == 0
    assert f"{last} (expired)" in capsys.readouterr().out
    assert main(["consent", "check", str(portrait)]) == 3
    assert f"the consent of Eileen expired on {last}" in capsys.readouterr().err


@pytest.mark.slow
def test_another_face_under_the_same_name_is_told(portrait: Path, tmp_path: Path, capsys: Capture) -> None:
    figure = Path(__file__).parents[3] / "docs" / "images" / "orbit_p0196_01.webp"
    with Image.open(figure) as image:
        image.convert("RGB").crop((0, image.height - 208, 208, image.height)).save(tmp_path / "other.png")
    main(["consent", "add", str(portrait), "--name", "Eileen"])
    assert main(["consent", "add", str(tmp_path / "other.png"), "--name", "Eileen"]) == 0
    assert "does not resemble the others of Eileen" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--name", ""], "the name is empty"),
        (["--name", "A\x07"], "control character U+0007"),
        (["--name", "A", "--note", "x" * 2001], "the note has 2,001 characters"),
        (["--name", "A", "--expires", "2031-13-01"], "write YYYY-MM-DD"),
        (["--name", "A", "--expires", ""], "'' is not a day"),
        (["--name", "A", "--expires", "2001-01-01"], "expired already"),
        (["--name", "A", "--face", "nose"], "there is no face 'nose'; use largest, left, right or a number from 1, "),
        (["--name", "A", "--face", "all"], "a number from 1, counted from left to right\n"),
        (["--name", "A", "--face", "2"], "shows only one face"),
    ],
)
def test_what_cannot_be_added_is_one_sentence(
    options: list[str], sentence: str, portrait: Path, home: Path, capsys: Capture
) -> None:
    assert main(["consent", "add", str(portrait), *options]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert not home.exists()


@pytest.mark.slow
def test_a_photo_without_a_face_or_with_several_is_refused(
    astronaut: np.ndarray, tmp_path: Path, home: Path, capsys: Capture
) -> None:
    write_png(tmp_path / "wall.png", np.full((64, 64, 3), 200, np.uint8))
    write_png(tmp_path / "group.png", group_photo(astronaut))
    for name, sentence in (("wall", "no face found"), ("group", "shows 3 faces; choose one with --face")):
        assert main(["consent", "add", str(tmp_path / f"{name}.png"), "--name", "A"]) == 2
        assert sentence in capsys.readouterr().err
    assert not home.exists()
    assert main(["consent", "add", str(tmp_path / "group.png"), "--name", "A", "--face", "left"]) == 0
    capsys.readouterr()
    assert main(["consent", "check", str(tmp_path / "group.png")]) == 0
    assert "shows several faces and the largest is used; where a face can be chosen" in capsys.readouterr().err


@pytest.mark.usefixtures("asking")
@pytest.mark.parametrize(
    "line",
    [
        "animate FACE --motion MOTION -o OUT/o.mp4 --weights WEIGHTS",
        "edit FACE -o OUT/o.png --weights WEIGHTS",
        "edit FACE --face all -o OUT/o.png --weights WEIGHTS",
        "orbit FACE -o OUT/o.mp4 --weights WEIGHTS",
        "sheet basis FACE -o OUT/o --weights WEIGHTS",
        "sheet views FACE -o OUT/o --weights WEIGHTS",
        "live FACE --camera CLIP --sink OUT/o.mp4 --weights WEIGHTS",
    ],
)
def test_every_door_asks_for_consent(
    line: str, portrait: Path, motion_file: Path, face_video: Path, tiny_weights: Path, out: Path, capsys: Capture
) -> None:
    words = {"FACE": portrait, "MOTION": motion_file, "CLIP": face_video, "WEIGHTS": tiny_weights}
    argv = [str(words.get(word, word.replace("OUT", str(out)))) for word in line.split()]
    assert main(argv) == 2
    (said,) = [text for text in capsys.readouterr().err.splitlines() if "consent" in text]
    assert said.startswith(f"export3d: the face in {portrait} matches nobody in the register of consent")
    assert not [path for path in out.rglob("*") if path.is_file()]


@pytest.mark.usefixtures("asking")
def test_with_consent_and_for_the_bundled_portrait_the_door_is_open(
    portrait: Path, astronaut_path: Path, tiny_weights: Path, out: Path
) -> None:
    edit = ["edit", "--weights", str(tiny_weights), "--frame", "crop", "-o", str(out / "o.png")]
    assert main([*edit, str(portrait)]) == 2
    assert main(["consent", "add", str(portrait), "--name", "Eileen"]) == 0
    for path in (portrait, astronaut_path):
        assert main([*edit, str(path)]) == 0
    assert main(["consent", "remove", "Eileen"]) == 0
    assert main([*edit, str(portrait)]) == 2


@pytest.mark.usefixtures("asking")
def test_a_damaged_register_closes_every_door(portrait: Path, tiny_weights: Path, out: Path, capsys: Capture) -> None:
    register = Register().path
    register.write_text("damaged")
    edit = ["edit", str(portrait), "--weights", str(tiny_weights), "-o", str(out / "o.png")]
    for argv in (edit, ["consent", "list"], ["consent", "check", str(portrait)], ["consent", "remove", "A"]):
        assert main(argv) == 2
        assert f"{register} is damaged" in capsys.readouterr().err
    assert list(out.iterdir()) == []


def test_names_that_a_terminal_cannot_show_are_escaped(home: Path) -> None:
    home.mkdir()
    Register().add(np.full(128, 128**-0.5, np.float32), "n", "Zoë")
    listed = {}
    for options in ([], ["--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "export3d", "consent", "list", *options],
            capture_output=True,
            check=True,
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
        )
        listed[bool(options)] = done.stdout
    assert rb"Zo\xeb" in listed[False]
    assert json.loads(listed[True])[0]["name"] == "Zoë"
