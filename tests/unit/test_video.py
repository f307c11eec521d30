import logging
import os
import pickle
import subprocess
import sys
import zlib
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from export3d import video
from export3d.errors import BadVideo, ConfigError, OutputError, ShapeError
from export3d.video import VideoInfo, VideoWriter, probe, read_frames, reading
from export3d.video.sound import write_sound
from export3d.video.view import SWS_QUALITY, View
from tests.made_videos import animation, beep, clip, heard, number, numbered, onset


def numbers(path: Path, fps: float = 25.0) -> list[int]:
    return [number(frame) for frame in read_frames(path, fps)]


def stamps(path: Path) -> tuple[list[Fraction], Fraction]:
    """When each picture appears by the file's own clock, and half a tick of it (at most half a millisecond)."""
    with av.open(str(path)) as container:
        tick = container.streams.video[0].time_base
        assert tick is not None
        times = sorted(packet.pts * tick for packet in container.demux(video=0) if packet.pts is not None)
    return times, min(tick / 2, Fraction(1, 2000))


def shown_at(times: Sequence[Fraction], end: Fraction, fps: Fraction, slack: Fraction) -> list[int]:
    """The slow twin of resampling: which frame a viewer sees at k / fps after the first appears."""
    out = []
    now = times[0]
    while not out or now < end - slack:
        out.append(max(i for i, time in enumerate(times) if time <= now + slack))
        now = times[0] + len(out) / fps
    return out


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2)))


def smooth(k: int, width: int = 128, height: int = 96) -> np.ndarray:
    """A smooth colourful picture that moves."""
    y, x = np.mgrid[0:height, 0:width] / 100.0
    channels = [np.sin(5 * x + 2 * y + k / 9), np.cos(4 * y - 3 * x - k / 7), np.sin(3 * x * y + 1)]
    return (127 + 120 * np.stack(channels, axis=-1)).round().astype(np.uint8)


# --- resampling ---


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("a.mov", "libx264"),
        ("a.mkv", "libx264"),
        ("a.mkv", "ffv1"),
        ("a.webm", "libvpx"),
        ("a.avi", "mpeg4"),
        ("a.avi", "mjpeg"),
        ("a.ts", "libx264"),
        ("a.mpg", "mpeg2video"),
        ("a.gif", "gif"),
        ("a.wmv", "wmv2"),
        ("a.wmv", "libx264"),
        ("a.flv", "flv"),
        ("a.flv", "libx264"),
        ("a.ogv", "libvpx"),
        ("a.h264", "libx264"),
        ("a.hevc", "libx265"),
        ("a.m2v", "mpeg2video"),
        ("a.apng", "apng"),
    ],
)
def test_every_frame_of_a_25_fps_file_comes_once(tmp_path: Path, name: str, codec: str) -> None:
    pix_fmt = {"mjpeg": "yuvj420p", "gif": "rgb8", "apng": "rgb24"}.get(codec, "yuv420p")
    options = {"libx265": {"x265-params": "log-level=none"}, "wmv2": {"q": "2"}, "flv": {"q": "2"}}.get(codec)
    path = clip(tmp_path / name, 30, codec=codec, pix_fmt=pix_fmt, options=options)
    assert numbers(path) == list(range(30))


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.avi", "libx264", {"bf": "3", "b-adapt": "0"}),
        ("a.avi", "libx264", {"bf": "3", "b-pyramid": "normal", "threads": "1"}),
        ("a.avi", "mpeg4", {"bf": "2"}),
        ("a.avi", "mpeg2video", {"bf": "2"}),
        ("a.wmv", "libx264", {"bf": "3", "b-adapt": "0"}),
        ("a.wmv", "mpeg4", {"bf": "2"}),
        ("a.h264", "libx264", {"bf": "3", "b-adapt": "0"}),
    ],
)
def test_reordered_frames_come_in_order_where_the_file_has_no_presentation_times(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, codec: str, options: dict[str, str]
) -> None:
    path = clip(tmp_path / name, 50, codec=codec, options={"q" if codec != "libx264" else "crf": "2", **options})
    assert numbers(path) == list(range(50))
    assert caplog.text == ""


