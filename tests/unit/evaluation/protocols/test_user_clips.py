"""Any folder of the user's own videos becomes one split of what is in it now; what is left out is named."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export3d.data import prepare as preparation
from export3d.data.shard_writer import verify
from export3d.data.shards import Record, read_index, read_shards
from export3d.errors import InputError, OutputError
from export3d.evaluation.protocols.user_clips import LEFT_OUT, left_out, prepare_clips
from export3d.video import VideoWriter

needs_mediapipe = pytest.mark.skipif(importlib.util.find_spec("mediapipe") is None, reason="mediapipe is not installed")
as_root = hasattr(os, "geteuid") and os.geteuid() == 0


class NoTracker:
    """Stands in for the tracker where faces do not matter."""


@pytest.fixture
def no_faces(monkeypatch: pytest.MonkeyPatch, make_clip: Callable[..., Record]) -> list[str]:
    """`prepare` takes every file for a clip (a file named `bad...` for none); the list gets what is worked on."""
    worked: list[str] = []

    def records_of(path: Path, key: str, info: dict[str, object], *rest: object) -> tuple[list[Record], list[object]]:
        worked.append(path.name)
        if path.name.startswith("bad"):
            raise preparation.Refusal("no face", f"no face in {path}")
        if path.name.startswith("part"):
            return [make_clip(key, **info)], [preparation.Refusal("too short", f"{path.name}, 1.0 to 1.2 s: too short")]
        return [make_clip(key, **info)], []

    monkeypatch.setattr(preparation, "Tracker", NoTracker)
    monkeypatch.setattr(preparation, "records_of", records_of)
    return worked


def video(path: Path, seed: int = 0) -> Path:
    """The head of an MP4 and bytes of its own: enough to be taken for a video."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0\0\0\x18ftypmp42" + bytes([seed]) * 500)
    return path


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """`anna/clip.mp4`, `bob/clip.mp4` and `carla.bin` (a video whatever its name says), beside what is none."""
    folder = tmp_path / "my videos"
    video(folder / "anna" / "clip.mp4", 1)
    video(folder / "bob" / "clip.mp4", 2)
    video(folder / "carla.bin", 3)
    Image.new("RGB", (64, 64)).save(folder / "poster.png")
    (folder / "notes.txt").write_text("who is who")
    (folder / ".DS_Store").touch()
    video(folder / ".trash" / "old.mp4", 4)
    video(folder / "anna" / "._clip.mp4", 5)
    return folder


def people(split: Path) -> list[str]:
    return sorted(entry.person for entry in read_index(split).entries)


def prepared(folder: Path, tmp_path: Path) -> Path:
    return prepare_clips(folder, tmp_path / "cache", workers=0)


# --- with real faces --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_mediapipe
def test_two_videos_and_a_portrait_become_a_split(
    face_video: Path, astronaut_turns: list[np.ndarray], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "Мои видео 2"
    (folder / "more").mkdir(parents=True)
    shutil.copy(face_video, folder / "Zoë 1.mp4")
    with VideoWriter(folder / "more" / "back.MOV.mp4", 25.0, 256) as writer:
        for frame in astronaut_turns[::-1]:
            writer.write(frame)
    with VideoWriter(folder / "wall.mp4", 25.0, 64) as writer:
        for frame in np.full((20, 64, 64, 3), 90, np.uint8):
            writer.write(frame)
    (folder / "broken.mp4").write_text("not a video at all")
    steps: list[tuple[int, int, str]] = []
    with caplog.at_level(logging.WARNING, "export3d"):
        split = prepare_clips(folder, tmp_path / "cache", workers=0, progress=lambda *step: steps.append(step))
    assert people(split) == ["Zoë 1.mp4", "more/back.MOV.mp4"]
    assert verify(split) == []
    records = list(read_shards(split))
    assert [record.frames for record in records] == [24, 24]
    assert all(record.found.all() and record.info["terms"] == "own" for record in records)
    assert {name for _, _, name in steps} == {"Zoë 1.mp4", "more/back.MOV.mp4", "wall.mp4", "broken.mp4"}
    assert [done for done, _, _ in steps] == [1, 2, 3, 4]
    reasons = left_out(split)
    assert list(reasons) == ["broken.mp4", "wall.mp4"]
    assert "neither a video nor an image" in reasons["broken.mp4"]
    assert "no face found in wall.mp4" in reasons["wall.mp4"]
    assert "broken.mp4 (unreadable), wall.mp4 (no face)" in caplog.text


@needs_mediapipe
def test_videos_without_faces_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "walls").mkdir()
    with VideoWriter(tmp_path / "walls" / "wall.mp4", 25.0, 64) as writer:
        for frame in np.full((20, 64, 64, 3), 90, np.uint8):
            writer.write(frame)
    with pytest.raises(InputError, match=r"no video in .*walls can be used: wall\.mp4 \(no face\)") as caught:
        prepared(tmp_path / "walls", tmp_path)
    assert "\n" not in str(caught.value)


# --- which files ------------------------------------------------------------------------------------------------------


