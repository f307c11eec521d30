"""Batches for contrastive pre-training (Sec. 3.1): T frames of each of G clips, whole or as close crops of the face.

As in `data.pairs`, a sample depends only on the seed and its number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from export3d.data.frame_window import Rotation, Windows
from export3d.data.frames import FrameStore
from export3d.data.pairs import Augment, colour_matrix, recolour, share_of
from export3d.errors import ConfigError, InputError
from export3d.image import resize
from export3d.motion.arkit import ARKIT52_MIRRORED

Draw = Literal["spread", "uniform", "neighbours"]
Crop = Literal["face", "whole"]


@dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """How frames are sampled and augmented.

    Attributes:
        frames: T, frames per clip: one positive and T - 1 negatives (33 in the paper). Shorter clips give all frames.
        draw: "spread": one frame from each of T equal parts of the clip; "uniform": any T frames; "neighbours": T
            consecutive frames, near-duplicates of each other.
        positives: "all": every frame is the positive once; "one": a random one of them, as in the paper.
        crop: "face": close crops around the landmarks; "whole": the frames as prepared, as in the paper.
        size: side of the images, pixels.
        augment: augment crops per frame, and colours and mirroring per clip.
        noise: standard deviation of the noise added to the expression coefficients; no noise without `augment`.
        near: two frames whose coefficients all differ by at most this are not negatives of each other. 0 excludes only
            equal frames (a slow recording repeats frames at 25 fps); None: all other frames are negatives, as in the
            paper.
    """

    frames: int = 33
    draw: Draw = "spread"
    positives: Literal["all", "one"] = "all"
    crop: Crop = "face"
    size: int = 64
    augment: bool = True
    noise: float = 0.02
    near: float | None = 0.0

    def __post_init__(self) -> None:
        if self.frames < 2:
            raise ConfigError(f"frames {self.frames}: a contrast needs at least two frames of a clip")
        if self.size < 32 or self.noise < 0.0:
            raise ConfigError(f"size {self.size} must be at least 32 pixels and noise {self.noise} not negative")
        if self.near is not None and self.near < 0.0:
            raise ConfigError(f"near {self.near} must not be negative; none makes all other frames negatives")


_MARGIN = 1.2
"""Side of the crop over the larger side of the landmarks' bounding box."""
_SHIFT, _SCALE, _TURN = 0.05, 0.1, np.radians(8.0)
_COLOUR = Augment(brightness=0.15, contrast=0.3, saturation=0.5, white_balance=0.12)


class ContrastSampler:
    """An endless sequence of groups of frames, each group from one clip.

    Args:
        stores: frames in one expression space. All clips within a store are drawn equally often.
        config: how frames are sampled and augmented.
        shares: how often each store is drawn from; by default, in proportion to its number of clips.
        seed: determines the groups.

    Raises:
        InputError: no clip with at least two found frames.
    """

    def __init__(
        self, stores: Sequence[FrameStore], config: ContrastConfig, shares: Sequence[float] = (), seed: int = 0
    ) -> None:
        self.stores, self.config, self.seed = list(stores), config, seed
        self._clips: list[list[NDArray[np.int64]]] = []
        for store in self.stores:
            found = store.found.cpu().numpy()
            rows = [clip.start + np.flatnonzero(found[clip.rows]) for clip in store.clips if clip.kind != "image"]
            self._clips.append([r for r in rows if len(r) >= 2])
        counts = np.array([len(clips) for clips in self._clips], dtype=float)
        if not counts.sum():
            raise InputError("the training data has no clip with two frames of a found face; see its report")
        given = np.array(shares or counts, dtype=float)
        weights = given * (counts > 0) if len(given) == len(counts) else np.zeros(1)
        if (given < 0).any() or not weights.sum() > 0:
            raise ConfigError(f"{len(self.stores)} stores of clips cannot be drawn with the shares {list(shares)}")
        self._cumulative = np.cumsum(weights / weights.sum())

    def batch(self, clips_seen: int, count: int, rank: int = 0, world: int = 1) -> list[dict[str, Tensor]]:
        """Samples `clips_seen` to `clips_seen + count`, or one process's share of them, grouped by frame count.

        Returns:
            dictionaries with image (G, T, 3, S, S) in [-1, 1], expression (G, T, E) and same (G, T, T) bool, True for
            pairs that are not negatives; T is the same within each dictionary. With `positives` "one" also positive
            (G,) int64, the number of that frame.
        """
        groups: dict[int, list[dict[str, Tensor]]] = {}
        for number in share_of(clips_seen, count, rank, world):
            group = self._group(number)
            groups.setdefault(len(group["image"]), []).append(group)
        return [{name: torch.stack([g[name] for g in same]) for name in same[0]} for same in groups.values()]

    def _group(self, number: int) -> dict[str, Tensor]:
        """One clip's frames."""
        rng = np.random.default_rng([self.seed, number])
        which = min(int(np.searchsorted(self._cumulative, rng.random(), side="right")), len(self.stores) - 1)
        store = self.stores[which]
        usable = self._clips[which][rng.integers(len(self._clips[which]))]
        rows = torch.from_numpy(draw_frames(usable, self.config.frames, self.config.draw, rng)).to(store.device)
        expression = store.expression[rows]
        near = -1.0 if self.config.near is None else self.config.near
        group = {"same": (expression[:, None] - expression[None]).abs().amax(-1) <= near}
        if self.config.positives == "one":
            group["positive"] = torch.tensor(rng.integers(len(rows)), device=store.device)
        size, crop = self.config.size, self.config.crop
        if not self.config.augment:
            return {"image": cropped(store, rows, size, crop), "expression": expression, **group}
        amounts = rng.uniform(-1.0, 1.0, size=(len(rows), 4))
        image = cropped(store, rows, size, crop, amounts)
        colour = torch.from_numpy(colour_matrix(rng.uniform(-1.0, 1.0, size=6), _COLOUR)).float()
        image = recolour(image, colour.to(image.device).expand(len(rows), -1, -1))
        if store.space == "arkit52" and rng.random() < 0.5:
            image, expression = image.flip(-1), expression[:, list(ARKIT52_MIRRORED)]
        noise = torch.from_numpy(rng.standard_normal(expression.shape)).to(expression)
        return {"image": image, "expression": expression + self.config.noise * noise, **group}


