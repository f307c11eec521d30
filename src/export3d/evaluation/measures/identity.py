"""Identity of a face as a unit vector, and CSIM, the cosine between two of them (Sec. 4.1).

`dlib` is packaged: dlib's ResNet-29 (King 2017), 128 numbers from a chip of 150 pixels. A path that ends in `.onnx` is
any ArcFace network (Deng et al. 2019): a chip of 112 pixels on ArcFace's five points, RGB as (x - 127.5) / 127.5. CSIMs
of different descriptors cannot be compared: for strangers, dlib's are high too (see docs/evaluation.md) and ArcFace's
are near 0. Every report names the descriptor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from export3d.errors import CheckpointError, ShapeError, check_shape
from export3d.evaluation.measures.networks import OnnxNetwork, by_name_or_file
from export3d.face.landmark_sets import EYE_CORNERS, MOUTH_CORNERS, NOSE_BASE, NOSE_TIP
from export3d.layers import constant
from export3d.perceptual import read_tensors

Picture = NDArray[np.uint8]
Vector = NDArray[np.float32]

PACKAGED = "dlib"

_ASSET = Path(__file__).resolve().parents[2] / "assets" / "identity.safetensors"

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

_ARCFACE = "an ArcFace network"
_ARCFACE_SIZE = 112
_ARCFACE_POINTS = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""ArcFace's template: eyes, tip of the nose, corners of the mouth, pixels of the chip."""


class Identity(Protocol):
    """A descriptor of identity.

    Attributes:
        name: key in reports.
        description: network and file, for the report.
    """

    name: str
    description: str

    def __call__(self, picture: Picture, landmarks: NDArray[np.floating[Any]]) -> Vector:
        """Describe a face.

        Args:
            picture: uint8 (H, W, 3) RGB.
            landmarks: (478, 2) MediaPipe's, pixels of the image.

        Returns:
            (D,) float32 of length 1.
        """
        ...

    def many(self, pictures: Sequence[Picture], landmarks: NDArray[np.floating[Any]]) -> Vector:
        """Describe B faces at once, which is faster: landmarks (B, 478, 2) to (B, D)."""
        ...


def load_identity(name: str | Path = PACKAGED) -> Identity:
    """The descriptor of a name (`dlib`) or of an ArcFace network's `.onnx` file.

    Raises:
        ConfigError: neither.  CheckpointError: the file is missing or no such network.
        MissingExtra: onnxruntime is not installed.
    """
    return by_name_or_file(name, "identity descriptor", (PACKAGED, DlibIdentity), (_ARCFACE, ArcFaceIdentity))


