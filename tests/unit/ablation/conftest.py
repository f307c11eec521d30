"""Made-up splits for an ablation, and protocols that score at once."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from export3d.ablation import rows, scores
from export3d.camera import Camera
from export3d.data.shard_writer import update
from export3d.data.shards import Record
from export3d.errors import InputError
from export3d.evaluation.measures.image import Measure
from export3d.evaluation.reports.clips import ClipResult
from export3d.evaluation.reports.cross import CrossReport
from export3d.evaluation.reports.report import Report
from export3d.expression.directions import measure_ranges
from export3d.expression.encoder import ExpressionConfig, ExpressionEncoder
from export3d.pretrained import load_pretrained, save_encoder
from export3d.training.reconstruction import ReconstructionConfig

PLAIN = ReconstructionConfig(preset="tiny", backbone="none", image_size=32, sheet_pairs=1)


def record(key: str, terms: str = "open", frames: int = 1) -> Record:
    """A portrait, or a clip whose pictures are noise in the person's colour."""
    rng = np.random.default_rng(list(key.encode()))
    pictures = (rng.uniform(40, 200, 3) + rng.uniform(-20, 20, (frames, 64, 64, 3))).round().astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pictures[0]).save(stream, format="PNG")
    media, suffix = stream.getvalue(), "png"
    if frames > 1:
        media, suffix = video(pictures), "mp4"
    return Record(
        key,
        media,
        suffix,
        rng.random((frames, 52), dtype=np.float32),
        np.stack([Camera.orbit(float(yaw)).label for yaw in rng.uniform(-20, 20, frames)]).astype(np.float32),
        rng.uniform(0.3, 0.7, (frames, 478, 2)).astype(np.float16),
        np.ones(frames, dtype=bool),
        {"person": f"person-{key}", "terms": terms, "fingerprint": f"print-{key}", "space": "arkit52"},
    )


def video(pictures: np.ndarray) -> bytes:
    """The bytes of an MP4."""
    import av

    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        track = container.add_stream("libx264", rate=25)
        track.width, track.height, track.pix_fmt = pictures.shape[2], pictures.shape[1], "yuv420p"
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
    return stream.getvalue()


@pytest.fixture
def make_record() -> Callable[..., Record]:
    """make_record(key, terms="open", frames=1): a portrait, or a clip."""
    return record


@pytest.fixture
def encode() -> Callable[[np.ndarray], bytes]:
    """Images (T, H, W, 3) to the bytes of an MP4."""
    return video


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A prepared folder: portraits to train on; two clips to score, and a portrait that may not be shown."""
    folder = tmp_path / "data"
    update(folder / "train", [record(f"still{i}") for i in range(3)])
    update(folder / "val", [record("anna", frames=4), record("bert", frames=4), record("cora", "unstated")])
    return folder


@pytest.fixture
def config(tmp_path: Path) -> ReconstructionConfig:
    """Preset tiny at 32 pixels, with a pre-trained encoder of its sizes."""
    torch.manual_seed(3)
    encoder = ExpressionEncoder(ExpressionConfig(hidden=32, n=10, d=32))
    expression = torch.rand(50, 52)
    encoder.standardise(expression.mean(0), expression.std(0))
    measure_ranges(encoder, expression)
    return replace(PLAIN, expression=save_encoder(encoder, tmp_path / "clebs.safetensors", {}))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The rows that were trained, in order."""
    done: list[str] = []
    real = rows.run

    def watched(data: Path, out: Path, *args: Any, **options: Any) -> Any:
        done.append(out.name)
        return real(data, out, *args, **options)

    monkeypatch.setattr(rows, "run", watched)
    return done


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """Protocols that judge at once: figures come from the number of basis vectors of the weights they are given."""
    asked: list[tuple[str, Path]] = []

    class Nothing:
        def __init__(self, *_: Any) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    def same(split: Path, out: Path, *, weights: Path, **options: Any) -> Report:
        asked.append(("same", weights))
        n = float(load_pretrained(weights).config.expression.n)
        measures = (Measure("psnr", "PSNR (dB)", True, 2, "of the difference"),)
        scores = {"ours": {"psnr": n}, "copy": {"psnr": 1.0}}
        clips = [ClipResult(key, key, "open", "", 3, 0, 0, scores) for key in ("anna", "bert")]
        return Report("made", {}, ("ours", "copy"), measures, tuple(clips))

    def cross(split: Path, out: Path, *, weights: Path, **options: Any) -> CrossReport:
        asked.append(("cross", weights))
        n = float(load_pretrained(weights).config.expression.n)
        if n == 5:
            raise InputError("no pair could be scored: no face came out")
        out.mkdir(exist_ok=True)
        real = {"aed": 0.01, "yaw": 0.9}
        found = {"bert by anna": {"aed": n / 100, "yaw": math.nan}, "anna by bert": {"aed": n / 100, "yaw": 0.5}}
        pairs = [
            ClipResult(key, "", "", "", 3, 0, 0, {"ours": values, "real pictures": real})
            for key, values in found.items()
        ]
        measures = (Measure("aed", "AED", False, 3, "mean"), Measure("yaw", "yaw", True, 2, "correlation"))
        return CrossReport("made", {}, ("ours", "real pictures"), measures, tuple(pairs))

    monkeypatch.setattr(scores, "ClipScorer", Nothing)
    monkeypatch.setattr(scores, "same_identity", same)
    monkeypatch.setattr(scores, "cross_identity", cross)
    return asked
