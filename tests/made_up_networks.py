"""Small networks as ONNX files, whose answers are known; written without the onnx package."""

from __future__ import annotations

import numpy as np


def _part(field: int, data: bytes | str | int) -> bytes:
    """A field of a protocol buffer."""

    def number(value: int) -> bytes:
        out = b""
        while value > 127:
            out, value = out + bytes([value % 128 + 128]), value // 128
        return out + bytes([value])

    if isinstance(data, int):
        return number(field * 8) + number(data)
    data = data.encode() if isinstance(data, str) else data
    return number(field * 8 + 2) + number(len(data)) + data


def _model(nodes: list[tuple[str, list[str], str]], weights: dict[str, np.ndarray], size: int) -> bytes:
    """An ONNX model of "x" (1, 3, size, size) to "y"."""
    sides = b"".join(_part(1, _part(1, side)) for side in (1, 3, size, size))
    graph = b"".join(
        _part(1, b"".join(_part(1, name) for name in inputs) + _part(2, output) + _part(4, kind))
        for kind, inputs, output in nodes
    )
    graph += _part(2, "g")
    for name, value in weights.items():
        dims = b"".join(_part(1, side) for side in value.shape)
        raw = np.ascontiguousarray(value, dtype="<f4").tobytes()
        graph += _part(5, dims + _part(2, 1) + _part(8, name) + _part(9, raw))
    graph += _part(11, _part(1, "x") + _part(2, _part(1, _part(1, 1) + _part(2, sides))))
    graph += _part(12, _part(1, "y") + _part(2, _part(1, _part(1, 1))))
    return _part(1, 8) + _part(7, graph) + _part(8, _part(1, "") + _part(2, 13))


def constant_network(value: np.ndarray, size: int) -> bytes:
    """Says the same of every picture."""
    return _model([("Identity", ["value"], "y")], {"value": value}, size)


def brightness_network(size: int) -> bytes:
    """68 maps, each the mean of red, green and blue."""
    return _model([("Conv", ["x", "w"], "y")], {"w": np.full((68, 3, 1, 1), 1 / 3)}, size)


def coefficient_network() -> bytes:
    """Coefficient k is k / 1000, and the mean red, green and blue are added to the coefficients 80, 81 and 82."""
    colours = np.zeros((3, 257))
    colours[[0, 1, 2], [80, 81, 82]] = 1.0
    nodes = [
        ("GlobalAveragePool", ["x"], "mean"),
        ("Flatten", ["mean"], "flat"),
        ("MatMul", ["flat", "colours"], "placed"),
        ("Add", ["placed", "numbers"], "y"),
    ]
    return _model(nodes, {"colours": colours, "numbers": np.arange(257)[None] / 1000}, 224)
