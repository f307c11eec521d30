"""`export3d edit` and `export3d sheet basis`: what they write, and what they refuse in one sentence."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from export3d.cli.main import main
from export3d.config import tiny
from export3d.model import Export3D
from export3d.pretrained import save_pretrained

Run = Callable[..., int]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def edit(out: Path, tiny_weights: Path, astronaut_path: Path) -> Run:
    """`export3d edit` on the bundled portrait."""

    def run(*options: str, output: Path = out / "a.png", weights: Path = tiny_weights) -> int:
        return main(["edit", str(astronaut_path), "-o", str(output), "--weights", str(weights), *options])

    return run


@pytest.fixture(scope="module")
def weights_with_ranges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two directions, each from -1 to 1; no picture shows a face."""
    model = Export3D(replace(tiny(), expression=replace(tiny().expression, n=2)))
    model.expression.low.fill_(-1.0)
    model.expression.high.fill_(1.0)
    return save_pretrained(model, tmp_path_factory.mktemp("weights") / "ranges.safetensors", {})


@pytest.fixture
def weights_without_basis(tmp_path: Path) -> Path:
    config = replace(tiny(), expression=replace(tiny().expression, basis=False))
    return save_pretrained(Export3D(config), tmp_path / "direct.safetensors", {})


def refused(code: int, capsys: Capture, out: Path, *words: str) -> None:
    stdout, stderr = capsys.readouterr()
    assert code == 2
    assert stdout == ""
    assert stderr.startswith("export3d: ")
    assert stderr.count("\n") == 1, f"one sentence, got: {stderr}"
    for word in words:
        assert word in stderr
    assert list(out.iterdir()) == [], "no partial output"


def test_a_portrait_is_edited(edit: Run, out: Path) -> None:
    options = ["--basis", "4=+6", "--basis", "8=-3", "--set", "jawOpen=0.8", "--set", "eyeBlinkLeft=1"]
    assert edit(*options, "--yaw", "10", "--pitch", "-5", "--roll", "0") == 0
    with Image.open(out / "a.png") as picture:
        assert picture.size == (64, 64)


def test_a_view_far_from_the_photos_is_drawn_with_a_warning(edit: Run, capsys: Capture) -> None:
    assert edit("--yaw", "45") == 0
    assert "gaps" not in capsys.readouterr().err
    assert edit("--yaw", "-60") == 0
    sentence = "at 60 degrees from the photo's view the face is stretched and has gaps; up to 45 degrees it stays whole"
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--basis", "4"], ["--basis NUMBER=AMOUNT", "'4'"]),
        (["--basis", "v4=1"], ["--basis NUMBER=AMOUNT", "'v4=1'"]),
        (["--basis", "4=much"], ["--basis NUMBER=AMOUNT", "'4=much'"]),
        (["--basis", "0=1"], ["no direction 0"]),
        (["--basis", "99=1"], ["no direction 99"]),
        (["--basis", "-1=1"], ["no direction -1"]),
        (["--basis", "1=nan"], ["cannot move by nan"]),
        (["--basis", "1=inf"], ["cannot move by inf"]),
        (["--set", "jawOpen"], ["--set NAME=VALUE", "'jawOpen'"]),
        (["--set", "jawOpn=0.5"], ["'jawOpn'", "jawOpen"]),
        (["--set", "jawOpen=nan"], ["between 0 and 1"]),
        (["--set", "jawOpen=2"], ["between 0 and 1"]),
        (["--yaw", "nan"], ["cannot turn"]),
        (["--yaw", "120"], ["cannot turn", "stay between -90 and 90"]),
        (["--pitch", "-90"], ["cannot turn", "stay between -90 and 90"]),
    ],
)
def test_an_edit_that_cannot_be_is_refused(
    options: list[str], words: list[str], edit: Run, out: Path, capsys: Capture
) -> None:
    refused(edit(*options), capsys, out, *words)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--set", "smile=1"], "there is no ARKit score 'smile'; the nearest name is mouthSmileLeft"),
        (
            ["--yaw", "90"],
            "the head cannot turn by yaw 90, pitch 0 and roll 0 degrees; stay between -90 and 90 with yaw and pitch",
        ),
    ],
)
def test_numbers_that_cannot_be_are_refused_before_pytorch_is_loaded(
    options: list[str], sentence: str, astronaut_path: Path, out: Path
) -> None:
    line = ["edit", str(astronaut_path), *options, "-o", str(out / "a.png")]
    code = f"import sys; from export3d.cli.main import main; sys.exit(main({line}) + ('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == f"export3d: {sentence}\n"
    assert done.returncode == 2


