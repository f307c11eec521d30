"""Scores at other sizes than the shards': pixels of the files that clips were prepared from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export3d.data.clips import encode_clip
from export3d.data.shard_writer import update
from export3d.data.shards import Record, read_index
from export3d.errors import ConfigError, InputError
from export3d.evaluation.protocols.driven import driven_clip
from export3d.evaluation.protocols.originals import Original, check_size, folders_of, with_pixels
from export3d.evaluation.protocols.same import same_identity
from export3d.evaluation.protocols.settings import Scoring
from export3d.face.crop import CropBox, crop
from export3d.pretrained import load_pretrained
from export3d.video import VideoWriter, read_frames

Make = Callable[..., Record]
PLAIN = Scoring(backbone="none", faces=False)
FRAMES, WIDE, START = 4, 320, 2
BOX = CropBox((170.0, 160.0), 300.0)


@pytest.fixture
def clip_of(tmp_path: Path, make_clip: Make, rng: np.random.Generator) -> Callable[..., Record]:
    """clip_of(key, box): a clip and its file, in which it begins with the third frame; the head is still."""

    def make(key: str, box: CropBox = BOX) -> Record:
        rough = rng.integers(30, 220, size=(WIDE // 4, WIDE // 4, 3)).repeat(4, axis=0).repeat(4, axis=1)
        path = tmp_path / f"{key}.mp4"
        with VideoWriter(path, 25.0, (WIDE, WIDE), crf=10) as writer:
            for t in range(START + FRAMES):
                writer.write(np.roll(rough, 3 * t, axis=1).astype(np.uint8))
        small = [crop(frame, box, 64) for frame in list(read_frames(path, 25.0))[START:]]
        place = {"centre": list(box.centre), "side": box.side}
        made = make_clip(key, yaws=(0,) * FRAMES, crop=place, start_s=START / 25, file=str(path))
        return replace(made, media=encode_clip(small, FRAMES, 10, key, 64))

    return make


def test_frames_are_those_of_the_file(clip_of: Callable[..., Record]) -> None:
    record = clip_of("a")
    frames = list(read_frames(record.info["file"], 25.0))
    original = Original(record, 256)
    for row in (1, 3, 0, 0):
        np.testing.assert_array_equal(original.frame(row), frames[START + row])
    np.testing.assert_array_equal(original.crops(np.array([1, 2]))[1], crop(frames[START + 2], BOX, 256))
    with pytest.raises(InputError, match=r"a\.mp4 has fewer frames"):
        original.frame(FRAMES)


@pytest.mark.slow
def test_frames_at_another_size_have_the_pixels_of_the_file(
    clip_of: Callable[..., Record], tmp_path: Path, rigid_weights: Path
) -> None:
    """The head stays where it is, and these weights show the source itself: ours is the copy, at every size."""
    large, little = clip_of("large"), clip_of("little", CropBox((160.0, 160.0), 100.0))
    split = tmp_path / "val"
    update(split, [large, little])
    report = same_identity(split, tmp_path / "out", weights=rigid_weights, scoring=PLAIN, size=256)
    assert report.methods == ("ours", "ours at 256", "copy", "warp", "mesh")  # no oracle
    assert [measure.name for measure in report.measures] == ["psnr", "ssim", "psnr_256"]
    assert report.skipped == {"little": "its face crop has 100 pixels, 256 are needed"}
    assert report.settings["size"].startswith("256 px")
    assert report.title.endswith("val, 256 px")

    (scored,) = report.clips
    clip = driven_clip(large, "arkit52", 64, scored=256)
    truth, source = clip.targets(clip.driven), clip.source_picture
    error = np.square((truth.astype(float) - source) / 255).mean(axis=(1, 2, 3))
    assert scored.value("copy", "psnr") == pytest.approx(-10 * np.log10(error).mean(), abs=1e-4)
    # the source crop in the shard is compressed, and reduced frames agree with it
    assert scored.value("ours", "psnr") == pytest.approx(scored.value("copy", "psnr"), abs=0.5)
    assert scored.value("ours", "ssim") == pytest.approx(scored.value("copy", "ssim"), abs=0.02)

    plain = same_identity(split, tmp_path / "plain", weights=rigid_weights, references=(), scoring=PLAIN)
    assert [measure.name for measure in plain.measures] == ["psnr", "ssim", "rendered"]
    known = next(clip for clip in plain.clips if clip.key == "large")
    assert scored.value("ours at 256", "psnr_256") == pytest.approx(known.value("ours", "psnr"), abs=1e-4)


@pytest.mark.parametrize("name", ["a.mp4", "people/a.mp4"])
def test_files_are_found_where_they_were_prepared_beside_the_data_and_where_the_user_says(
    clip_of: Callable[..., Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Records name files relative to a folder; the command may run in any other one."""
    record = clip_of("a")
    record.info["file"] = name
    split, here = tmp_path / "sets" / "data" / "val", tmp_path / "here"
    update(split, [record])
    here.mkdir()
    monkeypatch.chdir(here)
    file, entries = tmp_path / "a.mp4", read_index(split).entries
    with pytest.raises(
        InputError, match=rf"{name}, which it was made from, is not there; give its folder with --clips"
    ):
        with_pixels(split, entries, 256, folders_of(split))
    (split.parent / "report.json").write_text('{"folders": ["../../videos"]}')
    for folder in (tmp_path / "videos", here, split.parent, split.parent.parent, tmp_path / "moved"):
        given = folder if folder.name == "moved" else None
        moved = folder / name
        moved.parent.mkdir(exist_ok=True, parents=True)
        file = file.rename(moved)
        assert with_pixels(split, entries, 256, folders_of(split, given))[1] == {}
        assert Original(record, 256, folders_of(split, given)).frame(0).shape == (WIDE, WIDE, 3)
    with pytest.raises(InputError, match="is no folder"):
        folders_of(split, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty is empty; give the folder of the videos that"):
        folders_of(split, tmp_path / "empty")


def test_too_small_for_a_size_is_one_sentence(clip_of: Callable[..., Record], tmp_path: Path) -> None:
    split = tmp_path / "val"
    update(split, [clip_of("a"), clip_of("b", CropBox((160.0, 160.0), 100.0))])
    with pytest.raises(InputError, match=r"512 pixels across the face crop, the most are 300; give --size 300 or less"):
        with_pixels(split, read_index(split).entries, 512)


@pytest.mark.slow
def test_files_that_are_gone_changed_or_unknown_are_named(
    clip_of: Callable[..., Record], make_clip: Make, tmp_path: Path, rigid_weights: Path
) -> None:
    gone, changed, good = clip_of("gone"), clip_of("changed"), clip_of("good")
    Path(gone.info["file"]).unlink()
    Path(changed.info["file"]).write_bytes(Path(good.info["file"]).read_bytes())
    split = tmp_path / "val"
    update(split, [gone, changed, good, make_clip("unknown")])
    report = same_identity(split, tmp_path / "out", weights=rigid_weights, references=(), scoring=PLAIN, size=256)
    assert [clip.key for clip in report.clips] == ["good"]
    assert "is not there; give its folder with --clips" in report.skipped["gone"]
    assert "has changed since it was prepared" in report.skipped["changed"]
    assert "does not tell where its pixels come from" in report.skipped["unknown"]
    update(split, [], drop=["print-good", "print-unknown"])
    with pytest.raises(InputError, match=r"has changed since it was prepared; prepare it again$"):
        same_identity(split, tmp_path / "out", weights=rigid_weights, references=(), scoring=PLAIN, size=256)


@pytest.mark.parametrize("size", [0, 255, 257, 1026])
def test_sizes_that_are_not_possible_are_refused(size: int, rigid_weights: Path) -> None:
    with pytest.raises(ConfigError, match="even number from 256 to 1024"):
        check_size(size, load_pretrained(rigid_weights))


def test_weights_that_take_no_pixels_from_the_source_have_one_size(tiny_weights: Path) -> None:
    check_size(None, load_pretrained(tiny_weights))
    with pytest.raises(ConfigError, match="leave out --size"):
        check_size(256, load_pretrained(tiny_weights))
