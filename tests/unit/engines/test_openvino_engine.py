"""engines/openvino_engine.py: the parts that OpenVINO runs are the model's."""

from __future__ import annotations

import importlib.util
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from export3d.engines import choice
from export3d.engines.at_once import at_once
from export3d.engines.choice import pick_engine
from export3d.engines.engine import Engine
from export3d.engines.openvino_engine import OpenVinoEngine, _Compiled
from export3d.engines.parts import Part
from export3d.engines.torch_engine import TorchEngine
from export3d.errors import ConfigError, MissingExtra
from export3d.model import Encoded, Export3D
from export3d.warping.inner_mouth import SIDE
from export3d.warping.landmark_motion import Regions
from tests.tiny_models import PARTS, awake, cameras, inputs, landmarks, matte, warped

installed = importlib.util.find_spec("openvino") is not None
needs_openvino = pytest.mark.skipif(not installed, reason="needs the extra fast")

WARPS = {"no warp": (), "core": ("align", "skip"), "all": PARTS}


def made(*warp: str) -> Export3D:
    torch.manual_seed(0)
    return awake(warped(*warp)).requires_grad_(False)


@pytest.fixture(scope="module")
def engine() -> OpenVinoEngine:
    return OpenVinoEngine(made(*PARTS), torch.float32)


def encoded(engine: Engine) -> Encoded:
    torch.manual_seed(1)
    source, expression, camera = inputs(1)
    return engine.encode(source, camera, expression, landmarks(camera), matte(source))


def frames(engine: Engine, batch: int) -> tuple[Tensor, ...]:
    """Images, rendered shares and, if there is one, the origin."""
    source = encoded(engine)
    sizes = engine.model.config.expression
    regions = None
    if source.view is not None and source.view.face is not None:
        regions = Regions(*0.1 * torch.randn(2, batch, 4, source.view.face.own.shape[1]), torch.rand(batch))
    planes = engine.planes(source, torch.rand(batch, 52), 0.1 * torch.randn(1, sizes.n), regions)
    image, origin = engine.frame_and_origin(planes, cameras(batch))
    _, share = engine.frame_and_share(planes, cameras(batch))
    if origin is None:
        return image, share
    assert origin.taken is not None
    return image, share, origin.offset, origin.trust, origin.taken


def psnr(a: Tensor, b: Tensor) -> float:
    return float(10.0 * torch.log10(4.0 / (a - b).square().mean()))


