"""The server's handle of renderers on Ray Serve, with the surface of `studio.engine.Engine`.

A request whose replica dies is asked of another one, at most `_AGAIN` more times, then refused. The files of a job come
with its last event and are written here, so that they are delivered once, whoever made them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import ObjectLostError, RayActorError, RayError
from ray.serve.exceptions import BackPressureError, RayServeException, RequestCancelledError

from export3d.errors import Export3DError
from export3d.serve.parcels import Sender, deliver
from export3d.serve.renderer import JOBS
from export3d.studio.engine import EngineStopped, Picture, Portrait, empty, error_of, failed

log = logging.getLogger(__name__)

_AGAIN = 2
_LOOK_S = 1.0
_HEAD_S = 60.0
"""A head that has no renderer for so long is refused."""
_LOST = (RayActorError, ObjectLostError)
"""The replica, or what it has made, is gone."""
_GONE = "the renderer of this request ended unexpectedly, and so did two others; try again"


class ServeEngine:
    """Renderers of one application, for one event loop.

    Args:
        application: its name; see `running.deployed`.
        handle: of its renderers.
        policy: the policy file that they obey; its text is sent with each request.

    Attributes:
        info: what `start` returned; None until then.
        restarts: how often a replica was lost while it had a request.
    """

    def __init__(self, application: str, handle: Any, policy: Path) -> None:
        self._application, self._handle, self._policy = application, handle, policy
        self.info: dict[str, Any] | None = None
        self.restarts = 0
        self._replicas = 0
        self._sender = Sender(ray.put)
        self._watching: asyncio.Task[None] | None = None
        self._looking: asyncio.Future[Any] | None = None
        self._changed = asyncio.Condition()
        self._jobs = 0
        self._streams: dict[str, Any] = {}

    @property
    def alive(self) -> bool:
        """Whether a replica renders."""
        return self.info is not None and self._replicas > 0

    @property
    def pid(self) -> int | None:
        """None: renderers are processes of Ray, which may be elsewhere."""
        return None

    def memory(self) -> int:
        """0: see `pid`."""
        return 0

    async def start(self) -> dict[str, Any]:
        """See `Engine.start`."""
        found = await self._ask("info")
        if "error" in found:
            raise error_of(found)
        await self._look()
        self._watching = asyncio.create_task(self._watch())
        self.info = found
        return found

    async def stop(self) -> None:
        """Ask nothing more; whoever deployed the renderers ends them."""
        if self._watching is not None:
            self._watching.cancel()
        if self._looking is not None:
            await asyncio.wait([self._looking])  # in its thread it would start Ray again
        for stream in self._streams.values():
            stream.cancel()
        self._replicas = 0

    async def encode(self, portrait: Portrait, face: str | int = "largest") -> dict[str, Any]:
        """See `Engine.encode`."""
        return await self._answered("encode", {"portrait": portrait, "face": face})

    async def head(self, request: Mapping[str, Any], portrait: Portrait) -> Picture | None:
        """See `Engine.head`. Every request is answered: a connection has one at a time."""
        if not self.alive:
            raise EngineStopped("the renderers are starting; wait a few seconds")
        answer = await self._answered("head", {**request, "portrait": portrait})
        return Picture(**{name: answer[name] for name in ("image", "width", "height", "ms", "values")})

    async def submit(self, job: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """See `Engine.submit`. A job waits where every replica has as many as it takes."""
        name, out = str(job["id"]), Path(job["out"])
        self._streams[name] = None
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: self._jobs < JOBS * self._replicas)
                self._jobs += 1
            try:
                message = await asyncio.to_thread(self._packed, job)
                for lost in range(_AGAIN + 1):
                    try:
                        async for event in self._events(name, message, out):
                            yield event
                        return
                    except _LOST as problem:
                        self._lost(problem)
                        if lost == _AGAIN:
                            raise EngineStopped(_GONE) from problem
            finally:
                async with self._changed:
                    self._jobs -= 1
                    self._changed.notify_all()
        except RequestCancelledError:
            yield {"op": "cancelled", "id": name}
        except Export3DError as problem:
            empty(out)
            yield failed(name, problem)
        except (RayError, RayServeException) as problem:
            log.exception("a job failed on Ray Serve")
            yield failed(name, EngineStopped(f"the renderers cannot be reached ({type(problem).__name__}); try again"))
        finally:
            stream = self._streams.pop(name, None)
            if stream is not None:
                stream.cancel()

    def cancel(self, job: str) -> None:
        """See `Engine.cancel`."""
        stream = self._streams.get(job)
        if stream is not None:
            stream.cancel()

    def forget(self, portrait: str) -> None:
        """Portraits go from the replicas when others need their place."""

    async def _events(self, name: str, message: Mapping[str, Any], out: Path) -> AsyncIterator[dict[str, Any]]:
        """The events of one attempt; the last one after its files have been written."""
        stream = self._handle.options(stream=True).job.remote(message)
        self._streams[name] = stream
        async for event in stream:
            if event["op"] == "done":
                await asyncio.to_thread(deliver, event.pop("contents"), out)
            if event["op"] in ("done", "failed", "cancelled"):
                self._streams[name] = None
            yield event

    async def _answered(self, method: str, message: Mapping[str, Any]) -> dict[str, Any]:
        found = await self._ask(method, await asyncio.to_thread(self._packed, message))
        if "error" in found:
            raise error_of(found)
        return found

    async def _ask(self, method: str, *given: Any) -> dict[str, Any]:
        """What a replica answers; another one is asked where it dies."""
        for lost in range(_AGAIN + 1):
            response = getattr(self._handle, method).remote(*given)
            try:
                async with asyncio.timeout(_HEAD_S):
                    found: dict[str, Any] = await response
                return found
            except TimeoutError:
                response.cancel()
                raise EngineStopped("no renderer is free; try again in a minute") from None
            except asyncio.CancelledError:
                response.cancel()
                raise
            except _LOST as problem:
                self._lost(problem)
                if lost == _AGAIN:
                    raise EngineStopped(_GONE) from problem
            except BackPressureError as problem:
                raise EngineStopped("the renderers have too much to do; try again in a minute") from problem
            except (RayError, RayServeException) as problem:
                log.exception("a request failed on Ray Serve")
                sentence = f"the renderers cannot be reached ({type(problem).__name__}); try again"
                raise EngineStopped(sentence) from problem
        raise AssertionError

    def _lost(self, problem: Exception) -> None:
        self.restarts += 1
        log.warning("a renderer ended unexpectedly (%s); its request is asked again", type(problem).__name__)

    def _packed(self, message: Mapping[str, Any]) -> dict[str, Any]:
        text = self._policy.read_text()
        return {**self._sender.packed(message), "policy": text}

    async def _watch(self) -> None:
        """Know how many replicas there are."""
        while True:
            await asyncio.sleep(_LOOK_S)
            with suppress(RayError, RayServeException):
                await self._look()

    async def _look(self) -> None:
        self._looking = asyncio.ensure_future(asyncio.to_thread(serve.status))
        found = (await asyncio.shield(self._looking)).applications.get(self._application)
        states = [one.replica_states for one in found.deployments.values()] if found else []
        count = sum(number for one in states for state, number in one.items() if state == "RUNNING")
        async with self._changed:
            self._replicas = count
            self._changed.notify_all()
