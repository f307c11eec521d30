from __future__ import annotations

import csv
import importlib.util
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export3d.cli.main import main
from export3d.data import prepare as module
from export3d.data.clips import Limits
from export3d.data.frames import FrameStore
from export3d.data.manifest import coefficients_of, find_files, read_manifest
from export3d.data.prepare import Report, prepare, prepared_from
from export3d.data.shard_writer import verify
from export3d.data.shards import read_index, read_shards
from export3d.errors import ConfigError, InputError, OutputError
from export3d.face.tracker import Tracker
from export3d.locations import local_copy, upload
from export3d.workers.outcome import Crash

Draw = Callable[..., Path]

needs_mediapipe = pytest.mark.skipif(importlib.util.find_spec("mediapipe") is None, reason="mediapipe is not installed")


@pytest.fixture
def clips(tmp_path: Path, draw_clip: Draw, draw_frame: Callable[..., np.ndarray]) -> Path:
    """Three clips (one too short), a portrait in a sub-folder, a damaged video and a text nobody asked for."""
    folder = tmp_path / "in"
    (folder / "more").mkdir(parents=True)
    draw_clip(folder / "anna.mp4", [160] * 20)
    draw_clip(folder / "bob.mp4", [150] * 16 + [170] * 4)
    draw_clip(folder / "short.mp4", [160] * 5)
    Image.fromarray(draw_frame()).save(folder / "more" / "carla.png")
    (folder / "broken.mp4").write_text("not a video at all")
    (folder / "notes.txt").write_text("nobody asked")
    return folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, painted_tracker: Tracker) -> list[str]:
    """Makes `prepare` see drawings as faces; the list gets the name of every file that is worked on."""
    worked: list[str] = []
    real = module.records_of

    def counting(path: Path, *rest: object) -> object:
        worked.append(path.name)
        return real(path, *rest)

    monkeypatch.setattr(module, "Tracker", lambda: painted_tracker)
    monkeypatch.setattr(module, "records_of", counting)
    return worked


def run(inputs: list[Path] | Path, out: Path, *rest: object, **options: object) -> Report:
    return prepare([inputs] if isinstance(inputs, Path) else inputs, out, *rest, **{"workers": 0, **options})


def keys(out: Path, split: str = "train") -> set[str]:
    return {entry.key for entry in read_index(out / split).entries}


def write_manifest(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(["file,person,split,terms,source", *rows]) + "\n")
    return path


