"""What a stage has to do at least: floating-point operations and memory traffic."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


def work(run: Callable[[], object]) -> tuple[int, int]:
    """FLOP and bytes of one call.

    FLOP: convolutions, matrix products and attention, two per multiply-add (`torch.utils.flop_counter`). Resampling and
    element-wise operations are not counted.

    Bytes: the smallest traffic. Every weight and input that is read and every output, once each. Intermediate results
    are not counted: a machine with an unlimited cache would move only this much.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as flop, _Reads() as reads:
        result = run()
    moved = {tensor.untyped_storage().data_ptr(): _size(tensor) for tensor in tensors(result)} | reads.found
    return flop.get_total_flops(), sum(moved.values())


def tensors(value: object) -> Iterator[Tensor]:
    """The tensors of a result: of nested dataclasses, sequences and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for part in value:
            yield from tensors(part)


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the tensors that operations read and that were there before, by address."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: dict[int, int] = {}
        self._made: set[int] = set()
        self._kept: list[Tensor] = []  # an address must not be used again while it is remembered

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for tensor in tensors([*args, *(kwargs or {}).values()]):
            at = tensor.untyped_storage().data_ptr()
            if at not in self._made:
                self.found[at] = max(self.found.get(at, 0), _size(tensor))
        result = func(*args, **(kwargs or {}))
        for tensor in tensors(result):
            at = tensor.untyped_storage().data_ptr()
            if at not in self.found:
                self._made.add(at)
                self._kept.append(tensor)
        return result


def _size(tensor: Tensor) -> int:
    """Bytes of a tensor; of an expanded one, those that are stored."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
