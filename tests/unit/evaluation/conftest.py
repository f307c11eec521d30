"""A made-up split of small clips, and a tiny network without training: enough to check every rule of the protocol."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export3d.camera import Camera
from export3d.config import preset
from export3d.data.shard_writer import update
from export3d.data.shards import Record
from export3d.model import Export3D
from export3d.pretrained import save_pretrained
from export3d.video import VideoWriter

SIZE = 64


def _mp4(pictures: np.ndarray) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        with VideoWriter(path, 25.0, (SIZE, SIZE), crf=12) as writer:
            for picture in pictures:
                writer.write(picture)
        return path.read_bytes()


@pytest.fixture
def make_clip() -> Callable[..., Record]:
    """make_clip(key, yaws=(...), step=8, found=None, **info): a bright square that walks `step` pixels a frame."""

    def make(key: str, yaws: tuple[float, ...] = (12, -3, 25, 8, 18, -20), step: int = 8, **info: Any) -> Record:
        rng = np.random.default_rng(list(key.encode()))
        frames = len(yaws)
        y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
        pictures = np.repeat((rng.uniform(40, 120, size=3) + 40 * np.stack([x, y, 1 - x], -1))[None], frames, 0)
        for t in range(frames):
            pictures[t, 16:40, 2 + step * t : 18 + step * t] += 100
        found = np.array(info.pop("found", [True] * frames))
        return Record(
            key,
            _mp4(pictures.round().astype(np.uint8)),
            "mp4",
            rng.random((frames, 52), dtype=np.float32),
            np.stack([Camera.orbit(yaw, 2.0).label for yaw in yaws]).astype(np.float32),
            rng.uniform(0.2, 0.8, size=(frames, 478, 2)).astype(np.float16),
            found,
            {"person": f"person-{key}", "terms": "open", "fingerprint": f"print-{key}", "space": "arkit52", **info},
        )

    return make


@pytest.fixture
def split(tmp_path: Path, make_clip: Callable[..., Record]) -> Path:
    """Two clips: `walks` moves much, `rests` a little; one of unpublishable terms, and one without a second face."""
    folder = tmp_path / "data" / "val"
    records = [
        make_clip("walks"),
        make_clip("rests", step=1, terms="unstated"),
        make_clip("gone", found=[False, True, False, False, False, False]),
    ]
    update(folder, records)
    return folder


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained weights of the preset `tiny` in a file."""
    import torch

    torch.manual_seed(0)
    return save_pretrained(
        Export3D(preset("tiny")), tmp_path_factory.mktemp("weights") / "tiny.safetensors", {"images_seen": 0}
    )


@pytest.fixture(scope="session")
def alex_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random AlexNet: LPIPS with it is a distance, though not a perceptual one."""
    import torch
    from safetensors.torch import save_file

    from export3d.perceptual import _alex

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("lpips") / "random-alex.safetensors"
    save_file(_alex().state_dict(), path)
    return path
