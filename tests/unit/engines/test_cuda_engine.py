"""engines/cuda_engine.py: what is recorded and replayed; a CPU runs a recording by computing it again."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from export3d.engines import parts
from export3d.engines.cuda_engine import CudaEngine
from export3d.engines.engine import Engine
from export3d.engines.torch_engine import TorchEngine
from export3d.model import Export3D
from export3d.warping.landmark_motion import Regions
from tests.tiny_models import PARTS, awake, cameras, inputs, landmarks, matte, warped

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


class Repeated:
    """As a CUDA graph, it reads its own inputs and writes into its own outputs."""

    made: int = 0

    def __init__(self, part: parts.Part, inputs: Sequence[Tensor], dtype: torch.dtype) -> None:
        Repeated.made += 1
        self.inputs = [torch.full_like(tensor, torch.nan) for tensor in inputs]
        self._part = part
        self.outputs = [torch.full_like(tensor, torch.nan) for tensor in part(*inputs)]

    def replay(self) -> None:
        for kept, tensor in zip(self.outputs, self._part(*self.inputs), strict=True):
            kept.copy_(tensor)


def fails(part: parts.Part, inputs: Sequence[Tensor], dtype: torch.dtype) -> Repeated:
    raise RuntimeError("operation not permitted when stream is capturing")


@pytest.fixture(scope="module", params=[(), ("align", "skip"), PARTS], ids=["no warp", "core", "all"])
def model(request: pytest.FixtureRequest) -> Export3D:
    torch.manual_seed(0)
    return awake(warped(*request.param)).requires_grad_(False)


def frames(engine: Engine, batch: int = 2, closing: bool = True) -> tuple[Tensor, ...]:
    """Images, rendered shares and, if there is one, the origin."""
    torch.manual_seed(1)
    device = next(engine.model.parameters()).device
    source, expression, camera = inputs(1)
    known = (tensor.to(device) for tensor in (source, camera, expression, landmarks(camera), matte(source)))
    encoded = engine.encode(*known)
    sizes = engine.model.config.expression
    regions = None
    if closing and encoded.view is not None and encoded.view.face is not None:
        width = encoded.view.face.own.shape[1]
        regions = Regions(*(0.1 * torch.randn(2, batch, 4, width)).to(device), torch.rand(batch).to(device))
    shift = 0.1 * torch.randn(1, sizes.n).to(device) if closing else None
    planes = engine.planes(encoded, torch.rand(batch, 52).to(device), shift, regions)
    image, origin = engine.frame_and_origin(planes, cameras(batch).to(device))
    _, share = engine.frame_and_share(planes, cameras(batch).to(device))
    return (image, share) if origin is None else (image, share, origin.offset, origin.trust)


@pytest.mark.parametrize("closing", [False, True])
def test_recorded_frames_are_the_models(model: Export3D, closing: bool) -> None:
    engine = CudaEngine(model, torch.float32, Repeated)
    expected = frames(Engine(model), closing=closing)
    for _ in range(3):
        for ours, exact in zip(frames(engine, closing=closing), expected, strict=True):
            torch.testing.assert_close(ours, exact, atol=1e-4, rtol=1e-4)


def test_shapes_are_recorded_when_they_come_again() -> None:
    engine = CudaEngine(awake(warped(*PARTS)).requires_grad_(False), torch.float32, Repeated)
    Repeated.made = 0
    first = frames(engine, 2)
    rendered = Repeated.made  # `frames` renders twice
    copies = [tensor.clone() for tensor in first]
    frames(engine, 1)
    assert rendered == 2, "rendering, and the frame after it; planes came once"
    frames(engine, 2)
    assert Repeated.made == 5, "the planes of two frames; rendering and the frame of one"
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(first, copies)), "replaying wrote into earlier results"


def test_what_cannot_be_recorded_is_computed_without_and_said_once_a_part(
    model: Export3D, caplog: pytest.LogCaptureFixture
) -> None:
    engine = CudaEngine(model, torch.float32, fails)
    with caplog.at_level(logging.WARNING):
        made = [frames(engine) for _ in range(3)]
    torch.testing.assert_close(made[2][0], frames(Engine(model))[0], atol=1e-4, rtol=1e-4)
    assert len(caplog.records) == 3
    assert "no CUDA graph of a frame (operation not permitted" in caplog.text


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=gpu)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_replays_what_it_computes(device: str, dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = awake(warped(*PARTS)).requires_grad_(False).to(device)
    eager, graphs = TorchEngine(model, dtype), CudaEngine(model, dtype)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            found = frames(graphs)
    assert not caplog.text
    for ours, exact in zip(found, frames(eager), strict=True):
        torch.testing.assert_close(ours, exact, atol=2e-2, rtol=2e-2)
