"""The part of a training task that both stages share: losses on pairs of frames, validation and image sheets.

`data.pairs` samples the pairs; `training.reconstruction` and `training.adversarial` build the two stages on this.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export3d.config import ModelConfig
from export3d.data.frame_window import RotatingSampler, Rotation
from export3d.data.frames import FrameStore
from export3d.data.pairs import PairSampler
from export3d.errors import ConfigError, InputError, MissingExtra
from export3d.image import contact_sheet, resize, to_uint8
from export3d.losses import ReconstructionWeights, face_weight, reconstruction
from export3d.model import Export3D, Output
from export3d.perceptual import BACKBONES, Distance, Perceptual, load_perceptual
from export3d.photo.matte import crop_mattes
from export3d.pretrained import save_pretrained
from export3d.render.renderer import Rendered
from export3d.training import face_features
from export3d.training.face_features import FacePerceptual
from export3d.training.regularisers import ExpressionError, IdentityError, ReadingError, density_variation
from export3d.training.state import load_state
from export3d.warping.losses import (
    WarpWeights,
    eyes_error,
    flow_error,
    landmark_error,
    mouth_error,
    moved_error,
    optical_error,
)
from export3d.weights.file import load_into

log = logging.getLogger(__name__)

PARTS = ("expression", "generator", "renderer", "superres", "warp")
"""Names of the model's parts."""
_REGULARISERS = ("identity_weight", "expression_weight", "reading_weight", "density_weight")
_VALIDATED = 64
_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class PairConfig(WarpWeights):
    """How pairs are sampled and compared; the weights of the warp's own terms are those of `WarpWeights`.

    Attributes:
        freeze: parts of the model that are not trained and stay as they are, bit for bit: names of `PARTS`.
        image_size: image size for training, a multiple of 32; None keeps the model's. All model weights can be used at
            another size, so a run can start with small images.
        coarse: stratified samples per ray, in training and in the resulting model; None keeps the model's.
        fine: importance samples per ray, likewise.
        weights: weights of the loss terms.
        backbone: perceptual network: `alex`, `squeeze`, `vgg16` (LPIPS), `dlib` (`training.face_features`, packaged),
            `none`, or `auto`: `squeeze` if its weights are available, otherwise `dlib`.
        backbone_file, heads_file: weight files of that network; by default torchvision's.
        face_emphasis: extra weight of the squared error at eyes and mouth; 0 is the paper's plain mean.
        identity_weight: weight of the identity error, see `training.regularisers`.
        expression_weight: weight of the expression error, which `expression_reader` measures.
        expression_reader: image encoder that `export3d pretrain` wrote, reader.safetensors.
        reading_weight: weight of the reading error, see `training.regularisers`.
        density_weight: weight of the variation of the density over small steps.
        still_fraction, pseudo_fraction, hard_fraction, curriculum_images, mirror, augment: see
            `export3d.data.pairs.PairSampler`; data in a space without a mirror map (bfm64) is never mirrored.
        memory: GB of decoded training frames held at once; if there are more, a window moves through them
            (`export3d.data.frame_window`). None holds all frames.
        sheet_pairs: number of pairs in an image sheet.

    Raises:
        ConfigError: a setting is outside its range.
    """

    freeze: tuple[str, ...] = ()
    image_size: int | None = None
    coarse: int | None = None
    fine: int | None = None
    weights: ReconstructionWeights = field(default_factory=ReconstructionWeights)
    backbone: str = "squeeze"
    backbone_file: Path | None = None
    heads_file: Path | None = None
    face_emphasis: float = 0.0
    identity_weight: float = 0.0
    expression_weight: float = 0.0
    expression_reader: Path | None = None
    reading_weight: float = 0.0
    density_weight: float = 0.0
    still_fraction: float = 0.3
    pseudo_fraction: float = 0.3
    hard_fraction: float = 0.0
    curriculum_images: int = 0
    mirror: bool = True
    augment: bool = True
    memory: float | None = None
    sheet_pairs: int = 8

    def __post_init__(self) -> None:
        if self.backbone not in (*BACKBONES, face_features.NAME, "auto", "none"):
            known = ", ".join((*BACKBONES, face_features.NAME, "auto", "none"))
            raise ConfigError(f"unknown backbone {self.backbone!r}; choose one of {known}")
        for name in self.freeze:
            if name not in PARTS:
                raise ConfigError(f"freeze names {name!r}, which is no part of a model; choose from {', '.join(PARTS)}")
        if self.image_size is not None and (self.image_size < 32 or self.image_size % 32):
            raise ConfigError(f"image_size {self.image_size} must be a positive multiple of 32")
        for name in ("coarse", "memory"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be positive, got {value}")
        if self.fine is not None and self.fine < 0:
            raise ConfigError(f"fine must not be negative, got {self.fine}")
        for name in ("still_fraction", "pseudo_fraction", "hard_fraction"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} is {getattr(self, name)}; give a number from 0 to 1")
        weights = ("face_emphasis", "landmarks", "flow", "moved", "optical", "mouth", "eyes")
        for name in (*weights, *_REGULARISERS, "curriculum_images"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        for name, value in asdict(self.weights).items():
            if value < 0:
                raise ConfigError(f"{name} must not be negative, got {value}")
        if self.expression_weight and self.expression_reader is None:
            raise ConfigError(
                "expression_weight needs expression_reader, the reader.safetensors that export3d pretrain writes"
            )

    def sized(self, config: ModelConfig) -> ModelConfig:
        """A model's configuration with this run's image size and samples per ray."""
        config = config.sized(self.image_size or config.image_size)
        render = replace(
            config.render,
            coarse=self.coarse or config.render.coarse,
            fine=config.render.fine if self.fine is None else self.fine,
        )
        return replace(config, render=render)


@dataclass(frozen=True)
class Drawn:
    """Results of a network on a few pairs.

    Attributes:
        pair: the pairs, from `PairSampler.batch`.
        image: (B, 3, H, W) final images, about [-1, 1], not clamped.
        rendered: raw images and depth.
    """

    pair: Mapping[str, Tensor]
    image: Tensor
    rendered: Rendered


class PairTask:
    """The common part of both stages' tasks: a `training.task.Task` without `losses`.

    Args:
        config: how pairs are sampled and compared.
        model: the model to train.
        train_frames: decoded training frames at the model's image size, all of them or a window on them.
        val_frames: decoded frames of the validation split, for metrics and sheets; None if there is none.
        seed: seed of the pairs.

    Raises:
        InputError: the expression space of the frames differs from the model's.
    """

    sampler_class = PairSampler
    """What samples the pairs; a task may have its own."""

    def __init__(
        self,
        config: PairConfig,
        model: Export3D,
        train_frames: FrameStore | Rotation,
        val_frames: FrameStore | None = None,
        seed: int = 0,
    ) -> None:
        self.settings: PairConfig = config
        self.seed = seed
        self.model = model
        for frames in (train_frames, *([] if val_frames is None else [val_frames])):
            check_space(frames.space, model.config)
        self.module: nn.Module = model
        self.sampler = self._sampler(train_frames)
        self.val = val_frames
        self.perceptual = _perceptual(config)
        self.identity = IdentityError() if config.identity_weight else None
        self.expression = _expression_error(config)
        self.reading = ReadingError() if config.reading_weight else None

    def prepare(self, device: torch.device) -> None:
        """Move the loss networks and all frames to the training device."""
        if self.perceptual is not None:
            self.perceptual = self.perceptual.to(device)
        for error in (self.identity, self.expression, self.reading):
            if error is not None:
                error.to(device)
        sampler = self.sampler
        if device.type != sampler.store.device.type:
            frames = sampler.rotation if isinstance(sampler, RotatingSampler) else sampler.store
            self.sampler = self._sampler(frames.to(device))

    def compile(self) -> None:
        """Compile the model's parts and the perceptual network."""
        self.model.compile(dynamic=False)
        if self.perceptual is not None:
            self.perceptual.compile(dynamic=False)

    def batch(self, images_seen: int, batch_size: int, rank: int, world: int) -> Mapping[str, Any]:
        """Pairs by number, see `PairSampler.batch`, with `source_matte` (`photo.matte.crop_mattes`) for some models.

        `number` (B,) seeds the jitter of each pair's ray samples.
        """
        pairs = self.sampler.batch(images_seen, batch_size, rank, world)
        share = batch_size // world
        first = images_seen + rank * share
        found = crop_mattes(self.model, pairs["source"], pairs.get("source_mask"))
        if found is not None:
            pairs = {**pairs, "source_matte": found}
        return {**pairs, "number": torch.arange(first, first + share, device=pairs["source"].device)}

    def keep_frozen(self) -> None:
        """Switch off the training of the parts in `PairConfig.freeze`.

        Raises:
            ConfigError: the model does not have such a part, or nothing is left to train.
        """
        if self.model.warp is not None and self.model.warp.inner is not None:
            self.model.warp.inner.requires_grad_(False)  # a loss on pixels would blur it
        for name in self.settings.freeze:
            part: nn.Module | None = getattr(self.model, name)
            if part is None:
                raise ConfigError(f"freeze names {name!r}, but this model has none; leave it out")
            part.requires_grad_(False)
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            raise ConfigError(f"freeze {', '.join(self.settings.freeze)} leaves nothing to train; name fewer parts")

    def collect(self, output: Output) -> None:
        """Collect the generated planes for the tri-plane EMA (Eq. 14), which a frozen generator keeps as it is."""
        if "generator" not in self.settings.freeze:
            self.model.generator.average.collect(output.generated)

    def end_step(self) -> None:
        """Update the tri-plane EMA with the planes generated in this step (Eq. 14)."""
        self.model.generator.average.update()

    def draw(self, batch: Mapping[str, Any], superres: bool = True) -> Output:
        """The model's forward pass on a batch, with jittered ray samples."""
        output: Output = self.model(
            batch["source"],
            batch["expression"],
            batch["camera"],
            batch["source_camera"],
            batch["source_expression"],
            batch["source_landmarks"],
            batch.get("source_matte"),
            shoulders=batch["shoulders"],
            jitter=batch["number"],
            superres=superres,
        )
        return output

    def compare(
        self, output: Output, batch: Mapping[str, Any], weights: ReconstructionWeights | None = None
    ) -> dict[str, Tensor]:
        """Weighted loss terms and their `total`: Eq. 11, the losses of the warp, and the enabled optional terms."""
        distance = None if self.perceptual is None else partial(self.perceptual, kept={})
        emphasis = self.settings.face_emphasis
        weight = face_weight(batch["landmarks"], batch["driving"].shape[-1], emphasis) if emphasis else None
        terms = reconstruction(
            output.image,
            output.rendered.raw,
            batch["driving"],
            distance,
            weights or self.settings.weights,
            weight,
        )
        for name, term in {**self._motion(output, batch, distance), **self._optional(output, batch)}.items():
            terms[name] = term
            terms["total"] = terms["total"] + term
        return terms

    def _motion(self, output: Output, batch: Mapping[str, Any], distance: Distance | None) -> dict[str, Tensor]:
        """Weighted losses of the warp, for those of its outputs that are trained."""
        motion, s, terms = output.planes.motion, self.settings, {}
        if motion is None:
            return {}
        points, flow = motion.points, motion.flow
        after = (batch["landmarks"], batch["camera"])
        if points is not None and points.requires_grad and s.landmarks:
            terms["landmarks"] = s.landmarks * landmark_error(points, *after)
        if points is not None and flow is not None and flow.requires_grad and s.flow:
            before, half = (batch["source_landmarks"], batch["source_camera"]), self.model.config.render.half_extent
            depth = points[..., 2].detach()
            terms["flow"] = s.flow * flow_error(flow, *before, *after, depth, half)
        if output.warped is not None and output.warped.requires_grad and s.moved:
            terms["moved"] = s.moved * moved_error(output.warped, batch["driving"], distance)
        if output.offset is not None and output.warped is not None and output.offset.requires_grad and s.optical:
            terms["optical"] = s.optical * optical_error(output.offset, output.warped.detach(), batch["driving"])
        return terms

    def _optional(self, output: Output, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Weighted `mouth_error`, `eyes_error` and terms of `training.regularisers`.

        They compare the final image or, where there is none, the raw one.
        """
        s, terms = self.settings, {}
        image = output.rendered.raw if output.image is None else output.image
        compared = (image, resize(batch["driving"], image.shape[-1]), batch["landmarks"])
        if s.mouth:
            terms["mouth"] = s.mouth * mouth_error(*compared, self.perceptual)
        if s.eyes:
            terms["eyes"] = s.eyes * eyes_error(*compared, self.perceptual)
        if self.identity is not None:
            terms["identity"] = s.identity_weight * self.identity(*compared)
        if self.expression is not None:
            terms["expression"] = s.expression_weight * self.expression(*compared)
        if self.reading is not None:
            terms["reading"] = s.reading_weight * self.reading(*compared)
        triplane = output.planes.triplane
        if s.density_weight and triplane.requires_grad:
            half, decoder = self.model.config.render.half_extent, self.model.renderer.decoder
            terms["density"] = s.density_weight * density_variation(decoder, triplane, half, batch["number"])
        return terms

    def drawn(self, ema: nn.Module, count: int) -> Iterator[Drawn]:
        """Results of the averaged network on fixed validation pairs (training pairs if there are none)."""
        sampler = PairSampler(self.val or self.sampler.store, seed=1, mirror=False, augment=False, still_fraction=0.0)
        device = next(self.module.parameters()).device
        for start in range(0, count, _AT_ONCE):
            batch = sampler.batch(start, min(_AT_ONCE, count - start))
            pair = {name: value.to(device) for name, value in batch.items()}
            own = [pair[f"source_{name}"] for name in ("camera", "expression", "landmarks")]
            matte = crop_mattes(self.model, pair["source"], pair.get("source_mask"))
            features = ema.encode(pair["source"], *own, matte)  # type: ignore[operator]
            planes = ema.planes(features, pair["expression"]).with_shoulders(pair["shoulders"])  # type: ignore[operator]
            rendered: Rendered = ema.render(planes, pair["camera"])  # type: ignore[operator]
            yield Drawn(pair, ema.finish(planes, pair["camera"], rendered), rendered)  # type: ignore[operator]

    def validate(self, ema: nn.Module) -> Mapping[str, float]:
        """Mean metrics of the averaged network on fixed pairs of the validation split; empty if there is none."""
        if self.val is None:
            return {}
        found: dict[str, list[Tensor]] = {}
        for drawn in self.drawn(ema, _VALIDATED):
            for name, values in self.figures(drawn).items():
                found.setdefault(name, []).append(values)
        return {name: float(torch.cat(values).mean()) for name, values in found.items()}

    def figures(self, drawn: Drawn) -> dict[str, Tensor]:
        """Metrics (B,) of a few pairs: PSNR (dB, images in [0, 1]) of the result and of copying the source.

        With a perceptual network `lpips` and `lpips_copy` too: its distance from the driving frame.
        """
        shown = {"": drawn.image.clamp(-1, 1), "_copy": drawn.pair["source"]}
        target = drawn.pair["driving"]
        found = {f"psnr{of}": _psnr((image + 1) / 2, (target + 1) / 2) for of, image in shown.items()}
        if self.perceptual is not None:
            wanted = self.perceptual.activations(target)
            for of, image in shown.items():
                found[f"lpips{of}"] = self.perceptual.distance(self.perceptual.activations(image), wanted)
        return found

    def sheet(self, ema: nn.Module) -> NDArray[np.uint8]:
        """Rows of source, driving, result, raw and depth for validation pairs (training pairs if there are none)."""
        rows = []
        for found in self.drawn(ema, self.settings.sheet_pairs):
            size, rendered = found.image.shape[-1], found.rendered
            enlarged = [resize(x, size) for x in (rendered.raw, 1 - 2 * _unit(rendered.depth).expand(-1, 3, -1, -1))]
            columns = (found.pair["source"], found.pair["driving"], found.image, *enlarged)
            rows += [[to_uint8(x[i].clamp(-1, 1)) for x in columns] for i in range(len(found.image))]
        return contact_sheet(rows)

    def _sampler(self, frames: FrameStore | Rotation) -> PairSampler | RotatingSampler:
        if isinstance(frames, Rotation):
            return RotatingSampler(frames, self._pairs)
        return self._pairs(frames)

    def _pairs(self, frames: FrameStore) -> PairSampler:
        s = self.settings
        return self.sampler_class(
            frames,
            self.seed,
            mirror=s.mirror and frames.space == "arkit52",
            augment=s.augment,
            still_fraction=s.still_fraction,
            pseudo_fraction=s.pseudo_fraction,
            hard_fraction=s.hard_fraction,
            curriculum_images=s.curriculum_images,
        )


def check_space(space: str | None, model: ModelConfig) -> None:
    """`InputError` if data has expressions of another space than a model takes; None passes."""
    if space not in (None, model.space):
        raise InputError(
            f"the data holds expressions in {space}, but the weights take {model.space}; prepare the data in that "
            f"space, or use weights of {space}"
        )


def export(checkpoint: Path, path: Path, phase: str, part_size_mb: float | None = None) -> Path:
    """Write the averaged weights of a training state to `path`, for `load_pretrained`.

    Args:
        checkpoint: the training state.
        path: the `.safetensors` file to write.
        phase: name of the training stage, stored in the sidecar.
        part_size_mb: in half precision and in parts of at most this size, see `LoopConfig.weights_part_mb`.

    Returns:
        `path`.
    """
    state = load_state(checkpoint)
    model = Export3D(ModelConfig.from_dict(state.config["task"]["model"]))
    load_into(model, state.ema, what=str(checkpoint))
    options = {} if part_size_mb is None else {"dtype": torch.float16, "part_size_mb": part_size_mb}
    return save_pretrained(model, path, {"images_seen": state.counters["images_seen"], "phase": phase}, **options)


def words(config: Any) -> dict[str, Any]:
    """A settings dataclass as a JSON-able dictionary; paths become strings."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}


def _perceptual(config: PairConfig) -> Perceptual | None:
    if config.backbone == "none":
        return None
    if config.backbone == face_features.NAME:
        return FacePerceptual()
    if config.backbone != "auto":
        return load_perceptual(config.backbone, config.backbone_file, config.heads_file)
    try:
        return load_perceptual("squeeze", config.backbone_file, config.heads_file)
    except (MissingExtra, OSError):  # torchvision is not installed, or cannot download
        log.warning(
            "the weights of LPIPS are not available, so images are compared by features of the packaged face "
            "descriptor; to use LPIPS, name its files in loss.backbone_file and loss.heads_file, or install torchvision"
        )
        return FacePerceptual()


def _expression_error(config: PairConfig) -> ExpressionError | None:
    if not config.expression_weight or config.expression_reader is None:
        return None
    return ExpressionError.load(config.expression_reader)


def _psnr(image: Tensor, target: Tensor) -> Tensor:
    return -10 * (image - target).square().mean(dim=(1, 2, 3)).clamp_min(1e-10).log10()


def _unit(depth: Tensor) -> Tensor:
    low, high = depth.amin(dim=(1, 2, 3), keepdim=True), depth.amax(dim=(1, 2, 3), keepdim=True)
    return (depth - low) / (high - low).clamp_min(1e-6)
