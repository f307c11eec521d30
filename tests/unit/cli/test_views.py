"""`export3d orbit` and `export3d sheet views`: what they write, and what they refuse in one sentence."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from export3d.cli.main import main
from export3d.motion.motion import Motion
from export3d.video import read_frames

Run = Callable[..., int]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def short_motion(motion_file: Path, tmp_path: Path) -> Path:
    """Three frames."""
    Motion.load(motion_file)[:3].save(tmp_path / "short.motion")
    return tmp_path / "short.motion"


@pytest.fixture
def orbit(out: Path, tiny_weights: Path, astronaut_path: Path) -> Run:
    """`export3d orbit` around the bundled portrait."""

    def run(*options: object, source: Path = astronaut_path, output: Path = out / "a.mp4") -> int:
        return main(["orbit", str(source), "-o", str(output), "--weights", str(tiny_weights), *map(str, options)])

    return run


@pytest.fixture
def sheet(out: Path, tiny_weights: Path) -> Run:
    """`export3d sheet views` of the bundled portrait."""

    def run(*options: object) -> int:
        return main(["sheet", "views", *map(str, options), "-o", str(out / "new"), "--weights", str(tiny_weights)])

    return run


def refused(code: int, capsys: Capture, out: Path, *words: str) -> None:
    stdout, stderr = capsys.readouterr()
    assert code == 2
    assert stdout == ""
    assert stderr.startswith("export3d: ")
    assert stderr.count("\n") == 1, f"one sentence, got: {stderr}"
    for word in words:
        assert word in stderr
    assert list(out.rglob("*.*")) == [], "no partial output"


def test_an_orbit_is_written(orbit: Run, out: Path, capsys: Capture) -> None:
    assert orbit("--seconds", 0.2, "--path", "spiral", "--set", "jawOpen=0.5", "--yaw", -20) == 0
    assert [frame.shape for frame in read_frames(out / "a.mp4", 25.0)] == [(64, 64, 3)] * 5
    begun, ended = capsys.readouterr().err.splitlines()
    assert begun == "export3d: rendering, 5 frames"
    assert re.fullmatch(
        rf"export3d: wrote {out / 'a.mp4'} \(5 frames in [\d.]+ s, engine (openvino|torch), \w+\)", ended
    )


def test_an_orbit_with_a_motion_is_as_long_as_the_motion(orbit: Run, short_motion: Path, out: Path) -> None:
    assert orbit("--motion", short_motion, "--pure") == 0
    assert len(list(read_frames(out / "a.mp4", 25.0))) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--yaw", "nan"], ["yaw of nan", "stay between -90 and 90"]),
        (["--yaw", "90"], ["yaw of 90 degrees"]),
        (["--pitch", "-inf"], ["pitch of -inf"]),
        (["--seconds", "0"], ["cannot take 0 seconds", "0.1 to 600"]),
        (["--seconds", "1e9"], ["cannot take 1e+09 seconds"]),
        (["--set", "jawOpn=0.5"], ["'jawOpn'"]),
        (["--set", "jawOpen=2"], ["between 0 and 1"]),
        (["--motion", "missing.motion"], ["missing.motion", "does not exist"]),
    ],
)
def test_an_orbit_that_cannot_be_is_refused(
    options: list[str], words: list[str], orbit: Run, out: Path, capsys: Capture
) -> None:
    refused(orbit(*options), capsys, out, *words)


def test_bad_files_are_refused(orbit: Run, tmp_path: Path, astronaut_path: Path, out: Path, capsys: Capture) -> None:
    refused(orbit(output=out / "a.gif"), capsys, out, "must end in .mp4")
    refused(orbit(source=tmp_path / "missing.jpg"), capsys, out, "missing.jpg")
    refused(orbit("--motion", astronaut_path), capsys, out, "astronaut.png")
    Image.new("RGB", (200, 200), (80, 140, 70)).save(tmp_path / "meadow.png")
    refused(orbit(source=tmp_path / "meadow.png"), capsys, out, "no face", "meadow.png")


def test_a_sheet_of_the_bundled_portrait_is_rendered_by_default(sheet: Run, out: Path, capsys: Capture) -> None:
    assert sheet("--set", "jawOpen=0.5") == 0
    assert [path.name for path in (out / "new").iterdir()] == ["views_astronaut.png"]
    assert "wrote" in capsys.readouterr().err
    with Image.open(out / "new" / "views_astronaut.png") as image:
        assert image.height == 5 * (64 + 18) + 4, "source, and two expressions with depth"


def test_a_sheet_that_cannot_be_is_refused(sheet: Run, tmp_path: Path, out: Path, capsys: Capture) -> None:
    refused(sheet("--set", "jawOpen=x"), capsys, out, "--set NAME=VALUE")
    refused(sheet("--motion", tmp_path / "missing.motion"), capsys, out, "missing.motion")
    refused(sheet(tmp_path / "missing.jpg"), capsys, out, "missing.jpg")
    (tmp_path / "notes.motion").write_text("not a motion\n" * 20)
    refused(sheet("--motion", tmp_path / "notes.motion"), capsys, out, "notes.motion")


def test_a_sheet_needs_a_subject(capsys: Capture) -> None:
    assert main(["sheet", "--motion", "speech"]) == 2
    assert "use `sheet views`" in capsys.readouterr().err
    assert main(["sheet"]) == 0
    assert "sheet basis" in capsys.readouterr().out
