"""Folders of saved predictions: what is written is what is read, and all that is wrong is told before anything else."""

from __future__ import annotations

import logging
import os
import shutil
import struct
import subprocess
import sys
import time
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export3d.errors import BadImage, InputError, OutputError, ShapeError
from export3d.evaluation.protocols.predictions import PredictionWriter, SavedClip, read_predictions

SIZE = 32
as_root = hasattr(os, "geteuid") and os.geteuid() == 0


def pictures(count: int, seed: int = 0, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def save(folder: Path, name: str = "anna", count: int = 4, size: int = SIZE) -> Path:
    """A good clip."""
    seed = len(name)
    with PredictionWriter(folder).clip(name, pictures(1, seed, size)[0]) as clip:
        clip.add(pictures(count, seed + 1, size), pictures(count, seed + 2, size))
    return folder / name


@pytest.fixture(scope="session")
def two_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written once: every written picture waits for the disk."""
    folder = tmp_path_factory.mktemp("predictions")
    save(folder, "anna")
    save(folder, "bob")
    return folder


@pytest.fixture
def folder(two_clips: Path, tmp_path: Path) -> Path:
    """Two good clips, `anna` and `bob`, of four frames, to be spoiled."""
    return shutil.copytree(two_clips, tmp_path / "saved")


def refusal(folder: Path) -> str:
    """The message of a folder that must be refused."""
    with pytest.raises(InputError) as caught:
        read_predictions(folder)
    return str(caught.value)


# --- writing and reading ----------------------------------------------------------------------------------------------


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


def test_interlaced_pictures_are_read(folder: Path) -> None:
    """Seven passes, each a small picture of its own, every row behind a filter byte of 0 (none)."""
    picture = pictures(1, 7)[0]
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = b"".join(b"\0" + row.tobytes() for x, y, across, down in passes for row in picture[y::down, x::across])
    header = struct.pack(">IIBBBBB", SIZE, SIZE, 8, 2, 0, 0, 1)
    for file, data in (("target/00000.png", rows), ("prediction/00000.png", rows[:-1])):
        body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
        (folder / "anna" / file).write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    message = refusal(folder)
    assert "anna/prediction/00000.png: not complete" in message
    assert "anna/target" not in message
    shutil.copy(folder / "anna" / "target" / "00000.png", folder / "anna" / "prediction" / "00000.png")
    np.testing.assert_array_equal(read_predictions(folder)[0].frames(0, 1)[1][0], picture)


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


# --- a writer that is cut short ---------------------------------------------------------------------------------------


def test_a_failure_leaves_no_half_clip(tmp_path: Path) -> None:
    writer = PredictionWriter(tmp_path)

    def half() -> None:
        with writer.clip("anna", pictures(1)[0]) as clip:
            clip.add(pictures(2), pictures(2))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert not writer.has("anna")
    assert list(tmp_path.iterdir()) == []


def test_a_clip_is_invisible_until_it_is_complete(tmp_path: Path) -> None:
    writer = PredictionWriter(tmp_path)
    with writer.clip("anna", pictures(1)[0]) as clip:
        clip.add(pictures(2), pictures(2))
        assert not writer.has("anna")
        assert not (tmp_path / "anna").exists()
    assert writer.has("anna")


def test_a_killed_run_leaves_no_clip_and_the_next_one_cleans_up(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    code = (
        "import os, sys, numpy as np; from export3d.evaluation.protocols.predictions import PredictionWriter\n"
        f"p = np.zeros((2, {SIZE}, {SIZE}, 3), np.uint8)\n"
        f"with PredictionWriter(sys.argv[1]).clip('carla', p[0]) as clip:\n clip.add(p, p); os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], check=False, timeout=100)
    assert done.returncode != 0
    with caplog.at_level(logging.WARNING, "export3d"):
        assert [clip.name for clip in read_predictions(folder)] == ["anna", "bob"]
    assert "carla" in caplog.text
    assert "cut short" in caplog.text
    save(folder, "carla", count=1)
    assert [(clip.name, clip.count) for clip in read_predictions(folder)] == [("anna", 4), ("bob", 4), ("carla", 1)]
    assert {path.name for path in folder.iterdir()} == {"anna", "bob", "carla"}


def test_a_clip_that_is_there_is_not_overwritten(folder: Path) -> None:
    before = (folder / "anna" / "source.png").read_bytes()
    with (
        pytest.raises(OutputError, match="anna is there already"),
        PredictionWriter(folder).clip("anna", pictures(1, 9)[0]),
    ):
        pytest.fail("the block must not run")
    assert (folder / "anna" / "source.png").read_bytes() == before


def test_a_clip_without_frames_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="no frames to save of anna"),
        PredictionWriter(tmp_path).clip("anna", pictures(1)[0]),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "a\\b",
        ".hidden",
        "ends.",
        "ends ",
        " begins",
        "a\nb",
        "a\0b",
        "con:",
        "x" * 201,
        "Thumbs.db",
    ],
)
def test_an_unsafe_name_is_refused(name: str, tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="cannot name a folder"),
        PredictionWriter(tmp_path / "s").clip(name, pictures(1)[0]),
    ):
        pytest.fail("the block must not run")
    assert [path.name for path in tmp_path.rglob("*")] == ["s"]


@pytest.mark.parametrize(
    ("targets", "predictions"),
    [
        (pictures(2), pictures(3)),
        (pictures(2), pictures(2, size=64)),
        (pictures(2, size=64), pictures(2)),
        (pictures(2), pictures(2).astype(np.float32)),
        (pictures(2), pictures(2)[..., :1]),
    ],
    ids=["count", "size", "target size", "type", "channels"],
)
def test_pictures_that_do_not_fit_are_refused(targets: np.ndarray, predictions: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ShapeError), PredictionWriter(tmp_path).clip("anna", pictures(1)[0]) as clip:
        clip.add(targets, predictions)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("source", [pictures(1), pictures(1)[0, :16], pictures(1, size=16)[0]], ids=str)
def test_a_source_that_could_not_be_read_again_is_refused(source: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ShapeError), PredictionWriter(tmp_path).clip("anna", source):
        pytest.fail("the block must not run")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(OutputError, match="cannot create the folder"):
        PredictionWriter(tmp_path / "file" / "saved")


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on the size of files")
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    """The limit on file sizes stands for the full disk."""
    code = (
        "import resource, signal, sys, numpy as np\n"
        "from export3d.errors import OutputError\n"
        "from export3d.evaluation.protocols.predictions import PredictionWriter\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"p = np.random.default_rng(0).integers(0, 256, (2, {SIZE}, {SIZE}, 3), dtype=np.uint8)\n"
        "try:\n"
        " with PredictionWriter(sys.argv[1]).clip('anna', p[0] * 0) as clip:\n"
        "  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); clip.add(p, p)\n"
        "except OutputError as error:\n print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=False, timeout=100, capture_output=True, text=True
    )
    assert "cannot write" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


# --- one wrong thing at a time ----------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def insert_chunk(path: Path, kind: bytes, data: bytes) -> None:
    """Put a chunk behind a PNG's header."""
    whole = path.read_bytes()
    path.write_bytes(whole[:33] + chunk(kind, data) + whole[33:])


def flip_byte(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def sixteen_bit_rgb(path: Path) -> None:
    """Pillow cannot write one, and reads it as 8 bits without a word."""
    header = struct.pack(">IIBBBBB", SIZE, SIZE, 16, 2, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + bytes(6 * SIZE) for _ in range(SIZE)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


def too_few_rows(path: Path) -> None:
    """A whole file with good checksums that holds half a picture."""
    header = struct.pack(">IIBBBBB", SIZE, SIZE, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + bytes(3 * SIZE) for _ in range(SIZE // 2)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


def huge(path: Path) -> None:
    """A small file that promises a large picture."""
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(100_000))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


def as_mode(mode: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        Image.fromarray(pictures(1)[0]).convert(mode).save(path, "PNG")

    return write


def as_format(name: str) -> Callable[[Path], object]:
    return lambda path: Image.fromarray(pictures(1)[0]).save(path, name)


def of_shape(height: int, width: int) -> Callable[[Path], object]:
    return lambda path: Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path, "PNG")


def animated(path: Path) -> None:
    frames = [Image.fromarray(picture) for picture in pictures(3)]
    frames[0].save(path, "PNG", save_all=True, append_images=frames[1:])


def link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.png")


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


BAD_PICTURES: dict[str, tuple[Callable[[Path], object], str]] = {
    "JPEG renamed": (as_format("JPEG"), "JPEG under the name of a PNG"),
    "WebP renamed": (as_format("WEBP"), "WebP under the name of a PNG"),
    "GIF renamed": (as_format("GIF"), "GIF under the name of a PNG"),
    "BMP renamed": (as_format("BMP"), "BMP under the name of a PNG"),
    "text": (lambda path: path.write_text("see the other folder"), "not a PNG"),
    "empty": (lambda path: path.write_bytes(b""), "empty (0 bytes)"),
    "half": (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "not complete"),
    "without its end": (lambda path: path.write_bytes(path.read_bytes()[:-12]), "not complete"),
    "signature only": (lambda path: path.write_bytes(path.read_bytes()[:8]), "not complete"),
    "a bit flipped in the pixels": (
        lambda path: flip_byte(path, path.stat().st_size // 2),
        "damaged (a checksum differs)",
    ),
    "a bit flipped in the header": (lambda path: flip_byte(path, 19), "damaged (a checksum differs)"),
    "too few rows": (too_few_rows, "not complete, rows of pixels are missing"),
    "grey": (as_mode("L"), "8-bit grey; save 8-bit RGB"),
    "grey with alpha": (as_mode("LA"), "8-bit grey with transparency"),
    "alpha": (as_mode("RGBA"), "8-bit RGB with transparency"),
    "palette": (as_mode("P"), "8-bit palette"),
    "black and white": (as_mode("1"), "1-bit grey"),
    "16-bit grey": (as_mode("I;16"), "16-bit grey"),
    "16-bit": (sixteen_bit_rgb, "16-bit RGB"),
    "a transparent colour": (lambda path: insert_chunk(path, b"tRNS", bytes(6)), "8-bit RGB with a transparent colour"),
    "animated": (animated, "an animation"),
    "not square": (of_shape(SIZE, SIZE + 8), f"{SIZE + 8} x {SIZE}, not square"),
    "too small": (of_shape(16, 16), "16 x 16; sides of 32 to 4096"),
    "huge": (huge, "50000 x 50000"),
    "link to nothing": (link_to_nothing, "a link to something that does not exist"),
    "link to itself": (link_to_itself, "cannot be opened"),
}
if hasattr(os, "mkfifo"):
    BAD_PICTURES["pipe"] = (pipe, "not a regular file")


@pytest.mark.parametrize("kind", BAD_PICTURES)
@pytest.mark.parametrize("file", ["source.png", "target/00001.png", "prediction/00003.png"])
def test_a_bad_picture_is_refused(kind: str, file: str, folder: Path) -> None:
    spoil, words = BAD_PICTURES[kind]
    spoil(folder / "anna" / file)
    message = refusal(folder)
    assert f"anna/{file}: {words}" in message
    assert "bob" not in message
    if file != "source.png":
        assert "problems" not in message, "one cause, one problem"


@pytest.mark.parametrize("file", ["target/00002.png", "prediction/00000.png"])
def test_a_frame_of_another_size_is_refused(file: str, folder: Path) -> None:
    of_shape(64, 64)(folder / "anna" / file)
    assert f"anna/{file}: 64 x 64 where the clip's first picture is 32 x 32" in refusal(folder)


def test_predictions_of_another_size_are_one_problem(folder: Path) -> None:
    for n in range(4):
        of_shape(64, 64)(folder / "anna" / "prediction" / f"0000{n}.png")
    assert "anna/prediction/00000.png, 00001.png, 00002.png and 1 more: 64 x 64" in refusal(folder)


def test_a_source_of_another_size_is_refused(folder: Path) -> None:
    of_shape(64, 64)(folder / "anna" / "source.png")
    assert "32 x 32 where the clip's first picture is 64 x 64" in refusal(folder)


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
    "hidden frame": (move("target/00003.png", "target/.00003.png"), "anna/target/.00003.png: a hidden picture"),
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
    assert "does not exist" in refusal(Path("a\0b"))


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


# --- everything at once -----------------------------------------------------------------------------------------------


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


# --- files that change meanwhile --------------------------------------------------------------------------------------


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


def test_checking_a_frame_takes_milliseconds(tmp_path: Path) -> None:
    """Generous: a frame of 256 px takes about 3 ms, so ten times that is a mistake and not a slow machine."""
    save(tmp_path / "saved", count=20, size=256)
    start = time.process_time()
    read_predictions(tmp_path / "saved")
    assert (time.process_time() - start) / 41 < 0.05
