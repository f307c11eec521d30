"""Phase one: reconstruct the driving frame from a source frame of the same clip (Sec. 3.4, Eq. 11)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as distributed
from torch import Tensor, nn

from export3d.config import VARIANTS, ModelConfig, preset, variant
from export3d.data.frame_window import RotatingSampler, Rotation
from export3d.data.frames import FrameStore, space_of
from export3d.data.pairs import PairSampler, share_of
from export3d.data.taught import GROUP, MixedSampler, TaughtSampler, load_taught
from export3d.data.training_frames import load_frames
from export3d.errors import ConfigError, InputError
from export3d.expression.encoder import ExpressionEncoder
from export3d.image import resize
from export3d.locations import as_place
from export3d.losses import between, face_weight
from export3d.model import Export3D, Output
from export3d.photo.matte import crop_mattes
from export3d.pretrained import inherit, load_encoder, load_pretrained
from export3d.training.loop import Result, train
from export3d.training.loop_config import LoopConfig
from export3d.training.motion_fit import MotionFit
from export3d.training.pairs import PairConfig, PairTask, check_space, export, words
from export3d.training.state import latest_state
from export3d.warping.landmark_motion import LandmarkMotion
from export3d.weights.file import load_into
from export3d.weights.hub import locate

log = logging.getLogger(__name__)

_GROUPS = 16
"""Held-out taught groups in a validation."""


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig(PairConfig):
    """Settings of phase one, beside the loop's and those of `PairConfig`.

    Attributes:
        preset: model preset; None takes the settings of the weights to begin with.
        variants: changes to those by name, see `export3d.config.VARIANTS`; "clebs" and preset `paper` need a
            pre-trained encoder.
        expression: the pre-trained encoder's file; None takes that of the weights to begin with, where it was
            pre-trained, else the packaged one.
        superres: train the super-resolution too; without it only the raw image is compared.
        motion_steps: steps in which a fresh run first fits the motion of landmarks to 256 pairs of them each, without
            pictures: a minute that saves many thousand images.
        score_steps: steps that then fit it to the scores that moved landmarks read as, of 64 pairs and of 64 people
            with another one's expression each (`training.motion_fit`), about a second each on one core. The motion of
            the weights to begin with is fitted on by them. Needs expressions in arkit52.
        taught: folders or URLs that `export3d teach` made, to train on beside the real clips.
        taught_share: share of the images from them; 0: real frames alone.
        between: weight of `losses.between` on them.
    """

    preset: str | None = "base"
    variants: tuple[str, ...] = ()
    expression: Path | None = None
    superres: bool = True
    motion_steps: int = 1500
    score_steps: int = 0
    taught: tuple[str, ...] = ()
    taught_share: float = 0.5
    between: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.taught_share <= 1.0 or self.between < 0:
            raise ConfigError(
                f"taught_share is {self.taught_share} and between {self.between}; give a number from 0 to 1, and one "
                "that is not negative"
            )
        for name in ("motion_steps", "score_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}; 0 leaves the fit out")
        if self.preset is not None:
            preset(self.preset)  # refuses an unknown one
        for name in self.variants:
            if name not in VARIANTS:
                raise ConfigError(f"unknown variant {name!r}; choose from {', '.join(VARIANTS)}")

    def model_config(self, former: ModelConfig | None = None, space: str | None = None) -> ModelConfig:
        """The preset, or else the settings of the weights to begin with, with this run's changes to them.

        Args:
            former: settings of the weights to begin with.
            space: expression space of the training data; None leaves that of the preset or the weights.

        Raises:
            ConfigError: an unknown preset or variant, or neither a preset nor weights to begin with.
        """
        if self.preset is not None:
            config = preset(self.preset)
        elif former is not None:
            config = former
        else:
            raise ConfigError("there is no model to train; set model.preset, or name weights with --from-pretrained")
        for name in self.variants:
            config = variant(config, name)
        return self.sized(config if space is None else config.in_space(space))


class ReconstructionTask(PairTask):
    """The task of phase one.

    Args:
        train_frames, val_frames: see `PairTask`.
        seed: of the pairs and of the initial weights.
        former: the model from which training starts, see `pretrained.inherit`.
        taught: decoded groups of `data.taught.load_taught`, to train on as well.
        taught_val: decoded groups of people that take no part, for figures.

    `config` contains, JSON-able, what rebuilds the module and this run's settings.
    """

    settings: ReconstructionConfig

    def __init__(
        self,
        config: ReconstructionConfig,
        train_frames: FrameStore | Rotation,
        val_frames: FrameStore | None = None,
        seed: int = 0,
        former: Export3D | None = None,
        taught: FrameStore | Rotation | None = None,
        taught_val: FrameStore | None = None,
    ) -> None:
        if former is not None:
            check_space(train_frames.space, former.config)
        self.model_config = config.model_config(None if former is None else former.config, train_frames.space)
        if config.score_steps and self.model_config.space != "arkit52":
            raise ConfigError(
                f"score_steps compares landmarks with arkit52 scores, but the data is in {self.model_config.space}; "
                "set it to 0"
            )
        self.config: Mapping[str, Any] = {"model": self.model_config.to_dict(), "reconstruction": words(config)}
        torch.manual_seed(seed)
        super().__init__(config, Export3D(self.model_config), train_frames, val_frames, seed)
        if config.score_steps and (self.landmark_motion is None or "warp" in config.freeze):
            raise ConfigError(
                "score_steps fits the warp's motion of landmarks, but this model has none or freeze names warp; set it "
                "to 0"
            )
        self.taught = None if taught is None else self._taught(taught)
        self.taught_val = taught_val
        encoder = pretrained_encoder(config, self.model_config, former)
        if encoder is not None:
            what = str(config.expression or "the packaged encoder")
            load_into(self.model.expression, encoder.state_dict(), what=what)
        else:
            seen = train_frames.expression
            self.model.expression.standardise(seen.mean(0), seen.std(0, correction=0))
        if self.model_config.expression.frozen and self.landmark_motion is not None:
            # Its inputs no longer change, and the loop's small batches would only make the fit worse.
            self.landmark_motion.requires_grad_(False)
        if former is not None:
            seen = train_frames.expression
            inherit(self.model, former, seen[:: max(1, len(seen) // 5000)])
        self.keep_frozen()

    @property
    def landmark_motion(self) -> LandmarkMotion | None:
        """The part of the warp that moves the source's landmarks; None where the model has none."""
        return None if self.model.warp is None else self.model.warp.motion

    def fit_motion(self, progress: bool = False) -> float:
        """Fit the depth and the motion of landmarks before the first image; returns the mean error of the last tenth.

        A new motion is fitted to landmarks in `motion_steps`. A motion that is not zero was fitted or trained before
        and is kept. Then `score_steps` fit either to the scores that its landmarks read as (`training.motion_fit`).
        The encoder is not trained here. With a frozen encoder the loop keeps the fitted motion and trains only the
        refinement of the flow by features; otherwise it continues to train both. Errors are those of
        `warping.losses.landmark_error`; 0.0 if nothing was fitted. `progress` shows a bar.
        """
        motion, s = self.landmark_motion, self.settings
        if motion is None or "warp" in s.freeze:
            return 0.0
        new = not motion.out.weight.any()
        if not (s.motion_steps if new else s.score_steps):
            return 0.0
        store = self.sampler.store
        sampler = self._sampler(replace(store, frames=store.frames[:, :, :2, :2], masks=None))  # images are not used
        fit = MotionFit(motion, self.model.expression, sampler, self.model_config.render.half_extent, progress)
        errors = []
        if new:
            with torch.no_grad():
                motion.standardise(store.expression, self.model.expression.coefficients(store.expression))
            errors = fit.to_landmarks(s.motion_steps)
        else:
            motion.amplify(undo=True)
        if s.score_steps:
            errors = [*errors[:1], *fit.to_scores(s.score_steps)]
        motion.amplify()
        last = float(np.mean(errors[-max(1, len(errors) // 10) :]))
        log.info("motion fitted: error of landmarks from %.4f to %.4f image widths", errors[0], last)
        return last

    def _taught(self, frames: FrameStore | Rotation) -> PairSampler | RotatingSampler:
        """The sampler of taught groups."""
        if frames.space != self.model_config.space:
            raise InputError(
                f"the taught clips are in {frames.space}, but the model expects {self.model_config.space}; teach again"
            )
        s = self.settings

        def sampler(store: FrameStore) -> TaughtSampler:
            return TaughtSampler(store, self.seed, s.mirror, s.augment)

        return RotatingSampler(frames, sampler) if isinstance(frames, Rotation) else sampler(frames)

    def prepare(self, device: torch.device) -> None:
        """As `PairTask.prepare`, taught frames included."""
        super().prepare(device)
        if self.taught is not None and device.type != self.taught.store.device.type:
            frames = self.taught.rotation if isinstance(self.taught, RotatingSampler) else self.taught.store
            self.taught = self._taught(frames.to(device))

    def batch(self, images_seen: int, batch_size: int, rank: int, world: int) -> Mapping[str, Any]:
        """As `PairTask.batch`, with taught groups among the pairs, see `MixedSampler`; a group shares its jitter."""
        if self.taught is None:
            return super().batch(images_seen, batch_size, rank, world)
        sampler = MixedSampler(self.sampler, self.taught, self.settings.taught_share)
        pairs = sampler.batch(images_seen, batch_size, rank, world)
        numbers = share_of(images_seen, batch_size, rank, world)
        number = torch.arange(numbers.start, numbers.stop, device=pairs["source"].device)
        return {**pairs, "number": torch.where(pairs["taught"], number - number % GROUP, number)}

    def losses(self, batch: Mapping[str, Any], images_seen: int) -> Mapping[str, Tensor]:
        """Eq. 11 on one batch, and `between`; also collects the generated planes for the tri-plane EMA (Eq. 14)."""
        output = self.draw(batch, superres=self.settings.superres)
        terms = self.compare(output, batch)
        if "taught" in batch and self.settings.between:
            terms["between"] = self.settings.between * self._between(output, batch)
            terms["total"] = terms["total"] + terms["between"]
        self.collect(output)
        return terms

    def validate(self, ema: nn.Module) -> Mapping[str, float]:
        """As `PairTask.validate`, with `gain` and `correlation` (see `explained`) on held-out taught groups, if any."""
        figures, found, store = dict(super().validate(ema)), [], self.taught_val
        device = next(ema.parameters()).device
        for clip in () if store is None else store.clips[:_GROUPS]:
            assert store is not None
            names = ("frames", "camera", "expression", "landmarks")
            frames, *tracks = (getattr(store, name)[clip.rows].to(device).float() for name in names)
            shown = frames / 127.5 - 1.0
            mask = None if store.masks is None else store.masks[clip.rows][:1].to(device).float() / 255.0
            own = (*(track[:1] for track in tracks), crop_mattes(self.model, shown[:1], mask))
            features = ema.encode(shown[:1], *own)  # type: ignore[operator]
            planes = ema.planes(features, tracks[1][1:])  # type: ignore[operator]
            found.append(explained(ema.frame(planes, tracks[0][1:]), shown[1:]))  # type: ignore[operator]
        if found:
            figures |= dict(zip(("gain", "correlation"), torch.stack(found).mean(0).tolist(), strict=True))
        return figures

    def _between(self, output: Output, batch: Mapping[str, Any]) -> Tensor:
        image = output.rendered.raw if output.image is None else output.image
        emphasis = self.settings.face_emphasis
        weight = face_weight(batch["landmarks"], image.shape[-1], emphasis) if emphasis else None
        return between(image, resize(batch["driving"], image.shape[-1]), batch["taught"], GROUP, weight)


def explained(image: Tensor, target: Tensor) -> Tensor:
    """How much of what the expression changes is rendered, (2,): its gain and its correlation.

    With o and t the images and targets (n, 3, H, W) of one group minus their means over it: sum(o t) / sum(t t), and
    sum(o t) / (|o| |t|). Both are 1 for perfect images and 0 for images that do not depend on the expression.
    """
    o, t = (x - x.mean(0) for x in (image.float(), target.float()))
    both = (o * t).sum()
    return torch.stack([both / t.square().sum().clamp_min(1e-9), both / (o.norm() * t.norm()).clamp_min(1e-9)])


def pretrained_encoder(
    config: ReconstructionConfig, model: ModelConfig, former: Export3D | None
) -> ExpressionEncoder | None:
    """The encoder that stays frozen in a model; None if the model trains its own.

    Raises:
        ConfigError: the encoder has other sizes, or takes another expression space, than the model.
        CheckpointError: as `load_encoder`.
    """
    if not model.expression.frozen:
        return None
    kept = former is not None and former.config.expression.frozen and config.expression is None
    encoder = former.expression if former is not None and kept else load_encoder(config.expression)
    wanted, given = model.expression, replace(encoder.config, frozen=True)
    if given.inputs != wanted.inputs:
        raise ConfigError(
            f"the encoder {config.expression or 'in the package'} takes {given.inputs} expression values, but the data "
            f"in {model.space} has {wanted.inputs}; make one with export3d pretrain and give its clebs.safetensors by "
            "--set model.expression=FILE"
        )
    if given != wanted:
        raise ConfigError(
            f"the encoder {config.expression or 'in the package'} has n {given.n} and d {given.d}, but the model needs "
            f"n {wanted.n} and d {wanted.d}; make one with export3d pretrain and give its clebs.safetensors by "
            "--set model.expression=FILE"
        )
    return encoder


def run(
    data: Path | str,
    out: Path,
    config: ReconstructionConfig,
    loop: LoopConfig,
    *,
    resume: bool = True,
    from_pretrained: Path | str | None = None,
    pseudo: Sequence[Path | str] = (),
    cache: Path | None = None,
) -> Result:
    """Train phase one on a prepared folder (with `train` and, where there is one, `val`) into the run folder `out`.

    The averaged weights are written to `out/weights.safetensors` at the end.

    Args:
        data: the folder or its URL.
        from_pretrained: weights from which training starts (with a new optimiser), of any image size and expression
            encoder, see `pretrained.inherit`: a file, a folder, a name, or a Hugging Face repository
            (`weights.hub.locate`).
        pseudo: splits of pseudo-clips (`export3d pseudo-clips`), folders or URLs, to train on beside the real clips.
        cache: folder that keeps decoded frames between runs.
    """
    if config.taught and loop.batch_size % (GROUP * loop.accumulate):
        raise ConfigError(
            f"with taught clips, batches are made of groups of {GROUP}; make batch_size {loop.batch_size} a multiple "
            f"of {GROUP * loop.accumulate}"
        )
    former = None if from_pretrained is None else load_pretrained(locate(from_pretrained)[0])
    space = space_of(as_place(data))
    if former is not None:
        check_space(space, former.config)
    model = config.model_config(None if former is None else former.config, space)
    pretrained_encoder(config, model, former)  # refused before minutes of decoding
    size = model.image_size
    clips, val = load_frames(data, size, pseudo, cache, config.memory)
    taught = load_taught(config.taught, size, config.memory, cache) if config.taught else (None, None)
    task = ReconstructionTask(config, clips, val, loop.seed, former, *taught)
    if latest_state(out / "checkpoints") is None:
        task.fit_motion(loop.progress)
    result = train(task, out, loop, resume=resume)
    if not distributed.is_initialized() or distributed.get_rank() == 0:
        export(result.checkpoint, out / "weights.safetensors", "reconstruction", loop.weights_part_mb)
    return result
