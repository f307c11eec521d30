"""Reading a folder of predictions: every problem is found before anything is scored."""

from __future__ import annotations

import os
import shutil
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export3d.errors import BadImage, InputError
from export3d.evaluation.protocols.prediction_writer import PredictionWriter
from export3d.evaluation.protocols.predictions import SavedClip, read_predictions
from tests.saved_clips import SIZE, pictures, save

as_root = hasattr(os, "geteuid") and os.geteuid() == 0


def refusal(folder: Path) -> str:
    """The message of a folder that must be refused."""
    with pytest.raises(InputError) as caught:
        read_predictions(folder)
    return str(caught.value)


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    source, targets, predictions = pictures(1, 1)[0], pictures(5, 2), pictures(5, 3)
    writer = PredictionWriter(tmp_path / "new" / "saved")
    assert not writer.has("anna")
    with writer.clip("anna", source) as clip:
        clip.add(targets[:2], predictions[:2])
        clip.add(list(targets[2:]), list(predictions[2:]))
    assert writer.has("anna")
    (found,) = read_predictions(tmp_path / "new" / "saved")
    assert (found.name, found.count, found.size) == ("anna", 5, SIZE)
    np.testing.assert_array_equal(found.source(), source)
    for rows in (slice(0, 5), slice(1, 3), slice(3, 99), slice(5, 9)):
        ours = found.frames(rows.start, rows.stop)
        np.testing.assert_array_equal(ours[0], targets[rows])
        np.testing.assert_array_equal(ours[1], predictions[rows])
        assert ours[0].dtype == ours[1].dtype == np.uint8


def test_the_layout_is_the_documented_one(folder: Path) -> None:
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png")) == sorted(
        f"{name}/{file}"
        for name in ("anna", "bob")
        for file in ["source.png", *(f"{part}/0000{n}.png" for part in ("target", "prediction") for n in range(4))]
    )


def test_clips_come_by_name_and_each_is_counted(folder: Path) -> None:
    save(folder, "Zoë and her dog")
    save(folder, "видео 1")
    steps: list[tuple[int, int]] = []
    clips = read_predictions(folder, progress=lambda *step: steps.append(step))
    assert [clip.name for clip in clips] == ["Zoë and her dog", "anna", "bob", "видео 1"]
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_folders_may_be_links(folder: Path, tmp_path: Path) -> None:
    """Several methods share one copy of the true frames."""
    other = tmp_path / "other method" / "anna"
    (other / "prediction").mkdir(parents=True)
    (other / "source.png").symlink_to(folder / "anna" / "source.png")
    (other / "target").symlink_to(folder / "anna" / "target")
    for n in range(4):
        (other / "prediction" / f"0000{n}.png").symlink_to(folder / "bob" / "prediction" / f"0000{n}.png")
    (clip,) = read_predictions(other.parent)
    by_name = {clip.name: clip for clip in read_predictions(folder)}
    np.testing.assert_array_equal(clip.frames(0, 4)[0], by_name["anna"].frames(0, 4)[0])
    np.testing.assert_array_equal(clip.frames(0, 4)[1], by_name["bob"].frames(0, 4)[1])


def test_what_systems_leave_in_folders_changes_nothing(folder: Path) -> None:
    before = [(clip.name, clip.count) for clip in read_predictions(folder)]
    for place in (folder, folder / "anna", folder / "anna" / "target", folder / "bob" / "prediction"):
        for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._00004.png", ".nfs0001"):
            (place / name).write_bytes(b"\0\5\26\7 not a picture")
        (place / "__MACOSX" / "target").mkdir(parents=True)
        (place / ".ipynb_checkpoints").mkdir()
        shutil.copy(folder / "anna" / "source.png", place / ".ipynb_checkpoints" / "00004-checkpoint.png")
    assert [(clip.name, clip.count) for clip in read_predictions(folder)] == before


def test_frames_beyond_five_digits_keep_their_order(tmp_path: Path) -> None:
    from export3d.evaluation.protocols.predictions import frame_name

    assert [frame_name(n) for n in (0, 99_999, 100_000)] == ["00000.png", "99999.png", "100000.png"]


