"""The same verbs for Gradio's clients: `gradio_client.Client("http://127.0.0.1:7860/gradio")`.

Of Gradio only its queue and its protocol are used. What its clients upload and download passes through the studio's own
uploads and jobs, with their limits; its other addresses are closed, and it never fetches a URL.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin
from urllib.parse import unquote

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from export3d.errors import Export3DError
from export3d.studio.guard import Message, Receive, Scope, Send, answer
from export3d.studio.jobs import Jobs
from export3d.studio.refusals import Refused, gone, refusal
from export3d.studio.requests import Animate, Edit, Orbit, Track, is_id, parse_verb
from export3d.studio.uploads import ORIGINAL, Kind, Uploads

PREFIX = "/gradio"
_OPEN = re.compile(r"/(config|gradio_api/(info|queue/join|queue/data|cancel|reset|call/[a-z]+(/[0-9a-f]+)?))/?")
_KINDS: dict[str, Kind] = {"portrait": "photo", "driving": "video", "motion": "motion", "background": "background"}
"""Fields that may be files, and what they are."""
_FILES = {"animate": ("video.mp4", "poster.png", "motion.motion"), "orbit": ("video.mp4", "poster.png")}
_FILES |= {"edit": ("still.png",), "track": ("motion.motion",)}
"""What each verb returns."""


class GradioApi:
    """The part of the server under `/gradio`, an ASGI application; `running` loads Gradio, which takes seconds."""

    def __init__(self, uploads: Uploads, jobs: Jobs, folder: Path) -> None:
        self._uploads, self._jobs, self._folder = uploads, jobs, folder
        self._app: Callable[[Scope, Receive, Send], Awaitable[None]] | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Load Gradio and run its queue."""
        loading = asyncio.ensure_future(asyncio.to_thread(self._load))
        try:
            app = await asyncio.shield(loading)
        except asyncio.CancelledError:
            await asyncio.wait([loading])  # it makes folders in the workspace, which is removed next
            raise
        async with app.router.lifespan_context(app):
            app.get_blocks().run_startup_events()
            await app.get_blocks().run_extra_startup_events()
            self._app = app
            try:
                yield
            finally:
                self._app = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if self._app is None:
                raise Refused(503, "the studio is starting; wait a few seconds", 2)
            if scope["type"] != "http" or not _OPEN.fullmatch(scope["path"].removeprefix(PREFIX)):
                raise Refused(404, "there is no such page; see /api")
            if scope["method"] == "POST":
                receive = await _checked(receive)
            await self._app(scope, receive, send)
        except Export3DError as problem:
            refused = refusal(problem)
            assert refused is not None
            await answer(send, refused)

    async def upload(self, name: str, parts: AsyncIterator[bytes], announced: int) -> list[str]:
        """Keep a file until a verb uses it; its path, as Gradio's clients expect."""
        return [str(self._folder / await self._uploads.keep(name, parts, announced) / ORIGINAL)]

    def file(self, path: str) -> Path:
        """A result of a job by its path; raises `Refused` (404) for every other path."""
        parts = Path(unquote(path)).parts
        if len(parts) < 3 or parts[-2] != "results" or not is_id(parts[-3]):
            raise gone("file")
        return self._jobs.file(self._jobs.get(parts[-3]), parts[-1])

    def _load(self) -> Any:
        os.environ["GRADIO_TEMP_DIR"] = str(self._folder)
        import gradio
        from gradio.events import api

        with gradio.Blocks(mode="server", title="export3d studio", analytics_enabled=False) as blocks:
            for kind in (Animate, Orbit, Edit, Track):
                api(self._verb(kind, gradio), api_name=_name(kind), concurrency_limit=None)
            api(self._verify(gradio), api_name="verify", concurrency_limit=None)
        blocks.queue(max_size=64)
        outer = FastAPI()
        gradio.mount_gradio_app(
            outer,
            blocks,
            PREFIX,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            enable_monitoring=False,
            pwa=False,
        )
        return outer.routes[-1].app  # type: ignore[attr-defined]

    def _verb(self, kind: type[BaseModel], gradio: Any) -> Callable[..., Any]:
        """A function with a verb's fields as parameters: it takes in files, queues a job, and waits for its results."""
        name = _name(kind)
        file = gradio.FileData
        parameters, hints = [], {}
        for field, about in kind.model_fields.items():
            if field == "verb":
                continue
            default = inspect.Parameter.empty if about.default is PydanticUndefined else about.default
            parameters.append(inspect.Parameter(field, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default))
            hints[field] = (file | str) if field in _KINDS else _plain(about.annotation)
        parameters.append(inspect.Parameter("request", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None))
        results = _FILES[name]

        async def run(*values: Any) -> Any:
            *given, request = values
            client = f"{request.client.host} gradio {request.session_hash}"
            with _told(gradio):
                fields = {"verb": name}
                for parameter, value in zip(parameters, given):
                    fields[parameter.name] = await self._taken(parameter.name, value)
                asked = parse_verb(json.dumps(fields))
                await self._jobs.check(asked)
                job = self._jobs.submit(asked, client)
                async for _ in self._jobs.events(job):
                    pass
                if job.state != "done":
                    raise Refused(400, job.error or "the job was cancelled")
            files = [file(path=str(job.results / one)) for one in results]
            return files[0] if len(files) == 1 else tuple(files)

        run.__name__ = name
        run.__doc__ = kind.__doc__
        output = file if len(results) == 1 else tuple[(file,) * len(results)]  # type: ignore[misc]
        run.__signature__ = inspect.Signature(parameters, return_annotation=output)  # type: ignore[attr-defined]
        run.__annotations__ = {**hints, "request": gradio.Request, "return": output}
        return run

    def _verify(self, gradio: Any) -> Callable[..., Any]:
        async def verify(file: Any) -> Any:
            """Search an image or a video for marks of generated media."""
            with _told(gradio):
                return await self._uploads.verify(_id(file))

        verify.__annotations__ = {"file": gradio.FileData, "return": dict}
        return verify

    async def _taken(self, field: str, value: Any) -> Any:
        """The value of a field; a file that was uploaded becomes an upload of the kind that the field needs."""
        if isinstance(value, dict) and field in _KINDS:
            return (await self._uploads.adopt(_id(value), _KINDS[field])).id
        return value


