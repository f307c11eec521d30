"""Perceptual distance (LPIPS): one implementation, used as a loss and as a metric.

d(x, y) = sum over layers of the spatial mean of w_l . (f_l(x) / |f_l(x)| - f_l(y) / |f_l(y)|)^2 (Zhang et al. 2018,
Eq. 1), with f_l the activations of a classification network and w_l >= 0 learned weights, or 1/C if none are given.
The package contains no networks: the caller gives their files, or torchvision provides them if it is installed.

Backbones (`features.*` in torchvision's naming): `alex`, `squeeze`, `vgg16`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export3d.errors import CheckpointError, ConfigError, MissingExtra, check_shape
from export3d.files import kind_at

Normalisation = tuple[tuple[float, float, float], tuple[float, float, float]]
"""RGB mean and standard deviation that normalise an image in [-1, 1]."""

IMAGENET: Normalisation = ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450))
_BYTES_MINUS_MEAN = re.compile(r"RGB 0\.\.255 minus \(([\d.]+), ?([\d.]+), ?([\d.]+)\)")


class _Fire(nn.Module):
    """SqueezeNet's fire module: a 1x1 squeeze, then 1x1 and 3x3 expansions, concatenated."""

    def __init__(self, channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], dim=1)


def _alex() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
    )  # fmt: skip


def _squeeze() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True),
        _Fire(64, 16, 64), _Fire(128, 16, 64), nn.MaxPool2d(3, 2, ceil_mode=True),
        _Fire(128, 32, 128), _Fire(256, 32, 128), nn.MaxPool2d(3, 2, ceil_mode=True),
        _Fire(256, 48, 192), _Fire(384, 48, 192), _Fire(384, 64, 256), _Fire(512, 64, 256),
    )  # fmt: skip


def _vgg16() -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        if layers:
            layers.append(nn.MaxPool2d(2))
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class _Recipe:
    build: Callable[[], nn.Sequential]
    taps: tuple[int, ...]
    """Indices of the layers whose outputs are compared."""
    channels: tuple[int, ...]


_RECIPES = {
    "alex": _Recipe(_alex, (1, 4, 7, 9, 11), (64, 192, 384, 256, 256)),
    "squeeze": _Recipe(_squeeze, (1, 4, 7, 9, 10, 11, 12), (64, 128, 256, 384, 384, 512, 512)),
    "vgg16": _Recipe(_vgg16, (3, 8, 15, 22, 29), (64, 128, 256, 512, 512)),
}
BACKBONES = tuple(_RECIPES)


Distance = Callable[[Tensor, Tensor], Tensor]
"""Two batches of images (B, 3, H, W) in [-1, 1] to the distance (B,) of each pair, as `Perceptual` maps them."""