def test_a_folder_becomes_shards_and_a_report(clips: Path, tmp_path: Path, drawn: list[str]) -> None:
    out = tmp_path / "out"
    seen: list[tuple[int, int, str]] = []
    report = run(clips, out, progress=lambda *step: seen.append(step))
    assert keys(out) == {"anna", "bob", "carla"}
    assert verify(out / "train") == []
    assert {(r.file, r.reason) for r in report.rejects} == {("short.mp4", "too short"), ("broken.mp4", "unreadable")}
    assert (report.done, report.skipped, report.ignored) == (5, 0, 1)
    figures = report.splits["train"]
    assert (figures["videos"], figures["images"], figures["frames"], figures["people"]) == (2, 1, 41, 3)
    assert sorted(step[0] for step in seen) == [1, 2, 3, 4, 5]
    assert {step[1] for step in seen} == {5}
    saved = json.loads((out / "report.json").read_text())
    assert saved["reasons"] == {"too short": 1, "unreadable": 1}
    with (out / "report.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["file"] for row in rows] == [reject["file"] for reject in saved["rejects"]]
    assert "refused: 1 " in report.summary()
    assert not list(out.rglob("parts"))


def test_a_video_that_is_cut_off_is_called_as_in_the_report(clips: Path, tmp_path: Path, drawn: list[str]) -> None:
    whole = (clips / "anna.mp4").read_bytes()
    (clips / "more" / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    report = run(clips, tmp_path / "out")
    (told,) = [reject.detail for reject in report.rejects if reject.file == "more/cut.mp4"]
    assert told.startswith("more/cut.mp4 holds no frame that can be decoded")


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there, and there are no pipes")
def test_broken_links_and_pipes_that_promise_a_video_are_told(clips: Path, tmp_path: Path, drawn: list[str]) -> None:
    """A pipe is not waited for, whatever its name promises."""
    (clips / "gone.mp4").symlink_to("moved.mp4")
    os.mkfifo(clips / "more" / "pipe.mp4")
    os.mkfifo(clips / "pipe")
    (clips / "link").symlink_to("nowhere")
    report = run(clips, tmp_path / "out")
    told = {reject.file: reject.detail for reject in report.rejects if reject.reason == "unreadable"}
    assert told.pop("broken.mp4")
    assert told == {
        "gone.mp4": "gone.mp4 is a link to nothing; replace it by the file",
        "more/pipe.mp4": "more/pipe.mp4 is not a regular file; replace it by the file",
    }
    assert (report.done, report.ignored) == (5, 3)
    assert keys(tmp_path / "out") == {"anna", "bob", "carla"}


def test_records_say_where_they_come_from_but_not_where_it_lay(clips: Path, tmp_path: Path, drawn: list[str]) -> None:
    run(clips, tmp_path / "out")
    record = next(record for record in read_shards(tmp_path / "out" / "train") if record.key == "carla")
    assert record.info["file"] == "more/carla.png"
    assert (record.info["person"], record.info["split"], record.info["terms"]) == ("carla", "train", "unstated")
    assert record.info["tool"].startswith("export3d ")
    assert str(tmp_path) not in json.dumps(record.info)


def test_a_manifest_gives_people_splits_and_terms(clips: Path, tmp_path: Path, drawn: list[str]) -> None:
    manifest = write_manifest(
        clips / "list.csv",
        "anna.mp4,p1,train,open,somewhere",
        "more/carla.png,p2,val,non-commercial,elsewhere",
        "gone.mp4,p3,train,,",
    )
    report = run([], tmp_path / "out", manifest)
    assert (keys(tmp_path / "out"), keys(tmp_path / "out", "val")) == ({"anna"}, {"carla"})
    [record] = read_shards(tmp_path / "out" / "val")
    assert (record.info["person"], record.info["terms"]) == ("p2", "non-commercial")
    assert record.info["origin"] == {"source": "elsewhere"}
    assert report.splits["val"]["terms"] == {"non-commercial": 1}
    assert [(r.file, r.reason) for r in report.rejects] == [("gone.mp4", "unreadable")]


def test_a_manifest_may_name_the_sitting_of_a_portrait(clips: Path, tmp_path: Path, drawn: list[str]) -> None:
    rows = ("file,person,split,sitting", "anna.mp4,p1,train,", "more/carla.png,p2,train, monday")
    plain = clips / "plain.csv"
    plain.write_text("\n".join(row.rpartition(",")[0] for row in rows) + "\n")
    run([], tmp_path / "out", plain)
    manifest = clips / "list.csv"
    manifest.write_text("\n".join(rows) + "\n")
    report = run([], tmp_path / "out", manifest)
    assert (report.done, report.skipped) == (1, 1), "a file without a sitting stays as it was"
    assert {entry.key: entry.sitting for entry in read_index(tmp_path / "out" / "train").entries} == {
        "anna": "",
        "carla": "monday",
    }
    entries = json.loads((tmp_path / "out" / "train" / "index.json").read_text())["entries"]
    assert [entry["key"] for entry in entries if "sitting" in entry] == ["carla"], "earlier releases read the rest"


def test_files_without_a_line_in_the_manifest_are_refused(clips: Path, tmp_path: Path, drawn: list[str]) -> None:
    manifest = write_manifest(clips / "list.csv", "anna.mp4,p1,train,open,x")
    report = run([clips / "anna.mp4", clips / "bob.mp4"], tmp_path / "out", manifest)
    assert [(r.file, r.reason) for r in report.rejects] == [("bob.mp4", "not in the manifest")]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["anna.mp4,p1,train,,", "bob.mp4,p1,val,,"], "a person belongs to one split"),
        (["anna.mp4,,train,,"], "line 2 needs"),
        (["anna.mp4,p1,../x,,"], "line 2 needs"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused(clips: Path, tmp_path: Path, rows: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        run([], tmp_path / "out", write_manifest(clips / "list.csv", *rows))
    assert not (tmp_path / "out").exists()


def test_a_manifest_needs_its_columns(clips: Path, tmp_path: Path) -> None:
    (clips / "list.csv").write_text("file,who\nanna.mp4,p1\n")
    with pytest.raises(InputError, match="lacks the columns person, split"):
        run([], tmp_path / "out", clips / "list.csv")


def test_the_report_says_where_the_files_are_relative_to_it(clips: Path, tmp_path: Path, drawn: list[str]) -> None:
    out, name = tmp_path / "sets" / "out", os.path.relpath(clips, tmp_path / "sets" / "out")
    run([clips / "anna.mp4"], out)
    assert prepared_from(out) == [name]
    (tmp_path / "lists").mkdir()
    row = f"{os.path.relpath(clips, tmp_path / 'lists')}/anna.mp4,anna,train,,"
    run([], out, write_manifest(tmp_path / "lists" / "list.csv", row))
    assert prepared_from(out) == [name, os.path.join("..", "..", "lists")]
    (out / "report.json").write_text("[")
    assert prepared_from(out) == []


@pytest.fixture
def many(tmp_path: Path, draw_clip: Draw, draw_frame: Callable[..., np.ndarray]) -> Path:
    """Ten clips of as many frames as nothing else has, and a portrait."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(10):
        draw_clip(folder / f"take{number}.mp4", [160] * (16 + number))
    Image.fromarray(draw_frame()).save(folder / "portrait.png")
    return folder


@pytest.mark.slow
def test_without_a_manifest_a_tenth_of_the_videos_is_held_out(many: Path, tmp_path: Path, drawn: list[str]) -> None:
    run(many, tmp_path / "out")
    train, val = keys(tmp_path / "out"), keys(tmp_path / "out", "val")
    assert len(val) == 1
    assert train | val == {"portrait", *(f"take{number}" for number in range(10))}
    assert not train & val
    assert drawn[0] == f"{min(val)}.mp4", "validation data first"
    run(many, tmp_path / "again")
    assert keys(tmp_path / "again", "val") == val, "the names alone decide"


@pytest.mark.slow
def test_a_chosen_share_of_the_videos_is_held_out(many: Path, tmp_path: Path, drawn: list[str]) -> None:
    run(many, tmp_path / "most", val_fraction=0.6)
    assert len(keys(tmp_path / "most", "val")) == 6
    assert "portrait" in keys(tmp_path / "most"), "a portrait has no second frame to validate with"
    run(many, tmp_path / "none", val_fraction=0.0)
    assert not (tmp_path / "none" / "val").exists()


@pytest.mark.slow
def test_further_videos_move_none_to_the_other_split(many: Path, tmp_path: Path, drawn: list[str]) -> None:
    first = [many / f"take{number}.mp4" for number in range(4)]
    run(first, tmp_path / "out")
    held = keys(tmp_path / "out", "val")
    assert len(held) == 1
    drawn.clear()
    run(many, tmp_path / "out", val_fraction=0.5)
    assert held <= keys(tmp_path / "out", "val")
    assert len(keys(tmp_path / "out", "val")) == 5
    assert not {path.name for path in first} & set(drawn), "what is trained on stays trained on"


def test_of_three_videos_none_is_held_out(many: Path, tmp_path: Path, drawn: list[str]) -> None:
    run([many / f"take{number}.mp4" for number in range(3)], tmp_path / "out")
    assert len(keys(tmp_path / "out")) == 3
    assert not (tmp_path / "out" / "val").exists()


@pytest.mark.parametrize(
    ("videos", "share", "held"), [(2, 0.5, 1), (3, 0.1, 1), (2, 0.99, 1), (1, 0.5, 0), (3, 0.0, 0)]
)
def test_a_share_that_is_asked_for_holds_out_one_of_few(
    many: Path, tmp_path: Path, drawn: list[str], videos: int, share: float, held: int
) -> None:
    out = tmp_path / "out"
    run([many / f"take{number}.mp4" for number in range(videos)], out, val_fraction=share)
    assert (len(keys(out, "val")) if (out / "val").exists() else 0) == held
    assert len(keys(out)) == videos - held


@pytest.mark.slow
def test_another_video_is_held_out_where_the_first_choice_is_refused(
    many: Path, tmp_path: Path, drawn: list[str], draw_clip: Draw
) -> None:
    run(many, tmp_path / "first")
    [choice] = keys(tmp_path / "first", "val")
    draw_clip(many / f"{choice}.mp4", [160] * 4)
    report = run(many, tmp_path / "out")
    [other] = keys(tmp_path / "out", "val")
    assert other != choice
    assert len(keys(tmp_path / "out")) == 9
    assert [(reject.file, reject.split) for reject in report.rejects] == [(f"{choice}.mp4", "train")]


def test_a_split_of_refused_videos_does_not_stay(tmp_path: Path, drawn: list[str], draw_clip: Draw) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    for number in range(4):
        draw_clip(folder / f"take{number}.mp4", [160] * (3 + number))
    report = run(folder, tmp_path / "out")
    assert len(report.rejects) == 4
    assert not (tmp_path / "out" / "val").exists()
    for number in range(4):
        draw_clip(folder / f"take{number}.mp4", [120 + 10 * number] * 40)
    run(folder, tmp_path / "out")
    assert len(keys(tmp_path / "out", "val")) == 1, "files of the same names with other contents are other files"


@pytest.mark.slow
def test_what_was_finished_is_not_done_again(clips: Path, tmp_path: Path, drawn: list[str]) -> None:
    out = tmp_path / "out"
    run(clips, out)
    index = (out / "train" / "index.json").read_bytes()
    drawn.clear()
    report = run(clips, out)
    assert drawn == []
    assert (report.done, report.skipped, len(report.rejects)) == (0, 5, 2)
    assert (out / "train" / "index.json").read_bytes() == index
    shutil.copytree(clips, tmp_path / "moved")  # the same contents elsewhere are the same files
    assert run(tmp_path / "moved", out).done == 0
    run(clips, out, resume=False)
    assert len(drawn) == 5
    assert verify(out / "train") == []
    assert len(read_index(out / "train").entries) == 3


def test_an_interrupted_run_goes_on_where_it_stopped(
    clips: Path, tmp_path: Path, drawn: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def stop(done: int, total: int, name: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(clips, out, progress=stop)
    assert not (out / "train" / "index.json").exists()
    # What a kill leaves in the middle of a file: a part that lacks its marker.
    (out / "train" / "parts" / "half.tar").write_bytes(b"half")
    first = set(drawn)
    drawn.clear()
    report = run(clips, out)
    assert len(first) == 2
    assert not first & set(drawn)
    assert (report.done, report.skipped) == (3, 2)
    assert keys(out) == {"anna", "bob", "carla"}
    assert len(report.rejects) == 2
    assert verify(out / "train") == []
    assert not (out / "train" / "parts").exists()


@pytest.mark.slow
def test_the_same_clips_give_the_same_shards_interrupted_or_not(clips: Path, tmp_path: Path, drawn: list[str]) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(clips, tmp_path / "a", progress=stop)
    run(clips, tmp_path / "a")
    run(clips, tmp_path / "b")
    a, b = (read_index(tmp_path / name / "train") for name in "ab")
    assert a.shards == b.shards
    assert a.entries == b.entries


@pytest.mark.slow
def test_a_changed_file_replaces_its_former_record(
    clips: Path, tmp_path: Path, drawn: list[str], draw_clip: Draw
) -> None:
    out = tmp_path / "out"
    run(clips, out)
    draw_clip(clips / "anna.mp4", [160] * 33)
    draw_clip(clips / "short.mp4", [165] * 18)
    (clips / "bob.mp4").write_text("damaged since")
    report = run(clips, out)
    assert {entry.key: entry.frames for entry in read_index(out / "train").entries} == {
        "anna": 33,
        "carla": 1,
        "short": 18,
    }
    assert {r.file for r in report.rejects} == {"broken.mp4", "bob.mp4"}
    assert verify(out / "train") == []


def test_new_clips_are_added_to_old_ones(clips: Path, tmp_path: Path, drawn: list[str]) -> None:
    run(clips / "anna.mp4", tmp_path / "out")
    run(clips / "more", tmp_path / "out")
    assert keys(tmp_path / "out") == {"anna", "carla"}


def test_a_person_who_moves_to_another_split_leaves_the_first(clips: Path, tmp_path: Path, drawn: list[str]) -> None:
    out = tmp_path / "out"
    run([], out, write_manifest(clips / "list.csv", "anna.mp4,p1,train,,", "bob.mp4,p2,train,,"))
    run([], out, write_manifest(clips / "list.csv", "anna.mp4,p1,val,,", "bob.mp4,p2,train,,"))
    assert (keys(out), keys(out, "val")) == ({"bob"}, {"anna"})
    assert verify(out / "train") == []


@pytest.mark.slow
def test_files_of_one_name_get_keys_of_their_own(
    clips: Path, tmp_path: Path, drawn: list[str], draw_clip: Draw
) -> None:
    draw_clip(clips / "more" / "anna.mp4", [150] * 22)
    draw_clip(clips / "an na.mp4", [140] * 21)
    run(clips, tmp_path / "out", val_fraction=0.0)
    entries = {entry.file: entry.key for entry in read_index(tmp_path / "out" / "train").entries}
    assert entries["an na.mp4"] == "an_na"
    assert entries["anna.mp4"] != entries["more/anna.mp4"]
    assert all(entries[name].startswith("anna-") for name in ("anna.mp4", "more/anna.mp4"))


def test_a_copy_under_another_name_is_refused(clips: Path, tmp_path: Path, drawn: list[str]) -> None:
    shutil.copy(clips / "anna.mp4", clips / "again.mp4")
    report = run(clips, tmp_path / "out")
    assert [(r.file, r.detail) for r in report.rejects if r.reason == "duplicate"] == [
        ("anna.mp4", "anna.mp4 has the same contents as again.mp4")
    ]


def test_a_file_that_breaks_the_tracker_is_a_reject_not_a_crash(
    clips: Path, tmp_path: Path, drawn: list[str], painted_tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    track = painted_tracker.track_video

    def fragile(path: Path, fps: float) -> object:
        if path.name == "bob.mp4":
            raise ZeroDivisionError("odd file")
        return track(path, fps)

    monkeypatch.setattr(painted_tracker, "track_video", fragile)
    report = run(clips, tmp_path / "out")
    assert keys(tmp_path / "out") == {"anna", "carla"}
    assert ("failed", "ZeroDivisionError: odd file") in {(r.reason, r.detail) for r in report.rejects}


def test_a_file_that_killed_its_process_is_reported_and_tried_again_next_time(
    clips: Path, tmp_path: Path, drawn: list[str], painted_tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.run_jobs

    def crashing(jobs: list, start: object, workers: int) -> object:
        for job in jobs:
            yield (job, Crash(-9)) if job.file == "anna.mp4" else next(iter(real([job], start, workers)))

    monkeypatch.setattr(module, "run_jobs", crashing)
    report = run(clips, tmp_path / "out")
    assert ("anna.mp4", "crashed") in {(r.file, r.reason) for r in report.rejects}
    assert keys(tmp_path / "out") == {"bob", "carla"}
    monkeypatch.undo()
    monkeypatch.setattr(module, "Tracker", lambda: painted_tracker)
    report = run(clips, tmp_path / "out")
    assert (report.done, report.skipped) == (1, 4)
    assert keys(tmp_path / "out") == {"anna", "bob", "carla"}


def test_an_output_that_cannot_be_written_ends_the_run(clips: Path, tmp_path: Path, drawn: list[str]) -> None:
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(OutputError):
        run(clips, tmp_path / "out")


@pytest.mark.parametrize("name", ["report.json", "report.csv"])
def test_a_folder_in_place_of_a_report_is_refused_first(
    name: str, clips: Path, tmp_path: Path, drawn: list[str]
) -> None:
    (tmp_path / "out" / name).mkdir(parents=True)
    with pytest.raises(OutputError, match=rf"{name} is a folder, and the report has that name; move it away"):
        run(clips, tmp_path / "out")
    assert drawn == []


def test_a_full_disk_ends_the_run_and_keeps_what_was_finished(
    clips: Path, tmp_path: Path, drawn: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.write_tar

    def full(path: Path, records: list) -> None:
        if records[0].key == "carla":
            raise OutputError("disk full")
        real(path, records)

    monkeypatch.setattr(module, "write_tar", full)
    with pytest.raises(OutputError, match="disk full"):
        run(clips, tmp_path / "out")
    finished = len(set(drawn)) - 1
    monkeypatch.setattr(module, "write_tar", real)
    report = run(clips, tmp_path / "out")
    assert report.skipped == finished
    assert keys(tmp_path / "out") == {"anna", "bob", "carla"}


def test_a_url_that_cannot_be_read_now_is_tried_again_by_the_next_run(
    clips: Path, tmp_path: Path, drawn: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, lost = f"memory://{tmp_path.name}", {"anna"}
    for path in clips.rglob("*.*"):
        upload(path, f"{url}/{path.name}")

    def cut(place: str) -> AbstractContextManager[Path]:
        if Path(place).stem in lost:
            raise InputError(f"{place} cannot be read (cut)")
        return local_copy(place)

    monkeypatch.setattr(module, "local_copy", cut)
    report = prepare([url], tmp_path / "out", workers=0)
    assert [r.detail for r in report.rejects if r.reason == "not read"] == [
        f"{url}/anna.mp4 cannot be read (cut); run again"
    ]
    assert keys(tmp_path / "out") == {"bob", "carla"}
    lost = {"bob", "carla", "short", "broken", "anna"}
    with pytest.raises(InputError, match=r"cannot be read \(cut\)"):
        prepare([url], tmp_path / "other", workers=0)
    lost = set()
    report = prepare([url], tmp_path / "out", workers=0)
    assert (report.done, report.skipped) == (1, 4)
    assert keys(tmp_path / "out") == {"anna", "bob", "carla"}
    assert not any("/export3d-" in reject.detail for reject in report.rejects), "a copy's name tells nobody anything"


def test_inputs_that_do_not_exist_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.mp4 does not exist"):
        run(tmp_path / "gone.mp4", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="nothing to prepare"):
        run(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(ConfigError, match="must be at least 0 and below 1, got 1"):
        run(tmp_path / "empty", tmp_path / "out", val_fraction=1.0)
    with pytest.raises(ConfigError, match="leave val_fraction out"):
        run([], tmp_path / "out", tmp_path / "list.csv", val_fraction=0.5)


@pytest.mark.slow
def test_limits_change_what_is_accepted_and_what_counts_as_finished(
    clips: Path, tmp_path: Path, drawn: list[str]
) -> None:
    run(clips, tmp_path / "out")
    report = run(clips, tmp_path / "out", limits=Limits(min_frames=4))
    assert report.done == 5
    assert keys(tmp_path / "out") == {"anna", "bob", "carla", "short"}


def test_notes_of_the_tracker_reach_the_log(
    tmp_path: Path, drawn: list[str], draw_clip: Draw, caplog: pytest.LogCaptureFixture
) -> None:
    path = draw_clip(tmp_path / "gap.mp4", [160] * 20 + [None] + [160] * 20)
    with caplog.at_level(logging.INFO, logger="export3d"):
        run(path, tmp_path / "out")
    assert any("the face was lost in 1 of 41 frames" in message for message in caplog.messages)


@pytest.mark.slow
@needs_mediapipe
def test_the_astronaut_passes_through_two_processes(tmp_path: Path, astronaut_path: Path) -> None:
    """The real tracker, the real pool, the bundled picture; beside it files that are no faces."""
    shutil.copy(astronaut_path, tmp_path / "astronaut.png")
    Image.new("RGB", (300, 200), "grey").save(tmp_path / "grey.png")
    (tmp_path / "broken.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(100))
    inputs = [tmp_path / name for name in ("astronaut.png", "grey.png", "broken.mp4")]
    report = prepare(inputs, tmp_path / "out", workers=2)
    assert {r.file: r.reason for r in report.rejects} == {"grey.png": "no face", "broken.mp4": "unreadable"}
    [record] = read_shards(tmp_path / "out" / "train")
    assert record.key == "astronaut"
    assert record.info["reprojection_px"] < 4.0
    nose, forehead, chin = record.landmarks[0, [4, 10, 152]].astype(float)
    np.testing.assert_allclose(nose, [0.5, 0.5], atol=0.001)
    assert np.linalg.norm(forehead - chin) == pytest.approx(1 / 1.9, abs=0.002)
    store = FrameStore.load(tmp_path / "out" / "train", 64)
    assert store.frames.float().std() > 30


@pytest.mark.slow
@needs_mediapipe
def test_real_clips_are_tracked_well(tmp_path: Path, shared_data: Path) -> None:
    with (shared_data / "manifest.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["kind"] == "video" and row["split"] == "val"]
    rows.sort(key=lambda row: int(row["frames"]))
    report = prepare([shared_data / row["file"] for row in rows[:2]], tmp_path / "out", shared_data / "manifest.csv", 0)
    assert report.rejects == ()
    records = list(read_shards(tmp_path / "out" / "val"))
    assert {record.info["person"] for record in records} == {row["person"] for row in rows[:2]}
    for record, row in zip(sorted(records, key=lambda r: r.key), sorted(rows[:2], key=lambda r: r["file"])):
        assert record.frames == pytest.approx(int(row["frames"]) / float(row["fps"]) * 25, abs=2)
        assert record.found.mean() >= 0.97
        assert record.info["reprojection_px"] < 1.5
        assert record.info["terms"] == row["terms"]


# ---- coefficients instead of tracked scores --------------------------------------------------------------------------


@pytest.fixture
def fitted(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Coefficients of `clips`: files of both layouts, a folder of single frames, and a portrait's in a sub-folder."""
    folder = tmp_path / "fitted"
    (folder / "more").mkdir(parents=True)
    (folder / "bob").mkdir()
    np.savez(folder / "anna.npz", coeff=rng.normal(size=(20, 257)))
    for frame in range(20):
        np.savez(folder / "bob" / f"{frame}.npz", exp=np.full((1, 64), frame))
    np.savez(folder / "more" / "carla.npz", exp=rng.normal(size=(1, 64)))
    for name in ("short", "broken"):
        np.savez(folder / f"{name}.npz", exp=np.zeros((5, 64)))
    return folder


@pytest.mark.slow
def test_coefficients_replace_the_tracked_scores(clips: Path, fitted: Path, tmp_path: Path, drawn: list[str]) -> None:
    out = tmp_path / "out"
    report = run(clips, out, coefficients=fitted)
    assert {(r.file, r.reason) for r in report.rejects} == {("short.mp4", "too short"), ("broken.mp4", "unreadable")}
    index = read_index(out / "train")
    assert (index.space, index.expression_size) == ("bfm64", 64)
    assert verify(out / "train") == []
    records = {record.key: record for record in read_shards(out / "train")}
    with np.load(fitted / "anna.npz") as given:
        np.testing.assert_array_equal(records["anna"].expression, given["coeff"][:, 80:144].astype(np.float32))
    np.testing.assert_array_equal(records["bob"].expression[:, 0], np.arange(20))
    assert records["bob"].info["coefficients"] == "bob"
    assert {record.info["space"] for record in records.values()} == {"bfm64"}
    tracked = tmp_path / "tracked"
    run(clips, tracked)
    for record in read_shards(tracked / "train"):
        np.testing.assert_array_equal(record.camera, records[record.key].camera)


def test_each_part_of_a_clip_gets_its_own_coefficients(tmp_path: Path, drawn: list[str], draw_clip: Draw) -> None:
    path = draw_clip(tmp_path / "cut.mp4", [130] * 18 + [195] * 20)
    np.savez(tmp_path / "cut.npz", exp=np.repeat(np.arange(38.0)[:, None], 64, 1))
    run(path, tmp_path / "out", coefficients=tmp_path)
    parts = {record.key: record.expression[:, 5] for record in read_shards(tmp_path / "out" / "train")}
    np.testing.assert_array_equal(parts["cut-01"], np.arange(18))
    np.testing.assert_array_equal(parts["cut-02"], np.arange(18, 38))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"exp": np.zeros((19, 64))}, r"holds 19 frames, but anna\.mp4 has 20 at 25 per second; convert it"),
        ({"exp": np.zeros((20, 63))}, r"must hold exp \(T, 64\)"),
        ({"coeff": np.zeros((20, 256))}, "no coefficients of the 257 layout"),
        ({"exp": np.where(np.arange(20)[:, None] == 7, np.nan, np.zeros((20, 64)))}, "NaN.* in frame 7 .1 of 20"),
        ({"exp": np.full((20, 64), 1e30)}, "values above 1000 in frame 0"),
        (None, "is not a .mat or .npz file but"),
        ({}, "no coefficients of the 257 layout"),
    ],
)
def test_coefficients_that_cannot_be_used_are_one_sentence(
    clips: Path, tmp_path: Path, drawn: list[str], arrays: dict[str, np.ndarray] | None, words: str
) -> None:
    (tmp_path / "fitted").mkdir()
    np.savez(tmp_path / "fitted" / "anna.npz", **(arrays or {}))  # type: ignore[arg-type]
    if arrays is None:
        (tmp_path / "fitted" / "anna.npz").write_text("expression, frame by frame")
    [reject] = run(clips / "anna.mp4", tmp_path / "out", coefficients=tmp_path / "fitted").rejects
    assert reject.reason == "coefficients"
    assert re.search(words, reject.detail)
    assert "\n" not in reject.detail


