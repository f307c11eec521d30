"""The engine `openvino` (extra `fast`): the convolutional parts in OpenVINO, the rest as in the engine `torch`.

Without bf16 instructions, layers whose ranges are known compute with 8-bit integers (`int8`).

OpenVINO runs the generator, in one graph super-resolution and detail, and what draws mouths. It reads them from a trace
and compiles them: 1.5 s of processor time per batch size at the first run, whose graphs are kept (`graphs`). Numba runs
the volume renderer and what the warp does with every pixel: it compiles them at the first run, in 10 s, and keeps the
code in its cache.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from export3d.engines import parts
from export3d.engines.at_once import threads_beside
from export3d.engines.engine import views_of
from export3d.engines.graphs import graph_key, kept_graph
from export3d.engines.int8 import quantise
from export3d.engines.precision import fast_dtype
from export3d.engines.torch_engine import PartsEngine
from export3d.errors import ConfigError, MissingExtra
from export3d.files import reason
from export3d.memory import SPARED_BLOCK, give_back_memory, keep_freed_memory
from export3d.model import Encoded, Export3D, Planes
from export3d.render.renderer import Rendered
from export3d.triplane.generator import SidePath, SourceFeatures
from export3d.warping.detail import Views, finished
from export3d.warping.skip_path import SkipWalk
from export3d.warping.source_warp import Regions, fused_passes

_KEPT = 4
"""Compiled batch sizes that a part keeps."""


def load_openvino() -> Any:
    """The package `openvino`, with all that is needed of it.

    Raises:
        MissingExtra: it is not installed.
        ConfigError: it is installed and does not load.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # or it reports each import to Intel
    try:
        import openvino
        import openvino.frontend.pytorch.ts_decoder
    except Exception as error:  # a damaged package may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name == "openvino":
            raise MissingExtra("fast", "OpenVINO") from error
        raise ConfigError(
            f"OpenVINO is installed but does not load ({reason(error)}); run: pip install --force-reinstall openvino, "
            "or choose --engine torch"
        ) from error
    return openvino


class OpenVinoEngine(PartsEngine):
    """Runs a model's convolutions in OpenVINO and its volume renderer in one compiled pass.

    Args:
        model: in evaluation mode, on the CPU.
        dtype: of convolutions and matrix products; None: the processor's fast one, which is int8 instead of float32
            where the model's ranges are known.

    Raises:
        MissingExtra: OpenVINO is not installed.
        ConfigError: it is damaged, or the model is on another device.
    """

    name = "openvino"

    def __init__(self, model: Export3D, dtype: torch.dtype | None = None) -> None:
        if dtype is None:
            dtype = fast_dtype(torch.device("cpu"))
            dtype = torch.int8 if dtype == torch.float32 and model.ranges else dtype
        self._int8 = dtype == torch.int8
        super().__init__(model, torch.float32 if self._int8 else dtype)
        if self.device.type != "cpu":
            raise ConfigError("the engine openvino runs on the processor; choose --device cpu or another engine")
        keep_freed_memory(SPARED_BLOCK)  # more does not make OpenVINO faster
        self._fast = parts.shallow(model)
        self._fast.generator = _Generator(self._compiled(parts.PlaneGenerator(model)))  # type: ignore[assignment]
        self._fast.renderer = parts.shallow(model.renderer)
        self._fast.renderer.fused = True
        if model.warp is not None:
            self._fast.warp = parts.shallow(model.warp)
            self._fast.warp.fused = True
        self._passes = fused_passes() if model.moves_pixels else None
        self._finish = self._compiled((parts.Finish if self._passes is None else parts.Choice)(model))
        self._draw = None
        if model.warp is not None and model.warp.inner is not None:
            mouths = _Compiled(parts.Mouths(model), self.dtype, about=model.config)
            self._draw = lambda *given: mouths(dict(zip(parts.Mouths.inputs, given, strict=True)))["drawn"]

    @property
    def precision(self) -> str:
        """The number format of convolutions and matrix products."""
        return "int8" if self._int8 else super().precision

    def _compiled(self, part: parts.Part) -> _Compiled:
        config = self.model.config
        if not self._int8:
            return _Compiled(part, self.dtype, about=config)
        names, ranges = {layer: name for name, layer in self.model.named_modules()}, dict(self.model.ranges)
        return _Compiled(part, self.dtype, lambda graph: quantise(graph, part, names, ranges), (config, ranges))

    @torch.inference_mode()
    def render(self, planes: Planes, camera: Tensor, rays: int | None = None) -> Rendered:
        """See `Export3D.render`."""
        return self._fast.render(planes, camera, rays)

    def _planes(self, source: Encoded, expression: Tensor, shift: Tensor | None, regions: Regions | None) -> Planes:
        return self._fast.planes(source, expression, shift, regions)

    def _views(self, planes: Planes, camera: Tensor) -> Views:
        return views_of(self._fast, planes, camera)

    def _finished(self, planes: Planes, camera: Tensor, rendered: Rendered) -> tuple[dict[str, Tensor], Views | None]:
        if not self.model.moves_pixels:
            return self._finish({"feature": rendered.feature}), None
        views = self._views(planes, camera)
        if self._passes is None:
            seen = {"view.image": views.still} | parts.tensors(views, "views")
            return self._finish({"feature": rendered.feature} | seen), views
        stacked = views.stacked()
        half = self._passes.halved(stacked)
        given = {"feature": rendered.feature, "stacked": stacked, "half": half, "offset": views.mean_offset}
        made = self._finish(given)
        blended = self._passes.blend(made["choice"], made["rendered"], views.leaned(made["lean"]), views)
        image, share, teeth = finished(self._draw, blended, views)
        return {"image": image, "share": share} | ({} if teeth is None else {"teeth": teeth}), views


