"""An engine on another machine: all that this server asks goes to another studio, over its API (`backend`).

Files are sent as users sent them, each once, and looked at there again, so statements name them. A file is known there
by a name of our own; users' names stay here. Where the other studio is away, requests fail with one sentence, and go on
when it is back; a job that it lost is asked again once. This process renders nothing and loads no PyTorch.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, get_args

from export3d.errors import ConfigError, ConsentRefused, Export3DError
from export3d.files import reason
from export3d.policy import read_policy
from export3d.studio.backend import AWAY, NOT_LET_IN, Backend
from export3d.studio.engine import EngineStopped, Picture, Portrait
from export3d.studio.head_line import HeadLine
from export3d.studio.refusals import Refused, refusal
from export3d.studio.requests import BUNDLED, Head, Verb

log = logging.getLogger(__name__)

STARTING = "the machine that renders is starting; wait a few seconds"
_START_S, _PATIENCE_S, _QUEUE_S = 120.0, 60.0, 600.0
"""How long it may start; how long a job waits for one that is away, and for a place in its queue."""
_EVERY_S = 2.0
"""It is asked so often whether it can render."""
_IDLE_S = 60.0
"""A head that nobody turned for so long gives up its connection."""
_TRIES = 5
"""A connection may break so often in a row before it is taken for lost."""
_LEAVING_S = 3.0
_REMEMBERED = 1000
"""Files of which it is known that they were sent."""
_RESULT = re.compile(r"[a-z]{1,30}\.(mp4|png|motion)")
_FIELDS = {get_args(kind.model_fields["verb"].annotation)[0]: tuple(kind.model_fields) for kind in get_args(Verb)}
_KINDS = {"driving": "video", "motion": "motion", "background": "background"}
T = TypeVar("T")
Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class _File:
    """A file of a request: its kind, where it is, what makes it the same file, and the user's name of it."""

    kind: str
    path: Path
    identity: str
    name: str

    @property
    def alias(self) -> str:
        """What it is called there. The ending says how a motion file is read."""
        ending = Path(self.name).suffix.lower() if self.kind == "motion" else ""
        ending = ending if re.fullmatch(r"\.[a-z0-9]{1,10}", ending) else ""
        return f"{self.kind}-{hashlib.sha256(self.identity.encode()).hexdigest()[:16]}{ending}"


