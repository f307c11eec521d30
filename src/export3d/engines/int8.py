"""Convolutions and matrix products with 8-bit integers, where a processor multiplies these faster than floats.

Weights get a scale per output channel. Inputs get a range per layer, which is measured once and kept beside the
weights (`weights.ranges`). Layers without one stay in float32, and so does everything between layers. As in Jacob et
al. (2018), "Quantization and training of neural networks for efficient integer-arithmetic-only inference".
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from export3d.weights.ranges import Ranges

_LAYERS = re.compile(
    r"superres\..*|warp\.detail\..*|"
    r"generator\.(plain_merge\.project|fuse|high\..*|to_planes|(conditioned|plain)\.\d+\.attention\..*)"
)
"""Layers that lose little. Those of the feed-forward layers and of `generator.mid` have outliers in their inputs, and
with `generator.mid_residual` eyes and mouths differ visibly."""
_STEPS = 256
_WEIGHT_STEPS = 255  # symmetric


@contextmanager
def measuring(model: nn.Module) -> Iterator[dict[str, tuple[float, float]]]:
    """Collects the ranges of what the model computes meanwhile, with PyTorch, in any thread."""
    found: dict[str, tuple[float, float]] = {}
    lock = threading.Lock()

    def widen(name: str, given: Tensor) -> None:
        ends = float(given.min()), float(given.max())
        with lock:
            low, high = found.get(name, (0.0, 0.0))
            found[name] = min(low, ends[0]), max(high, ends[1])

    hooks = [
        layer.register_forward_pre_hook(lambda _, given, name=name: widen(name, given[0]))
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) and _LAYERS.fullmatch(name)
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def quantise(graph: Any, part: nn.Module, names: Mapping[nn.Module, str], ranges: Ranges) -> None:
    """Round inputs and weights of an OpenVINO graph's layers, which makes OpenVINO compute them with integers.

    Args:
        graph: OpenVINO's model of the part, from a trace; changed in place.
        part: what was traced.
        names: of the layers in the model.
        ranges: of their inputs.
    """
    from openvino import opset13 as opset

    rounded: dict[tuple[str, int, float, float], Any] = {}
    for node in graph.get_ordered_ops():
        path, _, kind = node.get_friendly_name().removeprefix("__module.").partition("/")
        if node.get_type_name() not in ("Convolution", "MatMul") or not kind:
            continue
        layer = part.get_submodule(path)
        low, high = ranges.get(names.get(layer, ""), (0.0, 0.0))
        if low == high:
            continue
        given = node.input_value(0)
        key = given.get_node().get_friendly_name(), given.get_index(), low, high
        if key not in rounded:
            ends = [opset.constant(value, dtype="float32") for value in (low, high)]
            rounded[key] = opset.fake_quantize(given, *ends, *ends, _STEPS)
        node.input(0).replace_source_output(rounded[key].output(0))
        weight = node.input_value(1)
        largest = _largest(layer, len(weight.get_partial_shape()))
        ends = [opset.constant(value.numpy()) for value in (-largest, largest)]
        node.input(1).replace_source_output(opset.fake_quantize(weight, *ends, *ends, _WEIGHT_STEPS).output(0))


def _largest(layer: nn.Module, dimensions: int) -> Tensor:
    """The largest weight of each output channel, as (C, 1, …)."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    largest = layer.weight.detach().float().abs().flatten(1).amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    return largest.reshape(-1, *[1] * (dimensions - 1))
