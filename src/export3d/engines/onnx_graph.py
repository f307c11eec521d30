"""Parts of a model as ONNX graphs: written by PyTorch's exporter, checked against PyTorch by ONNX Runtime."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export3d.engines.parts import Part
from export3d.errors import MissingExtra

OPSET = 20
"""The first ONNX operator set whose GridSample is that of PyTorch."""
_INT64 = 7


def require_onnx() -> None:
    """Raise `MissingExtra` unless what writes and checks graphs is installed."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError as problem:
            raise MissingExtra("onnx", package) from problem


@torch.no_grad()
def write_graph(part: Part, given: Mapping[str, Tensor], path: Path) -> list[str]:
    """Write a part as an ONNX file of any batch.

    Args:
        given: its inputs, with a batch of at least 2.
        path: ends in .onnx; not written atomically.

    Returns:
        The inputs of the graph: those of the part that it uses.
    """
    from onnxscript import optimizer

    arguments = tuple(given[name] for name in part.inputs)
    batch = torch.export.Dim("batch", min=1, max=1024)
    with warnings.catch_warnings(), _quiet("torch.onnx"):
        warnings.simplefilter("ignore")  # of PyTorch about itself
        exported = torch.export.export(
            part, arguments, dynamic_shapes={"given": tuple({0: batch} for _ in arguments)}, strict=False
        )
        program = torch.onnx.export(
            exported,
            dynamo=True,
            input_names=list(part.inputs),
            output_names=list(part.outputs),
            opset_version=OPSET,
            optimize=False,  # it takes minutes, and runtimes optimise what they load
            verbose=False,
            custom_translation_table=_translations(),
        )
    assert program is not None
    graph = program.model.graph
    optimizer.fold_constants(program.model)
    optimizer.remove_unused_nodes(program.model)
    graph.inputs[:] = [value for value in graph.inputs if value.uses()]
    program.save(str(path), external_data=False)
    return [str(value.name) for value in graph.inputs]


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Without the warnings of a logger: the exporter tells which packages that it could use are not installed."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def session(path: Path, threads: int = 0) -> Any:
    """An ONNX Runtime session of a graph on the CPU, with this number of threads; 0: one per core."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_graph(opened: Any, known: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Run a session on the inputs that it needs of `known`; its outputs by name."""
    given = {value.name: known[value.name] for value in opened.get_inputs()}
    return dict(zip((value.name for value in opened.get_outputs()), opened.run(None, given)))


def _translations() -> dict[Any, Any]:
    """Functions of PyTorch that its exporter does not know."""
    from onnxscript import opset20 as op

    def searchsorted(
        ordered: Any, values: Any, out_int32: bool = False, right: bool = False, side: Any = None, sorter: Any = None
    ) -> Any:
        """How many of the ordered numbers (..., N) lie below each value (..., M); `right`: or are equal."""
        before = op.LessOrEqual if right else op.Less
        hits = before(op.Unsqueeze(ordered, [-2]), op.Unsqueeze(values, [-1]))
        return op.ReduceSum(op.Cast(hits, to=_INT64), [-1], keepdims=0)

    def sort(x: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
        """ONNX keeps the order of equal values."""
        count = op.Gather(op.Shape(x), op.Constant(value_ints=[dim]))
        return op.TopK(x, count, axis=dim, largest=int(descending), sorted=1)

    return {torch.ops.aten.searchsorted.Tensor: searchsorted, torch.ops.aten.sort.stable: sort}
