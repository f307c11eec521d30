"""The light-weight MLP: plane feature to colour feature and density (Eq. 8; supplement 6.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlaneDecoder(nn.Module):
    """(c, sigma) = MLP(F): a hidden layer with softplus, then two separate linear layers for colour and density.

    The density is softplus(x - 1) (EG3D's shift) times `density_gain`: with a gain of 10, rays through a volume of unit
    size become opaque from the start of training. The first three colour features are the raw image, so tanh limits all
    of them to slightly beyond [-1, 1]. Runs in float32, also under autocast.

    Args:
        channels: C of the planes.
        hidden: width of the hidden layer.
        features: colour features, at least 3.
    """

    COLOUR_GAIN = 1.002
    """The limit of the colours."""

    def __init__(self, channels: int, hidden: int, features: int, density_gain: float = 10.0) -> None:
        super().__init__()
        self.density_gain = density_gain
        self.hidden = nn.Linear(channels, hidden)
        self.colour = nn.Linear(hidden, features)
        self.density = nn.Linear(hidden, 1)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """(..., C) to colour features (..., F) in (-1.002, 1.002) and densities (...), non-negative."""
        with torch.autocast(feature.device.type, enabled=False):
            x = F.softplus(self.hidden(feature.float()))
            # One product for both layers: a separate one-column product for the density is slow in backward.
            weight = torch.cat([self.colour.weight, self.density.weight])
            both = F.linear(x, weight, torch.cat([self.colour.bias, self.density.bias]))
            colour, density = torch.split(both, [self.colour.out_features, 1], dim=-1)
            return torch.tanh(colour) * self.COLOUR_GAIN, F.softplus(density[..., 0] - 1.0) * self.density_gain

    def density_of(self, hidden: Tensor) -> Tensor:
        """(..., hidden) activations to densities (...) alone, without gradients."""
        density = torch.mv(hidden.flatten(0, -2), self.density.weight[0]).add_(self.density.bias - 1.0)
        return F.softplus(density).mul_(self.density_gain).view(hidden.shape[:-1])
