"""Jobs: a bounded queue that an engine works off, with progress, previews and results."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Literal

from export3d.errors import Export3DError
from export3d.motion.motion import Motion
from export3d.studio.engine import EngineLike, EngineStopped
from export3d.studio.intake import Intake
from export3d.studio.metrics import Metrics
from export3d.studio.refusals import LEAVING, Refused, gone, refusal
from export3d.studio.requests import BUNDLED, LONGEST_S, MOTIONS, Animate, Edit, Track, Verb, is_id
from export3d.studio.uploads import Uploads
from export3d.studio.workspace import Workspace

log = logging.getLogger(__name__)

State = Literal["queued", "running", "done", "failed", "cancelled"]
ENDED = ("done", "failed", "cancelled")
WAITING = 24
"""Jobs that wait at most, of all clients."""
OF_ONE = 3
"""Jobs that wait or run at most, of one client."""
_EVERY_S = 0.1
"""Progress is told no more often."""
TYPES = {".mp4": "video/mp4", ".png": "image/png", ".motion": "application/octet-stream"}


@dataclass(eq=False)
class Job:
    """One request for a result.

    Attributes:
        id: names it; who knows it may see and cancel it.
        request: the verb.
        client: who asked.
        state: queued, running, then one of done, failed and cancelled.
        stage, done, total: what is going on: tracking, rendering or writing, and how many frames of it are done.
        preview: the newest preview, JPEG; `previews` counts them.
        error: why it failed, one sentence.
        warnings: the sentences that the command prints.
    """

    id: str
    request: Verb
    client: str
    folder: Path
    state: State = "queued"
    stage: str = ""
    done: int = 0
    total: int | None = None
    preview: bytes | None = None
    previews: int = 0
    error: str | None = None
    warnings: tuple[str, ...] = ()
    stage_since: float = 0.0
    changes: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    held: ExitStack = field(default_factory=ExitStack)
    """Keeps its folder and its uploads until it ends."""

    @property
    def results(self) -> Path:
        """The folder of its files."""
        return self.folder / "results"

    @property
    def left_s(self) -> float | None:
        """Seconds that the stage will still take; None: unknown."""
        if self.state != "running" or not self.done or not self.total:
            return None
        elapsed = time.monotonic() - self.stage_since
        return round(elapsed / self.done * max(self.total - self.done, 0), 1)

    def tell(self, **changes: Any) -> None:
        """Change attributes and wake those who follow the job."""
        if changes.get("stage", self.stage) != self.stage:
            self.stage_since = time.monotonic()
        for name, value in changes.items():
            setattr(self, name, value)
        self.changes += 1
        self.changed.set()
        self.changed = asyncio.Event()


class Jobs:
    """All jobs and the task that works them off, in their order.

    Args:
        workspace, uploads, engine, intake, metrics: of the server.
        tracks: track driving videos here; otherwise the engine is given them.
        at_once: how many run at a time.
    """

    def __init__(
        self,
        workspace: Workspace,
        uploads: Uploads,
        engine: EngineLike,
        intake: Intake,
        metrics: Metrics,
        tracks: bool = True,
        at_once: int = 1,
    ) -> None:
        self._tracks = tracks
        self._workspace, self._uploads, self._engine = workspace, uploads, engine
        self._intake, self._metrics = intake, metrics
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[Job] = deque()
        self._running: dict[Job, asyncio.Task[None]] = {}
        self._free = asyncio.Semaphore(at_once)
        self._work = asyncio.Event()
        self._closed = False

    async def check(self, request: Verb) -> None:
        """Refuse a start after the end of an upload, or a face that the portrait does not show.

        An upload lists the faces that one look finds. For a higher number the engine looks again, closer, and keeps
        what it finds for the job.

        Raises:
            Refused: 400: nothing is left after the start; 422: there is no such face; 403: it may not be animated; 404:
                an upload is gone.
        """
        self._check_start(request)
        face = "largest" if isinstance(request, Track) else request.face
        if isinstance(request, Track) or not isinstance(face, int):
            return
        portrait = self._uploads.portrait(request.portrait)
        if request.portrait == BUNDLED:
            if face > 1:
                raise Refused(
                    422, f"{portrait['name']} shows only one face, and no face {face}; leave out the choice of a face"
                )
            return
        if face <= len(self._uploads.get(request.portrait).shown["faces"]):
            return
        try:
            with self._workspace.holding(request.portrait):
                await self._engine.encode(portrait, face)
        except EngineStopped:
            return  # the job waits for it
        except Export3DError as problem:
            refused = refusal(problem)
            raise Refused(422, str(problem)) if refused is None or refused.status == 400 else refused from problem

    def _check_start(self, request: Verb) -> None:
        """Refuse a start at which the driving video or motion has ended, as its upload or its file tells."""
        if not isinstance(request, (Animate, Track)) or not request.start:
            return
        name = request.driving or (request.motion if isinstance(request, Animate) else None)
        if name is None:
            return
        seconds: float | None
        if name in MOTIONS:
            title, seconds = f"the bundled motion {name}", _duration_s(name)
        else:
            upload = self._uploads.get(name)
            title, seconds = upload.name, upload.shown.get("seconds")
        if seconds is not None and request.start >= seconds:
            raise Refused(
                400, f"{title} is {seconds:.2f} s long, so it has ended at {request.start:g} s; start earlier"
            )

    def submit(self, request: Verb, client: str) -> Job:
        """Queue a job.

        Raises:
            Refused: an upload is gone or of another kind, the queue is full, or the client has too many jobs.
        """
        self._files(request)
        if self._closed:
            raise Refused(503, LEAVING, 30)
        own = [job for job in self._jobs.values() if job.client == client and job.state in ("queued", "running")]
        if len(own) >= OF_ONE:
            raise Refused(429, f"{OF_ONE} of your jobs are not finished yet; wait for one, or cancel it", 10)
        if len(self._waiting) >= WAITING:
            raise Refused(503, f"the queue is full, {WAITING} jobs wait; try again in a minute", 60)
        entry = self._workspace.new()
        job = Job(entry.id, request, client, entry.folder)
        job.results.mkdir()
        uploads = [value for value in request.model_dump().values() if isinstance(value, str) and is_id(value)]
        job.held.enter_context(self._workspace.holding(job.id, *uploads))
        self._jobs = {key: one for key, one in self._jobs.items() if self._workspace.has(key)}
        self._jobs[job.id] = job
        self._waiting.append(job)
        self._work.set()
        return job

    def get(self, name: str) -> Job:
        """The job of an id; raises `Refused` (404)."""
        job = self._jobs.get(name)
        if job is None or self._workspace.entry(name) is None:
            raise gone("job")
        return job

    def end(self, name: str) -> Job:
        """Cancel a job; remove it if it has ended."""
        job = self.get(name)
        if job in self._waiting:
            self._waiting.remove(job)
            self._finish(job, "cancelled")
            for other in self._waiting:
                other.tell()
        elif job.state in ENDED:
            del self._jobs[name]
            self._workspace.remove(name)
        elif job in self._running:
            self._running[job].cancel()
        return job

    def shown(self, job: Job) -> dict[str, Any]:
        """What the API tells of a job."""
        position = self._waiting.index(job) + 1 if job in self._waiting else 0
        return {
            "id": job.id,
            "verb": job.request.verb,
            "state": job.state,
            "position": position,
            "stage": job.stage or None,
            "done": job.done,
            "total": job.total,
            "left_s": job.left_s,
            "preview": job.previews,
            "error": job.error,
            "warnings": job.warnings,
            "files": self._results(job),
        }

    def _results(self, job: Job) -> list[dict[str, Any]]:
        """What the API tells of the files of a job; nothing of one that was removed."""
        if job.state != "done" or not self._workspace.has(job.id):
            return []
        paths = sorted(_files_in(job.results), key=lambda path: list(TYPES).index(path.suffix))
        return [
            {
                "name": path.name,
                "bytes": path.stat().st_size,
                "type": TYPES[path.suffix],
                "url": f"/api/jobs/{job.id}/files/{path.name}",
            }
            for path in paths
        ]

    def saved_name(self, job: Job, name: str) -> str:
        """What a result is called where it is saved: after the user's file, as in the command line."""
        request = job.request
        source = request.driving if isinstance(request, Track) else request.portrait
        kind = PurePath(name)
        part = "" if kind.stem in ("video", "still", "motion") else f"-{kind.stem}"
        return f"{PurePath(self._uploads.names.get(source, 'portrait')).stem}-{request.verb}{part}{kind.suffix}"

    def file(self, job: Job, name: str) -> Path:
        """A result by its name; raises `Refused` (404) for every other name."""
        if job.state == "done":
            for path in _files_in(job.results):
                if path.name == name:
                    return path
        raise gone("file")

    async def events(self, job: Job) -> AsyncIterator[dict[str, Any]]:
        """What the API tells of a job, again at each change, until it has ended."""
        told = -1
        while True:
            changed, state = job.changed, job.state
            if job.changes != told:
                told = job.changes
                yield self.shown(job)
            if state in ENDED:
                return
            await asyncio.sleep(_EVERY_S)
            await changed.wait()

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether no job waits or runs."""
        return not self._waiting and not self._running

    def close(self) -> None:
        """Take no more jobs, and refuse those that wait; what runs goes on."""
        self._closed = True
        while self._waiting:
            self._finish(self._waiting.popleft(), "failed", LEAVING)

    async def work(self) -> None:
        """Work off the queue until this task is cancelled."""
        try:
            while True:
                await self._free.acquire()
                while not self._waiting:
                    self._work.clear()
                    await self._work.wait()
                job = self._waiting.popleft()
                for other in self._waiting:
                    other.tell()
                self._running[job] = task = asyncio.create_task(self._run(job))
                task.add_done_callback(lambda task, job=job: self._ended(job))  # type: ignore[misc]
        finally:
            running = list(self._running.values())
            for task in running:
                task.cancel()
            if running:
                await asyncio.wait(running)

    def _ended(self, job: Job) -> None:
        del self._running[job]
        self._free.release()
        if job.state not in ENDED:  # it was cancelled before it began
            self._finish(job, "cancelled")

    async def _run(self, job: Job) -> None:
        try:
            await self._make(job)
        except asyncio.CancelledError:
            self._engine.cancel(job.id)
            self._finish(job, "cancelled")
        except Exception as problem:
            refused = refusal(problem)
            if refused is None:
                log.error("a job failed because of a bug", exc_info=problem)
            sentence = "something went wrong in the server; its terminal shows what"
            self._finish(job, "failed", sentence if refused is None else str(refused))
        else:
            self._finish(job, "done")

    def _finish(self, job: Job, state: State, error: str | None = None) -> None:
        self._metrics.jobs[state] += 1
        job.held.close()
        job.tell(state=state, error=error, preview=None)

    def _files(self, request: Verb) -> dict[str, Any]:
        """The uploads of a request, as the engine is told of them; raises `Refused` where one is gone."""
        found: dict[str, Any] = {}
        names: dict[str, str] = {}
        if isinstance(request, (Animate, Track)) and request.driving is not None:
            video = self._uploads.get(request.driving, "video")
            found["driving"] = str(video.path)
            names[str(video.path)] = video.name
        if isinstance(request, Track):
            return found | {"names": names}
        found["portrait"] = self._uploads.portrait(request.portrait)
        if is_id(request.background):
            behind = self._uploads.get(request.background, "background", "photo")
            found["background"] = str(behind.path)
            names[str(behind.path)] = behind.name
        motion = None if isinstance(request, Edit) else request.motion
        if motion is not None and motion not in MOTIONS:
            moved = self._uploads.get(motion, "motion")
            found |= {"motion": str(moved.path), "motion_digest": moved.digest}
            names[str(moved.path)] = moved.name
        return found | {"names": names}

    async def _make(self, job: Job) -> None:
        request = job.request
        told = request.model_dump() | self._files(request)
        if self._tracks and isinstance(request, (Animate, Track)) and request.driving is not None:
            told |= await self._track(job, request) | self._files(request)  # the policy may have changed meanwhile
            told["names"][told["motion"]] = told["names"][told["driving"]]
        if self._tracks and isinstance(request, Track):
            Path(told["motion"]).rename(job.results / "motion.motion")
            return
        job.tell(state="running", stage="rendering", done=0, total=None)
        async for event in self._engine.submit({**told, "id": job.id, "out": str(job.results)}):
            if event["op"] == "progress":
                if event.get("preview"):
                    job.tell(preview=event["preview"], previews=job.previews + 1)
                job.tell(stage=event["stage"], done=event["done"], total=event["total"])
            elif event["op"] == "done":
                job.tell(warnings=tuple(dict.fromkeys([*job.warnings, *event["warnings"]])))
            elif event["op"] == "failed":
                raise Refused(403 if event.get("kind") == "ConsentRefused" else 400, event["error"])
            elif event["op"] == "cancelled":
                raise asyncio.CancelledError

    async def _track(self, job: Job, request: Animate | Track) -> dict[str, Any]:
        """Track the driving video in a child; what the engine is told of it."""
        assert request.driving is not None  # see `_make`
        video = self._uploads.get(request.driving, "video")
        left = max(float(video.shown["seconds"]) - request.start, 0.0)
        total = round(25.0 * min(left, LONGEST_S if request.seconds is None else request.seconds))
        job.tell(state="running", stage="tracking", done=0, total=total)
        folder = job.folder / "driving"
        folder.mkdir()
        try:
            made = await self._intake.track(
                video.path,
                folder,
                video.name,
                start=request.start,
                seconds=request.seconds,
                face=request.driving_face,
                progress=lambda done: job.tell(done=done),
            )
        except Export3DError:
            self._uploads.get(request.driving)  # whoever removed it is told that it is gone
            raise
        job.tell(warnings=tuple(made["warnings"]))
        sound = made["sound"]
        return {
            "motion": str(made["motion"]),
            "sound": None if sound is None else str(sound),
            "faces": [str(path) for path in made["pictures"]],
            "motion_digest": video.digest,
            "start": 0.0,
            "seconds": None,
        }


def _files_in(folder: Path) -> list[Path]:
    """The files in a folder; none where somebody removed it."""
    with suppress(FileNotFoundError):
        return list(folder.iterdir())
    return []


@functools.cache
def _duration_s(name: str) -> float:
    """That of a bundled motion."""
    return Motion.load(Path(__file__).resolve().parents[1] / "assets" / "motions" / f"{name}.motion").duration_s
