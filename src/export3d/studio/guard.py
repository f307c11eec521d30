"""The door of the server: every request and message passes here first, as pure ASGI.

- Another `Host` than ours is refused: a web site whose name is made to point here (DNS rebinding) gets nothing.
- Another `Origin` is refused where something changes, and for WebSockets.
- A server for other hosts asks for its token, in a cookie or as a bearer.
- Bodies, messages, URLs and rates have limits, checked while the bytes arrive; a client that sends too slowly is cut.
- Every answer has strict security headers: a page of ours loads nothing from another host.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
import re
import socket
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from export3d.studio.refusals import Refused, refusal

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

UPLOAD_BYTES = 200_000_000
"""Largest upload."""
UPLOAD_PATHS = ("/api/uploads", "/api/verify", "/gradio/gradio_api/upload")
SMALL_BYTES = 64_000
"""Largest body of every other request."""
MESSAGE_BYTES = 16_000
"""Largest message of a WebSocket."""
_URL_BYTES = 4_000
_IDLE_S, SLOWEST, _GRACE_S = 8.0, 10_000.0, 8.0
"""A body may pause for so many seconds, and after the grace period must come with so many bytes per second."""
_DRAIN_S = 5.0
"""How long a body that is too large is thrown away before the answer, which its sender would not read otherwise."""
_REMEMBERED = 2000
"""Clients whose rates are known."""
COOKIE = "export3d-studio"
"""Cookies have no port, so its name has it: two studios on one host keep their tokens apart."""
CLIENT_HEADER = b"x-export3d-client"
_CLIENT = re.compile(r"[\w-]{1,64}", re.ASCII)
_SAFE = ("GET", "HEAD", "OPTIONS")
_OPENING = b'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0;url=/"><title>export3d</title>'


@dataclass
class Bucket:
    """A token bucket: `rate` per second, at most `burst` at once."""

    rate: float
    burst: float
    left: float = field(init=False)
    since: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.left = self.burst

    def take(self) -> bool:
        """Whether one more is within the rate."""
        now = time.monotonic()
        self.left, self.since = min(self.burst, self.left + (now - self.since) * self.rate), now
        if self.left < 1.0:
            return False
        self.left -= 1.0
        return True


@dataclass(frozen=True)
class Rates:
    """Requests and messages per second, and how many at once.

    Attributes:
        client: requests of one client (an id that a page chose, at one address).
        address: requests of one address.
        wrong_tokens: of one address.
        messages: of one WebSocket.
        open_sockets: of one client; all together sixteen times as many.
        open_requests: of all.
    """

    client: tuple[float, float] = (40.0, 200.0)
    address: tuple[float, float] = (400.0, 2000.0)
    wrong_tokens: tuple[float, float] = (0.2, 10.0)
    messages: tuple[float, float] = (120.0, 240.0)
    open_sockets: int = 4
    open_requests: int = 256


class Guard:
    """ASGI middleware.

    Args:
        app: what it protects.
        shared_on: the host that others reach this server by; None: loopback only.
        token: what others must know; None: nothing.
        rates: the limits of rates.
    """

    def __init__(
        self,
        app: App,
        shared_on: str | None = None,
        token: str | None = None,
        rates: Rates = Rates(),
    ) -> None:
        self.app, self.token, self.rates = app, token, rates
        self._shared = shared_on is not None
        self._names = {"localhost"}
        if shared_on is not None:
            own = socket.gethostname().lower()
            self._names |= {shared_on.strip("[]").lower(), own, f"{own}.local"}
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()
        self._sockets: dict[str, int] = {}
        self._open = 0
        self.refused: dict[int, int] = {}
        """How often each status was answered here."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._socket(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        body = _Body(receive, headers, UPLOAD_BYTES if scope["path"] in UPLOAD_PATHS else SMALL_BYTES)
        begun = instead = False

        async def protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._count(message["status"])
                message = {**message, "headers": [*_without_ours(message["headers"]), *security_headers(scope)]}
            await send(message)

        async def guarded_send(message: Message) -> None:
            nonlocal begun, instead
            if instead:
                return
            if body.refused is not None and not begun:
                refused, begun, instead = body.refused, True, True
                await answer(protected, refused)  # whatever the app made of it
                return
            if message["type"] == "http.response.start":
                begun = True
            await protected(message)

        self._open += 1
        try:
            if self._open > self.rates.open_requests:
                raise Refused(503, "the server is full; try again in a few seconds", 5)
            if self._opens_page(scope, headers):
                await self._give_cookie(headers, guarded_send)
                return
            self._check(scope, headers)
            scope["state"]["body"] = body
            await body.check_announced()
            inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope  # the server leaves out the body
            await self.app(inner, body.receive, guarded_send)
        except Exception as problem:
            if begun:
                raise
            begun = instead = True
            await answer(protected, refusal_or_bug(problem), scope["method"] == "HEAD")
        except asyncio.CancelledError:  # at the end of the server, which has waited for a while
            if not begun:
                begun = instead = True
                await answer(protected, Refused(503, "the studio has ended; start it again"))
            raise
        finally:
            self._open -= 1

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, client = dict(scope["headers"]), ""
        try:
            self._check(scope, headers)
            client = scope["state"]["client"]
            if (
                self._sockets.get(client, 0) >= self.rates.open_sockets
                or sum(self._sockets.values()) >= 16 * self.rates.open_sockets
            ):
                client = ""
                raise Refused(429, "too many connections are open; close other tabs of the studio", 5)
            self._sockets[client] = self._sockets.get(client, 0) + 1
        except Refused as problem:
            self._count(problem.status)
            await receive()
            await _answer_handshake(send, problem, scope)
            return
        bucket = Bucket(*self.rates.messages)

        async def guarded_receive() -> Message:
            message = await receive()
            if message["type"] == "websocket.receive":
                size = len(message.get("text") or message.get("bytes") or "")
                if size > MESSAGE_BYTES or not bucket.take():
                    why = "message too large" if size > MESSAGE_BYTES else "too many messages"
                    self._count(429)
                    await send({"type": "websocket.close", "code": 1008, "reason": f"{why}; reconnect"})
                    return {"type": "websocket.disconnect", "code": 1008}
            return message

        try:
            await self.app(scope, guarded_receive, send)
        finally:
            self._sockets[client] -= 1
            if not self._sockets[client]:
                del self._sockets[client]

    def _check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Refuse what may not pass, and note the client in the scope."""
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if not self._is_ours(host):
            raise Refused(421, "this server does not answer to that host name; open it by the address it printed")
        self._check_origin(scope, headers, host)
        address = (scope.get("client") or ("unknown", 0))[0]
        query = _query(scope)
        named = headers.get(CLIENT_HEADER, b"").decode("latin-1") or query.get("client", [""])[0]
        client = f"{address} {named}" if _CLIENT.fullmatch(named) else address
        scope.setdefault("state", {})["client"] = client
        if not (self._bucket(f"a {address}", self.rates.address).take() and self._take_client(client)):
            raise Refused(429, "too many requests; wait a few seconds", 2)
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > _URL_BYTES:
            raise Refused(414, f"the URL is longer than {_URL_BYTES} bytes; shorten it")
        if self.token is not None and scope["path"] != "/health" and not self._knows_token(headers):
            if not self._bucket(f"t {address}", self.rates.wrong_tokens).take():
                raise Refused(429, "too many requests without the token; wait a minute", 60)
            raise Refused(401, "the token is missing or wrong; open the URL that `export3d studio` printed")

    def _take_client(self, client: str) -> bool:
        return self._bucket(f"c {client}", self.rates.client).take()

    def _bucket(self, key: str, rate: tuple[float, float]) -> Bucket:
        bucket = self._buckets.setdefault(key, Bucket(*rate))
        self._buckets.move_to_end(key)
        while len(self._buckets) > _REMEMBERED:
            self._buckets.popitem(last=False)
        return bucket

    def _is_ours(self, host: str) -> bool:
        """Whether a Host header names this server. An address as text cannot be rebound; names are listed."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
            urlsplit(f"//{host}").port  # noqa: B018 - raises for what is no port
        except ValueError:
            return False
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        return address.is_loopback or self._shared

    def _check_origin(self, scope: Scope, headers: dict[bytes, bytes], host: str) -> None:
        origin = headers.get(b"origin")
        changes = scope["type"] == "websocket" or scope["method"] not in _SAFE
        if origin is not None and changes:
            parts = origin.decode("latin-1").lower().partition("://")
            if parts[0] not in ("http", "https") or parts[2] != host:
                raise Refused(403, "a page of another site may not use this server; open the studio's own page")
        if headers.get(b"sec-fetch-site") == b"cross-site" and (changes or scope["path"].startswith("/api/")):
            raise Refused(403, "a page of another site may not use this server; open the studio's own page")

    def _knows_token(self, headers: dict[bytes, bytes]) -> bool:
        assert self.token is not None
        given = headers.get(b"authorization", b"").decode("latin-1")
        if given[:7].lower() == "bearer ":
            return _same(given[7:].strip(), self.token)
        cookies = (each.strip().partition("=") for each in headers.get(b"cookie", b"").decode("latin-1").split(";"))
        own = cookie_name(headers)
        return any(_same(value, self.token) for name, _, value in cookies if name == own)

    def _opens_page(self, scope: Scope, headers: dict[bytes, bytes]) -> bool:
        """Whether a request is for the page, by the URL with the token that was printed."""
        if self.token is None or scope["path"] != "/" or scope["method"] != "GET" or not scope["query_string"]:
            return False
        given = _query(scope).get("token", [""])[0]
        return self._is_ours(headers.get(b"host", b"").decode("latin-1").lower()) and _same(given, self.token)

    async def _give_cookie(self, headers: dict[bytes, bytes], send: Send) -> None:
        """Swap the token in the URL for a cookie. A redirect would not do: it would be sent without strict cookies."""
        cookie = f"{cookie_name(headers)}={self.token}; HttpOnly; SameSite=Strict; Path=/".encode()
        head = [(b"content-type", b"text/html; charset=utf-8"), (b"set-cookie", cookie)]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": _OPENING})

    def _count(self, status: int) -> None:
        if status >= 400:
            self.refused[status] = self.refused.get(status, 0) + 1


