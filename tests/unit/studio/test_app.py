"""The routes: uploads, jobs, the head, and the sentence for everything that is refused."""

from __future__ import annotations

import asyncio
import errno
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra studio is not installed")

from fastapi.testclient import TestClient

from export3d.consent.register import Register
from export3d.studio.app import Studio
from export3d.studio.guard import UPLOAD_BYTES, Guard
from export3d.studio.jobs import OF_ONE
from export3d.studio.refusals import Refused, gone
from export3d.studio.requests import parse_verb
from export3d.studio.uploads import OF_ONE as UPLOADS_OF_ONE
from export3d.studio.workspace import KEPT_S

ANIMATE = {"verb": "animate", "portrait": "bundled", "motion": "speech"}


def sent(client: TestClient, kind: str = "photo", name: str = "me.jpg", body: bytes = b"bytes") -> dict[str, Any]:
    answer = client.post(f"/api/uploads?kind={kind}", params={"kind": kind, "name": name}, content=body)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def ended(client: TestClient, job: dict[str, Any]) -> dict[str, Any]:
    for _ in range(200):
        job = client.get(f"/api/jobs/{job['id']}").json()
        if job["state"] in ("done", "failed", "cancelled"):
            return job
        time.sleep(0.02)
    raise AssertionError(job)


def refused(answer: Any, status: int, words: str) -> None:
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    assert words in answer.json()["error"]


def test_a_photo_becomes_an_upload(client: TestClient, studio: Studio) -> None:
    made = sent(client, name="../../me\n.jpg")
    assert made["name"] == "me.jpg"
    assert made["faces"] == [{"number": 1, "box": [1.0, 2.0, 3.0, 3.0]}]
    assert made["values"] == {"jawOpen": 0.25}
    assert made["warnings"] == ["soft", "small"], "of reading the file and of its face, each once"
    assert {"width", "height", "id", "kind"} < made.keys()
    upload = studio.uploads.get(made["id"], "photo")
    assert [path.name for path in upload.path.parent.iterdir()] == ["photo.png"]
    assert upload.digest == "277089d91c0bdf4f2e6862ba7e4a07605119431f5d13f726dd352b06f1b206a9"
    assert client.delete(f"/api/uploads/{made['id']}").status_code == 204
    assert not upload.path.exists()
    assert studio.engine.forgotten == [made["id"]]  # type: ignore[attr-defined]
    refused(client.delete(f"/api/uploads/{made['id']}"), 404, "upload")


def test_a_face_that_the_photo_does_not_show_is_refused_at_once(client: TestClient, studio: Studio) -> None:
    """The upload lists one face; a closer look of the engine finds a second one, and no third."""
    asked = {"verb": "edit", "portrait": sent(client)["id"]}
    refused(
        client.post("/api/jobs", json={**asked, "face": 7}), 422, "me.jpg shows 2 faces, counted from left to right"
    )
    refused(client.post("/api/jobs", json={**asked, "portrait": "bundled", "face": 2}), 422, "shows only one face")
    refused(client.post("/api/jobs", json={**asked, "portrait": "0" * 32, "face": 2}), 404, "upload")
    assert studio.jobs.idle
    for face in (1, 2, "right", "all"):
        assert client.post("/api/jobs", json={**asked, "face": face}).status_code in (202, 429)


@pytest.mark.parametrize(("kind", "field"), [("video", "driving"), ("motion", "motion")])
def test_a_start_after_the_end_of_an_upload_is_refused_at_once(
    client: TestClient, studio: Studio, kind: str, field: str
) -> None:
    asked = {"verb": "animate", "portrait": "bundled", field: sent(client, kind, "me.x")["id"]}
    words = "me.x is 2.00 s long, so it has ended at 2 s; start earlier"
    refused(client.post("/api/jobs", json={**asked, "start": 2.0}), 400, words)
    if kind == "video":
        refused(client.post("/api/jobs", json={"verb": "track", field: asked[field], "start": 2.0}), 400, words)
    refused(client.post("/api/jobs", json={**asked, field: "0" * 32, "start": 2.0}), 404, "upload")
    assert studio.jobs.idle
    assert client.post("/api/jobs", json={**asked, "start": 1.9}).status_code == 202


def test_a_start_after_the_end_of_a_bundled_motion_is_refused_at_once(client: TestClient, studio: Studio) -> None:
    asked = {"verb": "animate", "portrait": "bundled", "motion": "turns"}
    refused(client.post("/api/jobs", json={**asked, "start": 500.0}), 400, "the bundled motion turns is ")
    assert studio.jobs.idle
    assert client.post("/api/jobs", json={**asked, "start": 1.0}).status_code == 202