def as_mode(mode: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        Image.fromarray(pictures(1)[0]).convert(mode).save(path, "PNG")

    return write


def as_format(name: str) -> Callable[[Path], object]:
    return lambda path: Image.fromarray(pictures(1)[0]).save(path, name)


def of_shape(height: int, width: int) -> Callable[[Path], object]:
    return lambda path: Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path, "PNG")


@pytest.mark.parametrize("file", ["target/00002.png", "prediction/00000.png"])
def test_a_frame_of_another_size_is_refused(file: str, folder: Path) -> None:
    of_shape(64, 64)(folder / "anna" / file)
    assert f"anna/{file}: 64 x 64 where the clip's first image is 32 x 32" in refusal(folder)


def test_predictions_of_another_size_are_one_problem(folder: Path) -> None:
    for n in range(4):
        of_shape(64, 64)(folder / "anna" / "prediction" / f"0000{n}.png")
    assert "anna/prediction/00000.png, 00001.png, 00002.png and 1 more: 64 x 64" in refusal(folder)


def test_a_source_of_another_size_is_refused(folder: Path) -> None:
    of_shape(64, 64)(folder / "anna" / "source.png")
    assert "32 x 32 where the clip's first image is 64 x 64" in refusal(folder)


def test_clips_of_different_sizes_are_refused(folder: Path) -> None:
    save(folder, "large", size=64)
    message = refusal(folder)
    assert "32 (anna, bob), 64 (large)" in message


def move(a: str, b: str) -> Callable[[Path], object]:
    return lambda clip: (clip / a).rename(clip / b)


def remove(*files: str) -> Callable[[Path], None]:
    def act(clip: Path) -> None:
        for file in files:
            (clip / file).unlink()

    return act


def from_one(part: str) -> Callable[[Path], None]:
    def act(clip: Path) -> None:
        for n in (3, 2, 1, 0):
            (clip / part / f"0000{n}.png").rename(clip / part / f"0000{n + 1}.png")

    return act


def emptied(part: str) -> Callable[[Path], None]:
    return remove(*(f"{part}/0000{n}.png" for n in range(4)))


def renamed(part: str, pattern: str) -> Callable[[Path], None]:
    def act(clip: Path) -> None:
        for n in range(4):
            (clip / part / f"0000{n}.png").rename(clip / part / pattern.format(n))

    return act


def write(file: str, data: bytes = b"notes") -> Callable[[Path], object]:
    return lambda clip: (clip / file).write_bytes(data)


def copy(a: str, b: str) -> Callable[[Path], object]:
    return lambda clip: shutil.copy(clip / a, clip / b)


def into_file(part: str) -> Callable[[Path], None]:
    def act(clip: Path) -> None:
        shutil.rmtree(clip / part)
        (clip / part).write_text("a file")

    return act


def prediction_is_target(clip: Path) -> None:
    shutil.rmtree(clip / "prediction")
    (clip / "prediction").symlink_to("target")


