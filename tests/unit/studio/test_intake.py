import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.hostile_files import Case, cases_of
from export3d.animate.drive import driving_motion
from export3d.animate.export import sheet_frames
from export3d.errors import InputError, OutputError
from export3d.image import read_image
from export3d.motion.motion import Motion
from export3d.studio import intake as intake_module
from export3d.studio.intake import Intake, shown_name
from tests.made_videos import beep, clip


def hostile(kind: str, name: str) -> Case:
    """One of the files that `benchmarks/hostile_uploads.py` tries."""
    return next(case for case in cases_of(kind) if case.name == name)


def given(path: Path, verb: str, name: str, folder: Path, **options: Any) -> dict[str, Any]:
    """What the intake makes of a file."""
    return asyncio.run(getattr(Intake(), verb)(path, folder, name, **options))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where the intake writes; nothing but results stays there."""
    made = tmp_path / "workspace"
    made.mkdir()
    yield made
    assert not [path for path in made.iterdir() if path.name.startswith(".")]


def refused(case: Case, folder: Path) -> str:
    """The sentence that a hostile file is refused with."""
    path = folder / "original"
    case.make(path)
    begun = time.monotonic()
    with pytest.raises(InputError) as caught:
        given(path, case.verb, case.name, folder)
    assert time.monotonic() - begun < 10.0
    assert [each.name for each in folder.iterdir()] == ["original"]
    sentence = str(caught.value)
    assert sentence.startswith(shown_name(case.name))
    assert str(folder) not in sentence
    assert sentence.isprintable()
    assert 20 < len(sentence) < 500
    return sentence


# --- what is taken in ---


def test_a_photo_comes_upright_and_without_metadata(astronaut: np.ndarray, folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "the camera"
    path = folder / "original"
    Image.fromarray(astronaut[:200]).save(path, "JPEG", quality=95, exif=exif)
    made = given(path, "photo", "me.jpg", folder)
    assert made == {"width": 200, "height": 512, "warnings": [], "file": folder / "photo.png"}
    np.testing.assert_array_equal(read_image(made["file"]), read_image(path))
    with Image.open(made["file"]) as image:
        assert not image.info
        assert not image.getexif()


def test_a_photo_comes_with_the_warnings_of_reading_it(astronaut: np.ndarray, folder: Path) -> None:
    frames = [Image.fromarray(astronaut[:, shift:400]) for shift in (0, 1)]
    frames[0].save(folder / "original", "PNG", save_all=True, append_images=[frames[1].resize(frames[0].size)])
    made = given(folder / "original", "photo", "../me.png", folder)
    assert made["warnings"] == ["me.png is an animation of 2 frames; the first one is used"]


def test_a_system_that_does_not_confine_children_is_told_once(
    astronaut_path: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    without = "import export3d.studio.sandbox as sandbox\nsandbox.confine = lambda readable, folder: False\n"
    (tmp_path / "sitecustomize.py").write_text(without)
    packages = intake_module._package_folders()
    monkeypatch.setattr(intake_module, "_package_folders", lambda: [tmp_path, *packages])

    async def twice() -> None:
        intake = Intake()
        for _ in range(2):
            await intake.photo(astronaut_path, folder, "me.png")

    asyncio.run(twice())
    assert caplog.text.count("does not confine") == 1


def test_a_phone_s_photo_is_kept_at_eight_megapixels(folder: Path) -> None:
    """A whole factor would leave 3 of its 12."""
    Image.new("RGB", (4032, 3024), (90, 100, 110)).save(folder / "original", "JPEG")
    made = given(folder / "original", "photo", "me.jpg", folder)
    assert (made["width"], made["height"]) == (3265, 2449)


def test_a_video_is_described_and_shown_in_ten_thumbnails(folder: Path) -> None:
    path = clip(folder / "a.mp4", 50, sound=beep(0.5, 2.0))
    made = given(path, "video", "clip.mp4", folder)
    strip = read_image(made.pop("filmstrip"))
    assert made == {"width": 80, "height": 48, "seconds": 2.0, "fps": 25.0, "sound": True}
    assert strip.shape == (48, 800, 3)
    shown = [int((strip[24, 80 * k + 4 : 80 * k + 80 : 8].mean(-1) > 127) @ (1 << np.arange(10))) for k in range(10)]
    assert shown == [5 * k for k in range(10)]


def test_a_motion_comes_at_25_frames_per_second_without_notes(motion_file: Path, folder: Path) -> None:
    original = Motion.load(motion_file)
    noted = Motion(original.expression, original.camera, 50.0, meta={"note": "mine"})
    noted.save(folder / "original")
    made = given(folder / "original", "motion", "dance.motion", folder)
    assert made == {"frames": 6, "seconds": 0.24, "fps": 25.0, "space": "arkit52", "file": folder / "motion.motion"}
    written = Motion.load(made["file"])
    assert written == noted.resampled(25.0)
    assert set(written.meta) == {"file"}


@pytest.mark.slow
def test_tracking_in_a_child_gives_the_same_motion(face_video: Path, folder: Path) -> None:
    pytest.importorskip("mediapipe")
    seen: list[int] = []
    made = given(face_video, "track", "me.mp4", folder, start=0.2, seconds=0.4, progress=seen.append)
    found, wanted = Motion.load(made["motion"]), driving_motion(face_video, start_s=0.2, seconds=0.4)
    # on some processors optical flow rounds differently in another number of threads
    np.testing.assert_allclose(found.shoulders, wanted.shoulders, atol=1e-6)
    assert replace(found, shoulders=wanted.shoulders) == wanted
    assert seen[-1] == made["frames"] == 10
    assert made["warnings"] == []
    assert made["sound"] is not None
    assert len(made["pictures"]) == len(sheet_frames(10))
    assert {read_image(path).shape for path in made["pictures"]} == {(256, 256, 3)}


def test_verification_answers_with_the_users_name(astronaut_path: Path) -> None:
    report = asyncio.run(Intake().verify(astronaut_path, "a/b/portrait.png"))
    assert report["file"] == "portrait.png"
    assert report["result"] == "unmarked"


# --- what is refused ---


@pytest.mark.parametrize(
    ("kind", "name"), [("playlists", "hls.mp4"), ("motions", "objects.npz"), ("bombs", "line.png")]
)
def test_a_hostile_file_is_refused_in_a_sentence(kind: str, name: str, folder: Path) -> None:
    refused(hostile(kind, name), folder)
    assert not Path("/tmp/export3d-was-unpickled").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("bombs", "text.png"),
        ("bombs", "rle.bmp"),
        ("playlists", "dash.mp4"),
        ("playlists", "a.svg"),
        ("absurd videos", "times.mp4"),
        ("absurd videos", "nested.mp4"),
        ("absurd videos", "mdat.mp4"),
        ("motions", "deep.motion"),
        ("motions", "version.motion"),
        ("motions", "many.npz"),
        ("motions", "pickle.mat"),
        ("tables", "formula.csv"),
        ("tables", "wide.csv"),
        ("tables", "utf-16.csv"),
    ],
)
def test_more_hostile_files_are_refused_in_a_sentence(kind: str, name: str, folder: Path) -> None:
    refused(hostile(kind, name), folder)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("me.jpg", "me.jpg"),
        ("../../../etc/passwd", "passwd"),
        ("..\\..\\windows\\win.ini", "win.ini"),
        ("line\nbreak\0.png", "linebreak.png"),
        ("\u202egnp.exe", "gnp.exe"),
        ("..", "the file"),
        ("", "the file"),
        ("/", "the file"),
        ("x" * 4000 + ".png", "x" * 47 + "…" + "x" * 8 + ".png"),
    ],
)
def test_a_users_name_becomes_one_short_line(name: str, shown: str) -> None:
    assert shown_name(name) == shown


# --- limits ---


def endless(path: Path) -> None:
    """A video stream that begins well and goes on with 64 GB of zeros, which take no place on the disk."""
    with path.open("wb") as file:
        file.write(b"\0\0\0\1\x67" + bytes(100))
        file.truncate(64 << 30)


@pytest.mark.slow
def test_a_file_that_needs_more_memory_than_the_limit_is_refused(folder: Path) -> None:
    """49 megapixels of a palette with transparency take 700 MB in Pillow."""
    assert "more memory" in refused(hostile("bombs", "palette.png"), folder)


@pytest.mark.slow
def test_a_file_that_takes_for_ever_is_refused_in_time(folder: Path) -> None:
    assert "too long" in refused(Case("video", "", "a.h264", endless), folder)


def test_a_folder_that_is_gone_is_named_by_the_users_file(motion_file: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"^cannot write a\.motion: no such file or directory"):
        given(motion_file, "motion", "a.motion", tmp_path / "gone")


def children(pid: int) -> list[int]:
    """The running children of a process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(") ")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(path.parent.name))
    return found


