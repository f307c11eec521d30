"""A studio that runs as users start it, for `studio_load.py` and `studio_kill.py`: its processes and their memory."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

PREFIX = "export3d-studio-"
STARTING_S = 180.0


@dataclass(frozen=True)
class Child:
    """A process of the studio: its number, "server", "engine" or "intake", and resident memory, MB."""

    pid: int
    kind: str
    mb: float


class Studio:
    """The command `export3d studio` on a free port of the loopback; `said` is what it wrote.

    Args:
        folder: for its workspace.
        options: further ones of the command.
    """

    def __init__(self, folder: Path, options: Sequence[str] = ()) -> None:
        self.folder = folder
        command = [sys.executable, "-m", "export3d", "studio", "--port", "0", "--no-browser", "--folder", str(folder)]
        self.process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True, start_new_session=True)
        self.said: list[str] = []
        self.url = ""
        self._ready = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line.rstrip())
            if "ready at" in line:
                self.url = re.findall(r"http://[^\s/]+", line)[0]
                self._ready.set()
        self._ready.set()

    def wait(self) -> str:
        """Its address, once it renders; ends the program if it does not start."""
        if not self._ready.wait(STARTING_S) or not self.url:
            self.end()
            raise SystemExit("the studio did not start:\n" + "\n".join(self.said))
        return self.url

    @property
    def alive(self) -> bool:
        """Whether the server runs."""
        return self.process.poll() is None

    def processes(self) -> list[Child]:
        """The server and all processes that it started."""
        found = []
        with suppress(psutil.Error):
            server = psutil.Process(self.process.pid)
            for one in [server, *server.children(recursive=True)]:
                with suppress(psutil.Error):
                    words = " ".join(one.cmdline())
                    if one.pid != server.pid and "intake_process" not in words and "spawn_main" not in words:
                        continue  # Python's tracker of resources, or a child that has not begun its program
                    kind = "server" if one.pid == server.pid else "intake" if "intake_process" in words else "engine"
                    found.append(Child(one.pid, kind, one.memory_info().rss / 1e6))
        return found

    def pid(self, kind: str, timeout_s: float = 60.0) -> int:
        """A process of a kind, waited for; 0 if there is none in time."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            for child in self.processes():
                if child.kind == kind:
                    return child.pid
            time.sleep(0.01)
        return 0

    def end(self) -> int | None:
        """Ctrl-C, and the exit code; None if it had to be killed."""
        if self.alive:
            with suppress(ProcessLookupError):
                self.process.send_signal(2)
        try:
            return self.process.wait(30.0)
        except subprocess.TimeoutExpired:
            for child in self.processes():
                with suppress(psutil.Error):
                    psutil.Process(child.pid).kill()
            self.process.wait(10.0)
            return None