@pytest.mark.slow
@needs_openvino
@pytest.mark.parametrize("warp", WARPS)
def test_in_float32_it_is_the_reference(warp: str) -> None:
    model = made(*WARPS[warp])
    engine = OpenVinoEngine(model, torch.float32)
    for batch in (1, 3):
        for ours, exact in zip(frames(engine, batch), frames(Engine(model), batch), strict=True):
            torch.testing.assert_close(ours, exact, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
@needs_openvino
def test_mouths_are_drawn_by_a_compiled_part(engine: OpenVinoEngine) -> None:
    inner = engine.model.warp.inner  # type: ignore[union-attr]
    assert inner is not None
    for batch in (1, 3):
        given = torch.rand(batch, 3, SIDE, SIDE), torch.rand(batch, 1, SIDE, SIDE).round()
        assert engine._draw is not None
        torch.testing.assert_close(engine._draw(*given), inner(*given), atol=1e-4, rtol=1e-3)


@pytest.mark.slow
@needs_openvino
def test_bfloat16_stays_close_to_float32(engine: OpenVinoEngine) -> None:
    found, exact = (frames(one, 2)[0] for one in (OpenVinoEngine(engine.model, torch.bfloat16), Engine(engine.model)))
    assert not torch.equal(found, exact), "the number format had an effect"
    assert psnr(found, exact) > 38.0


@pytest.mark.slow
@needs_openvino
def test_the_same_input_gives_the_same_bytes_and_keeps_earlier_results(engine: OpenVinoEngine) -> None:
    first = frames(engine, 2)
    copies = [value.clone() for value in first]
    assert not torch.equal(
        frames(engine, 2)[0], engine.frame_and_origin(engine.planes(encoded(engine), torch.ones(2, 52)), cameras(2))[0]
    )
    assert all(torch.equal(value, copy) for value, copy in zip(first, copies)), (
        "a later frame wrote into an earlier one"
    )
    assert all(torch.equal(value, copy) for value, copy in zip(frames(engine, 2), copies))


@pytest.mark.slow
@needs_openvino
def test_the_number_of_threads_changes_nothing(engine: OpenVinoEngine) -> None:
    alone = frames(engine, 2)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        together = frames(engine, 2)
    finally:
        torch.set_num_threads(before)
    for one, other in zip(alone, together):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@needs_openvino
def test_threads_can_share_an_engine(engine: OpenVinoEngine) -> None:
    planes = engine.planes(encoded(engine), torch.rand(2, 52))
    expected = engine.frame_and_origin(planes, cameras(2))[0]
    found: list[Tensor] = []
    workers = [
        threading.Thread(target=lambda: found.append(engine.frame_and_origin(planes, cameras(2))[0])) for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 3
    assert all(torch.equal(image, expected) for image in found)


@pytest.mark.slow
@needs_openvino
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_interruption_during_the_conversion_is_not_lost(
    engine: OpenVinoEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder as Decoder

    asked = Decoder.get_subgraphs

    def interrupted(self: Decoder) -> object:
        monkeypatch.undo()
        signal.raise_signal(signal.SIGINT)
        return asked(self)

    monkeypatch.setattr(Decoder, "get_subgraphs", interrupted)
    source = encoded(engine)
    with pytest.raises(KeyboardInterrupt):
        engine.planes(source, torch.rand(5, 52))


@pytest.mark.slow
@needs_openvino
def test_a_model_can_be_trained_after_an_engine_ran_it() -> None:
    torch.manual_seed(0)
    model = awake(warped(*PARTS))
    frames(OpenVinoEngine(model, torch.float32), 1)
    source, expression, camera = inputs(1)
    output = model(source, expression, camera, camera, expression, landmarks(camera), matte(source))
    assert output.image is not None
    output.image.mean().backward()
    assert all(p.grad is not None for p in model.superres.parameters())


def test_without_openvino_auto_is_torch_and_openvino_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = made()
    monkeypatch.setattr(choice, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert type(pick_engine(model)) is TorchEngine
    with pytest.raises(MissingExtra, match=r"pip install -c constraints.txt '\.\[fast\]'"):
        pick_engine(model, "openvino")


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("raise ImportError('libtbb.so.12: cannot open shared object file')", "libtbb.so.12: cannot"),
        ("raise OSError(5, 'Input/output error')", "input/output error"),
        ("", "No module named 'openvino.frontend'"),
    ],
)
def test_a_damaged_openvino_is_told_with_its_cause(
    text: str, cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "openvino").mkdir()
    (tmp_path / "openvino" / "__init__.py").write_text(text)
    for name in [name for name in sys.modules if name.partition(".")[0] == "openvino"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(choice, "find_spec", importlib.util.find_spec)
    monkeypatch.setattr(choice.platform, "machine", lambda: "x86_64")
    choice._warn.cache_clear()
    try:
        model = made()
        assert [type(pick_engine(model)) for _ in range(2)] == [TorchEngine] * 2
        with pytest.raises(ConfigError, match=f"installed but does not load .*{cause}"):
            pick_engine(model, "openvino")
    finally:
        choice._warn.cache_clear()
        for name in [name for name in sys.modules if name.partition(".")[0] == "openvino"]:
            del sys.modules[name]
    assert len(caplog.records) == 1
    assert f"the engine is torch: OpenVINO is installed but does not load ({cause}" in caplog.text


@needs_openvino
def test_auto_is_openvino_on_measured_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "find_spec", importlib.util.find_spec)
    for machine, kind in (("x86_64", OpenVinoEngine), ("arm64", TorchEngine)):
        monkeypatch.setattr(choice.platform, "machine", lambda machine=machine: machine)
        assert type(pick_engine(made())) is kind


class Doubled(Part):
    inputs, outputs = ("x",), ("y",)

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        return (2.0 * given[0],)


@needs_openvino
def test_the_batch_sizes_used_last_are_kept() -> None:
    compiled = _Compiled(Doubled(), torch.float32)

    def kept() -> list[int]:
        return [batch for batch, _, _ in compiled._requests]

    for batch in (1, 2, 3, 4, 1, 5):
        x = torch.randn(batch, 3)
        assert torch.equal(compiled({"x": x})["y"], 2.0 * x)
    assert kept() == [3, 4, 1, 5]
    first = compiled._requests[3, torch.get_num_threads(), 1]
    compiled({"x": torch.randn(3, 3)})
    assert kept() == [4, 1, 5, 3]
    assert compiled._requests[3, torch.get_num_threads(), 1] is first


@needs_openvino
def test_two_threads_side_by_side_share_a_compiled_part() -> None:
    compiled, before = _Compiled(Doubled(), torch.float32), torch.get_num_threads()
    batches = [torch.full((2, 3), float(number)) for number in range(20)]
    torch.set_num_threads(2)
    try:
        doubled = list(at_once(lambda x: compiled({"x": x})["y"], batches))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(y, 2.0 * x) for x, y in zip(batches, doubled, strict=True))
    assert list(compiled._requests) == [(2, 1, 2)]
    assert compiled._requests[2, 1, 2].qsize() == 2, "requests that are free again"


@needs_openvino
def test_another_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="--device cpu"):
        OpenVinoEngine(Export3D(warped()).to("meta"))