def eventually(true: Callable[[], bool], seconds: float = 8.0) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return true()


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
@pytest.mark.slow
def test_two_children_run_at_a_time_and_end_when_nobody_waits(folder: Path) -> None:
    path = folder / "original"
    endless(path)
    before = set(children(os.getpid()))

    def own() -> int:
        return len(set(children(os.getpid())) - before)

    async def work() -> None:
        intake = Intake()
        many = [asyncio.create_task(intake.video(path, folder, "a.h264")) for _ in range(4)]
        most = 0
        for _ in range(40):
            await asyncio.sleep(0.02)
            most = max(most, own())
        assert most == 2
        for one in many:
            one.cancel()
        await asyncio.wait(many)
        assert all(one.cancelled() for one in many)

    asyncio.run(work())
    assert own() == 0
    assert [each.name for each in folder.iterdir()] == ["original"]


@linux
@pytest.mark.slow
def test_a_killed_server_takes_its_children_along(tmp_path: Path) -> None:
    path = tmp_path / "original"
    endless(path)
    code = f"""
import asyncio
from pathlib import Path
from export3d.studio.intake import Intake
async def main():
    await Intake().video(Path({str(path)!r}), Path({str(tmp_path)!r}), "a.h264")
asyncio.run(main())
"""
    server = subprocess.Popen([sys.executable, "-c", code])
    try:
        assert eventually(lambda: bool(children(server.pid)))
        (child,) = children(server.pid)
        time.sleep(0.5)
        server.send_signal(signal.SIGKILL)
        server.wait()
        assert eventually(lambda: not Path(f"/proc/{child}").exists())
    finally:
        server.kill()


def test_neither_pytorch_nor_a_decoder_is_loaded_by_the_server() -> None:
    code = """
import sys
import export3d.studio.intake
assert not {"torch", "av", "PIL", "mediapipe"} & set(sys.modules)
import export3d.animate.drive, export3d.animate.export
assert not {"torch", "av", "mediapipe"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
