"""Runs the server: its socket, its patience with clients, and its end."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from export3d.errors import ConfigError, Export3DError
from export3d.studio.app import MakeEngine, Settings, Studio, create_app
from export3d.studio.guard import MESSAGE_BYTES, SLOWEST, Bucket, Rates

log = logging.getLogger(__name__)

_HEADERS_S = 8.0
"""The headers of a request must arrive within so many seconds."""
_HEADER_BYTES = 16_384
_CONNECTIONS, _FROM_ONE = 512, 256
"""Open connections, of all and of one address: files and children need the process's other descriptors."""
_STALLED_S = 60.0
"""A client that takes nothing of what is sent to it is cut after so many seconds."""
_FETCHING_S = 2.0
"""After the last job its results can be fetched for so long."""
_LEAVING_S = 2
"""Connections that are open at the end are cut after so many seconds."""


class Patience(H11Protocol):
    """HTTP whose clients are not too many, and may not take for ever to send their headers, or a body nobody reads."""

    _timer: asyncio.TimerHandle | None = None
    _got = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._is_full():
            self._refuse(503, "too many connections are open; try again in a few seconds")
        else:
            self._watch()

    def _is_full(self) -> bool:
        if len(self.connections) <= _FROM_ONE or self.client is None:
            return False
        clients = (getattr(one, "client", None) for one in self.connections)
        own = sum(client is not None and client[0] == self.client[0] for client in clients)
        return own > _FROM_ONE or len(self.connections) > _CONNECTIONS

    def data_received(self, data: bytes) -> None:
        self._got += len(data)
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop()

    def _watch(self) -> None:
        upgraded = self.transport.get_protocol() is not self
        if upgraded or not (self.conn.their_state is h11.IDLE or self._is_unread()):
            self._stop()
        elif self._timer is None and not self.transport.is_closing():
            self._got = 0
            self._timer = self.loop.call_later(_HEADERS_S, self._late)

    def _is_unread(self) -> bool:
        """Whether a body comes after its answer has gone out."""
        return self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY

    def _late(self) -> None:
        self._timer = None
        if not self._is_unread():
            self._refuse(408, "the request came too slowly; send it again")
        elif self._got < SLOWEST * _HEADERS_S:
            self.transport.close()
        else:
            self._watch()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, f"this is no HTTP request, or its headers are longer than {_HEADER_BYTES} bytes")

    def _refuse(self, status: int, sentence: str) -> None:
        """Answer where there is no request to answer to, and hang up."""
        body = json.dumps({"error": sentence})
        head = f"HTTP/1.1 {status} \r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        self.transport.write(f"{head}\r\nconnection: close\r\n\r\n{body}".encode())
        self.transport.close()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._stop()  # between two requests uvicorn's own timer runs
        if self._is_unread():
            self._watch()


class Calm(WebSocketsSansIOProtocol):
    """A WebSocket whose client may not send endless pings and parts of messages, which reach no application."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._bucket = Bucket(*Rates.messages)

    def handle_ping(self) -> None:
        if self._is_calm():
            super().handle_ping()

    def handle_cont(self, event: Frame) -> None:
        if self._is_calm():
            super().handle_cont(event)

    def _is_calm(self) -> bool:
        if not self.transport.is_closing() and not self._bucket.take():
            self.transport.abort()
        return not self.transport.is_closing()


class _Server(uvicorn.Server):
    """uvicorn's server, for which Ctrl-C is the usual end. A terminal that is closed ends it too.

    Args:
        studio: what it serves; only needed to drain it.
        drain_s: at the first signal new work is refused; the server ends when none is left, at the latest after so many
            seconds, or at the second signal.
    """

    def __init__(self, config: uvicorn.Config, studio: Studio | None = None, drain_s: float = 0.0) -> None:
        super().__init__(config)
        self._studio, self._drain_s = studio, drain_s
        self._until = self._quiet_since = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._studio is None or self._drain_s <= 0.0 or self._until or not self._studio.engine.alive:
            super().handle_exit(sig, frame)
            return
        self._until = time.monotonic() + self._drain_s

    async def on_tick(self, counter: int) -> bool:
        """Several times a second."""
        if self._studio is not None and self._until:
            now = time.monotonic()
            if not self._studio.leaving:
                self._studio.leave()
                self._quiet_since = now
                if not self._studio.jobs.idle:
                    log.warning("finishing what runs, at most %.0f s; Ctrl-C again ends at once", self._drain_s)
            elif not self._studio.jobs.idle:
                self._quiet_since = now
            self.should_exit = self.should_exit or now > min(self._until, self._quiet_since + _FETCHING_S)
        return await super().on_tick(counter)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        asked: list[int] = []

        def end(number: int, frame: FrameType | None) -> None:
            asked.append(number)
            self.handle_exit(number, frame)

        ends = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup asks
            ends.append(signal.SIGHUP)
        previous = {number: signal.signal(number, end) for number in ends}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        for other in asked[:1]:
            if other != signal.SIGINT:
                signal.raise_signal(other)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 is any free one. Raises `ConfigError` where there can be none."""
    if not 0 <= port <= 65535:
        raise ConfigError(f"the port {port} is not possible; choose one from 1024 to 65535, or 0 for any that is free")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        made = socket.create_server((host, port), family=family, backlog=128)
    except OSError as problem:
        if problem.errno == errno.EADDRINUSE:
            raise ConfigError(f"the port {port} of {host} is in use; choose another --port, or 0 for any") from problem
        if problem.errno == errno.EACCES:
            raise ConfigError(f"the port {port} needs an administrator; choose one above 1023") from problem
        raise ConfigError(f"this machine has no address {host}; give one of its own, or 0.0.0.0 for all") from problem
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio does so only where the protocol is named
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * _STALLED_S))
    made.setblocking(False)
    return made


def serve(
    settings: Settings,
    sock: socket.socket,
    ready: Callable[[], object] = lambda: None,
    engine: MakeEngine | None = None,
    drain_s: float = 0.0,
) -> None:
    """Serve until Ctrl-C, SIGTERM or a failure of the engine's start.

    Args:
        settings: how the studio is run.
        sock: from `listen`.
        ready: called when the engine renders.
        engine: see `create_app`.
        drain_s: at the end, jobs that run are given so many seconds; new work is refused.

    Raises:
        Export3DError: the folder, the policy or the weights cannot be used.
    """
    problems: list[Export3DError] = []

    def told(problem: Export3DError | None) -> None:
        if problem is None:
            ready()
        else:
            problems.append(problem)
            server.should_exit = True

    app = create_app(settings, told, engine)
    config = uvicorn.Config(
        app,
        http=Patience,
        ws=Calm,
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=_LEAVING_S,
        h11_max_incomplete_event_size=_HEADER_BYTES,
        ws_max_size=2 * MESSAGE_BYTES,
        ws_per_message_deflate=False,
    )
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
    server = _Server(config, app.app.state.studio, drain_s)  # type: ignore[attr-defined]
    with suppress(KeyboardInterrupt):
        server.run([sock])
    if problems:
        raise problems[0]
