"""Measures the ranges of layers' inputs (`engines.int8`), on the packaged portrait and motions."""

from __future__ import annotations

import numpy as np

from export3d.animate.animator import Animator
from export3d.animate.drive import BUNDLED, bundled_motion, bundled_portrait
from export3d.camera import Camera
from export3d.engines.int8 import measuring
from export3d.image import Pixels, read_image
from export3d.model import Export3D
from export3d.motion.motion import Motion
from export3d.weights.ranges import Ranges

_EVERY = 24
_CAMERAS = [Camera.orbit(yaw, pitch).label for yaw in (-70, -45, 0, 45, 70) for pitch in (-30, 0, 30)]
_MARGIN = 1.5


def measured_ranges(model: Export3D) -> Ranges:
    """Ranges over frames of the packaged portrait, also darker and lighter, driven by the packaged motions and orbited.

    The camera goes farther around the head than faces can be shown well, and the ranges get a margin: what lies outside
    would be cut off, in colours that anybody sees. Takes up to a minute on a processor.

    Raises:
        MissingExtra: the extra `face` is not installed.
    """
    animator = Animator(model, "cpu", "reference")
    with measuring(model) as found:
        for picture in _pictures():
            source = animator.encode(picture)
            for name in BUNDLED:
                motion = Motion.load(bundled_motion(name))
                for _ in animator.animate(source, motion[::_EVERY], relative=False):
                    pass
            planes = animator.planes(source, source.expression)
            for camera in _CAMERAS:
                animator.render_planes(source, planes, camera)
    wider = {name: (_MARGIN * low, _MARGIN * high) for name, (low, high) in found.items() if low < high}
    return {name: (float(f"{low:.5g}"), float(f"{high:.5g}")) for name, (low, high) in wider.items()}


def _pictures() -> list[Pixels]:
    picture = read_image(bundled_portrait())
    darker = picture // 2
    return [picture, darker, np.asarray(255 - (255 - picture) // 2, np.uint8)]
