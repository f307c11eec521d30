"""The verbs: what is refused, in which sentence, and that the command line accepts what it is told to copy."""

from __future__ import annotations

import functools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from export3d.cli import main as cli
from export3d.errors import InputError
from export3d.studio.requests import Animate, Edit, Orbit, Track, command_line, parse_head, parse_verb, shown_name

ID, OTHER, THIRD = "0" * 32, "1" * 32, "ab" * 16
NAMES = {ID: "my photo.jpg", OTHER: "-me.mp4", THIRD: "it's.csv", "bundled": "astronaut.png"}

GOOD: list[dict[str, Any]] = [
    {"verb": "animate", "portrait": "bundled", "motion": "speech"},
    {"verb": "animate", "portrait": ID, "driving": OTHER, "driving_face": 2, "start": 1.5, "seconds": 3, "label": True},
    {"verb": "animate", "portrait": ID, "driving": OTHER, "relative": False, "frame": "crop", "size": 512},
    {"verb": "animate", "portrait": ID, "motion": THIRD, "face": "all", "head_motion": "full", "background": "blur"},
    {"verb": "animate", "portrait": ID, "motion": "turns", "scores": {"jawOpen": 0.25}, "sheet": False},
    {"verb": "orbit", "portrait": ID, "path": "spiral", "yaw": 20, "pitch": -5.5, "seconds": 2, "size": "native"},
    {"verb": "orbit", "portrait": ID, "motion": THIRD, "scores": {"eyeBlink": 1}, "background": "#20a040"},
    {"verb": "edit", "portrait": "bundled", "yaw": -10, "pitch": 3.25, "roll": 1, "basis": {"4": 1.5, "10": -2}},
    {"verb": "edit", "portrait": ID, "face": "2", "scores": {"mouthSmileLeft": 0.3}, "background": ID},
    {"verb": "track", "driving": OTHER, "driving_face": "left", "start": 0.5},
]


