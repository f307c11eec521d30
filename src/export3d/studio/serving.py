"""Runs the server: its socket, its patience with clients, and its end."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from export3d.errors import ConfigError, Export3DError
from export3d.studio.app import Settings, create_app
from export3d.studio.guard import MESSAGE_BYTES

_HEADERS_S = 8.0
"""The headers of a request must arrive within so many seconds."""
_HEADER_BYTES = 16_384
_LEAVING_S = 2
"""Connections that are open at the end are cut after so many seconds."""


class Patience(H11Protocol):
    """HTTP whose clients may not take for ever to send their headers."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop()

    def _watch(self) -> None:
        upgraded = self.transport.get_protocol() is not self
        if upgraded or self.conn.their_state is not h11.IDLE:
            self._stop()
        elif self._timer is None:
            self._timer = self.loop.call_later(
                _HEADERS_S, self._refuse, 408, "the request came too slowly; send it again"
            )

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


class _Server(uvicorn.Server):
    """uvicorn's server, for which Ctrl-C is the usual end."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        asked: list[int] = []

        def end(number: int, frame: FrameType | None) -> None:
            asked.append(number)
            self.handle_exit(number, frame)

        previous = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        if signal.SIGTERM in asked:
            signal.raise_signal(signal.SIGTERM)


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
    made.setblocking(False)
    return made


def serve(settings: Settings, sock: socket.socket, ready: Callable[[], object] = lambda: None) -> None:
    """Serve until Ctrl-C, SIGTERM or a failure of the engine's start.

    Args:
        settings: how the studio is run.
        sock: from `listen`.
        ready: called when the engine renders.

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

    config = uvicorn.Config(
        create_app(settings, told),
        http=Patience,
        ws="websockets-sansio",
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
    server = _Server(config)
    with suppress(KeyboardInterrupt):
        server.run([sock])
    if problems:
        raise problems[0]
