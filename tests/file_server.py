"""A folder on loopback: hands out files and nothing else (no listings), and breaks on demand."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote


class FileServer:
    """What is served and what was asked for.

    Attributes:
        address: URL of the folder.
        asked: paths, in order.
        faults: how the next requests for tars are answered, first to last: a status, or "cut" (half of the file, then
            the connection ends) or "short" (half of the file as if it were all).
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.address = folder, ""
        self.asked: list[str] = []
        self.faults: list[int | str] = []


@contextmanager
def serving(folder: Path) -> Iterator[FileServer]:
    """Serve a folder while the block runs."""
    state = FileServer(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:  # s3fs asks so
            self.do_GET()

        def do_GET(self) -> None:
            state.asked.append(self.path)
            path = folder / unquote(self.path.lstrip("/"))
            fault = state.faults.pop(0) if state.faults and path.suffix == ".tar" else 200
            if isinstance(fault, int) and fault != 200:
                return self.send_error(fault)
            if not path.is_file():
                return self.send_error(404)
            data = path.read_bytes()
            half = data[: len(data) // 2]
            self.send_response(200)
            self.send_header("Content-Length", str(len(half if fault == "short" else data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data if fault == 200 else half)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
