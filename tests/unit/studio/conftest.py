"""A studio whose engine and intake are small doubles: what is tested is the server between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra studio is not installed")

from fastapi.testclient import TestClient

from export3d.errors import BadImage, BadVideo, NoFaceFound
from export3d.studio import app as app_module
from export3d.studio.app import Settings, Studio
from export3d.studio.engine import Picture
from export3d.studio.gradio_api import GradioApi
from export3d.studio.guard import Guard

PIXEL = b"\xff\xd8jpeg"


class DoubleEngine:
    """Answers at once. A job takes `frames` steps and waits at each for `step`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.info: dict[str, Any] | None = None
        self.alive = False
        self.frames, self.step = 3, 0.0
        self.heads: list[dict[str, Any]] = []
        self.jobs: list[dict[str, Any]] = []
        self.cancelled: list[str] = []
        self.forgotten: list[str] = []
        self.head_s = 0.0
        self.failure: dict[str, Any] | None = None

    async def start(self) -> dict[str, Any]:
        self.info = {"size": 256, "motions": [], "controls": {"head": [], "groups": [], "basis": []}}
        self.alive = True
        return self.info

    async def stop(self) -> None:
        self.alive = False

    async def encode(self, portrait: Mapping[str, Any], face: str | int = "largest") -> dict[str, Any]:
        if isinstance(face, int) and face > 2:
            raise NoFaceFound(f"{portrait['name']} shows 2 faces, counted from left to right; face {face} is not one")
        faces = [{"number": 1, "box": [1.0, 2.0, 3.0, 3.0]}]
        return {"width": 4, "height": 5, "faces": faces, "values": {"jawOpen": 0.25}, "warnings": ["soft", "small"]}

    async def head(self, request: Mapping[str, Any], portrait: Mapping[str, Any]) -> Picture:
        self.heads.append({**request, "portrait": dict(portrait)})
        await asyncio.sleep(self.head_s)
        return Picture(PIXEL, 256, 256, 7.0, {"jawOpen": 0.25})

    async def submit(self, job: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        self.jobs.append(dict(job))
        name = job["id"]
        for number in range(self.frames):
            await asyncio.sleep(self.step)
            progress = {"stage": "rendering", "done": number + 1, "total": self.frames, "preview": PIXEL}
            yield {"op": "progress", "id": name, **progress}
        if self.failure is not None:
            yield {"op": "failed", "id": name, **self.failure}
            return
        for file in ("video.mp4", "poster.png", "motion.motion"):
            (Path(job["out"]) / file).write_bytes(b"0123456789")
        yield {"op": "done", "id": name, "files": ["video.mp4"], "warnings": ["no tongue"]}

    def cancel(self, job: str) -> None:
        self.cancelled.append(job)

    def forget(self, portrait: str) -> None:
        self.forgotten.append(portrait)

    def memory(self) -> int:
        return 123


class DoubleIntake:
    """Takes everything but files that begin with `bad`."""

    def __init__(self) -> None:
        self.wait_s = 0.0
        self.ended = 0

    async def photo(self, path: Path, folder: Path, name: str) -> dict[str, Any]:
        try:
            await asyncio.sleep(self.wait_s)
        except asyncio.CancelledError:
            self.ended += 1
            raise
        if path.read_bytes().startswith(b"bad"):
            raise BadImage(f"{name} is no image; send a JPEG or PNG")
        (folder / "photo.png").write_bytes(b"png")
        return {"width": 4, "height": 5, "warnings": ["soft"], "digest": "00", "file": folder / "photo.png"}

    background = photo

    async def video(self, path: Path, folder: Path, name: str) -> dict[str, Any]:
        (folder / "filmstrip.webp").write_bytes(b"webp")
        facts = {"width": 64, "height": 48, "seconds": 2.0, "fps": 25.0, "sound": True}
        return {**facts, "filmstrip": folder / "filmstrip.webp"}

    async def motion(self, path: Path, folder: Path, name: str) -> dict[str, Any]:
        (folder / "motion.motion").write_bytes(b"motion")
        return {"frames": 50, "seconds": 2.0, "fps": 25.0, "space": "arkit52", "file": folder / "motion.motion"}

    async def track(
        self, path: Path, folder: Path, name: str, *, progress: Callable[[int], None], **options: Any
    ) -> dict[str, Any]:
        progress(25)
        await asyncio.sleep(self.wait_s)
        if not path.exists():
            raise BadVideo(f"{name} does not exist; check the path")
        (folder / "motion.motion").write_bytes(b"tracked")
        facts = {"frames": 50, "seconds": 2.0, "sound": None, "pictures": [], "warnings": [f"{name}: lost"]}
        return {**facts, "motion": folder / "motion.motion"}

    async def verify(self, path: Path, name: str) -> dict[str, Any]:
        return {"path": name, "result": "marked"}


@pytest.fixture
def make_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Guard]]:
    """A function that makes a server with doubles, in a folder of the test."""
    monkeypatch.setattr(app_module, "Engine", DoubleEngine)
    monkeypatch.setattr(app_module, "Intake", DoubleIntake)
    monkeypatch.setattr(GradioApi, "running", lambda self: nullcontext())
    made: list[Studio] = []

    def make(**settings: Any) -> Guard:
        app = app_module.create_app(Settings(folder=tmp_path / "studio", **settings))
        made.append(studio_of(app))
        return app

    yield make
    for studio in made:
        studio.close()


def studio_of(app: Guard) -> Studio:
    """The state of a server."""
    studio: Studio = app.app.state.studio  # type: ignore[attr-defined]
    return studio


@pytest.fixture
def app(make_app: Callable[..., Guard]) -> Guard:
    """A server on loopback."""
    return make_app()


@pytest.fixture
def studio(app: Guard) -> Studio:
    """Its state."""
    return studio_of(app)


@pytest.fixture
def client(app: Guard) -> Iterator[TestClient]:
    """A program on this machine that talks to it."""
    with TestClient(app, base_url="http://127.0.0.1:7860", client=("127.0.0.1", 1)) as client:
        yield client
