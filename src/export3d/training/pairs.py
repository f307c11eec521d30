"""What both training phases share: pairs of frames, how they are compared, what is shown of a network that learns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export3d.checkpoint import load_into, load_state
from export3d.config import ModelConfig
from export3d.data.dataset import PairSampler
from export3d.data.frames import FrameStore
from export3d.errors import InputError
from export3d.image import contact_sheet, resize, to_uint8
from export3d.losses import ReconstructionWeights, face_weight, flow_error, reconstruction
from export3d.model import Export3D, Output
from export3d.perceptual import Perceptual, load_perceptual
from export3d.pretrained import save_pretrained
from export3d.render.renderer import Rendered

_VALIDATED = 64
_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class PairConfig:
    """How pairs are drawn and compared.

    Attributes:
        image_size: train at this size instead of the model's own (a multiple of 32). All weights carry over to another
            size, so that a run can begin small.
        coarse: stratified samples a ray, in training and in the weights it leaves; None keeps the model's.
        fine: importance samples a ray, likewise.
        weights: of the loss terms.
        backbone: perceptual network: `alex`, `squeeze`, `vgg16`, or `none`.
        backbone_file, heads_file: its weight files; torchvision's where no file is given.
        face_emphasis: extra weight of the squared error at eyes and mouth; 0 is the paper's plain mean.
        flow: weight of the flow's landmark error (`losses.flow_error`), where the model has a flow.
        still_fraction, pseudo_fraction, hard_fraction, mirror, augment: see `export3d.data.dataset.PairSampler`.
        sheet_pairs: pairs in an image sheet.
    """

    image_size: int | None = None
    coarse: int | None = None
    fine: int | None = None
    weights: ReconstructionWeights = field(default_factory=ReconstructionWeights)
    backbone: str = "squeeze"
    backbone_file: Path | None = None
    heads_file: Path | None = None
    face_emphasis: float = 0.0
    flow: float = 10.0
    still_fraction: float = 0.3
    pseudo_fraction: float = 0.3
    hard_fraction: float = 0.0
    mirror: bool = True
    augment: bool = True
    sheet_pairs: int = 8

    def sized(self, config: ModelConfig) -> ModelConfig:
        """A model's configuration with this run's image size and samples a ray."""
        config = config.sized(self.image_size or config.image_size)
        render = replace(
            config.render,
            coarse=self.coarse or config.render.coarse,
            fine=config.render.fine if self.fine is None else self.fine,
        )
        return replace(config, render=render)


@dataclass(frozen=True)
class Drawn:
    """What a network makes of a few pairs.

    Attributes:
        pair: as `PairSampler.batch` gives them.
        image: (B, 3, H, W) final images, about [-1, 1], not clamped.
        rendered: raw images and depth.
    """

    pair: Mapping[str, Tensor]
    image: Tensor
    rendered: Rendered


class PairTask:
    """The part of a `training.loop.Task` that both phases have in common: all but the losses.

    Args:
        model: what is trained.
        train_frames: decoded training frames at the model's image size.
        val_frames: the same of the validation split, for figures and sheets; may be None.

    Raises:
        InputError: the frames are in another expression space than the model.
    """

    def __init__(
        self, config: PairConfig, model: Export3D, train_frames: FrameStore, val_frames: FrameStore | None = None
    ) -> None:
        self.settings: PairConfig = config
        self.model = model
        if train_frames.space != model.config.space:
            raise InputError(f"the training data is in {train_frames.space}, the model expects {model.config.space}")
        self.module: nn.Module = model
        self.sampler = self._sampler(train_frames)
        self.val = val_frames
        self.perceptual: Perceptual | None = None
        if config.backbone != "none":
            self.perceptual = load_perceptual(config.backbone, config.backbone_file, config.heads_file)

    def prepare(self, device: torch.device) -> None:
        """Move the perceptual network and all frames to the training device."""
        if self.perceptual is not None:
            self.perceptual = self.perceptual.to(device)
        if device.type != self.sampler.store.device.type:
            self.sampler = self._sampler(self.sampler.store.to(device))

    def batch(self, images_seen: int, batch_size: int, rank: int, world: int) -> Mapping[str, Any]:
        """Pairs by number, with one generator seed for the ray jitter of this share."""
        return {**self.sampler.batch(images_seen, batch_size, rank, world), "jitter": images_seen * world + rank}

    def draw(self, batch: Mapping[str, Any], superres: bool = True) -> Output:
        """The model's forward pass on a batch, ray samples jittered."""
        source: Tensor = batch["source"]
        jitter = torch.Generator(source.device).manual_seed(int(batch["jitter"]))
        output: Output = self.model(
            source,
            batch["expression"],
            batch["camera"],
            batch["source_camera"],
            batch["source_expression"],
            generator=jitter,
            superres=superres,
        )
        return output

    def compare(
        self, output: Output, batch: Mapping[str, Any], weights: ReconstructionWeights | None = None
    ) -> dict[str, Tensor]:
        """Eq. 11 and, where the model has a flow, its landmark error: each weighted term, and `total`."""
        emphasis = self.settings.face_emphasis
        weight = face_weight(batch["landmarks"], batch["driving"].shape[-1], emphasis) if emphasis else None
        terms = reconstruction(
            output.image,
            output.rendered.raw,
            batch["driving"],
            self.perceptual,
            weights or self.settings.weights,
            weight,
        )
        if output.flow is not None and self.settings.flow:
            half = self.model.config.render.half_extent
            before, after = (batch["source_landmarks"], batch["source_camera"]), (batch["landmarks"], batch["camera"])
            terms["flow"] = self.settings.flow * flow_error(output.flow, *before, *after, half)
            terms["total"] = terms["total"] + terms["flow"]
        return terms

    def drawn(self, ema: nn.Module, count: int) -> Iterator[Drawn]:
        """What the averaged network makes of fixed validation pairs (training pairs where there are none)."""
        sampler = PairSampler(self.val or self.sampler.store, seed=1, mirror=False, augment=False, still_fraction=0.0)
        device = next(self.module.parameters()).device
        for start in range(0, count, _AT_ONCE):
            batch = sampler.batch(start, min(_AT_ONCE, count - start))
            pair = {name: value.to(device) for name, value in batch.items()}
            features = ema.encode(pair["source"], pair["source_camera"], pair["source_expression"])  # type: ignore[operator]
            planes = ema.planes(features, pair["expression"])  # type: ignore[operator]
            rendered: Rendered = ema.render(planes, pair["camera"])  # type: ignore[operator]
            yield Drawn(pair, ema.finish(planes, pair["camera"], rendered), rendered)  # type: ignore[operator]

    def validate(self, ema: nn.Module) -> Mapping[str, float]:
        """Mean figures of the averaged network on fixed pairs of the validation split; empty where there is none."""
        if self.val is None:
            return {}
        found: dict[str, list[Tensor]] = {}
        for drawn in self.drawn(ema, _VALIDATED):
            for name, values in self.figures(drawn).items():
                found.setdefault(name, []).append(values)
        return {name: float(torch.cat(values).mean()) for name, values in found.items()}

    def figures(self, drawn: Drawn) -> dict[str, Tensor]:
        """Figures (B,) of a few pairs: PSNR (dB, of [0, 1] images), ours and copying the source."""
        target = (drawn.pair["driving"] + 1) / 2
        return {
            "psnr": _psnr((drawn.image.clamp(-1, 1) + 1) / 2, target),
            "psnr_copy": _psnr((drawn.pair["source"] + 1) / 2, target),
        }

    def sheet(self, ema: nn.Module) -> NDArray[np.uint8]:
        """Rows of source, driving, ours, raw and depth for validation pairs (training pairs where there are none)."""
        rows = []
        for found in self.drawn(ema, self.settings.sheet_pairs):
            size, rendered = found.image.shape[-1], found.rendered
            enlarged = [resize(x, size) for x in (rendered.raw, 1 - 2 * _unit(rendered.depth).expand(-1, 3, -1, -1))]
            pictures = (found.pair["source"], found.pair["driving"], found.image, *enlarged)
            rows += [[to_uint8(x[i].clamp(-1, 1)) for x in pictures] for i in range(len(found.image))]
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


