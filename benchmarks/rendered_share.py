"""How much of a final image of `base` is rendered, and how much comes from the source's own pixels.

    python benchmarks/rendered_share.py [PORTRAIT ...]

For each portrait (by default the bundled one) and pose: mean shares, in percent of the pixel weight, of the rendered
image (volume and super-resolution) and of the moved, still and turned source (`warping.detail.Detail`).
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from export3d.animate.animator import Animator
from export3d.animate.drive import bundled_portrait
from export3d.camera import from_pose, head_angles, head_position
from export3d.motion.arkit import with_scores

POSES = {
    "at rest": ({}, 0.0),
    "jawOpen 1": ({"jawOpen": 1.0}, 0.0),
    "yaw 30": ({}, 30.0),
    "yaw 45": ({}, 45.0),
}
"""ARKit scores and degrees of yaw added to the portrait's own."""


@torch.inference_mode()
def main(portraits: list[str]) -> None:
    """Print one line per portrait and pose."""
    animator = Animator.from_pretrained(device="cpu")
    model = animator.model
    if model.warp is None:
        raise SystemExit("these weights have no warp: everything is rendered")
    print(f"{'':24}rendered  moved  still  turned")
    for portrait in portraits or [str(bundled_portrait())]:
        source = animator.encode(portrait)
        for name, (scores, yaw) in POSES.items():
            expression = torch.tensor(with_scores(source.expression, scores) if scores else source.expression)[None]
            turned = from_pose(head_angles(source.camera) + np.array([yaw, 0.0, 0.0]), head_position(source.camera))
            camera = torch.tensor(turned, dtype=torch.float32)[None]
            planes = model.planes(source.features, expression.float())
            feature = model.render(planes, camera).feature
            assert planes.motion is not None
            assert source.features.view is not None
            guide = model.warp.guide(source.features.view, planes.motion, camera, feature)
            assert guide is not None
            model.superres(feature, guide)
            assert guide.share is not None
            print(f"{name:24}" + "".join(f"{100.0 * float(x):7.1f}" for x in guide.share.mean(dim=(0, 2, 3))))


if __name__ == "__main__":
    main(sys.argv[1:])