@pytest.mark.parametrize("request_", GOOD, ids=lambda one: one["verb"])
def test_the_command_line_accepts_the_copied_command(request_: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser of the CLI reads the command, and finds in it what was asked for."""
    called: dict[str, Any] = {}
    words = shlex.split(command_line(parse_verb(json.dumps(request_)), NAMES))
    command = cli.entry(words[1])

    @functools.wraps(command)
    def listen(**options: Any) -> int:
        called.update(options)
        return 0

    monkeypatch.setattr(cli, "entry", lambda name: listen)
    assert words[0] == "export3d"
    assert cli.main(words[1:]) == 0
    framing, marking = called.pop("framing", None), called.pop("marking", None)
    for key, value in request_.items():
        if key in ("verb", "portrait", "sheet", "relative"):
            continue
        if key in ("face", "frame", "size", "background"):
            assert getattr(framing, key) == NAMES.get(value, str(value))
        elif key == "label":
            assert marking.label == value
        elif key in ("scores", "basis"):
            assert {k: float(v) for k, v in (pair.split("=") for pair in called[key])} == value
        elif key == "driving" and request_["verb"] == "track":
            assert called["video"] == Path("./-me.mp4")
        elif key in ("driving", "motion"):
            assert called[key] == Path(NAMES.get(value, value))
        elif key == "driving_face":
            assert called["face" if request_["verb"] == "track" else key] == str(value)
        else:
            assert called[key] == value
    assert called.get("absolute", False) == (not request_.get("relative", True))
    assert (called.get("sheet") is not None) == (request_["verb"] == "animate" and request_.get("sheet", True))


def test_the_label_of_the_server_is_part_of_the_command() -> None:
    asked = parse_verb('{"verb": "edit", "portrait": "bundled"}')
    assert command_line(asked, NAMES, label=True).endswith(" --label")
    assert "--label" not in command_line(asked, NAMES)
    never = parse_verb('{"verb": "edit", "portrait": "bundled", "label": false}')
    assert "--label" not in command_line(never, NAMES, label=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"verb": "delete"}, "unknown verb 'delete'; the verbs are animate, orbit, edit, track"),
        ({"portrait": "../../etc/passwd"}, "portrait: must be an id"),
        ({"portrait": "/etc/passwd"}, "portrait: must be an id"),
        ({"portrait": None}, "'portrait'"),
        ({"yaw": 46}, "'yaw'"),
        ({"yaw": "10"}, "'yaw'"),
        ({"roll": True}, "'roll'"),
        ({"scores": {"jawopen": 1.01}}, "jawopen"),
        ({"scores": {"jawClosed": 1}}, "jawOpen"),
        ({"scores": [1]}, "'scores'"),
        ({"basis": {"11": 1}}, "'basis"),
        ({"basis": {"4": 1e9}}, "'basis"),
        ({"size": 100}, "'size'"),
        ({"size": 300.5}, "'size'"),
        ({"background": "/etc/passwd"}, "background: must be keep"),
        ({"background": "#20a04"}, "background: must be keep"),
        ({"face": 0}, "'face'"),
        ({"weights": "x"}, "unknown field 'weights'; leave it out; the fields of edit are portrait, face, frame, size"),
        ({"set": {"jawOpen": 1}}, "unknown field 'set'; its name here is 'scores'"),
        ({"label": "yes"}, "'label'"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_for_is_one_sentence(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_verb(json.dumps({"verb": "edit", "portrait": "bundled", **change}))
    text = str(refused.value)
    assert words in text
    assert "\n" not in text
    assert len(text) < 400


def test_options_with_another_name_are_told_the_name_of_the_verb() -> None:
    with pytest.raises(InputError, match="unknown field 'face'; its name here is 'driving_face'"):
        parse_verb(json.dumps({"verb": "track", "driving": ID, "face": "left"}))
    with pytest.raises(InputError, match="unknown field 'absolute'; its name here is 'relative'"):
        parse_verb(json.dumps({"verb": "animate", "portrait": "bundled", "motion": "speech", "absolute": True}))
    with pytest.raises(InputError, match="unknown field 'absolute'; leave it out; the fields of edit are portrait"):
        parse_verb(json.dumps({"verb": "edit", "portrait": "bundled", "absolute": True}))
    with pytest.raises(InputError, match="unknown field 'set'; its name here is 'scores'"):
        parse_head(json.dumps({"n": 1, "portrait": "bundled", "set": {}}))


@pytest.mark.parametrize("kind", [Animate, Orbit, Edit, Track])
def test_every_option_of_a_command_is_a_field_or_in_the_guide(
    kind: type[Animate | Orbit | Edit | Track], capsys: pytest.CaptureFixture[str]
) -> None:
    guide = Path(__file__).parents[3] / "docs" / "studio.md"
    table = guide.read_text(encoding="utf-8").split("| command | field |")[1].split("\n\n")[0]
    assert cli.main([kind.__name__.lower(), "--help"]) == 0
    options = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out)) - {"--help", "--output"}
    unlike = {name for name in options if name[2:].replace("-", "_") not in kind.model_fields}
    assert {name for name in unlike if not re.search(rf"`{name}[` ]", table)} == set()


def test_limits_that_the_commands_do_not_have_are_in_the_guide() -> None:
    guide = " ".join((Path(__file__).parents[3] / "docs" / "studio.md").read_text(encoding="utf-8").split())
    for verb, field, least, words in [
        ("edit", "yaw", -45, "`edit` and `orbit` refuse a `yaw`, `pitch` or `roll` beyond 45 degrees"),
        ("orbit", "yaw", -45, "`edit` and `orbit` refuse a `yaw`, `pitch` or `roll` beyond 45 degrees"),
        ("orbit", "seconds", 0.5, "`orbit` refuses less than 0.5 `seconds`"),
    ]:
        parse_verb(json.dumps({"verb": verb, "portrait": "bundled", field: least}))
        with pytest.raises(InputError, match=f"'{field}'.*{least}"):
            parse_verb(json.dumps({"verb": verb, "portrait": "bundled", field: least - 0.1}))
        assert words in guide


@pytest.mark.parametrize(
    "body", ["", "[]", "null", "{", '"edit"', "{}", '{"verb": 1}', "\x00", "[" * 10_000, '{"verb":"edit","yaw":NaN}']
)
def test_what_is_no_request_is_one_sentence(body: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_verb(body)
    assert "request" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_numbers_are_finite(number: str) -> None:
    with pytest.raises(InputError):
        parse_verb(f'{{"verb": "edit", "portrait": "bundled", "yaw": {number}}}')
    with pytest.raises(InputError):
        parse_head(f'{{"n": 1, "portrait": "bundled", "scores": {{"jawOpen": {number}}}}}')


@pytest.mark.parametrize(
    "change",
    [
        {"driving": ID},
        {"motion": None},
        {"driving_face": "left"},
        {"relative": False, "frame": "photo"},
        {"relative": False, "head_motion": "full"},
        {"seconds": 61},
        {"seconds": 0},
        {"start": -1},
    ],
    ids=str,
)
def test_fields_that_exclude_each_other_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        parse_verb(json.dumps({"verb": "animate", "portrait": "bundled", "motion": "speech", **change}))


def test_names_of_users_are_no_paths() -> None:
    assert shown_name("../../etc/passwd") == "passwd"
    assert shown_name("C:\\Users\\me\\a.png") == "a.png"
    assert shown_name("..") == "unnamed"
    assert shown_name("\x00\x1b[31m.png") == "[31m.png"
    assert shown_name("x" * 300 + ".jpeg") == "x" * 95 + ".jpeg"
    assert shown_name("") == "unnamed"
