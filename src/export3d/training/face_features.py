"""A perceptual loss without external files: the form of LPIPS on features of the packaged face descriptor.

d(x, y) is that of `perceptual`, with uniform weights. The features come from dlib's ResNet-29, trained to recognise
people: its early stages respond to fine texture, later ones to parts of the face.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export3d.errors import ConfigError
from export3d.face.identity import DlibIdentity
from export3d.perceptual import Perceptual

NAME = "dlib"
_CHANNELS = {"conv32_down": 32, "conv32_3": 32, "conv64_3": 64, "conv128_2": 128}
"""Stages whose outputs are compared."""
SMALLEST = 31
"""Pixels per side that the last compared stage needs."""
_WEIGHT = 0.36
"""Weight of each channel. A face blurred by 2 of 256 px is then at a distance of 0.17 (LPIPS, squeeze: 0.20)."""


class FacePerceptual(Perceptual):
    """Distance between images in [-1, 1], see `perceptual.Perceptual`; its network is packaged."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.backbone = NAME
        self._network = DlibIdentity()
        for layer, channels in enumerate(_CHANNELS.values()):
            self.register_buffer(f"head{layer}", torch.full((channels,), _WEIGHT))

    def to(self, device: torch.device) -> FacePerceptual:  # type: ignore[override]
        """Move the network to `device`; returns self."""
        self._network.to(device)
        return super().to(device)

    def responses(self, image: Tensor) -> list[Tensor]:
        """Outputs of the compared stages, (B, 3, H, W) in [-1, 1] to a list of (B, C, h, w) float32.

        Raises:
            ConfigError: images of fewer than `SMALLEST` pixels per side.
        """
        if min(image.shape[-2:]) < SMALLEST:
            raise ConfigError(
                f"the backbone dlib compares images of at least {SMALLEST} px, but one has {min(image.shape[-2:])} px; "
                "train with larger images, or without the raw one: --set loss.lpips_raw=0"
            )
        found: list[Tensor] = []
        with torch.autocast(image.device.type, enabled=False):
            for name, value in self._network.stages((image.float() + 1.0) * 127.5):
                if name in _CHANNELS:
                    found.append(value)
                if len(found) == len(_CHANNELS):
                    break
        return found
