"""Phase one: reconstruct the driving frame from a source frame of the same clip (Sec. 3.4, Eq. 11)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as distributed
from numpy.typing import NDArray
from torch import Tensor, nn

from export3d.checkpoint import latest_state, load_into, load_state
from export3d.config import ModelConfig, preset, variant
from export3d.data.dataset import PairSampler
from export3d.data.frames import FrameStore
from export3d.errors import ConfigError, InputError
from export3d.expression.encoder import ExpressionEncoder
from export3d.image import contact_sheet, resize, to_uint8
from export3d.losses import ReconstructionWeights, face_weight, flow_error, reconstruction
from export3d.model import Export3D
from export3d.perceptual import Perceptual, load_perceptual
from export3d.pretrained import inherit, load_encoder, load_pretrained, save_pretrained
from export3d.training.loop import LoopConfig, Result, train


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """Settings of phase one, beside the loop's.

    Attributes:
        preset: model preset.
        variants: changes to the preset by name, see `export3d.config.VARIANTS`; "clebs" needs a pre-trained encoder.
        expression: the pre-trained encoder's file for "clebs"; None takes the packaged one.
        image_size: train at this size instead of the preset's (a multiple of 32). All weights carry over to another
            size, so that a run can begin small.
        coarse: stratified samples a ray, in training and in the weights it leaves; None keeps the preset's.
        fine: importance samples a ray, likewise.
        superres: train the super-resolution too; without it only the raw image is compared.
        weights: of the loss terms.
        backbone: perceptual network: `alex`, `squeeze`, `vgg16`, or `none`.
        backbone_file, heads_file: its weight files; torchvision's where no file is given.
        face_emphasis: extra weight of the squared error at eyes and mouth; 0 is the paper's plain mean.
        flow: weight of the flow's landmark error (`losses.flow_error`), where the model has a flow.
        flow_steps: steps in which a fresh run first fits the flow's field to 256 pairs of landmarks each, without
            pictures: a minute that saves many thousand images.
        still_fraction, pseudo_fraction, hard_fraction, mirror, augment: see `export3d.data.dataset.PairSampler`.
        sheet_pairs: pairs in an image sheet.
    """

    preset: str = "base"
    variants: tuple[str, ...] = ()
    expression: Path | None = None
    image_size: int | None = None
    coarse: int | None = None
    fine: int | None = None
    superres: bool = True
    weights: ReconstructionWeights = field(default_factory=ReconstructionWeights)
    backbone: str = "squeeze"
    backbone_file: Path | None = None
    heads_file: Path | None = None
    face_emphasis: float = 0.0
    flow: float = 10.0
    flow_steps: int = 1000
    still_fraction: float = 0.3
    pseudo_fraction: float = 0.3
    hard_fraction: float = 0.0
    mirror: bool = True
    augment: bool = True
    sheet_pairs: int = 8

    def model_config(self) -> ModelConfig:
        """The preset with this run's variants, image size and samples a ray."""
        config = preset(self.preset)
        for name in self.variants:
            config = variant(config, name)
        size = self.image_size or config.generator.image_size
        if size % 32:
            raise ConfigError(f"image_size {size} must be a multiple of 32")
        render = replace(
            config.render,
            resolution=size // 4,
            coarse=self.coarse or config.render.coarse,
            fine=config.render.fine if self.fine is None else self.fine,
        )
        return replace(config, generator=replace(config.generator, image_size=size), render=render)


log = logging.getLogger(__name__)


