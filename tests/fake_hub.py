"""A Hugging Face Hub of a few lines on loopback: enough of its protocol for the real client to fetch and to push."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Repo:
    """One repository: commits, oldest first, each with all its files."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        return list(self.commits.values())[-1] if self.commits else {}

    def commit(self, files: dict[str, bytes], message: str = "") -> str:
        """Add files; returns the commit's name."""
        name = hashlib.sha1(f"{len(self.commits)}{message}".encode()).hexdigest()
        self.commits[name] = {**self.files, **files}
        self.messages.append(message)
        return name

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main" and self.commits:
            revision = list(self.commits)[-1]
        return (revision, self.commits[revision]) if revision in self.commits else None


class FakeHub:
    """Repositories by name, what was asked for, and what breaks.

    Attributes:
        asked: method, path and token of every request that is about repositories.
        lfs: names of files that are uploaded by git-lfs's protocol, as the Hub wants large ones; others are inline.
        may_write: whether pushing is allowed.
        broken: a status that every request is answered with.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.asked: list[tuple[str, str, str]] = []
        self.lfs: set[str] = {"model.safetensors"}
        self.stored: dict[str, bytes] = {}
        self.may_write = True
        self.broken = 0
        self.address = ""

    def repo(self, name: str, folder: Path | None = None, **settings: Any) -> Repo:
        """A new repository with the files of a folder."""
        self.repos[name] = Repo(**settings)
        if folder is not None:
            self.repos[name].commit({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
        return self.repos[name]

    def downloads(self) -> list[str]:
        """Names of the files that were fetched, with repetitions."""
        return [path.rsplit("/", 1)[1] for method, path, _ in self.asked if method == "GET" and "/resolve/" in path]


@contextmanager
def serving() -> Iterator[FakeHub]:
    """A hub that answers while the block runs."""
    hub = FakeHub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    timeout = 10

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def do_POST(self) -> None:
        self._route()

    def do_PUT(self) -> None:
        self._route()

    def _route(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        parts = path.strip("/").split("/")
        if path != "/api/agent-harnesses":  # of which the client asks every hub
            self.hub.asked.append((self.command, path, token))
        if self.hub.broken:
            self._send(self.hub.broken)
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif parts[0] == "lfs":
            self.hub.stored[parts[1]] = body
            self._send(200)
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        else:
            self._in_a_repository(parts, token, body)

    def _in_a_repository(self, parts: list[str], token: str, body: bytes) -> None:
        api = parts[:2] == ["api", "models"]
        owner, name, *rest = parts[2:] if api else parts
        repo = self.hub.repos.get(f"{owner}/{name}")
        if repo is None or (repo.private and not token):
            self._send(404, error="RepoNotFound")
        elif api and not rest:
            self._json({"id": f"{owner}/{name}", "private": repo.private, "siblings": []})
        elif api and not self.hub.may_write:
            self._send(403, error="Forbidden")
        elif api and rest[0] == "preupload":
            files = [entry["path"] for entry in json.loads(body)["files"]]
            modes = {path: "lfs" if path in self.hub.lfs else "regular" for path in files}
            self._json({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]})
        elif api and rest[0] == "commit":
            self._commit(f"{owner}/{name}", repo, body)
        elif rest and rest[0] == "resolve":
            self._resolve(repo, rest[1], "/".join(rest[2:]))
        else:
            self._send(404)

    def _resolve(self, repo: Repo, revision: str, path: str) -> None:
        found = repo.at(revision)
        if repo.gated:
            self._send(403, error="GatedRepo")
        elif found is None:
            self._send(404, error="RevisionNotFound")
        elif path not in found[1]:
            self._send(404, error="EntryNotFound", commit=found[0])
        else:
            self._send(200, found[1][path], commit=found[0])

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted.get('organization')}/{wanted['name']}"
        if not self.hub.may_write:
            self._send(403, error="Forbidden")
        elif name in self.hub.repos:
            self._json({"url": f"{self.hub.address}/{name}", "error": "You already created this repo"}, 409)
        else:
            private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
            self.hub.repo(name, private=private)
            self._json({"url": f"{self.hub.address}/{name}"})

    def _batch(self, wanted: dict[str, Any]) -> None:
        objects = [
            {**entry, "actions": {"upload": {"href": f"{self.hub.address}/lfs/{entry['oid']}"}}}
            for entry in wanted["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, name: str, repo: Repo, body: bytes) -> None:
        files, message = {}, ""
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                data = self.hub.stored[value["oid"]]
                assert hashlib.sha256(data).hexdigest() == value["oid"]
                files[value["path"]] = data
        commit = repo.commit(files, message)
        self._json({"commitUrl": f"{self.hub.address}/{name}/commit/{commit}", "commitOid": commit})

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), kind="application/json")

    def _send(
        self, status: int, body: bytes = b"", *, error: str = "", commit: str = "", kind: str = "text/plain"
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if error:
            self.send_header("X-Error-Code", error)
        if commit:
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
