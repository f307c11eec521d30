"""animate/export.py: outputs are refused before the work, whole afterwards, or absent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export3d.animate.export import (
    check_output,
    sheet_frames,
    write_sheet,
    write_still,
    write_video,
)
from export3d.errors import OutputError
from export3d.files import make_folder
from export3d.provenance.writing import NO_MARKS
from export3d.video import probe, read_frames


def frames(count: int, size: int = 64) -> list[np.ndarray]:
    """Flat frames that grow brighter."""
    return [np.full((size, size, 3), 10 * k, np.uint8) for k in range(count)]


def test_a_good_output_passes(tmp_path: Path) -> None:
    assert check_output(str(tmp_path / "a.mp4"), (".mp4",)) == tmp_path / "a.mp4"
    assert list(tmp_path.iterdir()) == [], "checking leaves nothing behind"


def test_a_wrong_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"must end in \.mp4"):
        check_output(tmp_path / "a.avi", (".mp4",))


def test_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        check_output(tmp_path / "a.mp4", (".mp4",))


@pytest.mark.parametrize("parent", ["absent", "file.txt"])
def test_a_missing_folder_is_refused(tmp_path: Path, parent: str) -> None:
    (tmp_path / "file.txt").write_text("not a folder")
    with pytest.raises(OutputError, match="there is no folder"):
        check_output(tmp_path / parent / "a.mp4")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests may run as root, who may write anywhere: the refusal itself is simulated."""

    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(OutputError, match=r"a\.mp4: permission denied; check"):
        check_output(tmp_path / "a.mp4")


def test_an_input_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "in.mp4").write_bytes(b"precious")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "in.mp4")
    for name in ("in.mp4", "link.mp4"):
        with pytest.raises(OutputError, match="overwrite the input"):
            check_output(tmp_path / name, (".mp4",), [tmp_path / "in.mp4"])
    assert (tmp_path / "in.mp4").read_bytes() == b"precious"


def test_two_outputs_are_two_files(tmp_path: Path) -> None:
    (tmp_path / "sheet.png").symlink_to(tmp_path / "out.mp4")
    with pytest.raises(OutputError, match=r"out\.mp4 and .*sheet\.png are the same file"):
        check_output(tmp_path / "sheet.png", (".png",), outputs=[tmp_path / "out.mp4"])
    check_output(tmp_path / "other.png", (".png",), outputs=[tmp_path / "out.mp4"])


def test_folders_are_made_with_their_parents_or_refused(tmp_path: Path) -> None:
    assert make_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot create the folder"):
        make_folder(tmp_path / "file" / "b")


def test_a_written_video_is_what_was_asked_for(tmp_path: Path) -> None:
    assert write_video(tmp_path / "a.mp4", frames(10), fps=25.0) == 10
    info = probe(tmp_path / "a.mp4")
    assert (info.width, info.height, info.fps) == (64, 64, 25.0)
    assert info.duration_s == pytest.approx(0.4)
    read = list(read_frames(tmp_path / "a.mp4"))
    assert [int(frame.mean().round()) for frame in read] == pytest.approx([10 * k for k in range(10)], abs=2)


def test_the_same_frames_give_the_same_pixels_and_without_marks_the_same_bytes(tmp_path: Path) -> None:
    busy = list(np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8))
    for name in ("a", "b"):
        write_video(tmp_path / f"{name}.mp4", busy)
        write_video(tmp_path / f"{name}_bare.mp4", busy, marks=NO_MARKS)
    read = [np.stack(list(read_frames(tmp_path / f"{name}.mp4"))) for name in ("a", "b", "a_bare")]
    assert np.array_equal(read[0], read[1])
    assert not np.array_equal(read[0], read[2])
    assert (tmp_path / "a_bare.mp4").read_bytes() == (tmp_path / "b_bare.mp4").read_bytes()


def test_the_driving_sound_is_carried_over(tmp_path: Path, face_video: Path) -> None:
    write_video(tmp_path / "a.mp4", frames(10), audio_from=face_video)
    assert probe(tmp_path / "a.mp4").has_audio
    write_video(tmp_path / "b.mp4", frames(10), audio_from=None)
    assert not probe(tmp_path / "b.mp4").has_audio
    write_video(tmp_path / "c.mp4", frames(10), audio_from=tmp_path / "b.mp4")
    assert not probe(tmp_path / "c.mp4").has_audio, "a silent driving video gives a silent result"


def test_frames_are_taken_one_at_a_time(tmp_path: Path) -> None:
    """Memory does not grow with the length: no frame is asked for before the one before it was let go."""
    import weakref

    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def stream() -> Iterator[np.ndarray]:
        nonlocal most
        for k in range(40):
            frame = np.full((64, 64, 3), k, np.uint8)
            alive.append(weakref.ref(frame))
            most = max(most, sum(ref() is not None for ref in alive))
            yield frame
            del frame

    write_video(tmp_path / "a.mp4", stream())
    assert most <= 3


def test_a_failure_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    def stream() -> Iterator[np.ndarray]:
        yield from frames(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "a.mp4", stream())
    assert list(tmp_path.iterdir()) == []


def test_a_failure_keeps_the_former_file(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", frames(5))
    before = (tmp_path / "a.mp4").read_bytes()

    def stream() -> Iterator[np.ndarray]:
        yield from frames(2)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_video(tmp_path / "a.mp4", stream())
    assert (tmp_path / "a.mp4").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_no_frames_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no frames"):
        write_video(tmp_path / "a.mp4", [])
    assert list(tmp_path.iterdir()) == []


def test_stills_and_sheets_come_back_as_they_went(tmp_path: Path, rng: np.random.Generator) -> None:
    picture = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
    write_still(tmp_path / "a.png", picture, NO_MARKS)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), picture)
    write_sheet(tmp_path / "b.png", [[picture, picture], [picture, picture]], ["source", "0.00 s"])
    with Image.open(tmp_path / "b.png") as sheet:
        assert sheet.width > 64
        assert sheet.height > 64
    with pytest.raises(OutputError, match=r"\.png"):
        write_still(tmp_path / "a.jpg", picture)


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 100, 1001])
def test_sheet_frames_are_spread_over_the_whole_motion(count: int) -> None:
    numbers = sheet_frames(count)
    assert len(numbers) == min(count, 8)
    assert numbers[0] == 0
    assert numbers[-1] == count - 1
    gaps = np.diff(numbers)
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1
