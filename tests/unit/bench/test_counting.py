"""What a stage has to do at least."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from export3d.bench.counting import tensors, work


def test_a_linear_layer_reads_its_weights_and_input_and_writes_its_output() -> None:
    layer, given = nn.Linear(3, 5), torch.rand(7, 3)
    flop, moved = work(lambda: layer(given))
    assert flop == 2 * 7 * 3 * 5
    assert moved == 4 * (3 * 5 + 5 + 7 * 3 + 7 * 5)


def test_a_convolution_counts_two_operations_per_multiply_add() -> None:
    layer, given = nn.Conv2d(3, 4, 3, padding=1, bias=False), torch.rand(2, 3, 8, 8)
    flop, moved = work(lambda: layer(given))
    assert flop == 2 * (2 * 8 * 8) * 4 * (3 * 3 * 3)
    assert moved == 4 * (4 * 3 * 9 + 2 * 3 * 64 + 2 * 4 * 64)


def test_intermediate_results_do_not_count() -> None:
    given = torch.rand(100)
    assert work(lambda: ((given + 1.0) * 2.0).sum())[1] == 4 * (100 + 1)


def test_what_is_read_twice_counts_once() -> None:
    given = torch.rand(10)
    assert work(lambda: (given + given.view(10)).sum() + given[:5].sum())[1] == 4 * (10 + 1)


def test_an_expanded_tensor_counts_what_is_stored() -> None:
    given = torch.rand(1, 10).expand(50, 10)
    assert work(lambda: given.sum())[1] == 4 * (10 + 1)


def test_an_input_that_is_returned_counts_once() -> None:
    given = torch.rand(10)
    assert work(lambda: (given.view(5, 2), given.sum()))[1] == 4 * (10 + 1)


def test_tensors_are_found_in_nested_values() -> None:
    @dataclass
    class Pair:
        a: Tensor
        b: tuple[Tensor, str]

    a, b, c = torch.rand(1), torch.rand(2), torch.rand(3)
    found = list(tensors({"pair": Pair(a, (b, "text")), "list": [c, None, 1]}))
    assert [id(one) for one in found] == [id(a), id(b), id(c)]
