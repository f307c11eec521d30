"""studio/engine.py: one child renders; it is asked, cancelled, killed and started again, and ends with its parent."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export3d.animate.drive import bundled_motion
from export3d.consent.descriptor import describe, network
from export3d.consent.register import Register
from export3d.errors import CheckpointError, ConsentRefused, NoFaceFound
from export3d.face.tracker import Tracker
from export3d.image import read_image, write_png
from export3d.motion.motion import Motion
from export3d.provenance import signing
from export3d.provenance.watermark.detect import find_watermark
from export3d.studio.engine import _LEAVING_S, Engine, EngineStopped, Portrait
from export3d.video import probe, read_frames
from export3d.workers.messages import caught_warnings

pytest.importorskip("mediapipe")
pytestmark = pytest.mark.slow

Run = Callable[[Callable[[Engine], Awaitable[None]]], None]
SENT = "ab" * 32
"""The digest of the file that a user sent."""


@pytest.fixture
def portrait(astronaut_path: Path) -> Portrait:
    return {"id": "1", "path": astronaut_path, "digest": SENT, "name": "me.jpg"}


@pytest.fixture
def with_engine(rigid_weights: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a coroutine with an engine of small weights that has started."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    @asynccontextmanager
    async def started() -> AsyncIterator[Engine]:
        engine = Engine(weights=rigid_weights, engine="reference")
        try:
            await engine.start()
            yield engine
        finally:
            await engine.stop()

    def run(use: Callable[[Engine], Awaitable[None]]) -> None:
        async def all_of_it() -> None:
            async with started() as engine:
                await asyncio.wait_for(use(engine), 120)

        asyncio.run(all_of_it())

    return run


async def events(engine: Engine, job: dict[str, Any]) -> list[dict[str, Any]]:
    return [event async for event in engine.submit(job)]


def test_heads_and_jobs(
    with_engine: Run, portrait: Portrait, face_video: Path, motion_file: Path, tmp_path: Path
) -> None:
    """One child for all of it: starting one takes most of the time."""

    async def use(engine: Engine) -> None:
        assert engine.info is not None
        assert engine.alive
        assert engine.memory() > 50_000_000
        await encoding(engine, portrait, tmp_path)
        await heads(engine, portrait)
        await leaving(engine, portrait)
        await animating(engine, portrait, face_video, motion_file, tmp_path)
        await other_jobs(engine, portrait, tmp_path)
        await cancelling(engine, portrait, tmp_path)
        await dying(engine, portrait, tmp_path)

    with_engine(use)


def test_of_a_long_motion_the_first_minute_is_used(with_engine: Run, portrait: Portrait, tmp_path: Path) -> None:
    short = Motion.load(bundled_motion("speech"))
    turns = 2000 // len(short) + 1
    long = replace(short, expression=np.tile(short.expression, (turns, 1)), camera=np.tile(short.camera, (turns, 1)))
    long.save(tmp_path / "long.motion")

    async def use(engine: Engine) -> None:
        for number, verb in enumerate(("animate", "orbit")):
            job = {"id": str(number), "verb": verb, "portrait": portrait, "frame": "crop", "out": str(tmp_path / verb)}
            (tmp_path / verb).mkdir()
            async for event in engine.submit({**job, "motion": str(tmp_path / "long.motion")}):
                if event.get("total"):
                    assert event["total"] == 60 * 25
                    engine.cancel(job["id"])

    with_engine(use)


def test_a_bundled_motion_is_called_by_its_name_alone(with_engine: Run, portrait: Portrait, tmp_path: Path) -> None:
    async def use(engine: Engine) -> None:
        job = {"id": "1", "verb": "animate", "portrait": portrait, "motion": "speech", "start": 60.0}
        failed = (await events(engine, {**job, "out": str(tmp_path)}))[-1]
        assert failed["error"].startswith("the bundled motion speech is")

    with_engine(use)


def test_a_portrait_that_is_kept_needs_consent_that_still_counts(
    rigid_weights: Path, astronaut: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("EXPORT3D_HOME", str(tmp_path))
    policy, path = tmp_path / "policy.toml", tmp_path / "photo.png"
    policy.write_text('consent = "open"\n')
    write_png(path, np.ascontiguousarray(astronaut[:-2]))  # the bundled portrait itself needs no consent
    portrait: Portrait = {"id": "1", "path": path, "digest": SENT, "name": "me.png"}
    track = Tracker().track_image(astronaut)
    register = Register()

    async def use(engine: Engine) -> None:
        await engine.start()
        try:
            request = {"key": 1, "quality": "fast"}
            assert await engine.head(request, portrait) is not None
            policy.write_text('consent = "register"\n')
            with pytest.raises(ConsentRefused, match=r"me\.png matches nobody .*\(consent\.json;") as refused:
                await engine.head(request, portrait)
            assert str(tmp_path) not in str(refused.value)
            register.add(describe(astronaut, track), network(), "Eileen")
            assert await engine.head(request, portrait) is not None
            register.remove("Eileen")
            with pytest.raises(ConsentRefused):
                await engine.head(request, portrait)
            job = {"id": "1", "verb": "edit", "portrait": portrait, "out": str(tmp_path / "out")}
            assert (await events(engine, job))[-1]["kind"] == "ConsentRefused"
        finally:
            await engine.stop()

    asyncio.run(asyncio.wait_for(use(Engine(policy, rigid_weights, engine="reference")), 120))


async def encoding(engine: Engine, portrait: Portrait, tmp_path: Path) -> None:
    made = await engine.encode(portrait)
    assert (made["width"], made["height"], len(made["faces"])) == (512, 512, 1)
    x, y, width, height = made["faces"][0]["box"]
    assert x < 224 < x + width
    assert y < 127 < y + height
    assert made["values"]["mouthSmile"] > 0.5
    assert made["warnings"] == []
    with Image.open(portrait["path"]) as image:
        write_png(tmp_path / "photo.png", np.asarray(image.convert("RGB").resize((200, 200))).copy())
    small = await engine.encode({"id": "3", "path": tmp_path / "photo.png", "digest": SENT, "name": "small.jpg"})
    with caught_warnings() as warnings, Tracker() as tracker:
        tracker.track_image(read_image(tmp_path / "photo.png"), "small.jpg")
    assert small["warnings"] == warnings
    assert small["warnings"][0].startswith("small.jpg: the face is only ")
    Image.new("RGB", (300, 300), "green").save(tmp_path / "clean.png")
    with pytest.raises(NoFaceFound, match=r"meadow\.jpg") as refused:
        await engine.encode({"id": "2", "path": tmp_path / "clean.png", "digest": SENT, "name": "meadow.jpg"})
    assert str(tmp_path) not in str(refused.value)


async def heads(engine: Engine, portrait: Portrait) -> None:
    pictures = [
        await engine.head({"key": 1, "quality": quality, "label": label, "yaw": 10.0}, portrait)
        for quality, label in (("fast", False), ("full", False), ("full", None))
    ]
    shown = []
    for picture in pictures:
        assert picture is not None
        with Image.open(io.BytesIO(picture.image)) as image:
            assert image.size == (picture.width, picture.height)
            shown.append(np.array(image.convert("RGB")))
    marks = [find_watermark([image]) for image in shown]
    assert [mark.found for mark in marks[1:]] == [True, True]
    assert np.abs(shown[1][-20:, -60:].astype(int) - shown[2][-20:, -60:]).mean() > 10, "the label"
    newest = await asyncio.gather(
        *(engine.head({"key": 7, "yaw": float(yaw), "quality": "fast"}, portrait) for yaw in range(12))
    )
    assert newest[-1] is not None
    assert None in newest, "a newer request replaces one that waits"
    with pytest.raises(Exception, match="jawUp"):
        await engine.head({"key": 1, "scores": {"jawUp": 0.5}}, portrait)


async def leaving(engine: Engine, portrait: Portrait) -> None:
    """Whoever stays waits for one picture, not for those of all who have left."""
    begun = time.monotonic()
    await engine.head({"key": 0, "yaw": 1.0}, portrait)
    one = time.monotonic() - begun
    left = [asyncio.create_task(engine.head({"key": key, "yaw": 2.0}, portrait)) for key in range(100, 160)]
    await asyncio.sleep(0)
    for task in left:
        task.cancel()
    begun = time.monotonic()
    assert await engine.head({"key": 0, "yaw": 3.0}, portrait) is not None
    assert time.monotonic() - begun < 20.0 * one
    assert (await asyncio.gather(*left, return_exceptions=True))[0].__class__ is asyncio.CancelledError


async def animating(engine: Engine, portrait: Portrait, video: Path, motion: Path, tmp_path: Path) -> None:
    out = tmp_path / "animate"
    out.mkdir()
    faces = []
    for number, frame in enumerate(list(read_frames(video))[:8]):
        faces.append(tmp_path / f"{number}.png")
        Image.fromarray(frame).save(faces[-1])
    job = {"id": "a", "verb": "animate", "portrait": portrait, "motion": motion, "motion_digest": "cd" * 32}
    job |= {"sound": video, "faces": faces, "frame": "crop", "size": 256, "out": out, "label": False}
    task = asyncio.create_task(events(engine, job))
    answered = 0
    while not task.done():
        answered += await engine.head({"key": 1, "yaw": float(answered % 20), "quality": "fast"}, portrait) is not None
        if answered == 2:
            await engine.encode({"id": "4", "path": tmp_path / "photo.png", "digest": SENT, "name": "small.jpg"})
    seen = await task
    assert answered > 3, "heads are answered while a job runs"
    warnings = seen[-1].pop("warnings")
    assert [warning.partition(" has ")[0] for warning in warnings] == ["the face crop"], "of the job, not of photo.png"
    assert seen[-1] == {"op": "done", "id": "a", "files": ["video.mp4", "poster.png", "sheet.png", "motion.motion"]}
    assert [event["stage"] for event in seen[:2]] == ["preparing", "rendering"]
    assert (seen[-2]["stage"], seen[-2]["done"], seen[-2]["total"]) == ("writing", 12, 12)
    previews = [event["preview"] for event in seen[:-1] if event["preview"]]
    with Image.open(io.BytesIO(previews[0])) as image:
        assert find_watermark([np.array(image.convert("RGB"))]).found
    assert probe(out / "video.mp4").has_audio
    for name in ("video.mp4", "poster.png", "sheet.png"):
        signed = signing.read(out / name)
        assert signed is not None
        assert signed.statement is not None
        assert (signed.statement["portrait"], signed.statement["motion"]) == (SENT, "cd" * 32)
    assert {path.name for path in out.iterdir()} == set(seen[-1]["files"])


async def other_jobs(engine: Engine, portrait: Portrait, tmp_path: Path) -> None:
    for verb, more, files in (
        ("orbit", {"seconds": 0.2, "path": "swing"}, ["video.mp4", "poster.png"]),
        ("edit", {"yaw": 10.0, "scores": {"jawOpen": 0.5}, "basis": {"2": 1.0}, "frame": "crop"}, ["still.png"]),
    ):
        out = tmp_path / verb
        out.mkdir()
        seen = await events(engine, {"id": verb, "verb": verb, "portrait": portrait, "out": out, "size": 256, **more})
        assert {**seen[-1], "warnings": []} == {"op": "done", "id": verb, "files": files, "warnings": []}
        assert sorted(path.name for path in out.iterdir()) == sorted(files)
    small: Portrait = {"id": "3", "path": tmp_path / "photo.png", "digest": SENT, "name": "small.jpg"}
    job = {"id": "small", "verb": "edit", "portrait": small, "out": out, "frame": "crop", "scores": {"tongueOut": 1.0}}
    face, tongue = (await events(engine, job))[-1]["warnings"]
    assert face.startswith("small.jpg: the face is only ")
    assert tongue.startswith("tongueOut shows no tongue")


async def cancelling(engine: Engine, portrait: Portrait, tmp_path: Path) -> None:
    out = tmp_path / "cancelled"
    out.mkdir()
    job = {"verb": "animate", "portrait": portrait, "motion": "speech", "frame": "crop", "out": out}
    waiting = asyncio.create_task(events(engine, {**job, "id": "second"}))
    seen = []
    async for event in engine.submit({**job, "id": "first"}):
        seen.append(event["op"])
        if event.get("done", 0) >= 1:
            begun = time.monotonic()
            engine.cancel("first")
            engine.cancel("second")
    assert seen[-1] == "cancelled"
    assert time.monotonic() - begun < 2.0
    assert (await waiting)[-1]["op"] == "cancelled"
    assert not list(out.iterdir())
    for wrong, sentence in (({"motion": "nothing"}, "nothing"), ({"size": 12}, "12"), ({"face": 3}, "3")):
        failed = (await events(engine, {**job, "id": "third", **wrong}))[-1]
        assert (failed["op"], sentence in failed["error"]) == ("failed", True)
    assert not list(out.iterdir())


async def dying(engine: Engine, portrait: Portrait, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    out.mkdir()
    job = {"id": "a", "verb": "animate", "portrait": portrait, "motion": "speech", "frame": "crop", "out": out}
    first, seen = engine.pid, []
    async for event in engine.submit(job):
        seen.append(event)
        if event.get("done") == 1:
            assert first is not None
            os.kill(first, signal.SIGKILL)
    assert (seen[-1]["op"], seen[-1]["kind"]) == ("failed", "EngineStopped")
    assert "signal 9" in seen[-1]["error"]
    assert not engine.alive
    while not engine.alive:
        with suppress(EngineStopped):
            await engine.encode(portrait)
        await asyncio.sleep(0.1)
    assert engine.restarts == 1
    assert engine.pid != first
    assert await engine.head({"key": 1}, portrait) is not None, "the portrait is encoded again"
    assert not list(out.iterdir())


def test_weights_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    async def use() -> None:
        engine = Engine(weights=tmp_path / "none.safetensors")
        with pytest.raises(CheckpointError, match=r"none\.safetensors"):
            await engine.start()
        with pytest.raises(CheckpointError):
            await engine.encode({"id": "1", "path": "a.png", "digest": None, "name": "a.png"})
        await engine.stop()

    asyncio.run(use())


def test_a_child_that_starts_is_not_waited_for(rigid_weights: Path) -> None:
    async def use() -> None:
        engine = Engine(weights=rigid_weights, engine="reference")
        starting = asyncio.create_task(engine.start())
        while engine._process is None:
            await asyncio.sleep(0.01)
        process, begun = engine._process, time.monotonic()
        await engine.stop()
        assert process.exitcode == -signal.SIGKILL
        assert time.monotonic() - begun < _LEAVING_S
        with pytest.raises(EngineStopped):
            await starting

    asyncio.run(use())


ORPHAN = """
import asyncio, sys, time
from export3d.studio.engine import Engine

