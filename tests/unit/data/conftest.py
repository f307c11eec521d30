"""Small made-up records: pictures whose content is known, tracks that differ from frame to frame."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from export3d.camera import Camera
from export3d.data.shards import Record, update

SIZE = 64


def _pictures(rng: np.random.Generator, frames: int, size: int) -> np.ndarray:
    """(T, size, size, 3) uint8: a smooth picture per clip, a bright square that walks to the right."""
    y, x = np.mgrid[0:size, 0:size] / size
    colour = rng.uniform(40, 160, size=3)
    base = colour + 40 * np.stack([x, y, 1 - x], -1)
    pictures = np.repeat(base[None], frames, 0)
    for t in range(frames):
        pictures[t, size // 4 : size // 2, 2 + t : 2 + t + size // 4] += 50
    return pictures.round().astype(np.uint8)


def _mp4(pictures: np.ndarray) -> bytes:
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=25, options={"crf": "12"})
        video.height, video.width = pictures.shape[1:3]
        video.pix_fmt = "yuv420p"
        for picture in pictures:
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
    return stream.getvalue()


def _png(picture: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="PNG")
    return stream.getvalue()


@pytest.fixture
def make_record() -> Callable[..., Record]:
    """make_record(key, frames=5, still=False, size=64, **info): a record whose numbers depend on its key alone."""

    def make(key: str, frames: int = 5, still: bool = False, size: int = SIZE, **info: Any) -> Record:
        rng = np.random.default_rng(list(key.encode()))
        frames = 1 if still else frames
        pictures = _pictures(rng, frames, size)
        angles = rng.uniform(-20, 20, size=(frames, 2))
        return Record(
            key,
            _png(pictures[0]) if still else _mp4(pictures),
            "png" if still else "mp4",
            rng.random((frames, 52), dtype=np.float32),
            np.stack([Camera.orbit(yaw, pitch).label for yaw, pitch in angles]).astype(np.float32),
            rng.uniform(0.2, 0.8, size=(frames, 478, 2)).astype(np.float16),
            np.ones(frames, dtype=bool),
            {"person": f"person-{key}", "terms": "open", "fingerprint": f"print-{key}", "space": "arkit52", **info},
        )

    return make


@pytest.fixture
def split(tmp_path: Path, make_record: Callable[..., Record]) -> Path:
    """A prepared split: clips of 6, 9 and 4 frames and three stills."""
    folder = tmp_path / "train"
    records = [make_record(f"clip{i}", frames) for i, frames in enumerate((6, 9, 4))]
    records += [make_record(f"still{i}", still=True) for i in range(3)]
    update(folder, records)
    return folder