BAD_CLIPS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no source": (remove("source.png"), "anna: it lacks source.png"),
    "source is a folder": (lambda c: [(c / "source.png").unlink(), (c / "source.png").mkdir()], "a folder"),
    "source of another case": (move("source.png", "Source.png"), "anna/Source.png: only source.png, target and pred"),
    "no target": (lambda clip: shutil.rmtree(clip / "target"), "anna: it lacks the folder target"),
    "no prediction": (lambda clip: shutil.rmtree(clip / "prediction"), "anna: it lacks the folder prediction"),
    "target is a file": (into_file("target"), "anna/target: not a folder"),
    "plural": (move("prediction", "predictions"), "anna/predictions: only source.png, target and prediction"),
    "empty prediction": (emptied("prediction"), "anna/prediction: no frames in it"),
    "gap": (remove("prediction/00001.png", "target/00001.png"), "anna/target: 00001.png missing between"),
    "wide gap": (remove("prediction/00001.png", "prediction/00002.png"), "00001.png to 00002.png missing"),
    "prediction ends early": (remove("prediction/00003.png"), "ends at 00002.png, target at 00003.png"),
    "target ends early": (remove("target/00003.png"), "prediction ends at 00003.png, target at 00002.png"),
    "from one": (from_one("prediction"), "anna/prediction: its frames begin at 00001.png; number them from 00000.png"),
    "a time as number": (
        move("prediction/00003.png", "prediction/1699999999999999999.png"),
        "00003.png to 1699999999999999998.png missing",
    ),
    "unpadded": (renamed("prediction", "{}.png"), "anna/prediction/0.png, 1.png, 2.png and 1 more: no frame"),
    "four digits": (renamed("target", "{:04d}.png"), "anna/target/0000.png, 0001.png, 0002.png and 1 more: no frame"),
    "six digits": (renamed("target", "{:06d}.png"), "anna/target/000000.png, 000001.png, 000002.png and 1 more"),
    "named": (renamed("target", "frame_{:05d}.png"), "anna/target/frame_00000.png"),
    "Arabic digits": (move("target/00003.png", "target/0000٣.png"), "anna/target/0000٣.png: no frame"),
    "upper-case suffix": (renamed("prediction", "{:05d}.PNG"), "anna/prediction/00000.PNG"),
    "JPEG frames": (renamed("prediction", "{:05d}.jpg"), "anna/prediction/00000.jpg"),
    "stray file": (write("notes.txt"), "anna/notes.txt: only"),
    "stray frame": (copy("target/00000.png", "target/00000 (copy).png"), "anna/target/00000 (copy).png: no frame"),
    "stray folder": (lambda clip: (clip / "target" / "old").mkdir(), "anna/target/old: no frame"),
    "a folder as frame": (lambda clip: (clip / "target" / "00004.png").mkdir(), "anna/target/00004.png: no frame"),
    "hidden frame": (move("target/00003.png", "target/.00003.png"), "anna/target/.00003.png: a hidden image"),
    "the truth as prediction": (prediction_is_target, "anna: prediction and target are one and the same folder"),
}


@pytest.mark.parametrize("kind", BAD_CLIPS)
def test_a_bad_clip_is_refused(kind: str, folder: Path) -> None:
    spoil, words = BAD_CLIPS[kind]
    spoil(folder / "anna")
    message = refusal(folder)
    assert words in message
    assert str(folder) in message
    assert "bob" not in message


BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda root: shutil.rmtree(root), "does not exist"),
    "a file": (lambda root: (shutil.rmtree(root), root.write_text("x")), "is a file"),
    "empty": (lambda root: (shutil.rmtree(root), root.mkdir()), "is empty"),
    "only litter": (lambda root: (shutil.rmtree(root), root.mkdir(), (root / ".DS_Store").touch()), "is empty"),
    "itself one clip": (
        lambda root: [path.rename(root / path.name) for path in list((root / "anna").iterdir())],
        "as one clip has; give a folder that holds one such folder for each clip",
    ),
    "stray file": (lambda root: (root / "report.json").touch(), "report.json: no folder of a clip"),
    "stray link": (lambda root: (root / "carla").symlink_to("gone"), "carla (a link to nothing): no folder of a clip"),
    "empty clip": (lambda root: (root / "carla").mkdir(), "carla: no clip; it has neither source.png nor"),
    "nested": (
        lambda root: ((root / "more").mkdir(), (root / "bob").rename(root / "more" / "bob")),
        "more: no clip, but it holds some (bob)",
    ),
    "hidden clip": (lambda root: (root / "bob").rename(root / ".bob"), ".bob: hidden, but it looks like a clip"),
    "linked twice": (lambda root: (root / "carla").symlink_to("bob"), "carla: a link to the same clip as bob"),
    "unprintable": (lambda root: (root / "bob").rename(root / "b\nb"), r"'b\nb': its name has characters"),
}


@pytest.mark.parametrize("kind", BAD_FOLDERS)
def test_a_bad_folder_is_refused(kind: str, folder: Path) -> None:
    spoil, words = BAD_FOLDERS[kind]
    spoil(folder)
    assert words in refusal(folder)


