"""Scores of one clip: every method's images against the true frames, all measures in one pass.

Frames arrive in chunks of consecutive ones. The true frames are read once (landmarks, expression, identity) and shared
by all methods. Only numbers and the few images of a strip are kept, so memory depends neither on the length of a clip
nor on the number of clips.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export3d.evaluation.measures import facial_motion, sharpness, temporal
from export3d.evaluation.measures.face import FaceScorer, Movement, Reading
from export3d.evaluation.measures.facial_motion import FacialMotion
from export3d.evaluation.measures.frechet import FrechetFeatures, load_features, sample_rows
from export3d.evaluation.measures.image import PSNR, PSNR_256, SSIM, Measure, Metric, lpips, psnr
from export3d.evaluation.measures.rendered import MEASURES as RENDERED
from export3d.evaluation.measures.rendered import rendered_scores
from export3d.evaluation.measures.temporal import Flicker
from export3d.evaluation.protocols.originals import resized
from export3d.evaluation.protocols.settings import Scoring
from export3d.face.crop import CROP_SIZE
from export3d.face.identity import PACKAGED
from export3d.face.mesh import LANDMARKS
from export3d.image import contact_sheet, resize, to_tensor, to_uint8

Picture = NDArray[np.uint8]
Frames = NDArray[np.uint8]
Rows = NDArray[np.int64]

CHUNK = 64
"""Frames that are driven, read and scored together."""
_STRIP_ROWS = 3
_STRIP_SIZE = 160
_TORCH_BATCH = 8


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some driven frames of a clip.

    Attributes:
        rows: (N,) their numbers in the clip, ascending.
        targets: (N, R, R, 3) uint8.
        predictions: method to (N, R, R, 3) uint8.
        shares: method to the rendered shares (N, 4096) of its predictions (`measures.rendered.on_grid`), where defined.
        small_targets: (N, 256, 256, 3) uint8 if R is another size than the model's.
        small: method to (N, 256, 256, 3) uint8, for methods whose predictions were enlarged.
    """

    rows: Rows
    targets: Frames
    predictions: Mapping[str, Frames]
    shares: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    small_targets: Frames | None = None
    small: Mapping[str, Frames] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ClipScores:
    """The scores of one clip.

    Attributes:
        scores: method to measure to its mean over the frames where it is defined; NaN if there are none.
        frames: number of scored frames.
        worst: number of the frame with the first method's lowest PSNR; -1 without ground truth.
        strip: (H, W, 3) uint8: source, driving frame and every method, at three frames and the worst.
        features: name of a Fréchet distance to method (or "target") to (N, D) float32 of the sampled frames.
        note: a sentence about anything unusual.
    """

    scores: dict[str, dict[str, float]]
    frames: int
    worst: int
    strip: Picture
    features: dict[str, dict[str, NDArray[np.float32]]]
    note: str = ""


@dataclass
class _Sums:
    """Running sums of one method over one clip."""

    total: dict[str, float] = field(default_factory=dict)
    count: dict[str, int] = field(default_factory=dict)
    movement: Movement = field(default_factory=Movement)
    facial: FacialMotion = field(default_factory=FacialMotion)
    flicker: Flicker = field(default_factory=Flicker)

    def add(self, name: str, values: NDArray[np.floating]) -> None:
        known = values[~np.isnan(values)]
        self.total[name] = self.total.get(name, 0.0) + float(known.sum())
        self.count[name] = self.count.get(name, 0) + len(known)

    def means(self) -> dict[str, float]:
        return {name: self.total[name] / n if (n := self.count[name]) else math.nan for name in self.total}


def image_metrics(scoring: Scoring, device: torch.device | str = "cpu") -> tuple[Metric, ...]:
    """PSNR, SSIM, and LPIPS if it is wanted and available.

    Raises:
        CheckpointError, ConfigError: see `measures.image.lpips`.
    """
    name = scoring.lpips_backbone
    return (
        (PSNR, SSIM) if name is None else (PSNR, SSIM, lpips(name, scoring.backbone_file, scoring.heads_file, device))
    )


def frechet_features(
    scoring: Scoring, device: torch.device | str = "cpu", *, truth: bool = True
) -> tuple[FrechetFeatures, ...]:
    """What describes images for the Fréchet distance: the packaged identity descriptor and the backbone of LPIPS.

    Empty without faces.

    Raises:
        CheckpointError, ConfigError: see `measures.frechet.load_features`.
    """
    if not scoring.faces:
        return ()
    backbone = scoring.lpips_backbone if truth else None
    names = [PACKAGED] if PACKAGED in scoring.identity else []
    names += [] if backbone is None else [backbone]
    return tuple(load_features(name, scoring.backbone_file, device) for name in names)


