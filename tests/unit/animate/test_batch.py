"""Lists of animations, made with random weights: all but the pictures is as with trained ones."""

from __future__ import annotations

import csv
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export3d.animate.batch import BatchReport, animate_batch
from export3d.cli.main import main
from export3d.errors import CheckpointError, ConfigError, OutputError
from export3d.locations import inside, names, read, write
from export3d.motion.motion import Motion

Make = Callable[..., BatchReport]


@pytest.fixture
def folder(tmp_path: Path, astronaut_path: Path, motion_file: Path, face_video: Path) -> Path:
    """Inputs: face.png, a grey wall.png, take.motion of two frames, clip.mp4 with sound."""
    (tmp_path / "face.png").write_bytes(astronaut_path.read_bytes())
    Image.fromarray(np.full((300, 300, 3), 128, np.uint8)).save(tmp_path / "wall.png")
    Motion.load(motion_file)[:2].save(tmp_path / "take.motion")
    (tmp_path / "clip.mp4").write_bytes(face_video.read_bytes())
    return tmp_path


@pytest.fixture
def make(folder: Path, rigid_weights: Path) -> Make:
    """Writes a list and makes it, in this process, without marks.

    The engine is named: `auto` is another one in processes that are started than it is in tests.
    """

    def run(*lines: str, out: Path | str = folder / "out", **options: object) -> BatchReport:
        (folder / "list.csv").write_text("\n".join(lines) + "\n")
        shared = {"no_mark": "yes", "frame": "crop", "size": "256"}
        given: dict[str, object] = {"weights": rigid_weights, "device": "cpu", "engine": "torch", "workers": 0}
        return animate_batch(folder / "list.csv", out, shared, **(given | options))  # type: ignore[arg-type]

    return run


HEADER = "portrait,motion,driving,output,seconds,sheet"
LINES = (
    HEADER,
    "face.png,take.motion,,one.mp4,,",
    "face.png,,clip.mp4,people/two.mp4,0.16,people/two.png",
    "face.png,speech,,three.mp4,0.08,",
)


def times(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.rglob("*.mp4")}


def test_a_row_is_what_the_command_makes(make: Make, folder: Path, rigid_weights: Path) -> None:
    report = make(*LINES)
    assert [(row.row, row.output, row.state) for row in report.rows] == [
        (2, "one.mp4", "made"), (3, "people/two.mp4", "made"), (4, "three.mp4", "made"),
    ]  # fmt: skip
    assert [row.frames for row in report.rows] == [2, 4, 2]
    common = f"--weights {rigid_weights} --device cpu --frame crop --size 256 --no-mark".split()
    (folder / "alone").mkdir()
    for row in (
        f"--motion {folder}/take.motion -o {folder}/alone/one.mp4",
        f"--driving {folder}/clip.mp4 --seconds 0.16 -o {folder}/alone/two.mp4 --sheet {folder}/alone/two.png",
        f"--motion speech --seconds 0.08 -o {folder}/alone/three.mp4",
    ):
        assert main(["animate", str(folder / "face.png"), *row.split(), *common]) == 0
    made = {path.name: path.read_bytes() for path in (folder / "out").rglob("*.*") if path.suffix in (".mp4", ".png")}
    assert made == {path.name: path.read_bytes() for path in (folder / "alone").iterdir()}


