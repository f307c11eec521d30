"""Every command and every function that writes generated images marks them: the mark is found in each file."""

from __future__ import annotations

import inspect
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export3d.animate import drive, export
from export3d.cli.main import COMMANDS, entry, main
from export3d.provenance import signing
from export3d.provenance.statement import digest_of_file
from export3d.provenance.watermark.detect import find_watermark
from export3d.provenance.writing import MARKED
from export3d.video import read_frames

pytest.importorskip("mediapipe")

LINES = {
    "animate": (
        "PORTRAIT --motion MOTION -o a.mp4 --sheet a.png --size 256 --frame crop --weights RIGID",
        ["a.mp4", "a.png"],
    ),
    "live": ("PORTRAIT --camera VIDEO --seconds 0.5 --sink a.mp4 --size 256 --weights RIGID", ["a.mp4"]),
    "edit": ("PORTRAIT -o a.png --set jawOpen=0.5 --size 256 --frame crop --weights RIGID", ["a.png"]),
    "orbit": ("PORTRAIT -o a.mp4 --seconds 0.4 --size 256 --frame crop --weights RIGID", ["a.mp4"]),
    "sheet basis": ("PORTRAIT -o sheets --range 1 -2 --weights TINY", ["sheets/basis_astronaut.png"]),
    "sheet views": ("PORTRAIT -o sheets --set jawOpen=0.5 --weights TINY", ["sheets/views_astronaut.png"]),
    "demo": ("-o out --weights RIGID", ["out/demo.mp4", "out/demo_sheet.png"]),
}
"""Command to options, and the files it writes."""


@pytest.fixture
def line(
    astronaut_path: Path,
    motion_file: Path,
    face_video: Path,
    tiny_weights: Path,
    rigid_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, list[str]]:
    """Command lines with files; their outputs go to the current folder."""
    monkeypatch.chdir(tmp_path)
    read = drive.read_motion  # of `demo`, whose motions last 8 seconds, the first 0.4
    monkeypatch.setattr(
        drive, "read_motion", lambda path, start_s=0.0, seconds=None: read(path, start_s, seconds or 0.4)
    )
    words = {"PORTRAIT": str(astronaut_path), "MOTION": str(motion_file), "VIDEO": str(face_video)}
    words |= {"TINY": str(tiny_weights), "RIGID": str(rigid_weights)}
    return {
        name: [*name.split(), *(words.get(word, word) for word in options.split())]
        for name, (options, _) in LINES.items()
    }


def images(path: Path) -> list[np.ndarray]:
    if path.suffix == ".mp4":
        return list(read_frames(path))
    with Image.open(path) as image:
        return [np.array(image.convert("RGB"))]


def test_every_command_that_writes_images_is_here() -> None:
    assert {name for name in COMMANDS if "marking" in inspect.signature(entry(name)).parameters} == set(LINES)


@pytest.mark.slow
@pytest.mark.parametrize("command", LINES)
def test_the_mark_is_found_in_what_a_command_writes(
    command: str, line: dict[str, list[str]], astronaut_path: Path, tmp_path: Path
) -> None:
    assert main(line[command]) == 0
    for name in LINES[command][1]:
        found, signed = find_watermark(images(tmp_path / name)), signing.read(tmp_path / name)
        assert signed is not None
        assert signed.statement is not None
        assert (found.found, found.payload, signed.state) == (True, signed.payload, "unchanged"), name
        assert signed.statement["portrait"] == digest_of_file(astronaut_path)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["animate", "edit"])
def test_no_mark_leaves_out_all_of_it(
    command: str, line: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*line[command], "--no-mark"]) == 0
    assert ", without marks" in capsys.readouterr().err
    for name in LINES[command][1]:
        assert not find_watermark(images(tmp_path / name)).found
        assert signing.read(tmp_path / name) is None
        assert b"AI-generated" not in (tmp_path / name).read_bytes()


@pytest.mark.parametrize("command", LINES)
def test_a_policy_forbids_no_mark(
    command: str,
    line: dict[str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('marks = "required"\n')
    monkeypatch.setenv("EXPORT3D_POLICY", str(policy))
    assert main([*line[command], "--no-mark"]) == 2
    assert main([*line[command], "--no-mark", "--label"]) == 2
    policy.write_text("marks = maybe\n")
    assert main(line[command]) == 2
    refused, both, damaged = capsys.readouterr().err.splitlines()
    assert "requires marks on every output; leave out --no-mark" in refused
    assert "--label and --no-mark exclude each other" in both
    assert "policy.toml cannot be read" in damaged
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path != policy]


def test_the_mark_is_found_in_what_python_writes(astronaut: np.ndarray, tmp_path: Path) -> None:
    """All writers of `animate.export`; `write_animation` is what the command `animate` calls."""
    writers = {
        name
        for name, value in vars(export).items()
        if inspect.isfunction(value) and value.__module__ == export.__name__
    }
    assert {name for name in writers if name.startswith(("write_", "encode_"))} == {
        "write_video", "write_still", "write_sheet", "write_animation", "encode_webp",
    }  # fmt: skip
    crop = np.ascontiguousarray(astronaut[:256, 96:352])
    export.write_video(tmp_path / "a.mp4", [crop] * 5)
    export.write_still(tmp_path / "a.png", crop)
    export.write_sheet(tmp_path / "b.png", [[crop] * 4, [np.ascontiguousarray(crop[:, ::-1])] * 4], ["one", "two"])
    with Image.open(io.BytesIO(export.encode_webp(crop))) as image:
        webp = np.array(image.convert("RGB"))
    shown = [images(tmp_path / name) for name in ("a.mp4", "a.png", "b.png")]
    assert [find_watermark(one).payload for one in [*shown, [webp]]] == [MARKED.statement.payload] * 4