class ReconstructionTask:
    """What `training.loop` trains in phase one.

    Args:
        train_frames: decoded training frames at the model's image size.
        val_frames: the same of the validation split, for figures and sheets; may be None.

    `config` holds, as JSON, what rebuilds the module and this run's settings.
    """

    def __init__(
        self, config: ReconstructionConfig, train_frames: FrameStore, val_frames: FrameStore | None = None
    ) -> None:
        self.settings = config
        self.model_config = config.model_config()
        words = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()}
        self.config: Mapping[str, Any] = {"model": self.model_config.to_dict(), "reconstruction": words}
        if train_frames.space != self.model_config.space:
            raise InputError(
                f"the training data is in {train_frames.space}, the model expects {self.model_config.space}"
            )
        torch.manual_seed(0)
        self.model = Export3D(self.model_config)
        if self.model_config.expression.frozen:
            self._take_encoder(load_encoder(config.expression), config.expression)
        else:
            seen = train_frames.expression
            self.model.expression.standardise(seen.mean(0), seen.std(0, correction=0))
        if self.model_config.expression.frozen and self.model.generator.flow_field is not None:
            # What the field sees will not change any more, and the small batches of the loop only blur its fit.
            self.model.generator.flow_field.requires_grad_(False)
        self.module: nn.Module = self.model
        self.sampler = self._sampler(train_frames)
        self.val = val_frames
        self.perceptual: Perceptual | None = None
        if config.backbone != "none":
            self.perceptual = load_perceptual(config.backbone, config.backbone_file, config.heads_file)

    def _take_encoder(self, encoder: ExpressionEncoder, path: Path | None) -> None:
        """Put a pre-trained encoder into the model; it is never trained again."""
        wanted, given = self.model_config.expression, replace(encoder.config, frozen=True)
        if given != wanted:
            raise ConfigError(
                f"the encoder {path or 'in the package'} has n {given.n}, d {given.d} and {given.inputs} inputs, the "
                f"model wants n {wanted.n}, d {wanted.d} and {wanted.inputs}; pre-train one of these sizes"
            )
        load_into(self.model.expression, encoder.state_dict(), what=str(path or "the packaged encoder"))

    def prepare(self, device: torch.device) -> None:
        """Move the perceptual network and all frames to the training device."""
        if self.perceptual is not None:
            self.perceptual = self.perceptual.to(device)
        if device.type != self.sampler.store.device.type:
            self.sampler = self._sampler(self.sampler.store.to(device))

    def fit_flow(self) -> float:
        """Fit the flow's field, as far as expressions tell it, to landmarks alone; returns the last tenth's mean error.

        A field that is not zero was fitted or trained before and stays. Small penalties on the field and on its slopes
        let it fade away from the face, where there are no landmarks.
        The encoder is not trained here. With a frozen encoder the loop leaves the field as it is fitted and trains what
        the features change of it; otherwise it goes on training both. Errors are those of `losses.flow_error`.
        """
        field, steps = self.model.generator.flow_field, self.settings.flow_steps
        if field is None or not steps or not self.settings.flow or field.out.weight.any():
            return 0.0
        store = self.sampler.store
        sampler = self._sampler(replace(store, frames=store.frames[:, :, :2, :2]))  # nobody looks at the pictures
        trained = [p.requires_grad for p in field.parameters()]
        optimizer = torch.optim.AdamW(field.requires_grad_(True).parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        half, errors = self.model_config.render.half_extent, []
        for step in range(steps):
            batch = sampler.batch(step * 256, 256)
            with torch.no_grad():
                pose = self.model.pose(batch["source_camera"], batch["source_expression"])
                embedding = self.model.expression(batch["expression"])
            before, after = (batch["source_landmarks"], batch["source_camera"]), (batch["landmarks"], batch["camera"])
            flow = field(embedding, pose)
            error = flow_error(flow, *before, *after, half)
            slopes = flow.diff(dim=2).abs().mean() + flow.diff(dim=3).abs().mean()
            optimizer.zero_grad(set_to_none=True)
            (error + 0.1 * slopes + 0.02 * flow.abs().mean()).backward()
            optimizer.step()
            schedule.step()
            errors.append(float(error.detach()))
        for parameter, was in zip(field.parameters(), trained):
            parameter.requires_grad_(was)
        last = float(np.mean(errors[-max(1, steps // 10) :]))
        log.info("flow fitted to landmarks: error %.4f to %.4f of half a plane", errors[0], last)
        return last

    def batch(self, images_seen: int, batch_size: int, rank: int, world: int) -> Mapping[str, Any]:
        """Pairs by number, with one generator seed for the ray jitter of this share."""
        return {**self.sampler.batch(images_seen, batch_size, rank, world), "jitter": images_seen * world + rank}

    def losses(self, batch: Mapping[str, Any], images_seen: int) -> Mapping[str, Tensor]:
        """Eq. 11 on one batch; also folds the generated planes into the tri-plane EMA (Eq. 14)."""
        source: Tensor = batch["source"]
        jitter = torch.Generator(source.device).manual_seed(int(batch["jitter"]))
        output = self.model(
            source,
            batch["expression"],
            batch["camera"],
            batch["source_camera"],
            batch["source_expression"],
            generator=jitter,
            superres=self.settings.superres,
        )
        emphasis = self.settings.face_emphasis
        weight = face_weight(batch["landmarks"], source.shape[-1], emphasis) if emphasis else None
        terms = reconstruction(
            output.image, output.rendered.raw, batch["driving"], self.perceptual, self.settings.weights, weight
        )
        if output.flow is not None and self.settings.flow:
            half = self.model_config.render.half_extent
            before, after = (batch["source_landmarks"], batch["source_camera"]), (batch["landmarks"], batch["camera"])
            terms["flow"] = self.settings.flow * flow_error(output.flow, *before, *after, half)
            terms["total"] = terms["total"] + terms["flow"]
        self.model.generator.average.update(output.generated)
        return terms

    def validate(self, ema: nn.Module) -> Mapping[str, float]:
        """PSNR (dB, of [0, 1] images) on fixed pairs of the validation split, ours and copying the source."""
        if self.val is None:
            return {}
        ours, copied = [], []
        for pair in self._val_pairs(64):
            image = self._predict(ema, pair)
            target = (pair["driving"] + 1) / 2
            ours.append(_psnr((image + 1) / 2, target))
            copied.append(_psnr((pair["source"] + 1) / 2, target))
        return {"psnr": float(torch.cat(ours).mean()), "psnr_copy": float(torch.cat(copied).mean())}

    def sheet(self, ema: nn.Module) -> NDArray[np.uint8]:
        """Rows of source, driving, ours and raw for validation pairs (training pairs where there are none)."""
        rows = []
        for pair in self._val_pairs(self.settings.sheet_pairs):
            planes = _planes(ema, pair)
            rendered = ema.render(planes, pair["camera"])  # type: ignore[operator]
            final = ema.superres(rendered.feature).clamp(-1, 1)  # type: ignore[operator]
            size = final.shape[-1]
            enlarged = [resize(x, size) for x in (rendered.raw, 1 - 2 * _unit(rendered.depth).expand(-1, 3, -1, -1))]
            pictures = (pair["source"], pair["driving"], final, *enlarged)
            rows += [[to_uint8(x[i].clamp(-1, 1)) for x in pictures] for i in range(len(final))]
        return contact_sheet(rows)

    def _sampler(self, frames: FrameStore) -> PairSampler:
        s = self.settings
        return PairSampler(
            frames,
            mirror=s.mirror,
            augment=s.augment,
            still_fraction=s.still_fraction,
            pseudo_fraction=s.pseudo_fraction,
            hard_fraction=s.hard_fraction,
        )

    def _val_pairs(self, count: int) -> list[dict[str, Tensor]]:
        store = self.val or self.sampler.store
        sampler = PairSampler(store, seed=1, mirror=False, augment=False, still_fraction=0.0)
        device = next(self.module.parameters()).device
        return [
            {name: value.to(device) for name, value in sampler.batch(start, min(8, count - start)).items()}
            for start in range(0, count, 8)
        ]

    def _predict(self, ema: nn.Module, pair: Mapping[str, Tensor]) -> Tensor:
        planes = _planes(ema, pair)
        image: Tensor = ema.frame(planes, pair["camera"])  # type: ignore[operator]
        return image


def run(
    data: Path,
    out: Path,
    config: ReconstructionConfig,
    loop: LoopConfig,
    *,
    resume: bool = True,
    init_from: Path | None = None,
    pseudo: Sequence[Path] = (),
    cache: Path | None = None,
) -> Result:
    """Train phase one on a prepared folder (with `train` and, where there is one, `val`) into the run folder `out`.

    The averaged weights are written to `out/weights.safetensors` at the end.

    Args:
        init_from: weights to begin with (fresh optimiser), of any image size and expression encoder, see
            `pretrained.inherit`.
        pseudo: splits of pseudo-clips (`export3d pseudo-clips`) to train on beside the real ones.
        cache: folder that keeps decoded frames between runs.
    """
    size = config.model_config().generator.image_size

    def frames(split: Path, name: str) -> FrameStore:
        kept = None
        if cache is not None:
            cache.mkdir(parents=True, exist_ok=True)
            kept = cache / f"{name}-{size}.safetensors"
        return FrameStore.load(split, size, cache=kept)

    if not (data / "train").is_dir():
        raise InputError(f"{data} has no folder 'train'; make one with: export3d prepare CLIPS -o {data}")
    made = [frames(folder, f"pseudo{number}").as_pseudo() for number, folder in enumerate(pseudo)]
    clips = frames(data / "train", "train")
    clips = FrameStore.join([clips, *made]) if made else clips
    task = ReconstructionTask(config, clips, frames(data / "val", "val") if (data / "val").is_dir() else None)
    if init_from is not None:
        seen = task.sampler.store.expression
        inherit(task.model, load_pretrained(init_from), seen[:: max(1, len(seen) // 5000)])
    if latest_state(out / "checkpoints") is None:
        task.fit_flow()
    result = train(task, out, loop, resume=resume)
    if not distributed.is_initialized() or distributed.get_rank() == 0:
        export(result.checkpoint, out / "weights.safetensors")
    return result


def export(checkpoint: Path, path: Path) -> Path:
    """Averaged weights of a training state as a file that `load_pretrained` reads."""
    state = load_state(checkpoint)
    model = Export3D(ModelConfig.from_dict(state.config["task"]["model"]))
    load_into(model, state.ema, what=str(checkpoint))
    info = {"images_seen": state.counters["images_seen"], "phase": "reconstruction"}
    return save_pretrained(model, path, info)


def _planes(ema: nn.Module, pair: Mapping[str, Tensor]) -> Tensor:
    features = ema.encode(pair["source"], pair["source_camera"], pair["source_expression"])  # type: ignore[operator]
    planes: Tensor = ema.planes(features, pair["expression"])  # type: ignore[operator]
    return planes


def _psnr(image: Tensor, target: Tensor) -> Tensor:
    return -10 * (image - target).square().mean(dim=(1, 2, 3)).clamp_min(1e-10).log10()


def _unit(depth: Tensor) -> Tensor:
    low, high = depth.amin(dim=(1, 2, 3), keepdim=True), depth.amax(dim=(1, 2, 3), keepdim=True)
    return (depth - low) / (high - low).clamp_min(1e-6)
