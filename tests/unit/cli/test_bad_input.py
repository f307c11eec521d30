"""Bad input through the real command line: one sentence that names the file, exit code 2, nothing left behind.

Everything is made here from the bundled portrait, so that every line of the list is tested on every machine.
"""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export3d.cli.main import main
from export3d.motion.motion import Motion
from export3d.video import VideoWriter, read_frames
from tests.group_photo import group_photo

Run = Callable[..., int]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def short_motion(motion_file: Path, tmp_path: Path) -> Path:
    """Two frames: enough to run everything."""
    Motion.load(motion_file)[:2].save(tmp_path / "short.motion")
    return tmp_path / "short.motion"


@pytest.fixture
def animate(out: Path, tiny_weights: Path, astronaut_path: Path, short_motion: Path) -> Run:
    """`export3d animate` with good arguments wherever none is given; both outputs are asked for."""

    def run(
        source: Path = astronaut_path, mover: tuple[str, Path] = ("--motion", short_motion), **options: Path | str
    ) -> int:
        arguments = {"output": out / "a.mp4", "sheet": out / "a.png", "weights": tiny_weights} | options
        flags = [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
        return main(["animate", str(source), mover[0], str(mover[1]), "--device", "cpu", *flags])

    return run


def refused(code: int, capsys: Capture, out: Path, *words: str) -> str:
    """Assert that a command was refused as promised, and return its sentence."""
    stdout, stderr = capsys.readouterr()
    assert code == 2
    assert stdout == ""
    assert stderr.startswith("export3d: ")
    said = [line for line in stderr.splitlines() if not line.startswith("export3d: tracking ")]
    assert len(said) == 1, f"one sentence, got: {stderr}"
    assert "Traceback" not in stderr
    for word in words:
        assert word in stderr
    assert list(out.iterdir()) == [], "no partial output"
    return stderr


# --- pictures ---------------------------------------------------------------------------------------------------------


def png_of(width: int, height: int) -> bytes:
    """A small file whose header promises a large picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 100_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


BAD_PICTURES: dict[str, tuple[str, Callable[[Path, Image.Image], None], str]] = {
    "missing": ("missing.jpg", lambda path, _: None, "does not exist"),
    "directory": ("folder.jpg", lambda path, _: path.mkdir(), "folder"),
    "text": ("notes.jpg", lambda path, _: path.write_text("not a picture\n" * 50) and None, "notes.jpg"),
    "zero bytes": ("empty.png", lambda path, _: path.touch(), "empty"),
    "truncated": ("half.png", lambda path, a: _truncated(path, a), "half.png"),
    "one pixel": ("dot.png", lambda path, _: Image.new("RGB", (1, 1)).save(path), "1 x 1"),
    "20000 x 20000": ("huge.png", lambda path, _: path.write_bytes(png_of(20_000, 20_000)) and None, "megapixels"),
    "no face": ("meadow.png", lambda path, _: Image.new("RGB", (300, 200), (80, 140, 70)).save(path), "no face"),
    "a video": ("clip.png", lambda path, _: path.write_bytes(b"\0\0\0\x18ftypmp42" + bytes(500)) and None, "clip.png"),
}


def _truncated(path: Path, picture: Image.Image) -> None:
    picture.save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_a_bad_portrait_is_refused(
    kind: str, tmp_path: Path, astronaut: np.ndarray, animate: Run, out: Path, capsys: Capture
) -> None:
    name, make, words = BAD_PICTURES[kind]
    make(tmp_path / name, Image.fromarray(astronaut))
    refused(animate(tmp_path / name), capsys, out, name, words)


def _exif_rotated(path: Path, picture: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn it clockwise to see it
    picture.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


def _sixteen_bit(path: Path, picture: Image.Image) -> None:
    Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save(path)


def _alpha(path: Path, picture: Image.Image) -> None:
    picture.putalpha(Image.new("L", picture.size, 200))
    picture.save(path)


def _animated(path: Path, picture: Image.Image) -> None:
    picture.save(path, save_all=True, append_images=[Image.new("RGB", picture.size)], duration=100)


ODD_PICTURES: dict[str, tuple[str, Callable[[Path, Image.Image], None]]] = {
    "16-bit": ("a.png", _sixteen_bit),
    "CMYK": ("a.jpg", lambda path, picture: picture.convert("CMYK").save(path)),
    "palette": ("a.png", lambda path, picture: picture.convert("P", palette=Image.Palette.ADAPTIVE).save(path)),
    "grey": ("a.png", lambda path, picture: picture.convert("L").save(path)),
    "alpha": ("a.png", _alpha),
    "EXIF-rotated": ("a.jpg", _exif_rotated),
    "animated": ("a.gif", _animated),
}


@pytest.mark.parametrize("kind", ODD_PICTURES)
def test_an_odd_but_good_portrait_is_animated(
    kind: str, tmp_path: Path, astronaut: np.ndarray, animate: Run, out: Path
) -> None:
    name, make = ODD_PICTURES[kind]
    make(tmp_path / name, Image.fromarray(astronaut[:256, 90:346]))
    assert animate(tmp_path / name) == 0
    assert {path.name for path in out.iterdir()} == {"a.mp4", "a.png"}


def test_of_several_faces_the_largest_is_taken_and_that_is_said(
    tmp_path: Path, astronaut: np.ndarray, animate: Run, out: Path, capsys: Capture
) -> None:
    pair = np.full((256, 512, 3), 255, np.uint8)
    pair[:, 256:] = astronaut[:256, 90:346]
    pair[56:256, 20:220] = np.asarray(Image.fromarray(astronaut[:256, 90:346]).resize((200, 200)))
    Image.fromarray(pair).save(tmp_path / "pair.png")
    assert animate(tmp_path / "pair.png") == 0
    stderr = capsys.readouterr().err
    assert "several faces" in stderr
    assert "largest" in stderr
    assert stderr.count("pair.png") == 1


@pytest.mark.parametrize("face", ["0", "-1", "middle", "2.5", ""])
def test_a_face_that_cannot_be_is_refused_before_the_portrait_is_read(
    face: str, tmp_path: Path, animate: Run, out: Path, capsys: Capture
) -> None:
    code = animate(tmp_path / "missing.jpg", face=face)
    refused(code, capsys, out, f"there is no face {face!r}", "largest, left, right", "all")


def test_a_video_has_one_driving_face(tmp_path: Path, animate: Run, out: Path, capsys: Capture) -> None:
    code = animate(tmp_path / "missing.jpg", **{"driving-face": "all"})
    assert "or all" not in refused(code, capsys, out, "there is no face 'all'", "largest, left, right or a number")


def test_a_face_beyond_those_of_the_photo_is_refused(
    tmp_path: Path, astronaut: np.ndarray, animate: Run, out: Path, capsys: Capture
) -> None:
    photo = group_photo(astronaut)
    Image.fromarray(photo).save(tmp_path / "group.jpg")
    sentence = refused(animate(tmp_path / "group.jpg", face="9"), capsys, out)
    assert "group.jpg shows 3 faces, counted from left to right; face 9 is not one of them\n" in sentence


# --- videos -----------------------------------------------------------------------------------------------------------


def _only_sound(path: Path) -> None:
    import av

    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=16000, layout="mono")
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 16000
        container.mux([*sound.encode(samples), *sound.encode(None)])


def _flat(path: Path) -> None:
    with VideoWriter(path, 25.0, 128) as writer:
        for _ in range(5):
            writer.write(np.full((128, 128, 3), 100, np.uint8))


BAD_VIDEOS: dict[str, tuple[str, Callable[[Path, Path], None], str]] = {
    "missing": ("missing.mp4", lambda path, _: None, "does not exist"),
    "directory": ("folder.mp4", lambda path, _: path.mkdir(), "folder"),
    "text": ("notes.mp4", lambda path, _: path.write_text("#EXTM3U\nhttp://127.0.0.1/a.ts\n") and None, "notes.mp4"),
    "zero bytes": ("empty.mp4", lambda path, _: path.touch(), "empty"),
    "truncated": ("half.mp4", lambda path, good: path.write_bytes(good.read_bytes()[:600]) and None, "half.mp4"),
    "audio-only": ("sound.mp4", lambda path, _: _only_sound(path), "sound.mp4"),
    "no face": ("meadow.mp4", lambda path, _: _flat(path), "no face"),
}


@pytest.mark.parametrize("kind", BAD_VIDEOS)
def test_a_bad_driving_video_is_refused(
    kind: str, tmp_path: Path, face_video: Path, animate: Run, out: Path, capsys: Capture
) -> None:
    name, make, words = BAD_VIDEOS[kind]
    make(tmp_path / name, face_video)
    refused(animate(mover=("--driving", tmp_path / name)), capsys, out, name, words)


@pytest.mark.parametrize("kind", ["missing", "audio-only", "no face"])
def test_a_bad_video_cannot_be_tracked_or_compared(
    kind: str, tmp_path: Path, face_video: Path, short_motion: Path, out: Path, capsys: Capture
) -> None:
    name, make, words = BAD_VIDEOS[kind]
    make(tmp_path / name, face_video)
    refused(main(["track", str(tmp_path / name), "-o", str(out / "a.motion")]), capsys, out, name, words)
    refused(main(["compare-motion", str(short_motion), str(tmp_path / name)]), capsys, out, name, words)


def test_a_face_that_leaves_the_frame_is_bridged_and_that_is_said(
    tmp_path: Path, face_video: Path, astronaut_turns: list[np.ndarray], out: Path, capsys: Capture
) -> None:
    with VideoWriter(tmp_path / "away.mp4", 25.0, 256) as writer:
        for number, frame in enumerate(astronaut_turns):
            writer.write(np.full_like(frame, 90) if 8 <= number < 13 else frame)
    assert main(["track", str(tmp_path / "away.mp4"), "-o", str(out / "a.motion")]) == 0
    assert "lost in 5 of 24 frames" in capsys.readouterr().err
    assert len(Motion.load(out / "a.motion")) == len(list(read_frames(face_video)))


# --- motion files -----------------------------------------------------------------------------------------------------


def test_a_motion_file_has_no_faces_to_choose_from(animate: Run, out: Path, capsys: Capture) -> None:
    refused(animate(**{"driving-face": "2"}), capsys, out, "leave it out")


def test_head_motion_is_not_chosen_for_absolute_motion(
    astronaut_path: Path, short_motion: Path, out: Path, capsys: Capture
) -> None:
    files = [str(astronaut_path), "--motion", str(short_motion), "-o", str(out / "a.mp4")]
    code = main(["animate", *files, "--absolute", "--head-motion", "full"])
    refused(code, capsys, out, "--absolute", "leave out --head-motion")


def test_cuts_and_absences_of_a_motion_are_told(animate: Run, short_motion: Path, out: Path, capsys: Capture) -> None:
    still = Motion.load(short_motion)
    frames = {
        "expression": np.repeat(still.expression[:1], 4, axis=0),
        "camera": np.repeat(still.camera[:1], 4, axis=0),
    }
    replace(still, **frames, shot=np.array([0, -1, -1, 1])).save(short_motion)
    assert animate(frame="crop") == 0
    told = capsys.readouterr().err
    assert "1 cut: each shot moves from the portrait's own pose; the face is away in 2 of 4 frames" in told
    assert told.count("away") == 1


def test_nan_in_a_motion_file_is_refused(
    tmp_path: Path, short_motion: Path, animate: Run, out: Path, capsys: Capture
) -> None:
    data = bytearray(short_motion.read_bytes())
    data[-4:] = struct.pack("<f", float("nan"))
    (tmp_path / "nan.motion").write_bytes(data)
    refused(animate(mover=("--motion", tmp_path / "nan.motion")), capsys, out, "nan.motion", "NaN")


def test_another_expression_space_is_refused(
    tmp_path: Path, short_motion: Path, animate: Run, out: Path, capsys: Capture
) -> None:
    motion = replace(Motion.load(short_motion), space="bfm64", expression=np.zeros((2, 64), np.float32))
    motion.save(tmp_path / "deep.motion")
    refused(animate(mover=("--motion", tmp_path / "deep.motion")), capsys, out, "deep.motion", "bfm64", "arkit52")
    code = main(["compare-motion", str(short_motion), str(tmp_path / "deep.motion")])
    refused(code, capsys, out, "deep.motion", "bfm64")


@pytest.mark.parametrize("bound", ["nod=0.5", "yaw", "yaw=", "yaw=high", "yaw=nan", "yaw=inf", "yaw=-inf"])
def test_a_bound_that_no_correlation_can_have_is_refused(
    bound: str, short_motion: Path, out: Path, capsys: Capture
) -> None:
    code = main(["compare-motion", str(short_motion), str(short_motion), "--min", bound])
    refused(code, capsys, out, "--min takes NAME=VALUE", "yaw, pitch", repr(bound))


@pytest.mark.parametrize("kind", ["missing", "directory", "zero bytes", "text"])
def test_what_is_no_motion_file_is_refused(
    kind: str, tmp_path: Path, face_video: Path, animate: Run, out: Path, capsys: Capture
) -> None:
    name, make, _ = BAD_VIDEOS[kind]
    path = tmp_path / name.replace(".mp4", ".motion")
    make(path, face_video)
    refused(animate(mover=("--motion", path)), capsys, out, path.name)


def test_a_video_given_as_motion_is_told_apart(face_video: Path, animate: Run, out: Path, capsys: Capture) -> None:
    refused(animate(mover=("--motion", face_video)), capsys, out, "face.mp4", "video")


# --- hostile files ----------------------------------------------------------------------------------------------------


class _Hostile:
    """Unpickling this leaves a file behind."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    "door", ["a.jpg", "a.mp4", "a.motion", "a.npz", "a.mat", "a.safetensors", "a.pt", "a.pkl"], ids=str
)
def test_a_hostile_pickle_is_never_loaded(
    door: str, protocol: int, tmp_path: Path, animate: Run, out: Path, capsys: Capture
) -> None:
    path, marker = tmp_path / door, tmp_path / "owned"
    path.write_bytes(pickle.dumps(_Hostile(marker), protocol))
    if path.suffix == ".jpg":
        code = animate(path)
    elif path.suffix == ".mp4":
        code = animate(mover=("--driving", path))
    elif path.suffix in (".safetensors", ".pt"):
        code = animate(weights=path)
    else:
        code = animate(mover=("--motion", path))
    refused(code, capsys, out, str(path.with_suffix("")))  # of weights, the missing a.json may be told instead
    assert not marker.exists()


