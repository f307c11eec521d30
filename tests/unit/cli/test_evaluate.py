"""`export3d evaluate`: three subcommands, each with its own options only."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from export3d.cli.evaluate import scored, told
from export3d.cli.main import main
from export3d.data.packed_frames import PACKED_INDEX
from export3d.data.shard_writer import update
from export3d.errors import InputError

Capture = pytest.CaptureFixture[str]


def test_help_lists_the_three_subcommands(capsys: Capture) -> None:
    for words in (["evaluate"], ["evaluate", "--help"]):
        assert main(words) == 0
        out = capsys.readouterr().out
        assert [line.split()[1] for line in out.splitlines() if line.startswith("  evaluate ")] == [
            "same", "cross", "predictions",
        ]  # fmt: skip
        assert "evaluate-expression" not in out


@pytest.mark.parametrize("name", ["same", "cross", "predictions"])
def test_a_help_page_is_one_screen_and_loads_no_torch(name: str) -> None:
    code = (
        f"import sys; from export3d.cli.main import main; main(['evaluate', '{name}', '--help']);"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "100"}
    )
    assert 20 < len(done.stdout.splitlines()) < 70


@pytest.mark.parametrize("name", ["same", "predictions"])
def test_the_help_of_no_faces_says_what_is_left_out(name: str, capsys: Capture) -> None:
    assert main(["evaluate", name, "--help"]) == 0
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--no-faces leaves these measures out" in words


def test_the_options_of_the_guide_name_the_commands_that_have_them(capsys: Capture) -> None:
    guide = Path(__file__).parents[3] / "docs" / "evaluation.md"
    table = guide.read_text(encoding="utf-8").split("| option | of | meaning |")[1].split("\n\n")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| `--")]
    assert len(rows) > 15
    for name in ("same", "cross", "predictions"):
        assert main(["evaluate", name, "--help"]) == 0
        known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
        for options, commands, *_ in rows:
            for option in re.findall(r"--[a-z-]+", options):
                assert (option in known) == (f"`{name}`" in commands or commands == "all"), (name, option)


def test_the_last_line_says_why_there_is_no_sheet() -> None:
    assert told("out", [{"clip": "a"}], True) == f"wrote {Path('out', 'report.html')}"
    assert "no sheet.png" in told("out", [], True)
    assert "sheet" not in told("out", [], False)


@pytest.mark.parametrize(
    ("words", "new"),
    [
        (["data"], "evaluate same"),
        (["data", "--protocol", "same"], "evaluate same"),
        (["data", "-o", "out", "--protocol", "cross"], "evaluate cross"),
        (["data", "--protocol=cross"], "evaluate cross"),
        (["--predictions", "pictures"], "evaluate predictions"),
        (["--predictions=pictures", "--protocol", "cross"], "evaluate predictions --no-truth"),
    ],
)
def test_the_old_spelling_names_the_new_one(words: list[str], new: str, capsys: Capture) -> None:
    assert main(["evaluate", *words]) == 2
    err = capsys.readouterr().err
    assert f"`{new}`" in err
    assert "needs a subcommand (same, cross, predictions)" in err
    assert err.startswith("export3d: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["cross", "data", "--every", "2"],
        ["cross", "data", "--no-faces"],
        ["same", "data", "--frames", "3"],
        ["predictions", "x", "--weights", "y"],
    ],
)
def test_options_of_another_subcommand_are_refused(words: list[str], tmp_path: Path, capsys: Capture) -> None:
    assert main(["evaluate", *words, "-o", str(tmp_path / "out")]) == 2
    assert words[2] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_split_is_one_sentence(tmp_path: Path, capsys: Capture) -> None:
    assert main(["evaluate", "same", str(tmp_path), "--split", "test", "-o", str(tmp_path / "out")]) == 2
    assert "has no split 'test'; prepare clips for it" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["same", "cross"])
@pytest.mark.parametrize(("given", "packed"), [("", "val"), ("", "train"), ("val", "val")])
def test_packed_frames_are_called_so(name: str, given: str, packed: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / packed).mkdir()
    (tmp_path / packed / PACKED_INDEX).write_text("{}")
    assert main(["evaluate", name, str(tmp_path / given), "-o", str(tmp_path / "out")]) == 2
    assert f"{tmp_path / given} holds packed frames, which cannot be scored; give the" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["same", "cross"])
def test_images_that_the_policy_forbids_are_refused_before_clips_are_prepared(
    name: str, face_video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (tmp_path / "policy.toml").write_text('marks = "required"\n')
    monkeypatch.setenv("EXPORT3D_POLICY", str(tmp_path / "policy.toml"))
    words = ["--clips", str(face_video.parent), "-o", str(tmp_path / "out"), "--save", str(tmp_path / "images")]
    assert main(["evaluate", name, *words]) == 2
    assert "predictions have none" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["policy.toml"]


@pytest.mark.parametrize("name", ["same", "cross"])
def test_data_and_clips_do_not_say_twice_what_is_scored(name: str, tmp_path: Path, capsys: Capture) -> None:
    words = [str(tmp_path), "--clips", str(tmp_path), "-o", str(tmp_path / "out")]
    assert main(["evaluate", name, *words]) == 2
    assert "both say what is scored; leave one of them out (with --size, --clips is" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_clips_beside_data_and_a_size_are_the_videos_of_the_data(tmp_path: Path) -> None:
    update(tmp_path / "data" / "val", [])
    videos, out = tmp_path / "videos", tmp_path / "out"
    beside = scored(str(tmp_path / "data"), "val", videos, out, 512)
    assert beside == (tmp_path / "data" / "val", videos, False)
    assert scored(str(tmp_path / "data"), "val", None, out, 512) == (tmp_path / "data" / "val", None, False)
    with pytest.raises(InputError, match="videos does not exist; give a folder of videos"):
        scored(None, "val", videos, out, 512)
