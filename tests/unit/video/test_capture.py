"""Captured frames: the newest one, in real time, from files and addresses; failures in one sentence."""

from __future__ import annotations

import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import av
import numpy as np
import pytest

from export3d.errors import BadVideo
from export3d.video.capture import Capture, Captured, Newest, _Backlog, _in_real_time, is_file
from tests.file_server import serving
from tests.made_videos import animation, clip, number, numbered


def captured(where: str, pause_s: float = 0.0, timeout_s: float = 5.0) -> list[Captured]:
    """All frames that a reader gets who takes so long over each."""
    frames = []
    with Capture(where, timeout_s=timeout_s) as capture:
        while (one := capture.newest()) is not None:
            frames.append(one)
            time.sleep(pause_s)
    return frames


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes connections and says nothing."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_a_new_value_replaces_one_that_was_not_taken() -> None:
    place: Newest[int] = Newest()
    place.put(1)
    place.put(2)
    assert place.take(0.0) == 2
    assert place.take(0.0) is None
    place.put(3)
    place.close()
    assert (place.take(5.0), place.take(5.0)) == (3, None)


def test_a_waiting_reader_gets_what_comes() -> None:
    place: Newest[int] = Newest()
    timer = threading.Timer(0.05, place.put, [7])
    timer.start()
    assert place.take(10.0) == 7
    timer.join()


