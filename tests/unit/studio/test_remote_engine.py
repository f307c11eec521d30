"""A studio that renders on another one: both are real processes."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

pytest.importorskip("httpx", reason="the extra studio is not installed")
pytest.importorskip("fastapi", reason="the extra studio is not installed")

from websockets.sync.client import connect

from export3d.cli.main import main
from export3d.errors import ConfigError, ConsentRefused
from export3d.provenance import signing
from export3d.studio.engine import Portrait
from export3d.studio.remote_engine import RemoteEngine
from export3d.video import probe
from tests.file_server import serving
from tests.running_studio import Studio, ended

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of processes"),
]
POLICY = 'marks = "required"\nlabel = {label}\nconsent = "{consent}"\n'


@pytest.fixture(scope="module")
def backend(rigid_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    folder = tmp_path_factory.mktemp("backend")
    backend = Studio(folder, "--share-on", "127.0.0.1", "--engine", "reference", "--weights", rigid_weights)
    yield backend
    assert backend.leave(signal.SIGINT) == 0


@pytest.fixture(scope="module")
def front(backend: Studio, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    front = Studio(tmp_path_factory.mktemp("front"), "--backend", backend.address)
    assert backend.address not in front.said
    yield front
    assert front.leave(signal.SIGINT) == 0
    assert list(front.folder.iterdir()) == []


def sent(studio: Studio, kind: str, path: Path, name: str = "") -> dict[str, Any]:
    with studio.client() as client:
        answer = client.post(
            "/api/uploads", params={"kind": kind, "name": name or path.name}, content=path.read_bytes()
        )
        assert answer.status_code == 201, answer.text
        return dict(answer.json())


def done(studio: Studio, folder: Path, **asked: Any) -> dict[str, Path]:
    """The files of a job, in a folder."""
    folder.mkdir()
    with studio.client() as client:
        job = client.post("/api/jobs", json=asked).json()
        job = ended(client, job)
        assert job["state"] == "done", job
        for file in job["files"]:
            (folder / file["name"]).write_bytes(client.get(file["url"]).content)
    return {file["name"]: folder / file["name"] for file in job["files"]}


def head(studio: Studio, **asked: Any) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    url = f"{studio.url.replace('http', 'ws')}/api/head"
    with connect(url, additional_headers=studio.headers) as socket:
        socket.send(json.dumps({"n": 3, **asked}))
        header = json.loads(socket.recv(30))
        return header, pixels(io.BytesIO(socket.recv(30))) if "error" not in header else np.zeros(0, np.uint8)


def pixels(file: Path | io.BytesIO) -> NDArray[np.uint8]:
    with Image.open(file) as image:
        return np.array(image.convert("RGB"))


def counted(studio: Studio, line: str) -> float:
    """A counter of a studio's."""
    with studio.client() as client:
        lines = client.get("/metrics").text.splitlines()
    return sum(float(text.split()[1]) for text in lines if text.startswith(f"export3d_{line} "))


def soon(what: Callable[[], Any]) -> None:
    """Wait for what happens in a moment."""
    for _ in range(300):
        if what():
            return
        time.sleep(0.1)
    raise AssertionError("it does not happen")


def test_results_are_those_of_the_machine_that_renders(
    front: Studio, backend: Studio, astronaut_path: Path, tmp_path: Path
) -> None:
    here, there = sent(front, "photo", astronaut_path, "me.png"), sent(backend, "photo", astronaut_path, "me.png")
    assert {**here, "id": ""} == {**there, "id": ""}
    asked = {"yaw": 12, "scores": {"jawOpen": 0.5}, "frame": "crop"}
    shown = [head(studio, portrait=one["id"], **asked) for studio, one in ((front, here), (backend, there))]
    for header, _ in shown:
        header.pop("ms")
    assert shown[0][0] == shown[1][0]
    assert shown[0][0]["values"] == here["values"]
    assert np.array_equal(shown[0][1], shown[1][1])
    stills = [
        done(studio, tmp_path / studio.folder.name, verb="edit", portrait=one["id"], **asked)["still.png"]
        for studio, one in ((front, here), (backend, there))
    ]
    assert np.array_equal(pixels(stills[0]), pixels(stills[1])), "also the invisible mark, and what it states"
    signed = signing.read(stills[0])
    assert signed is not None
    assert signed.statement is not None
    assert signed.statement["portrait"] == hashlib.sha256(astronaut_path.read_bytes()).hexdigest()


