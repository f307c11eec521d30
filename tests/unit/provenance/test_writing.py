"""provenance/writing.py: outputs carry all marks, appear whole or not at all, and lack marks only where allowed."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from export3d.errors import ConfigError, OutputError, PolicyError, ShapeError
from export3d.provenance import signing
from export3d.provenance.label import with_label
from export3d.provenance.statement import SOURCE_TYPE, Statement
from export3d.provenance.watermark.detect import find_watermark
from export3d.provenance.watermark.embed import Watermark
from export3d.provenance.writing import (
    MARKED,
    NO_MARKS,
    Marks,
    encoded_jpeg,
    encoded_webp,
    painted,
    painter,
    video_writer,
    write_image,
    write_unmarked,
)
from export3d.video import VideoWriter, read_frames

MARKS = Marks(Statement(portrait="a" * 64, weights="b" * 64))


@pytest.fixture
def policy(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the policy of the machine is read."""
    path = tmp_path_factory.mktemp("policy") / "policy.toml"
    path.write_text('marks = "required"\n')
    monkeypatch.setenv("EXPORT3D_POLICY", str(path))
    return path


def pixels(path: Path | bytes) -> np.ndarray:
    with Image.open(io.BytesIO(path) if isinstance(path, bytes) else path) as image:
        return np.array(image.convert("RGB"))


def write_video(path: Path, frames: list[np.ndarray], marks: Marks = MARKS) -> None:
    with video_writer(path, 25, frames[0].shape[1::-1], marks=marks) as writer:
        for frame in frames:
            writer.write(frame)


def test_a_png_carries_the_mark_xmp_and_a_signed_statement(tmp_path: Path, astronaut: np.ndarray) -> None:
    write_image(tmp_path / "a.png", astronaut, MARKS)
    assert find_watermark([pixels(tmp_path / "a.png")]).payload == MARKS.statement.payload
    with Image.open(tmp_path / "a.png") as image:
        assert f'DigitalSourceType="{SOURCE_TYPE}"' in image.text["XML:com.adobe.xmp"]
    signed = signing.read(tmp_path / "a.png")
    assert signed is not None
    assert (signed.state, signed.payload) == ("unchanged", MARKS.statement.payload)


def test_a_video_carries_the_mark_tags_and_a_signed_statement(
    tmp_path: Path, astronaut_turns: list[np.ndarray]
) -> None:
    write_video(tmp_path / "a.mp4", astronaut_turns[:6])
    assert find_watermark(read_frames(tmp_path / "a.mp4")).payload == MARKS.statement.payload
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert MARKS.statement.to_json() in container.metadata["comment"]
        assert container.metadata["title"] == "AI-generated"
    signed = signing.read(tmp_path / "a.mp4")
    assert signed is not None
    assert (signed.state, signed.payload) == ("unchanged", MARKS.statement.payload)


def test_a_webp_of_a_page_carries_the_mark_and_xmp(astronaut: np.ndarray) -> None:
    data = encoded_webp(astronaut, 82, MARKS)
    assert find_watermark([pixels(data)]).payload == MARKS.statement.payload
    assert SOURCE_TYPE.encode() in data
    assert data == encoded_webp(astronaut, 82, MARKS)


def test_a_jpeg_that_is_shown_live_carries_the_mark_and_xmp(astronaut: np.ndarray) -> None:
    small = np.ascontiguousarray(astronaut[:256, 96:352])
    data = encoded_jpeg(small, 90, MARKS)
    assert find_watermark([pixels(data)]).payload == MARKS.statement.payload
    assert SOURCE_TYPE.encode() in data
    assert np.abs(pixels(encoded_jpeg(small, 90, NO_MARKS)).astype(int) - small).mean() < 3.0


def test_without_marks_there_is_nothing(tmp_path: Path, astronaut: np.ndarray) -> None:
    write_image(tmp_path / "a.png", astronaut, NO_MARKS)
    write_video(tmp_path / "a.mp4", [astronaut], NO_MARKS)
    assert np.array_equal(pixels(tmp_path / "a.png"), astronaut)
    assert not find_watermark(read_frames(tmp_path / "a.mp4")).found
    for path in tmp_path.iterdir():
        assert signing.read(path) is None
        assert b"AI-generated" not in path.read_bytes()
        assert b"export3d" not in path.read_bytes()
    assert painter(NO_MARKS) is None