class _Generator(nn.Module):
    """The generator as `Export3D.planes` calls it; its planes include the tri-plane EMA."""

    def __init__(self, compiled: _Compiled) -> None:
        super().__init__()
        self._compiled = compiled
        self.average = nn.Identity()

    def generate(self, source: SourceFeatures, embedding: Tensor, side: SidePath | None = None) -> Tensor:
        given = parts.tensors(source, "features") | {"beta": embedding}
        if isinstance(side, SkipWalk) and side.field is not None:
            given["field"] = side.field
        return self._compiled(given)["triplane"]


class _Compiled:
    """A part of the model in OpenVINO, compiled per batch size, number of PyTorch's threads, and threads side by side.

    The last `_KEPT` are kept: each holds the weights and its own memory.

    Args:
        dtype: of convolutions and matrix products.
        change: changes OpenVINO's model before it is compiled.
        about: what the part and the change depend on besides the part's weights.
    """

    def __init__(
        self, part: parts.Part, dtype: torch.dtype, change: Callable[[Any], None] | None = None, about: object = None
    ) -> None:
        openvino = load_openvino()
        self._openvino, self._core = openvino, openvino.Core()
        self._part, self._precision = part.eval(), "bf16" if dtype == torch.bfloat16 else "f32"
        self._change, self._about = change, about
        self._requests: dict[tuple[int, int, int], SimpleQueue[Any]] = {}
        self._lock = threading.Lock()

    def __call__(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The part's outputs, float32, for its inputs by name; others are ignored."""
        inputs = [given[name].float().contiguous() for name in self._part.inputs]
        with self._request(inputs) as request:
            for number, tensor in enumerate(inputs):
                request.set_input_tensor(number, self._shared(tensor.numpy()))
            made: dict[str, Tensor] = {}
            for number, name in enumerate(self._part.outputs):
                array = np.empty(request.model_outputs[number].shape, np.float32)
                request.set_output_tensor(number, self._shared(array))
                made[name] = torch.from_numpy(array)
            request.infer()
        return made

    def _shared(self, array: np.ndarray) -> Any:
        return self._openvino.Tensor(array, shared_memory=True)

    @contextmanager
    def _request(self, inputs: list[Tensor]) -> Iterator[Any]:
        """A request of the compiled part that nobody else uses meanwhile."""
        key = len(inputs[0]), torch.get_num_threads(), threads_beside()
        with self._lock:
            if key in self._requests:
                self._requests[key] = self._requests.pop(key)  # the last one used is the last one dropped
            else:
                for oldest in list(self._requests)[: 1 - _KEPT]:
                    del self._requests[oldest]
                # in a thread: a signal handler that raises inside OpenVINO's calls to Python would be lost
                with ThreadPoolExecutor(1, "convert") as thread:
                    self._requests[key] = thread.submit(self._compiled, inputs, *key[1:]).result()
                give_back_memory()
            free = self._requests[key]
        request = free.get()
        try:
            yield request
        finally:
            free.put(request)

    def _compiled(self, inputs: list[Tensor], threads: int, beside: int) -> SimpleQueue[Any]:
        """As many requests as threads use the part at a time."""
        shapes = [list(tensor.shape) for tensor in inputs]
        settings = {
            "INFERENCE_PRECISION_HINT": self._precision,
            "INFERENCE_NUM_THREADS": threads * beside,
            "NUM_STREAMS": beside,
            "ENABLE_CPU_PINNING": False,  # it would pin the threads of PyTorch too
        }

        def compiled() -> Any:
            model = _read(self._part, inputs)  # not kept: it holds the weights once more
            give_back_memory()  # of tracing
            model.reshape(dict(zip(model.inputs, shapes)))
            if self._change is not None:
                self._change(model)
            return self._core.compile_model(model, "CPU", settings)

        processor = self._core.get_property("CPU", "FULL_DEVICE_NAME"), os.environ.get("ONEDNN_MAX_CPU_ISA")
        versions = self._openvino.__version__, torch.__version__
        graph = kept_graph(
            graph_key(self._part, (type(self._part), self._about, shapes, settings, processor, versions)),
            compiled,
            lambda graph: graph.export_model().getvalue(),
            lambda data: self._core.import_model(data, "CPU", settings),
        )
        requests: SimpleQueue[Any] = SimpleQueue()
        for _ in range(beside):
            requests.put(graph.create_infer_request())
        return requests


def _read(part: parts.Part, inputs: list[Tensor]) -> Any:
    """OpenVINO's model of a part, by way of a trace.

    `openvino.convert_model` does the same but reports its use over the network.
    """
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    frontend = FrontEndManager().load_by_framework("pytorch")
    exact = torch.autocast("cpu", enabled=False)
    with torch.inference_mode(False), torch.no_grad(), exact, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sizes that a trace fixes, and that tracing is deprecated
        # a batch of one would be taken for a dimension to broadcast
        example = tuple(torch.zeros(2, *tensor.shape[1:]) for tensor in inputs)
        traced = torch.jit.trace(part, example, check_trace=False)  # type: ignore[no-untyped-call]
        decoder = TorchScriptPythonDecoder(traced.eval(), example_input=example)  # must outlive the conversion
        return frontend.convert(frontend.load(decoder))