def test_files_of_one_name_in_two_folders_are_two_people(videos: Path, tmp_path: Path, no_faces: list[str]) -> None:
    split = prepared(videos, tmp_path)
    assert people(split) == ["anna/clip.mp4", "bob/clip.mp4", "carla.bin"]
    assert len({entry.key for entry in read_index(split).entries}) == 3
    assert sorted(no_faces) == ["carla.bin", "clip.mp4", "clip.mp4"], "pictures, notes and hidden files are passed over"
    assert left_out(split) == {}


def test_all_clips_are_in_one_split_named_after_the_folder(videos: Path, tmp_path: Path, no_faces: list[str]) -> None:
    split = prepared(videos, tmp_path)
    assert split.name == "my_videos"
    assert [path.parent for path in (tmp_path / "cache").rglob("index.json")] == [split]
    assert {record.info["origin"]["source"] for record in read_shards(split)} == {"my videos"}


def test_the_users_folder_is_not_written_to(videos: Path, tmp_path: Path, no_faces: list[str]) -> None:
    before = sorted(videos.rglob("*"))
    prepared(videos, tmp_path)
    assert sorted(videos.rglob("*")) == before


def test_the_cache_may_lie_among_the_videos(videos: Path, no_faces: list[str]) -> None:
    split = prepare_clips(videos, videos, workers=0)
    video(split.parent / "stray.mp4", 9)
    assert people(prepare_clips(videos, videos, workers=0)) == ["anna/clip.mp4", "bob/clip.mp4", "carla.bin"]


def test_linked_folders_are_entered_once_and_circles_do_not_matter(
    videos: Path, tmp_path: Path, no_faces: list[str]
) -> None:
    video(tmp_path / "elsewhere" / "dora.mp4", 7)
    (videos / "linked").symlink_to(tmp_path / "elsewhere")
    (videos / "circle").symlink_to(videos)
    (tmp_path / "elsewhere" / "back").symlink_to(videos / "anna")
    assert people(prepared(videos, tmp_path)) == ["anna/clip.mp4", "bob/clip.mp4", "carla.bin", "linked/dora.mp4"]


def test_the_same_video_twice_counts_once_and_is_named(videos: Path, tmp_path: Path, no_faces: list[str]) -> None:
    (videos / "link.mp4").symlink_to(videos / "anna" / "clip.mp4")
    shutil.copy(videos / "bob" / "clip.mp4", videos / "copy.mp4")
    split = prepared(videos, tmp_path)
    assert len(people(split)) == 3
    reasons = left_out(split)
    assert len(reasons) == 2
    assert any("the same file as" in why for why in reasons.values())
    assert any("has the same contents as" in why for why in reasons.values())
    assert not any(str(tmp_path) in why for why in reasons.values())


ODD_FILES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a text": ("a.mp4", lambda path: path.write_text("text"), ""),
    "empty": ("a.MKV", lambda path: path.touch(), ""),
    "a picture": ("a.mp4", lambda path: Image.new("RGB", (64, 64)).save(path, "PNG"), "an image under the name of"),
    "a link to nothing": ("a.mov", lambda path: path.symlink_to("gone.mov"), "a link to nothing"),
    "unprintable": ("a\nb.mp4", lambda path: video(path, 8), "characters that cannot be printed"),
}
if hasattr(os, "mkfifo"):
    ODD_FILES["a pipe"] = ("a.mp4", os.mkfifo, "not a regular file")


