from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export3d.data.clips import Limits, Refusal, media_kind, records_of
from export3d.data.decoding import decode
from export3d.data.shards import Record
from export3d.errors import ConfigError
from export3d.face.tracker import Tracker
from tests.made_videos import clip

Draw = Callable[..., Path]
Frame = Callable[..., np.ndarray]


def records(path: Path, tracker: Tracker, **limits: float) -> tuple[list[Record], list[Refusal]]:
    return records_of(path, "key", {"person": "p"}, tracker, Limits(**limits))


def refusal(path: Path, tracker: Tracker, **limits: float) -> Refusal:
    with pytest.raises(Refusal) as caught:
        records(path, tracker, **limits)
    return caught.value


def test_a_clip_becomes_one_record_centred_on_the_nose(
    tmp_path: Path, draw_clip: Draw, painted_tracker: Tracker
) -> None:
    path = draw_clip(tmp_path / "a.mp4", [160 + 2 * np.sin(t) for t in range(30)])
    [record], refusals = records(path, painted_tracker)
    assert refusals == []
    assert (record.key, record.kind, record.frames) == ("key", "video", 30)
    assert record.found.all()
    np.testing.assert_allclose(record.landmarks[:, 4].astype(float).mean(0), [0.5, 0.5], atol=0.01)
    heights = np.linalg.norm((record.landmarks[:, 10] - record.landmarks[:, 152]).astype(float), axis=1)
    np.testing.assert_allclose(heights, 1 / 1.9, atol=0.01)
    pictures = decode(record, 256)
    assert pictures.shape == (30, 3, 256, 256)
    green = (pictures[:, 1] > 180) & (pictures[:, 0] < 90)
    assert abs(green.mean() - (1 / 1.9) ** 2) < 0.02
    info = record.info
    assert (info["person"], info["fps"], info["size"], info["space"]) == ("p", 25.0, 256, "arkit52")
    assert abs(info["face_px"] - 90) < 2
    assert info["crop"]["side"] == pytest.approx(1.9 * info["face_px"], abs=0.2)
    assert info["reprojection_px"] < 1.0
    assert info["inside"] == [0.0, 0.0, 1.0, 1.0]


def test_a_still_becomes_one_png_record(tmp_path: Path, draw_frame: Frame, painted_tracker: Tracker) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(draw_frame()).save(path, quality=95)
    [record], refusals = records(path, painted_tracker)
    assert refusals == []
    assert (record.kind, record.frames, record.info["fps"]) == ("image", 1, 0.0)
    assert decode(record, 256).shape == (1, 3, 256, 256)


def test_stills_have_a_limit_of_their_own(tmp_path: Path, draw_frame: Frame, painted_tracker: Tracker) -> None:
    Image.fromarray(draw_frame()).save(tmp_path / "a.png")
    assert len(records(tmp_path / "a.png", painted_tracker, max_reprojection_px=1e-6)[0]) == 1
    assert refusal(tmp_path / "a.png", painted_tracker, max_still_reprojection_px=1e-6).reason == "poor fit"


def test_it_is_known_which_part_of_the_crop_the_frame_fills(
    tmp_path: Path, draw_frame: Frame, painted_tracker: Tracker
) -> None:
    Image.fromarray(draw_frame(y=50)).save(tmp_path / "a.png")
    [record], _ = records(tmp_path / "a.png", painted_tracker)
    side = record.info["crop"]["side"]
    top = (side / 2 - 50) / side
    assert record.info["inside"] == pytest.approx([0.0, top, 1.0, 1.0], abs=0.01)
    picture = decode(record, 256)[0]
    edge = int(top * 256) - 3
    assert (picture[:, :edge] == picture[:, :1]).all()  # repeated: every row like the first


def test_other_frame_rates_become_25(tmp_path: Path, draw_clip: Draw, painted_tracker: Tracker) -> None:
    [record], _ = records(draw_clip(tmp_path / "a.mp4", [160] * 60, fps=50), painted_tracker)
    assert record.frames == 30


def test_lost_frames_at_the_ends_are_left_out(tmp_path: Path, draw_clip: Draw, painted_tracker: Tracker) -> None:
    path = draw_clip(tmp_path / "a.mp4", [None] * 10 + [160] * 20 + [None] * 5)
    [record], _ = records(path, painted_tracker)
    assert (record.frames, record.info["start_s"]) == (20, 0.4)
    assert (decode(record, 256)[:, 1, 128, 128] > 180).all()


def test_a_short_gap_is_bridged_and_marked(tmp_path: Path, draw_clip: Draw, painted_tracker: Tracker) -> None:
    [record], _ = records(draw_clip(tmp_path / "a.mp4", [160] * 20 + [None] * 2 + [160] * 20), painted_tracker)
    assert record.frames == 42
    assert np.flatnonzero(~record.found).tolist() == [20, 21]


