"""engines/torch_engine.py: close to float32, repeatable, and guarded against overflow."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from export3d.engines.choice import pick_engine
from export3d.engines.engine import Engine
from export3d.engines.torch_engine import TorchEngine
from export3d.errors import ConfigError
from export3d.model import Export3D
from tests.tiny_models import PARTS, awake, cameras, inputs, landmarks, matte, warped


@pytest.fixture(scope="module", params=[(), ("align", "skip"), PARTS], ids=["no warp", "core", "all"])
def model(request: pytest.FixtureRequest) -> Export3D:
    torch.manual_seed(0)
    return awake(warped(*request.param)).requires_grad_(False)


def frames(engine: Engine, batch: int = 3) -> Tensor:
    torch.manual_seed(1)
    source, expression, camera = inputs(1)
    encoded = engine.encode(source, camera, expression, landmarks(camera), matte(source))
    planes = engine.planes(encoded, torch.rand(batch, 52))
    image, _ = engine.frame_and_origin(planes, cameras(batch))
    return image


def psnr(a: Tensor, b: Tensor) -> float:
    return float(10.0 * torch.log10(4.0 / (a - b).square().mean()))


@torch.inference_mode()
def test_the_reference_is_the_model_itself(model: Export3D) -> None:
    torch.manual_seed(1)
    source, expression, camera = inputs(1)
    encoded = model.encode(source, camera, expression, landmarks(camera), matte(source))
    planes = model.planes(encoded, torch.rand(3, 52))
    assert torch.equal(frames(pick_engine(model, "reference")), model.frame(planes, cameras(3)))


def test_bfloat16_stays_close_to_float32(model: Export3D) -> None:
    exact, fast = frames(Engine(model)), frames(TorchEngine(model, torch.bfloat16))
    assert fast.dtype == torch.float32
    assert not torch.equal(fast, exact), "the number format had an effect"
    assert psnr(fast, exact) > 38.0


def test_the_same_input_gives_the_same_bytes(model: Export3D) -> None:
    engine = TorchEngine(model, torch.bfloat16)
    assert torch.equal(frames(engine), frames(engine))


def test_in_float32_it_is_the_reference(model: Export3D) -> None:
    assert torch.equal(frames(TorchEngine(model, torch.float32)), frames(Engine(model)))


def test_what_overflows_is_computed_again_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = awake(warped(*PARTS)).requires_grad_(False)
    model.superres.mid_second.weight[0], model.superres.mid_second.bias[0] = 0.0, 0.0
    model.superres.mid_rgb.weight[:, 0] = 3.4e38  # rounds to infinity in bfloat16, and infinity times 0 is no number
    engine = TorchEngine(model, torch.bfloat16)
    with caplog.at_level(logging.WARNING):
        first, second = frames(engine), frames(engine)
    assert first.isfinite().all()
    assert torch.equal(first, second)
    assert [record.message for record in caplog.records] == [
        "the engine torch gave a result that is not finite; such frames are computed again in float32"
    ]


def test_an_unknown_engine_is_refused(model: Export3D) -> None:
    with pytest.raises(ConfigError, match="no engine 'warp'; choose from auto, reference, torch"):
        pick_engine(model, "warp")  # type: ignore[arg-type]