@pytest.mark.parametrize("kind", ODD_FILES)
def test_what_is_called_a_video_and_is_none_is_named(
    kind: str, videos: Path, tmp_path: Path, no_faces: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, make, words = ODD_FILES[kind]
    make(videos / name)
    fake = preparation.records_of

    def records_of(path: Path, *rest: object) -> object:
        if path.name == name:
            raise preparation.Refusal("unreadable", f"{name} is neither a video nor an image")
        return fake(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(preparation, "records_of", records_of)
    split = prepared(videos, tmp_path)
    assert len(people(split)) == 3
    ((file, why),) = left_out(split).items()
    assert file == (ascii(name) if kind == "unprintable" else name)
    assert words in why
    if not words:
        assert "neither a video nor an image" in why


@pytest.mark.skipif(as_root, reason="the superuser may read everything")
@pytest.mark.parametrize("name", ["anna/clip.mp4", "anna"])
def test_what_may_not_be_read_is_named(name: str, videos: Path, tmp_path: Path, no_faces: list[str]) -> None:
    (videos / name).chmod(0)
    try:
        split = prepared(videos, tmp_path)
    finally:
        (videos / name).chmod(0o700)
    assert people(split) == ["bob/clip.mp4", "carla.bin"]
    assert "permission denied" in left_out(split)[name]


# --- again and again --------------------------------------------------------------------------------------------------


def test_what_was_done_is_not_done_again(videos: Path, tmp_path: Path, no_faces: list[str]) -> None:
    video(videos / "bad.mp4", 9)
    first = prepared(videos, tmp_path)
    index, reasons = read_index(first), left_out(first)
    no_faces.clear()
    assert prepared(videos, tmp_path) == first
    assert no_faces == []
    assert read_index(first) == index
    assert left_out(first) == reasons == {"bad.mp4": "no face in bad.mp4"}


def test_a_run_that_was_stopped_goes_on(
    videos: Path, tmp_path: Path, no_faces: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = preparation.records_of

    def stopping(path: Path, *rest: object) -> object:
        if len(no_faces) == 2:
            raise KeyboardInterrupt
        return fake(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(preparation, "records_of", stopping)
    with pytest.raises(KeyboardInterrupt):
        prepared(videos, tmp_path)
    monkeypatch.setattr(preparation, "records_of", fake)
    assert len(people(prepared(videos, tmp_path))) == 3
    assert len(no_faces) == 3, "the two that were finished were not done again"


def test_videos_that_are_gone_are_forgotten(videos: Path, tmp_path: Path, no_faces: list[str]) -> None:
    video(videos / "bad.mp4", 9)
    assert list(left_out(prepared(videos, tmp_path))) == ["bad.mp4"]
    (videos / "bob" / "clip.mp4").unlink()
    (videos / "bad.mp4").unlink()
    split = prepared(videos, tmp_path)
    assert people(split) == ["anna/clip.mp4", "carla.bin"]
    assert left_out(split) == {}
    assert verify(split) == []


def test_changed_and_renamed_videos_replace_their_records(videos: Path, tmp_path: Path, no_faces: list[str]) -> None:
    before = {entry.person: entry.fingerprint for entry in read_index(prepared(videos, tmp_path)).entries}
    video(videos / "anna" / "clip.mp4", 11)
    (videos / "carla.bin").rename(videos / "dora.bin")
    after = {entry.person: entry.fingerprint for entry in read_index(prepared(videos, tmp_path)).entries}
    assert sorted(after) == ["anna/clip.mp4", "bob/clip.mp4", "dora.bin"]
    assert after["anna/clip.mp4"] != before["anna/clip.mp4"]
    assert after["bob/clip.mp4"] == before["bob/clip.mp4"]


def test_two_folders_of_one_name_do_not_mix(videos: Path, tmp_path: Path, no_faces: list[str]) -> None:
    other = tmp_path / "other" / videos.name
    video(other / "erik.mp4", 20)
    first, second = prepared(videos, tmp_path), prepared(other, tmp_path)
    assert first != second
    assert people(prepared(videos, tmp_path)) == ["anna/clip.mp4", "bob/clip.mp4", "carla.bin"]
    assert people(second) == ["erik.mp4"]


def test_a_video_of_which_a_part_is_left_out_is_in_both(videos: Path, tmp_path: Path, no_faces: list[str]) -> None:
    video(videos / "part.mp4", 9)
    split = prepared(videos, tmp_path)
    assert "part.mp4" in people(split)
    assert left_out(split) == {"part.mp4": "part.mp4, 1.0 to 1.2 s: too short"}


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "does not exist; give a folder of videos"),
        (lambda path: path.write_text("x"), "is a file; give the folder it lies in"),
        (lambda path: path.mkdir(), "holds no video; give a folder of videos"),
        (
            lambda path: (path.mkdir(), Image.new("RGB", (64, 64)).save(path / "a.png")),
            r"\(1 images, 0 other files\)",
        ),
    ],
    ids=["missing", "a file", "empty", "pictures"],
)
def test_a_folder_without_videos_is_refused(
    make: Callable[[Path], object], words: str, tmp_path: Path, no_faces: list[str]
) -> None:
    make(tmp_path / "in")
    with pytest.raises(InputError, match=words):
        prepared(tmp_path / "in", tmp_path)
    assert not (tmp_path / "cache").exists()


def test_a_name_with_a_nul_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be opened"):
        prepared(Path("a\0b"), tmp_path)


def test_when_nothing_can_be_used_the_first_are_named(tmp_path: Path, no_faces: list[str]) -> None:
    for n in range(5):
        video(tmp_path / "in" / f"bad{n}.mp4", n)
    (tmp_path / "in" / "c.mp4").symlink_to("gone")
    with pytest.raises(
        InputError, match=r"can be used: bad0\.mp4 \(no face\), .* and 3 more; .*left_out\.json says why"
    ):
        prepared(tmp_path / "in", tmp_path)
    (told,) = (tmp_path / "cache").rglob(LEFT_OUT)
    assert len(json.loads(told.read_text(encoding="utf-8"))) == 6


def test_a_cache_that_cannot_be_written_is_refused(videos: Path, tmp_path: Path, no_faces: list[str]) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OutputError, match="cannot create the folder"):
        prepared(videos, tmp_path)


def test_damaged_reasons_are_named(tmp_path: Path) -> None:
    (tmp_path / LEFT_OUT).write_text("[1]")
    with pytest.raises(InputError, match=r"left_out\.json is damaged"):
        left_out(tmp_path / "split")
    assert left_out(tmp_path / "more" / "split") == {}