@pytest.mark.slow
def test_missing_and_ambiguous_coefficients_are_named(clips: Path, tmp_path: Path, drawn: list[str]) -> None:
    fitted = tmp_path / "fitted"
    (fitted / "bob").mkdir(parents=True)
    np.savez(fitted / "bob.npz", exp=np.zeros((20, 64)))
    report = run([clips / "anna.mp4", clips / "bob.mp4"], tmp_path / "out", coefficients=fitted)
    details = {r.file: r.detail for r in report.rejects}
    assert "anna.mp4 has no coefficients; give them as" in details["anna.mp4"]
    assert "several coefficients" in details["bob.mp4"]
    assert drawn == [], "nothing is tracked in vain"
    (fitted / "bob").rmdir()
    np.savez(fitted / "anna.npz", exp=np.zeros((20, 64)))
    assert run([clips / "anna.mp4", clips / "bob.mp4"], tmp_path / "out", coefficients=fitted).rejects == ()
    np.savez(fitted / "anna.npz", exp=np.ones((20, 64)))
    assert run([clips / "anna.mp4", clips / "bob.mp4"], tmp_path / "out", coefficients=fitted).done == 1
    record = next(record for record in read_shards(tmp_path / "out" / "train") if record.key == "anna")
    assert record.expression.min() == 1.0


