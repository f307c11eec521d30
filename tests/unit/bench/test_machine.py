"""The machine's ceilings."""

from __future__ import annotations

import os

import pytest
import torch

from export3d.bench.machine import Ceilings, ceilings, machine

CPU = torch.device("cpu")


def test_ceilings_are_those_of_a_computer() -> None:
    found = ceilings(CPU, repeats=1)
    assert set(found.matmul) == {"float32", "bfloat16"}
    assert all(1e8 < rate < 1e14 for rate in found.matmul.values())
    assert 1e8 < found.copy < 1e13


def test_the_better_of_two_measurements_counts() -> None:
    found = Ceilings({"float32": 1.0, "bfloat16": 5.0}, 3.0).better(Ceilings({"float32": 2.0, "bfloat16": 4.0}, 2.0))
    assert found == Ceilings({"float32": 2.0, "bfloat16": 5.0}, 3.0)


def test_the_machine_has_a_name_cores_and_the_limit_of_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    found = machine(CPU)
    assert found["processor"]
    assert 1 <= found["cores"] <= (os.cpu_count() or 1)
    assert (found["device"], found["onednn_max_cpu_isa"]) == ("cpu", "AVX2")