def test_a_hostile_pickle_inside_a_numpy_archive_is_never_loaded(
    tmp_path: Path, animate: Run, out: Path, capsys: Capture
) -> None:
    marker = tmp_path / "owned"
    np.savez(tmp_path / "a.npz", coefficients=np.array([_Hostile(marker)], dtype=object))
    refused(animate(mover=("--motion", tmp_path / "a.npz")), capsys, out, "a.npz")
    assert not marker.exists()


# --- outputs ----------------------------------------------------------------------------------------------------------


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_read(
    tmp_path: Path, animate: Run, out: Path, capsys: Capture
) -> None:
    (tmp_path / "file").write_text("")
    nowhere = tmp_path / "missing.jpg"  # would be refused too, had it been looked at first
    for output, words in (
        (tmp_path / "no" / "a.mp4", "no folder"),
        (tmp_path / "file" / "a.mp4", "no folder"),
        (tmp_path, "must end in"),
        (out / "a.gif", "must end in"),
    ):
        refused(animate(nowhere, output=output), capsys, out, words)
    refused(animate(nowhere, sheet=out / "a.jpg"), capsys, out, "must end in .png")
    (tmp_path / "sheet.png").symlink_to(out / "a.mp4")
    refused(animate(nowhere, sheet=tmp_path / "sheet.png"), capsys, out, "are the same file")
    assert main(["demo", "-o", str(tmp_path / "file" / "demo")]) == 2
    assert "cannot create the folder" in capsys.readouterr().err


