"""Optional terms beside Eq. 11: identity, expression, reading and density (none of them in the paper).

All weights are 0 by default; docs/training-log.md compares the terms at equal budgets. The same network reads the
rendered and the target image, at the landmarks of the target, so the loss of a perfect image is 0.

Letters: B pairs, H pixels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from export3d.data.contrastive import Crop, crop_around
from export3d.errors import CheckpointError, check_shape
from export3d.expression.contrastive import ResNetSE18, unit
from export3d.face.identity import DLIB_CORNERS, DLIB_SIZE, DLIB_TEMPLATE, DlibIdentity
from export3d.face.landmark_reader import LandmarkReader
from export3d.face.landmark_sets import BROWS, EYELIDS, IRISES, LIPS
from export3d.face.scores import ScoreReader
from export3d.layers import constant
from export3d.render.decoder import PlaneDecoder
from export3d.render.planes import plane_features
from export3d.weights.file import load_into, load_weights, save_weights

_MOVING = (*LIPS, *EYELIDS, *IRISES[0], *IRISES[1], *BROWS)
_SHIFT = 5.0
"""Weight of the mean distance of landmarks beside the mean error of scores: then both weigh about the same."""
_DENSITY_POINTS = 1000
_DENSITY_STEP = 0.004
"""As in EG3D: points per volume, and the standard deviation of the step, as a share of the volume's side."""


class IdentityError:
    """1 - cosine similarity of the packaged face descriptor (dlib's ResNet-29) of rendered and target image."""

    def __init__(self) -> None:
        self._describe = DlibIdentity()
        self._template = torch.from_numpy(DLIB_TEMPLATE / DLIB_SIZE).float()

    def to(self, device: torch.device) -> IdentityError:
        """Move the network to `device`; returns self."""
        self._describe.to(device)
        self._template = self._template.to(device)
        return self

    def __call__(self, image: Tensor, target: Tensor, landmarks: Tensor) -> Tensor:
        """Mean over the pairs, 0 to 2.

        Args:
            image, target: (B, 3, H, H) in [-1, 1]; gradients flow to the first.
            landmarks: (B, 478, 2) of the target, 0..1 across it.
        """
        with torch.no_grad():
            wanted = self._vectors(target, landmarks)
        return _cosine_error(self._vectors(image, landmarks), wanted)

    def _vectors(self, image: Tensor, landmarks: Tensor) -> Tensor:
        points = landmarks[:, constant(DLIB_CORNERS, landmarks.device)]
        return self._describe.vectors((aligned(image, points, self._template, DLIB_SIZE) + 1.0) * 127.5)


def aligned(image: Tensor, points: Tensor, template: Tensor, size: int) -> Tensor:
    """Faces rotated, scaled and shifted so that their points match those of a template in the least-squares sense.

    Args:
        image: (B, 3, H, H); pixels outside repeat its edge.
        points: (B, N, 2), 0..1 across the image.
        template: (N, 2), 0..1 across the chip.
        size: pixels of the chip.

    Returns:
        (B, 3, size, size), sampled bilinearly: the chip should not be much smaller than the face in the image.
    """
    check_shape(points, f"{image.shape[0]} {template.shape[0]} 2", "points")
    to, at = (2.0 * x.float() - 1.0 for x in (points, template))  # grid_sample's coordinates
    middle, centre = to.mean(1), at.mean(0)
    x, y = (at - centre).unbind(-1)
    u, v = (to - middle[:, None]).unbind(-1)
    # (u, v) = [[a, -b], [b, a]] (x, y), by least squares.
    a, b = (x * u + y * v).sum(-1), (x * v - y * u).sum(-1)
    turn = torch.stack([torch.stack([a, -b], -1), torch.stack([b, a], -1)], 1) / (x.square() + y.square()).sum()
    shift = middle - turn @ centre
    grid = F.affine_grid(torch.cat([turn, shift[..., None]], -1), [len(image), 3, size, size], align_corners=False)
    return F.grid_sample(image.float(), grid, padding_mode="border", align_corners=False)


@dataclass(frozen=True, kw_only=True)
class ReaderConfig:
    """The image tower of a pre-training (`expression.contrastive.CLeBS`): its sizes, and the pixels and kind of its
    images (`data.contrastive.ContrastConfig`)."""

    width: int
    d: int
    groups: int
    size: int
    crop: Crop = "face"