def test_a_raw_stream_has_the_rate_that_it_states(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.h264", 60, fps=30)
    info = probe(path)
    assert (info.fps, info.duration_s) == (30.0, 2.0)
    assert numbers(path) == [k * 6 // 5 for k in range(50)]


def test_reordered_frames_of_an_avi_stay_with_its_sound(tmp_path: Path) -> None:
    """The decoder holds two frames back; the first frame is still the one at time 0."""
    driving = clip(tmp_path / "a.avi", 50, options={"bf": "3"}, sound=beep(1.0, 2.0), sound_codec="pcm_s16le")
    out = carried(driving, tmp_path / "out.mp4")
    sound, rate = heard(out)
    assert float(np.flatnonzero(np.abs(sound) > 0.3)[0]) / rate == pytest.approx(1.0, abs=0.012)


@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.gif"])
def test_animated_images_are_videos(tmp_path: Path, name: str) -> None:
    path = animation(tmp_path / name, 30, duration=40)
    assert numbers(path) == list(range(30))
    assert probe(path) == VideoInfo(width=80, height=48, fps=25.0, duration_s=1.2, rotation=0, has_audio=False)


@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.gif"])
def test_an_animated_image_keeps_the_time_of_each_frame(tmp_path: Path, name: str) -> None:
    path = animation(tmp_path / name, 3, duration=[80, 200, 40])
    assert numbers(path) == [0, 0, 1, 1, 1, 1, 1, 2]


@pytest.mark.parametrize("name", ["a.webp", "a.gif"])
def test_frames_of_no_duration_last_a_tenth_of_a_second_as_in_browsers(tmp_path: Path, name: str) -> None:
    assert numbers(animation(tmp_path / name, 4, duration=0), fps=10) == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.gif"])
def test_animated_images_drive_without_sound(tmp_path: Path, name: str) -> None:
    out = carried(animation(tmp_path / name, 10, duration=40), tmp_path / "out.mp4")
    assert numbers(out) == list(range(10))
    assert not probe(out).has_audio


def test_a_title_in_another_encoding_does_not_matter(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.avi", 5, codec="mpeg4", title="Z\N{LATIN SMALL LETTER U WITH DIAERESIS}rich")
    content = path.read_bytes()
    assert b"Z\xc3\xbcrich" in content
    path.write_bytes(content.replace(b"Z\xc3\xbcrich", b"Z\xfcrich "))
    assert numbers(path) == list(range(5))


def test_the_kind_is_told_by_the_content_and_not_by_the_name(tmp_path: Path) -> None:
    clip(tmp_path / "a.mkv").rename(tmp_path / "a.mp4")
    assert numbers(tmp_path / "a.mp4") == list(range(10))


@pytest.mark.parametrize("fps", [10, 12.5, 15, Fraction(24000, 1001), 24, Fraction(30000, 1001), 30, 50, 60, 120])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_frame_k_is_the_one_on_screen_at_k_25ths_of_a_second(tmp_path: Path, fps: float, suffix: str) -> None:
    count = round(float(fps) * 1.2)
    path = clip(tmp_path / f"a.{suffix}", count, fps)
    times, slack = stamps(path)
    end = times[0] + count / Fraction(fps).limit_denominator(1001)
    assert numbers(path) == shown_at(times, end, Fraction(25), slack)


@pytest.mark.parametrize("fps", [10.0, 24.0, 29.97, 30.0, 60.0])
def test_other_rates_can_be_asked_for(tmp_path: Path, fps: float) -> None:
    path = clip(tmp_path / "a.mkv", 25, 25)
    exact = Fraction(fps).limit_denominator(1001)
    assert numbers(path, fps) == shown_at([Fraction(k, 25) for k in range(25)], Fraction(1), exact, Fraction(1, 2000))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_frame_rates_are_honoured(tmp_path: Path, seed: int, suffix: str) -> None:
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.choice([0.007, 0.02, 0.033, 0.04, 0.051, 0.2, 0.5], 20)).round(3).tolist()
    path = clip(tmp_path / f"a.{suffix}", 20, 25, times=times)
    got = numbers(path)
    stamped, slack = stamps(path)
    assert [float(time) for time in stamped] == pytest.approx(times, abs=1e-3), "the clip itself is as meant"
    expected = shown_at(stamped, stamped[-1] + Fraction(1, 1000), Fraction(25), slack)
    assert got[: len(expected)] == expected
    assert set(got[len(expected) :]) <= {19}, "the last frame stays as long as the file says"
    assert len(got) <= len(expected) + 20


@pytest.mark.parametrize("sound", [None, beep(0.0, 0.4)])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_a_clock_that_starts_late_does_not_matter(
    tmp_path: Path, suffix: str, sound: np.ndarray | None, caplog: pytest.LogCaptureFixture
) -> None:
    times = [7.123 + k / 25 for k in range(10)]
    path = clip(tmp_path / f"a.{suffix}", 10, times=times, sound=sound)
    assert numbers(path)[:10] == list(range(10))
    assert caplog.text == "", "it is complete"
    assert probe(path).duration_s == pytest.approx(0.4, abs=0.05)


def test_a_file_that_is_cut_is_incomplete_whenever_its_clock_starts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = clip(tmp_path / "a.mkv", [smooth(k) for k in range(100)], times=[3.0 + k / 25 for k in range(100)])
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    list(read_frames(path))
    assert "of 4.00 s" in caplog.text


def test_reordered_frames_come_in_the_order_of_presentation(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4", 40, options={"bf": "3", "b-adapt": "0", "crf": "10"})
    assert numbers(path) == list(range(40))


def test_one_frame_is_a_video_of_one_frame(tmp_path: Path) -> None:
    assert numbers(clip(tmp_path / "a.mp4", 1)) == [0]


def test_frames_are_writable_and_apart(tmp_path: Path) -> None:
    frames = list(read_frames(clip(tmp_path / "a.mp4", 3, fps=5)))
    assert len(frames) == 15
    for frame in frames:
        assert frame.dtype == np.uint8
        assert frame.flags.c_contiguous
        assert frame.flags.writeable
    frames[0][:] = 7
    assert frames[1].max() != 7


@pytest.mark.parametrize(
    ("start_s", "seconds", "expected"),
    [(0.0, 0.4, range(10)), (0.4, None, range(10, 30)), (0.2, 0.4, range(5, 15)), (1.0, 1e308, range(25, 30))],
)
@pytest.mark.parametrize("name", ["a.mp4", "a.webp"])
def test_a_part_of_a_video_is_read(
    tmp_path: Path, name: str, start_s: float, seconds: float | None, expected: range
) -> None:
    path = clip(tmp_path / name, 30) if name == "a.mp4" else animation(tmp_path / name, 30, duration=40)
    assert [number(frame) for frame in read_frames(path, start_s=start_s, seconds=seconds)] == list(expected)


def test_a_part_is_read_no_further_than_its_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = clip(tmp_path / "a.mkv", [smooth(k) for k in range(100)])
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    assert len(list(read_frames(path, seconds=1.0))) == 25
    assert caplog.text == ""
    list(read_frames(path))
    assert "is incomplete" in caplog.text, "the file is cut off later"


@pytest.mark.parametrize(
    ("start_s", "seconds", "cause"),
    [
        (5.0, None, r"a\.mp4 is 1\.20 s long; --start and --seconds select no frame"),
        (-1.0, None, "a start of -1 s"),
        (float("nan"), None, "a start of nan s"),
        (0.0, 0.0, "a duration of 0 s"),
        (0.0, float("inf"), "a duration of inf s is not possible; leave it out"),
        (0.0, -1e308, "holds no frame"),
        (1e308, None, r"a start of 1e\+308 s is not possible"),
    ],
)
def test_a_part_without_frames_is_refused(tmp_path: Path, start_s: float, seconds: float | None, cause: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        list(read_frames(clip(tmp_path / "a.mp4", 30), start_s=start_s, seconds=seconds))


def test_sound_may_be_longer_than_the_video(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Matroska states one duration for both."""
    path = clip(tmp_path / "a.mkv", 25, sound=beep(0.5, 3.0))
    assert len(list(read_frames(path))) == 25
    assert probe(path).duration_s == pytest.approx(1.0, abs=0.01)
    assert caplog.text == ""


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), 1e6])
def test_a_rate_that_is_no_rate_is_refused(tmp_path: Path, fps: float) -> None:
    with pytest.raises(ConfigError, match="fps"):
        next(read_frames(clip(tmp_path / "a.mp4"), fps))


def test_time_stamps_days_apart_are_refused(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mkv", 2, times=[0.0, 90_000.0])
    with pytest.raises(BadVideo, match="24 hours"):
        list(read_frames(path))


# --- the picture as a player shows it ---


def turn(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Write a display matrix into the track header of an mp4."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 44
    for place, value in ((0, a << 16), (4, b << 16), (12, c << 16), (16, d << 16)):
        content[at + place : at + place + 4] = value.to_bytes(4, "big", signed=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("matrix", [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0),
                                    (-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)])  # fmt: skip
def test_rotation_and_mirroring_are_honoured(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    """The slow twin moves every pixel where the matrix says: (x, y) to (a x + c y, b x + d y)."""
    a, b, c, d = matrix
    picture = np.zeros((32, 48, 3), np.uint8)
    picture[:16, :24], picture[16:, :24], picture[:16, 24:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    path = turn(clip(tmp_path / "a.mp4", [picture] * 3, pix_fmt="yuv444p"), *matrix)
    y, x = np.mgrid[0:32, 0:48]
    to_x, to_y = a * x + c * y, b * x + d * y
    to_x, to_y = to_x - to_x.min(), to_y - to_y.min()
    expected = np.zeros((to_y.max() + 1, to_x.max() + 1, 3), np.uint8)
    expected[to_y, to_x] = picture
    frame = next(read_frames(path))
    assert frame.shape == expected.shape
    assert np.abs(frame.astype(int) - expected).mean() < 6
    info = probe(path)
    assert (info.height, info.width) == expected.shape[:2]
    assert info.rotation == {(0, 1, -1, 0): 270, (-1, 0, 0, -1): 180, (0, -1, 1, 0): 90}.get(matrix, 0)


def test_pixels_that_are_not_square_become_square(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4", 5, aspect=Fraction(3, 2))
    assert next(read_frames(path)).shape == (48, 120, 3)
    assert (probe(path).width, probe(path).height) == (120, 48)
    assert numbers(path) == list(range(5))


def test_odd_sizes_are_read(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mkv", [smooth(0, 47, 33)] * 3, codec="ffv1", pix_fmt="bgr0")
    frame = next(read_frames(path))
    assert frame.shape == (33, 47, 3)
    np.testing.assert_array_equal(frame, smooth(0, 47, 33))


def test_a_size_that_changes_on_the_way_is_brought_to_the_first(tmp_path: Path) -> None:
    a, b = clip(tmp_path / "a.ts", 10), clip(tmp_path / "b.ts", [numbered(k, 160, 96) for k in range(10)], times=None)
    (tmp_path / "both.ts").write_bytes(a.read_bytes() + b.read_bytes())
    frames = list(read_frames(tmp_path / "both.ts"))
    assert {frame.shape for frame in frames} == {(48, 80, 3)}


@pytest.mark.parametrize("matrix", ["bt709", "bt601"])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p"])
def test_colours_follow_the_matrix_and_range_in_the_file(tmp_path: Path, matrix: str, full: bool, pix_fmt: str) -> None:
    """YUV is computed here from the standards' formulas, stored without loss, and must come back as the colours."""
    kr, kb = {"bt709": (0.2126, 0.0722), "bt601": (0.299, 0.114)}[matrix]
    colours = np.array([[200, 150, 120], [30, 60, 200], [10, 200, 30], [250, 250, 250], [5, 5, 5]])
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, pix_fmt
        stream.codec_context.colorspace = {"bt709": 1, "bt601": 6}[matrix]
        stream.codec_context.color_range = 2 if full else 1
        for k, (r, g, b) in enumerate(colours / 255.0):
            luma = kr * r + (1 - kr - kb) * g + kb * b
            chroma = np.array([(b - luma) / (2 * (1 - kb)), (r - luma) / (2 * (1 - kr))])
            yuv = [luma * 255, *(chroma * 255 + 128)] if full else [16 + 219 * luma, *(128 + 224 * chroma)]
            frame = av.VideoFrame(32, 32, pix_fmt)
            for plane, value in zip(frame.planes, yuv):
                plane.update(bytes([round(value)]) * plane.buffer_size)
            frame.pts, frame.time_base = k, Fraction(1, 25)
            frame.colorspace, frame.color_range = {"bt709": 1, "bt601": 6}[matrix], 2 if full else 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for frame, colour in zip(read_frames(path), colours, strict=True):
        assert np.abs(frame.astype(int) - colour).max() <= 3


@pytest.mark.parametrize(
    "pix_fmt", ["yuv420p", "yuvj420p", "yuv411p", "nv12", "yuv422p10le", "p010le", "gray", "monow"]
)
@pytest.mark.parametrize("pixel_aspect", [Fraction(1), Fraction(4, 3)])
def test_the_way_over_planes_gives_the_same_pixels(
    rng: np.random.Generator, pix_fmt: str, pixel_aspect: Fraction
) -> None:
    """The reference converts to interleaved pixels at once, which takes three times as long."""
    frame = av.VideoFrame(78, 50, pix_fmt)
    for plane in frame.planes:
        plane.update(rng.integers(0, 256, plane.buffer_size, dtype=np.uint8).tobytes())
    view = View(frame, pixel_aspect)
    full = pix_fmt in ("yuvj420p", "gray", "monow")
    reference = frame.reformat(
        view.width,
        view.height,
        "rgb24",
        src_colorspace=5,
        dst_colorspace=5,
        interpolation=SWS_QUALITY,
        src_color_range=2 if full else 1,
        dst_color_range=2,
        threads=1,
    )
    assert np.array_equal(view.picture(frame), reference.to_ndarray())


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_a_transparent_animation_is_laid_over_white(tmp_path: Path, name: str) -> None:
    from PIL import Image

    frames = []
    for k in range(3):
        frame = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
        frame.paste((255, 0, 0, 255), (10 * k, 0, 10 * k + 10, 40))
        frames.append(frame)
    options = {} if name == "a.webp" else {"disposal": 2 if name == "a.gif" else 1}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=40, **options)
    seen = list(read_frames(tmp_path / name))
    for k, frame in enumerate(seen):
        np.testing.assert_allclose(frame[20, 10 * k + 5], [255, 0, 0], atol=3)
        np.testing.assert_array_equal(frame[20, 35], [255, 255, 255])
    np.testing.assert_array_equal(seen[2][20, 5], [255, 255, 255])


# --- probing ---


def test_a_probe_tells_what_a_player_would_show(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4", 60, fps=30, sound=beep(0, 2))
    assert probe(path) == VideoInfo(width=80, height=48, fps=30.0, duration_s=2.0, rotation=0, has_audio=True)
    assert not probe(clip(tmp_path / "b.mp4")).has_audio


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.mkv", "libx264", "yuv420p"),
        ("a.gif", "gif", "rgb8"),
        ("a.avi", "mpeg4", "yuv420p"),
        ("a.ts", "libx264", "yuv420p"),
    ],
)
def test_the_duration_is_found_in_every_container(tmp_path: Path, name: str, codec: str, pix_fmt: str) -> None:
    assert probe(clip(tmp_path / name, 50, codec=codec, pix_fmt=pix_fmt)).duration_s == pytest.approx(2.0, abs=0.05)


# --- what is refused ---


def refused(path: Path, cause: str) -> None:
    for attempt in (lambda: next(read_frames(path)), lambda: probe(path)):
        with pytest.raises(BadVideo, match=cause) as caught:
            attempt()
        sentence = str(caught.value)
        assert str(path) in sentence
        assert "; " in sentence, "the remedy is missing"
        assert "\n" not in sentence


def test_a_missing_file_a_folder_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    refused(tmp_path / "none.mp4", "does not exist")
    refused(tmp_path, "is a folder")
    refused(tmp_path / "empty.mp4", "is empty")


@pytest.mark.parametrize("address", ["http://example.com/a.mp4", "concat:a.mp4|b.mp4", "rtsp://127.0.0.1/a"])
def test_addresses_are_no_files(address: str) -> None:
    with pytest.raises(BadVideo, match="does not exist"):
        next(read_frames(address))


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"just text\n" * 50, "is not a video but text"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n", "is not a video but text"),
        (b"ffconcat version 1.0\nfile /etc/hostname\n", "is not a video but text"),
        (b"<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'></MPD>", "is not a video but text"),
        (b'<asx version="3.0"><entry><ref href="file:///etc/hostname"/></entry></asx>', "is not a video but text"),
        (b"[Reference]\r\nRef1=file:///etc/hostname\r\n", "is not a video but text"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11" + bytes(1000), "damaged|no frames|no frame"),
        (b"FLV\x01\x01" + bytes(1000), "damaged|no frames|no frame"),
        (b"OggS" + bytes(1000), "damaged|no frames|no frame"),
        (b"\x00\x00\x00\x01\x67" + bytes(1000), "damaged|no frames|no frame"),
        (b"RIFF\x00\x10\x00\x00WEBPVP8X\x0a\x00\x00\x00\x02" + bytes(1000), "damaged"),
        (b"\xff\xfe" * 300, "unknown kind"),
        (bytes(1000), "unknown kind"),
        (pickle.dumps({"frames": 3}), "a Python pickle"),
        (b"\xff\xd8\xff\xe0" + bytes(1000), "still image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(1000), "still image"),
        (b"RIFF\x00\x10\x00\x00WEBPVP8 " + bytes(1000), "still image"),
        (b"\x00\x00\x00\x18ftypheic" + bytes(1000), "a HEIC image, not a video"),
        (b"\x00\x00\x00\x1cftypmif1\x00\x00\x00\x00mif1avif" + bytes(1000), "an AVIF image, not a video"),
        (b"RIFF\x00\x10\x00\x00WAVEfmt " + bytes(1000), "only sound"),
        (b"ID3\x04" + bytes(1000), "only sound"),
        (b"\x00\x00\x00\x18ftypisom" + bytes(1000), "damaged or incomplete"),
        (b"\x1a\x45\xdf\xa3" + bytes(1000), "damaged|no frames|no frame"),
        (b"GIF89a" + bytes(1000), "damaged|no frames|no frame"),
    ],
)
@pytest.mark.parametrize("name", ["a.mp4", "a.m3u8"])
def test_other_files_are_refused_whatever_their_name(tmp_path: Path, content: bytes, cause: str, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, cause)


def test_a_playlist_cannot_open_another_file(tmp_path: Path) -> None:
    """A list that a player would follow to a real video beside it is refused all the same."""
    clip(tmp_path / "secret.mp4")
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    refused(tmp_path / "list.mp4", "text")


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_a_still_image_is_no_video(tmp_path: Path, name: str) -> None:
    from PIL import Image

    Image.new("RGB", (40, 40), "red").save(tmp_path / name)
    with pytest.raises(BadVideo, match="still image"):
        list(read_frames(tmp_path / name))


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "aac"), ("a.m4a", "aac"), ("a.mkv", "pcm_s16le")])
def test_a_video_of_sound_alone_is_refused(tmp_path: Path, name: str, codec: str) -> None:
    with av.open(str(tmp_path / name), "w", format="matroska" if name.endswith("mkv") else "mp4") as container:
        track = container.add_stream(codec, rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.int16), format="s16", layout="mono")
        frame.sample_rate = 48000
        container.mux(track.encode(frame))
        container.mux(track.encode(None))
    refused(tmp_path / name, "holds only sound; give a video that shows a face")


