"""The profile of a training step, `benchmarks/training.py`: it runs, and its FLOP count matches one by hand."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("accelerate")

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "training.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_training", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_benchmark_measures_a_small_run(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "training.json"
    options = "--preset tiny --batch-size 2 --steps 2 --cpu --backbone none --matmul 128 --json"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options.split(), str(file)])
    benchmark.main()
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["samples_per_second"] > 0
    assert sum(found["shares"].values()) == pytest.approx(1.0, abs=1e-3)
    assert {"loader", "generator", "renderer", "superres", "losses", "backward", "optimiser"} <= set(found["shares"])
    assert found["shares"]["backward"] > 0.1
    assert set(found["gflop_per_sample"]) >= {"generator", "renderer", "superres"}
    assert 0 < found["utilisation_network"] == found["utilisation_with_perceptual"] < 1
    assert found["peak_memory_gib"] > 0.05
    assert len(found["operators"]) == benchmark.TOP_OPERATORS
    shown = capsys.readouterr().out
    assert "| utilisation, network alone |" in shown
    assert "| aten::" in shown


def test_flop_belong_to_the_part_that_ran_or_saved(benchmark: ModuleType) -> None:
    """Products of 2 rows with 3 x 5 (one part), 5 x 7 (between parts) and 7 x 1 (another), forward and backward."""
    first, between, last = (
        nn.Linear(3, 5, bias=False),
        torch.randn(5, 7, requires_grad=True),
        nn.Linear(7, 1, bias=False),
    )
    flop = benchmark.FlopOfParts()
    flop.watch(first, "first")
    flop.watch(last, "last")
    with flop.counter, torch.autograd.graph.saved_tensors_hooks(flop.pack, flop.unpack):
        last((first(torch.randn(2, 3)) @ between).tanh()).sum().backward()
        flop.enter("generator")
    # forward and the weights' gradient everywhere; the input needs no gradient of the first
    assert flop.found == {"first": 2 * 60, "generator": 3 * 140, "last": 3 * 28}


def test_flop_of_a_part_inside_another_are_its_own(benchmark: ModuleType) -> None:
    outer = nn.Sequential(nn.Linear(3, 5, bias=False), nn.Linear(5, 7, bias=False), nn.Linear(7, 1, bias=False))
    flop = benchmark.FlopOfParts()
    flop.watch(outer, "outer")
    flop.watch(outer[1], "inner")
    with flop.counter, torch.no_grad():
        outer(torch.randn(2, 3))
        flop.enter("generator")
    assert flop.found == {"generator": 0, "outer": 60 + 28, "inner": 140}


def test_the_warps_flop_are_told_apart_and_none_are_lost(benchmark: ModuleType, golden: ModuleType) -> None:
    task, _ = golden.phase_one(as_base=True)
    batch = task.batch(0, 2, 0, 1)
    with benchmark.flop_counter() as counter:
        task.losses(batch, 0)["total"].backward()
    found = benchmark.flop_of_a_step(task, 2, torch.device("cpu"))
    assert {"generator", "renderer", "superres", "warp"} <= set(found)
    assert sum(found.values()) == counter.get_total_flops()
    watched = [part for name, part in benchmark.parts(task.model) if name == "warp"]
    assert set(task.model.warp.modules()) == set(watched)
    plain, _ = golden.phase_one(as_base=False)
    assert "warp" not in benchmark.flop_of_a_step(plain, 2, torch.device("cpu"))


@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (1, 2), (2, 1), (8, 1)])
def test_the_gradients_of_a_convolution_cost_as_much_as_its_forward_pass(
    benchmark: ModuleType, groups: int, stride: int
) -> None:
    """Counted by hand; PyTorch's own formula agrees without groups, and is `groups` times too high for the kernel's."""
    layer = nn.Conv2d(8, 16, 3, stride, padding=1, groups=groups, bias=False)
    forward = 2 * (8 // stride) ** 2 * 16 * (8 // groups) * 9 * 3
    for wanted, own in ((True, forward * (1 + groups)), (False, forward * groups)):
        image = torch.randn(3, 8, 8, 8, requires_grad=wanted)
        with benchmark.flop_counter() as counter, FlopCounterMode(display=False) as usual:
            out = layer(image)
            assert counter.get_total_flops() == forward
            out.sum().backward()
        assert counter.get_total_flops() == forward + forward * (1 + wanted)
        assert usual.get_total_flops() == forward + own
