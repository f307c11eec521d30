"""The head of another studio: one WebSocket, over which one connection of a page asks; only the newest question counts.

It is the other side of `head.HeadSocket`, which answers in order and drops every question but the newest.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException

from export3d.studio.backend import AWAY, Backend, refused
from export3d.studio.engine import EngineStopped, Picture
from export3d.studio.refusals import Refused

_CONNECT_S = 5.0
_ANSWER_S = 30.0
"""A picture that takes longer never comes."""
_LARGEST = 64_000_000
"""Bytes of a picture."""
_Asked = dict[int, asyncio.Future[tuple[dict[str, Any], bytes] | None]]
"""Questions that wait for an answer, by number; None answers those that a newer one replaced."""


class HeadLine:
    """Asks for views of heads.

    Args:
        backend: the other studio.
        client: for whom it asks; the other studio has limits for each.

    Attributes:
        used: when it was last asked (`time.monotonic`).
    """

    def __init__(self, backend: Backend, client: str) -> None:
        self._url = f"{backend.url.replace('http', 'ws', 1)}/api/head?client={client}"
        self._headers = backend.headers
        self._opening = asyncio.Lock()
        self._socket: ClientConnection | None = None
        self._listening: asyncio.Task[None] | None = None
        self._numbers = itertools.count()
        self._asked: _Asked = {}
        self._values: dict[tuple[str, str], dict[str, float]] = {}
        """Tracked scores by portrait and face: they are told once."""
        self.used = time.monotonic()

    async def ask(self, request: Mapping[str, Any]) -> Picture | None:
        """The view that a message of the WebSocket asks for, see `requests.Head`; None if a newer one replaced it.

        Raises:
            Refused: with the other studio's sentence.
            EngineStopped: it does not answer, or does not let this studio in.
        """
        self.used = time.monotonic()
        number, asked = next(self._numbers), self._asked
        try:
            async with asyncio.timeout(_ANSWER_S):
                socket = await self._opened()
                asked = self._asked
                answer = asked[number] = asyncio.get_running_loop().create_future()
                await socket.send(json.dumps({**request, "n": number}))
                found = await answer
        except (WebSocketException, OSError, TimeoutError) as problem:
            await self.close()
            raise EngineStopped(AWAY) from problem
        finally:
            asked.pop(number, None)
        if found is None:
            return None
        header, image = found
        who = (request["portrait"], str(request.get("face", "largest")))
        self._values[who] = header.get("values") or self._values.get(who, {})
        return Picture(image, header["width"], header["height"], header["ms"], self._values[who])

    async def close(self) -> None:
        """Hang up; it is opened again when it is next asked."""
        socket, self._socket = self._socket, None
        if socket is not None:
            await socket.close()

    async def _opened(self) -> ClientConnection:
        async with self._opening:
            if self._socket is None:
                try:
                    self._socket = await connect(
                        self._url,
                        additional_headers=self._headers,
                        open_timeout=_CONNECT_S,
                        close_timeout=1.0,
                        max_size=_LARGEST,
                        compression=None,
                    )
                except InvalidStatus as problem:
                    answer = problem.response
                    raise refused(answer.status_code, answer.body, answer.headers.get("Retry-After", "")) from problem
                self._asked = {}
                self._listening = asyncio.create_task(self._listen(self._socket, self._asked))
            return self._socket

    async def _listen(self, socket: ClientConnection, asked: _Asked) -> None:
        """What the other studio says, until the connection ends."""
        header: dict[str, Any] = {}
        with suppress(WebSocketException, ValueError, KeyError):  # the last two: it is no studio
            async for message in socket:
                if isinstance(message, bytes):
                    _settle(asked, header["n"], (header, message))
                    continue
                header = json.loads(message)
                if "error" in header:
                    _settle(asked, header["n"], Refused(header["status"], header["error"]))
        if self._socket is socket:
            self._socket = None
        _settle(asked, None, EngineStopped(AWAY))


def _settle(asked: _Asked, number: int | None, found: tuple[dict[str, Any], bytes] | Exception) -> None:
    """Answer a question; it replaced older ones. Without a number: answer all."""
    for one, answer in asked.items():
        if answer.done() or (number is not None and one > number):
            continue
        if number is not None and one < number:
            answer.set_result(None)
        elif isinstance(found, Exception):
            answer.set_exception(found)
        else:
            answer.set_result(found)