def test_the_label_lies_below_the_mark(astronaut: np.ndarray) -> None:
    marks = Marks(MARKS.statement, label=True)
    assert np.array_equal(painted(astronaut, marks), painted(with_label(astronaut), MARKS))
    assert find_watermark([painted(astronaut, marks)]).payload == MARKS.statement.payload


def test_a_statement_grows_by_what_is_known_later() -> None:
    marks = Marks(Statement(motion="c" * 64), label=True).about(Statement(portrait="a" * 64))
    assert marks == Marks(Statement(portrait="a" * 64, motion="c" * 64), label=True)


def test_where_marks_are_required_nothing_is_written_without(
    policy: Path, tmp_path: Path, astronaut: np.ndarray
) -> None:
    for write in (
        lambda: write_image(tmp_path / "a.png", astronaut, NO_MARKS),
        lambda: write_video(tmp_path / "a.mp4", [astronaut], NO_MARKS),
        lambda: encoded_webp(astronaut, 82, NO_MARKS),
        lambda: painted(astronaut, NO_MARKS),
        lambda: write_unmarked(tmp_path / "b.png", astronaut, reason="predictions"),
    ):
        with pytest.raises(PolicyError, match="requires marks on every output"):
            write()
    assert list(tmp_path.iterdir()) == []
    write_unmarked(tmp_path / "chart.png", astronaut, reason="chart")
    assert np.array_equal(pixels(tmp_path / "chart.png"), astronaut)


def test_the_policy_can_ask_for_the_label(policy: Path, astronaut: np.ndarray) -> None:
    policy.write_text("label = true\n")
    assert np.array_equal(painted(astronaut, MARKS), Watermark(MARKS.statement.payload).apply(with_label(astronaut)))
    with pytest.raises(PolicyError, match="requires marks"):
        painted(astronaut, NO_MARKS)


def test_a_damaged_policy_stops_every_writer(policy: Path, tmp_path: Path, astronaut: np.ndarray) -> None:
    policy.write_text("marks = \n")
    for write in (
        lambda: write_image(tmp_path / "a.png", astronaut),
        lambda: write_video(tmp_path / "a.mp4", [astronaut], MARKED),
        lambda: encoded_webp(astronaut, 82),
        lambda: write_unmarked(tmp_path / "b.png", astronaut, reason="predictions"),
    ):
        with pytest.raises(PolicyError, match=r"policy\.toml cannot be read"):
            write()
    assert list(tmp_path.iterdir()) == []


def test_another_reason_is_a_mistake(tmp_path: Path, astronaut: np.ndarray) -> None:
    with pytest.raises(KeyError):
        write_unmarked(tmp_path / "a.png", astronaut, reason="because")


@pytest.mark.parametrize("image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((8, 8, 4))])
def test_what_is_no_image_is_refused(image: np.ndarray, tmp_path: Path) -> None:
    for marks in (MARKS, NO_MARKS):
        with pytest.raises(ShapeError):
            write_image(tmp_path / "a.png", image, marks)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (16, 16), (37, 61), (8, 300)])
def test_frames_of_any_size_are_written_with_a_label(shape: tuple[int, int], tmp_path: Path) -> None:
    frame = np.full((*shape, 3), 128, np.uint8)
    write_image(tmp_path / "a.png", frame, Marks(label=True))
    assert pixels(tmp_path / "a.png").shape == frame.shape
    if not (shape[0] % 2 or shape[1] % 2):
        write_video(tmp_path / "a.mp4", [frame] * 2, Marks(label=True))
        assert len(list(read_frames(tmp_path / "a.mp4"))) == 2


