"""The studio as programs use it: the real server, engine and intake, the examples of the documentation, and its end."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from export3d.provenance.verify import verify
from export3d.video import probe

pytest.importorskip("httpx", reason="needs the extra studio")
pytest.importorskip("fastapi", reason="needs the extra studio")

import httpx

from tests.running_studio import Studio

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of processes"),
]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def studio(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    folder = tmp_path_factory.mktemp("studio")
    studio = Studio(folder, "--engine", "torch", "--weights", tiny_weights)
    yield studio
    if studio.process.poll() is None:
        assert studio.leave(signal.SIGINT) == 0, "Ctrl-C is its usual end"
    assert list(folder.iterdir()) == []


def test_the_python_example_animates_a_photo(studio: Studio, astronaut_path: Path, tmp_path: Path) -> None:
    example = ROOT / "examples" / "studio_client.py"
    code = [line for line in example.read_text().splitlines()[1:] if line]
    assert len(code) == 15
    command = [sys.executable, str(example), studio.url, str(astronaut_path), "speech", "out.mp4"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120)
    assert probe(tmp_path / "out.mp4").duration_s == pytest.approx(1.0)
    assert verify(tmp_path / "out.mp4").result == "marked"


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_curl_example_turns_a_head(studio: Studio, astronaut_path: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "studio.md").read_text("utf-8")
    found = re.search(r"<!-- curl example.*?```sh\n(.*?)```", page, re.DOTALL)
    assert found is not None
    shutil.copy(astronaut_path, tmp_path / "portrait.jpg")
    script = found[1].replace("http://127.0.0.1:7860", studio.url)
    done = subprocess.run(
        ["bash", "-e", "-c", script], cwd=tmp_path, check=True, timeout=120, capture_output=True, text=True
    )
    assert '"state": "done"' in done.stdout.splitlines()[-2]
    assert verify(tmp_path / "turned.png").result == "marked"


def test_gradios_client_has_the_same_verbs(studio: Studio, face_video: Path, tmp_path: Path) -> None:
    client_module: Any = pytest.importorskip("gradio_client")
    for _ in range(200):  # Gradio is loaded after the engine
        if httpx.get(f"{studio.url}/gradio/config").status_code == 200:
            break
        time.sleep(0.1)
    client = client_module.Client(f"{studio.url}/gradio", verbose=False, download_files=tmp_path)
    motion = client.predict(client_module.handle_file(face_video), seconds=0.4, api_name="/track")
    video, poster, _ = client.predict("bundled", motion=client_module.handle_file(motion), api_name="/animate")
    assert probe(video).duration_s == pytest.approx(0.4)
    assert client.predict(client_module.handle_file(poster), api_name="/verify")["result"] == "marked"
    with pytest.raises(client_module.exceptions.AppError, match="'yaw'"):
        client.predict("bundled", yaw=90, api_name="/edit")
    with pytest.raises(client_module.exceptions.AppError, match="not an image"):
        client.predict(client_module.handle_file(__file__), api_name="/edit")
    file = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    for given, words in ((file, "handle_file"), ({**file, "path": "http://127.0.0.1:9/"}, "fetches no URL")):
        answer = httpx.post(f"{studio.url}/gradio/gradio_api/call/verify", json={"data": [given]})
        if answer.status_code == 200:
            answer = httpx.get(f"{answer.url}/{answer.json()['event_id']}", timeout=30)
        assert words in answer.text
    for closed in ("", "monitoring", "gradio_api/proxy=http://127.0.0.1:9/", "gradio_api/file=/etc/passwd"):
        assert httpx.get(f"{studio.url}/gradio/{closed}").status_code == 404


def test_a_job_stops_when_it_is_cancelled_and_the_head_answers_meanwhile(studio: Studio) -> None:
    from websockets.sync.client import connect

    with httpx.Client(base_url=studio.url) as client:
        job = client.post("/api/jobs", json={"verb": "animate", "portrait": "bundled", "motion": "turns"}).json()
        while job["state"] != "running" or job["stage"] != "rendering":
            time.sleep(0.1)
            job = client.get(f"/api/jobs/{job['id']}").json()
            assert job["state"] in ("queued", "running")
        with connect(f"{studio.url.replace('http', 'ws')}/api/head") as socket:
            socket.send(json.dumps({"n": 1, "portrait": "bundled", "yaw": 10, "quality": "fast"}))
            assert json.loads(socket.recv(5))["n"] == 1
            assert socket.recv(5)[:2] == b"\xff\xd8"
        client.delete(f"/api/jobs/{job['id']}")
        for _ in range(50):
            job = client.get(f"/api/jobs/{job['id']}").json()
            if job["state"] == "cancelled":
                break
            time.sleep(0.1)
        assert (job["state"], job["files"]) == ("cancelled", [])


def test_the_port_is_taken(studio: Studio) -> None:
    port = studio.url.rpartition(":")[2]
    command = [sys.executable, "-m", "export3d", "studio", "--no-browser", "--port", port]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"port {port} of 127.0.0.1 is in use" in done.stderr


def test_a_killed_studio_leaves_nothing_to_the_next_one(studio: Studio, tiny_weights: Path) -> None:
    """The last test: it ends the module's studio."""
    (before,) = studio.folder.iterdir()
    assert studio.leave(signal.SIGKILL) == -signal.SIGKILL
    assert before.is_dir()
    following = Studio(studio.folder, "--engine", "torch", "--weights", tiny_weights)
    (after,) = following.folder.iterdir()
    assert after != before
    assert httpx.get(f"{following.url}/health").json()["status"] == "ok"
    assert following.leave(signal.SIGTERM) == 143