@pytest.mark.slow
def test_a_long_gap_splits_the_clip_and_each_part_has_its_own_crop(
    tmp_path: Path, draw_clip: Draw, painted_tracker: Tracker
) -> None:
    path = draw_clip(tmp_path / "a.mp4", [130] * 20 + [None] * 30 + [190] * 25)
    parts, refusals = records(path, painted_tracker)
    assert refusals == []
    assert [(part.key, part.frames, part.info["start_s"]) for part in parts] == [
        ("key-01", 20, 0.0),
        ("key-02", 25, 2.0),
    ]
    assert [round(part.info["crop"]["centre"][0]) for part in parts] == [130, 190]
    for part in parts:
        assert (decode(part, 256)[:, 1, 128, 128] > 180).all()


def test_a_cut_splits_the_clip(tmp_path: Path, draw_clip: Draw, painted_tracker: Tracker) -> None:
    parts, _ = records(draw_clip(tmp_path / "a.mp4", [120] * 20 + [200] * 20), painted_tracker)
    assert [round(part.info["crop"]["centre"][0]) for part in parts] == [120, 200]


def test_a_part_that_is_too_short_is_refused_by_its_own(
    tmp_path: Path, draw_clip: Draw, painted_tracker: Tracker
) -> None:
    parts, refusals = records(draw_clip(tmp_path / "a.mp4", [120] * 20 + [200] * 5), painted_tracker)
    assert [part.key for part in parts] == ["key-01"]
    assert [(r.reason, r.detail.split(" has")[0]) for r in refusals] == [("too short", "a.mp4, 0.8 to 1.0 s")]


def test_frames_whose_face_leaves_the_crop_are_marked(
    tmp_path: Path, draw_clip: Draw, painted_tracker: Tracker
) -> None:
    xs = [*[100] * 40, *range(100, 220, 12), 220, 220]
    [record], _ = records(draw_clip(tmp_path / "a.mp4", xs), painted_tracker)
    assert record.found[:40].all()
    assert not record.found[-3:].any()


@pytest.mark.parametrize(
    ("xs", "height", "limits", "reason"),
    [
        ([160] * 10, 90, {}, "too short"),
        ([160, 160, None, 160] * 10, 90, {}, "face lost"),
        ([160] * 20, 40, {}, "face too small"),
        ([160] * 20, 90, {"max_reprojection_px": 1e-6}, "poor fit"),
        ([None] * 20, 90, {}, "no face"),
    ],
)
def test_what_is_not_good_enough_is_refused_with_its_reason(
    tmp_path: Path, draw_clip: Draw, painted_tracker: Tracker, xs: list, height: float, limits: dict, reason: str
) -> None:
    refused = refusal(draw_clip(tmp_path / "clip.mp4", xs, height), painted_tracker, **limits)
    assert refused.reason == reason
    assert "clip.mp4" in refused.detail


@pytest.mark.parametrize("name", ["text.mp4", "empty.mp4", "cut.mp4", "text.jpg", "cut.jpg", "noise.png"])
def test_files_that_cannot_be_read_are_refused(
    tmp_path: Path, draw_clip: Draw, draw_frame: Frame, painted_tracker: Tracker, name: str
) -> None:
    path = tmp_path / name
    if name == "cut.mp4":
        path.write_bytes(draw_clip(tmp_path / "whole.mp4", [160] * 20).read_bytes()[:600])
    elif name == "cut.jpg":
        Image.fromarray(draw_frame()).save(tmp_path / "whole.jpg")
        path.write_bytes((tmp_path / "whole.jpg").read_bytes()[:700])
    elif name == "noise.png":
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(200)))
    else:
        path.write_text("" if name.startswith("empty") else "this is not a video")
    refused = refusal(path, painted_tracker)
    assert refused.reason == "unreadable"
    assert name in refused.detail


def test_kinds_are_told_by_content_not_by_name(tmp_path: Path, draw_clip: Draw, draw_frame: Frame) -> None:
    frame = Image.fromarray(draw_frame())
    draw_clip(tmp_path / "clip.mp4", [160] * 3).rename(tmp_path / "clip.jpg")
    assert media_kind(tmp_path / "clip.jpg") == "video"
    for suffix in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF"):
        frame.save(tmp_path / "picture.mp4", format=suffix)
        assert media_kind(tmp_path / "picture.mp4") == "image"
    for name in ("a.gif", "a.png", "a.webp"):
        frame.save(tmp_path / name, save_all=True, append_images=[Image.fromarray(draw_frame(100))])
        assert media_kind(tmp_path / name) == "video"
    for name in ("a.mkv", "a.avi", "a.wmv", "a.flv", "a.ts", "a.h264"):
        assert media_kind(clip(tmp_path / name, 5)) == "video"
    (tmp_path / "notes.txt").write_text("hello")
    assert media_kind(tmp_path / "notes.txt") is None


def test_limits_that_cannot_work_are_refused() -> None:
    for wrong in ({"min_frames": 0}, {"min_found": 1.5}, {"max_gap_s": 0.0}, {"crf": 99}):
        with pytest.raises(ConfigError):
            Limits(**wrong)


def test_a_picture_that_is_not_upright_is_refused(tmp_path: Path, astronaut: np.ndarray) -> None:
    pytest.importorskip("mediapipe", exc_type=ImportError)
    Image.fromarray(np.rot90(astronaut)).save(tmp_path / "lying.png")
    with Tracker() as tracker:
        refused = refusal(tmp_path / "lying.png", tracker)
    assert refused.reason == "not upright"
    assert "lying.png lies on its side" in refused.detail
