"""What users send: streamed into the workspace, then looked at by a child process, never decoded here."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from export3d.studio.engine import EngineLike, Portrait
from export3d.studio.guard import UPLOAD_BYTES
from export3d.studio.intake import Intake
from export3d.studio.metrics import Metrics
from export3d.studio.refusals import Refused, gone
from export3d.studio.requests import BUNDLED, shown_name
from export3d.studio.workspace import Entry, Workspace

ASSETS = Path(__file__).resolve().parents[1] / "assets"
Kind = Literal["photo", "video", "motion", "background"]
KINDS: tuple[str, ...] = get_args(Kind)
ORIGINAL = "original"
"""Name of a file as it was sent, in its folder."""
AT_ONCE = 16
"""Uploads that arrive or are looked at."""
OF_ONE = 6
"""Of these, uploads of one client."""
BUNDLED_PORTRAIT: Portrait = {
    "id": BUNDLED,
    "path": str(ASSETS / "astronaut.png"),
    "digest": None,
    "name": "astronaut.png",
}
"""What the engine is told of the portrait in the package."""
_STEP = 16_000_000
"""Room is made for uploads of unknown length in such steps, bytes."""


@dataclass(frozen=True)
class Upload:
    """A file that a user sent.

    Attributes:
        id: names it in requests; who knows it may use it.
        kind: what it is.
        name: the user's name of it, to be shown.
        path: the video as it was sent, or what was decoded from the file; with `originals` always the file as sent.
        digest: SHA-256 of the file as it was sent, for the statement in what is made of it.
        shown: what the API tells of it.
    """

    id: str
    kind: Kind
    name: str
    path: Path
    digest: str
    shown: dict[str, Any]

    def portrait(self) -> Portrait:
        """What the engine is told of a photo."""
        return {"id": self.id, "path": str(self.path), "digest": self.digest, "name": self.name}


@dataclass(frozen=True)
class Kept:
    """A file that has arrived and was not looked at: its entry, shown name and SHA-256."""

    entry: Entry
    name: str
    digest: str


class Uploads:
    """The uploads of all users.

    Args:
        workspace, intake, engine, metrics: of the server.
        originals: keep files as they were sent, for an engine elsewhere, instead of what was decoded from them.
    """

    def __init__(
        self, workspace: Workspace, intake: Intake, engine: EngineLike, metrics: Metrics, originals: bool = False
    ) -> None:
        self._workspace, self._intake, self._engine, self._metrics = workspace, intake, engine, metrics
        self._originals = originals
        self.before_portrait: Callable[[], object] = lambda: None
        """Called before the engine is told of a portrait."""
        self._known: dict[str, Upload] = {}
        self._kept: dict[str, Kept] = {}
        self._arriving: Counter[str] = Counter()

    async def receive(self, kind: str, name: str, parts: AsyncIterator[bytes], announced: int = 0) -> Upload:
        """Take in a file.

        Args:
            kind: photo, video, motion or background.
            name: the user's name of the file, shown in messages and kept nowhere else.
            parts: its bytes as they come.
            announced: how many will come, if known.

        Raises:
            Export3DError: the file is refused, in one sentence; nothing of it is kept.
        """
        if kind not in KINDS:
            raise Refused(400, f"there is no kind {kind!r} of upload; the kinds are {', '.join(KINDS)}")
        return await self.adopt(await self.keep(name, parts, announced), cast(Kind, kind))

    @contextmanager
    def arriving(self, announced: int, client: str) -> Iterator[None]:
        """Let so many bytes of a client come in, within the block; raises `Refused` (429, 503, 507) without room."""
        if self._arriving[client] >= OF_ONE:
            raise Refused(429, f"{OF_ONE} of your uploads are on their way; wait for one, then send this again", 5)
        if self._arriving.total() >= AT_ONCE:
            raise Refused(503, "too many uploads at once; try again in a few seconds", 5)
        self._workspace.make_room(min(announced, UPLOAD_BYTES))
        self._arriving[client] += 1
        try:
            yield
        finally:
            self._arriving[client] -= 1
            if not self._arriving[client]:
                del self._arriving[client]

    async def keep(self, name: str, parts: AsyncIterator[bytes], announced: int = 0) -> str:
        """Take in a file of any kind, which nobody has looked at; returns its id."""
        entry = None
        try:
            entry = self._workspace.new(min(announced, UPLOAD_BYTES))
            with self._workspace.holding(entry.id):
                digest = await self._write(entry, parts)
                entry.expected = 0
        except BaseException:
            self._metrics.uploads["refused"] += 1
            if entry is not None:
                self._workspace.remove(entry.id)
            raise
        self._kept = {key: one for key, one in self._kept.items() if self._workspace.has(key)}
        self._kept[entry.id] = Kept(entry, shown_name(name), digest)
        return entry.id

    async def adopt(self, name: str, kind: Kind) -> Upload:
        """Have a kept file looked at as one of a kind, and make it an upload; one that it is already is returned."""
        if name in self._known:
            return self.get(name, kind)
        kept = self._take(name)
        try:
            with self._workspace.holding(name):
                upload = await self._look(kind, kept)
        except BaseException:
            self._metrics.uploads["refused"] += 1
            self._workspace.remove(name)
            raise
        self._metrics.uploads["done"] += 1
        self._known = {key: one for key, one in self._known.items() if self._workspace.has(key)}
        self._known[upload.id] = upload
        return upload

    async def verify(self, name: str) -> dict[str, Any]:
        """The marks in a kept file, which is then removed; see `Intake.verify`."""
        kept = self._take(name)
        try:
            with self._workspace.holding(name):
                return await self._intake.verify(kept.entry.folder / ORIGINAL, kept.name)
        finally:
            self._workspace.remove(name)

    def get(self, name: str, *kinds: Kind) -> Upload:
        """The upload of an id, of one of these kinds; raises `Refused` (404, or 400 for another kind)."""
        upload = self._known.get(name)
        if upload is None or self._workspace.entry(name) is None:
            raise gone("upload")
        if kinds and upload.kind not in kinds:
            raise Refused(400, f"{upload.name} was uploaded as a {upload.kind}, not as a {' or '.join(kinds)}")
        return upload

    def portrait(self, name: str) -> Portrait:
        """What the engine is told of a request's portrait."""
        self.before_portrait()
        return BUNDLED_PORTRAIT if name == BUNDLED else self.get(name, "photo").portrait()

    def remove(self, name: str) -> None:
        """Forget an upload and remove its files."""
        self.get(name)
        del self._known[name]
        self._workspace.remove(name)

    @property
    def names(self) -> dict[str, str]:
        """The users' names by id."""
        return {upload.id: upload.name for upload in self._known.values()}

    async def _write(self, entry: Entry, parts: AsyncIterator[bytes]) -> str:
        """Write the parts; returns their SHA-256."""
        got, digest = 0, hashlib.sha256()
        with (entry.folder / ORIGINAL).open("xb") as file:
            async for part in parts:
                got += len(part)
                if got > UPLOAD_BYTES:
                    raise Refused(413, f"the file is larger than {UPLOAD_BYTES / 1e6:g} MB; send a smaller one")
                if got > entry.expected:
                    self._workspace.make_room(_STEP)
                    entry.expected = got + _STEP
                await asyncio.to_thread(file.write, part)
                digest.update(part)
        if not got:
            raise Refused(400, "the upload is empty (0 bytes); choose another file")
        return digest.hexdigest()

    def _take(self, name: str) -> Kept:
        if self._workspace.entry(name) is None or name not in self._kept:
            raise gone("upload")
        return self._kept.pop(name)

    async def _look(self, kind: Kind, kept: Kept) -> Upload:
        """Have a child decode the file, and the engine find the faces of a photo."""
        entry, name, path = kept.entry, kept.name, kept.entry.folder / ORIGINAL
        made = dict(await getattr(self._intake, kind)(path, entry.folder, name))
        file = Path(made.pop("file", path))
        made.pop("digest", None)
        if kind == "video":
            made["filmstrip"] = f"/api/uploads/{entry.id}/{Path(made['filmstrip']).name}"
        else:
            (file if self._originals else path).unlink()
            file = path if self._originals else file
        upload = Upload(entry.id, kind, name, file, kept.digest, {})
        if kind == "photo":
            self.before_portrait()
            found = await self._engine.encode(upload.portrait())
            made |= found | {"warnings": list(dict.fromkeys([*made["warnings"], *found["warnings"]]))}
        return replace(upload, shown={"id": entry.id, "kind": kind, "name": name, **made})