class RemoteEngine:
    """An `EngineLike` that renders on another machine, for one event loop.

    Args:
        address: the URL of a studio that `export3d serve` or `export3d studio` printed, with its token if it has one.
        policy: the policy file that requests obey here; the other machine obeys its own too.

    Attributes:
        info: what it tells of itself, see `Studio.info`; None until it has answered.
        restarts: how often it came back.

    Raises:
        ConfigError: the address is none.
    """

    def __init__(self, address: str, policy: Path) -> None:
        self._backend, self._policy = Backend(address), policy
        self.info: dict[str, Any] | None = None
        self.restarts = 0
        self.pid: int | None = None
        self._why: str | None = STARTING
        """Why it does not render now."""
        self._files: dict[str, asyncio.Task[dict[str, Any]]] = {}
        """What it told of the files that were sent, by alias."""
        self._portraits: dict[str, str] = {}
        """Aliases of portraits by their ids here."""
        self._lines: dict[Any, HeadLine] = {}
        self._jobs: dict[str, asyncio.Task[None]] = {}
        self._later: set[asyncio.Task[Any]] = set()
        self._watching: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """Whether it renders now."""
        return self._why is None

    def memory(self) -> int:
        """It needs none here."""
        return 0

    async def start(self) -> dict[str, Any]:
        """Wait until the other studio renders: `info`.

        Raises:
            ConfigError: there is none, or it does not let this one in.
            EngineStopped: it takes too long.
        """
        url = self._backend.url
        try:
            self.info = await self._backend.call("GET", "/api/info")
        except EngineStopped as problem:
            why = f"no studio answers at {url}" + (f" ({reason(cause)})" if (cause := problem.__cause__) else "")
            why = f"{url} does not let this studio in" if str(problem) == NOT_LET_IN else why
            raise ConfigError(f"{why}; give --backend the whole URL that the other studio printed") from problem
        except Refused as problem:
            raise ConfigError(f"the backend {url} cannot be used: {problem}") from problem
        if not (isinstance(self.info, dict) and {"controls", "policy", "ready", "version"} <= self.info.keys()):
            raise ConfigError(f"{url} is no studio of this version; start one there, or correct --backend")
        if self.info["version"] != version("export3d"):
            log.warning("the backend runs export3d %s, this studio %s", self.info["version"], version("export3d"))
        await self._back(_START_S)
        self._watching = asyncio.create_task(self._watch())
        return self.info

    async def stop(self) -> None:
        """End what was asked, there too."""
        running = [task for task in (self._watching, *self._jobs.values()) if task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        if self._later:
            await asyncio.wait(self._later, timeout=_LEAVING_S)
        for task in (*self._later, *self._files.values()):
            task.cancel()
        for line in self._lines.values():
            await line.close()
        await self._backend.close()
        self._why = AWAY

    async def encode(self, portrait: Portrait, face: str | int = "largest") -> dict[str, Any]:
        """See `Engine.encode`.

        Raises:
            Refused: with the other studio's sentence, in which the user's name stands for the file.
            ConsentRefused: consent is asked for here, and not checked there.
            EngineStopped: it does not render now.
        """
        self._permit()
        if portrait["id"] == BUNDLED:
            return {"width": 512, "height": 512, "faces": [], "values": {}, "warnings": []}
        file = _portrait(portrait)
        self._portraits[portrait["id"]] = file.alias

        async def sent(ids: dict[str, str]) -> dict[str, Any]:
            told = self._files[file.alias].result()
            warnings = [warning.replace(file.alias, file.name) for warning in told.get("warnings", ())]
            return {name: told[name] for name in ("width", "height", "faces", "values")} | {"warnings": warnings}

        made = await self._with({"portrait": file}, sent)
        if face != "largest":
            picture = await self.head({"key": f"encode {file.alias}", "face": face, "quality": "fast"}, portrait)
            made["values"] = {} if picture is None else picture.values
        return made

    async def head(self, request: Mapping[str, Any], portrait: Portrait) -> Picture | None:
        """See `Engine.head`; raises as `encode`."""
        labelled = self._permit()
        asked = {name: value for name, value in request.items() if name in Head.model_fields and name != "n"}
        asked |= {"portrait": BUNDLED} | labelled
        files = {} if portrait["id"] == BUNDLED else {"portrait": _portrait(portrait)}
        behind = asked.get("background") or "keep"
        if Path(behind).is_absolute():
            files["background"] = _File("background", Path(behind), behind, "the background")
        line = self._lines.get(request["key"])
        if line is None:
            line = self._lines[request["key"]] = HeadLine(self._backend, secrets.token_hex(8))
        return await self._with(files, lambda ids: line.ask({**asked, **ids}))

    async def submit(self, job: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """See `Engine.submit`. A job may also be a `track`, and an `animate` have a `driving` video, as paths."""
        name = job["id"]
        events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        task = self._jobs[name] = asyncio.create_task(self._run(job, events.put_nowait))
        try:
            while True:
                event = await events.get()
                yield event
                if event["op"] in ("done", "failed", "cancelled"):
                    return
        finally:
            task.cancel()
            self._jobs.pop(name, None)

    def cancel(self, job: str) -> None:
        """See `Engine.cancel`."""
        if job in self._jobs:
            self._jobs[job].cancel()

    def forget(self, portrait: str) -> None:
        """See `Engine.forget`; the file is removed there when no portrait here is made of it any more."""
        alias = self._portraits.pop(portrait, None)
        if alias is not None and alias not in self._portraits.values():
            sent = self._files.pop(alias, None)
            if sent is not None and sent.done() and not sent.cancelled() and not sent.exception():
                self._do_later(self._backend.call("DELETE", f"/api/uploads/{sent.result()['id']}"))

    def _permit(self) -> dict[str, Any]:
        """The fields of every request that the policy of this machine asks for."""
        policy = read_policy(self._policy)
        if policy.consent == "register" and (self.info or {}).get("policy", {}).get("consent") != "register":
            raise ConsentRefused(
                "the policy here asks for consent, and the machine that renders has no register of it; add the people "
                "to the register there"
            )
        return {"label": True} if policy.label else {}

    async def _watch(self) -> None:
        """Notice that the other studio is away or back, and hang up what nobody uses."""
        while True:
            await asyncio.sleep(_EVERY_S)
            await self._look()
            for key in [key for key, line in self._lines.items() if time.monotonic() - line.used > _IDLE_S]:
                await self._lines.pop(key).close()

    async def _look(self) -> bool:
        """Whether it renders now."""
        before = self._why
        try:
            self.info = await self._backend.call("GET", "/api/info", timeout=_PATIENCE_S / 6)
            self._why = None if self.info is not None and self.info["ready"] else STARTING
        except Export3DError as problem:
            self._why = str(problem)
        if before == AWAY and self._why is None:
            self.restarts += 1
            log.warning("the backend %s answers again", self._backend.url)
        elif self._why not in (before, None, STARTING):
            log.warning("the backend %s is away: %s", self._backend.url, self._why)
        return self._why is None

    async def _back(self, patience_s: float = _PATIENCE_S) -> None:
        """Wait until it renders."""
        end = time.monotonic() + patience_s
        while not await self._look():
            if time.monotonic() > end:
                raise EngineStopped(self._why or AWAY)
            await asyncio.sleep(_EVERY_S / 2)

    async def _with(
        self, files: Mapping[str, _File], ask: Callable[[dict[str, str]], Awaitable[T]], patient: bool = False
    ) -> T:
        """Send the files of a request where they are not there yet, and ask; again once if it has lost something.

        Args:
            files: by the fields of the request.
            ask: is given their ids there, by field.
            patient: wait for one that is away.
        """
        for last in (False, True):
            try:
                if patient:
                    await self._back()
                elif self._why is not None:
                    raise EngineStopped(self._why)
                ids = {field: str((await self._sent(file))["id"]) for field, file in files.items()}
                return await ask(ids)
            except EngineStopped:
                if last or not patient:
                    raise
            except Refused as problem:
                if last or problem.status != 404:
                    sentence = str(problem)
                    for file in files.values():
                        sentence = sentence.replace(file.alias, file.name)
                    raise Refused(problem.status, sentence, problem.retry_s) from problem
                for file in files.values():
                    self._files.pop(file.alias, None)
        raise AssertionError("one of two attempts ends")

    async def _sent(self, file: _File) -> dict[str, Any]:
        """What it tells of a file, which is sent if it was not."""
        task = self._files.get(file.alias)
        if task is None:
            task = asyncio.create_task(self._backend.upload(file.kind, file.path, file.alias))
            self._files[file.alias] = task
            task.add_done_callback(lambda done: self._drop_failed(file.alias, done))
            while len(self._files) > _REMEMBERED:
                self._files.pop(next(iter(self._files)))
        return await asyncio.shield(task)

    def _drop_failed(self, alias: str, task: asyncio.Task[dict[str, Any]]) -> None:
        if (task.cancelled() or task.exception()) and self._files.get(alias) is task:
            del self._files[alias]

    async def _run(self, job: Mapping[str, Any], tell: Tell) -> None:
        """A job from its files to its last event."""
        name, out = job["id"], Path(job["out"])
        last: dict[str, Any]
        try:
            tell({"op": "progress", "id": name, "stage": "preparing", "done": 0, "total": 0, "preview": None})
            body = {field: job[field] for field in _FIELDS[job["verb"]] if job.get(field) is not None}
            if job["verb"] != "track":
                body |= {"portrait": BUNDLED} | self._permit()
            files = _files(job)
            made = await self._with(files, lambda ids: self._once({**body, **ids}, name, out, tell), patient=True)
            last = {"op": "done", **made}
            for file in files.values():
                last["warnings"] = [warning.replace(file.alias, file.name) for warning in last["warnings"]]
        except asyncio.CancelledError:
            last = {"op": "cancelled"}
        except Exception as problem:
            told = refusal(problem)
            if told is None:
                log.error("a job failed because of a bug", exc_info=problem)
            sentence = "something went wrong in the server; its terminal shows what" if told is None else str(told)
            last = {"op": "failed", "error": sentence, "kind": type(problem).__name__}
        tell({"id": name, **last})

    async def _once(self, body: dict[str, Any], name: str, out: Path, tell: Tell) -> dict[str, Any]:
        """Have a job done, and its files written here: `files` and `warnings`."""
        job = await self._queued(body, name)
        try:
            shown = await self._followed(job, name, tell)
            if shown["state"] == "failed":
                raise Refused(400, shown["error"])
            if shown["state"] == "cancelled":  # as it ended
                raise EngineStopped("the machine that renders has cancelled this job; ask for it again")
            return {"files": await self._fetched(job, shown["files"], out), "warnings": shown.get("warnings", [])}
        finally:
            self._do_later(self._backend.call("DELETE", f"/api/jobs/{job}"))

    async def _queued(self, body: dict[str, Any], name: str) -> str:
        """Send a job, as soon as there is place for it; its id there."""
        end = time.monotonic() + _QUEUE_S
        while True:
            headers = {"X-Export3D-Client": name}  # its limit of jobs of one client is not for a whole studio
            sending = asyncio.create_task(self._backend.call("POST", "/api/jobs", json=body, headers=headers))
            try:
                return str((await asyncio.shield(sending))["id"])
            except asyncio.CancelledError:
                self._do_later(self._end(sending))
                raise
            except Refused as problem:
                if problem.status not in (429, 503) or time.monotonic() > end:
                    raise
                await asyncio.sleep(problem.retry_s or 5)

    async def _end(self, sending: asyncio.Task[Any]) -> None:
        await self._backend.call("DELETE", f"/api/jobs/{(await sending)['id']}")

    async def _followed(self, job: str, name: str, tell: Tell) -> dict[str, Any]:
        """Tell of a job until it has ended; connections may break meanwhile."""
        previews = broken = 0
        while True:
            try:
                async with aclosing(self._backend.events(job)) as events:
                    async for shown in events:
                        broken = 0
                        if shown["state"] in ("done", "failed", "cancelled"):
                            return shown
                        fresh, previews = shown["preview"] > previews, shown["preview"]
                        preview = await self._backend.preview(job, previews) if fresh else None
                        stage = {"stage": shown["stage"] or "preparing", "done": shown["done"], "total": shown["total"]}
                        tell({"op": "progress", "id": name, **stage, "preview": preview})
                raise EngineStopped(AWAY)  # the other studio has ended
            except EngineStopped:
                broken += 1
                if broken == _TRIES:
                    raise
                await self._back()

    async def _fetched(self, job: str, files: list[dict[str, Any]], out: Path) -> list[str]:
        """Write a job's files to the folder, all or none."""
        arriving = out.with_name(f".{out.name}-arriving")
        arriving.mkdir()
        try:
            for file in files:
                if not _RESULT.fullmatch(file["name"]):
                    raise Refused(400, "the machine that renders made a file that is not expected; update this studio")
                await self._downloaded(job, file, arriving / file["name"])
            for file in files:
                (arriving / file["name"]).replace(out / file["name"])
        finally:
            shutil.rmtree(arriving, ignore_errors=True)
        return [file["name"] for file in files]

    async def _downloaded(self, job: str, file: dict[str, Any], path: Path) -> None:
        for attempt in range(1, _TRIES + 1):
            try:
                await self._backend.download(job, file["name"], file["bytes"], path)
                return
            except EngineStopped:
                if attempt == _TRIES:
                    raise
                await self._back()

    def _do_later(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do what nobody waits for; its failure is no matter."""

        async def quietly() -> None:
            with suppress(Export3DError):
                await work

        task = asyncio.create_task(quietly())
        self._later.add(task)
        task.add_done_callback(self._later.discard)


def _portrait(portrait: Portrait) -> _File:
    path = Path(portrait["path"])
    return _File("photo", path, portrait["digest"] or str(path), portrait["name"])


def _files(job: Mapping[str, Any]) -> dict[str, _File]:
    """The files of a job by its fields."""
    names = job.get("names") or {}
    found = {
        field: _File(kind, Path(job[field]), job.get(f"{field}_digest") or job[field], names[job[field]])
        for field, kind in _KINDS.items()
        if job.get(field) in names
    }
    if job["verb"] != "track" and job["portrait"]["id"] != BUNDLED:
        found["portrait"] = _portrait(job["portrait"])
    return found