def test_one_folder_holds_one_expression_space(clips: Path, fitted: Path, tmp_path: Path, drawn: list[str]) -> None:
    run(clips / "anna.mp4", tmp_path / "out")
    before = list(drawn)
    with pytest.raises(InputError, match="expressions in arkit52, and bfm64 cannot be added"):
        run(clips / "bob.mp4", tmp_path / "out", coefficients=fitted)
    with pytest.raises(InputError, match="is not a folder"):
        run(clips / "bob.mp4", tmp_path / "other", coefficients=fitted / "anna.npz")
    assert drawn == before
    assert not (tmp_path / "other").exists()


def test_the_command_says_why_no_coefficients_can_be_used(
    clips: Path, tmp_path: Path, drawn: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fitted").mkdir()
    prepared = ["prepare", str(clips / "anna.mp4"), "-o", str(tmp_path / "out"), "--workers", "0"]
    assert main([*prepared, "--coefficients", str(tmp_path / "fitted")]) == 2
    said = capsys.readouterr().err
    assert "none of 1 file can be used; the first: anna.mp4 has no coefficients" in said
    assert said.count("\n") == 1


def test_coefficients_of_paths_outside_the_folder_go_by_the_last_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.y.npz", exp=np.zeros((1, 64)))
    for file in ("x.y.mp4", "../clips/x.y.mp4", "/data/x.y.mp4"):
        assert coefficients_of(tmp_path, file) == tmp_path / "x.y.npz"
    with pytest.raises(InputError, match=r"a/x\.y\.mp4 has no coefficients"):
        coefficients_of(tmp_path, "a/x.y.mp4")


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_what_cannot_be_reached_in_a_folder_is_named_and_the_rest_prepared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "circle").symlink_to("circle")
    assert find_files([tmp_path], None) == ([(tmp_path / "a.mp4", "a.mp4")], 0)
    assert "circle cannot be opened (too many levels of symbolic links)" in caplog.text


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read everything")
def test_a_folder_that_cannot_be_read_is_not_called_empty(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0)
    with pytest.raises(InputError, match=r"locked cannot be opened \(permission denied\)"):
        find_files([tmp_path / "locked"], None)


def test_a_manifest_cannot_name_a_file_with_a_nul_character(tmp_path: Path) -> None:
    (tmp_path / "people.csv").write_text("file,person,split\na\0.mp4,anna,train\n")
    with pytest.raises(InputError, match=r"people\.csv"):
        read_manifest(tmp_path / "people.csv")
