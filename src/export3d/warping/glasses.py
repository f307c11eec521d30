"""Glasses go with the head (not in the paper).

Landmarks of the skin move with the expression, and the mesh would bend the rims in front of it. Where a source wears
glasses, landmarks around them therefore keep their places in the head. Lids and irises, which are seen through the
glasses, move as before. A tiny network tells from a strip around the eyes whether there are glasses. It is packaged,
and nothing in it is trained with a model.

Letters: B batch, L = 478 landmarks, H pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export3d.errors import check_shape
from export3d.face.landmark_sets import AROUND_EYES, EYE_CORNERS, EYELIDS, IRISES, MOUTH_CORNERS
from export3d.face.mesh import LANDMARKS
from export3d.face.packaged import ASSETS, packaged_tensors
from export3d.layers import smooth_step
from export3d.warping.landmark_motion import average_landmarks

FILE = ASSETS / "glasses.safetensors"
"""Weights of the network."""
_CORNERS = EYE_CORNERS[0][0], EYE_CORNERS[1][0]
_WIDE, _HIGH = 64, 32
"""Pixels of the strip."""
_FIRST, _SPAN = (-0.2, -0.35), (1.4, 0.7)
"""Where the strip begins, from the outer corner of the right eye, and how far it reaches, in distances of the outer
corners: across, then down."""
_AROUND, _CONTRAST = 9, 0.02
"""Pixels whose mean is taken off each one, and what is added to the deviation that divides them."""
_LAYERS = 3
_NONE, _ALL = 1.5, 3.0
"""Scores up to which no landmark is held, and from which all are. Of people that it was not trained on, 12 of 13 frames
with glasses score above 2; of those without, one scores 1.7, and all others score below 0."""
_ABOVE, _BELOW = (-0.6, -0.1), (0.75, 0.4)
"""Where landmarks begin to be held above and below the eyes, and are: parts of the way from eyes to mouth. Brows, at
-0.22 to -0.36, are held in part: above thin rims they show, and thick rims lie in front of them."""


class Glasses(nn.Module):
    """Finds glasses, and holds the landmarks around them; nothing in it is trained.

    Raises:
        CheckpointError: the packaged file is missing or damaged.
    """

    held: Tensor

    def __init__(self) -> None:
        super().__init__()
        tensors = packaged_tensors(FILE, "network of glasses")
        for name, value in tensors.items():
            self.register_buffer(name.replace(".", "_"), value.float(), persistent=False)
        self.register_buffer("held", _held(average_landmarks()), persistent=False)

    def forward(self, image: Tensor, landmarks: Tensor) -> Tensor:
        """How sure it is that people wear glasses: (B, 1, 1), 0 to 1.

        Args:
            image: (B, 3, H, H) in [-1, 1].
            landmarks: (B, L, 2), 0..1 across the images.
        """
        return smooth_step((self.score(image, landmarks) - _NONE) / (_ALL - _NONE))[..., None]

    def score(self, image: Tensor, landmarks: Tensor) -> Tensor:
        """The network's own score (B, 1), above 0 where it sees glasses; arguments as of `forward`."""
        check_shape(landmarks, f"B {LANDMARKS} 2", "landmarks")
        with torch.autocast(image.device.type, enabled=False):  # bf16 would round places
            grey = _strip(image.float(), landmarks.float()).mean(dim=1, keepdim=True)
            x = grey - F.avg_pool2d(grey, _AROUND, 1, _AROUND // 2, count_include_pad=False)
            x = x / (x.std(dim=(1, 2, 3), keepdim=True) + _CONTRAST)
            for number in range(_LAYERS):
                weight, bias = (self.get_buffer(f"convs_{number}_{part}") for part in ("weight", "bias"))
                x = F.leaky_relu(F.conv2d(x, weight, bias, stride=2, padding=1), 0.2)
            x = torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)
            return F.linear(x, self.get_buffer("out_weight"), self.get_buffer("out_bias"))

    def hold(self, points: Tensor, resting: Tensor, share: Tensor) -> Tensor:
        """Moved landmarks whose part around glasses stays: (B, L, 3); with a share of 0 exactly `points`.

        Args:
            points: (B, L, 3) in the head's own axes, as the expression moves them.
            resting: (B, L, 3) the same of the sources.
            share: (B, 1, 1) of glasses, 0 to 1.
        """
        return torch.lerp(points, resting, self.held * share)


def _strip(image: Tensor, landmarks: Tensor) -> Tensor:
    """What images (B, C, H, H) show around the eyes, level: (B, C, `_HIGH`, `_WIDE`)."""
    right, left = (landmarks[:, None, None, number] for number in _CORNERS)
    across = left - right
    down = torch.stack([-across[..., 1], across[..., 0]], dim=-1)
    # two by two places a pixel, so that a large face is not sampled too coarsely
    x, y = (
        first + span * (torch.arange(2 * size, device=image.device) + 0.5) / (2 * size)
        for first, span, size in zip(_FIRST, _SPAN, (_WIDE, _HIGH))
    )
    places = right + x[:, None] * across + y[:, None, None] * down
    found = F.grid_sample(image, 2.0 * places - 1.0, padding_mode="border", align_corners=False)
    return F.avg_pool2d(found, 2)


def _held(points: Tensor) -> Tensor:
    """(L, 1) how far glasses hold each of the average landmarks (L, 3), 0 to 1."""
    height = points[[number for corners in EYE_CORNERS for number in corners], 1].mean()
    down = (points[:, 1] - height) / (points[list(MOUTH_CORNERS), 1].mean() - height)
    above, below = (smooth_step((down - first) / (last - first)) for first, last in (_ABOVE, _BELOW))
    share = above * below
    share[[*EYELIDS, *IRISES[0], *IRISES[1]]] = 0.0
    share[[*AROUND_EYES[0], *AROUND_EYES[1]]] *= 0.5  # between lids that move and rims that stay
    return share[:, None]