def test_nothing_half_done_ever_lies_among_the_outputs(
    make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process can be killed at any time, most likely while it waits for the disk."""
    seen: set[str] = set()
    flush = os.fsync

    def watch(handle: int) -> None:
        flush(handle)
        found = (path.relative_to(folder / "out") for path in (folder / "out").rglob("*") if path.is_file())
        seen.update(str(path) for path in found if path.parts[0] != ".batch" and path.suffix in (".mp4", ".png"))

    monkeypatch.setattr(os, "fsync", watch)
    make(*LINES[:3])
    assert seen == {"one.mp4", "people/two.mp4", "people/two.png"}


@pytest.mark.slow
def test_two_processes_make_the_same_files(make: Make, folder: Path) -> None:
    make(*LINES, out=folder / "a")
    make(*LINES, out=folder / "b", workers=2)
    for name in ("one.mp4", "people/two.mp4", "people/two.png", "three.mp4"):
        assert (folder / "a" / name).read_bytes() == (folder / "b" / name).read_bytes()


@pytest.mark.slow
def test_warnings_of_processes_are_told(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    make("portrait,motion,output,seconds,set", "face.png,speech,one.mp4,0.04,tongueOut=0.5", workers=1)
    assert [text for text in caplog.messages if text.startswith("one.mp4: ") and "tongueOut" in text]


def test_a_second_run_makes_what_is_missing_or_has_changed(make: Make, folder: Path) -> None:
    make(*LINES)
    first = times(folder / "out")
    report = make(*LINES)
    assert (report.kept, times(folder / "out")) == (3, first)
    (folder / "out" / "three.mp4").unlink()
    (folder / "out" / "people" / "two.png").unlink()
    report = make(*LINES)
    assert report.kept == 1
    assert (folder / "out" / "people" / "two.png").is_file()
    second = times(folder / "out")
    assert [name for name in first if first[name] == second[name]] == ["one.mp4"]
    report = make(HEADER, "face.png,take.motion,,one.mp4,0.04,", *LINES[2:])
    assert (report.kept, report.rows[0].frames) == (2, 1)
    assert [name for name in first if times(folder / "out")[name] != second[name]] == ["one.mp4"]
    Motion.load(folder / "take.motion")[:1].save(folder / "take.motion")
    assert make(HEADER, "face.png,take.motion,,one.mp4,0.04,", *LINES[2:]).kept == 2


def test_other_weights_make_everything_again(make: Make, tiny_weights: Path) -> None:
    first, second, third = (make(*LINES[:2], **more) for more in ({}, {"weights": tiny_weights}, {"pure": True}))
    assert (second.kept, third.kept) == (0, 0)
    assert len({report.rows[0].fingerprint for report in (first, second, third)}) == 3


def test_the_video_of_a_changed_row_is_not_taken_for_that_of_an_earlier_one(make: Make, folder: Path) -> None:
    """The list changes, the run is stopped before its report, and the list changes back."""
    make(*LINES[:2])
    report = (folder / "out" / "report.json").read_bytes()
    assert make(HEADER, "face.png,speech,,one.mp4,0.08,").kept == 0
    changed = json.loads((folder / "out" / "report.json").read_text())["rows"][0]
    (folder / "out" / "report.json").write_bytes(report)
    (folder / "out" / ".batch").mkdir()
    (folder / "out" / ".batch" / "one.json").write_text(json.dumps(changed))
    assert make(*LINES[:2]).kept == 0


def test_a_row_that_cannot_be_made_is_refused_and_the_others_go_on(
    folder: Path, rigid_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "list.csv").write_text(
        f"{HEADER}\nwall.png,take.motion,,wall.mp4,,\nface.png,,wall.png,still.mp4,,\nface.png,take.motion,,one.mp4,,\n"
    )
    out = folder / "out"
    command = ["animate", "--batch", str(folder / "list.csv"), "-o", str(out), "--weights", str(rigid_weights)]
    command += ["--device", "cpu", "--frame", "crop", "--size", "256", "--workers", "0"]
    assert main(command) == 1
    stdout, stderr = capsys.readouterr()
    assert "1 of 3 videos in" in stdout
    assert "row 2 (wall.mp4) was refused: " in stderr
    with (out / "report.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(row["row"], row["output"], row["state"]) for row in table] == [
        ("2", "wall.mp4", "refused"), ("3", "still.mp4", "refused"), ("4", "one.mp4", "made"),
    ]  # fmt: skip
    assert "wall.png" in table[0]["reason"]
    assert "wall.png" in table[1]["reason"]
    assert json.loads((out / "report.json").read_text())["refused"] == 2
    assert sorted(path.name for path in out.iterdir()) == ["one.mp4", "report.csv", "report.json"]
    assert main(["verify", str(out / "one.mp4")]) == 0, "it is marked"
    assert main(command) == 1
    assert "0 made" in capsys.readouterr().out


def test_results_go_to_a_url_and_are_found_there(make: Make, folder: Path) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    make(*LINES)
    make(*LINES, out=url)
    assert names(url, depth=2) == [
        "one.mp4", "people/two.mp4", "people/two.png", "report.csv", "report.json", "three.mp4",
    ]  # fmt: skip
    for name in ("one.mp4", "people/two.mp4", "people/two.png"):
        assert read(f"{url}/{name}") == (folder / "out" / name).read_bytes()
    assert make(*LINES, out=url).kept == 3


def test_inputs_come_from_urls(make: Make, folder: Path) -> None:
    from export3d.locations import upload

    url = f"memory://{uuid.uuid4().hex}"
    for name in ("face.png", "clip.mp4", "wall.png"):
        upload(folder / name, f"{url}/{name}")
    lines = (HEADER, f"{url}/face.png,,{url}/clip.mp4,a.mp4,0.08,", f"{url}/wall.png,speech,,b.mp4,,")
    first, second = make(*lines).rows
    assert (first.state, first.frames) == ("made", 2)
    assert (second.state, f"{url}/wall.png" in second.reason) == ("refused", True)
    upload(folder / "wall.png", f"{url}/face.png")
    assert make(*lines).kept == 0


def test_what_all_rows_need_ends_the_run(make: Make, folder: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing"):
        make(*LINES, weights="nothing")
    with pytest.raises(ConfigError, match="cuda:99"):
        make(*LINES, device="cuda:99")
    with pytest.raises(ConfigError, match="at least 1 frame"):
        make(*LINES, batch=0)


def test_inputs_and_reports_of_others_are_not_replaced(make: Make, folder: Path) -> None:
    with pytest.raises(OutputError, match=r"clip\.mp4 would overwrite an input"):
        make(HEADER, "face.png,,clip.mp4,clip.mp4,,", out=folder)
    (folder / "out").mkdir()
    (folder / "out" / "report.json").write_text('{"splits": {}}')
    with pytest.raises(OutputError, match="not a report of animations"):
        make(*LINES)


@pytest.mark.parametrize("name", ["report.json", "report.csv"])
def test_a_folder_in_place_of_a_report_is_refused_before_anything_is_made(name: str, make: Make, folder: Path) -> None:
    (folder / "out" / name).mkdir(parents=True)
    begun: list[int] = []
    with pytest.raises(OutputError, match=f"{name} is a folder, and the report has that name"):
        make(*LINES[:2], progress=lambda done, total, _: begun.append(done))
    assert begun == []
    assert [path.name for path in (folder / "out").iterdir()] == [name]


def test_a_run_that_made_nothing_leaves_no_folders(make: Make, folder: Path) -> None:
    def interrupted(done: int, *_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(*LINES, progress=interrupted)
    assert not (folder / "out").exists()
    with pytest.raises(OutputError, match="name too long"):
        make(HEADER, f"face.png,speech,,people/{'a' * 300}.mp4,,")
    assert not (folder / "out").exists()
    (folder / "out" / "mine").mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        make(*LINES, progress=interrupted)
    assert (folder / "out" / "mine").is_dir()


def test_an_interrupted_run_keeps_what_it_made(make: Make, folder: Path) -> None:
    def interrupted(done: int, *_: object) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(*LINES, progress=interrupted)
    assert len(list((folder / "out").rglob("*.mp4"))) == 1
    assert make(*LINES).kept == 1


def test_a_cut_or_replaced_result_is_made_again(make: Make, folder: Path) -> None:
    for out in (folder / "out", f"memory://{uuid.uuid4().hex}"):
        made = make(*LINES[:3], out=out)
        assert [len(row.sizes) for row in made.rows] == [1, 2]
        whole = read(inside(out, "people/two.png"))
        assert whole is not None
        write(inside(out, "people/two.png"), whole[:-1])
        assert make(*LINES[:3], out=out).kept == 1
        assert read(inside(out, "people/two.png")) == whole
        report = json.loads(read(inside(out, "report.json")) or b"")
        for row in report["rows"]:
            del row["sizes"]  # as older versions wrote it
        write(inside(out, "report.json"), json.dumps(report).encode())
        assert make(*LINES[:3], out=out).kept == 2


def test_a_second_list_does_not_make_the_first_one_forgotten(make: Make) -> None:
    first, second = LINES[:2], (HEADER, *LINES[3:])
    assert [make(*lines).kept for lines in (first, second, first, second)] == [0, 0, 1, 1]
    assert make(HEADER, "face.png,take.motion,,two.mp4,,one.png").kept == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"row": 2}',
        '{"row": 2, "output": ["x"], "sheet": null, "state": "made"}',
        '{"row": 2, "output": "x", "sheet": [], "state": "made"}',
        "[" * 100_000,
    ],
    ids=["empty", "list", "part", "output", "sheet", "deep"],
)
def test_damaged_notes_are_ignored_and_a_damaged_report_is_refused(make: Make, folder: Path, text: str) -> None:
    (folder / "out" / ".batch").mkdir(parents=True)
    (folder / "out" / ".batch" / "x.json").write_text(text)
    assert make(*LINES[:2]).rows[0].state == "made"
    (folder / "out" / "report.json").write_text(f'{{"rows": [{text}]}}' if text else "[]")
    with pytest.raises(OutputError, match="not a report of animations"):
        make(*LINES[:2])


def test_unfinished_work_lies_in_a_folder_of_its_own(make: Make, folder: Path) -> None:
    (folder / "other" / "sub").mkdir(parents=True)
    (folder / "out").mkdir()
    (folder / "out" / ".batch").symlink_to(folder / "other")
    with pytest.raises(OutputError, match=r"\.batch is a link or a file"):
        make(*LINES[:2])
    assert (folder / "other" / "sub").is_dir()


def test_a_failed_run_removes_only_what_it_made_aside(make: Make, folder: Path) -> None:
    for name in ("making-1", "mine"):
        (folder / "out" / ".batch" / name).mkdir(parents=True)
    with pytest.raises(ConfigError):
        make(*LINES[:2], device="cuda:99")
    assert [path.name for path in (folder / "out" / ".batch").iterdir()] == ["mine"]


def test_outputs_that_are_one_file_or_impossible_are_refused_with_their_row(make: Make, folder: Path) -> None:
    (folder / "out" / "d").mkdir(parents=True)
    (folder / "out" / "e").symlink_to("d")
    with pytest.raises(OutputError, match=r"row 3: .*e/x\.mp4 and d/x\.mp4 are one file, through a link"):
        make(HEADER, "face.png,speech,,d/x.mp4,,", "face.png,speech,,e/x.mp4,,")
    with pytest.raises(OutputError, match=r"^cannot create the folder .*take\.motion: a file has this name"):
        make(*LINES[:2], out=folder / "take.motion")
    with pytest.raises(OutputError, match=r"row 2: cannot write .*name too long; choose a shorter name"):
        make(HEADER, f"face.png,speech,,{'a' * 300}.mp4,,")


def test_the_memory_of_this_process_is_no_place_for_what_others_make(make: Make) -> None:
    with pytest.raises(OutputError, match="memory://out is the memory of this process"):
        make(*LINES, out="memory://out", workers=1)


def test_options_that_need_a_list_say_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    face, out = str(folder / "face.png"), str(folder / "out")
    for line, words in (
        ([face, "--motion", "speech", "--workers", "2"], "--workers and --ray are for --batch"),
        ([face, "--motion", "speech", "--batch", "8"], "--batch-size"),
        (["--batch", "list.csv", "--sheet", "a.png"], "give the list a column sheet"),
        (["--motion", "speech"], "the portrait is missing"),
        ([face], "the driving motion is missing"),
    ):
        assert main(["animate", *line, "-o", out]) == 2
        assert words in capsys.readouterr().err
