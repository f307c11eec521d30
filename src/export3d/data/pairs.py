"""Samples and augments training pairs from decoded frames: a source and a driving frame of the same clip.

A sample depends only on the seed and its number since training began. Samples 4800 to 4832 are therefore the same on
one process or spread over eight, before or after an interruption. `training.pairs` computes losses on these pairs.

A still portrait has no second frame: source and driving frame are the same image. The two are shifted, scaled and
rotated in the image plane by different small amounts, and their cameras accordingly (a shift moves the principal point,
a scale the focal length, a rotation the camera's roll), so the pair remains exactly consistent with one camera model.
Portraits of one sitting are paired with each other instead, as frames of a clip are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import export3d.camera as cameras
from export3d.data.frame_layout import Clip
from export3d.data.frames import FrameStore
from export3d.errors import ConfigError, InputError
from export3d.face.mesh import landmark_mirror_map
from export3d.layers import constant
from export3d.motion.arkit import ARKIT52_MIRRORED

__all__ = ["Augment", "Clip", "FrameStore", "PairSampler"]

Array = NDArray[np.float64]

_HARD_CANDIDATES = 8
_ANGLE_SCALE_DEG = 15.0
_UNMOVED = (0.0, 0.0, 1.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Strength of the augmentation; each amount is the half-width of a uniform range around "unchanged".

    The colour change is the same for source and driving frame. The geometric change is drawn separately for the two
    frames, or once for both.
    """

    geometry_probability: float = 0.5
    """Probability that a frame's crop is moved (still portraits: always)."""
    shift: float = 0.03
    """Crop widths, per axis."""
    together: float = 0.7
    """Probability that both frames of a clip are moved alike: crop and background of a real clip are static."""
    scale: float = 0.06
    """Logarithm of the zoom."""
    roll_deg: float = 6.0
    colour_probability: float = 0.5
    brightness: float = 0.08
    """Offset of colours in 0..1."""
    contrast: float = 0.15
    saturation: float = 0.3
    white_balance: float = 0.06
    """Relative gain per colour channel."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0.0 or (name.endswith(("probability", "together")) and value > 1.0):
                raise ConfigError(f"augmentation {name} is {value}; give a number from 0 up (probabilities at most 1)")


class PairSampler:
    """An endless sequence of training pairs, addressed by the number of images seen.

    Args:
        store: decoded frames; batches are on its device.
        seed: determines the pairs.
        mirror: mirror a sample (images, cameras, expressions, landmarks) with probability 0.5.
        augment: augment crops and colours; True for the defaults of `Augment`.
        still_fraction: share of samples from still portraits. Portraits of one sitting (`shards.Entry`) are paired.
        pseudo_fraction: share of samples from pseudo-clips, if the store has any; the rest come from videos.
        hard_fraction: share of the samples from videos and pseudo-clips whose driving frame is the farthest of eight in
            pose and expression.
        curriculum_images: number of samples over which that share grows linearly from 0 to `hard_fraction`; 0 applies
            `hard_fraction` from the start.

    Raises:
        ConfigError: a fraction outside 0..1, a negative curriculum, or `mirror` in an expression space without a known
            mirror map.
        InputError: no frame with a found face.
    """

    def __init__(
        self,
        store: FrameStore,
        seed: int = 0,
        mirror: bool = True,
        augment: bool | Augment = True,
        still_fraction: float = 0.3,
        hard_fraction: float = 0.0,
        pseudo_fraction: float = 0.3,
        curriculum_images: int = 0,
    ) -> None:
        fractions = {"still": still_fraction, "pseudo": pseudo_fraction, "hard": hard_fraction}
        for name, value in fractions.items():
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"{name}_fraction is {value}; give a number from 0 to 1")
        if curriculum_images < 0:
            raise ConfigError(f"curriculum_images is {curriculum_images}; give a number of images, or 0 for none")
        if mirror and store.space != "arkit52":
            raise ConfigError(f"expressions in {store.space} cannot be mirrored; use mirror=False")
        self.store, self.seed, self.mirror = store, seed, mirror
        self.augment = (Augment() if augment is True else augment) or None
        self.hard_fraction, self.curriculum_images = hard_fraction, curriculum_images
        found = store.found.cpu().numpy()
        self._usable = [clip.start + np.flatnonzero(found[clip.rows]) for clip in store.clips]
        stills = [i for i, rows in enumerate(self._usable) if len(rows) and store.clips[i].kind == "image"]
        videos, pseudo = (
            [i for i, rows in enumerate(self._usable) if len(rows) > 1 and store.clips[i].kind == kind]
            for kind in ("video", "pseudo")
        )
        if not stills and not videos and not pseudo:
            raise InputError("the training data has no frame with a found face; see the report of its preparation")
        # A long clip holds more information than a short one, but not in proportion: its frames are alike.
        weight = np.zeros(len(store.clips))
        pseudo_fraction *= bool(pseudo)
        if still_fraction + pseudo_fraction > 1.0:
            raise ConfigError("still_fraction and pseudo_fraction together are above 1; make them smaller")
        shares = (still_fraction, pseudo_fraction, 1.0 - still_fraction - pseudo_fraction)
        for group, share in zip((stills, pseudo, videos), shares):
            if group:
                sizes = np.sqrt([len(self._usable[i]) for i in group])
                weight[group] = sizes / sizes.sum() * share
        if weight.sum() == 0.0:
            weight[stills or pseudo or videos] = 1.0
        self._cumulative = np.cumsum(weight / weight.sum())
        self._cumulative[np.flatnonzero(weight)[-1] :] = 1.0
        self._join_sittings(stills)
        self._clip = store.clip.cpu().numpy()
        self._camera = store.camera.cpu().numpy().astype(np.float64)
        self._expression, self._shoulders = store.expression.cpu().numpy(), store.shoulders.cpu().numpy()
        self._landmark_mirror = torch.from_numpy(landmark_mirror_map()).to(store.device) if mirror else None

    def _join_sittings(self, stills: Sequence[int]) -> None:
        """Portraits of one sitting may be each other's source and driving frame."""
        sittings = defaultdict[tuple[str, str], list[int]](list)
        for number in stills:
            clip = self.store.clips[number]
            if clip.sitting:
                sittings[clip.person, clip.sitting].append(number)
        for numbers in sittings.values():
            # a window on the data may hold a portrait twice
            rows = np.array([*{self.store.clips[number].name: self._usable[number][0] for number in numbers}.values()])
            for number in numbers:
                self._usable[number] = rows

    def batch(self, images_seen: int, batch_size: int, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
        """Samples `images_seen` to `images_seen + batch_size`, or one process's share of them.

        Args:
            images_seen: samples drawn so far by all processes together.
            batch_size: batch size of all processes together; a multiple of `world`.
            rank: process number, 0 to world - 1; it gets the `rank`-th run of batch_size / world samples.
            world: number of processes.

        Returns:
            float32 on the store's device, with b = batch_size / world: source, driving (b, 3, R, R) in [-1, 1];
            source_expression, expression (b, E); source_camera, camera (b, 25); source_landmarks, landmarks
            (b, 478, 2), 0..1 across their image; shoulders (b, 5), see `SourceMotion`, not known where source and
            driving frame are moved differently; valid (b, 1, R, R), 1 where the driving frame shows the source video
            and 0 where its crop lies outside the video and repeats an edge; and clip (b,) int64 (for a sitting, any of
            its portraits). If the store knows where people are, source_mask (b, 1, m, m) too, 0..1.

        Raises:
            ConfigError: the batch cannot be shared evenly.
        """
        return self.samples(share_of(images_seen, batch_size, rank, world))

    def samples(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """The samples of these numbers, as `batch` gives them."""
        draws = [self._draw(number) for number in numbers]
        plans = [self._plan(draws, which) for which in (0, 1)]
        shared = {"colour": np.stack([draw.colour for draw in draws]), **self._edges(draws)}
        shared["clip"] = np.array([draw.clip for draw in draws])
        shared["shoulders"] = np.stack([self._shoulders_of(draw) for draw in draws])
        first, second, common = _transferred([*plans, shared], self.store.device)
        sides = [self._side(found, plan) for found, plan in ((first, plans[0]), (second, plans[1]))]
        source, driving = (recolour(side["image"], common["colour"]) for side in sides)
        mask = {"source_mask": sides[0]["mask"]} if "mask" in sides[0] else {}
        return mask | {
            "source": source,
            "driving": driving,
            "source_expression": sides[0]["expression"],
            "expression": sides[1]["expression"],
            "source_camera": sides[0]["camera"],
            "camera": sides[1]["camera"],
            "source_landmarks": sides[0]["landmarks"],
            "landmarks": sides[1]["landmarks"],
            "shoulders": common["shoulders"],
            "valid": self._valid(second, common),
            "clip": common["clip"].long(),
        }

    def _draw(self, number: int) -> Draw:
        """All random choices of one sample. Keep the order of the calls to `rng`: it defines what a seed gives."""
        rng = np.random.default_rng([self.seed, number])
        clip = int(np.searchsorted(self._cumulative, rng.random(), side="right"))
        usable = self._usable[clip]
        still = len(usable) == 1
        source, others = rng.integers(len(usable)), rng.integers(max(1, len(usable) - 1), size=_HARD_CANDIDATES)
        hard, mirrored = rng.random() < self._hard_share(number), rng.random() < 0.5
        candidates = usable[np.where(others >= source, (others + 1) % len(usable), others)]
        frame = usable[source]
        driving = candidates[int(np.argmax(self._distance(frame, candidates))) if hard and not still else 0]
        geometry, colour = np.tile(_UNMOVED, (2, 1)), np.eye(3, 4)
        limits = self.augment
        if limits is not None:
            moved = (rng.random(2) < limits.geometry_probability) | still
            amounts = rng.uniform(-1.0, 1.0, size=(2, 4))
            shift, zoom = amounts[:, :2] * limits.shift, np.exp(amounts[:, 2:3] * limits.scale)
            turn = np.radians(amounts[:, 3:] * limits.roll_deg)
            geometry = np.where(moved[:, None], np.concatenate([shift, zoom, turn], axis=1), geometry)
            if rng.random() < limits.colour_probability:
                colour = colour_matrix(rng.uniform(-1.0, 1.0, size=6), limits)
            if rng.random() < limits.together and not still:
                geometry[1] = geometry[0]
        return Draw(clip, (int(frame), int(driving)), self.mirror and bool(mirrored), geometry, colour)

    def _shoulders_of(self, draw: Draw) -> Array:
        """(5,) where the driving shoulders are, seen from where they were in the source frame, see `SourceMotion`."""
        own, there = (self._shoulders[row].astype(np.float64) for row in draw.rows)
        sure = min(own[2], there[2]) * (draw.geometry[0] == draw.geometry[1]).all()
        zoom, turn = draw.geometry[0, 2:]
        x, y, _, turned, grown = (there - own) * ((-1.0, 1.0, 1.0, -1.0, 1.0) if draw.mirrored else 1.0)
        return np.array([*(zoom * _rotation(turn) @ (x, y)), sure, turned, grown])

    def _hard_share(self, number: int) -> float:
        """Probability of a hard pair for the sample `number`."""
        return self.hard_fraction * min(1.0, number / self.curriculum_images if self.curriculum_images else 1.0)

    def _distance(self, frame: int, candidates: NDArray[np.int64]) -> Array:
        """Distance of candidates from a frame: head angles in units of 15 degrees, plus summed expression change."""
        angles = cameras.head_angles(self._camera[[frame, *candidates]])
        pose = np.abs(angles[1:] - angles[0]).sum(-1) / _ANGLE_SCALE_DEG
        return np.asarray(pose + np.abs(self._expression[candidates] - self._expression[frame]).sum(-1))

    def _plan(self, draws: list[Draw], which: int) -> dict[str, NDArray[Any]]:
        """What the source (0) or driving (1) frames of the draws need on the store's device, computed on the host.

        rows (B,), mirrored (B,), still (B,), camera (B, 25); the move p' = `matrix` p + `offset` and its inverse;
        and `lookup` (B, 2, 3), which undoes it in grid units.
        """
        rows = np.array([draw.rows[which] for draw in draws])
        mirrored = np.array([draw.mirrored for draw in draws])
        geometry = np.stack([draw.geometry[which] for draw in draws])
        camera = self._camera[rows]
        if mirrored.any():
            camera = np.where(mirrored[:, None], cameras.mirror(camera), camera)
        matrix, offset = _affine(geometry, _split(camera)[1][:, :2, 2])
        inverse = np.linalg.inv(matrix)
        if self.augment is not None:
            camera = moved_camera(camera, geometry)
        return {
            "rows": rows,
            "mirrored": mirrored,
            "still": (geometry == _UNMOVED).all(1),
            "camera": camera,
            "matrix": matrix,
            "offset": offset,
            "inverse": inverse,
            # grid_sample looks up p for each p', in coordinates q = 2 p - 1.
            "lookup": np.concatenate([inverse, (inverse @ (1.0 - 2.0 * offset)[..., None] - 1.0)], axis=-1),
        }

    def _side(self, found: dict[str, Tensor], plan: dict[str, NDArray[Any]]) -> dict[str, Tensor]:
        """A transferred plan to its frames: image in [-1, 1], camera, expression, landmarks."""
        store, rows = self.store, found["rows"]
        image = store.frames[rows].float().div_(127.5).sub_(1.0)
        expression, landmarks = store.expression[rows], store.landmarks[rows].float()
        if plan["mirrored"].any():
            assert self._landmark_mirror is not None
            mask = found["mirrored"].bool()
            image = torch.where(mask[:, None, None, None], image.flip(-1), image)
            order = constant(tuple(ARKIT52_MIRRORED), store.device)
            expression = torch.where(mask[:, None], expression[:, order], expression)
            sign, shift = (constant(pair, store.device) for pair in ((-1.0, 1.0), (1.0, 0.0)))
            other = landmarks[:, self._landmark_mirror] * sign + shift
            landmarks = torch.where(mask[:, None, None], other, landmarks)
        if not plan["still"].all():
            image, landmarks = _move(image, landmarks, found)
        side = {"image": image, "camera": found["camera"], "expression": expression, "landmarks": landmarks}
        if store.masks is not None:
            mask = store.masks[rows].float() / 255.0
            mask = torch.where(found["mirrored"].bool()[:, None, None, None], mask.flip(-1), mask)
            side["mask"] = _looked_up(mask, found, "bilinear")
        return side

    def _edges(self, draws: list[Draw]) -> dict[str, Array]:
        """Corners (B, 2) of the part of the unmoved images that shows the source video: `low` and `high`."""
        left, top, right, bottom = np.array([self.store.clips[self._clip[draw.rows[1]]].inside for draw in draws]).T
        flipped = np.array([draw.mirrored for draw in draws])
        left, right = np.where(flipped, 1.0 - right, left), np.where(flipped, 1.0 - left, right)
        return {"low": np.stack([left, top], -1), "high": np.stack([right, bottom], -1)}

    def _valid(self, driving: dict[str, Tensor], edges: dict[str, Tensor]) -> Tensor:
        """(B, 1, R, R): 1 where the driving images show the source video, 0 where they repeat its edge."""
        size, device = self.store.resolution, self.store.device
        steps = (torch.arange(size, device=device) + 0.5) / size
        pixels = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).view(1, -1, 2)
        origin = (pixels - driving["offset"][:, None]) @ driving["inverse"].mT
        low, high = edges["low"][:, None], edges["high"][:, None]
        return ((origin >= low) & (origin <= high)).all(-1).view(-1, 1, size, size).float()


def share_of(images_seen: int, batch_size: int, rank: int, world: int) -> range:
    """Numbers of one process's samples in a batch, see `PairSampler.batch`."""
    if batch_size < 1 or batch_size % world or not 0 <= rank < world:
        raise ConfigError(f"a batch of {batch_size} cannot be shared by {world} processes (rank {rank}); change it")
    share = batch_size // world
    first = images_seen + rank * share
    return range(first, first + share)


@dataclass(frozen=True)
class Draw:
    """One sample: clip number, (source, driving) rows, mirrored or not, geometry (2, 4), colour matrix (3, 4)."""

    clip: int
    rows: tuple[int, int]
    mirrored: bool
    geometry: Array
    colour: Array


def moved_camera(labels: Array, geometry: Array) -> Array:
    """The cameras of images that were moved in the image plane.

    Args:
        labels: (B, 25).
        geometry: (B, 4) shift x, shift y (crop widths), zoom, clockwise rotation (radians), about the principal point.

    Returns:
        (B, 25): the principal point is shifted, the focal length multiplied by the zoom, and the camera rolled in the
        opposite direction of the rotation.
    """
    cam2world, intrinsics = _split(labels)
    intrinsics[:, :2, :2] *= geometry[:, 2, None, None]
    intrinsics[:, :2, 2] += geometry[:, :2]
    turn = np.zeros((len(geometry), 3, 3))
    turn[:, 2, 2] = 1.0
    turn[:, :2, :2] = _rotation(geometry[:, 3])
    # A point's camera coordinates rotate clockwise by R: world-to-camera becomes R W, its inverse W^T R^T.
    cam2world[:, :3, :3] = cam2world[:, :3, :3] @ np.swapaxes(turn, 1, 2)
    return np.asarray(cameras.pack(cam2world, intrinsics), dtype=np.float64)


def _split(labels: Array) -> tuple[Array, Array]:
    """Copies of cam2world (B, 4, 4) and intrinsics (B, 3, 3)."""
    cam2world, intrinsics = cameras.unpack(np.asarray(labels, dtype=np.float64))
    return np.array(cam2world, dtype=np.float64), np.array(intrinsics, dtype=np.float64)


def _transferred(groups: Sequence[dict[str, NDArray[Any]]], device: torch.device) -> list[dict[str, Tensor]]:
    """Arrays (B, ...) as tensors on `device`, in a single transfer: numbers as float32, integers and bools as int32."""
    tables = []
    for array in (array for group in groups for array in group.values()):
        exact = np.float32 if array.dtype.kind == "f" else np.int32
        tables.append(array.astype(exact).reshape(len(array), -1).view(np.float32))
    whole = torch.from_numpy(np.concatenate(tables, axis=1)).to(device)
    pieces = iter(torch.split(whole, [table.shape[1] for table in tables], dim=1))
    found = []
    for group in groups:
        tensors = {}
        for name, array in group.items():
            piece = next(pieces).reshape(array.shape)
            tensors[name] = piece if array.dtype.kind == "f" else piece.view(torch.int32)
        found.append(tensors)
    return found


def _move(image: Tensor, landmarks: Tensor, plan: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Apply p' = A p + b to images (B, 3, R, R) and points (B, L, 2) that are not still; edges are repeated."""
    matrix, offset = plan["matrix"], plan["offset"]
    moved = landmarks @ matrix.mT + offset[:, None]
    return _looked_up(image, plan, "bicubic"), torch.where(plan["still"].bool()[:, None, None], landmarks, moved)


def _looked_up(image: Tensor, plan: dict[str, Tensor], mode: str) -> Tensor:
    """Images (B, C, h, h) in [-1, 1], moved where they are not still; edges are repeated."""
    grid = torch.nn.functional.affine_grid(plan["lookup"], list(image.shape), align_corners=False)
    moved = torch.nn.functional.grid_sample(image, grid, mode, padding_mode="border", align_corners=False)
    return torch.where(plan["still"].bool()[:, None, None, None], image, moved.clamp_(-1.0, 1.0))


def _affine(geometry: Array, centre: Array) -> tuple[Array, Array]:
    """A (B, 2, 2) and b (B, 2) of p' = A p + b, the move `geometry` about `centre` (B, 2)."""
    matrix = _rotation(geometry[:, 3]) * geometry[:, 2, None, None]
    return matrix, centre + geometry[:, :2] - (matrix @ centre[..., None])[..., 0]


def _rotation(angle: Array) -> Array:
    """Angles (B,) in radians to matrices (B, 2, 2); clockwise in the image, whose y axis points down."""
    c, s = np.cos(angle), np.sin(angle)
    return np.stack([np.stack([c, -s], -1), np.stack([s, c], -1)], -2)


def colour_matrix(amounts: Array, limits: Augment) -> Array:
    """Affine map (3, 4) of colours in [-1, 1].

    Args:
        amounts: (6,) in [-1, 1]: saturation, contrast, brightness, and the gains of the three channels.
        limits: scale of each amount.
    """
    grey = np.broadcast_to([0.299, 0.587, 0.114], (3, 3))
    saturation = 1.0 + amounts[0] * limits.saturation
    gain = (1.0 + amounts[1] * limits.contrast) * (1.0 + amounts[3:] * limits.white_balance)
    matrix = gain[:, None] * (saturation * np.eye(3) + (1.0 - saturation) * grey)
    # White balance acts on colours in 0..1, where black stays black: in [-1, 1] it adds gain - 1 to the offset.
    offset = 2.0 * amounts[2] * limits.brightness + amounts[3:] * limits.white_balance
    return np.concatenate([matrix, offset[:, None]], axis=1)


def recolour(image: Tensor, colour: Tensor) -> Tensor:
    """Apply colour matrices (B, 3, 4) to images (B, 3, R, R), clamped to [-1, 1]."""
    out = torch.einsum("bij,bjhw->bihw", colour[:, :, :3], image) + colour[:, :, 3, None, None]
    return out.clamp_(-1.0, 1.0)
