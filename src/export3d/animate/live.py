"""A portrait that follows a camera in real time.

Three threads work at once: one captures; one tracks the face, works out what the portrait does and computes its planes;
the caller's own renders and shows. Between them there is never more than the newest frame. A slow machine therefore
shows fewer frames per second, and the delay between a movement and its image stays the same.

    live = Live(animator, animator.encode("portrait.jpg"), camera="0")
    for shown in live:
        window.show(shown.frame, shown.time_s)
    print(live.stats)
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from export3d.animate.follow import Follower, Pose, check_space
from export3d.animate.head_motion import HeadMotion
from export3d.errors import Export3DError, NoFaceFound
from export3d.face.landmarks import LONG_SIDE, Face
from export3d.face.people import Person
from export3d.face.shoulders import UNKNOWN
from export3d.model import Planes
from export3d.photo.options import Frame, Size
from export3d.video.capture import TIMEOUT_S, Capture, Newest

if TYPE_CHECKING:
    from export3d.animate.animator import Animator, Picture, Source

_IDLE_S = 0.1
"""While there is no newer frame, the last one is given again after this time, so that a window stays alive."""
_LATENCIES = 100_000
"""Latencies that are kept: about an hour."""


@dataclass(frozen=True, eq=False)
class Shown:
    """A frame to show.

    Attributes:
        frame: uint8 (H, W, 3) RGB; the same array as before if nothing has changed.
        time_s: seconds since the first frame.
        calibrating: whether the neutral face is being measured: the person should look straight ahead, at rest.
        face: whether the camera shows a face.
    """

    frame: Picture
    time_s: float
    calibrating: bool
    face: bool


@dataclass
class Stats:
    """What a live run did; all of it up to now.

    Attributes:
        captured: frames of the camera.
        tracked: of these, in which a face was looked for.
        shown: new frames that were rendered and shown.
        seconds: from the first captured frame to the last one shown.
        latency_s: of each shown frame, from its capture until the caller asked for the next one: tracking, rendering
            and showing.
        shown_s: when that was, seconds of `time.perf_counter`.
    """

    captured: int = 0
    tracked: int = 0
    shown: int = 0
    seconds: float = 0.0
    latency_s: deque[float] = field(default_factory=lambda: deque(maxlen=_LATENCIES), repr=False)
    shown_s: deque[float] = field(default_factory=lambda: deque(maxlen=_LATENCIES), repr=False)

    @property
    def dropped(self) -> int:
        """Captured frames that were not shown."""
        return max(self.captured - self.shown, 0)

    def fps(self, last: int | None = None) -> float:
        """New frames shown per second, of the `last` frames or of the whole run; 0 before the second frame."""
        if last is None:
            return self.shown / self.seconds if self.seconds > 0.0 else 0.0
        times = list(self.shown_s)[-last - 1 :]
        return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0

    def latency_ms(self, percent: float = 50.0, last: int | None = None) -> float:
        """A percentile of the latency, milliseconds, of the `last` frames or of all; 0 before the first frame."""
        values = list(self.latency_s)[-last:] if last else list(self.latency_s)
        return 1000.0 * float(np.percentile(values, percent)) if values else 0.0


@contextmanager
def _half_the_cores() -> Iterator[None]:
    """Half the cores for the planes and half for rendering: threads that wait for each other are slower than one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // 2))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True, eq=False)
class _Tracked:
    """What the portrait does in a captured frame, and its planes."""

    pose: Pose
    planes: Planes
    time_s: float
    calibrating: bool
    face: bool


