"""Sends the 500 hostile files, and malformed requests, to a studio over HTTP: the second table in docs/studio.md.

    python benchmarks/hostile_requests.py

Starts a studio of its own. Every answer must be a sentence, or what was asked for, within 10 s; the server and its
children stay under 2 GB and answer afterwards as before.
"""

from __future__ import annotations

import argparse
import base64
import json
import queue
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hostile_files import Case, cases, picture
from hostile_uploads import LONGEST_S, LONGEST_SENTENCE, Memory, Row, table

MOST_MEMORY = 2_000_000_000
Answer = tuple[int, bytes]


def exchanged(port: int, data: bytes, body: Path | None = None, patience_s: float = 60.0) -> Answer:
    """Send bytes, then a file, and read the answer: its status (0: closed without one) and body."""
    with socket.create_connection(("127.0.0.1", port), patience_s) as line:
        try:
            line.sendall(data)
            if body is not None:
                with body.open("rb") as file:
                    while part := file.read(1 << 20):
                        line.sendall(part)
        except OSError:  # refused while it was sent; the answer is there to be read
            pass
        got = b""
        try:
            while part := line.recv(1 << 16):
                got += part
        except OSError:
            pass
    head, _, rest = got.partition(b"\r\n\r\n")
    if b"chunked" in head:
        rest = b"".join(re.findall(rb"[0-9a-f]+\r\n(.+?)\r\n", rest, re.DOTALL))
    status = re.match(rb"HTTP/1\.1 (\d+)", head)
    return (int(status[1]) if status else 0), rest


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """A request that closes its connection; a header that is given in place of one of these replaces it."""
    given = {"host": "127.0.0.1", "connection": "close", "content-length": str(len(body))}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1", "replace") + body


def sentence_of(answer: Answer) -> str | None:
    """The sentence of a refusal in JSON, or in plain text from the HTTP parser itself; None if there is none."""
    try:
        return str(json.loads(answer[1])["error"])
    except (ValueError, KeyError, TypeError):
        plain = answer[1].decode("utf-8", "replace")
        return plain if answer[0] == 400 and plain == "Invalid HTTP request received." else None


def judged(row: Row, name: str, answer: Answer, took: float, limit: float = LONGEST_S) -> None:
    """Count an answer, and note what is wrong with it."""
    row.slowest_s = max(row.slowest_s, took)
    status, body = answer
    if took > limit:
        row.faults.append(f"{name}: took {took:.1f} s")
    if 200 <= status < 400:
        row.taken += 1
        return
    row.refused += 1
    sentence = sentence_of(answer)
    if sentence is None:
        row.faults.append(f"{name}: {status} without a sentence: {body[:200]!r}")
    elif not (8 < len(sentence) < LONGEST_SENTENCE) or not sentence.isprintable() or "/tmp/" in sentence:
        row.faults.append(f"{name}: {status} {sentence!r}")
    elif status >= 500 and status not in (503, 507):
        row.faults.append(f"{name}: {status} {sentence}")


