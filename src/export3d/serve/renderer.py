"""A replica of Ray Serve: `studio.work.Work` for several users at a time, whose frames it merges.

Every request runs in a thread of its own. What those ask of the network is collected by `serve.batch` and run as one
batch (`engines.merged`), as soon as each of them waits for it, or a part of a batch's time after the first one does.
The two steps of a frame are collected apart, so that users who are at different steps come into step. What computes is
imported by the replica alone: the server reads this file too.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import serve

from export3d import files
from export3d.errors import Export3DError
from export3d.serve.parcels import Receiver, contents
from export3d.studio.engine_process import Cancelled, attempt, failure
from export3d.studio.workspace import Workspace

if TYPE_CHECKING:
    from export3d.engines.merged import Answer, Call
    from export3d.studio.work import Work

ONGOING = 8
"""Requests that a replica takes at a time."""
JOBS = 4
"""Of which jobs are so many: heads are to find a place."""
_PATIENCE, _LONGEST_S = 0.5, 0.5
"""Calls wait for those of others for this share of the last batch's time, and for so many seconds at most."""
_STUCK_S = 120.0
"""A batch that takes longer never ends."""
_STRICTEST = 'marks = "required"\nlabel = true\nconsent = "register"\n'
"""The policy until the first request."""


class Renderer:
    """One animator, for requests as `Work` takes them, with parcels in place of paths.

    Args:
        settings: `weights`, `pure`, `device` and `engine`, see `Animator`; `threads` of PyTorch; `merge`, how many
            calls are merged at most, 1 for none.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        from export3d.engines.merged import MergedEngine
        from export3d.studio.work import Work

        self._workspace = Workspace()  # which also removes what killed replicas have left
        self._folder = self._workspace.folder
        (self._folder / "files").mkdir()
        self._policy = self._folder / "policy.toml"
        self._policy_text = ""
        self._apply_policy(_STRICTEST)
        os.environ["EXPORT3D_POLICY"] = str(self._policy)
        self._receiver = Receiver(self._folder / "files", _fetched)
        self._most = settings["merge"]
        self._threads = ThreadPoolExecutor(ONGOING, "request")
        self._batches = ThreadPoolExecutor(1, "batch")
        self._rendering = 0
        self._counting = threading.Lock()
        self._batch_since: float | None = None
        self.batches: dict[int, int] = {}
        self._broken: dict[str, Any] | None = None
        self._work: Work | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        try:
            self._work = Work(settings, settings["threads"])
        except Export3DError as problem:
            self._broken = failure(problem, {})
            return
        self._engine = self._work.animator.engine
        self._work.animator.engine = MergedEngine(self._engine, self._ask)

    async def info(self) -> dict[str, Any]:
        """`info` of `Work`; `error` and `kind` where weights, device or engine cannot be used."""
        return self._broken or self._working.info

    async def load(self) -> dict[str, Any]:
        """`pid`; `processor_s`, seconds of all its cores; `rendering` requests; `batches` by their number of calls."""
        done = {"processor_s": time.process_time(), "batches": dict(self.batches)}
        return {"pid": os.getpid(), "rendering": self._rendering, **done}

    async def merge(self, most: int) -> None:
        """From now on, merge so many calls at most; 1: none."""
        self._most = most
        self.asks(0)

    async def check_health(self) -> None:
        """Raise where this animator renders no more; Ray Serve then starts another replica."""
        since = self._batch_since
        if since is not None and time.monotonic() - since > _STUCK_S:
            raise RuntimeError("a batch does not end")
        if self._work is not None and self._work.animator.device.type == "cuda":
            import torch

            torch.ones(1, device=self._work.animator.device).item()  # after an error of the device this raises

    async def encode(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """See `Work.encode`; or `error` and `kind`."""
        return await self._answered(lambda told: self._working.encode(told), message)

    async def head(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """See `Work.head`; or `error` and `kind`."""
        return await self._answered(lambda told: self._working.head(told), message)

    async def forget(self, portrait: str) -> None:
        """See `Work.forget`."""
        self._working.forget(portrait)

    async def job(self, message: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The events of a job as `Engine.submit` has them; `done` also holds `contents`, the files' bytes by name.

        The job ends when the caller cancels.
        """
        loop = self._loop = asyncio.get_running_loop()
        events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        unwanted = threading.Event()
        self._apply_policy(message["policy"])
        told, held = await self._receiver.unpacked(message)
        out = Path(tempfile.mkdtemp(prefix="job-", dir=self._folder))

        def say(op: str, **values: Any) -> None:
            loop.call_soon_threadsafe(events.put_nowait, {"op": op, "id": message["id"], **values})

        def between() -> None:
            if unwanted.is_set():
                raise Cancelled

        asking = _Asking(self)

        def tell(stage: str, done: int, total: int, preview: bytes | None = None) -> None:
            asking.now(stage == "rendering")
            say("progress", stage=stage, done=done, total=total, preview=preview)

        def run() -> None:
            try:
                with asking:
                    made = attempt(lambda wanted: self._working.job(wanted, between, tell), {**told, "out": str(out)})
                if "error" in made:
                    say("failed", **made)
                else:
                    say("done", **made, contents=contents(out))
            except Cancelled:
                say("cancelled")
            except BaseException as problem:
                say("failed", **failure(RuntimeError(str(problem)), {}))
            finally:
                shutil.rmtree(out, ignore_errors=True)
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(self._receiver.release, held)

        self._threads.submit(run)
        try:
            while True:
                event = await events.get()
                yield event
                if event["op"] in ("done", "failed", "cancelled"):
                    return
        finally:
            unwanted.set()

    @serve.batch(max_batch_size=ONGOING, batch_wait_timeout_s=0.0)  # type: ignore[untyped-decorator]
    async def expressions(self, calls: list[Call]) -> list[Answer]:
        """The answers of calls for planes that wait at the same time."""
        return await self._run(calls)

    @serve.batch(max_batch_size=ONGOING, batch_wait_timeout_s=0.0)  # type: ignore[untyped-decorator]
    async def frames(self, calls: list[Call]) -> list[Answer]:
        """The answers of calls for what is made of planes."""
        return await self._run(calls)

    async def _run(self, calls: list[Call]) -> list[Answer]:
        self.batches[len(calls)] = self.batches.get(len(calls), 0) + 1
        return await asyncio.get_running_loop().run_in_executor(self._batches, self._ran, calls)

    def _ran(self, calls: list[Call]) -> list[Answer]:
        """In the one thread that asks the network."""
        from export3d.engines.merged import run_calls

        begun = self._batch_since = time.monotonic()
        try:
            return run_calls(self._engine, calls)
        finally:
            self._batch_since = None
            wait = min(_PATIENCE * (time.monotonic() - begun), _LONGEST_S)
            for queue in (self.expressions, self.frames):
                queue.set_batch_wait_timeout_s(wait)

    @property
    def _working(self) -> Work:
        assert self._work is not None  # a replica without is never asked, see `info`
        return self._work

    async def _answered(
        self, does: Callable[[Mapping[str, Any]], dict[str, Any]], message: Mapping[str, Any]
    ) -> dict[str, Any]:
        self._loop = loop = asyncio.get_running_loop()
        self._apply_policy(message["policy"])
        told, held = await self._receiver.unpacked(message)

        def run() -> dict[str, Any]:
            try:
                with _Asking(self) as asking:
                    asking.now(True)
                    return attempt(does, told)
            finally:
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(self._receiver.release, held)

        return await loop.run_in_executor(self._threads, run)

    def asks(self, more: int) -> None:
        """So many more threads will ask the network; a batch is full when all of them do."""
        with self._counting:
            self._rendering += more
            size = max(min(self._rendering, self._most), 1)
        for queue in (self.expressions, self.frames):
            queue.set_max_batch_size(size)

    def _ask(self, call: Call) -> Answer:
        """From a thread: the answer of a call."""
        assert self._loop is not None
        if call.step == "encode":
            return self._batches.submit(self._ran, [call]).result()[0]
        queue = self.expressions if call.step == "planes" else self.frames
        made: Answer = asyncio.run_coroutine_threadsafe(queue(call), self._loop).result()
        return made

    def _apply_policy(self, text: str) -> None:
        """Each request carries the policy of the server that asks."""
        if text != self._policy_text:
            files.write_bytes(self._policy, text.encode())
            self._policy_text = text

    def __del__(self) -> None:
        self._workspace.close()


class _Asking:
    """Whether a request asks the network; at the end of the block it does not."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer, self._asks = renderer, False

    def now(self, asks: bool) -> None:
        """It does, or does not, from now on."""
        if asks != self._asks:
            self._asks = asks
            self._renderer.asks(1 if asks else -1)

    def __enter__(self) -> _Asking:
        return self

    def __exit__(self, *problem: object) -> None:
        self.now(False)


async def _fetched(ref: Any) -> bytes:
    data: bytes = await ref
    return data
