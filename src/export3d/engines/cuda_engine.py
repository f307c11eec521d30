"""The engine `torch` on a GPU: each step of a frame is one CUDA graph.

A frame is a few thousand small kernels. Launched one by one they take longer than they run; a recorded graph launches
them together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from export3d.engines import parts
from export3d.engines.torch_engine import PartsEngine
from export3d.model import Encoded, Export3D, Planes
from export3d.motion.motion import SHOULDERS
from export3d.render.renderer import Rendered
from export3d.warping.detail import Views
from export3d.warping.source_warp import Regions, SourceMotion

logger = logging.getLogger(__name__)


class Recording(Protocol):
    """A part with fixed inputs and outputs; `replay` computes these outputs from what those inputs hold then."""

    @property
    def inputs(self) -> Sequence[Tensor]: ...

    @property
    def outputs(self) -> Sequence[Tensor]: ...

    def replay(self) -> None: ...


Record = Callable[[parts.Part, Sequence[Tensor], torch.dtype], Recording]


class CudaRecording:
    """A part as a CUDA graph, under autocast.

    Args:
        inputs: of the shapes that it is recorded for, on the GPU.
    """

    def __init__(self, part: parts.Part, inputs: Sequence[Tensor], dtype: torch.dtype) -> None:
        self.inputs: Sequence[Tensor] = [tensor.clone() for tensor in inputs]
        self._graph = torch.cuda.CUDAGraph()
        half = torch.autocast("cuda", dtype, enabled=dtype != torch.float32, cache_enabled=False)
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside), half:  # libraries choose their algorithms before anything is recorded
            part(*self.inputs)
        torch.cuda.current_stream().wait_stream(aside)
        with torch.cuda.graph(self._graph), half:
            self.outputs: Sequence[Tensor] = part(*self.inputs)

    def replay(self) -> None:
        self._graph.replay()


class RecordedPart:
    """A part that is recorded when it meets inputs of the same shapes again; alone, the last batch runs as it is.

    Args:
        part: of a model.
        dtype: of convolutions and matrix products.
        record: makes a recording of the part for inputs.
    """

    def __init__(
        self,
        part: parts.Part,
        dtype: torch.dtype,
        record: Record = CudaRecording,
    ) -> None:
        self._part, self._dtype, self._record = part.eval(), dtype, record
        self._recordings: dict[tuple[torch.Size, ...], Recording | None] = {}
        self._can_record = True

    def __call__(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The part's outputs for its inputs by name; others are ignored."""
        inputs = [given[name] for name in self._part.inputs]
        recording = self._recording(inputs)
        if recording is None:
            return dict(zip(self._part.outputs, self._part(*inputs), strict=True))
        for kept, tensor in zip(recording.inputs, inputs, strict=True):
            kept.copy_(tensor)
        recording.replay()
        return {name: tensor.clone() for name, tensor in zip(self._part.outputs, recording.outputs, strict=True)}

    def _recording(self, inputs: Sequence[Tensor]) -> Recording | None:
        shapes = tuple(tensor.shape for tensor in inputs)
        if shapes not in self._recordings:
            self._recordings[shapes] = None
        elif self._recordings[shapes] is None and self._can_record:
            try:
                self._recordings[shapes] = self._record(self._part, inputs, self._dtype)
            except RuntimeError as error:
                self._can_record = False
                logger.warning("no CUDA graph of a frame (%s); frames are rendered without, which is slower", error)
        return self._recordings[shapes]


class CudaEngine(PartsEngine):
    """Runs a model on a GPU.

    Args:
        model: in evaluation mode, on its device.
        dtype: of convolutions and matrix products; None: the GPU's fast one.
        record: see `RecordedPart`.
    """

    def __init__(
        self,
        model: Export3D,
        dtype: torch.dtype | None = None,
        record: Record = CudaRecording,
    ) -> None:
        super().__init__(model, dtype)
        self._plane_part = RecordedPart(parts.planes_part(model), self.dtype, record)
        self._renderer = RecordedPart(parts.Renderer(model), self.dtype, record)
        views = [parts.CameraViews(model)] if model.moves_pixels else []
        self._last = finish = parts.Finish(model)
        outputs = [*finish.outputs, *(name for part in views for name in part.outputs)]
        self._frame_part = RecordedPart(parts.Chain([*views, finish], outputs), self.dtype, record)

    @torch.inference_mode()
    def render(self, planes: Planes, camera: Tensor, rays: int | None = None) -> Rendered:
        """See `Export3D.render`; with another number of rays than the configured one it is not recorded."""
        if rays is not None:
            return self.model.render(planes, camera, rays)
        made = self._renderer({"triplane": planes.triplane, "camera": camera})
        return Rendered(made["feature"], made["depth"], made["opacity"])

    def _planes(self, source: Encoded, expression: Tensor, shift: Tensor | None, regions: Regions | None) -> Planes:
        sizes, batch = self.model.config.expression, len(expression)
        if len(source.features.tokens) != batch:
            source = source.expand(batch)
        if shift is None:
            shift = expression.new_zeros(1, sizes.latent)
        if regions is None:
            moved = None if self.model.warp is None else self.model.warp.motion
            none = expression.new_zeros(batch, 4, sizes.d if moved is None else moved.width)
            regions = Regions(none, none, none[:, 0, 0])
        given = {"expression": expression, "shift": shift.expand(batch, -1)}
        made = self._plane_part(given | parts.tensors(source) | parts.tensors(regions, "regions"))
        motion = None if self.model.warp is None else SourceMotion(made.get("points"))
        return Planes(made["triplane"], source, motion)

    def _finished(self, planes: Planes, camera: Tensor, rendered: Rendered) -> tuple[dict[str, Tensor], Views | None]:
        given = {"feature": rendered.feature, "camera": camera} | parts.tensors(planes.source)
        if planes.motion is not None and planes.motion.points is not None:
            given["points"] = planes.motion.points
        known = None if planes.motion is None else planes.motion.shoulders
        given["shoulders"] = camera.new_zeros(len(camera), SHOULDERS) if known is None else known
        made = self._frame_part(given)
        if not self.model.moves_pixels:
            return made, None
        return made, parts.rebuilt(self._last.like, made | {"views.still": given["view.image"]}, "views")