def test_a_song_with_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.m4a"), "w", format="mp4") as container:
        track = container.add_stream("aac", rate=48000)
        cover = container.add_stream("mjpeg", rate=25)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(smooth(0, 64, 64), format="rgb24")))
        container.mux(cover.encode(None))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.int16), format="s16", layout="mono")
        frame.sample_rate = 48000
        container.mux(track.encode(frame))
        container.mux(track.encode(None))
    with av.open(str(tmp_path / "a.m4a")) as container:
        assert len(container.streams.video) == 1, "the cover is there"
    refused(tmp_path / "a.m4a", "holds only sound")


def test_pale_colours_of_a_high_dynamic_range_video_are_foretold(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = clip(tmp_path / "a.mkv", 3, codec="ffv1", pix_fmt="yuv420p10le", transfer=18)
    with caplog.at_level(logging.WARNING):
        assert numbers(path) == [0, 1, 2]
    assert caplog.text.count("high-dynamic-range") == 1


def test_a_truncated_file_without_its_index_is_refused(tmp_path: Path) -> None:
    whole = clip(tmp_path / "a.mp4", 50).read_bytes()
    (tmp_path / "a.mp4").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "a.mp4", "damaged or incomplete; copy or record it again")


def test_an_index_without_frames_is_refused(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4", 50, container_options={"movflags": "+faststart"})
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"mdat") + 4])
    refused(path, "no frame that can be decoded")


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi"])
def test_a_truncated_file_gives_the_frames_it_has(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    options = {"movflags": "+faststart"} if name == "a.mp4" else {}
    codec = "mpeg4" if name == "a.avi" else "libx264"
    path = clip(tmp_path / name, 100, codec=codec, options={"g": "5"}, container_options=options)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * (8 if name == "a.mp4" else 6) // 10])
    with caplog.at_level(logging.WARNING):
        got = numbers(path)
    assert 20 < len(got) < 95
    assert got[:20] == list(range(20))
    if name != "a.ts":  # a transport stream does not say how long it should be
        assert "incomplete" in caplog.text


def test_a_whole_file_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "export3d"):
        for name in ("a.mp4", "a.mkv", "a.ts"):
            numbers(clip(tmp_path / name, 30, sound=beep(0, 1.5)))
    assert caplog.text == ""


