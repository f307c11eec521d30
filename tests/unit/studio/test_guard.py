"""The door: other hosts and origins, tokens, sizes, rates and slow clients, each answered by a sentence."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra studio is not installed")

from fastapi.testclient import TestClient
from starlette.testclient import WebSocketDenialResponse

from export3d.studio import guard as module
from export3d.studio.guard import COOKIE, Bucket, Guard, Message, Rates, Receive, Scope, Send

MakeApp = Callable[..., Guard]
HOST = "127.0.0.1:7860"
HEAD = f"ws://{HOST}/api/head"


def client_of(app: Guard, host: str = HOST, address: str = "127.0.0.1") -> TestClient:
    return TestClient(app, base_url=f"http://{host}", client=(address, 1))


@pytest.mark.parametrize("host", [HOST, "localhost:7860", "LOCALHOST", "[::1]:7860", "127.0.0.2:1"])
def test_loopback_is_served(app: Guard, host: str) -> None:
    assert client_of(app).get("/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:7860",
        "127.0.0.1.evil.example",
        "192.168.1.2:7860",
        "",
        "localhost:x",
        "[::1",
        "@a",
    ],
)
def test_a_name_that_was_rebound_is_refused(app: Guard, host: str) -> None:
    answer = client_of(app).get("/api/info", headers={"host": host})
    assert answer.status_code == 421
    assert "host name" in answer.json()["error"]


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", f"http://{HOST}.evil.example", "http://localhost:3000", "file://", ""]
)
def test_pages_of_other_sites_change_nothing_and_open_no_socket(app: Guard, origin: str) -> None:
    client = client_of(app)
    answer = client.post("/api/jobs", json={}, headers={"origin": origin})
    assert (answer.status_code, list(answer.json())) == (403, ["error"])
    assert client.delete("/api/jobs/x", headers={"origin": origin}).status_code == 403
    with (
        pytest.raises(WebSocketDenialResponse) as refused,
        client.websocket_connect(HEAD, headers={"origin": origin}),
    ):
        pass
    assert refused.value.status_code == 403


def test_our_own_page_and_programs_pass(app: Guard) -> None:
    client = client_of(app)
    for headers in ({"origin": f"http://{HOST}"}, {}):
        assert client.post("/api/jobs", json={}, headers=headers).status_code == 400
        with client.websocket_connect(HEAD, headers=headers):
            pass
    cross = client.get("/api/info", headers={"sec-fetch-site": "cross-site"})
    assert cross.status_code == 403


def test_a_shared_server_asks_for_its_token(make_app: MakeApp) -> None:
    app = make_app(shared_on="0.0.0.0", token="sesame")
    client = client_of(app, "192.168.1.2:7860", "192.168.1.9")
    assert client.get("/health").status_code == 200, "a container is checked without it"
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"cookie": f"{COOKIE}-7860=wrong"},
        {"authorization": "sesame"},
    ):
        answer = client.get("/api/info", headers=headers)
        assert answer.status_code == 401
        assert "token" in answer.json()["error"]
    with pytest.raises(WebSocketDenialResponse), client.websocket_connect("ws://192.168.1.2:7860/api/head"):
        pass
    info = client.get("/api/info", headers={"authorization": "Bearer sesame"}).json()
    assert info["policy"] == {"label": "forced", "consent": "open"}
    assert client.get("/?token=wrong").status_code == 401
    opened = client.get("/?token=sesame")
    assert opened.status_code == 200
    assert "sesame" not in opened.text
    for word in ("HttpOnly", "SameSite=Strict", "Path=/"):
        assert word in opened.headers["set-cookie"]
    assert client.get("/api/info").status_code == 200, "by the cookie"
    assert client.get("/api/info", headers={"host": "evil.example"}).status_code == 421
    beside = client.get("/api/info", headers={"host": "192.168.1.2:7861"})
    assert beside.status_code == 401, "a studio at another port has another cookie"


def test_tokens_cannot_be_guessed_quickly(make_app: MakeApp) -> None:
    app = make_app(shared_on="0.0.0.0", token="sesame")
    client = client_of(app, "10.0.0.1:7860", "10.0.0.7")
    states = [client.get("/", headers={"authorization": f"Bearer {n}"}).status_code for n in range(15)]
    assert states == [401] * 10 + [429] * 5


def test_every_answer_has_strict_headers(app: Guard) -> None:
    client = client_of(app)
    for path in ("/api/info", "/health", "/nowhere", "/api"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in headers
    injected = client.get("/health", headers={"host": "localhost:1; script-src *"})
    assert "script-src *" not in injected.headers["content-security-policy"]


def test_clients_have_rates_of_their_own(make_app: MakeApp) -> None:
    app = make_app(rates=Rates(client=(0.001, 3.0), address=(0.001, 8.0)))
    client = client_of(app)
    mine = [client.get("/health", headers={"x-export3d-client": "a"}).status_code for _ in range(5)]
    assert mine == [200] * 3 + [429] * 2
    assert client.get("/health", headers={"x-export3d-client": "b"}).status_code == 200
    many = [client.get("/health", headers={"x-export3d-client": f"c{n}"}) for n in range(4)]
    assert [one.status_code for one in many] == [200, 200, 429, 429], "new names do not help"
    assert many[-1].headers["retry-after"]


def test_a_bucket_refills() -> None:
    bucket = Bucket(10.0, 2.0)
    assert [bucket.take() for _ in range(3)] == [True, True, False]
    bucket.since -= 0.1
    assert bucket.take()


@pytest.mark.parametrize("query", ["a" * 5000, "a=b&" * 60])
def test_long_urls_are_refused(app: Guard, query: str) -> None:
    answer = client_of(app).get(f"/api/info?{query}")
    assert (answer.status_code, "URL" in answer.json()["error"]) == (414, True)


def test_messages_have_a_size_and_a_rate(make_app: MakeApp) -> None:
    app = make_app(rates=Rates(messages=(0.001, 3.0)))
    assert "too large" in _closed(app, ["x" * 20_000])
    assert "too many messages" in _closed(app, ["{}"] * 4)


def _closed(app: Guard, messages: list[str]) -> str:
    """Why a socket is closed after these messages."""
    with client_of(app) as client, client.websocket_connect(HEAD) as socket:
        for message in messages:
            socket.send_text(message)
        while (answer := socket.receive())["type"] != "websocket.close":
            pass
    assert answer["code"] == 1008
    return str(answer["reason"])


def test_a_client_has_few_sockets(make_app: MakeApp) -> None:
    app = make_app(rates=Rates(open_sockets=1))
    client = client_of(app)
    with (
        client.websocket_connect(HEAD),
        client.websocket_connect(HEAD + "?client=other"),
        pytest.raises(WebSocketDenialResponse) as refused,
        client.websocket_connect(HEAD),
    ):
        pass
    assert refused.value.status_code == 429
    with client.websocket_connect(HEAD):
        pass


async def _asked(parts: list[tuple[float, bytes]], app: Any, path: str = "/api/jobs") -> tuple[int, dict[str, str]]:
    """The answer to a POST whose body comes in parts, each after a pause."""
    answers: list[Message] = []
    waiting = list(parts)

    async def receive() -> Message:
        if not waiting:
            await asyncio.sleep(60)
        pause, body = waiting.pop(0)
        await asyncio.sleep(pause)
        return {"type": "http.request", "body": body, "more_body": True}

    async def send(message: Message) -> None:
        answers.append(message)

    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
        "headers": [(b"host", HOST.encode())], "client": ("127.0.0.1", 1), "state": {},
    }  # fmt: skip
    with suppress(asyncio.CancelledError):
        await Guard(app)(scope, receive, send)
    return answers[0]["status"], json.loads(answers[1]["body"])


async def _reader(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that reads the body, and hides what it meets meanwhile."""
    try:
        while (await receive()).get("more_body"):
            pass
    except Exception:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"oops"})


@pytest.mark.parametrize(
    "parts", [[], [(0.0, b"x")] * 3, [(0.02, b"x")] * 50], ids=["silent", "stops in the middle", "a byte at a time"]
)
def test_slow_clients_are_cut(parts: list[tuple[float, bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_IDLE_S", 0.1)
    monkeypatch.setattr(module, "_GRACE_S", 0.2)
    begun = time.monotonic()
    status, body = asyncio.run(_asked(parts, _reader))
    assert (status, "slowly" in body["error"]) == (408, True)
    assert time.monotonic() - begun < 1.0


def test_a_server_that_ends_says_so_to_those_who_wait() -> None:
    async def use() -> tuple[int, dict[str, str]]:
        asking = asyncio.ensure_future(_asked([], _reader))
        await asyncio.sleep(0.05)
        asking.cancel()
        return await asking

    status, body = asyncio.run(use())
    assert (status, "has ended" in body["error"]) == (503, True)


def test_a_bug_of_the_app_is_a_sentence_without_details(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError("secret")

    status, body = asyncio.run(_asked([(0.0, b"")], broken))
    assert status == 500
    assert "secret" not in body["error"]
    assert "secret" in caplog.text
