"""The server's handle of the engine: the one child process that renders (`engine_process`).

engine = Engine()
info = await engine.start()
answer = await engine.head({"key": connection, "yaw": 12.0, "quality": "fast"}, portrait)
job = {"id": "1", "verb": "animate", "portrait": portrait, "motion": "speech", "out": folder}
async for event in engine.submit(job):
    ...
await engine.stop()

It imports nothing that computes: the server stays small. Where the child dies it is started again; what was running
fails with one sentence, and portraits are encoded again from their files when they are next needed.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import multiprocessing
import os
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol, TypedDict

from export3d import errors
from export3d.engines.names import EngineName
from export3d.errors import Export3DError
from export3d.studio import engine_process

log = logging.getLogger(__name__)

IMAGE_TYPE = "image/jpeg"
"""Media type of heads and previews."""
_START_S = 600.0
"""A child that takes longer to start is taken for lost."""
_LEAVING_S = 5.0
"""A child that takes longer to stop is killed."""
_PAUSES_S = (0.0, 1.0, 5.0, 15.0)
"""Before a child is started again: after the first death, after a second one that follows before it was ready, …"""


class EngineStopped(Export3DError):
    """The engine has died, or is not there yet; what was asked can be asked again."""


class Portrait(TypedDict):
    """A portrait as the engine needs it.

    Attributes:
        id: the key under which it is kept.
        path: an image that can be trusted.
        digest: SHA-256 of the file that the user sent, hexadecimal; None: of `path`.
        name: what the user calls it.
    """

    id: str
    path: str | Path
    digest: str | None
    name: str


@dataclass(frozen=True)
class Picture:
    """One marked image of a head.

    Attributes:
        image: the bytes of a file of `IMAGE_TYPE`.
        width, height: pixels.
        ms: what the engine took.
        values: the portrait's tracked scores by the names of the sliders, 0 to 1.
    """

    image: bytes
    width: int
    height: int
    ms: float
    values: dict[str, float]


class EngineLike(Protocol):
    """What the server needs of an engine, wherever it renders. `Engine` says what each method does and raises.

    Attributes:
        info: what `start` returned; None until then.
        restarts: how often it was started again.
    """

    restarts: int

    @property
    def info(self) -> dict[str, Any] | None: ...

    @property
    def alive(self) -> bool:
        """Whether it answers requests now."""
        ...

    @property
    def pid(self) -> int | None:
        """Its process on this machine; None where there is none."""
        ...

    def memory(self) -> int:
        """Resident memory on this machine, bytes; 0 where it has none or the system does not tell."""
        ...

    async def start(self) -> dict[str, Any]: ...

    async def stop(self) -> None: ...

    async def encode(self, portrait: Portrait, face: str | int = "largest") -> dict[str, Any]: ...

    async def head(self, request: Mapping[str, Any], portrait: Portrait) -> Picture | None: ...

    def submit(self, job: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]: ...

    def cancel(self, job: str) -> None: ...

    def forget(self, portrait: str) -> None: ...


class Engine:
    """The child process, for one event loop.

    Args:
        policy: the policy file that the child obeys; read again whenever it writes or encodes. None: this machine's.
        weights, pure, device, engine: see `Animator.from_pretrained`.

    Attributes:
        info: what `start` returned; None until then.
        restarts: how often the child was started again.
    """

    def __init__(
        self,
        policy: str | Path | None = None,
        weights: str | Path | None = None,
        pure: bool = False,
        device: str = "auto",
        engine: EngineName = "auto",
    ) -> None:
        self._settings = {
            "policy": policy and str(policy),
            "weights": weights,
            "pure": pure,
            "device": device,
            "engine": engine,
        }
        self.info: dict[str, Any] | None = None
        self.restarts = 0
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._listening: threading.Thread | None = None
        self._ready: asyncio.Future[dict[str, Any]] | None = None
        self._again: asyncio.Task[None] | None = None
        self._calls = itertools.count()
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._events: dict[str, asyncio.Queue[dict[str, Any]]] = {}
        self._stopping = False

    @property
    def alive(self) -> bool:
        """Whether the child answers requests now."""
        return self._ready is not None and self._ready.done() and not self._ready.exception() and self._pipe is not None

    @property
    def pid(self) -> int | None:
        """The child's process number; None where there is none."""
        return None if self._process is None else self._process.pid

    def memory(self) -> int:
        """Resident memory of the child, bytes; 0 where the system does not tell."""
        with suppress(OSError, ValueError, IndexError):
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE")
        return 0

    async def start(self) -> dict[str, Any]:
        """Start the child and wait until it renders: `info`, see `work.Work`.

        Raises:
            Export3DError: weights, device or engine cannot be used.
            EngineStopped: the child died, or took too long.
        """
        self._stopping = False
        self.info = await self._launch()
        return self.info

    async def stop(self) -> None:
        """Stop the child; whatever runs is cancelled, and nothing half-written is left."""
        self._stopping = True
        if self._again is not None:
            self._again.cancel()
        process, listening = self._process, self._listening
        if process is None or listening is None:
            return
        self._tell({"op": "stop"})
        if self._ready is not None and not self._ready.done():
            process.kill()  # it does not listen while it starts
        await asyncio.to_thread(listening.join, _LEAVING_S)
        if listening.is_alive():
            process.kill()
            await asyncio.to_thread(listening.join)
        self._process = None

    async def encode(self, portrait: Portrait, face: str | int = "largest") -> dict[str, Any]:
        """Encode a portrait: `width`, `height`, `faces`, `values` and `warnings`, see `work.Work.encode`.

        Raises:
            NoFaceFound, BadImage, ConsentRefused, ConfigError: with the user's name of the portrait.
            EngineStopped: see the class.
        """
        answer = await self._ask({"op": "encode", "portrait": _plain(portrait), "face": face})
        return {name: answer[name] for name in ("width", "height", "faces", "values", "warnings")}

    async def head(self, request: Mapping[str, Any], portrait: Portrait) -> Picture | None:
        """One image of a head; None if a newer request of the same `key` has replaced this one.

        Args:
            request: `key`, who asks; other fields, which may be left out, see `work.Work.head`.
            portrait: whose head.

        Raises:
            Export3DError: as `encode`; `EngineStopped` also where it does not render yet, or not now.
        """
        if not self.alive:
            raise EngineStopped("the studio is starting; wait a few seconds")
        answer = await self._ask({**request, "op": "head", "portrait": _plain(portrait)})
        if answer.get("replaced"):
            return None
        return Picture(**{name: answer[name] for name in ("image", "width", "height", "ms", "values")})

    async def submit(self, job: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Run a job; its events as they come, the last one `done`, `failed` or `cancelled`.

        `{"op": "progress", "id", "stage", "done", "total", "preview"}`: `stage` is "preparing", "rendering" or
        "writing"; `preview` is a marked image of `IMAGE_TYPE`, about twice a second, or None. `{"op": "done", "id",
        "files", "warnings"}`: names in the folder `out`, and sentences. `{"op": "failed", "id", "error", "kind"}`: a
        sentence, and the name of its class; nothing is left in `out`. Whoever stops listening cancels the job.

        Args:
            job: `id`; `names`, what the user calls other files of the job, by path; and see `work.Work.job`. The folder
                `out` holds nothing else.
        """
        name = job["id"]
        events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._events[name] = events
        ended = False
        try:
            try:
                await self._send({**job, "op": "job", "portrait": _plain(job["portrait"])})
            except EngineStopped as problem:
                events.put_nowait(failed(name, problem))
            while not ended:
                event = await events.get()
                ended = event["op"] in ("done", "failed", "cancelled")
                if event.get("kind") == EngineStopped.__name__:
                    empty(Path(job["out"]))  # a child that dies cannot
                yield event
        finally:
            self._events.pop(name, None)
            if not ended:
                self.cancel(name)

    def cancel(self, job: str) -> None:
        """Cancel a job, running or waiting; its events end with `cancelled` within a frame or a written file."""
        self._tell({"op": "cancel", "id": job})

    def forget(self, portrait: str) -> None:
        """Let go of a portrait by its id."""
        self._tell({"op": "forget", "id": portrait})

    def _tell(self, message: dict[str, Any]) -> None:
        if self._pipe is not None:
            with suppress(OSError):  # a child that has died knows no jobs and no portraits
                self._pipe.send(message)

    async def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        call = next(self._calls)
        answer = asyncio.get_running_loop().create_future()
        self._answers[call] = answer
        try:
            await self._send({**message, "call": call})
            found: dict[str, Any] = await answer
        except asyncio.CancelledError:
            self._tell({"op": "drop", "call": call})
            raise
        finally:
            self._answers.pop(call, None)
        if "error" in found:
            raise error_of(found)
        return found

    async def _send(self, message: dict[str, Any]) -> None:
        """To a child that is ready, or will be."""
        if self._ready is None or self._stopping:
            raise EngineStopped("the engine is not running; try again in a few seconds")
        await asyncio.shield(self._ready)
        try:
            if self._pipe is None:
                raise BrokenPipeError
            self._pipe.send(message)
        except OSError as problem:
            raise EngineStopped("the engine is starting again; try again in a few seconds") from problem

    async def _launch(self) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[dict[str, Any]] = loop.create_future()
        self._ready = ready
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=True)
        process = context.Process(
            target=engine_process.main, args=(theirs, self._settings), name="export3d-engine", daemon=True
        )
        await asyncio.to_thread(process.start)
        theirs.close()
        self._process, self._pipe = process, ours
        self._listening = threading.Thread(target=self._listen, args=(loop, ours, process), name="engine", daemon=True)
        self._listening.start()
        try:
            return await asyncio.wait_for(asyncio.shield(ready), _START_S)
        except TimeoutError:
            process.kill()
            raise EngineStopped(f"the engine did not start within {_START_S:.0f} seconds; restart the studio") from None

    def _listen(self, loop: asyncio.AbstractEventLoop, pipe: Connection, process: BaseProcess) -> None:
        """In a thread: what the child says, until it ends. Nobody else waits for the process."""
        with suppress(EOFError, OSError, RuntimeError):  # the last one: the event loop is closed
            while True:
                loop.call_soon_threadsafe(self._heard, pipe.recv())
        process.join()
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(self._died, pipe, process.exitcode)

    def _heard(self, message: dict[str, Any]) -> None:
        op = message["op"]
        if op == "answer":
            answer = self._answers.get(message["call"])
            if answer is not None and not answer.done():
                answer.set_result(message)
        elif op == "ready" and self._ready is not None and not self._ready.done():
            self._ready.set_result(message["info"])
        elif op == "broken" and self._ready is not None and not self._ready.done():
            self._ready.set_exception(error_of(message))
        elif message.get("id") in self._events:
            self._events[message["id"]].put_nowait(message)

    def _died(self, pipe: Connection, code: int | None) -> None:
        """Everything that waits fails; the child is started again unless it was to stop, or never started at all."""
        pipe.close()
        if pipe is not self._pipe:
            return
        self._pipe = None
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        if self._stopping:
            problem = EngineStopped("the engine has stopped; start the studio again")
        else:
            then = "start the studio again" if self.info is None else "it starts again, so try once more"
            problem = EngineStopped(f"the engine ended unexpectedly ({how}); {then}")
            log.warning("the engine ended unexpectedly (%s)", how)
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(problem)
        for name, events in self._events.items():
            events.put_nowait(failed(name, problem))
        ready = self._ready
        if ready is not None and not ready.done():
            ready.set_exception(problem)
        if not self._stopping and self.info is not None and (self._again is None or self._again.done()):
            self._again = asyncio.get_running_loop().create_task(self._start_again())

    async def _start_again(self) -> None:
        for pause in itertools.chain(_PAUSES_S, itertools.repeat(_PAUSES_S[-1])):
            await asyncio.sleep(pause)
            self.restarts += 1
            try:
                await self._launch()
                return
            except Export3DError as problem:
                log.warning("the engine did not start again: %s", problem)


def _plain(portrait: Portrait) -> dict[str, Any]:
    return {**portrait, "path": str(portrait["path"])}


def empty(folder: Path) -> None:
    """Remove the files of a job that has failed."""
    with suppress(OSError):
        for path in folder.iterdir():
            path.unlink(missing_ok=True)


def failed(job: str, problem: Export3DError) -> dict[str, Any]:
    """The last event of a job that has failed."""
    return {"op": "failed", "id": job, "error": str(problem), "kind": type(problem).__name__}


def error_of(message: Mapping[str, Any]) -> Export3DError:
    """The error that was reported as `error` and `kind`, of its class where that takes a sentence."""
    kind = getattr(errors, message["kind"], Export3DError)
    if not (isinstance(kind, type) and issubclass(kind, Export3DError)) or kind is errors.MissingExtra:
        kind = Export3DError
    made: Export3DError = kind(message["error"])
    return made
