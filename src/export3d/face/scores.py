"""The tracker's scores, read from landmarks alone: MediaPipe's own network, with gradients.

The tracker first finds landmarks in an image. A second network reads the scores from 146 of them. Here it is in
PyTorch, so that moved landmarks can be trained to show an expression. It is an MLP-Mixer (Tolstikhin et al. 2021): its
layers mix the tokens of a face, then the channels of a token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from export3d.errors import check_shape
from export3d.face.mesh import LANDMARKS
from export3d.face.packaged import ASSETS, PackagedNetwork

FILE = ASSETS / "scores.safetensors"
"""Weights of the network."""
_BLOCKS = 4
_EPSILON = 1e-6
SEEN = (
    0, 1, 4, 5, 6, 7, 8, 10, 13, 14, 17, 21, 33, 37, 39, 40, 46, 52, 53, 54, 55, 58, 61, 63, 65, 66, 67, 70, 78, 80,
    81, 82, 84, 87, 88, 91, 93, 95, 103, 105, 107, 109, 127, 132, 133, 136, 144, 145, 146, 148, 149, 150, 152, 153, 154,
    155, 157, 158, 159, 160, 161, 162, 163, 168, 172, 173, 176, 178, 181, 185, 191, 195, 197, 234, 246, 249, 251, 263,
    267, 269, 270, 276, 282, 283, 284, 285, 288, 291, 293, 295, 296, 297, 300, 308, 310, 311, 312, 314, 317, 318, 321,
    323, 324, 332, 334, 336, 338, 356, 361, 362, 365, 373, 374, 375, 377, 378, 379, 380, 381, 382, 384, 385, 386, 387,
    388, 389, 390, 397, 398, 400, 402, 405, 409, 415, 454, 466, *range(468, 478),
)  # fmt: skip
"""The landmarks that it looks at, in its order."""


class ScoreReader(PackagedNetwork):
    """Landmarks to scores, as the tracker reads them; nothing in it is trained.

    Raises:
        CheckpointError: the packaged file is missing or damaged.
    """

    def __init__(self) -> None:
        super().__init__(FILE, "network of scores")

    def forward(self, landmarks: Tensor) -> Tensor:
        """Scores (B, 52) in the order of `ARKIT52`, 0 to 1; the last, tongueOut, is 0.

        Args:
            landmarks: (B, 478, 2), x right and y down, in any unit that both axes share. The same face turned reads
                differently, as it does to the tracker.
        """
        check_shape(landmarks, f"B {LANDMARKS} 2", "landmarks")
        weights = self.weights()
        with torch.autocast(landmarks.device.type, enabled=False):
            x = landmarks.float()[:, list(SEEN)]
            x = x - x.mean(dim=1, keepdim=True)
            x = 0.5 * x / x.norm(dim=-1, keepdim=True).mean(dim=1, keepdim=True)
            x = F.linear(_mixed(x, weights, "tokens"), weights["lift.weight"], weights["lift.bias"])
            x = torch.cat([weights["face"].expand(x.shape[0], 1, -1), x], dim=1)
            for number in range(_BLOCKS):
                at = f"blocks.{number}"
                y = _normalised(x, weights[f"{at}.first"])
                x = x + _mixed(F.relu(_mixed(y, weights, f"{at}.across.0")), weights, f"{at}.across.1")
                y = _normalised(x, weights[f"{at}.second"])
                y = F.relu(F.linear(y, weights[f"{at}.within.0.weight"], weights[f"{at}.within.0.bias"]))
                x = x + F.linear(y, weights[f"{at}.within.1.weight"], weights[f"{at}.within.1.bias"])
            read = F.linear(x[:, 0], weights["scores.weight"], weights["scores.bias"]).sigmoid()
        # `_neutral` comes first there, and there is no tongueOut
        return F.pad(read[:, 1:], (0, 1))


def _mixed(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    """Tokens (B, T, C) to other tokens (B, T', C)."""
    return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"][:, None]


def _normalised(x: Tensor, gain: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=_EPSILON) * gain
