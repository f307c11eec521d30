"""Small files of every format that is signed, and the statement that is signed into them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from export3d.image import encode_png, read_image
from export3d.provenance import signing
from export3d.provenance.certificate import credentials
from export3d.provenance.statement import Statement


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's folder for each test."""
    monkeypatch.setenv("EXPORT3D_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="session")
def statement() -> Statement:
    return Statement(portrait="a1" * 32, motion="b2" * 32, weights="c3" * 32)


@pytest.fixture(scope="session")
def unsigned(tmp_path_factory: pytest.TempPathFactory, statement: Statement) -> Path:
    """A folder with `plain.mp4`, `plain.png`, `plain.jpg` and `plain.webp`, with our plain metadata only."""
    from PIL import Image

    from export3d.provenance.statement import XMP_KEYWORD
    from export3d.video import VideoWriter

    folder = tmp_path_factory.mktemp("unsigned")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    (folder / "plain.png").write_bytes(encode_png(pixels, {XMP_KEYWORD: statement.xmp()}))
    for name in ("plain.jpg", "plain.webp"):
        Image.fromarray(pixels).save(folder / name, xmp=statement.xmp().encode(), quality=95)
    with VideoWriter(folder / "plain.mp4", 25, 64, metadata=statement.tags()) as writer:
        writer.write(pixels)
    return folder


@pytest.fixture
def signed_file(tmp_path: Path, unsigned: Path, statement: Statement) -> Callable[[str], Path]:
    """Makes a signed file of a format."""

    def make(kind: str) -> Path:
        signing.sign(unsigned / f"plain.{kind}", tmp_path / f"signed.{kind}", statement)
        return tmp_path / f"signed.{kind}"

    return make


@pytest.fixture
def sign_as(tmp_path: Path, unsigned: Path) -> Callable[..., Path]:
    """Signs a PNG as another program does.

    `remote` is an address where it says that its statement is, `more` are further assertions; `parent` is a signed file
    that it says it edited.
    """

    def make(
        tool: str,
        source_type: str | None,
        remote: str | None = None,
        more: list[dict] | None = None,
        parent: Path | None = None,
    ) -> Path:
        import c2pa

        own = credentials()
        created = {"action": "c2pa.created", "digitalSourceType": source_type}
        opened = {"action": "c2pa.opened", "parameters": {"ingredientIds": ["parent"]}}
        manifest = {
            "claim_generator_info": [{"name": tool, "version": "7"}],
            "assertions": [
                {"label": "c2pa.actions.v2", "data": {"actions": [opened if parent else created]}},
                *(more or []),
            ],
        }
        info = c2pa.C2paSignerInfo(own.algorithm, own.certificates, own.key, None)
        context = signing._context()
        without_metadata = read_image(unsigned / "plain.png")
        with c2pa.Signer.from_info(info) as signer, c2pa.Builder(manifest, context=context) as builder:
            if parent is not None:
                about = {"title": "parent", "label": "parent", "relationship": "parentOf"}
                with parent.open("rb") as source:
                    builder.add_ingredient(json.dumps(about), "image/png", source)
            if remote is not None:
                builder.set_no_embed()
                builder.set_remote_url(remote)
            with (tmp_path / "foreign.png").open("w+b") as target:
                builder.sign(signer, "image/png", io.BytesIO(encode_png(without_metadata, {})), target)
        return tmp_path / "foreign.png"

    return make


@pytest.fixture(scope="session")
def marked(tmp_path_factory: pytest.TempPathFactory, statement: Statement, astronaut_turns: list[np.ndarray]) -> Path:
    """A folder with `marked.mp4`, `marked.png`, `marked.jpg` and `marked.webp`, with all marks."""
    from PIL import Image

    from export3d.provenance.watermark.embed import Watermark
    from export3d.provenance.writing import Marks, video_writer, write_image

    folder = tmp_path_factory.mktemp("marked")
    with video_writer(folder / "marked.mp4", 25, 256, marks=Marks(statement)) as writer:
        for frame in astronaut_turns:
            writer.write(frame)
    write_image(folder / "marked.png", astronaut_turns[0], Marks(statement))
    pixels = Watermark(statement.payload).apply(astronaut_turns[0])
    for kind in ("jpg", "webp"):
        path = folder / f"marked.{kind}"
        Image.fromarray(pixels).save(path, xmp=statement.xmp().encode(), quality=90)
        path.write_bytes(signing.signed(path.read_bytes(), path.suffix, statement))
    return folder
