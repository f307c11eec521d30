"""The tri-plane EMA (Eq. 14)."""

from __future__ import annotations

import types

import pytest
import torch

from export3d.triplane import average
from export3d.triplane.average import PlaneAverage

SHAPE = (3, 2, 4, 4)


def test_three_steps_follow_equation_14_by_hand() -> None:
    module = PlaneAverage(SHAPE, delta=0.9)
    batches = [torch.randn(2, *SHAPE) for _ in range(3)]
    expected = torch.zeros(SHAPE)
    for planes in batches:
        torch.testing.assert_close(module(planes), planes + expected)  # T^j + T_EMA^(j-1)
        module.collect(planes)
        module.update()
        expected = 0.9 * expected + 0.1 * (planes[0] + planes[1]) / 2
        torch.testing.assert_close(module.value, expected)


def test_the_average_starts_at_zero_and_decays_slowly_in_the_paper() -> None:
    module = PlaneAverage((3, 32, 128, 128), delta=0.998)
    assert module.value.shape == (3, 32, 128, 128)
    assert module.value.count_nonzero() == 0
    module.collect(torch.ones(1, 3, 32, 128, 128))
    module.update()
    torch.testing.assert_close(module.value, torch.full_like(module.value, 0.002))


@pytest.mark.parametrize("training", [True, False])
def test_adding_the_average_never_changes_it(training: bool) -> None:
    module = PlaneAverage(SHAPE, delta=0.5).train(training)
    module.collect(torch.randn(1, *SHAPE))
    module.update()
    before = module.value.clone()
    module(torch.randn(2, *SHAPE))
    assert torch.equal(module.value, before)


def test_the_average_is_saved_but_not_trained() -> None:
    module = PlaneAverage(SHAPE, delta=0.5)
    assert set(module.state_dict()) == {"value"}
    assert not list(module.parameters())
    planes = torch.randn(1, *SHAPE, requires_grad=True)
    module.collect(planes)
    module.update()
    assert not module.value.requires_grad
    module(planes).sum().backward()
    assert planes.grad is not None
    assert torch.equal(planes.grad, torch.ones_like(planes))


def test_a_delta_of_one_switches_the_average_off() -> None:
    module = PlaneAverage(SHAPE, delta=1.0)
    module.collect(torch.randn(2, *SHAPE))
    module.update()
    assert module.value.count_nonzero() == 0


def test_the_average_keeps_float32_when_planes_are_bfloat16() -> None:
    module = PlaneAverage(SHAPE, delta=0.998)
    planes = torch.ones(1, *SHAPE, dtype=torch.bfloat16)
    for _ in range(50):
        module.collect(planes)
        module.update()
    assert module.value.dtype == torch.float32
    assert module(planes).dtype == torch.bfloat16
    torch.testing.assert_close(module.value, torch.full(SHAPE, 1 - 0.998**50))


def test_the_parts_of_a_batch_update_the_average_once_at_the_end() -> None:
    planes = torch.randn(6, *SHAPE)
    parts, whole = PlaneAverage(SHAPE, delta=0.9), PlaneAverage(SHAPE, delta=0.9)
    for module in (parts, whole):
        module.value.fill_(0.3)
    for part in planes.split(2):
        parts.collect(part)
        assert torch.equal(parts(planes), planes + 0.3)
    parts.update()
    whole.collect(planes)
    whole.update()
    torch.testing.assert_close(parts.value, whole.value)
    before = parts.value.clone()
    parts.update()
    assert torch.equal(parts.value, before), "nothing was collected since"


def test_two_processes_keep_the_average_over_both_their_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = torch.randn(2, *SHAPE), torch.randn(2, *SHAPE)

    def all_reduce(tensor: torch.Tensor) -> None:
        tensor += there.mean(dim=0)

    two = types.SimpleNamespace(
        is_available=lambda: True, is_initialized=lambda: True, all_reduce=all_reduce, get_world_size=lambda: 2
    )
    monkeypatch.setattr(average, "distributed", two)
    module, alone = PlaneAverage(SHAPE, delta=0.9), PlaneAverage(SHAPE, delta=0.9)
    module.collect(here)
    module.update()
    monkeypatch.undo()
    alone.collect(torch.cat([here, there]))
    alone.update()
    torch.testing.assert_close(module.value, alone.value)
