"""`export3d serve` as many clients use it: renderers on a Ray of its own, one of which is killed, and its end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from export3d.provenance.verify import verify

pytest.importorskip("fastapi", reason="needs the extra studio")
pytest.importorskip("ray", reason="needs the extra cluster")
httpx = pytest.importorskip("httpx", reason="needs the extra studio")
psutil = pytest.importorskip("psutil", reason="needs psutil")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="signals of processes")]

CLIENTS = 16
REPLICA = "ray::ServeReplica:export3d:Renderer"
ENDED = ("done", "failed", "cancelled")
FILES = {"edit": {"still.png"}, "animate": {"video.mp4", "poster.png", "motion.motion"}}
STARTING_S, LEAVING_S = 240.0, 120.0


class Served:
    """The command as a user starts it; `folder` is its workspace's, and short enough for Ray's sockets."""

    def __init__(self, folder: Path, weights: Path) -> None:
        command = [sys.executable, "-m", "export3d", "serve", "--replicas", "2", "--port", "0", "--engine", "torch"]
        (folder / "studio").mkdir()
        self.process = subprocess.Popen(
            [*command, "--weights", str(weights), "--folder", str(folder / "studio")],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_TMPDIR": str(folder)},
            start_new_session=True,
        )
        assert self.process.stderr is not None
        self.said = ""
        clock = threading.Timer(STARTING_S, self.process.kill)
        clock.start()
        while "ready at" not in self.said:
            line = self.process.stderr.readline()
            assert line, self.said
            self.said += line
        clock.cancel()
        found = re.search(r"http://\S+:\d+", self.said)
        assert found is not None
        self.url = found[0]

    def processes(self) -> list[Any]:
        """All that it has started."""
        found: list[Any] = psutil.Process(self.process.pid).children(recursive=True)
        return found

    def replicas(self) -> list[Any]:
        """The renderers."""
        found = []
        for one in self.processes():
            try:
                if " ".join(one.cmdline()).startswith(REPLICA):
                    found.append(one)
            except psutil.Error:
                continue
        return found

    def leave(self, number: int) -> int:
        """Send a signal and wait for the end."""
        self.process.send_signal(number)
        return self.process.wait(LEAVING_S)


@pytest.fixture(scope="module")
def served(tiny_weights: Path) -> Iterator[Served]:
    with tempfile.TemporaryDirectory(prefix="e3d-", dir="/tmp") as name:
        served = Served(Path(name), tiny_weights)
        started = served.processes()
        yield served
        if served.process.poll() is None:
            started = list({*started, *served.processes()})
            assert served.leave(signal.SIGTERM) == 143
        assert served.process.stderr is not None
        served.process.stderr.close()
        _, left = psutil.wait_procs(started, timeout=30.0)
        assert not left, f"still run: {left}"
        assert list((Path(name) / "studio").iterdir()) == []


class Client:
    """One user: a few heads over the WebSocket, an edit and a short animation."""

    def __init__(self, number: int, url: str) -> None:
        self.number, self.url = number, url
        self.answers: list[int] = []
        self.refused: list[str] = []
        self.jobs: dict[str, dict[str, Any]] = {}

    def run(self) -> None:
        """Do all, one after the other."""
        self.heads()
        headers = {"X-Export3D-Client": f"client-{self.number}"}
        with httpx.Client(base_url=self.url, headers=headers, timeout=60.0, trust_env=False) as http:
            verbs = [
                {"verb": "edit", "yaw": float(self.number)},
                {"verb": "animate", "motion": "speech", "seconds": 0.32, "sheet": False, "frame": "crop"},
            ]
            for verb in verbs:
                answer = http.post("/api/jobs", json={"portrait": "bundled", **verb})
                if answer.status_code != 202:
                    self.refused.append(answer.json()["error"])
                    continue
                job = answer.json()
                assert job["id"] not in self.jobs
                while job["state"] not in ENDED:
                    time.sleep(0.2)
                    job = http.get(f"/api/jobs/{job['id']}").json()
                self.jobs[job["id"]] = job
                for file in job["files"]:
                    assert len(http.get(file["url"]).content) == file["bytes"] > 0

    def heads(self) -> None:
        """Six views of the head."""
        from websockets.sync.client import connect

        address = f"{self.url.replace('http', 'ws')}/api/head?client=client-{self.number}"
        with connect(address, proxy=None, max_size=2**22) as socket:
            for n in range(6):
                socket.send(json.dumps({"n": n, "portrait": "bundled", "yaw": n + self.number, "quality": "fast"}))
                header = json.loads(socket.recv(120.0))
                assert header["n"] == n
                if "error" in header:
                    self.refused.append(header["error"])
                else:
                    image = socket.recv(60.0)
                    assert image[:2] == b"\xff\xd8"
                    self.answers.append(n)


def test_sixteen_clients_are_answered_although_a_renderer_is_killed(served: Served) -> None:
    clients = [Client(number, served.url) for number in range(CLIENTS)]
    victim = min(served.replicas(), key=lambda one: one.pid)
    with ThreadPoolExecutor(CLIENTS) as pool:
        running = [pool.submit(client.run) for client in clients]
        end = time.monotonic() + 60.0
        while sum(len(client.jobs) for client in clients) < 4:
            assert time.monotonic() < end, [client.refused for client in clients]
            time.sleep(0.05)
        victim.kill()
        for one in running:
            one.result(240.0)
    jobs = {name: job for client in clients for name, job in client.jobs.items()}
    refused = [sentence for client in clients for sentence in client.refused]
    assert len(jobs) + len(refused) + sum(len(client.answers) for client in clients) == 8 * CLIENTS, "each once"
    for job in jobs.values():
        if job["state"] == "done":
            names = [file["name"] for file in job["files"]]
            assert set(names) == FILES[job["verb"]]
            assert len(names) == len(set(names))
        else:
            assert (job["state"], job["files"]) == ("failed", [])
            refused.append(job["error"])
    assert all(sentence and "; " in sentence for sentence in refused), refused
    assert len(refused) <= 8, "one of two renderers was lost, the other one went on"
    assert not psutil.pid_exists(victim.pid)
    end = time.monotonic() + 120.0
    while len(served.replicas()) < 2:
        assert time.monotonic() < end, "another renderer takes its place"
        time.sleep(0.5)


def test_a_cancelled_job_ends_and_the_next_one_is_marked(served: Served, tmp_path: Path) -> None:
    with httpx.Client(base_url=served.url, timeout=60.0, trust_env=False) as http:
        job = http.post("/api/jobs", json={"verb": "animate", "portrait": "bundled", "motion": "turns"}).json()
        while job["stage"] != "rendering" or not job["done"]:
            time.sleep(0.05)
            job = http.get(f"/api/jobs/{job['id']}").json()
            assert job["state"] in ("queued", "running"), job
        http.delete(f"/api/jobs/{job['id']}")
        while job["state"] not in ENDED:
            time.sleep(0.05)
            job = http.get(f"/api/jobs/{job['id']}").json()
        assert (job["state"], job["files"]) == ("cancelled", [])
        asked = {"verb": "edit", "portrait": "bundled", "scores": {"jawOpen": 0.8}}
        job = http.post("/api/jobs", json=asked).json()
        while job["state"] not in ENDED:
            time.sleep(0.05)
            job = http.get(f"/api/jobs/{job['id']}").json()
        assert job["state"] == "done", job
        (tmp_path / "still.png").write_bytes(http.get(job["files"][0]["url"]).content)
    assert verify(tmp_path / "still.png").result == "marked"


def test_at_the_end_new_work_is_refused_and_what_runs_is_finished(served: Served) -> None:
    with httpx.Client(base_url=served.url, timeout=60.0, trust_env=False) as http:
        asked = {"verb": "animate", "portrait": "bundled", "motion": "turns", "seconds": 3.0, "frame": "crop"}
        job = http.post("/api/jobs", json=asked).json()
        while job["stage"] != "rendering":
            time.sleep(0.05)
            job = http.get(f"/api/jobs/{job['id']}").json()
        started = served.processes()
        served.process.send_signal(signal.SIGINT)
        status = 202
        while status in (202, 429):  # until the signal has arrived
            time.sleep(0.05)
            answer = http.post("/api/jobs", json={"verb": "edit", "portrait": "bundled"})
            status = answer.status_code
        assert status == 503
        assert "shutting down" in answer.json()["error"]
        while job["state"] not in ENDED:
            time.sleep(0.05)
            job = http.get(f"/api/jobs/{job['id']}").json()
        assert job["state"] == "done", job
        assert http.get(job["files"][0]["url"]).status_code == 200
    assert served.process.wait(LEAVING_S) == 0, "Ctrl-C is its usual end"
    _, left = psutil.wait_procs(started, timeout=30.0)
    assert not left, f"still run: {left}"