class _Body:
    """The body of a request, counted and timed while it arrives.

    Attributes:
        done: whether all of it has been read.
        refused: why it is read no further.
    """

    def __init__(self, receive: Receive, headers: dict[bytes, bytes], most: int) -> None:
        self._receive, self._headers, self._most = receive, headers, most
        self._got, self._since, self.done = 0, time.monotonic(), False
        self.refused: Refused | None = None

    async def check_announced(self) -> None:
        """Refuse a body whose length is known and too large."""
        text = self._headers.get(b"content-length", b"0")
        if not text.isdigit() or len(text) > 15 or int(text) > self._most:
            if b"expect" not in self._headers:
                await self._drain()
            raise self._too_large()

    async def receive(self) -> Message:
        """The next part of the body, as ASGI has it."""
        if self.done:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), _IDLE_S)
        except TimeoutError:
            raise self._too_slow() from None
        self.done = message["type"] != "http.request" or not message.get("more_body", False)
        self._got += len(message.get("body", b""))
        if self._got > self._most:
            await self._drain()
            raise self._too_large()
        elapsed = time.monotonic() - self._since
        if not self.done and elapsed > _GRACE_S and self._got < SLOWEST * (elapsed - _GRACE_S):
            raise self._too_slow()
        return message

    async def _drain(self) -> None:
        end = time.monotonic() + _DRAIN_S
        while not self.done and (left := end - time.monotonic()) > 0:
            try:
                message = await asyncio.wait_for(self._receive(), left)
            except TimeoutError:
                return
            self.done = message["type"] != "http.request" or not message.get("more_body", False)

    def _too_large(self) -> Refused:
        unit = f"{self._most / 1e6:g} MB" if self._most >= 1e6 else f"{self._most / 1e3:g} kB"
        self.refused = Refused(413, f"the request is larger than {unit}; send a smaller or shorter file")
        return self.refused

    def _too_slow(self) -> Refused:
        sentence = "the upload came too slowly and was stopped; send it again over a faster connection"
        self.refused = Refused(408, sentence)
        return self.refused


