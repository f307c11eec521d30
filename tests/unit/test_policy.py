"""policy.py: a file is read strictly; what cannot be read never means that everything is allowed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from export3d.errors import ConfigError, PolicyError
from export3d.files import home
from export3d.policy import Policy, current_policy


@pytest.fixture(autouse=True)
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EXPORT3D_HOME", str(tmp_path))
    monkeypatch.delenv("EXPORT3D_POLICY", raising=False)
    return tmp_path


def test_without_a_file_the_defaults_apply(user_folder: Path) -> None:
    assert current_policy() == Policy(marks="default", label=False, consent="open")


def test_the_file_in_the_users_folder_applies(user_folder: Path) -> None:
    (user_folder / "policy.toml").write_text('marks = "required"\nlabel = true\nconsent = "register"\n')
    assert current_policy() == Policy(marks="required", label=True, consent="register")


def test_a_named_file_takes_precedence(user_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (user_folder / "policy.toml").write_text('marks = "required"\n')
    (user_folder / "other.toml").write_text("label = true\n")
    monkeypatch.setenv("EXPORT3D_POLICY", str(user_folder / "other.toml"))
    assert current_policy() == Policy(label=True)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"marks = required", "cannot be read"),
        (b"\x89PNG\r\n\x1a\n\0\xff", "cannot be read"),
        (b"# " + bytes(200_000), "longer than 100000 bytes"),
        (b"mark = true\n", "unknown key 'mark'; its keys are consent, label, marks"),
        (b"[marks]\na = 1\n", 'sets marks to {\'a\': 1}; it must be "default" or "required"'),
        (b"label = 1\n", "sets label to 1; it must be true or false"),
        (b"label = 'true'\n", "sets label to 'true'"),
        (b"consent = 'closed'\n", "sets consent to 'closed'"),
        (b"a = " + b"[" * 5000, "cannot be read"),
    ],
)
def test_a_damaged_file_is_an_error(user_folder: Path, content: bytes, said: str) -> None:
    (user_folder / "policy.toml").write_bytes(content)
    with pytest.raises(PolicyError) as caught:
        current_policy()
    assert said in str(caught.value)
    assert "policy.toml" in str(caught.value)


def test_what_is_no_file_is_an_error(user_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (user_folder / "policy.toml").mkdir()
    with pytest.raises(PolicyError, match="is a folder"):
        current_policy()
    (user_folder / "policy.toml").rmdir()
    (user_folder / "policy.toml").symlink_to(user_folder / "gone.toml")
    with pytest.raises(PolicyError, match="does not exist"):
        current_policy()
    monkeypatch.setenv("EXPORT3D_POLICY", str(user_folder / "no.toml"))
    with pytest.raises(PolicyError, match=r"no\.toml does not exist"):
        current_policy()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_is_an_error(user_folder: Path) -> None:
    os.mkfifo(user_folder / "policy.toml")
    with pytest.raises(PolicyError, match="not a regular file"):
        current_policy()


def test_without_a_home_folder_there_is_no_policy_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXPORT3D_HOME")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)

    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    assert current_policy() == Policy()


def test_a_server_is_at_least_as_strict() -> None:
    assert Policy().for_server(registered=False) == Policy(marks="required", label=True, consent="open")
    assert Policy().for_server(registered=True) == Policy(marks="required", label=True, consent="register")
    assert Policy(consent="register").for_server(registered=False).consent == "register"


def test_a_label_for_all_forbids_outputs_without_marks() -> None:
    assert [Policy(marks=m, label=lab).forbids_unmarked for m in ("default", "required") for lab in (False, True)] == [
        False,
        True,
        True,
        True,
    ]


@pytest.mark.skipif(os.name != "posix", reason="~NAME is the folder of a user")
@pytest.mark.parametrize("variable", ["EXPORT3D_POLICY", "EXPORT3D_HOME"])
def test_a_home_folder_of_nobody_is_one_sentence(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "~nobody-has-this-name/x")
    with pytest.raises((ConfigError, PolicyError), match=f"{variable} is ~nobody.*; give a full path"):
        current_policy() if variable == "EXPORT3D_POLICY" else home()
