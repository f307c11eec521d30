"""`export3d verify`: its exit codes, its output, and a video from its making to the loss of its metadata."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from export3d.cli.main import main


@pytest.fixture
def files(tmp_path: Path, astronaut: np.ndarray, astronaut_path: Path) -> dict[str, str]:
    """A marked image, an unmarked one, and one that cannot be read."""
    from export3d.provenance.writing import write_image

    write_image(tmp_path / "marked.png", astronaut)
    (tmp_path / "text.png").write_text("hello")
    return {"marked": str(tmp_path / "marked.png"), "unmarked": str(astronaut_path), "text": str(tmp_path / "text.png")}


@pytest.mark.parametrize(
    ("names", "code"),
    [
        ("marked", 0),
        ("unmarked", 3),
        ("text", 2),
        ("marked unmarked", 3),
        ("unmarked text marked", 2),
    ],
)
def test_the_exit_code_is_that_of_the_worst_file(
    names: str, code: int, files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", *(files[name] for name in names.split())]) == code
    stdout, stderr = capsys.readouterr()
    assert stdout.count("marked as generated") == names.split().count("marked")
    assert stdout.count("has no mark") == names.split().count("unmarked")
    assert stderr.count("\n") == names.split().count("text")


def test_json_is_a_list_with_one_report_per_file(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--json", *files.values()]) == 2
    stdout, stderr = capsys.readouterr()
    assert {report["file"]: report["result"] for report in json.loads(stdout)} == {
        files["marked"]: "marked",
        files["unmarked"]: "unmarked",
        files["text"]: "unreadable",
    }
    assert stderr == ""


def test_the_search_of_a_video_is_announced_on_standard_error(
    face_video: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("export3d.provenance.verify._DEADLINE_S", -1.0)
    main(["verify", "--json", str(face_video), files["marked"], str(face_video.parent)])
    stdout, stderr = capsys.readouterr()
    assert len(json.loads(stdout)) == 3
    assert stderr == f"export3d: searching {face_video} for the invisible mark\n"


def test_no_file_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify"]) == 2
    assert capsys.readouterr().out == ""


def test_a_name_that_is_no_text_is_printed(
    tmp_path: Path, files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m\udcff.png"
    path.write_bytes(Path(files["marked"]).read_bytes())
    assert main(["verify", str(path)]) == 0
    assert main(["verify", "--json", str(path)]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_cannot_control_the_terminal(
    encoding: str,
    tmp_path: Path,
    files: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A file of which only the metadata can be read is named twice, one that is no image on standard error."""
    whole = Path(files["marked"]).read_bytes()
    (tmp_path / "\x1b[31mé\udcff.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "\x1b[31mé.txt").write_text("hello")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer := io.BytesIO(), encoding))
    assert main(["verify", *map(str, sorted(tmp_path.glob("\x1b*")))]) == 2
    printed = buffer.getvalue().decode(encoding)
    assert printed.count("[31m") == 2
    assert "not an image" in (error := capsys.readouterr().err)
    assert "\x1b" not in printed + error


def test_standard_output_may_be_text_in_memory(files: dict[str, str]) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as text:
        assert main(["verify", files["marked"]]) == 0
    assert "marked as generated" in text.getvalue()


def test_a_certificate_that_cannot_sign_is_refused_before_the_work(
    tmp_path: Path, astronaut_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EXPORT3D_HOME", str(tmp_path))
    (tmp_path / "signing.pem").write_text("hello")
    (tmp_path / "signing.pem").chmod(0o600)
    words = ["--motion", "speech", "-o", str(tmp_path / "o.mp4")]
    assert main(["animate", str(astronaut_path), *words]) == 2
    assert "0 private keys" in capsys.readouterr().err
    assert main(["animate", str(astronaut_path), *words, "--no-mark", "--seconds", "-1"]) == 2
    assert "duration" in capsys.readouterr().err, "without marks, nothing is signed"


@pytest.mark.slow
def test_an_animated_portrait_stays_marked_when_its_metadata_are_lost(
    astronaut_path: Path, motion_file: Path, rigid_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import av

    made, remuxed = tmp_path / "made.mp4", tmp_path / "remuxed.mp4"
    words = ["--motion", str(motion_file), "--weights", str(rigid_weights), "--frame", "photo", "--size", "256"]
    assert main(["animate", str(astronaut_path), *words, "-o", str(made)]) == 0
    with av.open(str(made)) as source, av.open(str(remuxed), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    capsys.readouterr()
    assert main(["verify", "--json", str(made), str(remuxed)]) == 0
    whole, stripped = json.loads(capsys.readouterr().out)
    assert (whole["signed"]["state"], whole["mark"]["belongs"]) == ("unchanged", True)
    assert (stripped["signed"]["state"], stripped["metadata"]["generated"]) == ("none", False)
    assert stripped["mark"]["payload"] == whole["mark"]["payload"] == whole["signed"]["statement"]["payload"]