def cookie_name(headers: dict[bytes, bytes]) -> str:
    """The name of the cookie with the token, for the host and port that a request was sent to."""
    port = urlsplit(f"//{headers.get(b'host', b'').decode('latin-1')}").port
    return COOKIE if port is None else f"{COOKIE}-{port}"


def refusal_or_bug(problem: Exception) -> Refused:
    """The refusal for a failure; a bug is logged and told without details."""
    refused = refusal(problem)
    if refused is None:
        log.error("the server has a bug", exc_info=problem)
        refused = Refused(500, "something went wrong in the server; its terminal shows what")
    return refused


def security_headers(scope: Scope) -> Iterable[tuple[bytes, bytes]]:
    """The headers of every answer."""
    host = dict(scope["headers"]).get(b"host", b"")
    socket_of = b" ws://" + host + b" wss://" + host if re.fullmatch(rb"[\w.:\[\]-]{1,260}", host) else b""
    yield (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
        b"connect-src 'self'" + socket_of + b"; worker-src 'self'; manifest-src 'self'; base-uri 'none'; "
        b"form-action 'self'; frame-ancestors 'none'",
    )
    yield b"x-content-type-options", b"nosniff"
    yield b"x-frame-options", b"DENY"
    yield b"referrer-policy", b"no-referrer"
    yield b"cross-origin-opener-policy", b"same-origin"
    yield b"cross-origin-resource-policy", b"same-origin"
    yield b"permissions-policy", b"camera=(self), microphone=(self), geolocation=(), payment=(), usb=()"
    yield b"cache-control", b"no-cache" if scope["path"].startswith("/page/") else b"no-store"


