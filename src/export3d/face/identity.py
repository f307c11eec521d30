"""The packaged descriptor of identity: dlib's ResNet-29 (King 2017), 128 numbers from a chip of 150 pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from export3d.errors import ShapeError, check_shape
from export3d.face.landmark_sets import EYE_CORNERS, NOSE_BASE
from export3d.face.packaged import ASSETS, packaged_tensors
from export3d.layers import constant

Picture = NDArray[np.uint8]
Vector = NDArray[np.float32]

PACKAGED = "dlib"

FILE = ASSETS / "identity.safetensors"
"""Weights of the packaged network."""

DLIB_SIZE = 150
"""Pixels of the packaged descriptor's chip."""
_DLIB_LENGTH = 128
_DLIB_BATCH = 16
"""Chips per forward pass; more gain nothing."""
_DLIB_PADDING = 0.25
_DLIB_POINTS = np.array(
    [
        [0.1205750620789, 0.2137274526848],
        [0.3340850613712, 0.2290642403242],
        [0.6460604764104, 0.2289674387677],
        [0.8595674595992, 0.2134981538014],
        [0.4901123135679, 0.6277975316475],
    ]
)
"""dlib's mean face: corners of the eyes from left to right, then the base of the nose, before padding."""
DLIB_TEMPLATE = (_DLIB_POINTS + _DLIB_PADDING) / (1.0 + 2.0 * _DLIB_PADDING) * DLIB_SIZE
"""(5, 2) locations of the landmarks `DLIB_CORNERS`, pixels of the chip."""
DLIB_CORNERS = (*EYE_CORNERS[0], *reversed(EYE_CORNERS[1]), NOSE_BASE)
_DLIB_MEAN_RGB = (122.782, 117.001, 104.298)