def test_bytes_changed_inside_give_frames_or_one_sentence(tmp_path: Path, rng: np.random.Generator) -> None:
    """Whatever FFmpeg stumbles over, nothing but `BadVideo` comes out, and every frame has the same size."""
    made = [
        *(clip(tmp_path / name, 12) for name in ("a.mp4", "a.mkv", "a.flv", "a.wmv", "a.h264")),
        clip(tmp_path / "a.avi", 12, codec="mpeg4"),
        clip(tmp_path / "a.ogv", 12, codec="libvpx"),
        *(animation(tmp_path / name, 8, duration=40) for name in ("a.png", "a.webp")),
    ]
    originals = [path.read_bytes() for path in made]
    read = 0
    for k in range(90):
        content = bytearray(originals[k % len(originals)])
        for at in rng.integers(40, len(content), 1 + k % 9):
            content[at] = rng.integers(0, 256)
        path = tmp_path / f"spoilt{k}"
        path.write_bytes(content)
        try:
            sizes = set()
            for count, frame in enumerate(read_frames(path)):
                sizes.add(frame.shape)
                if count > 200:
                    break
            assert len(sizes) == 1
            read += 1
        except BadVideo:
            continue
    assert read > 20


def test_animated_images_that_grow_when_unpacked_are_refused(tmp_path: Path) -> None:
    """Canvases of 16 gigapixels, 20 MB of text in 20 kB, frames that last for days."""
    huge = bytearray(animation(tmp_path / "a.webp", 3, duration=40).read_bytes())
    huge[24:30] = b"\xff" * 6
    (tmp_path / "huge.webp").write_bytes(huge)
    refused(tmp_path / "huge.webp", "16777216 x 16777216; make it at most 8192")
    content = bytearray(animation(tmp_path / "a.png", 3, duration=40).read_bytes())
    text = b"a\0\0" + zlib.compress(bytes(20_000_000))
    chunk = len(text).to_bytes(4, "big") + b"zTXt" + text + zlib.crc32(b"zTXt" + text).to_bytes(4, "big")
    (tmp_path / "text.png").write_bytes(content[:33] + chunk + content[33:])
    refused(tmp_path / "text.png", "holds no frame that can be decoded")
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (tmp_path / "huge.png").write_bytes(content)
    refused(tmp_path / "huge.png", "60000 x 60000; make it at most 8192")
    slow = animation(tmp_path / "slow.webp", 30, duration=16_000_000)
    with pytest.raises(BadVideo, match="24 hours"):
        probe(slow)