def test_the_register_is_looked_at_for_every_head_and_job(
    client: TestClient, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for portraits that were sent before it had an entry."""
    monkeypatch.setenv("EXPORT3D_HOME", str(tmp_path / "home"))
    policy, register = studio.workspace.folder / "policy.toml", Register()
    photo = client.post("/api/uploads?name=me.jpg", content=b"x").json()["id"]
    assert 'consent = "open"' in policy.read_text()
    register.add(np.eye(1, 128, dtype=np.float32)[0], "network", "Ada")
    with client.websocket_connect("ws://127.0.0.1:7860/api/head") as socket:
        socket.send_json({"n": 1, "portrait": photo})
        assert "error" not in socket.receive_json()
    assert 'consent = "register"' in policy.read_text()
    register.remove("Ada")
    ended(client, client.post("/api/jobs", json={"verb": "edit", "portrait": photo}).json())
    assert 'consent = "open"' in policy.read_text()


def test_a_damaged_register_is_told_without_its_folder(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPORT3D_HOME", str(tmp_path))
    (tmp_path / "consent.json").write_text("{}")
    answer = client.post("/api/uploads?name=me.jpg", content=b"x")
    refused(answer, 400, "the register of consent consent.json is damaged")
    assert str(tmp_path) not in answer.text
    refused(client.get("/api/info"), 400, "the register of consent consent.json is damaged")


def test_a_form_with_a_file_is_an_upload_too(client: TestClient) -> None:
    answer = client.post("/api/uploads", files={"file": ("holiday.png", b"bytes")}, params={"kind": "photo"})
    assert answer.json()["name"] == "holiday.png"
    refused(client.post("/api/uploads", files={"a": (None, "b")}), 400, "no file")
    many = [("file", ("a", b"1")), ("other", ("b", b"2"))]
    refused(client.post("/api/uploads", files=many), 400, "one file")


def test_other_kinds_of_uploads(client: TestClient) -> None:
    video = sent(client, "video", "me.mp4")
    assert client.get(video["filmstrip"]).content == b"webp"
    assert {"seconds", "fps", "sound"} < video.keys()
    assert {"frames", "seconds", "space"} < sent(client, "motion", "a.csv").keys()
    assert "faces" not in sent(client, "background", "b.png")
    refused(client.post("/api/uploads?kind=wife", content=b"1"), 400, "kinds are photo")


def test_nothing_is_left_of_what_is_refused(client: TestClient, studio: Studio) -> None:
    refused(client.post("/api/uploads", content=b"bad file", params={"name": "x.png"}), 400, "x.png is no image")
    refused(client.post("/api/uploads", content=b""), 400, "empty")
    assert studio.workspace.bytes == 0
    assert sorted(path.name for path in studio.workspace.folder.iterdir()) == ["policy.toml", "spool"]


def test_a_body_that_is_too_large_is_refused_by_its_length_and_while_it_comes(
    client: TestClient, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = {"content-length": str(UPLOAD_BYTES + 1)}
    refused(client.post("/api/uploads", content=b"1", headers=long), 413, "200 MB")
    monkeypatch.setattr("export3d.studio.guard.UPLOAD_BYTES", 1000)

    def parts() -> Iterator[bytes]:
        for _ in range(30):
            yield bytes(100)

    refused(client.post("/api/uploads", content=parts()), 413, "larger than 1 kB")
    assert studio.workspace.bytes == 0
    refused(client.post("/api/jobs", content=bytes(70_000)), 413, "64 kB")


def test_a_full_disk_is_a_sentence(client: TestClient, studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("export3d.studio.uploads.asyncio.to_thread", full)
    refused(client.post("/api/uploads", content=b"12"), 507, "disk is full")
    assert studio.workspace.bytes == 0
    monkeypatch.undo()
    monkeypatch.setattr(Path, "mkdir", full)
    refused(client.post("/api/jobs", json=ANIMATE), 507, "disk is full")


def test_a_job_runs_and_its_files_are_downloaded(client: TestClient, studio: Studio) -> None:
    photo, motion, behind = sent(client), sent(client, "motion", "m.csv"), sent(client, "background", "b.png")
    asked = {"verb": "animate", "portrait": photo["id"], "motion": motion["id"], "background": behind["id"]}
    answer = client.post("/api/jobs", json=asked)
    assert answer.status_code == 202
    job = ended(client, answer.json())
    assert job["state"] == "done"
    assert [file["name"] for file in job["files"]] == ["video.mp4", "poster.png", "motion.motion"]
    whole = client.get(job["files"][0]["url"])
    assert whole.content == b"0123456789"
    assert whole.headers["content-type"] == "video/mp4"
    part = client.get(job["files"][0]["url"], headers={"range": "bytes=2-4"})
    assert (part.status_code, part.content) == (206, b"234")
    saved = client.get(job["files"][0]["url"] + "?download=1").headers["content-disposition"]
    assert saved == 'attachment; filename="me-animate.mp4"'
    refused(client.get(f"/api/jobs/{job['id']}/files/policy.toml"), 404, "file")
    refused(client.get(f"/api/jobs/{job['id']}/files/..%2f..%2fpolicy.toml"), 404, "")
    told = studio.engine.jobs[0]  # type: ignore[attr-defined]
    assert told["portrait"]["name"] == "me.jpg"
    assert told["names"] == {told["motion"]: "m.csv", told["background"]: "b.png"}
    assert client.delete(f"/api/jobs/{job['id']}").status_code == 200
    refused(client.get(f"/api/jobs/{job['id']}"), 404, "job")


def test_a_driving_video_is_tracked_first(client: TestClient, studio: Studio) -> None:
    video = sent(client, "video", "me.mp4")
    asked = {"verb": "animate", "portrait": "bundled", "driving": video["id"], "start": 0.5}
    job = ended(client, client.post("/api/jobs", json=asked).json())
    assert (job["state"], job["warnings"]) == ("done", ["me.mp4: lost", "no tongue"])
    told = studio.engine.jobs[0]  # type: ignore[attr-defined]
    assert Path(told["motion"]).read_bytes() == b"tracked"
    assert told["names"][told["motion"]] == "me.mp4"
    assert (told["start"], told["seconds"], told["motion_digest"]) == (
        0.0,
        None,
        studio.uploads.get(video["id"]).digest,
    )
    track = ended(client, client.post("/api/jobs", json={"verb": "track", "driving": video["id"]}).json())
    assert [file["name"] for file in track["files"]] == ["motion.motion"]
    assert track["warnings"] == ["me.mp4: lost"]
    assert client.get(track["files"][0]["url"]).content == b"tracked"


def test_a_driving_video_that_is_removed_while_it_is_tracked_is_told_as_gone(
    client: TestClient, studio: Studio
) -> None:
    studio.intake.wait_s = 0.5  # type: ignore[attr-defined]
    video = sent(client, "video", "me.mp4")
    job = client.post("/api/jobs", json={"verb": "track", "driving": video["id"]}).json()
    while client.get(f"/api/jobs/{job['id']}").json()["stage"] != "tracking":
        time.sleep(0.01)
    assert client.delete(f"/api/uploads/{video['id']}").status_code == 204
    job = ended(client, job)
    assert (job["state"], job["error"]) == ("failed", str(gone("upload")))


def test_one_client_leaves_room_for_the_uploads_of_others(studio: Studio) -> None:
    with ExitStack() as held:
        for _ in range(UPLOADS_OF_ONE):
            held.enter_context(studio.uploads.arriving(10, "a"))
        with (
            pytest.raises(Refused, match="6 of your uploads are on their way") as refusal,
            studio.uploads.arriving(1, "a"),
        ):
            pass
        assert refusal.value.status == 429
        with studio.uploads.arriving(10, "b"):
            pass
    with studio.uploads.arriving(10, "a"):
        pass


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/api/uploads", b"application/octet-stream"),
        ("/api/uploads", b"multipart/form-data; boundary=x"),
        ("/api/jobs", b"application/json"),
        ("/api/command", b"application/json"),
    ],
)
def test_a_client_that_leaves_in_the_middle_of_a_request_is_no_bug(
    path: str, kind: bytes, client: TestClient, studio: Studio, caplog: pytest.LogCaptureFixture
) -> None:
    messages = [{"type": "http.request", "body": b"--x", "more_body": True}, {"type": "http.disconnect"}]
    answers: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        answers.append(message)

    headers = [(b"host", b"127.0.0.1"), (b"content-type", kind)]
    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"kind=photo",
        "headers": headers, "client": ("127.0.0.1", 1), "state": {},
    }  # fmt: skip
    asyncio.run(client.app(scope, receive, send))  # type: ignore[arg-type]
    assert answers[0]["status"] == 499
    assert not caplog.records
    assert studio.workspace.bytes == 0


@pytest.mark.parametrize("path", ["/", "/health", "/api/info", "/page/main.js"])
def test_head_answers_as_get_does(client: TestClient, path: str) -> None:
    assert client.head(path).status_code == 200
    assert client.head("/api/jobs").status_code == 405


def test_the_events_of_a_job_end_with_its_end(client: TestClient, studio: Studio) -> None:
    studio.engine.step = 0.05  # type: ignore[attr-defined]
    job = client.post("/api/jobs", json=ANIMATE).json()
    lines = client.get(f"/api/jobs/{job['id']}/events").text.split("\n\n")
    assert '"state": "done"' in lines[-2]
    assert any('"state": "running"' in line and '"left_s": 0' in line for line in lines)


def test_jobs_are_cancelled_queued_and_limited(client: TestClient, studio: Studio) -> None:
    studio.engine.step = 30.0  # type: ignore[attr-defined]
    jobs = [client.post("/api/jobs", json=ANIMATE).json() for _ in range(OF_ONE)]
    refused(client.post("/api/jobs", json=ANIMATE), 429, "your jobs")
    assert client.post("/api/jobs", json=ANIMATE, headers={"X-Export3D-Client": "other"}).status_code == 202
    states = [client.get(f"/api/jobs/{job['id']}").json() for job in jobs]
    assert [one["state"] for one in states] == ["running", "queued", "queued"]
    assert [one["position"] for one in states] == [0, 1, 2]
    client.delete(f"/api/jobs/{jobs[1]['id']}")
    assert client.get(f"/api/jobs/{jobs[2]['id']}").json()["position"] == 1
    client.delete(f"/api/jobs/{jobs[0]['id']}")
    assert ended(client, jobs[0])["state"] == "cancelled"
    assert studio.engine.cancelled == [jobs[0]["id"]]  # type: ignore[attr-defined]
    assert client.get("/health").json()["queue"] >= 1


def test_what_a_waiting_job_needs_stays(client: TestClient, studio: Studio) -> None:
    studio.engine.step = 30.0  # type: ignore[attr-defined]
    client.post("/api/jobs", json=ANIMATE)
    photo, unused = sent(client), sent(client)
    job = client.post("/api/jobs", json={**ANIMATE, "portrait": photo["id"]}).json()
    for name in (photo["id"], unused["id"], job["id"]):
        entry = studio.workspace.entry(name)
        assert entry is not None
        entry.used -= 2 * KEPT_S
    studio.workspace.expire()
    assert [studio.workspace.has(one["id"]) for one in (photo, unused, job)] == [True, False, True]
    client.delete(f"/api/jobs/{job['id']}")
    studio.workspace.expire()
    entry = studio.workspace.entry(photo["id"])
    assert entry is not None
    assert entry.holders == 0


def test_a_job_is_cancelled_at_the_moment_it_begins(studio: Studio) -> None:
    async def use() -> None:
        job = studio.jobs.submit(parse_verb(json.dumps(ANIMATE)), "somebody")
        work = asyncio.create_task(studio.jobs.work())
        await asyncio.sleep(0)
        assert (job.state, studio.jobs.waiting) == ("queued", 0)
        studio.jobs.end(job.id)
        await asyncio.sleep(0.05)
        assert job.state == "cancelled"
        work.cancel()

    asyncio.run(use())


def test_results_that_somebody_removed_are_gone(client: TestClient, studio: Studio) -> None:
    job = ended(client, client.post("/api/jobs", json=ANIMATE).json())
    shutil.rmtree(studio.workspace.folder)
    assert client.get(f"/api/jobs/{job['id']}").json()["files"] == []
    refused(client.get(f"/api/jobs/{job['id']}/files/video.mp4"), 404, "file")


def test_a_job_that_fails_says_why_and_the_next_one_runs(client: TestClient, studio: Studio) -> None:
    studio.engine.failure = {"error": "no face found in me.jpg", "kind": "NoFaceFound"}  # type: ignore[attr-defined]
    job = ended(client, client.post("/api/jobs", json=ANIMATE).json())
    assert (job["state"], job["error"], job["files"]) == ("failed", "no face found in me.jpg", [])
    studio.engine.failure = None  # type: ignore[attr-defined]
    assert ended(client, client.post("/api/jobs", json=ANIMATE).json())["state"] == "done"


@pytest.mark.parametrize("bug", [ZeroDivisionError("secret"), PermissionError(errno.EACCES, "secret")])
def test_a_bug_in_a_route_is_a_sentence_too(
    app: Guard, studio: Studio, bug: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(name: str) -> None:
        raise bug

    monkeypatch.setattr(studio.jobs, "get", broken)
    client = TestClient(app, base_url="http://127.0.0.1:7860", raise_server_exceptions=False)
    refused(client.get("/api/jobs/1"), 500, "its terminal shows what")
    assert "secret" in caplog.text


def test_a_request_for_what_is_gone_is_refused(client: TestClient) -> None:
    refused(client.post("/api/jobs", json={**ANIMATE, "portrait": "0" * 32}), 404, "upload")
    video = sent(client, "video", "me.mp4")
    refused(client.post("/api/jobs", json={**ANIMATE, "portrait": video["id"]}), 400, "me.mp4 was uploaded as a video")
    refused(client.get("/api/jobs/" + "0" * 32), 404, "job")
    refused(client.get("/nowhere"), 404, "/api")
    refused(client.put("/api/jobs"), 405, "method")
    refused(client.get("/page/../app.py"), 404, "")
    refused(client.get("/page/..%2fapp.py"), 404, "")


def test_the_head_answers_the_newest_question(client: TestClient, studio: Studio) -> None:
    studio.engine.head_s = 0.1  # type: ignore[attr-defined]
    with client.websocket_connect("ws://127.0.0.1:7860/api/head") as socket:
        for number in range(5):
            socket.send_json({"n": number, "portrait": "bundled", "yaw": number, "quality": "fast"})
        first = socket.receive_json()
        assert socket.receive_bytes().startswith(b"\xff\xd8")
        last = socket.receive_json()
        socket.receive_bytes()
        assert (first["n"], last["n"]) == (0, 4)
        assert (first["values"], last.get("values")) == ({"jawOpen": 0.25}, None)
        assert {"width", "height", "ms", "quality"} < first.keys()
        socket.send_json({"n": 9, "portrait": "bundled", "yaw": 1e9})
        answer = socket.receive_json()
        assert (answer["n"], answer["status"]) == (None, 400)
        assert "yaw" in answer["error"]
        socket.send_json({"n": 10, "portrait": "0" * 32})
        assert socket.receive_json()["status"] == 404
        socket.send_bytes(b"\x00\xff")
        assert "JSON" in socket.receive_json()["error"]
    assert [head["yaw"] for head in studio.engine.heads] == [0.0, 4.0]  # type: ignore[attr-defined]


def test_the_command_names_files_as_the_user_did(client: TestClient) -> None:
    photo = sent(client, name="my photo.jpg")
    asked = {"verb": "edit", "portrait": photo["id"], "yaw": 10}
    line = client.post("/api/command", json=asked).json()["command"]
    assert line == "export3d edit 'my photo.jpg' -o 'my photo-edit.png' --yaw 10 --label"
    bundled = client.post("/api/command", json={"verb": "edit", "portrait": "bundled"}).json()["command"]
    assert Path(bundled.split()[2]).is_file()
    words = "me.jpg shows 2 faces, counted from left to right"
    group = {**asked, "portrait": sent(client)["id"]}
    refused(client.post("/api/command", json={**group, "face": 7}), 422, words)
    assert "--face 2" in client.post("/api/command", json={**group, "face": 2}).json()["command"]


def test_the_marks_of_a_file_are_told_and_the_file_is_not_kept(client: TestClient, studio: Studio) -> None:
    answer = client.post("/api/verify?name=a.png", content=b"bytes")
    assert answer.json() == {"path": "a.png", "result": "marked"}
    assert studio.workspace.bytes == 0


def test_the_server_tells_about_itself(client: TestClient) -> None:
    sent(client)
    info = client.get("/api/info").json()
    assert info["ready"]
    assert info["limits"]["upload_bytes"] == UPLOAD_BYTES
    assert info["policy"] == {"label": "on", "consent": "open"}
    assert client.get("/health").json() == {"status": "ok", "engine": "up", "queue": 0}
    text = client.get("/metrics").text
    assert 'export3d_uploads_total{outcome="done"} 1' in text
    assert "export3d_engine_resident_bytes 123" in text
    for line in text.splitlines():
        assert line.startswith("# ") or len(line.rsplit(" ", 1)) == 2


def test_the_api_is_described_without_other_hosts(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    assert {"/api/uploads", "/api/jobs", "/api/command", "/api/verify", "/health"} < described["paths"].keys()
    page = client.get("/api").text
    assert "POST /api/jobs" in page
    assert "head_motion" in page
    assert "http://" not in page
    assert "https://" not in page


def test_the_studio_leaves_nothing_behind(client: TestClient, studio: Studio, tmp_path: Path) -> None:
    sent(client)
    client.__exit__(None, None, None)
    assert list((tmp_path / "studio").iterdir()) == []


def test_a_number_that_cannot_be_read_is_one_sentence_too(client: TestClient) -> None:
    refused(client.get("/api/jobs/x/preview", params={"n": "abc"}), 422, "n: input should be a valid integer")
