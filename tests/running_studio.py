"""A studio that was started as a user starts it: a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx


class Studio:
    """`export3d studio`, ready.

    Args:
        folder: for its uploads and results.
        options: of the command.
        port: where it listens; 0 for any port that is free.

    Attributes:
        address: the URL that it printed, with its token.
        url: the same without a token or final slash.
        said: what it wrote before it was ready.
    """

    def __init__(self, folder: Path, *options: str | Path, port: int = 0) -> None:
        self.folder = folder
        command = [sys.executable, "-m", "export3d", "studio", "--no-browser", "--port", str(port), "--folder", folder]
        self.process = subprocess.Popen(
            [*map(str, command), *map(str, options)],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        assert self.process.stderr is not None
        self.said = ""
        while "ready at" not in self.said:
            line = self.process.stderr.readline()
            assert line, self.said
            self.said += line
        found = re.search(r"http://\S+", self.said)
        assert found is not None
        self.address = found[0]
        self.url = self.address.partition("?")[0].rstrip("/")

    @property
    def headers(self) -> dict[str, str]:
        """What lets a program in."""
        token = self.address.partition("token=")[2]
        return {"Authorization": f"Bearer {token}"} if token else {}

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rpartition(":")[2])

    def client(self) -> httpx.Client:
        """A program that may use it."""
        return httpx.Client(base_url=self.url, headers=self.headers, timeout=60)

    def leave(self, number: int) -> int:
        """Send a signal and wait for the end."""
        self.process.send_signal(number)
        code = self.process.wait(20)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


def ended(client: httpx.Client, job: dict[str, Any]) -> dict[str, Any]:
    """What a studio tells of a job when it has ended."""
    with client.stream("GET", f"/api/jobs/{job['id']}/events") as answer:
        told = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    return dict(told[-1])
