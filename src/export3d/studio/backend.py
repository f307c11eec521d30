"""Another studio as a program sees it: requests, uploads, jobs and their files, over the API that `app` serves.

backend = Backend("http://10.0.0.7:7860/?token=…")
sent = await backend.upload("photo", path, "me.jpg")
job = await backend.call("POST", "/api/jobs", json={"verb": "edit", "portrait": sent["id"]})
async for shown in backend.events(job["id"]):
    ...
await backend.close()
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx

from export3d.errors import ConfigError
from export3d.files import reason
from export3d.studio.engine import EngineStopped
from export3d.studio.refusals import Refused

log = logging.getLogger(__name__)

AWAY = "the machine that renders does not answer; this studio goes on when it does"
NOT_LET_IN = "the machine that renders does not let this studio in; its operator must correct --backend"
_CONNECT_S, _SILENCE_S = 5.0, 40.0
"""A connection that takes longer, or says nothing for longer, is taken for lost. Events come every 15 s at least."""
_LOOK_S = 180.0
"""An upload is answered when it was looked at, and a photo's face encoded."""
_PART = 1 << 18


class Backend:
    """The client, for one event loop.

    Args:
        address: the URL that the other studio printed, with its token if it has one.

    Attributes:
        url: the same without the token, fit to be shown to the operator.
        headers: what every request carries.

    Raises:
        ConfigError: the address is none.
    """

    def __init__(self, address: str) -> None:
        try:
            parts = urlsplit(address)
            fits = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            fits = False
        if not fits:
            raise ConfigError(f"--backend {address!r} is no URL of a studio; give one such as http://10.0.0.7:7860")
        self.url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        token = parse_qs(parts.query).get("token", [""])[0]
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        timeout = httpx.Timeout(_SILENCE_S, connect=_CONNECT_S, pool=None)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
        self._client = httpx.AsyncClient(base_url=self.url, headers=self.headers, timeout=timeout, limits=limits)

    async def close(self) -> None:
        """End all connections."""
        await self._client.aclose()

    async def call(self, method: str, path: str, **options: Any) -> Any:
        """The JSON that answers a request; None where the answer is empty.

        Args:
            method, path: of HTTP.
            options: see `httpx.AsyncClient.request`.

        Raises:
            Refused: with the other studio's sentence.
            EngineStopped: it does not answer, or does not let this studio in.
        """
        with _asking():
            answer = await self._client.request(method, path, **options)
        if answer.is_error:
            raise refused(answer.status_code, answer.content, answer.headers.get("Retry-After", ""))
        try:
            return answer.json() if answer.content else None
        except ValueError as problem:
            raise EngineStopped(AWAY) from problem

    async def upload(self, kind: str, path: Path, name: str) -> dict[str, Any]:
        """Send a file; what the other studio tells of it, such as its `id`. Raises as `call`."""
        made: dict[str, Any] = await self.call(
            "POST",
            "/api/uploads",
            params={"kind": kind, "name": name},
            content=_parts(path),
            headers={"Content-Length": str(path.stat().st_size)},
            timeout=httpx.Timeout(_SILENCE_S, connect=_CONNECT_S, read=_LOOK_S),
        )
        return made

    async def events(self, job: str) -> AsyncGenerator[dict[str, Any], None]:
        """What the other studio tells of a job, at each change until it has ended. Raises as `call`."""
        with _asking():
            async with self._client.stream("GET", f"/api/jobs/{job}/events") as answer:
                if answer.is_error:
                    raise refused(answer.status_code, await answer.aread())
                async for line in answer.aiter_lines():
                    if line.startswith("data: "):
                        yield json.loads(line.removeprefix("data: "))

    async def preview(self, job: str, number: int) -> bytes | None:
        """The newest frame of a job, JPEG; None if it has none any more."""
        with _asking():
            answer = await self._client.get(f"/api/jobs/{job}/preview", params={"n": number})
        return None if answer.is_error else answer.content

    async def download(self, job: str, name: str, size: int, path: Path) -> None:
        """Write a file of a job, of so many bytes. Raises as `call`; `OSError` where it cannot be written."""
        got = 0
        with _asking(), path.open("wb") as file:
            async with self._client.stream("GET", f"/api/jobs/{job}/files/{name}") as answer:
                if answer.is_error:
                    raise refused(answer.status_code, await answer.aread())
                async for part in answer.aiter_bytes(_PART):
                    got += len(part)
                    if got > size:
                        break
                    await asyncio.to_thread(file.write, part)
        if got != size:
            raise EngineStopped(AWAY)


def refused(status: int, body: bytes | bytearray | None, retry_after: str = "") -> Refused | EngineStopped:
    """What an answer with a status of 400 or more means."""
    try:
        sentence = str(json.loads(body or b"")["error"])
    except (ValueError, KeyError, TypeError):  # of a proxy, or of something that is no studio
        return EngineStopped(AWAY)
    if status in (401, 421):
        return EngineStopped(NOT_LET_IN)
    return Refused(status, sentence, int(retry_after) if retry_after.isdigit() else 0)


@contextmanager
def _asking() -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as problem:
        log.debug("the backend does not answer: %s", reason(problem))
        raise EngineStopped(AWAY) from problem


async def _parts(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while part := await asyncio.to_thread(file.read, _PART):
            yield part
