"""The tracker's landmarks, read from an image: MediaPipe's own network, with gradients.

The tracker finds a face, cuts a square around it and finds 478 landmarks there. That second network is here in PyTorch,
so that what a picture shows can be compared with what it ought to show, see `training.regularisers.ReadingError`. It
is a row of residual blocks (He et al. 2016) of depthwise convolutions, halved where the first filter of a block is
2 × 2, with PReLU (He et al. 2015).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from export3d.errors import check_shape
from export3d.face.mesh import LANDMARKS
from export3d.face.packaged import ASSETS, PackagedNetwork

FILE = ASSETS / "landmarks.safetensors"
"""Weights of the network."""
SIZE = 256
"""Pixels per side of the image that it reads."""
_AROUND = 1.5
"""Side of the tracker's square, in larger sides of the box around the landmarks."""
_RIGHT_EYE, _LEFT_EYE = 33, 263
"""Outer corners: the tracker's square is turned until the line between them lies level."""


class LandmarkReader(PackagedNetwork):
    """Images to landmarks, as the tracker finds them; nothing in it is trained.

    Raises:
        CheckpointError: the packaged file is missing or damaged.
    """

    def __init__(self) -> None:
        super().__init__(FILE, "network of landmarks")

    def forward(self, image: Tensor, around: Tensor) -> Tensor:
        """Landmarks (B, 478, 2), 0..1 across the square that the tracker would cut around a face.

        Args:
            image: (B, 3, H, H) in [-1, 1]; pixels outside repeat its edge.
            around: (B, 478, 2), 0..1 across the image: landmarks of the face, which say where the square lies.
        """
        check_shape(around, f"{image.shape[0]} {LANDMARKS} 2", "around")
        with torch.autocast(image.device.type, enabled=False):
            return self._read((_square(image.float(), around.float()) + 1.0) / 2.0)

    def _read(self, chip: Tensor) -> Tensor:
        weights = self.weights()
        x = F.conv2d(F.pad(chip, (0, 1, 0, 1)), weights["stem.weight"], weights["stem.bias"], stride=2)
        x = F.prelu(x, weights["stem.slope"])
        for number in range(sum(name.endswith("depthwise.weight") for name in weights)):
            at = f"blocks.{number}"
            narrow = weights[f"{at}.reduce.weight"]
            halve = narrow.shape[-1]
            y = F.prelu(F.conv2d(x, narrow, weights[f"{at}.reduce.bias"], halve), weights[f"{at}.reduce.slope"])
            depthwise = weights[f"{at}.depthwise.weight"]
            y = F.conv2d(y, depthwise, weights[f"{at}.depthwise.bias"], padding=1, groups=len(depthwise))
            y = F.conv2d(y, weights[f"{at}.expand.weight"], weights[f"{at}.expand.bias"])
            kept = F.max_pool2d(x, 2) if halve == 2 else x
            kept = F.pad(kept, (0, 0, 0, 0, 0, y.shape[1] - kept.shape[1]))
            x = F.prelu(kept + y, weights[f"{at}.expand.slope"])
        found = F.conv2d(x, weights["landmarks.weight"], weights["landmarks.bias"])
        return found.reshape(len(chip), -1, 3)[..., :2] / SIZE  # the third is a depth


def _square(image: Tensor, around: Tensor) -> Tensor:
    """(B, 3, SIZE, SIZE): the tracker's square, sampled bilinearly."""
    across = around[:, _LEFT_EYE] - around[:, _RIGHT_EYE]
    x, y = (across / across.norm(dim=-1, keepdim=True).clamp_min(1e-6)).unbind(-1)
    low, high = around.amin(1), around.amax(1)
    side = _AROUND * (high - low).amax(-1)  # the grid's coordinates are -1..1 across the image and across the square
    turn = side[:, None, None] * torch.stack([torch.stack([x, -y], -1), torch.stack([y, x], -1)], 1)
    grid = F.affine_grid(
        torch.cat([turn, (low + high - 1.0)[..., None]], -1), [len(image), 3, SIZE, SIZE], align_corners=False
    )
    return F.grid_sample(image, grid, padding_mode="border", align_corners=False)