class ExpressionError:
    """1 - cosine similarity of CLeBS's image embeddings of rendered and target image.

    The image encoder was trained to tell frames of one person apart by expression alone. Unlike a tracker it is
    differentiable.
    """

    def __init__(self, reader: ResNetSE18, size: int, crop: Crop = "face") -> None:
        self._reader = reader.eval().requires_grad_(False)
        self._size, self._crop = size, crop

    @classmethod
    def load(cls, path: Path) -> ExpressionError:
        """Load the image encoder from a file that `export3d pretrain` wrote.

        Raises:
            CheckpointError: the file is missing, damaged, or of another kind.
        """
        tensors, config, _ = load_weights(path)
        try:
            sizes = ReaderConfig(**config["reader"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} holds no expression reader; name the reader.safetensors of export3d pretrain"
            ) from error
        reader = ResNetSE18(sizes.width, sizes.d, sizes.groups)
        load_into(reader, tensors, what=str(path))
        return cls(reader, sizes.size, sizes.crop)

    def to(self, device: torch.device) -> ExpressionError:
        """Itself, its network on `device`."""
        self._reader.to(device)
        return self

    def __call__(self, image: Tensor, target: Tensor, landmarks: Tensor) -> Tensor:
        """Mean over the pairs, 0 to 2; arguments as for `IdentityError`."""
        around = landmarks if self._crop == "face" else None
        with torch.autocast(image.device.type, enabled=False):
            with torch.no_grad():
                wanted = self._reader(crop_around(target.float(), around, self._size))
            return _cosine_error(self._reader(crop_around(image.float(), around, self._size)), wanted)


class ReadingError:
    """How differently the tracker reads rendered and target image: landmarks of lips, eyes and brows, and 52 scores.

    Both images are read by the networks of the packaged tracker, in the square that it cuts around the target's face.
    """

    def __init__(self) -> None:
        self._landmarks, self._scores = LandmarkReader(), ScoreReader()

    def to(self, device: torch.device) -> ReadingError:
        """Itself, its networks on `device`."""
        self._landmarks.to(device)
        self._scores.to(device)
        return self

    def __call__(self, image: Tensor, target: Tensor, landmarks: Tensor) -> Tensor:
        """Mean absolute error of the scores plus `_SHIFT` times the mean distance of the landmarks.

        Scores are 0 to 1, distances shares of the square's side. Arguments as for `IdentityError`.
        """
        with torch.no_grad():
            wanted = self._landmarks(target, landmarks)
            scores = self._scores(wanted)
        found = self._landmarks(image, landmarks)
        moving = constant(_MOVING, found.device)
        shift: Tensor = (found - wanted)[:, moving].norm(dim=-1).mean()
        error: Tensor = (self._scores(found) - scores).abs().mean()
        return error + _SHIFT * shift


def save_reader(reader: ResNetSE18, config: ReaderConfig, path: Path) -> Path:
    """Write an image encoder in half precision, for `ExpressionError.load`."""
    return save_weights(path, reader.state_dict(), {"reader": asdict(config)}, {}, dtype=torch.float16)


def density_variation(decoder: PlaneDecoder, triplane: Tensor, half_extent: float, seeds: Tensor) -> Tensor:
    """Change of the density over a small step: mean |sigma(x) - sigma(x + e)| at random points of the volume.

    EG3D's density regularisation (Chan et al. 2022, supplement; after Fridovich-Keil et al. 2022). It removes haze and
    speckles that no training camera sees. Here sigma is the density as rendered.

    Args:
        triplane: (B, 3, C, H, W) of half side `half_extent` (scene units).
        seeds: (B,) int64, one per volume, of its 1,000 uniform points and the steps from them, normal with a standard
            deviation of 0.4% of its side.

    Returns:
        A scalar in units of the density; 0 for a constant density.
    """
    check_shape(seeds, f"{triplane.shape[0]}", "seeds")
    draws = [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]  # on the CPU: the same on every device
    points = torch.stack([2.0 * torch.rand(_DENSITY_POINTS, 3, generator=draw) - 1.0 for draw in draws])
    steps = torch.stack([torch.randn(_DENSITY_POINTS, 3, generator=draw) for draw in draws])
    both = torch.cat([points, points + 2.0 * _DENSITY_STEP * steps], dim=1).to(triplane.device) * half_extent
    with torch.autocast(triplane.device.type, enabled=False):
        densities: Tensor = decoder(plane_features(triplane.float(), both, half_extent))[1]
    here, there = densities.chunk(2, dim=1)
    return (here - there).abs().mean()


def _cosine_error(found: Tensor, wanted: Tensor) -> Tensor:
    return (1.0 - (unit(found) * unit(wanted)).sum(-1)).mean()
