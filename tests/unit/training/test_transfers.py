"""Copies between host and device in a training step, counted on a CPU.

A tensor made from Python numbers (`torch.tensor`, `new_tensor`, a list as an index) or from an array dispatches
`aten::lift_fresh`: with a GPU each is a copy from the host. `aten::_local_scalar_dense` and
`aten::_linalg_check_errors` make the host wait for the GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("accelerate")
pytestmark = pytest.mark.slow

COPY, WAIT = "lift_fresh", ("_local_scalar_dense", "_linalg_check_errors")


class Calls(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found[func.__name__.partition(".")[0]] += 1
        return func(*args, **(kwargs or {}))


def calls(function: Callable[[], Any]) -> Counter[str]:
    """The operators of the second call: the first one fills caches."""
    function()
    with Calls() as seen:
        function()
    return seen.found


@pytest.fixture(scope="module", params=["paper", "base"])
def task(request: pytest.FixtureRequest, golden: ModuleType) -> Any:
    """Phase one in the form of a preset, with mirrored and moved frames and an enlarged mouth."""
    task = golden.phase_one(request.param == "base")[0]
    task.settings = replace(task.settings, mouth=1.0, moved=1.0)
    return task


def test_the_count_sees_copies_and_waits() -> None:
    x = torch.eye(3)
    found = calls(lambda: (x[:, [0, 1]], x.new_tensor([1.0]), torch.linalg.inv(x), x.sum().item()))
    assert (found[COPY], *(found[name] for name in WAIT)) == (2, 1, 1)


def test_a_batch_crosses_in_one_transfer(task: Any) -> None:
    found = calls(lambda: [task.batch(at, 8, 0, 1) for at in (0, 8)])  # mirrored and moved frames are among these
    assert found["flip"] == 4
    assert found[COPY] == 2


def test_the_losses_copy_nothing_from_the_host(task: Any) -> None:
    batch = task.batch(0, 4, 0, 1)
    found = calls(lambda: task.losses(batch, 0))
    assert found[COPY] == 0
    assert found["_linalg_check_errors"] == 0
    meshes = 0 if task.model.warp is None else 2
    assert found["_local_scalar_dense"] == meshes, "each elastic mesh asks once how many pixels it paints"


def test_the_second_stage_copies_nothing_from_the_host(golden: ModuleType, tmp_path: Path) -> None:
    task, rest = golden.phase_two("all", tmp_path)
    batch, opponent = task.batch(0, 4, 0, 1), rest["opponent"]

    def both() -> Mapping[str, Tensor]:
        task.losses(batch, 0)
        losses: Mapping[str, Tensor] = opponent.losses(batch, 1)
        return losses

    assert calls(both)[COPY] == 0
