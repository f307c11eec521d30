"""cli/weights.py: what the command prints, and its sentences."""

from __future__ import annotations

from pathlib import Path

import pytest

from export3d.cli.main import main
from export3d.pretrained import load_pretrained
from export3d.weights.names import FILE, find, installed


@pytest.fixture(autouse=True)
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EXPORT3D_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence of a command that must fail with exit code 2."""
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_the_list_has_the_packaged_and_the_installed_ones(
    tiny_weights: Path, user_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["weights", "install", str(tiny_weights), "--name", "mine"]) == 0
    assert "--weights mine" in capsys.readouterr().err
    assert main(["weights"]) == 0
    out, err = capsys.readouterr()
    rows = [line.split() for line in out.splitlines()]
    named = {"name": "what", "base": "model", "core": "model", "clebs": "encoder", "mine": "model"}
    assert [tuple(row[:2]) for row in rows] == list(named.items())
    assert str(user_folder / "weights") in err


def test_installed_weights_move_a_portrait_by_name(
    tiny_weights: Path,
    astronaut_path: Path,
    motion_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("mediapipe")
    assert main(["weights", "install", str(tiny_weights), "--name", "mine"]) == 0
    common = [str(astronaut_path), "--motion", str(motion_file), "--device", "cpu", "--no-mark"]
    assert main(["animate", *common, "-o", str(tmp_path / "a.mp4"), "--weights", "mine"]) == 0
    assert main(["animate", *common, "-o", str(tmp_path / "b.mp4"), "--weights", str(tiny_weights)]) == 0
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert main(["edit", str(astronaut_path), "-o", str(tmp_path / "a.png"), "--weights", "mine"]) == 0
    capsys.readouterr()
    sentence = refused(["animate", *common, "-o", str(tmp_path / "c.mp4"), "--weights", "yours"], capsys)
    assert "base, core, clebs, mine" in sentence
    assert not (tmp_path / "c.mp4").exists()


def test_verify_tells_the_sha256_of_all_or_of_some(tiny_weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "verify"]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["base", "core", "clebs"]
    assert main(["weights", "verify", str(tiny_weights)]) == 0
    assert "whole, sha256 " in capsys.readouterr().out


def test_damaged_weights_are_code_1_and_do_not_hide_the_others(
    tiny_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["weights", "install", str(tiny_weights), "--name", "a"])
    main(["weights", "install", str(tiny_weights), "--name", "b"])
    find("a").write_bytes(find("a").read_bytes()[:-1])
    find("b").with_name("config.json").unlink()
    capsys.readouterr()
    assert main(["weights", "verify"]) == 1
    out, err = capsys.readouterr()
    assert [line.split(":")[0] for line in out.splitlines()] == ["base", "core", "clebs"]
    assert "a: " in err
    assert "truncated" in err
    assert "b: " in err
    assert main(["weights"]) == 0
    out, err = capsys.readouterr()
    assert "damaged" in out.splitlines()[-1]
    assert main(["weights", "remove", "a", "b"]) == 0
    assert installed() == {}


def test_a_folder_is_installed_with_its_card(
    tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from export3d.pretrained import load_pretrained

    folder = load_pretrained(tiny_weights).save_pretrained(tmp_path / "faces", card="# Card")
    assert main(["weights", "install", str(folder)]) == 0
    assert sorted(path.name for path in find("faces").parent.iterdir()) == ["README.md", "config.json", FILE]


@pytest.mark.slow
def test_calibrated_weights_have_ranges_and_keep_their_bytes(
    tiny_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mediapipe")
    before = tiny_weights.read_bytes()
    assert main(["weights", "calibrate", str(tiny_weights)]) == 0
    assert str(tiny_weights.with_suffix(".json")) in capsys.readouterr().err
    assert "superres.mid_first" in load_pretrained(tiny_weights).ranges
    assert tiny_weights.read_bytes() == before
    assert main(["weights", "verify", str(tiny_weights)]) == 0


def test_the_packaged_ones_are_there_already(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "install", "base"]) == 0
    assert "already inside the package" in capsys.readouterr().err
    assert installed() == {}


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["list", "base"], "verify"),
        (["list", "--name", "x"], "--name"),
        (["verify", "--revision", "x"], "--revision"),
        (["install"], "one name, file, folder or repository"),
        (["install", "a", "b"], "2 were given"),
        (["install", "nothing.safetensors"], "nothing.safetensors"),
        (["install", "nothing"], "base, core, clebs"),
        (["average", "base", "base"], "needs --output"),
        (["average", "base", "-o", "o.safetensors"], "two weights or more, and 1 was given"),
        (["average", "base", "core", "-o", "o.safetensors"], "average weights of one model"),
        (["verify", "--part", "warp"], "--part"),
        (["install", "base", "--name", "../x"], "cannot be the name"),
        (["install", "base", "--name", "clebs"], "packaged weights"),
        (["install", "base", "--revision", "v1"], "on this disk"),
        (["remove"], "names"),
        (["remove", "base"], "cannot be removed"),
        (["remove", "nothing"], "no installed weights 'nothing'"),
    ],
)
def test_what_a_user_can_do_wrong_is_one_sentence(
    argv: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert part in refused(["weights", *argv], capsys)


def test_an_unknown_action_is_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "steal"]) == 2
    assert "install" in capsys.readouterr().err