class ClipScorer:
    """Scores clips one after another; close it, or use it in a `with` statement.

    Args:
        scoring: measures and their networks.
        device: where image metrics are computed; faces are read on the CPU.
        truth: whether the driving frames are the ground truth; without it (another person drives) only identity,
            expression, pose and movement are measured.
        resized: whether frames have another size than the model's, and are also scored at 256 px.

    Raises:
        CheckpointError, ConfigError, MissingExtra: a network is not available.
    """

    def __init__(
        self, scoring: Scoring, device: torch.device | str = "cpu", *, truth: bool = True, resized: bool = False
    ) -> None:
        self._truth, self._resized = truth, resized
        self._device = torch.device(device)
        self._metrics = image_metrics(scoring, device) if truth else ()
        self._features = frechet_features(scoring, device, truth=truth)
        self._faces = FaceScorer(scoring.landmarks, scoring.identity, scoring.expression) if scoring.faces else None

    def __enter__(self) -> ClipScorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the tracker."""
        if self._faces is not None:
            self._faces.close()

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The measures of a clip, in the order of the tables."""
        plain = tuple(Measure(m.name, m.title, m.higher_is_better, m.digits, m.definition) for m in self._metrics)
        plain += (PSNR_256,) if self._resized else ()
        if self._faces is None:
            return plain
        seen = tuple(m for m in self._faces.measures if self._truth or m.name != "akd")
        return (*plain, *seen, *facial_motion.MEASURES, *temporal.MEASURES, sharpness.MEASURE)

    @property
    def overall_measures(self) -> tuple[Measure, ...]:
        """The measures of a whole split."""
        return tuple(features.measure for features in self._features)

    @property
    def description(self) -> dict[str, str]:
        """The networks, for reports."""
        return {} if self._faces is None else self._faces.description

    @torch.inference_mode()
    def score(
        self,
        name: str,
        source: Picture,
        chunks: Iterable[Chunk],
        frames: int,
        progress: Callable[[int], None] | None = None,
    ) -> ClipScores:
        """Score one clip.

        Args:
            name: of the clip in messages.
            source: (R, R, 3) uint8.
            chunks: the driven frames, at most `CHUNK` at a time, all with the same methods.
            frames: number of driven frames.
            progress: called with the number of frames done.
        """
        sums: dict[str, _Sums] = {}
        features: dict[str, dict[str, list[Tensor]]] = {f.name: {} for f in self._features}
        sampled = np.zeros(max(frames, 1), dtype=bool)
        sampled[sample_rows(frames)] = True
        shown = _shown(frames)
        strip: dict[int, list[Picture]] = {}
        worst, worst_db, worst_row = -1, math.inf, list[Picture]()
        own = None if self._faces is None else self._faces.read(enlarged(source[None]), f"the source of {name}")
        done = 0
        for chunk in chunks:
            order = done + np.arange(len(chunk.rows))
            target = to_tensor(chunk.targets)
            seen = self._read(chunk.targets, f"the driving frames of {name}")
            chosen = sampled[order]
            self._sample(features, "target", target, seen, chosen)
            first = next(iter(chunk.predictions))
            images = {method: to_tensor(pictures) for method, pictures in chunk.predictions.items()}
            values = self._image_scores(images, target)
            for method, pictures in chunk.predictions.items():
                kept = sums.setdefault(method, _Sums())
                for metric, found in values[method].items():
                    kept.add(metric, found)
                if chunk.small_targets is not None:
                    small = (
                        chunk.small[method]
                        if method in chunk.small
                        else resized(pictures, chunk.small_targets.shape[1])
                    )
                    kept.add(PSNR_256.name, psnr(to_tensor(small), to_tensor(chunk.small_targets)).numpy())
                read = self._read(pictures, f"{method} of {name}")
                if method in chunk.shares:
                    landmarks = np.full((len(pictures), LANDMARKS, 2), np.nan) if read is None else read.landmarks
                    shares = rendered_scores(chunk.shares[method], landmarks, CROP_SIZE)
                    for measure, found in shares.items():
                        kept.add(measure, found)
                if self._faces is not None and read is not None and seen is not None and own is not None:
                    for measure, found in self._faces.frame_scores(read, seen, own).items():
                        kept.add(measure, found)
                    kept.movement.add(read, seen)
                    kept.facial.add(*(facial_motion.curves(r.landmarks, r.scores) for r in (read, seen)))
                    scale = chunk.targets.shape[1] / CROP_SIZE
                    kept.flicker.add(chunk.rows, chunk.targets, pictures, seen.landmarks * scale)
                    own_scale = source.shape[0] / CROP_SIZE
                    found = sharpness.sharpness(pictures, read.landmarks * scale, source, own.landmarks[0] * own_scale)
                    kept.add(sharpness.MEASURE.name, found)
                    self._sample(features, method, images[method], read, chosen)
            if PSNR.name in values[first]:
                at = int(values[first][PSNR.name].argmin())
                lowest = float(values[first][PSNR.name][at])
                if lowest < worst_db or worst < 0:
                    worst_db, worst, worst_row = lowest, int(chunk.rows[at]), _strip_row(source, chunk, at)
            for at, number in enumerate(order):
                if int(number) in shown:
                    strip[int(chunk.rows[at])] = _strip_row(source, chunk, at)
            done += len(chunk.rows)
            if progress is not None:
                progress(done)
        if worst >= 0:
            strip[worst] = worst_row
        scores = {method: self._means(kept) for method, kept in sums.items()}
        return ClipScores(
            scores,
            done,
            worst,
            _draw_strip(strip, worst, tuple(sums)),
            {f.measure.name: _joined(features[f.name]) for f in self._features},
            "" if own is None or own.found[0] else "no face was found in the source: CSIM is not defined",
        )

    def _read(self, pictures: Frames, name: str) -> Reading | None:
        return None if self._faces is None else self._faces.read(enlarged(pictures), name)

    def _image_scores(self, images: Mapping[str, Tensor], target: Tensor) -> dict[str, dict[str, NDArray[np.float64]]]:
        """Method to metric to (N,)."""
        found: dict[str, dict[str, list[Tensor]]] = {name: {m.name: [] for m in self._metrics} for name in images}
        for start in range(0, len(target), _TORCH_BATCH):
            part = slice(start, start + _TORCH_BATCH)
            for metric in self._metrics:
                score = metric.against(target[part].to(self._device))
                for name, made in images.items():
                    found[name][metric.name].append(score(made[part].to(self._device)).double().cpu())
        return {name: {m: torch.cat(parts).numpy() for m, parts in by.items()} for name, by in found.items()}

    def _sample(
        self,
        features: dict[str, dict[str, list[Tensor]]],
        method: str,
        images: Tensor,
        read: Reading | None,
        chosen: NDArray[np.bool_],
    ) -> None:
        """Keep features of the frames that enter the Fréchet distance."""
        for backbone in self._features:
            kept = features[backbone.name].setdefault(method, [])
            own = None if read is None else read.identity.get(backbone.name)
            if own is not None:
                rows = chosen & ~np.isnan(own).any(axis=1)
                kept.append(torch.from_numpy(own[rows]).float())
            elif chosen.any():
                kept.append(backbone(images[torch.from_numpy(chosen)].to(self._device)).cpu())

    def _means(self, kept: _Sums) -> dict[str, float]:
        found = kept.means()
        if self._faces is not None:
            found |= kept.movement.result() | kept.facial.result() | kept.flicker.result()
        known = {measure.name: found.get(measure.name, math.nan) for measure in self.measures}
        return known | {m.name: found[m.name] for m in RENDERED if not math.isnan(found.get(m.name, math.nan))}