def test_frames_beyond_8192_pixels_are_refused(tmp_path: Path) -> None:
    huge = np.zeros((16, 8208, 3), np.uint8)
    path = clip(tmp_path / "a.avi", [huge], codec="mjpeg", pix_fmt="yuvj420p")
    refused(path, "8208 x 16; make it at most 8192 pixels a side")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_the_video(tmp_path: Path) -> None:
    """Writing and reading 1,000 frames that would take 110 MB together, in a process of its own."""
    script = """
import resource, sys
import numpy as np
from export3d.video import VideoWriter, read_frames

def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024 ** 2)

def ramp():
    for k in range(1000):
        yield np.full((192, 192, 3), k % 200, np.uint8)

def count(frames, after):
    for n, frame in enumerate(frames, 1):
        if n == after:
            start = peak_mb()
    return n, peak_mb() - start

with VideoWriter(sys.argv[1], 25, 192) as writer:
    for n, frame in enumerate(ramp(), 1):
        writer.write(frame)
        if n == 200:
            start = peak_mb()
print(n, peak_mb() - start)
print(*count(read_frames(sys.argv[1]), 100))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a.mp4")], capture_output=True, text=True, check=True
    )
    for line in done.stdout.splitlines():
        frames, grown = line.split()
        assert int(frames) == 1000
        assert float(grown) < 24, line


def test_arrays_are_released_as_they_are_read(tmp_path: Path) -> None:
    import tracemalloc

    path = clip(tmp_path / "a.mp4", [smooth(k) for k in range(120)], fps=5)
    tracemalloc.start()
    count = sum(1 for _ in read_frames(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 600
    assert peak < 40 * 128 * 96 * 3


# --- writing ---


def boxes(path: Path) -> list[bytes]:
    content, at, out = path.read_bytes(), 0, []
    while at < len(content):
        out.append(content[at + 4 : at + 8])
        at += int.from_bytes(content[at : at + 4], "big")
    return out


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    frames = [smooth(k) for k in range(30)]
    with VideoWriter(tmp_path / "a.mp4", 25, (128, 96)) as writer:
        for frame in frames:
            writer.write(frame)
        assert writer.frames_written == 30
    back = list(read_frames(tmp_path / "a.mp4"))
    assert len(back) == 30
    assert min(psnr(a, b) for a, b in zip(back, frames)) > 35
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_plain_colours_come_back_as_they_were(tmp_path: Path) -> None:
    colours = np.array([[200, 150, 120], [30, 60, 200], [250, 20, 20], [255, 255, 255], [0, 0, 0], [128, 128, 128]])
    with VideoWriter(tmp_path / "a.mp4", 25, 64, crf=1) as writer:
        for colour in colours:
            writer.write(np.broadcast_to(colour.astype(np.uint8), (64, 64, 3)))
    for frame, colour in zip(read_frames(tmp_path / "a.mp4"), colours, strict=True):
        assert np.abs(frame.astype(int) - colour).max() <= 4


def test_the_file_is_what_browsers_play(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", 25, 64, metadata={"title": "größer"}) as writer:
        for frame in np.zeros((30, 64, 64, 3), np.uint8):
            writer.write(frame)
    kinds = boxes(tmp_path / "a.mp4")
    assert kinds[0] == b"ftyp"
    assert kinds.index(b"moov") < kinds.index(b"mdat"), "the index must stand in front"
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt, stream.average_rate, stream.frames) == ("h264", "yuv420p", 25, 30)
        assert (context.color_range, context.colorspace, context.color_primaries, context.color_trc) == (1, 1, 1, 1)
        assert container.metadata["title"] == "größer"
        assert "creation_time" not in container.metadata | stream.metadata
        assert float(stream.duration * stream.time_base) == pytest.approx(1.2)


@pytest.mark.parametrize("fps", [10, 24, 29.97, 30, Fraction(24000, 1001), 60])
def test_the_rate_is_exact(tmp_path: Path, fps: float) -> None:
    with VideoWriter(tmp_path / "a.mp4", fps, (80, 48)) as writer:
        for k in range(20):
            writer.write(numbered(k))
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].average_rate == Fraction(fps).limit_denominator(1001)
    assert numbers(tmp_path / "a.mp4", fps) == list(range(20))


def test_a_lower_crf_is_better_and_larger(tmp_path: Path) -> None:
    noisy = [
        np.clip(smooth(k) + np.random.default_rng(k).normal(0, 8, (96, 128, 3)), 0, 255).astype(np.uint8)
        for k in range(8)
    ]
    sizes, quality = [], []
    for crf in (8, 28):
        with VideoWriter(tmp_path / f"{crf}.mp4", 25, (128, 96), crf=crf) as writer:
            for frame in noisy:
                writer.write(frame)
        sizes.append((tmp_path / f"{crf}.mp4").stat().st_size)
        quality.append(psnr(next(read_frames(tmp_path / f"{crf}.mp4")), noisy[0]))
    assert sizes[0] > sizes[1]
    assert quality[0] > quality[1]


def test_the_same_frames_give_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    """With sound, and on one core there and all cores here."""
    driving = clip(tmp_path / "driving.mp4", 30, sound=beep(0.5, 1.2, channels=2))
    script = (
        "import os, sys\n"
        "if hasattr(os, 'sched_setaffinity'): os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from export3d.video import VideoWriter, read_frames\n"
        "with VideoWriter(sys.argv[2], 25, (80, 48), audio_from=sys.argv[1]) as writer:\n"
        "    for frame in read_frames(sys.argv[1]):\n"
        "        writer.write(frame)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(driving), str(tmp_path / "there.mp4")], check=True)
    with VideoWriter(tmp_path / "here.mp4", 25, (80, 48), audio_from=driving) as writer:
        for frame in read_frames(driving):
            writer.write(frame)
    assert (tmp_path / "here.mp4").read_bytes() == (tmp_path / "there.mp4").read_bytes()


def test_sizes_that_are_no_multiple_of_16_give_the_same_bytes_each_time(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    """x264's macroblock tree reads stale memory at such sizes: with it hardly two runs agreed."""
    frames = [np.clip(smooth(k, 90, 50) + rng.normal(0, 10, (50, 90, 3)), 0, 255).astype(np.uint8) for k in range(30)]
    seen = set()
    for _ in range(8):
        with VideoWriter(tmp_path / "a.mp4", 25, (90, 50)) as writer:
            for frame in frames:
                writer.write(frame)
        seen.add((tmp_path / "a.mp4").read_bytes())
    assert len(seen) == 1