class Live:
    """Frames of a portrait that follows a camera; iterate over it once, in the thread that shows them.

    The motion is relative (see `export3d.animate.follow`). The first frame, and all frames until the neutral face is
    known, show the portrait at rest.

    Args:
        animator: renders.
        source: from its `encode`.
        camera: number, file or URL, see `export3d.video.capture.Capture`.
        head_motion: see `export3d.animate.head_motion`.
        size, frame, background: see `Animator.animate`.
        timeout_s: a camera that gives no frame for so long has failed.

    Attributes:
        stats: what was done so far.
        problem: after the last frame, why the camera failed, if it did so after it had shown a face; else None.

    Raises:
        BadVideo: on the first `next`, if there is no such camera, file or stream; later, if it fails.
        NoFaceFound: after the last frame, if none showed a face.
        ConfigError: weights whose expressions no camera gives; or as in `animate`.
        MissingExtra: no face tracker is installed.
    """

    def __init__(
        self,
        animator: Animator,
        source: Source,
        camera: str,
        *,
        head_motion: HeadMotion = "steady",
        size: Size | None = None,
        frame: Frame = "crop",
        background: str = "keep",
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        check_space(animator.space)
        self.stats = Stats()
        self.problem: Export3DError | None = None
        self._animator, self._source = animator, source
        self._options: dict[str, Any] = {"size": size, "frame": frame, "background": background}
        self._capture = Capture(camera, LONG_SIDE, timeout_s)
        self._follower = Follower(source.camera, source.expression, head_motion)
        self._crowd = animator.tracker.crowd()
        self._person: Person | None = None
        self._calibrate = threading.Event()
        self._stop = threading.Event()
        self._tracked: Newest[_Tracked] = Newest()
        self._failure: BaseException | None = None

    def calibrate(self) -> None:
        """Measure the neutral face in the next second; any thread may call it."""
        self._calibrate.set()

    def stop(self) -> None:
        """End the iteration with the next frame; any thread, or a signal handler, may call it."""
        self._stop.set()

    def __iter__(self) -> Iterator[Shown]:
        pose = self._follower.rest
        with _half_the_cores():
            # before the camera opens: the first frame takes longer than the others
            planes = self._animator.planes(self._source, pose.expression)
            frame = self._rendered(pose, planes)
            with self._capture:
                tracking = threading.Thread(target=self._track, args=(pose, planes), name="tracking", daemon=True)
                tracking.start()
                try:
                    yield from self._shown(pose, frame)
                    ended = not self._stop.is_set()
                finally:
                    self._stop.set()
                    self._capture.stop()
                    tracking.join()
                    self.stats.captured = self._capture.count
        if self._failure is not None and (self._person is None or not isinstance(self._failure, Export3DError)):
            raise self._failure
        self.problem = self._failure
        if ended and self._person is None:
            raise NoFaceFound(
                f"no face found in {self._capture.name} ({self.stats.tracked} frames searched); the face must be well "
                "lit, not turned away and at least 60 pixels high"
            )

    def _shown(self, pose: Pose, frame: Picture) -> Iterator[Shown]:
        start = time.perf_counter()
        first: float | None = None
        calibrating = face = False
        while not self._stop.is_set():
            tracked = self._tracked.take(_IDLE_S)
            if tracked is None and self._tracked.closed:
                return
            new = tracked is not None and tracked.pose != pose
            if tracked is not None:
                first = tracked.time_s if first is None else first
                calibrating, face = tracked.calibrating, tracked.face
                if new:
                    pose, frame = tracked.pose, self._rendered(tracked.pose, tracked.planes)
            yield Shown(frame, time.perf_counter() - start, calibrating, face)
            self.stats.captured = self._capture.count
            if tracked is not None and first is not None:
                now = time.perf_counter()
                self.stats.seconds = now - first
                if new:
                    self.stats.shown += 1
                    self.stats.latency_s.append(now - tracked.time_s)
                    self.stats.shown_s.append(now)

    def _rendered(self, pose: Pose, planes: Planes) -> Picture:
        known = torch.from_numpy(pose.shoulders)[None].to(self._animator.device)
        return self._animator.render_planes(self._source, planes.with_shoulders(known), pose.camera, **self._options)

    def _track(self, pose: Pose, planes: Planes) -> None:
        try:
            while not self._stop.is_set():
                captured = self._capture.newest()
                if captured is None:
                    return
                if self._calibrate.is_set():
                    self._calibrate.clear()
                    self._follower.calibrate()
                self._crowd.step(captured.pixels)
                face = self._face()
                self._crowd.forget()
                before, pose = pose, self._follower.step(face, captured.time_s, self._shoulders())
                if not np.array_equal(pose.expression, before.expression):
                    planes = self._animator.planes(self._source, pose.expression)
                self.stats.tracked += 1
                calibrating = self._follower.calibrating and face is not None
                self._tracked.put(_Tracked(pose, planes, captured.time_s, calibrating, face is not None))
        except BaseException as problem:
            self._failure = problem
        finally:
            self._tracked.close()

    def _shoulders(self) -> NDArray[np.float32]:
        """The shoulders of the person who was seen last."""
        return UNKNOWN if self._person is None else self._person.shoulders()[-1].copy()

    def _face(self) -> Face | None:
        """The face of the person who is followed, until that person is gone; then the largest."""
        seen = list(zip(self._crowd.present, self._crowd.faces))
        if seen and self._person not in self._crowd.people:
            self._person = max(seen, key=lambda one: one[1].size)[0]
        return next((face for person, face in seen if person is self._person), None)