def test_a_driving_video_is_tracked_there(
    front: Studio, backend: Studio, face_video: Path, motion_file: Path, astronaut_path: Path, tmp_path: Path
) -> None:
    video, motion = sent(front, "video", face_video), sent(front, "motion", motion_file, "my walk.motion")
    behind = sent(front, "background", astronaut_path)
    asked = {"portrait": "bundled", "frame": "crop", "size": 256}
    files = done(front, tmp_path / "a", verb="animate", driving=video["id"], seconds=0.4, **asked)
    assert set(files) == {"video.mp4", "poster.png", "sheet.png", "motion.motion"}
    assert probe(files["video.mp4"]).has_audio
    signed = signing.read(files["video.mp4"])
    assert signed is not None
    assert signed.statement is not None
    assert signed.statement["motion"] == hashlib.sha256(face_video.read_bytes()).hexdigest()
    with front.client() as client:
        edit = {"verb": "edit", "portrait": "bundled", "frame": "crop", "scores": {"tongueOut": 1}}
        (warning,) = ended(client, client.post("/api/jobs", json=edit).json())["warnings"]
        assert warning.startswith("tongueOut shows no tongue")
    tracked = done(front, tmp_path / "b", verb="track", driving=video["id"], seconds=0.4)
    assert tracked["motion.motion"].read_bytes() == files["motion.motion"].read_bytes()
    asked |= {"motion": motion["id"], "background": behind["id"]}
    files = done(front, tmp_path / "c", verb="animate", sheet=False, **asked)
    assert set(files) == {"video.mp4", "poster.png", "motion.motion"}
    folders = [path for path in front.folder.rglob("*") if path.name.endswith("arriving")]
    assert folders == []


def test_the_same_photo_is_sent_once_and_removed_with_the_last_use(
    front: Studio, backend: Studio, astronaut_path: Path, tmp_path: Path
) -> None:
    before = counted(backend, 'uploads_total{outcome="done"}')
    Image.fromarray(pixels(astronaut_path)[:, 20:]).save(tmp_path / "other.png")
    ids = [sent(front, "photo", tmp_path / "other.png", f"{name}.png")["id"] for name in ("a", "b", "c")]
    assert counted(backend, 'uploads_total{outcome="done"}') == before + 1
    (folder,) = backend.folder.iterdir()
    kept = len(list(folder.iterdir()))
    with front.client() as client:
        for one in ids[:2]:
            assert client.delete(f"/api/uploads/{one}").status_code == 204
        assert head(front, portrait=ids[2])[0]["n"] == 3
        assert len(list(folder.iterdir())) == kept
        client.delete(f"/api/uploads/{ids[2]}")
    soon(lambda: len(list(folder.iterdir())) < kept)


def test_refusals_call_files_by_the_users_names(
    front: Studio, face_video: Path, astronaut_path: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (300, 300), "green").save(tmp_path / "clean.png")
    with front.client() as client:
        body = (tmp_path / "clean.png").read_bytes()
        answer = client.post("/api/uploads", params={"name": "meadow.jpg"}, content=body)
        assert answer.status_code == 400
        assert "no face" in answer.json()["error"]
        assert "meadow.jpg" in answer.json()["error"]
        photo = sent(front, "photo", astronaut_path, "me.jpg")
        answer = client.post("/api/jobs", json={"verb": "edit", "portrait": photo["id"], "face": 7})
        assert answer.status_code == 422
        assert answer.json()["error"] == "me.jpg shows only one face, and no face 7; leave out the choice of a face"
        assert client.post("/api/uploads", params={"name": "meadow.jpg"}, content=b"x").status_code == 400
        video = sent(front, "video", face_video, "my walk.mp4")["id"]
        job = ended(
            client, client.post("/api/jobs", json={"verb": "track", "driving": video, "driving_face": 9}).json()
        )
        assert (job["state"], job["files"]) == ("failed", [])
        assert job["error"].startswith("my walk.mp4 ")


def test_a_cancelled_job_is_cancelled_there_too(front: Studio, backend: Studio) -> None:
    before = counted(backend, 'jobs_total{state="cancelled"}')
    with front.client() as client:
        job = client.post("/api/jobs", json={"verb": "animate", "portrait": "bundled", "motion": "turns"}).json()
        soon(lambda: client.get(f"/api/jobs/{job['id']}").json()["preview"] > 0)
        client.delete(f"/api/jobs/{job['id']}")
        assert ended(client, job)["state"] == "cancelled"
    soon(lambda: counted(backend, 'jobs_total{state="cancelled"}') == before + 1)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_server_renders_nothing_itself(front: Studio) -> None:
    loaded = Path(f"/proc/{front.process.pid}/maps").read_text()
    assert not {"torch", "mediapipe", "openvino"} & {part for line in loaded.splitlines() for part in line.split("/")}
    children = Path(f"/proc/{front.process.pid}/task/{front.process.pid}/children").read_text().split()
    assert children == []


