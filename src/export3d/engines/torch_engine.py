"""The engine `torch`: PyTorch with convolutions and matrix products in the device's fast number format.

Landmarks, cameras, flows' places and volume rendering stay in float32: they switch autocast off where it would hurt.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from export3d.engines.engine import Engine
from export3d.engines.precision import fast_dtype
from export3d.model import Encoded, Export3D, Planes
from export3d.render.renderer import Rendered
from export3d.warping.source_warp import Eyes, Origin

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class TorchEngine(Engine):
    """Runs a model under autocast, and again in float32 where a result is not finite.

    Args:
        model: in evaluation mode, on its device.
        dtype: of convolutions and matrix products; None: the device's fast one.
    """

    name = "torch"

    def __init__(self, model: Export3D, dtype: torch.dtype | None = None) -> None:
        super().__init__(model)
        self.device = next(model.parameters()).device
        self.dtype = fast_dtype(self.device) if dtype is None else dtype
        self._warned = False

    @property
    def description(self) -> str:
        """Its name and number format, for reports."""
        return f"{self.name}, {str(self.dtype).removeprefix('torch.')}"

    @torch.inference_mode()
    def planes(
        self, source: Encoded, expression: Tensor, shift: Tensor | None = None, eyes: Eyes | None = None
    ) -> Planes:
        """See `Export3D.planes`."""
        return self._guarded(lambda: self.model.planes(source, expression, shift, eyes), lambda made: made.triplane)

    @torch.inference_mode()
    def frame_and_origin(
        self, planes: Planes, camera: Tensor, rendered: Rendered | None = None
    ) -> tuple[Tensor, Origin | None]:
        """See `Export3D.frame_and_origin`."""
        return self._guarded(lambda: self.model.frame_and_origin(planes, camera, rendered), lambda made: made[0])

    @torch.inference_mode()
    def frame_and_share(self, planes: Planes, camera: Tensor) -> tuple[Tensor, Tensor]:
        """See `Export3D.frame_and_share`."""
        return self._guarded(lambda: self.model.frame_and_share(planes, camera), lambda made: made[0])

    def _guarded(self, step: Callable[[], Result], image: Callable[[Result], Tensor]) -> Result:
        """The result of a step in the fast number format; in float32 where that is not finite."""
        with self._autocast():
            made = step()
        if bool(image(made).sum().isfinite()):
            return made
        if not self._warned:
            self._warned = True
            logger.warning(
                "the engine %s gave a result that is not finite; such frames are computed again in float32", self.name
            )
        return step()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)