def test_a_file_plays_in_real_time(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4", 12)
    start = time.perf_counter()
    frames = captured(str(path))
    assert time.perf_counter() - start > 11 / 25
    seen = [number(one.pixels) for one in frames]
    assert seen == sorted(set(seen))
    due = np.array([one.time_s - frames[0].time_s for one in frames])
    np.testing.assert_allclose(due, (np.array(seen) - seen[0]) / 25, atol=1e-6)
    assert all(one.time_s <= time.perf_counter() for one in frames)


def test_a_slow_reader_gets_the_newest_frame_and_never_lags(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4", 40)
    start = time.perf_counter()
    frames = captured(str(path), pause_s=0.2)
    taken = time.perf_counter() - start
    assert len(frames) < 20
    assert number(frames[-1].pixels) >= 38  # the end is seen, however slow the reader
    assert taken < 2 * 40 / 25


def test_variable_rates_odd_sizes_and_animated_images_are_captured(tmp_path: Path) -> None:
    odd = clip(tmp_path / "odd.mkv", [numbered(k, 81, 47) for k in range(4)], codec="ffv1", pix_fmt="bgr0")
    assert captured(str(odd))[0].pixels.shape == (47, 81, 3)
    varying = clip(tmp_path / "varying.mp4", 3, times=[0.0, 0.04, 0.3])
    frames = captured(str(varying))
    assert frames[-1].time_s - frames[0].time_s == pytest.approx(0.3, abs=0.002)
    assert captured(str(animation(tmp_path / "a.gif", 3, duration=40)))


def test_frames_are_reduced_to_the_long_side(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4", [numbered(5, 160, 96)] * 3)
    with Capture(str(path), long_side=80) as capture:
        frame = capture.newest()
    assert frame is not None
    assert frame.pixels.shape == (48, 80, 3)
    assert number(frame.pixels) == 5


def test_leaving_early_ends_the_thread(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4", 100)
    before = threading.active_count()
    with Capture(str(path)) as capture:
        assert capture.newest() is not None
    assert threading.active_count() == before
    assert capture.count < 100


def test_a_decoder_that_is_behind_skips_frames_until_it_has_caught_up(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.ts", 60, options={"g": "5", "bf": "0"})
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context, backlog = stream.codec_context, _Backlog(stream)
        packets = iter(list(container.demux(stream))[:-1])

        def read(late_s: float, waited_s: float = 0.0) -> tuple[float, str]:
            packet = next(packets)
            assert packet.dts is not None
            packet.dts -= round(late_s / packet.time_base)
            backlog.read(packet, waited_s)
            return backlog.lag_s, str(context.skip_frame)

        for _ in range(11):  # read at once: the clip is ahead of time
            assert read(0.0) == (0.0, "DEFAULT")
        lag, skipped = read(0.6)
        assert 0.4 < lag < 0.6
        assert skipped == "NONREF"
        lag, skipped = read(1.6)
        assert 1.4 < lag < 1.6
        assert skipped == "NONKEY"
        assert read(0.0) == (0.0, "NONKEY")  # the next frames need frames that were skipped
        assert [read(0.0)[1] for _ in range(5)] == ["NONKEY", "DEFAULT", "DEFAULT", "DEFAULT", "DEFAULT"]
        assert read(0.6)[1] == "NONREF"
        assert read(0.6, waited_s=0.1) == (0.0, "DEFAULT")


def test_a_url_is_captured(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4", 10, container_options={"movflags": "+faststart"})
    with serving(tmp_path) as server:
        seen = [number(one.pixels) for one in captured(f"{server.address}/a.mp4")]
    assert seen == sorted(seen)
    assert seen[-1] == 9


def test_a_stream_that_breaks_off_gives_the_frames_it_has(tmp_path: Path) -> None:
    frames = [np.random.default_rng(k).integers(0, 255, (48, 80, 3), np.uint8) for k in range(10)]
    clip(tmp_path / "a.mp4", frames, container_options={"movflags": "+faststart"}).rename(tmp_path / "a.tar")
    got = 0
    with serving(tmp_path) as server:
        server.faults += ["cut"] * 20
        with Capture(f"{server.address}/a.tar") as capture, suppress(BadVideo):
            while capture.newest() is not None:
                got += 1
    assert 0 < got < 10


def test_a_silent_stream_is_given_up(silent: str) -> None:
    start = time.perf_counter()
    with pytest.raises(BadVideo, match=r"sent nothing for 0\.5 s; check the address"):
        captured(f"http://{silent}/a.mp4", timeout_s=0.5)
    assert time.perf_counter() - start < 20.0


@contextmanager
def body_without_length(
    data: bytes, then: Callable[[socket.socket], object] = lambda connection: None
) -> Iterator[str]:
    """The address of a server that sends a body of unknown length once, does `then`, and closes the connection."""

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + data)
            then(connection)

    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/a"
        thread.join()


def test_a_stream_that_falls_silent_is_given_up(tmp_path: Path) -> None:
    data = clip(tmp_path / "a.ts", 30, options={"crf": "1", "bf": "0"}).read_bytes()
    until_left = lambda connection: connection.recv(4096)  # noqa: E731
    with body_without_length(data, until_left) as address, pytest.raises(BadVideo, match=r"for 0\.5 s"):
        captured(address, timeout_s=0.5)


def test_a_video_of_unknown_length_plays_at_its_own_speed_to_its_end(tmp_path: Path) -> None:
    data = clip(tmp_path / "a.mkv", 15, container_options={"live": "1"}).read_bytes()
    start = time.perf_counter()
    with body_without_length(data) as address:
        frames = captured(address)
    assert time.perf_counter() - start > 13 / 25
    assert number(frames[-1].pixels) == 14


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_interrupts_the_opening_at_once(silent: str) -> None:
    timer = threading.Timer(0.3, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])
    timer.start()
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        captured(f"http://{silent}/a.mp4", timeout_s=6.0)
    assert time.perf_counter() - start < 3.0


def test_what_cannot_be_captured_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with serving(tmp_path) as server:
        for where, words in {
            "987": "there is no camera 987 here",
            "/dev/video987": "there is no camera 987 here",
            str(tmp_path / "none.mp4"): "does not exist",
            str(tmp_path / "text.mp4"): "not a video but text",
            "http://127.0.0.1:9/a.mp4": "cannot be read",
            f"{server.address}/none.mp4": "cannot be read",
            f"{server.address}/text.mp4": "cannot be read",
        }.items():
            with pytest.raises(BadVideo, match=words):
                captured(where)


def test_a_playlist_on_the_network_opens_no_local_file(tmp_path: Path) -> None:
    local = clip(tmp_path / "a.ts", 10)
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "a.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{local}\n#EXT-X-ENDLIST\n")
    with serving(folder) as server, pytest.raises(BadVideo):
        captured(f"{server.address}/a.m3u8")


def test_messages_hide_passwords(tmp_path: Path, silent: str) -> None:
    assert Capture("rtsp://me:secret@10.0.0.1/a").name == "rtsp://10.0.0.1/a"
    (tmp_path / "text.mp4").write_text("no video")
    with serving(tmp_path) as server:
        port = server.address.rpartition(":")[2]
        for where, words in {
            f"http://me:secret@127.0.0.1:{port}/text.mp4": "cannot be read",
            f"rtsp://me:secret@{silent}/a": r"sent nothing for 0\.5 s",
        }.items():
            with pytest.raises(BadVideo, match=words) as caught:
                captured(where, timeout_s=0.5)
            assert "secret" not in "".join(traceback.format_exception(caught.value))


def test_cameras_urls_and_files_are_told_apart() -> None:
    assert [is_file(name) for name in ("0", "/dev/video2", "rtsp://a/b", "HTTP://a", "a.mp4", "./0")] == [
        False, False, False, False, True, True,
    ]  # fmt: skip


def test_after_a_pause_the_clock_starts_anew() -> None:
    """A stream that stalls for longer than a second is then as late as it was before, and not later by the pause."""
    frames = ((object(), k / 25) for k in range(6))
    due = []
    for k, (_, at) in enumerate(_in_real_time(frames)):  # type: ignore[arg-type]
        due.append(at)
        if k == 2:
            time.sleep(1.3)
    gaps = np.diff(due)
    np.testing.assert_allclose(np.delete(gaps, 2), 1 / 25, atol=1e-6)
    assert gaps[2] > 1.2


def test_waiting_for_the_time_of_a_frame_is_no_silence(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4", 3, times=[0.0, 0.9, 0.94])
    assert len(captured(str(path), timeout_s=0.3)) >= 2


def test_stopping_wakes_a_reader_that_waits(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4", 2, times=[0.0, 60.0])
    start = time.perf_counter()
    with Capture(str(path), timeout_s=60.0) as capture:
        threading.Timer(0.1, capture.stop).start()
        while capture.newest() is not None:
            pass
    assert time.perf_counter() - start < 30.0


@pytest.mark.slow
def test_a_stream_arrives_as_it_is_sent(tmp_path: Path) -> None:
    """MPEG-TS by UDP has no end and is never waited for; silence ends it."""
    data = clip(tmp_path / "a.ts", 60, options={"crf": "10", "bf": "0", "g": "5"}).read_bytes()
    packets = [data[start : start + 7 * 188] for start in range(0, len(data), 7 * 188)]
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probing:
        probing.bind(("127.0.0.1", 0))
        port = probing.getsockname()[1]

    def send() -> None:
        with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
            for packet in packets * 3:
                sender.sendto(packet, ("127.0.0.1", port))
                time.sleep(0.5 / len(packets))

    thread = threading.Thread(target=send)
    thread.start()
    seen = 0
    with Capture(f"udp://127.0.0.1:{port}", timeout_s=1.5) as capture, suppress(BadVideo):
        while capture.newest() is not None:
            seen += 1
    thread.join()
    assert seen > 3
