"""The server: its state, its routes, and how failures are told. It decodes nothing and renders nothing itself."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles

from export3d import files
from export3d.consent.register import Register
from export3d.engines.names import EngineName
from export3d.errors import Export3DError
from export3d.policy import Policy, current_policy
from export3d.studio.api_page import api_page
from export3d.studio.engine import Engine, EngineLike
from export3d.studio.gradio_api import GradioApi
from export3d.studio.guard import UPLOAD_BYTES, Guard, Rates, Scope, refusal_or_bug
from export3d.studio.head import HeadSocket
from export3d.studio.intake import Intake
from export3d.studio.intake_process import MOST_PIXELS, MOST_SECONDS
from export3d.studio.jobs import TYPES, Jobs
from export3d.studio.metrics import Metrics
from export3d.studio.refusals import LEAVING, Refused
from export3d.studio.requests import LONGEST_S, VERBS, command_line, parse_verb, schema_of_verbs
from export3d.studio.uploads import BUNDLED_PORTRAIT, Uploads
from export3d.studio.workspace import Workspace

log = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
_SWEEP_S = 30.0
_BEAT_S = 15.0
"""A job's events say so often that they are still there."""
T = TypeVar("T")
MakeEngine = Callable[[Path], EngineLike]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a studio is run.

    Attributes:
        folder: where its temporary folder is made; None: the system's place.
        shared_on: the host that others reach it by; None: loopback only.
        token: what others must know.
        weights, pure, device, engine: see `Animator.from_pretrained`.
        jobs: how many run at a time.
        backend: the URL of another studio that renders, with its token; None: this machine renders.
        rates: limits of rates.
    """

    folder: Path | None = None
    shared_on: str | None = None
    token: str | None = None
    weights: Path | None = None
    pure: bool = False
    device: str = "auto"
    engine: EngineName = "auto"
    jobs: int = 1
    backend: str | None = None
    rates: Rates = field(default_factory=Rates)


class Studio:
    """Everything a running server has."""

    def __init__(
        self, settings: Settings, told: Callable[[Export3DError | None], None], engine: MakeEngine | None = None
    ) -> None:
        self.settings, self.told = settings, told
        self.leaving = False
        self.metrics = Metrics()
        self.workspace = Workspace(settings.folder)
        self._temporary = os.environ.get("TMPDIR")
        os.environ["TMPDIR"] = tempfile.tempdir = str(self.workspace.spool)  # also of the engine and of forms
        self.own_policy = current_policy()
        self._policy_text = ""
        self._register: tuple[tuple[int, ...], bool] = ((), False)
        policy = self.write_policy()
        self.engine = (engine or self._own_engine)(policy)
        self.intake = Intake()
        elsewhere = settings.backend is not None
        self.uploads = Uploads(self.workspace, self.intake, self.engine, self.metrics, originals=elsewhere)
        self.uploads.before_portrait = self.write_policy
        self.jobs = Jobs(
            self.workspace, self.uploads, self.engine, self.intake, self.metrics, not elsewhere, settings.jobs
        )
        self.gradio = GradioApi(self.uploads, self.jobs, self.workspace.folder)
        self.metrics.gauges |= {
            "queue_jobs": ("Jobs that wait.", lambda: self.jobs.waiting),
            "workspace_bytes": ("Size of uploads and results.", lambda: self.workspace.bytes),
            "engine_up": ("Whether the engine answers.", lambda: float(self.engine.alive)),
            "engine_resident_bytes": ("Memory of the engine.", self.engine.memory),
        }

    def _own_engine(self, policy: Path) -> EngineLike:
        """The engine that the settings ask for."""
        settings = self.settings
        if settings.backend is None:
            return Engine(policy, settings.weights, settings.pure, settings.device, settings.engine)
        from export3d.studio.remote_engine import RemoteEngine

        return RemoteEngine(settings.backend, policy)

    @property
    def policy(self) -> Policy:
        """The policy of this server; the register of consent may have grown since it was last asked for."""
        registered = self._registered()
        if self.settings.shared_on is not None:
            return self.own_policy.for_server(registered)
        consent = "register" if registered else self.own_policy.consent
        return Policy(marks="required", label=self.own_policy.label, consent=consent)

    def _registered(self) -> bool:
        """Whether the register of consent has an entry; it is read when its file has changed."""
        register = Register()
        state = register.state
        if not state or state != self._register[0]:
            self._register = (state, bool(register.entries()))
        return self._register[1]

    def write_policy(self) -> Path:
        """Write the policy that the engine obeys; returns the file."""
        policy, path = self.policy, self.workspace.folder / "policy.toml"
        text = f'marks = "{policy.marks}"\nlabel = {str(policy.label).lower()}\nconsent = "{policy.consent}"\n'
        if text != self._policy_text:
            files.write_bytes(path, text.encode())
            self._policy_text = text
        return path

    @asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """Start the engine and the queue; at the end stop both and remove the folder."""
        works = (self._start_engine(), self.jobs.work(), self._sweep(), self._serve_gradio())
        tasks = [asyncio.create_task(work) for work in works]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.engine.stop()
            self.close()

    def close(self) -> None:
        """Remove the folder."""
        tempfile.tempdir = None
        if self._temporary is None:
            os.environ.pop("TMPDIR", None)
        else:
            os.environ["TMPDIR"] = self._temporary
        self.workspace.close()

    def leave(self) -> None:
        """Refuse what is new from now on; what runs goes on."""
        self.leaving = True
        self.jobs.close()

    async def _start_engine(self) -> None:
        try:
            await self.engine.start()
            self.told(None)
        except Export3DError as problem:
            self.told(problem)

    async def _serve_gradio(self) -> None:
        try:
            async with self.gradio.running():
                await asyncio.Event().wait()
        except Exception:
            log.exception("Gradio does not start; its clients are not served")

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            self.workspace.expire()

    def info(self) -> dict[str, Any]:
        """What a page needs to know first."""
        known = self.engine.info or {}
        elsewhere = known.get("policy", {}).get("label")  # of the machine that renders, if that is another one
        label = "forced" if self.policy.label or elsewhere == "forced" else "on"
        return {
            "version": version("export3d"),
            "ready": self.engine.alive,
            "shared": self.settings.shared_on is not None,
            "elsewhere": self.settings.backend is not None,
            "size": known.get("size", 256),
            "limits": {
                "upload_bytes": UPLOAD_BYTES,
                "photo_pixels": MOST_PIXELS,
                "video_seconds": MOST_SECONDS,
                "result_seconds": LONGEST_S,
            },
            "motions": known.get("motions", []),
            "bundled": {"id": "bundled", "width": 512, "height": 512, "faces": 1},
            "controls": known.get("controls", {"head": [], "groups": [], "basis": []}),
            "policy": {"label": label, "consent": self.policy.consent},
            "verbs": list(VERBS),
        }


def create_app(
    settings: Settings,
    told: Callable[[Export3DError | None], None] = lambda problem: None,
    engine: MakeEngine | None = None,
) -> Guard:
    """The server as an ASGI application.

    Args:
        settings: how it is run.
        told: called once: with None when the engine renders, or with the reason why it never will.
        engine: makes what renders, not yet started, for a policy file; None: as the settings say.

    Raises:
        OutputError: its folder cannot be made.
        PolicyError: the machine's policy cannot be read.
    """
    studio = Studio(settings, told, engine)
    app = FastAPI(
        title="export3d studio",
        version=version("export3d"),
        description='Turn, edit and animate a portrait. Errors are {"error": sentence} with a fitting status.',
        docs_url=None,
        redoc_url=None,
        lifespan=studio.running,
    )
    app.state.studio = studio
    _add_failures(app)
    _add_uploads(app, studio)
    _add_jobs(app, studio)
    _add_pages(app, studio)
    guard = Guard(app, settings.shared_on, settings.token, settings.rates)
    studio.metrics.refusals = guard.refused.items
    return guard


def _add_failures(app: FastAPI) -> None:
    async def tell(request: Request, problem: Exception) -> Response:
        refused = refusal_or_bug(problem)
        headers = {"Retry-After": str(refused.retry_s)} if refused.retry_s else None
        return JSONResponse({"error": str(refused)}, refused.status, headers)

    async def tell_http(request: Request, problem: Exception) -> Response:
        assert isinstance(problem, HTTPException)
        words = {404: "there is no such page; see /api", 405: "this address does not take that method; see /api"}
        sentence = words.get(problem.status_code, str(problem.detail))
        return JSONResponse({"error": sentence}, problem.status_code)

    async def tell_faults(request: Request, problem: Exception) -> Response:
        assert isinstance(problem, RequestValidationError)
        fault = problem.errors()[0]
        where = ".".join(str(part) for part in fault["loc"][1:])
        return JSONResponse({"error": f"{where or 'the request'}: {fault['msg'].lower()}; see /api"}, 422)

    async def nobody(request: Request, problem: Exception) -> Response:
        return Response(status_code=499)  # the client has left

    app.add_exception_handler(RequestValidationError, tell_faults)
    app.add_exception_handler(ClientDisconnect, nobody)
    app.add_exception_handler(Export3DError, tell)
    app.add_exception_handler(Exception, tell)
    app.add_exception_handler(OSError, tell)
    app.add_exception_handler(HTTPException, tell_http)


def _add_uploads(app: FastAPI, studio: Studio) -> None:
    @app.post("/api/uploads", status_code=201, tags=["uploads"], openapi_extra=_FILE_BODY)
    async def upload(request: Request, kind: str = "photo", name: str = "") -> dict[str, Any]:
        """Send a photo, a driving video, a motion file or a background: raw bytes, or a form with one file."""
        if studio.leaving:
            raise Refused(503, LEAVING, 30)
        async with _sent(studio, request, name) as (parts, announced, given):
            made = await _unless_left(request, studio.uploads.receive(kind, given, parts, announced))
        return made.shown

    @app.get("/api/uploads/{upload_id}/filmstrip.webp", tags=["uploads"], response_class=FileResponse)
    async def filmstrip(upload_id: str) -> FileResponse:
        """Ten thumbnails of a video, side by side."""
        return FileResponse(studio.uploads.get(upload_id, "video").path.with_name("filmstrip.webp"))

    @app.delete("/api/uploads/{upload_id}", status_code=204, tags=["uploads"])
    async def remove(upload_id: str) -> None:
        """Remove an upload."""
        studio.uploads.remove(upload_id)
        studio.engine.forget(upload_id)

    async def verified(name: str, parts: AsyncIterator[bytes], announced: int) -> dict[str, Any]:
        return await studio.uploads.verify(await studio.uploads.keep(name, parts, announced))

    @app.post("/api/verify", tags=["uploads"], openapi_extra=_FILE_BODY)
    async def verify(request: Request, name: str = "") -> dict[str, Any]:
        """Search an image or a video for marks of generated media."""
        async with _sent(studio, request, name) as (parts, announced, given):
            return await _unless_left(request, verified(given, parts, announced))


def _add_jobs(app: FastAPI, studio: Studio) -> None:
    jobs = studio.jobs

    @app.post("/api/jobs", status_code=202, tags=["jobs"], openapi_extra=_verb_body())
    async def submit(request: Request) -> dict[str, Any]:
        """Queue a verb: animate, orbit, edit or track."""
        asked = parse_verb(await request.body())
        await jobs.check(asked)
        return jobs.shown(jobs.submit(asked, request.state.client))

    @app.get("/api/jobs/{job_id}", tags=["jobs"])
    async def state(job_id: str) -> dict[str, Any]:
        """The state of a job, its progress and, when it is done, its files."""
        return jobs.shown(jobs.get(job_id))

    @app.get("/api/jobs/{job_id}/events", tags=["jobs"], response_class=StreamingResponse)
    async def events(job_id: str) -> StreamingResponse:
        """The same at each change, as server-sent events."""
        job = jobs.get(job_id)

        async def lines() -> AsyncIterator[str]:
            async for shown in _with_beats(jobs.events(job)):
                yield ": still here\n\n" if shown is None else f"data: {json.dumps(shown)}\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream")

    @app.delete("/api/jobs/{job_id}", tags=["jobs"])
    async def end(job_id: str) -> dict[str, Any]:
        """Cancel a job; remove one that has ended."""
        return jobs.shown(jobs.end(job_id))

    @app.get("/api/jobs/{job_id}/preview", tags=["jobs"], response_class=Response)
    async def preview(job_id: str, n: int = 0) -> Response:
        """The newest frame of a job that runs."""
        job = jobs.get(job_id)
        if job.preview is None:
            raise Refused(404, "this job has no preview now; ask for its state")
        return Response(job.preview, media_type="image/jpeg")

    @app.get("/api/jobs/{job_id}/files/{name}", tags=["jobs"], response_class=FileResponse)
    async def file(job_id: str, name: str, download: bool = False) -> FileResponse:
        """A result; parts of it by Range. download=1 asks browsers to save it."""
        path = jobs.file(jobs.get(job_id), name)
        how = "attachment" if download else "inline"
        saved = jobs.saved_name(jobs.get(job_id), name)
        return FileResponse(path, media_type=TYPES[path.suffix], filename=saved, content_disposition_type=how)

    @app.post("/api/command", tags=["jobs"], openapi_extra=_verb_body())
    async def command(request: Request) -> dict[str, str]:
        """The command line that does the same as a verb."""
        asked = parse_verb(await request.body())
        await jobs.check(asked)
        bundled = str(BUNDLED_PORTRAIT["name" if studio.settings.shared_on else "path"])
        return {"command": command_line(asked, {**studio.uploads.names, "bundled": bundled}, label=True)}


def _add_pages(app: FastAPI, studio: Studio) -> None:
    @app.websocket("/api/head")
    async def head(socket: WebSocket) -> None:
        await HeadSocket(socket, studio.engine, studio.uploads, studio.metrics, lambda: studio.leaving).serve()

    @app.get("/api/info", tags=["server"])
    async def info() -> dict[str, Any]:
        """Version, limits, controls, motions and policy."""
        return studio.info()

    @app.get("/health", tags=["server"])
    async def health() -> dict[str, Any]:
        """Whether the server can render."""
        engine = "up" if studio.engine.alive else "starting"
        status = "ok" if studio.engine.alive else "starting"
        return {"status": status, "engine": engine, "queue": studio.jobs.waiting}

    @app.get("/metrics", tags=["server"], response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Counters for Prometheus."""
        return PlainTextResponse(studio.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/api", include_in_schema=False)
    async def api() -> HTMLResponse:
        return HTMLResponse(api_page(app.openapi()))

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    @app.post("/gradio/gradio_api/upload", include_in_schema=False)
    async def gradio_upload(request: Request) -> list[str]:
        async with _sent(studio, request, "") as (parts, announced, name):
            return await _unless_left(request, studio.gradio.upload(name, parts, announced))

    @app.get("/gradio/gradio_api/file={path:path}", include_in_schema=False)
    async def gradio_file(path: str) -> FileResponse:
        return FileResponse(studio.gradio.file(path))

    app.mount("/gradio", studio.gradio)
    app.mount("/page", StaticFiles(directory=PAGE))


_FILE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def _verb_body() -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema_of_verbs()}}}}