def test_a_name_with_a_nul_is_refused() -> None:
    assert "cannot be opened" in refusal(Path("a\0b"))


def test_bytes_that_are_no_text_in_a_name_are_refused(folder: Path) -> None:
    try:
        os.rename(os.fsencode(folder / "bob"), os.fsencode(folder) + b"/b\xff")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    message = refusal(folder)
    assert "its name has characters that cannot be printed" in message
    message.encode()


def test_two_spellings_of_one_name_are_refused(folder: Path) -> None:
    for form in ("NFC", "NFD"):
        shutil.copytree(folder / "anna", folder / unicodedata.normalize(form, "Zoë"), dirs_exist_ok=True)
    if len(list(folder.iterdir())) == 3:
        pytest.skip("this file system takes both for the same name")
    assert "two folders have this name" in refusal(folder)


def test_names_are_composed(folder: Path) -> None:
    (folder / "bob").rename(folder / unicodedata.normalize("NFD", "Zoë"))
    names = [clip.name for clip in read_predictions(folder)]
    assert unicodedata.normalize("NFC", "Zoë") in names


@pytest.mark.skipif(as_root, reason="the superuser may read everything")
@pytest.mark.parametrize("file", ["source.png", "target/00001.png", "target", "."])
def test_what_may_not_be_read_is_named(file: str, folder: Path) -> None:
    path = folder / "anna" / file
    path.chmod(0)
    try:
        message = refusal(folder)
    finally:
        path.chmod(0o700)
    assert "cannot be opened (permission denied)" in message
    assert "anna" in message


def test_all_problems_are_told_at_once_and_nothing_is_read_in_part(folder: Path) -> None:
    as_format("JPEG")(folder / "anna" / "target" / "00000.png")
    (folder / "anna" / "prediction" / "00002.png").unlink()
    (folder / "bob" / "source.png").unlink()
    (folder / "readme.txt").touch()
    message = refusal(folder)
    assert "4 problems" in message
    for words in (
        "(1) readme.txt",
        "anna/target/00000.png: JPEG",
        "anna/prediction: 00002.png missing",
        "bob: it lacks",
    ):
        assert words in message
    assert "(4)" in message
    assert "(5)" not in message


def test_many_problems_are_counted(folder: Path) -> None:
    for n in range(30):
        (folder / f"clip{n:02d}").mkdir()
    message = refusal(folder)
    assert "30 problems" in message
    assert message.count("no clip; it has neither") == 20
    assert message.endswith("and 10 more")
    assert "(20) clip19" in " ".join(message.split())


def test_the_same_kind_of_problem_in_a_folder_is_one_line(folder: Path) -> None:
    for n in range(4):
        as_mode("RGBA")(folder / "anna" / "prediction" / f"0000{n}.png")
    message = refusal(folder)
    assert message.count("RGB with transparency") == 1
    assert "problems" not in message
    assert "\n" not in message


@pytest.fixture
def clip(folder: Path) -> SavedClip:
    return read_predictions(folder)[0]


def test_a_frame_that_vanished_is_named(clip: SavedClip) -> None:
    (clip.folder / "prediction" / "00002.png").unlink()
    with pytest.raises(BadImage, match=r"00002\.png: it does not exist"):
        clip.frames(0, 4)
    assert len(clip.frames(0, 2)[0]) == 2


def test_a_source_that_changed_is_named(clip: SavedClip) -> None:
    of_shape(64, 64)(clip.folder / "source.png")
    with pytest.raises(BadImage, match=r"source\.png is not 32 x 32 any more"):
        clip.source()


@pytest.mark.slow
def test_checking_a_frame_takes_milliseconds(tmp_path: Path) -> None:
    """Generous: a frame of 256 px takes about 3 ms, so ten times that is a mistake and not a slow machine."""
    save(tmp_path / "saved", count=20, size=256)
    start = time.process_time()
    read_predictions(tmp_path / "saved")
    assert (time.process_time() - start) / 41 < 0.05