class RotatingContrast(Windows[list[dict[str, Tensor]]]):
    """The groups of a `ContrastSampler` from clips that do not fit into memory.

    A turn of the window lasts until as many frames were drawn as a block has.

    Args:
        rotation, config, seed: see `Rotation` and `ContrastSampler`.
    """

    def __init__(self, rotation: Rotation, config: ContrastConfig, seed: int = 0) -> None:
        super().__init__(rotation, lambda store: ContrastSampler([store], config, seed=seed), config.frames)

    def batch(self, clips_seen: int, count: int, rank: int = 0, world: int = 1) -> list[dict[str, Tensor]]:
        """As `ContrastSampler.batch`."""
        return [group for part in self.parts(share_of(clips_seen, count, rank, world)) for group in part]


def draw_frames(usable: NDArray[np.int64], count: int, draw: Draw, rng: np.random.Generator) -> NDArray[np.int64]:
    """At most `count` distinct rows out of a clip's usable rows, ascending; see `ContrastConfig.draw`."""
    if len(usable) <= count:
        return usable
    if draw == "spread":
        edges = np.linspace(0, len(usable), count + 1)
        starts = np.ceil(edges[:-1]).astype(int)
        ends = np.maximum(np.ceil(edges[1:]).astype(int), starts + 1)
        return usable[np.minimum(rng.integers(starts, ends), len(usable) - 1)]
    if draw == "uniform":
        return usable[np.sort(rng.choice(len(usable), count, replace=False))]
    start = rng.integers(len(usable) - count + 1)
    return usable[start : start + count]


def cropped(
    store: FrameStore, rows: Tensor, size: int, crop: Crop = "face", amounts: NDArray[np.float64] | None = None
) -> Tensor:
    """Frames of a store as images (T, 3, size, size) in [-1, 1].

    Args:
        rows: (T,) rows of the store.
        crop: see `ContrastConfig`.
        amounts: (T, 4) in [-1, 1]: shift x, shift y, zoom and rotation of each crop; None for no augmentation.
    """
    image = store.frames[rows].float().div_(127.5).sub_(1.0)
    return crop_around(image, store.landmarks[rows] if crop == "face" else None, size, amounts)


def crop_around(
    image: Tensor, landmarks: Tensor | None, size: int, amounts: NDArray[np.float64] | None = None
) -> Tensor:
    """Square crops (T, 3, size, size) of images (T, 3, R, R) around their landmarks (T, 478, 2), 0..1 of the image.

    Differentiable with respect to the images. Without landmarks a crop is the whole image; `amounts` as for `cropped`.
    """
    if landmarks is None:
        if amounts is None:
            return resize(image, size)
        centre, half = image.new_zeros(len(image), 2), image.new_ones(len(image))
    else:
        points = landmarks.float()
        low, high = points.amin(1), points.amax(1)
        centre, half = (low + high) - 1.0, (high - low).amax(1) * _MARGIN  # in the [-1, 1] grid of the image
    cos, sin = torch.ones_like(half), torch.zeros_like(half)
    if amounts is not None:
        moved = torch.from_numpy(amounts).to(half)
        centre = centre + moved[:, :2] * _SHIFT * 2 * half[:, None]
        half = half * torch.exp(moved[:, 2] * _SCALE)
        cos, sin = torch.cos(moved[:, 3] * _TURN), torch.sin(moved[:, 3] * _TURN)
    theta = torch.stack(
        [
            torch.stack([half * cos, -half * sin, centre[:, 0]], -1),
            torch.stack([half * sin, half * cos, centre[:, 1]], -1),
        ],
        dim=1,
    )
    grid = F.affine_grid(theta, [len(image), 3, size, size], align_corners=False)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
