"""Small made-up records: pictures whose content is known, tracks that differ from frame to frame."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from export3d.camera import Camera
from export3d.data.shard_writer import update
from export3d.data.shards import Record
from export3d.face.crop import CropBox
from export3d.face.landmarks import Face
from export3d.face.mesh import canonical_mesh
from export3d.face.pose import project
from export3d.face.tracker import Tracker
from export3d.video import VideoWriter

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


FACE_HEIGHT = 90
_FRAME = (240, 320)


class PaintedFaces:
    """A landmarker for drawings: a green rectangle is a face as high as the rectangle, frontal, nose in its middle."""

    def detect(self, image: np.ndarray, region: CropBox | None = None) -> list[Face]:
        green = (image[..., 1] > 180) & (image[..., 0] < 90) & (image[..., 2] < 90)
        if green.sum() < 40:
            return []
        rows, columns = np.flatnonzero(green.any(1)), np.flatnonzero(green.any(0))
        middle = np.array([columns[0] + columns[-1] + 1, rows[0] + rows[-1] + 1]) / 2
        points = project(canonical_mesh().vertices, Camera.look_at().label, 256)
        points = np.concatenate([points, np.tile(points[:1], (10, 1))])
        height = np.linalg.norm(points[10] - points[152])
        points = (points - points[4]) * ((rows[-1] + 1 - rows[0]) / height) + middle
        landmarks = np.concatenate([points, np.zeros((478, 1))], 1).astype(np.float32)
        return [Face(landmarks, np.full(52, 0.25, np.float32))]

    def search(self, image: np.ndarray, coarse: bool = False) -> list[Face]:
        return []

    def close(self) -> None:
        pass


@pytest.fixture
def painted_tracker() -> Iterator[Tracker]:
    """A tracker that sees the rectangles of `draw_clip` as faces; takes no time and needs no mediapipe."""
    with Tracker(PaintedFaces()) as tracker:
        yield tracker


@pytest.fixture
def draw_frame() -> Callable[..., np.ndarray]:
    """draw_frame(x, y, height): a picture with a green face, or none where x is None."""

    def draw(x: float | None = 160, y: float = 120, height: float = FACE_HEIGHT) -> np.ndarray:
        frame = np.full((*_FRAME, 3), 128, np.uint8)
        if x is not None:
            half = round(height / 2)
            frame[round(y) - half : round(y) + half, round(x) - half : round(x) + half] = (10, 220, 10)
        return frame

    return draw


@pytest.fixture
def draw_clip(draw_frame: Callable[..., np.ndarray]) -> Callable[..., Path]:
    """draw_clip(path, xs, height=90, fps=25): a video whose face is at x = xs[t], absent where that is None."""

    def draw(path: Path, xs: Sequence[float | None], height: float = FACE_HEIGHT, fps: float = 25.0) -> Path:
        with VideoWriter(path, fps, _FRAME[::-1]) as writer:
            for x in xs:
                writer.write(draw_frame(x, height=height))
        return path

    return draw
