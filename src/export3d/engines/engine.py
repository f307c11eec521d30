"""Engine: the steps of inference, as `Export3D` has them."""

from __future__ import annotations

import torch
from torch import Tensor

from export3d.model import Encoded, Export3D, Planes
from export3d.render.renderer import Rendered
from export3d.warping.detail import Views
from export3d.warping.source_warp import Origin, Regions


def views_of(model: Export3D, planes: Planes, camera: Tensor) -> Views:
    """`SourceWarp.views` of a model that moves pixels: the source as cameras (B, 25) see it."""
    warp, view, motion = model.warp, planes.source.view, planes.motion
    assert warp is not None
    assert view is not None
    assert motion is not None
    return warp.views(view, motion, camera)


class Engine:
    """Runs a model with PyTorch in float32: the `reference`, which the other engines approximate.

    Args:
        model: in evaluation mode, on its device.
    """

    name = "reference"

    def __init__(self, model: Export3D) -> None:
        self.model = model

    @property
    def description(self) -> str:
        """Its name and number format, for reports."""
        return f"{self.name}, float32"

    @torch.inference_mode()
    def encode(
        self, source: Tensor, camera: Tensor, expression: Tensor, landmarks: Tensor, matte: Tensor | None = None
    ) -> Encoded:
        """See `Export3D.encode`; once per source, in float32 in every engine."""
        return self.model.encode(source, camera, expression, landmarks, matte)

    @torch.inference_mode()
    def planes(
        self, source: Encoded, expression: Tensor, shift: Tensor | None = None, regions: Regions | None = None
    ) -> Planes:
        """See `Export3D.planes`."""
        return self.model.planes(source, expression, shift, regions)

    @torch.inference_mode()
    def render(self, planes: Planes, camera: Tensor, rays: int | None = None) -> Rendered:
        """See `Export3D.render`."""
        return self.model.render(planes, camera, rays)

    @torch.inference_mode()
    def views(self, planes: Planes, camera: Tensor) -> Views:
        """See `views_of`; a step of `frame_and_origin`."""
        return views_of(self.model, planes, camera)

    @torch.inference_mode()
    def frame_and_origin(
        self, planes: Planes, camera: Tensor, rendered: Rendered | None = None
    ) -> tuple[Tensor, Origin | None]:
        """See `Export3D.frame_and_origin`."""
        return self.model.frame_and_origin(planes, camera, rendered)

    @torch.inference_mode()
    def frame_and_share(self, planes: Planes, camera: Tensor) -> tuple[Tensor, Tensor]:
        """See `Export3D.frame_and_share`."""
        return self.model.frame_and_share(planes, camera)
