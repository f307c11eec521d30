"""Animate one portrait photo in 3D (Export3D).

    from export3d import Animator, driving_motion

    animator = Animator.from_pretrained()
    source = animator.encode("portrait.jpg")
    frames = list(animator.animate(source, driving_motion("driving.mp4")))

The names below are public; each is imported when it is first used, so that `import export3d` costs nothing.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export3d.animate.animator import Animator as Animator
    from export3d.animate.animator import Source as Source
    from export3d.animate.drive import driving_motion as driving_motion
    from export3d.animate.drive import rebase as rebase
    from export3d.animate.export import write_still as write_still
    from export3d.animate.export import write_video as write_video
    from export3d.camera import Camera as Camera
    from export3d.errors import Export3DError as Export3DError
    from export3d.model import Export3D as Export3D
    from export3d.motion.motion import Motion as Motion
    from export3d.pretrained import load_pretrained as load_pretrained

__version__ = "0.1.0"

# Libraries that would report their use to their makers are told not to.
for _variable, _value in {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}.items():
    os.environ.setdefault(_variable, _value)

_HOMES = {
    "Animator": "export3d.animate.animator",
    "Camera": "export3d.camera",
    "Export3D": "export3d.model",
    "Export3DError": "export3d.errors",
    "Motion": "export3d.motion.motion",
    "Source": "export3d.animate.animator",
    "driving_motion": "export3d.animate.drive",
    "load_pretrained": "export3d.pretrained",
    "rebase": "export3d.animate.drive",
    "write_still": "export3d.animate.export",
    "write_video": "export3d.animate.export",
}

__all__ = [
    "Animator",
    "Camera",
    "Export3D",
    "Export3DError",
    "Motion",
    "Source",
    "driving_motion",
    "load_pretrained",
    "rebase",
    "write_still",
    "write_video",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'export3d' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