class Perceptual(nn.Module):
    """LPIPS distance between images in [-1, 1]; frozen, in float32.

    Args:
        backbone: `alex`, `squeeze` or `vgg16`.
        features: the backbone's tensors, named as in torchvision, with or without the prefix `features.`.
        heads: LPIPS v0.1 linear weights (`lin0.model.1.weight` …); None: uniform weights.
        normalisation: of the images that the backbone was trained on.

    Raises:
        ConfigError: the backbone is unknown.  CheckpointError: a tensor is missing or has the wrong shape.
    """

    def __init__(
        self,
        backbone: str,
        features: dict[str, Tensor],
        heads: dict[str, Tensor] | None = None,
        normalisation: Normalisation = IMAGENET,
    ) -> None:
        super().__init__()
        if backbone not in _RECIPES:
            raise ConfigError(f"unknown perceptual backbone {backbone!r}; choose one of {', '.join(BACKBONES)}")
        recipe = _RECIPES[backbone]
        self.backbone = backbone
        self.taps = recipe.taps
        self.layers = recipe.build()
        own = self.layers.state_dict()
        given = {key.removeprefix("features."): value.float() for key, value in features.items()}
        missing = [key for key in own if key not in given or given[key].shape != own[key].shape]
        if missing:
            raise CheckpointError(
                f"not the weights of a {backbone} backbone: {missing[0]} is missing or has the wrong shape"
            )
        self.layers.load_state_dict({key: given[key] for key in own})
        for layer, channels in enumerate(recipe.channels):
            weight = torch.full((channels,), 1.0 / channels)
            if heads is not None:
                key = f"lin{layer}.model.1.weight"
                if key not in heads or heads[key].numel() != channels:
                    raise CheckpointError(f"not the LPIPS heads of {backbone}: {key} is missing or has the wrong shape")
                weight = heads[key].float().flatten()
            self.register_buffer(f"head{layer}", weight)
        mean, deviation = normalisation
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation).view(1, 3, 1, 1))
        self.requires_grad_(False)
        self.eval()

    def responses(self, image: Tensor) -> list[Tensor]:
        """Outputs of the compared layers: (B, 3, H, W) in [-1, 1] to a list of (B, C, h, w) float32, not normalised."""
        with torch.autocast(image.device.type, enabled=False):
            x = (image.float() - self.mean) / self.deviation  # type: ignore[operator]
            if x.device.type == "cpu" and not torch.is_grad_enabled():  # pooling is many times faster in this format
                x = x.contiguous(memory_format=torch.channels_last)
            found = []
            for index, layer in enumerate(self.layers):
                x = layer(x)
                if index in self.taps:
                    found.append(x)
                if index == self.taps[-1]:
                    break
            return found

    def activations(self, image: Tensor) -> list[Tensor]:
        """Unit-normalised activations of each compared layer: (B, 3, H, W) in [-1, 1] to a list of (B, C, h, w)."""
        return [x / (x.square().sum(dim=1, keepdim=True) + 1e-10).sqrt() for x in self.responses(image)]

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """Distance (B,) of pairs, given their `activations`; a target's activations can be reused.

        Activations of AlexNet take 2.5 MB per image of 256 pixels: keep them for a few images only.
        """
        with torch.autocast(a[0].device.type, enabled=False):
            total = a[0].new_zeros(len(a[0]), dtype=torch.float32)
            for layer, (x, y) in enumerate(zip(a, b, strict=True)):
                weight: Tensor = getattr(self, f"head{layer}")
                total = total + (x - y).square().mean(dim=(2, 3)) @ weight
            return total

    def forward(self, x: Tensor, y: Tensor, kept: dict[str, Any] | None = None) -> Tensor:
        """Distance of each pair: two batches (B, 3, H, W) in [-1, 1] to (B,).

        Args:
            kept: keeps the activations of `y` for further calls with the same tensor; empty at first.
        """
        check_shape(x, "B 3 H W", "image")
        check_shape(y, f"{x.shape[0]} 3 {x.shape[2]} {x.shape[3]}", "other image")
        mine = self.activations(x)
        if kept is None:
            return self.distance(mine, self.activations(y))
        if kept.get("of") is not y:
            kept.update(of=y, activations=self.activations(y))
        return self.distance(mine, kept["activations"])

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """`torch.compile` of `activations`, which cost the most."""
        self.activations = torch.compile(self.activations, *args, **kwargs)  # type: ignore[method-assign]


def load_perceptual(backbone: str, features: Path | None = None, heads: Path | None = None) -> Perceptual:
    """A perceptual distance with weights from files, or torchvision's ImageNet weights if no file is given.

    Args:
        features: the backbone, `.safetensors` or `.pth` (tensors only: nothing in the file is executed).
        heads: LPIPS v0.1 linear weights; None: uniform weights.

    Raises:
        ConfigError: the backbone is unknown.
        CheckpointError: a file is missing or contains something else.
        MissingExtra: no file is given and torchvision is not installed.
    """
    if backbone not in _RECIPES:
        raise ConfigError(f"unknown perceptual backbone {backbone!r}; choose one of {', '.join(BACKBONES)}")
    found = _torchvision_features(backbone) if features is None else read_tensors(features)
    normalisation = IMAGENET if features is None else _stated_normalisation(Path(features))
    return Perceptual(backbone, found, None if heads is None else read_tensors(heads), normalisation)


def _stated_normalisation(path: Path) -> Normalisation:
    """Normalisation from a file's metadata, such as "RGB 0..255 minus (123, 117, 104)"; ImageNet's by default."""
    if path.suffix != ".safetensors":
        return IMAGENET
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        stated = _BYTES_MINUS_MEAN.fullmatch((file.metadata() or {}).get("input", ""))
    if stated is None:
        return IMAGENET
    red, green, blue = (float(value) / 127.5 - 1.0 for value in stated.groups())
    return (red, green, blue), (1 / 127.5, 1 / 127.5, 1 / 127.5)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a `.safetensors` or a `.pth` file; `.pth` is read with PyTorch's tensors-only unpickler."""
    path = Path(path)
    if kind_at(path, CheckpointError) != "file":
        raise CheckpointError(f"no weights at {path}; give the path of the network's weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors: dict[str, Tensor] = load_file(path)
            return tensors
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"cannot read weights from {path} ({type(error).__name__}); is it complete?") from error
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(f"{path} does not contain a dictionary of tensors")
    return loaded


def _torchvision_features(backbone: str) -> dict[str, Tensor]:
    try:
        from torchvision import models  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        remedy = (
            f"install torchvision, or name a file with the weights of {backbone} "
            "(evaluate: --backbone-file FILE; train: --set loss.backbone_file=FILE, or --set loss.backbone=auto)"
        )
        raise MissingExtra("train", "torchvision", remedy) from error
    name = {"alex": "alexnet", "squeeze": "squeezenet1_1", "vgg16": "vgg16"}[backbone]
    network = models.get_model(name, weights="DEFAULT" if backbone != "vgg16" else "IMAGENET1K_V1")
    features: dict[str, Tensor] = network.features.state_dict()
    return features