def test_inputs_are_not_overwritten(tmp_path: Path, face_video: Path, animate: Run, out: Path, capsys: Capture) -> None:
    before = face_video.read_bytes()
    refused(animate(mover=("--driving", face_video), output=face_video), capsys, out, "overwrite")
    assert face_video.read_bytes() == before


def test_the_background_image_is_an_input(tmp_path: Path, astronaut: np.ndarray, out: Path, capsys: Capture) -> None:
    own = tmp_path / "own.png"
    Image.fromarray(astronaut[:64, :64]).save(own)
    before = own.read_bytes()
    nobody = str(tmp_path / "missing.jpg")  # would be refused too, had it been looked at first
    refused(main(["edit", nobody, "--background", str(own), "-o", str(own)]), capsys, out, "overwrite")
    assert own.read_bytes() == before
    for command, ending in (("edit", "png"), ("orbit", "mp4")):
        arguments = [command, nobody, "--background", str(tmp_path / "no.png"), "-o", str(out / f"a.{ending}")]
        refused(main(arguments), capsys, out, "no.png does not exist")


def on_a_full_disk(size: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`export3d` in a process of its own, in which no file may grow beyond so many bytes."""
    pytest.importorskip("resource")
    code = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}));"
        "from export3d.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("size", [200, 1500])
def test_a_full_disk_leaves_no_video(
    size: int, astronaut_path: Path, short_motion: Path, tiny_weights: Path, out: Path
) -> None:
    files = [
        "--motion",
        short_motion,
        "--weights",
        tiny_weights,
        "-o",
        out / "a.mp4",
        "--sheet",
        out / "a.png",
        "--no-mark",
    ]
    done = on_a_full_disk(size, "animate", astronaut_path, *files)
    assert done.returncode == 2, done.stderr
    begun, sentence = done.stderr.splitlines()
    assert begun == "export3d: rendering, 2 frames"
    assert sentence.startswith(f"export3d: cannot write {out / 'a.mp4'}")
    assert list(out.iterdir()) == []


@pytest.mark.slow
def test_a_full_disk_leaves_no_motion_file(face_video: Path, out: Path) -> None:
    done = on_a_full_disk(500, "track", face_video, "-o", out / "a.motion")
    assert done.returncode == 2, done.stderr
    begun, sentence = done.stderr.splitlines()
    assert begun == f"export3d: tracking {face_video.name}"
    assert sentence.startswith(f"export3d: cannot write {out / 'a.motion'}")
    assert list(out.iterdir()) == []


# --- weights and settings ---------------------------------------------------------------------------------------------


def test_weights_that_are_not_there_or_damaged_are_refused(
    tmp_path: Path, tiny_weights: Path, animate: Run, out: Path, capsys: Capture
) -> None:
    refused(animate(weights=tmp_path / "none.safetensors"), capsys, out, "none.safetensors")
    refused(animate(weights=tmp_path), capsys, out, "folder")
    (tmp_path / "cut.safetensors").write_bytes(tiny_weights.read_bytes()[:-1000])
    (tmp_path / "cut.json").write_text(
        tiny_weights.with_suffix(".json").read_text().replace("tiny.safetensors", "cut.safetensors")
    )
    refused(animate(weights=tmp_path / "cut.safetensors"), capsys, out, "cut.safetensors")


def test_a_device_that_is_not_there_is_refused(
    astronaut_path: Path, tiny_weights: Path, short_motion: Path, out: Path, capsys: Capture
) -> None:
    arguments = ["animate", str(astronaut_path), "--motion", str(short_motion), "-o", str(out / "a.mp4")]
    refused(main([*arguments, "--weights", str(tiny_weights), "--device", "cuda:99"]), capsys, out, "cuda:99")


def test_a_batch_of_nothing_is_refused(
    astronaut_path: Path, tiny_weights: Path, short_motion: Path, out: Path, capsys: Capture
) -> None:
    arguments = ["animate", str(astronaut_path), "--motion", str(short_motion), "-o", str(out / "a.mp4")]
    refused(main([*arguments, "--weights", str(tiny_weights), "--batch-size", "0"]), capsys, out, "at least 1")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--batch-size", "0"], "the batch must be at least 1 frame, got 0"),
        (["--absolute", "--frame", "photo"], "--absolute takes over the driver's framing, which only a crop can show"),
        (["--absolute", "--head-motion", "full"], "--absolute takes over the driver's framing; leave out"),
    ],
)
def test_options_that_cannot_be_are_refused_before_pytorch_is_loaded(
    options: list[str], sentence: str, astronaut_path: Path, out: Path
) -> None:
    line = ["animate", str(astronaut_path), "--motion", "speech", "-o", str(out / "a.mp4"), *options]
    code = f"import sys; from export3d.cli.main import main; sys.exit(main({line}) + ('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.startswith(f"export3d: {sentence}")
    assert done.returncode == 2


def test_an_interrupted_animation_leaves_nothing(
    animate: Run, out: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from export3d.animate.animator import Animator

    def first_frame_only(*_: object, **options: object) -> Iterator[np.ndarray]:
        yield np.zeros((64, 64, 3), np.uint8)
        raise KeyboardInterrupt

    monkeypatch.setattr(Animator, "animate", first_frame_only)
    assert animate() == 130
    assert capsys.readouterr().err.splitlines()[-1] == "export3d: interrupted"
    assert list(out.iterdir()) == []


def test_a_missing_driving_video_is_refused_before_pytorch_is_loaded(astronaut_path: Path, tmp_path: Path) -> None:
    line = ["animate", str(astronaut_path), "--driving", "none.mp4", "-o", str(tmp_path / "o.mp4")]
    code = f"import sys; from export3d.cli.main import main; sys.exit(main({line}) + ('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == "export3d: none.mp4 does not exist; give the path of a driving video\n"
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("option", "first", "second"), [("--set", "jawOpen=0.5", "mouthSmile=0.8"), ("--basis", "0=1.5", "3=-1")]
)
def test_two_values_after_one_option_are_refused_with_the_way_to_give_both(
    option: str, first: str, second: str, out: Path, capsys: Capture
) -> None:
    code = main(["edit", "face.png", option, first, second, "-o", str(out / "made.png")])
    refused(code, capsys, out, f"{option} {first} {option} {second}")