class DlibIdentity:
    """The packaged descriptor: dlib's ResNet-29 on a chip of 150 pixels, 128 numbers.

    The network's own measure is the distance before normalisation (`distance_vector`): under 0.6 is the same person.

    Raises:
        CheckpointError: the packaged file is missing.
    """

    name = PACKAGED
    description = "dlib ResNet-29 (packaged), 150 px chip of five points with padding 0.25"

    def __init__(self) -> None:
        self._network = _ResNet29(packaged_tensors(FILE, "face descriptor"))

    def __call__(self, picture: Picture, landmarks: NDArray[np.floating[Any]]) -> Vector:
        """See `Identity.__call__`; (128,)."""
        return unit(self.distance_vector(picture, landmarks))

    def many(self, pictures: Sequence[Picture], landmarks: NDArray[np.floating[Any]]) -> Vector:
        """See `Identity.many`; equal to `__call__` up to rounding."""
        return unit(self._vectors(pictures, landmarks))

    def distance_vector(self, picture: Picture, landmarks: NDArray[np.floating[Any]]) -> Vector:
        """The network's output (128,) float32, of length about 1.4; arguments as in `__call__`."""
        return np.asarray(self._vectors([picture], checked_landmarks(landmarks)[None])[0])

    def vectors(self, chips: Tensor) -> Tensor:
        """Chips (B, 3, 150, 150), RGB 0 to 255, to the network's output (B, 128); differentiable."""
        with torch.autocast(chips.device.type, enabled=False):
            return self._network((chips - constant(_DLIB_MEAN_RGB, chips.device).view(3, 1, 1)) / 256.0)

    def stages(self, pictures: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Name and output (B, C, h, w) of the network's stages, first to last, of RGB (B, 3, H, W) from 0 to 255."""
        return self._network.stages((pictures - constant(_DLIB_MEAN_RGB, pictures.device).view(3, 1, 1)) / 256.0)

    @staticmethod
    def chip(picture: Picture, landmarks: NDArray[np.floating[Any]]) -> Tensor:
        """What the network sees of a face, (3, 150, 150), RGB 0 to 255; arguments as in `__call__`."""
        return face_chip(picture, checked_landmarks(landmarks)[list(DLIB_CORNERS)], DLIB_TEMPLATE, DLIB_SIZE)

    def to(self, device: torch.device) -> None:
        """Move the network; all but `vectors` and `stages` expects it on the CPU."""
        self._network.to(device)

    @torch.inference_mode()
    def _vectors(self, pictures: Sequence[Picture], landmarks: NDArray[np.floating[Any]]) -> Vector:
        points = checked_landmarks(landmarks, len(pictures))
        out = np.empty((len(pictures), _DLIB_LENGTH), dtype=np.float32)
        for start in range(0, len(pictures), _DLIB_BATCH):
            part = slice(start, start + _DLIB_BATCH)
            chips = [self.chip(picture, at) for picture, at in zip(pictures[part], points[part])]
            out[part] = self.vectors(torch.stack(chips)).numpy()
        return out


def face_chip(
    picture: Picture, points: NDArray[np.floating[Any]], template: NDArray[np.floating[Any]], size: int
) -> Tensor:
    """The face rotated, scaled and shifted so that its points fit a template's by least squares.

    Args:
        picture: uint8 (H, W, 3) RGB; edge pixels are repeated outside it.
        points, template: (N, 2), pixels of the image and of the chip.
        size: of the chip.

    Returns:
        (3, size, size) float32, 0 to 255, bilinear with antialiasing.
    """
    check_shape(picture, "H W 3", "an image")
    if picture.dtype != np.uint8:
        raise ShapeError(f"an image must be uint8, got {picture.dtype}")
    # Complex numbers are the plane's similarities: z -> a z + b.
    to = points[:, 0] + 1j * points[:, 1]
    at = template[:, 0] + 1j * template[:, 1]
    centred = at - at.mean()
    a = (np.conj(centred) @ (to - to.mean())) / (np.conj(centred) @ centred).real
    b = to.mean() - a * at.mean()
    # Sampled at twice the size and averaged, against aliasing.
    fine = 2 * size
    across = (np.arange(fine) + 0.5) / 2
    down = across[:, None]
    height, width = picture.shape[:2]
    grid = np.empty((1, fine, fine, 2), dtype=np.float32)
    grid[..., 0] = (a.real * across + b.real) * 2 / width - 1 - (a.imag * 2 / width) * down
    grid[..., 1] = (a.imag * across + b.imag) * 2 / height - 1 + (a.real * 2 / height) * down
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
    fine_chip = F.grid_sample(pixels, torch.from_numpy(grid), padding_mode="border", align_corners=False)
    pairs = fine_chip[0, :, 0::2] + fine_chip[0, :, 1::2]  # several times faster than avg_pool2d on three channels
    return (pairs[..., 0::2] + pairs[..., 1::2]) / 4.0


class _ResNet29:
    """dlib's face descriptor network: (B, 3, 150, 150), RGB minus mean over 256, to (B, 128).

    Weights are 8-bit with a scale and a minimum for each layer, or float16; the affine that follows each convolution is
    folded into its weights.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors: dict[str, Tensor] = {}
        for name, value in tensors.items():
            if value.dtype == torch.uint8:
                scale, low = tensors[name.replace(".weight", ".range")]
                value = value * scale + low
            if value.ndim == 4:
                value = value.float() * tensors[name.replace(".weight", ".gain")].float().view(-1, 1, 1, 1)
                value = value.contiguous(memory_format=torch.channels_last)
            self._tensors[name] = value.float()

    def to(self, device: torch.device) -> None:
        self._tensors = {name: value.to(device) for name, value in self._tensors.items()}

    def __call__(self, x: Tensor) -> Tensor:
        *_, (_, last) = self.stages(x)
        return F.linear(last.mean(dim=(2, 3)), self._tensors["fc.weight"])

    def stages(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Name and output of the first convolution and of each residual block, of images of any size."""
        x = F.relu(self._layer(x.contiguous(memory_format=torch.channels_last), "conv32_down", 2, 0))
        yield "conv32_down", x
        x = F.max_pool2d(x, 3, 2)
        for block in ("conv32_1", "conv32_2", "conv32_3", "conv64_down", "conv64_1", "conv64_2", "conv64_3",
                      "conv128_down", "conv128_1", "conv128_2", "conv256_down", "conv256_1", "conv256_2",
                      "conv256_down_out"):  # fmt: skip
            down = "down" in block
            y = F.relu(self._layer(x, f"{block}.conv1", 2 if down else 1, 0 if down else 1))
            y = self._layer(y, f"{block}.conv2", 1, 1)
            x = F.avg_pool2d(x, 2) if down else x
            if x.shape != y.shape:  # dlib treats missing entries as 0
                size = [max(p, q) for p, q in zip(x.shape, y.shape)]
                x, y = _padded(x, size), _padded(y, size)
            x = F.relu(x + y)
            yield block, x

    def _layer(self, x: Tensor, name: str, stride: int, padding: int) -> Tensor:
        weight, bias = self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"]
        return F.conv2d(x, weight, bias, stride=stride, padding=padding)


def _padded(x: Tensor, size: list[int]) -> Tensor:
    """(B, C, H, W) with zeros appended up to `size`."""
    return F.pad(x, [n for want, have in zip(size[:0:-1], x.shape[:0:-1]) for n in (0, want - have)])


def checked_landmarks(landmarks: NDArray[np.floating[Any]], count: int | None = None) -> NDArray[np.float64]:
    """Landmarks of one image, (478, 2), or of `count` images."""
    points = np.asarray(landmarks, dtype=np.float64)
    check_shape(points, "478 2" if count is None else f"{count} 478 2", "landmarks")
    return points


def unit(vectors: Vector) -> Vector:
    """Vectors (..., D) divided by their lengths."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), dtype=np.float32)
