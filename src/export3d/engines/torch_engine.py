"""The engine `torch`: PyTorch with convolutions and matrix products in the device's fast number format.

Landmarks, cameras, flows' places and volume rendering stay in float32: they switch autocast off where it would hurt.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import torch
from torch import Tensor

from export3d.engines.engine import Engine, views_of
from export3d.engines.precision import fast_dtype
from export3d.memory import keep_freed_memory
from export3d.model import Encoded, Export3D, Planes
from export3d.render.renderer import Rendered
from export3d.warping.detail import MixedOrigin, Views
from export3d.warping.source_warp import Origin, Regions

logger = logging.getLogger(__name__)


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
        if self.device.type == "cpu":
            keep_freed_memory()
        self.dtype = fast_dtype(self.device) if dtype is None else dtype
        self._warned = False

    @property
    def description(self) -> str:
        """Its name and number format, for reports."""
        return f"{self.name}, {self.precision}"

    @property
    def precision(self) -> str:
        """The number format of convolutions and matrix products."""
        return str(self.dtype).removeprefix("torch.")

    @torch.inference_mode()
    def planes(
        self, source: Encoded, expression: Tensor, shift: Tensor | None = None, regions: Regions | None = None
    ) -> Planes:
        """See `Export3D.planes`."""
        with self._autocast():
            made = self._planes(source, expression, shift, regions)
        return made if self._is_finite(made.triplane) else self.model.planes(source, expression, shift, regions)

    @torch.inference_mode()
    def views(self, planes: Planes, camera: Tensor) -> Views:
        """See `Engine.views`."""
        with self._autocast():
            return self._views(planes, camera)

    @torch.inference_mode()
    def frame_and_origin(
        self, planes: Planes, camera: Tensor, rendered: Rendered | None = None
    ) -> tuple[Tensor, Origin | None]:
        """See `Export3D.frame_and_origin`."""
        rendered = rendered or self.render(planes, camera)
        with self._autocast():
            made = self._frame_and_origin(planes, camera, rendered)
        return made if self._is_finite(made[0]) else self.model.frame_and_origin(planes, camera)

    @torch.inference_mode()
    def frame_and_share(self, planes: Planes, camera: Tensor) -> tuple[Tensor, Tensor]:
        """See `Export3D.frame_and_share`."""
        with self._autocast():
            made = self._frame_and_share(planes, camera)
        return made if self._is_finite(made[0]) else self.model.frame_and_share(planes, camera)

    def _planes(self, source: Encoded, expression: Tensor, shift: Tensor | None, regions: Regions | None) -> Planes:
        return self.model.planes(source, expression, shift, regions)

    def _views(self, planes: Planes, camera: Tensor) -> Views:
        return views_of(self.model, planes, camera)

    def _frame_and_origin(self, planes: Planes, camera: Tensor, rendered: Rendered) -> tuple[Tensor, Origin | None]:
        return self.model.frame_and_origin(planes, camera, rendered)

    def _frame_and_share(self, planes: Planes, camera: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.frame_and_share(planes, camera)

    def _is_finite(self, made: Tensor) -> bool:
        """Whether all numbers are finite; the first time that one is not, the log says so."""
        finite = bool(made.sum(dtype=torch.float32).isfinite())
        if not finite and not self._warned:
            self._warned = True
            logger.warning(
                "the engine %s gave a result that is not finite; such frames are computed again in float32", self.name
            )
        return finite

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)


class PartsEngine(TorchEngine):
    """Gets what comes after rendering from a part of the model: an image and the shares in it."""

    def _finished(self, planes: Planes, camera: Tensor, rendered: Rendered) -> tuple[dict[str, Tensor], Views | None]:
        """The outputs of `parts.Finish`, and the views that it mixed; None if the model does not move pixels."""
        raise NotImplementedError

    def _frame_and_origin(self, planes: Planes, camera: Tensor, rendered: Rendered) -> tuple[Tensor, Origin | None]:
        made, views = self._finished(planes, camera, rendered)
        return made["image"], None if views is None else MixedOrigin(made["share"], views, made.get("teeth"))

    def _frame_and_share(self, planes: Planes, camera: Tensor) -> tuple[Tensor, Tensor]:
        made, _ = self._finished(planes, camera, self.render(planes, camera))
        return made["image"], made["share"][:, :1] if "share" in made else torch.ones_like(made["image"][:, :1])