def test_without_the_extra_the_other_marks_are_written(tmp_path: Path, astronaut: np.ndarray) -> None:
    """In a process that cannot import c2pa: one sentence for both files, and files with mark and plain metadata."""
    code = """
import logging, sys, numpy as np
sys.modules["c2pa"] = None
logging.basicConfig(format="%(message)s")
from export3d.provenance.writing import video_writer, write_image
frame = np.load(sys.argv[1] + "/frame.npy")
write_image(sys.argv[1] + "/a.png", frame)
with video_writer(sys.argv[1] + "/a.mp4", 25, 512) as writer:
    writer.write(frame)
"""
    np.save(tmp_path / "frame.npy", astronaut)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("pip install -c constraints.txt '.[provenance]'") == 1
    assert find_watermark(read_frames(tmp_path / "a.mp4")).payload == MARKED.statement.payload
    assert find_watermark([pixels(tmp_path / "a.png")]).payload == MARKED.statement.payload
    for name in ("a.mp4", "a.png"):
        assert signing.read(tmp_path / name) is None
        assert SOURCE_TYPE.encode() in (tmp_path / name).read_bytes()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OutputError("the disk is full")])
def test_a_failure_while_signing_leaves_the_former_file(
    stop: BaseException, tmp_path: Path, astronaut: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.mp4").write_bytes(b"former")
    sign = signing.sign

    def interrupted(source: Path, target: Path, statement: Statement) -> None:
        sign(source, target, statement)
        raise stop

    monkeypatch.setattr(signing, "sign", interrupted)
    with pytest.raises(stop if isinstance(stop, type) else type(stop)):
        write_video(tmp_path / "a.mp4", [astronaut])
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == b"former"


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of the process")
def test_a_disk_that_fills_up_while_signing_is_named(tmp_path: Path, astronaut: np.ndarray) -> None:
    """Files may grow beyond the size of the unsigned video, but not to that of the signed one."""
    np.save(tmp_path / "frame.npy", astronaut)
    out = tmp_path / "out"
    out.mkdir()
    write_video(out / "a.mp4", [astronaut], MARKED)
    limit = (out / "a.mp4").stat().st_size - 500
    (out / "a.mp4").unlink()
    code = """
import resource, signal, sys, numpy as np
from export3d.errors import OutputError
from export3d.provenance import signing
from export3d.provenance.writing import video_writer
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
frame, limit = np.load(sys.argv[1] + "/frame.npy"), int(sys.argv[2])
signing.check()
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    with video_writer(sys.argv[1] + "/out/a.mp4", 25, 512) as writer:
        writer.write(frame)
except OutputError as problem:
    print(problem)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(limit)], capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith(f"cannot write {out / 'a.mp4'}") or "a.mp4 cannot be signed" in done.stdout, done
    assert ".a." not in done.stdout, "the temporary name is not shown"
    assert list(out.iterdir()) == []


def test_a_folder_that_goes_away_is_named(tmp_path: Path, astronaut: np.ndarray) -> None:
    (tmp_path / "out").mkdir()
    writer = video_writer(tmp_path / "out" / "a.mp4", 25, 512, marks=MARKS).__enter__()
    writer.write(astronaut)
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(OutputError, match=r"out/a\.mp4"):
        writer.__exit__(None, None, None)


def test_two_writers_work_at_once(tmp_path: Path, astronaut_turns: list[np.ndarray]) -> None:
    def write(number: int) -> int:
        marks = Marks(Statement(portrait=f"{number:064x}"))
        side = 256 - 64 * number
        write_video(tmp_path / f"{number}.mp4", [np.ascontiguousarray(f[:side]) for f in astronaut_turns[:5]], marks)
        return marks.statement.payload

    with ThreadPoolExecutor(2) as pool:
        payloads = list(pool.map(write, range(2)))
    found = [find_watermark(read_frames(tmp_path / f"{number}.mp4")).payload for number in range(2)]
    assert found == payloads
    assert [signing.read(tmp_path / f"{number}.mp4").payload for number in range(2)] == payloads  # type: ignore[union-attr]


def test_an_unusable_certificate_is_known_before_the_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPORT3D_HOME", str(tmp_path))
    (tmp_path / "signing.pem").write_text("no key")
    (tmp_path / "signing.pem").chmod(0o600)
    with pytest.raises(ConfigError, match=r"signing\.pem"):
        video_writer(tmp_path / "a.mp4", 25, 64)
    assert isinstance(video_writer(tmp_path / "a.mp4", 25, 64, marks=NO_MARKS), VideoWriter)