@pytest.mark.parametrize("size", [(63, 64), (64, 63), (0, 0), (10_000, 64)])
def test_sizes_that_cannot_be_coded_are_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=f"{size[0]} x {size[1]}"):
        VideoWriter(tmp_path / "a.mp4", 25, size)


def test_other_containers_and_rates_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.mp4"):
        VideoWriter(tmp_path / "a.gif", 25, 64)
    with pytest.raises(ConfigError, match="fps"):
        VideoWriter(tmp_path / "a.mp4", 0, 64)


def leaves_nothing(folder: Path, error: type[Exception], cause: str, **options: object) -> None:
    """Writing 40 frames fails with `error`, and the folder holds what it held before."""
    before = {name: (folder / name).stat().st_mtime_ns for name in os.listdir(folder)}

    def write() -> None:
        with VideoWriter(options.pop("path", folder / "a.mp4"), 25, 64, **options) as writer:  # type: ignore[arg-type]
            for _ in range(40):
                writer.write(np.zeros((64, 64, 3), np.uint8))

    with pytest.raises(error, match=cause) as caught:
        write()
    assert "\n" not in str(caught.value)
    assert {name: (folder / name).stat().st_mtime_ns for name in os.listdir(folder)} == before


def test_outputs_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").touch()
    leaves_nothing(tmp_path, OutputError, "there is no folder .*; create it", path=tmp_path / "no" / "a.mp4")
    leaves_nothing(tmp_path, OutputError, "is a folder; add a file name", path=tmp_path / "folder.mp4")
    leaves_nothing(tmp_path, OutputError, "create it first", path=tmp_path / "file" / "a.mp4")
    if Path("/proc/self").is_dir():
        leaves_nothing(tmp_path, OutputError, "cannot write /proc/self", path=Path("/proc/self/a.mp4"))


def test_an_exception_among_the_frames_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"old")

    def write(error: BaseException) -> None:
        with VideoWriter(tmp_path / "a.mp4", 25, 64) as writer:
            writer.write(np.zeros((64, 64, 3), np.uint8))
            raise error

    for error in (RuntimeError("mine"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            write(error)
    assert (tmp_path / "a.mp4").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.mp4"]


@pytest.mark.parametrize(
    ("frame", "cause"),
    [
        (np.zeros((64, 62, 3), np.uint8), r"\(64, 64, 3\), got \(64, 62, 3\)"),
        (np.zeros((64, 64), np.uint8), "shape"),
        (np.zeros((64, 64, 3)), "uint8"),
    ],
)
def test_frames_of_another_size_or_type_are_refused(tmp_path: Path, frame: np.ndarray, cause: str) -> None:
    def write() -> None:
        with VideoWriter(tmp_path / "a.mp4", 25, 64) as writer:
            writer.write(frame)

    with pytest.raises(ShapeError, match=cause):
        write()
    assert os.listdir(tmp_path) == []


def test_no_frames_are_no_video(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no frames"), VideoWriter(tmp_path / "a.mp4", 25, 64):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on the size of files")
@pytest.mark.parametrize("limit", [0, 1000, 20_000, 32_768, 60_000, -3000, -1])
@pytest.mark.parametrize("sound", [False, True])
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path, limit: int, sound: bool) -> None:
    """The limit on file sizes stands for the full disk, at the start, in the middle and in the last bytes."""
    (tmp_path / "out").mkdir()
    driving = clip(tmp_path / "driving.mp4", 5, sound=beep(0, 1))
    script = (
        "import resource, sys\n"
        "import numpy as np\n"
        "from export3d.errors import OutputError\n"
        "from export3d.video import VideoWriter\n"
        "def write(path):\n"
        "    rng = np.random.default_rng(0)\n"
        "    with VideoWriter(path, 25, 64, audio_from=sys.argv[2] if int(sys.argv[4]) else None) as writer:\n"
        "        for k in range(60): writer.write(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))\n"
        "limit = int(sys.argv[3])\n"
        "if limit < 0:\n"
        "    import os; write(sys.argv[2] + '.mp4'); limit += os.path.getsize(sys.argv[2] + '.mp4')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\n"
        "try: write(sys.argv[1])\n"
        "except OutputError as error: print(error); sys.exit(2)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "out" / "a.mp4"), str(driving), str(limit), str(int(sound))],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout.startswith(f"cannot write {tmp_path / 'out' / 'a.mp4'}: ")
    assert "choose another folder" in done.stdout
    assert done.stdout.count("\n") == 1
    assert os.listdir(tmp_path / "out") == []


# --- sound ---


def carried(driving: Path, out: Path, frames: int | None = None, **options: float) -> Path:
    """The driving video's own frames and sound, through the writer."""
    with VideoWriter(out, 25, (80, 48), audio_from=driving, **options) as writer:  # type: ignore[arg-type]
        for k, frame in enumerate(read_frames(driving)):
            if frames is None or k < frames:
                writer.write(frame)
    return out


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize("channels", [1, 2])
def test_aac_is_copied_bit_for_bit(tmp_path: Path, suffix: str, channels: int) -> None:
    driving = clip(tmp_path / f"a.{suffix}", 50, sound=beep(1.0, 2.0, channels))
    out = carried(driving, tmp_path / "out.mp4")
    before, after = packets(driving), packets(out)
    assert len(before) - 2 <= len(after) <= len(before)
    assert after == before[: len(after)]
    assert onset(out) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [
        ("a.avi", "pcm_s16le", 48000),
        ("a.mkv", "pcm_s16le", 8000),
        ("a.mkv", "flac", 44100),
        ("a.mkv", "libmp3lame", 44100),
        ("a.webm", "libopus", 48000),
        ("a.mov", "pcm_s16le", 22050),
        ("a.ts", "aac", 48000),
    ],
)
def test_other_sound_becomes_aac(tmp_path: Path, name: str, codec: str, rate: int) -> None:
    video_codec = {"avi": "mpeg4", "webm": "libvpx"}.get(name.split(".")[1], "libx264")
    driving = clip(
        tmp_path / name, 50, codec=video_codec, sound=beep(1.0, 2.0, 2, rate), sound_codec=codec, sound_rate=rate
    )
    out = carried(driving, tmp_path / "out.mp4")
    with av.open(str(out)) as container:
        assert container.streams.audio[0].codec_context.name == "aac"
    assert onset(out) == pytest.approx(onset(driving), abs=0.012)
    assert onset(out) == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "aac"), ("a.mkv", "flac")])
