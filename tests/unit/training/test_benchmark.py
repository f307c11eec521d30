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