@pytest.fixture
def start() -> Iterator[Callable[..., Studio]]:
    """A function that starts a studio; it is killed at the end of a test that fails before it leaves."""
    started: list[Studio] = []

    def start(*options: Any, **more: Any) -> Studio:
        started.append(Studio(*options, **more))
        return started[-1]

    yield start
    for studio in started:
        if studio.process.poll() is None:
            studio.leave(signal.SIGKILL)


def test_a_backend_that_is_killed_and_comes_back(
    start: Callable[..., Studio], rigid_weights: Path, tmp_path: Path
) -> None:
    options = ("--engine", "reference", "--weights", rigid_weights)
    backend = start(tmp_path / "backend", *options)
    labels(backend, tmp_path)
    front = start(tmp_path / "front", "--backend", backend.url)
    asked = {"verb": "animate", "portrait": "bundled", "motion": "speech", "seconds": 2, "frame": "crop"}
    with front.client() as client:
        job = client.post("/api/jobs", json=asked).json()
        soon(lambda: client.get(f"/api/jobs/{job['id']}").json()["preview"] > 0)
        port = backend.port
        backend.leave(signal.SIGKILL)
        soon(lambda: client.get("/health").json()["status"] == "starting")
        refused, _ = head(front, portrait="bundled")
        assert (refused["status"], "the machine that renders does not answer" in refused["error"]) == (503, True)
        again = start(tmp_path / "backend", *options, port=port)
        soon(lambda: client.get("/health").json()["status"] == "ok")
        assert head(front, portrait="bundled")[0]["width"] > 0
        last = ended(client, job)
        assert (last["state"], len(last["files"])) == ("done", 4)
    assert counted(again, 'jobs_total{state="done"}') == 1
    assert front.leave(signal.SIGTERM) == 143
    assert again.leave(signal.SIGINT) == 0


def labels(backend: Studio, tmp_path: Path) -> None:
    """The policy here holds, although the other machine's does not ask for a label."""
    bundled: Portrait = {"id": "bundled", "path": "", "digest": None, "name": "bundled"}

    async def use(engine: RemoteEngine) -> None:
        await engine.start()
        assert engine.alive
        shown = []
        for label, forced in ((False, "false"), (False, "true"), (True, "false")):
            (tmp_path / "policy.toml").write_text(POLICY.format(label=forced, consent="open"))
            picture = await engine.head({"key": 1, "label": label}, bundled)
            assert picture is not None
            shown.append(pixels(io.BytesIO(picture.image)))
        assert np.array_equal(shown[1], shown[2])
        assert not np.array_equal(shown[0], shown[1])
        questions = (engine.head({"key": 7, "yaw": float(yaw)}, bundled) for yaw in range(12))
        newest = await asyncio.gather(*questions)
        assert newest[-1] is not None
        assert None in newest, "a newer request replaces one that waits"
        (tmp_path / "policy.toml").write_text(POLICY.format(label="false", consent="register"))
        with pytest.raises(ConsentRefused, match="register"):
            await engine.head({"key": 1}, bundled)
        job = {"id": "1", "verb": "edit", "portrait": bundled, "out": str(tmp_path / "none")}
        events = [event async for event in engine.submit(job)]
        assert (events[-1]["op"], events[-1]["kind"]) == ("failed", "ConsentRefused")

    with_engine(backend.url, tmp_path, use)


def with_engine(address: str, tmp_path: Path, use: Callable[[RemoteEngine], Awaitable[Any]]) -> None:
    async def run() -> None:
        engine = RemoteEngine(address, tmp_path / "policy.toml")
        try:
            await use(engine)
        finally:
            await engine.stop()

    asyncio.run(run())


def test_a_backend_that_cannot_be_used_is_a_sentence(backend: Studio, tmp_path: Path) -> None:
    for address in ("ftp://host", "10.0.0.7:7860", "http://", "http://host:99999999"):
        with pytest.raises(ConfigError, match="no URL of a studio"):
            RemoteEngine(address, tmp_path)
    with serving(tmp_path) as files:
        for address, words in (
            ("http://127.0.0.1:9", "no studio answers at http://127.0.0.1:9"),
            (f"{backend.url}/?token=wrong", "does not let this studio in"),
            (files.address, "no studio"),
        ):
            with pytest.raises(ConfigError, match=words):
                with_engine(address, tmp_path, RemoteEngine.start)


def test_the_command_ends_where_there_is_no_backend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["studio", "--no-browser", "--port", "0", "--folder", str(tmp_path), "--backend", "http://127.0.0.1:9"]
    assert main([*line, "--pure"]) == 2
    assert "leave out --weights" in capsys.readouterr().err
    command = [sys.executable, "-m", "export3d", *line]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "no studio answers at http://127.0.0.1:9 (" in done.stderr
    assert list(tmp_path.iterdir()) == []
