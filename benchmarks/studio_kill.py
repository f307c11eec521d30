"""Kills processes of the studio with SIGKILL at ten moments, and looks at what is left: the table in docs/studio.md.

    python benchmarks/studio_kill.py

After a killed server, its other processes must end by themselves, and the next studio in the same folder must remove
what was left and work. After a killed engine or decoder, the studio must answer what was going on in one sentence, and
work again. Each time a still is edited as proof. Ends with code 1 if anything else happens. Options go to
`export3d studio`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
from studio_process import PREFIX, Studio
from websockets.sync.client import connect

from export3d.animate.drive import bundled_portrait
from export3d.bench.clip import write_clip

GONE_S = 20.0
"""The other processes of a killed server end within so many seconds."""
AGAIN_S = 120.0
"""The studio works again within so many seconds."""
ENDED = ("done", "failed", "cancelled")


class Moment:
    """A studio with something going on.

    Args:
        studio: that is ready.
        files: an image and a video.
    """

    def __init__(self, studio: Studio, files: dict[str, bytes]) -> None:
        self.studio, self.files = studio, files
        self.http = httpx.Client(base_url=studio.url, timeout=60.0, trust_env=False)
        self.answers: list[str] = []
        """What was answered to what was going on."""
        self.job = ""

    def meanwhile(self, ask: Callable[[], object]) -> threading.Thread:
        """Ask in a thread and note a refusal."""

        def run() -> None:
            with suppress(httpx.HTTPError, OSError):
                answer = ask()
                if isinstance(answer, httpx.Response):
                    self.answers.append(f"{answer.status_code}: {answer.json().get('error', 'done')}")

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def submit(self, **verb: Any) -> str:
        """The id of a job."""
        answer = self.http.post("/api/jobs", json={"portrait": "bundled", **verb})
        assert answer.status_code == 202, answer.text
        self.job = str(answer.json()["id"])
        return self.job

    def state(self) -> dict[str, Any]:
        """What the studio says of the job."""
        return dict(self.http.get(f"/api/jobs/{self.job}").json())

    def until(self, stage: str) -> None:
        """Wait until the job is in a stage and has frames."""
        end = time.monotonic() + AGAIN_S
        while time.monotonic() < end:
            shown = self.state()
            if shown["stage"] == stage and shown["done"]:
                return
            if shown["state"] in ENDED:
                raise SystemExit(f"the job ended before it could be interrupted: {shown}")
            time.sleep(0.05)
        raise SystemExit(f"the job never came to {stage}")

    def idle(self) -> None:
        """Nothing is going on."""

    def arriving(self) -> None:
        """Half of an upload has arrived."""

        def slowly() -> Iterator[bytes]:
            yield self.files["me.png"][:100_000]
            time.sleep(8.0)
            yield self.files["me.png"][100_000:]

        self.meanwhile(lambda: self.http.post("/api/uploads?kind=photo&name=me.png", content=slowly()))
        time.sleep(1.0)

    def decoding(self) -> None:
        """A child decodes an upload."""
        body = self.files["clip.mp4"]
        self.meanwhile(lambda: self.http.post("/api/uploads?kind=video&name=clip.mp4", content=body))
        if not self.studio.pid("intake"):
            raise SystemExit("no child decoded the upload")

    def turning(self) -> None:
        """The head turns."""

        def turn() -> None:
            address = self.studio.url.replace("http", "ws", 1) + "/api/head"
            with suppress(Exception), connect(address, proxy=None, max_size=2**22) as socket:
                for n in range(1000):
                    socket.send(json.dumps({"n": n, "portrait": "bundled", "yaw": n % 30, "quality": "fast"}))
                    header = json.loads(socket.recv(30.0))
                    if "error" in header:
                        self.answers.append(f"{header['status']}: {header['error']}")
                        return
                    socket.recv(30.0)

        threading.Thread(target=turn, daemon=True).start()
        time.sleep(1.5)

    def rendering(self) -> None:
        """A job renders."""
        self.submit(verb="animate", motion="speech", seconds=20.0)
        self.until("rendering")

    def tracking(self) -> None:
        """A job tracks its driving video."""
        answer = self.http.post("/api/uploads?kind=video&name=clip.mp4", content=self.files["clip.mp4"])
        assert answer.status_code == 201, answer.text
        self.submit(verb="animate", driving=answer.json()["id"])
        self.until("tracking")

    def ended(self) -> list[str]:
        """The sentences that ended what was going on; waits for the job."""
        end = time.monotonic() + AGAIN_S
        while self.job and time.monotonic() < end:
            shown = self.state()
            if shown["state"] in ENDED:
                self.answers.append(f"job {shown['state']}: {shown['error']}")
                break
            time.sleep(0.1)
        return self.answers


MOMENTS = [
    ("server", "starting"),
    ("server", "idle"),
    ("server", "arriving"),
    ("server", "decoding"),
    ("server", "tracking"),
    ("server", "rendering"),
    ("engine", "turning"),
    ("engine", "rendering"),
    ("intake", "decoding"),
    ("intake", "tracking"),
]


def works(studio: Studio) -> str:
    """Why the studio does not work; empty if it edits a still, or refuses for a moment and then does."""
    end, shown = time.monotonic() + AGAIN_S, "it did not answer"
    with httpx.Client(base_url=studio.url, timeout=60.0, trust_env=False) as http:
        while time.monotonic() < end:
            answer = http.post("/api/jobs", json={"verb": "edit", "portrait": "bundled", "yaw": 10.0})
            shown = answer.text
            if answer.status_code == 202:
                job = answer.json()["id"]
                while (state := http.get(f"/api/jobs/{job}").json())["state"] not in ENDED:
                    time.sleep(0.1)
                shown = f"{state['state']}: {state['error']}"
                if state["state"] == "done" and state["files"]:
                    return ""
            time.sleep(0.5)
    return shown


def left(pids: list[int]) -> list[str]:
    """Processes of a killed studio that do not end."""
    end = time.monotonic() + GONE_S
    alive = list(filter(runs, pids))
    while alive and time.monotonic() < end:
        time.sleep(0.1)
        alive = list(filter(runs, alive))
    return [f"process {pid} goes on" for pid in alive]


def runs(pid: int) -> bool:
    """Whether a process is there, and not only its exit code."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def strike(studio: Studio, kind: str, when: str, files: dict[str, bytes]) -> tuple[list[str], list[str]]:
    """Kill one process at a moment; what is wrong afterwards, and what was answered."""
    if when == "starting":
        studio.pid("engine")
        moment = None
    else:
        moment = Moment(studio, files)
        getattr(moment, when)()
    target = studio.pid(kind)
    if not target:
        return [f"there is no {kind}"], []
    pids = [child.pid for child in studio.processes()]
    os.kill(target, signal.SIGKILL)
    if kind == "server":
        studio.process.wait(10.0)
        return left(pids), []
    assert moment is not None
    answers = moment.ended() if moment.job else []
    end = time.monotonic() + 20.0
    while not (answers or moment.answers) and time.monotonic() < end:
        time.sleep(0.1)
    answers = answers or moment.answers
    wrong = left([target])
    wrong += [] if studio.alive else ["the server died too"]
    wrong += [] if answers else ["nothing was answered"]
    return wrong + [f"no sentence: {text}" for text in answers if "None" in text or len(text) < 20], answers