def send_files(port: int, memory: Memory, folder: Path, groups: list[str]) -> dict[str, Row]:
    """Send all files, two at a time, one group after the other."""
    waiting: dict[str, list[Case]] = defaultdict(list)
    for case in cases():
        if not groups or any(name in case.group for name in groups):
            waiting[case.group].append(case)
    rows: dict[str, Row] = defaultdict(Row)

    def worker(number: int, group: str, left: queue.SimpleQueue[Case]) -> None:
        while not left.empty():
            case = left.get()
            path = folder / f"file-{number}"
            case.make(path)
            where = f"/api/verify?name={quote(case.name[:3000], safe='', errors='replace')}"
            if case.verb != "verify":
                where = where.replace("verify?", f"uploads?kind={case.verb}&")
            begun = time.monotonic()
            answer = exchanged(port, request("POST", where, content_length=str(path.stat().st_size)), path)
            limit = LONGEST_S if case.verb != "verify" else 60.0
            judged(rows[group], f"{case.name[:50]!r} ({case.verb})", answer, time.monotonic() - begun, limit)
            path.unlink()

    for group, those in waiting.items():
        memory.peak = 0
        left: queue.SimpleQueue[Case] = queue.SimpleQueue()
        for case in those:
            left.put(case)
        threads = [threading.Thread(target=worker, args=(number, group, left)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rows[group].peak = memory.peak
        print(f"{group}: {rows[group]}", file=sys.stderr, flush=True)
    return rows


ROUTES = (
    "/", "/api", "/api/info", "/api/uploads", "/api/uploads/x", "/api/uploads/x/filmstrip.webp", "/api/jobs",
    "/api/jobs/x", "/api/jobs/x/events", "/api/jobs/x/preview", "/api/jobs/x/files/video.mp4", "/api/verify",
    "/api/command", "/api/head", "/health", "/metrics", "/openapi.json", "/page/x.js",
)  # fmt: skip
PATHS = (
    "/page/../../../../etc/passwd", "/page/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "/page/..%2f..%2f..%2fetc%2fpasswd",
    "/page//etc/passwd", "/page/%00", "//etc/passwd", "/page/..\\..\\x", "/api/jobs/../../x", "/%ff%fe",
    "/api/uploads/%2e%2e/filmstrip.webp", "/api/jobs/..%2f..%2fx/files/..%2f..%2fetc%2fpasswd", "/" + "a" * 3000,
    "/" + "a" * 100_000, "/api/info?" + "a=b&" * 900, "/gradio/../api/info", "/gradio/gradio_api/file=/etc/passwd",
    "/gradio/gradio_api/file=http://127.0.0.1:9/", "/gradio/theme.css", "/docs", "/redoc", "*", "http://x/",
)  # fmt: skip
BODIES: tuple[Any, ...] = (
    b"", b"{", b"[]", b"null", b"\xff\xfe", b"NaN", b'"animate"', b"[" * 30_000, b'{"a":' * 10_000, b"1e999",
    {}, {"verb": "x"}, {"verb": None}, {"verb": ["edit"]}, {"verb": "edit"}, {"verb": "edit", "portrait": "../x"},
    {"verb": "edit", "portrait": "bundled", "yaw": "x"}, {"verb": "edit", "portrait": "bundled", "yaw": 1e308},
    {"verb": "edit", "portrait": "bundled", "scores": {"jawOpen": 9}},
    {"verb": "edit", "portrait": "bundled", "scores": {"../x": 1}},
    {"verb": "edit", "portrait": "bundled", "basis": {"99": 1}},
    {"verb": "edit", "portrait": "bundled", "basis": {"-1": 1}}, {"verb": "edit", "portrait": ["bundled"]},
    {"verb": "edit", "portrait": "bundled", "size": 10**9}, {"verb": "edit", "portrait": "bundled", "size": -1},
    {"verb": "edit", "portrait": "bundled", "background": "/etc/passwd"},
    {"verb": "edit", "portrait": "bundled", "background": "#gggggg"},
    {"verb": "edit", "portrait": "bundled", "unknown": 1}, {"verb": "edit", "portrait": "bundled", "face": 10**20},
    {"verb": "edit", "portrait": "bundled", "face": "\u202e\0"}, {"verb": "edit", "portrait": "x" * 50_000},
    {"verb": "animate", "portrait": "bundled"}, {"verb": "animate", "portrait": "bundled", "motion": "../speech"},
    {"verb": "animate", "portrait": "bundled", "motion": "speech", "driving": "x"},
    {"verb": "animate", "portrait": "bundled", "motion": "speech", "start": -1},
    {"verb": "animate", "portrait": "bundled", "motion": "speech", "seconds": 0},
    {"verb": "animate", "portrait": "bundled", "motion": "speech", "start": 1e300},
    {"verb": "orbit", "portrait": "bundled", "seconds": 1e9}, {"verb": "orbit", "portrait": "bundled", "path": "../x"},
    {"verb": "track", "driving": "bundled"}, {"verb": "track", "driving": "0" * 32}, {"verb": "x" * 60_000},
)  # fmt: skip


def requests() -> Iterator[tuple[str, str, bytes]]:
    """Malformed requests: the row of the table, a name, and the bytes."""
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "HEAD", "X" * 300):
        for path in ROUTES if method != "GET" else ():
            if method not in ("HEAD", "OPTIONS"):
                yield "wrong methods", f"{method[:9]} {path}", request(method, path)
    for path in PATHS:
        yield "paths", path[:60], request("GET", path)
    for path in ("/api/jobs", "/api/command"):
        for body in BODIES:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            if path == "/api/jobs" and data == b"":
                data = b" "
            yield "JSON", f"{path} {data[:60]!r}", request("POST", path, data, content_type="application/json")
    yield from _hosts()
    yield from _forms()
    yield from _framing()


def _hosts() -> Iterator[tuple[str, str, bytes]]:
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.", "", "a" * 5000, "127.0.0.1:x", "[::1", "0"):
        yield "hosts and origins", f"host {host[:40]}", request("GET", "/api/info", host=host)
    for origin in ("http://evil.example", "null", "file://", "http://127.0.0.1.evil.example", "x"):
        yield "hosts and origins", f"origin {origin}", request("POST", "/api/command", b"{}", origin=origin)
        yield "hosts and origins", f"socket {origin}", request(
            "GET", "/api/head", origin=origin, connection="upgrade", upgrade="websocket",
            sec_websocket_version="13", sec_websocket_key=base64.b64encode(bytes(16)).decode(),
        )  # fmt: skip


def _forms() -> Iterator[tuple[str, str, bytes]]:
    import io

    data = io.BytesIO()
    picture(64, 64).save(data, "PNG")
    file, path = data.getvalue(), "/api/uploads?kind=photo"
    part = '--b\r\ncontent-disposition: form-data; name="file"; filename="{}"\r\n\r\n'
    forms = {
        "no boundary": (b"--b\r\n", "multipart/form-data"),
        "a long boundary": (b"--b\r\n", "multipart/form-data; boundary=" + "b" * 5000),
        "no file": (b'--b\r\ncontent-disposition: form-data; name="a"\r\n\r\n1\r\n--b--\r\n', ""),
        "two files": ((part.format("a.png").encode() + file + b"\r\n") * 2 + b"--b--\r\n", ""),
        "no end": (part.format("a.png").encode() + file, ""),
        "many parts": (b'--b\r\ncontent-disposition: form-data; name="a"\r\n\r\n1\r\n' * 20_000 + b"--b--\r\n", ""),
        "many headers": (b"--b\r\n" + b"a: b\r\n" * 20_000 + b"\r\n--b--\r\n", ""),
        "a long header": (b"--b\r\na: " + b"b" * 2_000_000 + b"\r\n\r\n--b--\r\n", ""),
        "nested": (b"--b\r\ncontent-type: multipart/mixed; boundary=c\r\n\r\n--c\r\n\r\n--c--\r\n--b--\r\n", ""),
        "nothing": (b"", ""),
        "only the end": (b"--b--\r\n", ""),
    }
    for name in ("../../etc/passwd", "a\0.png", "a" * 5000, 'a"; filename="/etc/x', "\xff\xfe", ""):
        forms[f"file {name[:20]!r}"] = (part.format(name).encode("latin-1") + file + b"\r\n--b--\r\n", "")
    for name, (body, kind) in forms.items():
        yield "forms", name, request("POST", path, body, content_type=kind or "multipart/form-data; boundary=b")
    for kind in ("", "x", "photo&kind=video", "../photo", "%00"):
        yield "forms", f"kind {kind}", request("POST", f"/api/uploads?kind={kind}&name=a.png", file)


def _framing() -> Iterator[tuple[str, str, bytes]]:
    group = "broken HTTP"
    upload = "/api/uploads?kind=photo&name=a.png"
    for name, data in {
        "no HTTP": b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n",
        "version": b"GET / HTTP/9.9\r\nhost: 127.0.0.1\r\n\r\n",
        "old version": b"GET /health\r\n\r\n",
        "no host": b"GET /api/info HTTP/1.1\r\nconnection: close\r\n\r\n",
        "two hosts": b"GET /api/info HTTP/1.1\r\nhost: 127.0.0.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n",
        "many headers": request("GET", "/api/info", **{f"x{k}": "y" for k in range(3000)}),
        "a large header": request("GET", "/api/info", x="y" * 200_000),
        "a negative length": request("POST", upload, content_length="-1"),
        "a huge length": request("POST", upload, content_length=str(10**18)),
        "no number": request("POST", upload, content_length="x"),
        "two lengths": request("POST", upload, b"x", Content_Length="5"),
        "both framings": request("POST", upload, b"0\r\n\r\n", transfer_encoding="chunked"),
        "a bad chunk": request("POST", upload, b"zz\r\n", transfer_encoding="chunked").replace(
            b"content-length: 4\r\n", b""
        ),
        "another encoding": request("POST", upload, b"x" * 50, content_encoding="gzip"),
        "smuggling": request(
            "POST", "/api/command", b"{}GET /api/info HTTP/1.1\r\nhost: evil\r\n\r\n", content_length="2"
        ),
        "a range": request("GET", "/page/x.js", range="bytes=" + "0-1," * 2000),
        "an expectation": request("POST", upload, b"x" * 50, expect="200-maybe"),
        "a cookie": request("GET", "/api/info", cookie="export3d-studio=" + "x" * 3000),
        "an authorization": request("GET", "/api/info", authorization="Bearer \xff"),
        "a client": request("GET", "/api/info", x_export3d_client="../" * 100),
    }.items():
        yield group, name, data


def send_requests(port: int, memory: Memory) -> dict[str, Row]:
    """Send all malformed requests, one after the other."""
    rows: dict[str, Row] = defaultdict(Row)
    for group, name, data in requests():
        if not rows[group].taken + rows[group].refused:
            memory.peak = 0
        begun = time.monotonic()
        try:
            answer = exchanged(port, data, patience_s=15.0)
        except OSError as problem:
            answer = (0, repr(problem).encode())
        judged(rows[group], name, answer, time.monotonic() - begun, 16.0)
        rows[group].peak = memory.peak
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="groups of files by a part of their name")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hostile-") as name:
        folder = Path(name)
        (folder / "studio").mkdir()
        command = [sys.executable, "-m", "export3d", "studio", "--port", "0", "--no-browser"]
        server = subprocess.Popen([*command, "--folder", str(folder / "studio")], stderr=subprocess.PIPE, text=True)
        try:
            port = _port(server)
            memory = Memory(True)
            rows = send_requests(port, memory)
            rows |= send_files(port, memory, folder, given.only)
            status, health = exchanged(port, request("GET", "/health"))
            print(table(rows))
            faults = [f"{group}: {fault}" for group, row in rows.items() for fault in row.faults]
            if status != 200 or b'"ok"' not in health or server.poll() is not None:
                faults.append(f"the server is no longer well: {status} {health[:200]!r}")
            if (most := max(row.peak for row in rows.values())) > MOST_MEMORY:
                faults.append(f"{most / 1e6:.0f} MB of memory")
        finally:
            server.terminate()
            server.wait(30)
        faults += [f"left behind: {path}" for path in (folder / "studio").iterdir()]
    print(f"\n{sum(row.taken + row.refused for row in rows.values())} requests, {len(faults)} faults")
    print("\n".join(faults))
    return 1 if faults else 0


def _port(server: subprocess.Popen[str]) -> int:
    """The port of a server, once it is ready; what it says afterwards goes to our own stderr."""
    assert server.stderr is not None
    for line in server.stderr:
        sys.stderr.write(line)
        if found := re.search(r"ready at http://127\.0\.0\.1:(\d+)/", line):
            threading.Thread(
                target=lambda: [sys.stderr.write(more) for more in server.stderr or ()], daemon=True
            ).start()
            while b'"ok"' not in exchanged(int(found[1]), request("GET", "/health"))[1]:
                time.sleep(0.2)
            return int(found[1])
    raise SystemExit("the studio did not start")


if __name__ == "__main__":
    sys.exit(main())