def _id(value: Any) -> str:
    """The id of an uploaded file, from the path that `GradioApi.upload` returned."""
    parts = Path(str(value.get("path") if isinstance(value, dict) else "")).parts
    if len(parts) < 2 or parts[-1] != ORIGINAL:
        raise Refused(400, "give a file by handle_file(path)")
    return parts[-2]


def _name(kind: type[BaseModel]) -> str:
    return kind.__name__.lower()


def _plain(annotation: Any) -> Any:
    """A type without its limits, which the request checks itself and Gradio does not know."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _plain(parts[0])
    if origin in (Union, UnionType):
        return Union[tuple(map(_plain, parts))]  # noqa: UP007 - of a list
    return dict[str, float] if origin is dict else annotation


@contextmanager
def _told(gradio: Any) -> Iterator[None]:
    """Tell clients of Gradio a refusal in its words."""
    try:
        yield
    except Export3DError as problem:
        raise gradio.Error(" ".join(str(problem).split()), print_exception=False) from None
    except OSError as problem:
        refused = refusal(problem)
        if refused is None:
            raise
        raise gradio.Error(str(refused), print_exception=False) from None


async def _checked(receive: Receive) -> Receive:
    """Read a body, and refuse one that names a URL: Gradio would fetch it."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = bool(message.get("more_body", False)) and message["type"] == "http.request"
    try:
        content = json.loads(body)
        if not isinstance(content, dict):
            raise ValueError
    except (ValueError, RecursionError):
        raise Refused(400, "the request is not valid JSON; send an object") from None
    if any(re.match(r"\s*[a-z][a-z0-9+.-]*://", text, re.IGNORECASE) for text in _texts(content)):
        raise Refused(400, "the studio fetches no URL; download the file and give it by handle_file(path)")
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _texts(content: Any) -> Iterator[str]:
    waiting = [content]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