def _joined(parts: Mapping[str, Sequence[Tensor]]) -> dict[str, NDArray[np.float32]]:
    return {name: torch.cat(list(of)).numpy() for name, of in parts.items() if of}


def clip_strip(source: Picture, clip: Chunk, worst: int) -> Picture:
    """The strip (see `ClipScores`) of a clip that is one chunk; `worst` is an index into the chunk."""
    rows = {int(clip.rows[at]): _strip_row(source, clip, at) for at in _shown(len(clip.rows)) | {worst}}
    return _draw_strip(rows, int(clip.rows[worst]), tuple(clip.predictions))


def enlarged(pictures: Frames) -> list[Picture]:
    """(N, R, R, 3) to N images (256, 256, 3), the size at which faces are read."""
    if pictures.shape[1] == CROP_SIZE:
        return list(pictures)
    return list(to_uint8(resize(to_tensor(pictures), CROP_SIZE)))


def _shown(frames: int) -> set[int]:
    """Indices of the frames that a strip shows."""
    return set(((np.arange(_STRIP_ROWS) + 0.5) / _STRIP_ROWS * frames).astype(int).tolist())


def _strip_row(source: Picture, chunk: Chunk, at: int) -> list[Picture]:
    """Source, driving frame and every method's image, reduced."""
    pictures = np.stack([source, chunk.targets[at], *(frames[at] for frames in chunk.predictions.values())])
    return list(to_uint8(resize(to_tensor(pictures), min(_STRIP_SIZE, pictures.shape[1]))))


def _draw_strip(rows: Mapping[int, Sequence[Picture]], worst: int, methods: Sequence[str]) -> Picture:
    """Rows of images with headings, in the order of the frames."""
    labels = []
    for number in sorted(rows):
        driving = f"frame {number}{' (worst)' if number == worst else ''}"
        labels.append(["source", driving, *methods])
    return contact_sheet([rows[number] for number in sorted(rows)], labels)
