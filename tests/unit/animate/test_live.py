"""A portrait follows a video in real time: it drops frames, never lags, and ends cleanly whatever the camera does."""

from __future__ import annotations

import re
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from export3d.animate.animator import Animator, Source
from export3d.animate.live import Live, Stats
from export3d.errors import BadVideo, ConfigError, NoFaceFound
from export3d.face.tracker import Tracker
from export3d.video import VideoWriter
from tests.file_server import serving
from tests.made_videos import clip

SECONDS = 4.0


@pytest.fixture(scope="module")
def rigid(rigid_weights: Path) -> Animator:
    """Fast to render, and shows every movement."""
    return Animator.from_pretrained(rigid_weights, device="cpu")


@pytest.fixture(scope="module")
def portrait(rigid: Animator, astronaut_path: Path) -> Source:
    return rigid.encode(astronaut_path)


@pytest.fixture(scope="module")
def film(astronaut_turns: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds of a head that tilts to and fro, as a file that a server can hand out."""
    path = tmp_path_factory.mktemp("live") / "film.mp4"
    with VideoWriter(path, 25.0, 256) as writer:
        for number in range(round(SECONDS * 25)):
            writer.write(astronaut_turns[number % len(astronaut_turns)])
    return path


@pytest.mark.slow
def test_a_slow_viewer_sees_fewer_frames_and_no_later_ones(rigid: Animator, portrait: Source, film: Path) -> None:
    live, pause_s = Live(rigid, portrait, str(film)), 0.25
    start, frames = time.perf_counter(), []
    for shown in live:
        frames.append(shown)
        time.sleep(pause_s)
    stats = live.stats
    assert live.problem is None
    assert time.perf_counter() - start < 5 * SECONDS  # a queue would take 100 times the pause
    assert stats.captured == round(SECONDS * 25)
    assert 0 < stats.shown < len(frames) <= stats.captured / 2
    assert stats.dropped == stats.captured - stats.shown
    behind_ms = 1000.0 * (stats.captured * pause_s - SECONDS)  # what the last frame of a queue would lag
    assert 1000.0 * pause_s <= stats.latency_ms() <= stats.latency_ms(95) < behind_ms / 3
    assert 0.0 < stats.fps(5) <= 1.0 / pause_s
    assert stats.fps() <= 1.0 / pause_s
    assert [one.time_s for one in frames] == sorted(one.time_s for one in frames)
    assert [one.calibrating for one in frames].count(True) >= 1
    assert frames[-1].face
    assert not frames[-1].calibrating
    assert np.abs(frames[-1].frame.astype(int) - frames[0].frame).max() > 30  # it moves


@pytest.mark.slow
def test_stopping_and_leaving_early_end_all_threads(rigid: Animator, portrait: Source, film: Path) -> None:
    before = threading.active_count()
    live = Live(rigid, portrait, str(film))
    for shown in live:
        if shown.face:
            live.calibrate()
            live.stop()
    assert live.problem is None
    assert threading.active_count() == before
    for _ in Live(rigid, portrait, str(film)):
        break
    assert threading.active_count() == before
    with suppress(KeyboardInterrupt):
        for _ in Live(rigid, portrait, str(film)):
            raise KeyboardInterrupt
    assert threading.active_count() == before


@pytest.mark.slow
def test_half_the_cores_are_left_to_tracking_and_planes(rigid: Animator, portrait: Source, film: Path) -> None:
    torch.set_num_threads(4)
    try:
        for _ in (live := Live(rigid, portrait, str(film))):
            assert torch.get_num_threads() == 2
            live.stop()
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(1)


@pytest.mark.slow
def test_a_video_without_a_face_shows_the_portrait_at_rest_and_says_so(
    rigid: Animator, portrait: Source, tmp_path: Path
) -> None:
    wall = clip(tmp_path / "wall.mp4", [np.full((97 // 2 * 2, 160, 3), 90, np.uint8)] * 10)
    live = Live(rigid, portrait, str(wall))
    frames = []
    with pytest.raises(NoFaceFound, match=f"^no face found in {re.escape(str(wall))} "):
        frames.extend(live)
    assert frames
    assert all(one.frame is frames[0].frame and not one.face for one in frames)
    assert live.stats.shown == 0


@pytest.mark.slow
def test_a_stream_that_fails_ends_with_what_it_showed(rigid: Animator, portrait: Source, film: Path) -> None:
    film.with_suffix(".tar").write_bytes(film.read_bytes())
    with serving(film.parent) as server:
        server.faults += ["cut"] * 20
        live = Live(rigid, portrait, f"{server.address}/film.tar")
        shown = list(live)
    assert shown
    assert live.stats.captured < SECONDS * 25
    assert live.problem is None or isinstance(live.problem, BadVideo)


def test_what_is_not_there_is_refused_before_anything_is_shown(
    rigid: Animator, portrait: Source, tmp_path: Path
) -> None:
    with pytest.raises(BadVideo, match="does not exist"):
        next(iter(Live(rigid, portrait, str(tmp_path / "none.mp4"))))
    with pytest.raises(BadVideo, match="no camera 987"):
        next(iter(Live(rigid, portrait, "987")))
    with pytest.raises(ConfigError, match="head motion"):
        Live(rigid, portrait, "0", head_motion="wild")  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_failure_of_the_tracker_is_raised_where_frames_are_shown(
    rigid: Animator, portrait: Source, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = Live(rigid, portrait, str(film))
    monkeypatch.setattr(live._follower, "step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(live)


def test_endless_tracking_needs_no_memory(astronaut_turns: list[np.ndarray]) -> None:
    with Tracker() as tracker:
        crowd = tracker.crowd()
        for frame in astronaut_turns[:5]:
            crowd.step(frame)
            crowd.forget()
            assert len(crowd.faces) == len(crowd.present) == 1
    assert [len(person.frames) for person in crowd.people] == [1]
    assert crowd.present[0].landmarks().shape == (1, 478, 2)
    np.testing.assert_array_equal(crowd.present[0].landmarks()[0], crowd.faces[0].landmarks[:, :2])


def test_statistics_before_the_first_frame_are_zero() -> None:
    assert (Stats().fps(), Stats().fps(5), Stats().latency_ms(), Stats().dropped) == (0.0, 0.0, 0.0, 0)