async def main():
    engine = Engine(weights=sys.argv[1], engine="reference")
    await engine.start()
    print(engine.pid, sorted({"torch", "cv2", "av", "mediapipe"} & set(sys.modules)), flush=True)
    job = {"id": "a", "verb": "animate", "motion": "speech", "frame": "crop", "out": sys.argv[3]}
    job["portrait"] = {"id": "1", "path": sys.argv[2], "digest": None, "name": "me"}
    async for event in engine.submit(job):
        if event.get("done") == 1:
            print("rendering", flush=True)

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_the_child_ends_with_a_parent_that_is_killed(rigid_weights: Path, astronaut_path: Path, tmp_path: Path) -> None:
    (tmp_path / "orphan.py").write_text(ORPHAN)
    out = tmp_path / "out"
    out.mkdir()
    line = [sys.executable, tmp_path / "orphan.py", rigid_weights, astronaut_path, out]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, _, imported = parent.stdout.readline().partition(" ")
        assert imported.strip() == "[]", "the server imports nothing that computes"
        assert parent.stdout.readline() == "rendering\n"
        parent.kill()
    end = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < end, "the child outlives its parent"
        time.sleep(0.05)
    assert not [path for path in out.iterdir() if not path.name.startswith(".")], "nothing half-written has a name"