@asynccontextmanager
async def _sent(studio: Studio, request: Request, name: str) -> AsyncIterator[tuple[AsyncIterator[bytes], int, str]]:
    """The bytes of the file in a request, their number if it is known, and the file's name."""
    length = request.headers.get("content-length", "")
    announced = int(length) if length.isdigit() else 0
    with studio.uploads.arriving(announced, request.state.client):
        try:
            if not request.headers.get("content-type", "").startswith("multipart/form-data"):
                yield request.stream(), announced, name
                return
            form = await request.form(max_files=1, max_fields=10, max_part_size=1000)
            try:
                sent = next((value for value in form.values() if isinstance(value, UploadFile)), None)
                if sent is None:
                    raise Refused(400, "the form holds no file; send one, or the file's bytes as the body")
                yield _parts(sent), sent.size or 0, name or sent.filename or ""
            finally:
                await form.close()
        except (HTTPException, MultiPartException) as problem:
            raise Refused(400, "the form cannot be read; send one file, and at most ten short fields") from problem
        except ClientDisconnect as problem:
            raise Refused(499, "the client has left") from problem


async def _parts(sent: UploadFile) -> AsyncIterator[bytes]:
    while part := await sent.read(1 << 18):
        yield part


async def _unless_left(request: Request, work: Awaitable[T]) -> T:
    """Do some work that reads the request's body, and stop it when the client leaves.

    While the body arrives, a client that leaves ends its stream; afterwards this looks every half second.
    """
    task = asyncio.ensure_future(work)
    try:
        while True:
            done, _ = await asyncio.wait([task], timeout=0.5)
            if done:
                return task.result()
            if _body_read(request.scope) and await request.is_disconnected():
                raise Refused(499, "the client has left")
    finally:
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


def _body_read(scope: Scope) -> bool:
    return bool(scope["state"]["body"].done)


async def _with_beats(events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[dict[str, Any] | None]:
    """The events, and None whenever a while has passed without one."""
    while True:
        following = asyncio.ensure_future(anext(events))
        try:
            while not (await asyncio.wait([following], timeout=_BEAT_S))[0]:
                yield None
            yield following.result()
        except StopAsyncIteration:
            return
        finally:
            following.cancel()