def load_frames(
    data: Path, size: int, pseudo: Sequence[Path] = (), cache: Path | None = None
) -> tuple[FrameStore, FrameStore | None]:
    """Decoded frames of `size` pixels of a prepared folder: of `train`, and of `val` where there is one.

    Args:
        pseudo: splits of pseudo-clips (`export3d pseudo-clips`) that join the training frames.
        cache: folder that keeps decoded frames between runs.
    """

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
    return clips, frames(data / "val", "val") if (data / "val").is_dir() else None


def export(checkpoint: Path, path: Path, phase: str) -> Path:
    """Averaged weights of a training state as a file that `load_pretrained` reads; `phase` is what made them."""
    state = load_state(checkpoint)
    model = Export3D(ModelConfig.from_dict(state.config["task"]["model"]))
    load_into(model, state.ema, what=str(checkpoint))
    return save_pretrained(model, path, {"images_seen": state.counters["images_seen"], "phase": phase})


def words(config: Any) -> dict[str, Any]:
    """A dataclass of settings as JSON-able words and numbers; paths as text."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}


def _psnr(image: Tensor, target: Tensor) -> Tensor:
    return -10 * (image - target).square().mean(dim=(1, 2, 3)).clamp_min(1e-10).log10()


def _unit(depth: Tensor) -> Tensor:
    low, high = depth.amin(dim=(1, 2, 3), keepdim=True), depth.amax(dim=(1, 2, 3), keepdim=True)
    return (depth - low) / (high - low).clamp_min(1e-6)