def test_sound_is_cut_to_the_length_of_the_pictures(tmp_path: Path, name: str, codec: str) -> None:
    driving = clip(tmp_path / name, 75, sound=beep(0.2, 3.0), sound_codec=codec)
    out = carried(driving, tmp_path / "out.mp4", frames=25)
    sound, rate = heard(out)
    assert 1.0 - 0.03 < len(sound) / rate < 1.0 + 0.05
    assert onset(out) == pytest.approx(0.2, abs=0.012)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "aac"), ("a.mkv", "flac")])
def test_sound_shorter_than_the_pictures_ends_early(tmp_path: Path, name: str, codec: str) -> None:
    driving = clip(tmp_path / name, 100, sound=beep(0.2, 1.0), sound_codec=codec)
    out = carried(driving, tmp_path / "out.mp4")
    assert probe(out).duration_s == pytest.approx(4.0)
    sound, rate = heard(out)
    assert len(sound) / rate == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "aac"), ("a.mkv", "aac"), ("a.mkv", "flac")])
@pytest.mark.parametrize(("pictures_at", "sound_at"), [(0.5, 0.0), (0.0, 0.4), (3.0, 2.9)])
def test_sound_stays_with_the_pictures_when_one_begins_late(
    tmp_path: Path, name: str, codec: str, pictures_at: float, sound_at: float
) -> None:
    """The beep sounds 1 s after the sound begins; the result's clock starts with the first picture."""
    times = [pictures_at + k / 25 for k in range(50)]
    driving = clip(tmp_path / name, 50, times=times, sound=beep(1.0, 2.5), sound_codec=codec, sound_at=sound_at)
    out = carried(driving, tmp_path / "out.mp4")
    assert onset(driving) == pytest.approx(sound_at + 1.0 - pictures_at, abs=0.03), "the clip itself is as meant"
    assert onset(out) == pytest.approx(onset(driving), abs=0.012)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "aac"), ("a.mkv", "flac")])
def test_a_part_from_the_middle_takes_its_own_sound(tmp_path: Path, name: str, codec: str) -> None:
    driving = clip(tmp_path / name, 75, sound=beep(2.0, 3.0), sound_codec=codec)
    out = carried(driving, tmp_path / "out.mp4", frames=40, audio_start_s=1.2)
    assert onset(out) == pytest.approx(0.8, abs=0.012)


def without_sound(path: Path, out: Path, begin: float, end: float) -> Path:
    """A copy in which the sound's packets between two times are missing."""
    with av.open(str(path)) as before, av.open(str(out), "w") as after:
        streams = {stream.index: after.add_stream_from_template(stream) for stream in before.streams}
        for packet in before.demux():
            if packet.pts is None or packet.time_base is None:
                continue
            if packet.stream.type == "audio" and begin <= packet.pts * packet.time_base < end:
                continue
            packet.stream = streams[packet.stream.index]
            after.mux(packet)
    return out


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mkv", "flac"), ("a.mkv", "libmp3lame"), ("a.mkv", "libopus"), ("a.mkv", "pcm_s16le"), ("a.ts", "aac")],
)
@pytest.mark.parametrize(("begin", "end"), [(0.5, 0.51), (0.3, 0.9)])
def test_missing_packets_become_silence(tmp_path: Path, name: str, codec: str, begin: float, end: float) -> None:
    """What follows the gap stays where it was, and the gap is silent."""
    sound = beep(0.2, 3.0) + beep(0.7, 3.0) + beep(2.0, 3.0)
    whole = clip(tmp_path / name, 75, sound=sound, sound_codec=codec)
    out = carried(without_sound(whole, tmp_path / f"gap_{name}", begin, end), tmp_path / "out.mp4")
    heard_whole, rate = heard(carried(whole, tmp_path / "whole.mp4"))
    got, _ = heard(out)
    late, late_whole = (np.flatnonzero(np.abs(x[int(1.8 * rate) :]) > 0.3)[0] / rate for x in (got, heard_whole))
    assert late == pytest.approx(late_whole, abs=0.012)
    if begin == 0.3:
        assert np.abs(got[int(0.6 * rate) : int(0.8 * rate)]).max() < 0.05


def test_sound_whose_start_is_cut_off_by_an_edit_list_stays_in_time(tmp_path: Path) -> None:
    """Sound from before the first picture is stored, but an edit list hides it."""
    for codec in ("libopus", "libmp3lame", "flac"):
        driving = clip(tmp_path / "a.mp4", 50, sound=beep(1.0, 2.5), sound_codec=codec, sound_at=-0.4)
        assert onset(carried(driving, tmp_path / "out.mp4")) == pytest.approx(0.6, abs=0.03)


