"""engines/int8.py: which layers compute with integers, and how close they stay."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn

from export3d.animate.ranges import measured_ranges
from export3d.engines.engine import Engine
from export3d.engines.int8 import measuring
from export3d.engines.openvino_engine import OpenVinoEngine
from export3d.model import Export3D
from export3d.pretrained import load_pretrained
from tests.tiny_models import PARTS, awake, cameras, inputs, landmarks, matte, warped

needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs the extra fast")


def made(engine: Engine) -> torch.Tensor:
    torch.manual_seed(1)
    source, expression, camera = inputs(1)
    encoded = engine.encode(source, camera, expression, landmarks(camera), matte(source))
    return engine.frame_and_origin(engine.planes(encoded, torch.rand(2, 52)), cameras(2))[0]


@pytest.fixture
def model() -> Export3D:
    torch.manual_seed(0)
    return awake(warped(*PARTS)).requires_grad_(False)


def test_ranges_are_the_smallest_and_largest_inputs_and_contain_0() -> None:
    model = nn.ModuleDict({"superres": nn.Sequential(nn.Conv2d(1, 1, 1)), "other": nn.Conv2d(1, 1, 1)})
    with measuring(model) as found:
        for low, high in ((0.5, 2.0), (1.0, 3.0)):
            model["superres"](torch.tensor([low, high]).view(1, 1, 1, 2))
        model["other"](torch.ones(1, 1, 1, 1))
    model["superres"](torch.full((1, 1, 1, 1), 9.0))
    assert found == {"superres.0": (0.0, 3.0)}


@pytest.mark.slow
@needs_openvino
@pytest.mark.parametrize("kind", ["warp", "core"])
def test_frames_stay_close_to_float32(model: Export3D, kind: str) -> None:
    if kind == "core":
        torch.manual_seed(0)
        model = awake().requires_grad_(False)
    exact = Engine(model)
    with measuring(model) as found:
        wanted = made(exact)
    model.ranges = found
    engine = OpenVinoEngine(model, torch.int8)
    assert engine.description == "openvino, int8"
    image = made(engine)
    assert not torch.equal(image, made(OpenVinoEngine(model, torch.float32))), "the number format had an effect"
    assert torch.equal(image, made(engine)), "the same bytes twice"
    # random weights: from 28 dB up by seed, on processors without VNNI, whose 8-bit sums saturate
    assert 10.0 * torch.log10(4.0 / (image - wanted).square().mean()) > 25.0


@pytest.mark.slow
@needs_openvino
def test_layers_without_a_range_stay_in_float32(model: Export3D) -> None:
    model.ranges = {"superres.none": (-1.0, 1.0)}
    assert torch.equal(made(OpenVinoEngine(model, torch.int8)), made(OpenVinoEngine(model, torch.float32)))


@needs_openvino
def test_int8_is_chosen_where_float32_would_be_and_ranges_are_known(
    model: Export3D, monkeypatch: pytest.MonkeyPatch
) -> None:
    for fast, ranges, expected in (
        (torch.float32, {"a": (-1.0, 1.0)}, "int8"),
        (torch.float32, {}, "float32"),
        (torch.bfloat16, {"a": (-1.0, 1.0)}, "bfloat16"),
    ):
        monkeypatch.setattr("export3d.engines.openvino_engine.fast_dtype", lambda device, fast=fast: fast)
        model.ranges = ranges
        assert OpenVinoEngine(model).precision == expected


@pytest.mark.slow
def test_the_packaged_ranges_are_those_of_the_packaged_weights() -> None:
    """They are measured again: other weights under the old ranges would lose colours."""
    pytest.importorskip("mediapipe")
    model = load_pretrained("base")
    measured = measured_ranges(model)
    assert model.ranges.keys() == measured.keys()
    for layer, ends in measured.items():
        assert model.ranges[layer] == pytest.approx(ends, rel=0.05, abs=1e-3), layer