def main() -> int:
    """Strike ten times."""
    faults, options = 0, sys.argv[1:]
    with tempfile.TemporaryDirectory() as name:
        clip = write_clip(Path(name) / "clip.mp4", 8.0, 1280, 720)
        files = {"clip.mp4": clip.read_bytes(), "me.png": bundled_portrait().read_bytes()}
        folder = Path(name) / "studio"
        folder.mkdir()
        studio = None
        print("| killed | while | works again after | answer |\n| --- | --- | --- | --- |", flush=True)
        for kind, when in MOMENTS:
            studio = studio or Studio(folder, options)
            if when != "starting":
                studio.wait()
            wrong, answers = strike(studio, kind, when, files)
            begun = time.monotonic()
            if kind == "server":
                studio = Studio(folder, options)
                studio.wait()
            problem = works(studio)
            took = time.monotonic() - begun
            spaces = [path.name for path in folder.iterdir()]
            wrong += [f"it does not work: {problem}"] if problem else []
            wrong += [] if len(spaces) == 1 and spaces[0].startswith(PREFIX) else [f"left in the folder: {spaces}"]
            faults += len(wrong)
            print(f"| {kind} | {when} | {took:.1f} s | {'; '.join(wrong or answers or ['–'])} |", flush=True)
        assert studio is not None
        pids = [child.pid for child in studio.processes()]
        code = studio.end()
        wrong = left(pids) + ([f"exit code {code}"] if code else []) + [path.name for path in folder.iterdir()]
        print(f"\nthe end: {'; '.join(wrong) or 'exit code 0, no process, an empty folder'}")
    return int(bool(faults or wrong))


if __name__ == "__main__":
    raise SystemExit(main())