def test_sound_of_a_changing_rate_is_carried(tmp_path: Path) -> None:
    """Two broadcasts one after the other: the rate and the number of channels change in the middle."""
    a = clip(tmp_path / "a.ts", 25, sound=beep(0.2, 1.0), sound_codec="mp2")
    b = clip(tmp_path / "b.ts", 25, times=[1 + k / 25 for k in range(25)], sound=beep(0.5, 1.0, 2, 44100),
             sound_codec="mp2", sound_rate=44100, sound_at=1.0)  # fmt: skip
    (tmp_path / "both.ts").write_bytes(a.read_bytes() + b.read_bytes())
    sound, rate = heard(carried(tmp_path / "both.ts", tmp_path / "out.mp4"))
    loud = np.flatnonzero(np.abs(sound) > 0.3) / rate
    assert loud[0] == pytest.approx(0.2, abs=0.06)
    assert loud[loud > 1][0] == pytest.approx(1.5, abs=0.1), "the second file's clock is 0.08 s early"


@pytest.mark.parametrize("default", [0, 1, None])
def test_the_default_track_is_carried(tmp_path: Path, default: int | None) -> None:
    path = clip(tmp_path / "a.mkv", 25)
    out = tmp_path / "two.mkv"
    with av.open(str(path)) as before, av.open(str(out), "w") as after:
        video_stream = after.add_stream_from_template(before.streams.video[0])
        tracks = [after.add_stream("flac", rate=48000, layout="mono") for _ in range(2)]
        for k, track in enumerate(tracks):
            track.disposition = av.stream.Disposition.default if k == default else av.stream.Disposition(0)
        for packet in before.demux(video=0):
            if packet.pts is not None:
                packet.stream = video_stream
                after.mux(packet)
        for track, at in zip(tracks, (0.2, 0.6)):
            samples = av.AudioFrame.from_ndarray((beep(at, 1.0) * 32767).astype(np.int16), format="s16", layout="mono")
            samples.sample_rate, samples.pts, samples.time_base = 48000, 0, Fraction(1, 48000)
            after.mux(track.encode(samples))
            after.mux(track.encode(None))
    assert onset(carried(out, tmp_path / "out.mp4")) == pytest.approx(0.6 if default == 1 else 0.2, abs=0.012)


def test_a_silent_driving_video_gives_a_silent_result(tmp_path: Path) -> None:
    out = carried(clip(tmp_path / "a.mp4", 10), tmp_path / "out.mp4")
    assert not probe(out).has_audio
    assert numbers(out) == list(range(10))


def test_sound_does_not_move_the_pictures(tmp_path: Path) -> None:
    out = carried(clip(tmp_path / "a.mp4", 60, sound=beep(0, 2.4)), tmp_path / "out.mp4")
    assert numbers(out) == list(range(60))
    assert probe(out).duration_s == pytest.approx(2.4)


def test_sound_from_what_is_no_video_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    leaves_nothing(tmp_path, BadVideo, "is not a video but text", audio_from=tmp_path / "text.mp4")
    leaves_nothing(tmp_path, BadVideo, "does not exist", audio_from=tmp_path / "none.mp4")


def test_damaged_sound_does_not_cost_the_pictures(tmp_path: Path, rng: np.random.Generator) -> None:
    driving = clip(tmp_path / "a.mkv", 25, sound=beep(0.2, 1.0), sound_codec="flac")
    content = bytearray(driving.read_bytes())
    pictures = {bytes(p) for p in av.open(str(driving)).demux(video=0) if p.size}
    for packet in packets(driving)[3:]:
        at = content.find(packet)
        if packet not in pictures and at > 0 and len(packet) > 12:
            content[at : at + 12] = rng.bytes(12)
    driving.write_bytes(content)
    out = carried(driving, tmp_path / "out.mp4")
    assert numbers(out) == list(range(25))


# --- real clips ---


def test_a_real_clip_has_as_many_frames_as_its_length_says(shared_data: Path) -> None:
    path = sorted((shared_data / "clips").glob("*.mp4"))[0]
    info = probe(path)
    count = sum(1 for _ in read_frames(path))
    assert abs(count - info.duration_s * video.FPS) <= 1


# --- the parts ---


def test_times_on_the_slow_twin_and_the_reader_agree_on_many_rhythms() -> None:
    """The resampler alone, on exact times, against the definition."""
    rng = np.random.default_rng(3)
    for _ in range(200):
        times = np.cumsum(rng.integers(1, 90, rng.integers(1, 12)))
        last = int(rng.integers(1, 90))
        gaps = [b - a for a, b in pairwise(times)] + [last]
        timed = [
            reading.Timed(None, Fraction(int(t), 1000), Fraction(int(d), 1000), Fraction(1, 10**9))  # type: ignore[arg-type]
            for t, d in zip(times, gaps)
        ]
        shown = reading._on_screen(timed, Fraction(1, 25), may_be_still=True, path=Path("x"))
        got = [timed.index(frame) for frame in shown]
        ticks = range(int(times[0]), int(times[-1]) + last, 40)
        assert got == [max(i for i, t in enumerate(times) if t <= now) for now in ticks]


# --- sound alone ---


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "aac"), ("a.mkv", "flac")])
def test_sound_that_is_handed_on_alone_stays_in_time(tmp_path: Path, name: str, codec: str) -> None:
    """A part is written without the video and carried from there: the same as carried from the video."""
    driving = clip(tmp_path / name, 75, sound=beep(1.2, 3.0), sound_codec=codec)
    write_sound(tmp_path / "sound.mp4", driving, 0.5, 1.5)
    with av.open(str(tmp_path / "sound.mp4")) as container:
        assert not container.streams.video
        assert float(container.duration or 0) / 1e6 == pytest.approx(1.5, abs=0.05)
    handed = carried(clip(tmp_path / "silent.mp4", 30), tmp_path / "none.mp4")
    with VideoWriter(tmp_path / "out.mp4", 25, (80, 48), audio_from=tmp_path / "sound.mp4") as writer:
        for frame in read_frames(handed):
            writer.write(frame)
    assert onset(tmp_path / "out.mp4") == pytest.approx(0.7, abs=0.012)


def test_a_video_without_sound_gives_an_empty_file_of_sound(tmp_path: Path) -> None:
    write_sound(tmp_path / "sound.mp4", clip(tmp_path / "a.mp4", 5), 0.0, 1.0)
    assert (tmp_path / "sound.mp4").stat().st_size == 0