async def answer(send: Send, refused: Refused, without_body: bool = False) -> None:
    """Send a refusal as JSON."""
    head, body = _as_json(refused)
    await send({"type": "http.response.start", "status": refused.status, "headers": head})
    await send({"type": "http.response.body", "body": b"" if without_body else body})


async def _answer_handshake(send: Send, refused: Refused, scope: Scope) -> None:
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": 1008})
        return
    head, body = _as_json(refused)
    head += security_headers(scope)
    await send({"type": "websocket.http.response.start", "status": refused.status, "headers": head})
    await send({"type": "websocket.http.response.body", "body": body})


def _as_json(refused: Refused) -> tuple[list[tuple[bytes, bytes]], bytes]:
    body = json.dumps({"error": str(refused)}).encode()
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refused.retry_s:
        head.append((b"retry-after", str(refused.retry_s).encode()))
    if refused.status in (408, 413):
        head.append((b"connection", b"close"))
    return head, body


def _without_ours(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """An app's headers without those that the guard sets."""
    ours = {name for name, _ in security_headers({"headers": [], "path": ""})}
    return [(name, value) for name, value in headers if name.lower() not in ours]


def _query(scope: Scope) -> dict[str, list[str]]:
    """The parameters in a URL."""
    try:
        return parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=50)
    except ValueError as problem:
        raise Refused(414, "the URL has more than 50 parameters; leave some out") from problem


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())