def csim(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Cosine similarity of unit vectors (..., D) and (..., D): (...), -1 to 1, 1 for equal ones."""
    return np.asarray((np.asarray(a, np.float64) * np.asarray(b, np.float64)).sum(axis=-1))


class DlibIdentity:
    """The packaged descriptor: dlib's ResNet-29 on a chip of 150 pixels, 128 numbers.

    The network's own measure is the distance before normalisation (`distance_vector`): under 0.6 is the same person.

    Raises:
        CheckpointError: the packaged file is missing.
    """

    name = PACKAGED
    description = "dlib ResNet-29 (packaged), 150 px chip of five points with padding 0.25"

    def __init__(self) -> None:
        self._network = _ResNet29(read_tensors(_ASSET))

    def __call__(self, picture: Picture, landmarks: NDArray[np.floating[Any]]) -> Vector:
        """See `Identity.__call__`; (128,)."""
        return _unit(self.distance_vector(picture, landmarks))

    def many(self, pictures: Sequence[Picture], landmarks: NDArray[np.floating[Any]]) -> Vector:
        """See `Identity.many`; equal to `__call__` up to rounding."""
        return _unit(self._vectors(pictures, landmarks))

    def distance_vector(self, picture: Picture, landmarks: NDArray[np.floating[Any]]) -> Vector:
        """The network's output (128,) float32, of length about 1.4; arguments as in `__call__`."""
        return np.asarray(self._vectors([picture], _checked(landmarks)[None])[0])

    def vectors(self, chips: Tensor) -> Tensor:
        """Chips (B, 3, 150, 150), RGB 0 to 255, to the network's output (B, 128); differentiable."""
        with torch.autocast(chips.device.type, enabled=False):
            return self._network((chips - constant(_DLIB_MEAN_RGB, chips.device).view(3, 1, 1)) / 256.0)

    def stages(self, pictures: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Name and output (B, C, h, w) of the network's stages, first to last, of RGB (B, 3, H, W) from 0 to 255."""
        return self._network.stages((pictures - constant(_DLIB_MEAN_RGB, pictures.device).view(3, 1, 1)) / 256.0)

    def to(self, device: torch.device) -> None:
        """Move the network; all but `vectors` and `stages` expects it on the CPU."""
        self._network.to(device)

    @torch.inference_mode()
    def _vectors(self, pictures: Sequence[Picture], landmarks: NDArray[np.floating[Any]]) -> Vector:
        points = _checked(landmarks, len(pictures))[:, list(DLIB_CORNERS)]
        out = np.empty((len(pictures), _DLIB_LENGTH), dtype=np.float32)
        for start in range(0, len(pictures), _DLIB_BATCH):
            part = slice(start, start + _DLIB_BATCH)
            chips = [face_chip(p, at, DLIB_TEMPLATE, DLIB_SIZE) for p, at in zip(pictures[part], points[part])]
            out[part] = self.vectors(torch.stack(chips)).numpy()
        return out


class ArcFaceIdentity:
    """A network of the ArcFace kind from an ONNX file, run by onnxruntime on one thread.

    Raises:
        MissingExtra: onnxruntime is not installed.
        CheckpointError: the file is missing, or does not take (1, 3, 112, 112) and give (1, D).
    """

    def __init__(self, path: Path) -> None:
        self._network = OnnxNetwork(path, _ARCFACE, _ARCFACE_SIZE)
        found = self._run(torch.zeros(3, _ARCFACE_SIZE, _ARCFACE_SIZE))
        if found.ndim != 2 or len(found) != 1:
            raise CheckpointError(f"{path} gives {found.shape}, not one vector for each face; name {_ARCFACE}")
        self.name = path.stem
        self._length = found.shape[1]
        self.description = f"ArcFace network {self._network.description}, 112 px chip of five points"

    def __call__(self, picture: Picture, landmarks: NDArray[np.floating[Any]]) -> Vector:
        """See `Identity.__call__`."""
        points = _checked(landmarks)
        eyes = [points[list(corners)].mean(axis=0) for corners in EYE_CORNERS]  # not the irises: they follow the gaze
        five = np.stack([*eyes, points[NOSE_TIP], *points[list(MOUTH_CORNERS)]])
        return _unit(self._run(face_chip(picture, five, _ARCFACE_POINTS, _ARCFACE_SIZE))[0])

    def many(self, pictures: Sequence[Picture], landmarks: NDArray[np.floating[Any]]) -> Vector:
        """See `Identity.many`; one by one, because such files take one image."""
        points = _checked(landmarks, len(pictures))
        vectors = [self(picture, at) for picture, at in zip(pictures, points)]
        return np.stack(vectors) if vectors else np.empty((0, self._length), dtype=np.float32)

    def _run(self, chip: Tensor) -> NDArray[np.float32]:
        return self._network.outputs((chip - 127.5) / 127.5)[0]


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


def _checked(landmarks: NDArray[np.floating[Any]], count: int | None = None) -> NDArray[np.float64]:
    """Landmarks of one image, (478, 2), or of `count` images."""
    points = np.asarray(landmarks, dtype=np.float64)
    check_shape(points, "478 2" if count is None else f"{count} 478 2", "landmarks")
    return points


def _unit(vectors: Vector) -> Vector:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), dtype=np.float32)