def test_a_video_is_refused_and_the_command_for_it_named(edit: Run, out: Path, capsys: Capture) -> None:
    refused(edit(output=out / "a.mp4"), capsys, out, "a.mp4", "export3d animate")
    refused(edit(output=out / "a.jpg"), capsys, out, "must end in .png")


def test_a_slider_far_beyond_its_range_is_remarked(
    edit: Run, weights_with_ranges: Path, out: Path, capsys: Capture
) -> None:
    assert edit("--basis", "1=+50", weights=weights_with_ranges) == 0
    stderr = capsys.readouterr().err
    assert "v1 goes to" in stderr
    assert "-1.00 to +1.00" in stderr


def test_weights_without_a_basis_are_refused(
    edit: Run, weights_without_basis: Path, astronaut_path: Path, out: Path, capsys: Capture
) -> None:
    refused(edit("--basis", "1=1", weights=weights_without_basis), capsys, out, "no expression basis")
    code = main(["sheet", "basis", "-o", str(out), "--weights", str(weights_without_basis)])
    refused(code, capsys, out, "no expression basis")


def test_a_sheet_of_the_bundled_portrait_is_drawn_by_default_and_lost_faces_are_not_fatal(
    weights_with_ranges: Path, tmp_path: Path, capsys: Capture
) -> None:
    arguments = ["sheet", "basis", "-o", str(tmp_path / "out"), "--weights", str(weights_with_ranges)]
    assert main(arguments) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"basis_astronaut.png", "basis.md"}
    stdout, stderr = capsys.readouterr()
    assert stdout == (tmp_path / "out" / "basis.md").read_text()
    assert "Traceback" not in stderr


def test_the_check_fails_where_a_head_was_not_seen_to_stay_still(
    weights_with_ranges: Path, tmp_path: Path, capsys: Capture
) -> None:
    arguments = ["sheet", "basis", "-o", str(tmp_path / "out"), "--weights", str(weights_with_ranges)]
    assert main([*arguments, "--check"]) == 1
    assert "turn the head by 1.5 degrees or more: v1, v2" in capsys.readouterr().err


def test_a_range_replaces_the_natural_one(weights_with_ranges: Path, tmp_path: Path, capsys: Capture) -> None:
    arguments = ["sheet", "basis", "-o", str(tmp_path / "out"), "--weights", str(weights_with_ranges)]
    assert main([*arguments, "--range", "1", "-10"]) == 0
    stdout = capsys.readouterr().out
    assert "| direction | range |" in stdout
    assert "| v2 | +1.00 to -10.00 |" in stdout


@pytest.mark.parametrize("limits", [("1", "nan"), ("2", "2"), ("inf", "0")])
def test_a_range_that_cannot_be_is_refused(
    limits: tuple[str, str], weights_with_ranges: Path, out: Path, capsys: Capture
) -> None:
    arguments = ["sheet", "basis", "-o", str(out / "new"), "--weights", str(weights_with_ranges)]
    refused(main([*arguments, "--range", *limits]), capsys, out, "lambda cannot run from", "two different numbers")


def test_a_sheet_that_cannot_be_drawn_is_refused(
    tiny_weights: Path, tmp_path: Path, out: Path, capsys: Capture
) -> None:
    refused(main(["sheet", "basis", "-o", str(out), "--weights", str(tiny_weights)]), capsys, out, "never measured")
    missing = str(tmp_path / "missing.jpg")
    code = main(["sheet", "basis", missing, "-o", str(out), "--weights", str(tiny_weights)])
    refused(code, capsys, out, "missing.jpg", "does not exist")
