"""The socket: a port in use, clients that send no request, and the headers of the others."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("uvicorn", reason="the extra studio is not installed")

import uvicorn

from export3d.errors import ConfigError
from export3d.studio import serving
from export3d.studio.guard import Receive, Scope, Send
from export3d.studio.serving import Calm, Patience, listen


async def answer_ok(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a server that has little patience."""
    monkeypatch.setattr(serving, "_HEADERS_S", 0.3)
    config = uvicorn.Config(
        answer_ok,
        http=Patience,
        ws=Calm,
        log_config=None,
        lifespan="off",
        h11_max_incomplete_event_size=serving._HEADER_BYTES,
    )
    server = uvicorn.Server(config)
    with listen("127.0.0.1", 0) as sock:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([sock])))
        thread.start()
        yield sock.getsockname()[1]
        server.should_exit = True
        thread.join()


def talk(port: int, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """What the server says to these bytes until it hangs up."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        for part in parts:
            client.sendall(part)
            time.sleep(pause_s)
        said = b""
        while part := client.recv(4096):
            said += part
    return said


def was_cut(sending: socket.socket, part: bytes, pause_s: float = 0.05) -> bool:
    """Whether the connection breaks while parts are sent to it."""
    for _ in range(200):
        try:
            sending.sendall(part)
        except OSError:
            return True
        time.sleep(pause_s)
    return False


def test_a_request_is_answered(port: int) -> None:
    assert talk(port, b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").endswith(b"ok")


@pytest.mark.parametrize("parts", [[], [b"GET / HTTP/1.1\r\n"], [b"GET", b" /", b" HT"]], ids=["none", "half", "slow"])
def test_who_sends_no_request_is_hung_up_on(port: int, parts: list[bytes]) -> None:
    begun = time.monotonic()
    said = talk(port, *parts, pause_s=0.05)
    assert said.startswith(b"HTTP/1.1 408")
    assert "slowly" in json.loads(said.partition(b"\r\n\r\n")[2])["error"]
    assert time.monotonic() - begun < 2.0


def test_a_second_request_must_come_too(port: int) -> None:
    said = talk(port, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", b"GET /", pause_s=0.1)
    assert (said.count(b"HTTP/1.1 200"), said.count(b"HTTP/1.1 408")) == (1, 1)


def test_a_body_that_nobody_reads_must_come_too(port: int) -> None:
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 60000\r\n\r\n")
        assert was_cut(client, b"a")
    assert time.monotonic() - begun < 5.0


def test_a_large_body_that_nobody_reads_may_come(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")
        begun = time.monotonic()
        while time.monotonic() - begun < 3.0 * serving._HEADERS_S:
            client.sendall(b"2710\r\n" + b"a" * 10_000 + b"\r\n")
        client.sendall(b"0\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        said = b""
        while part := client.recv(4096):
            said += part
    assert said.count(b"HTTP/1.1 200") == 2


def test_connections_are_not_without_number(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_FROM_ONE", 2)
    request = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port)), socket.create_connection(("127.0.0.1", port)):
        said = talk(port, pause_s=0.1)
        assert said.startswith(b"HTTP/1.1 503")
        assert "connections" in json.loads(said.partition(b"\r\n\r\n")[2])["error"]
    time.sleep(0.1)
    assert talk(port, request).endswith(b"ok")


@pytest.mark.parametrize("frame", [b"\x89\x80\0\0\0\0", b"\x00\x80\0\0\0\0"], ids=["ping", "empty part"])
def test_frames_that_are_no_messages_have_a_rate(port: int, frame: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(
            b"GET / HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
            b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\nsec-websocket-version: 13\r\n\r\n"
        )
        assert client.recv(4096).startswith(b"HTTP/1.1 101")
        client.sendall(b"\x01\x80\0\0\0\0")
        assert was_cut(client, frame * 20)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system has no such limit")
def test_who_takes_no_answer_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_STALLED_S", 0.5)
    with listen("127.0.0.1", 0) as server, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(server.getsockname())
        server.setblocking(True)
        accepted, _ = server.accept()
        with accepted:
            assert was_cut(accepted, b"a" * 65_536, pause_s=0.0)


@pytest.mark.parametrize("text", [b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"GET / HTTP/1.1\r\na: " + b"b" * 20_000])
def test_what_is_no_request_is_told_so(port: int, text: bytes) -> None:
    said = talk(port, text)
    assert said.startswith(b"HTTP/1.1 400")
    assert "headers" in json.loads(said.partition(b"\r\n\r\n")[2])["error"]


LIVING = """
from export3d.studio.serving import _Server, listen
import uvicorn

async def app(scope, receive, send):
    for word in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{word}.complete"})
        print(word, flush=True)

_Server(uvicorn.Config(app, lifespan="on", log_config=None)).run([listen("127.0.0.1", 0)])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system's terminals send no such signal")
@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP"])
def test_the_server_ends_in_order_by_every_signal_of_a_terminal(number: str) -> None:
    child = subprocess.Popen([sys.executable, "-c", LIVING], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "startup\n"
    child.send_signal(signal.Signals[number])
    assert child.communicate(timeout=20)[0] == "shutdown\n"
    assert child.returncode == -signal.Signals[number]


def test_ports_and_addresses_that_cannot_be(port: int) -> None:
    for host, number, words in (
        ("127.0.0.1", port, "in use"),
        ("127.0.0.1", 70_000, "not possible"),
        ("192.0.2.1", 0, "no address"),
    ):
        with pytest.raises(ConfigError, match=words):
            listen(host, number)


def test_small_messages_are_sent_at_once() -> None:
    """The answer about a head goes out as two messages; waiting for the first one's receipt would cost 40 ms."""
    with listen("127.0.0.1", 0) as server, socket.create_connection(server.getsockname()):
        server.setblocking(True)
        accepted, _ = server.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
