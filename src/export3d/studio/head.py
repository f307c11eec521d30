"""The head: one WebSocket, over which a client asks for views and gets pictures; only the newest question counts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect

from export3d.studio.engine import EngineLike
from export3d.studio.metrics import Metrics
from export3d.studio.refusals import LEAVING, Refused, refusal
from export3d.studio.requests import Head, is_id, parse_head
from export3d.studio.uploads import Uploads

_SLOWEST_S = 10.0
"""A client that takes longer to read one picture is cut."""
_LEAVING_S = 1.0
"""It may not be there to read the farewell either."""


class HeadSocket:
    """One connection. It reads on while the engine renders, and drops every question but the newest."""

    def __init__(
        self,
        socket: WebSocket,
        engine: EngineLike,
        uploads: Uploads,
        metrics: Metrics,
        leaving: Callable[[], bool] = lambda: False,
    ) -> None:
        self._leaving = leaving
        self._socket, self._engine, self._uploads, self._metrics = socket, engine, uploads, metrics
        self._newest: str | None = None
        self._asked = asyncio.Event()
        self._told: set[tuple[str, str]] = set()
        """Portraits and faces whose tracked scores the client knows."""

    async def serve(self) -> None:
        """Answer until the client leaves."""
        await self._socket.accept()
        answering = asyncio.create_task(self._answer())
        try:
            while not answering.done():
                listening = asyncio.ensure_future(self._socket.receive())
                await asyncio.wait([listening, answering], return_when=asyncio.FIRST_COMPLETED)
                if not listening.done():
                    listening.cancel()
                    break
                message = listening.result()
                if message["type"] == "websocket.disconnect":
                    return
                self._newest = message.get("text") or (message.get("bytes") or b"").decode("utf-8", "replace")
                self._asked.set()
            with suppress(WebSocketDisconnect, TimeoutError):
                answering.result()
            with suppress(WebSocketDisconnect, TimeoutError):
                async with asyncio.timeout(_LEAVING_S):
                    await self._socket.close()
        finally:
            answering.cancel()

    async def _answer(self) -> None:
        while True:
            await self._asked.wait()
            self._asked.clear()
            text, self._newest = self._newest, None
            if text is not None:
                begun = time.perf_counter()
                await self._one(text)
                self._metrics.head(time.perf_counter() - begun)

    async def _one(self, text: str) -> None:
        number: int | None = None
        try:
            request = parse_head(text)
            number = request.n
            header, image = await self._picture(request)
        except Exception as problem:
            refused = refusal(problem)
            if refused is None:
                raise
            self._metrics.head_errors += 1
            header, image = {"n": number, "error": str(refused), "status": refused.status}, b""
        async with asyncio.timeout(_SLOWEST_S):
            await self._socket.send_json(header)
            if image:
                await self._socket.send_bytes(image)

    async def _picture(self, request: Head) -> tuple[dict[str, Any], bytes]:
        if self._leaving():
            raise Refused(503, LEAVING, 30)
        told = {**request.model_dump(), "key": id(self)}
        if is_id(request.background):
            told["background"] = str(self._uploads.get(request.background, "background", "photo").path)
        made = await self._engine.head(told, self._uploads.portrait(request.portrait))
        assert made is not None  # one question of a connection at a time
        header: dict[str, Any] = {
            "n": request.n, "width": made.width, "height": made.height, "ms": made.ms, "quality": request.quality,
        }  # fmt: skip
        if (request.portrait, str(request.face)) not in self._told:
            self._told.add((request.portrait, str(request.face)))
            header["values"] = made.values
        return header, made.image
