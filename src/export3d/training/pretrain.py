"""Expression pre-training: CLeBS on clips (Sec. 3.1, Eq. 1), before the generator is trained.

In this stage an "image" of the loop is a clip of T frames. `batch_size` 8 is the paper's batch of 8 positives with 32
negatives each; by default every frame of a clip is the positive once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as distributed
from numpy.typing import NDArray
from torch import Tensor, nn

from export3d.data.contrastive import ContrastConfig, ContrastSampler, RotatingContrast, cropped
from export3d.data.frame_window import Rotation, rows_of_block
from export3d.data.frames import FrameStore
from export3d.data.shards import has_split
from export3d.errors import ConfigError, InputError
from export3d.evaluation.appearance.probes import retrieval_accuracy, spread_frames
from export3d.expression.contrastive import CLeBS, CLeBSConfig, ResNetSE18, contrastive_loss
from export3d.expression.directions import measure_ranges, settle
from export3d.expression.encoder import ExpressionConfig, ExpressionEncoder
from export3d.files import make_folder
from export3d.image import contact_sheet, to_uint8
from export3d.locations import as_place, inside
from export3d.pretrained import save_encoder
from export3d.training.loop import Result, train
from export3d.training.loop_config import LoopConfig
from export3d.training.regularisers import ReaderConfig, save_reader
from export3d.training.state import load_state
from export3d.weights.file import load_into

FRAMES_PX = 128
"""Size of the frames from which close crops of the face are cut; a face is about 70 pixels wide in them."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Settings of the pre-training, beside the loop's.

    Attributes:
        model: both towers and the objective; the data sets the number of inputs of the expression.
        frames: how frames are drawn and varied.
        standardise: "each": every coefficient is scaled to unit deviation over the training data; "together": all are
            by one factor, so that scores that hardly move in speech, in which people differ all the same, stay small;
            "none": coefficients enter unchanged, as in the paper.
        settle: after training, choose the axes, order, signs and scale of the directions (`expression.directions`);
            False: the directions stay as trained, as in the paper, and only their natural ranges are measured.
        pseudo_share: share of the samples that are pseudo-clips, where there are any.
        memory: GB of decoded training frames held at once; if there are more, a window moves through them
            (`data.frame_window`). None holds all frames.
    """

    model: CLeBSConfig = field(default_factory=CLeBSConfig)
    frames: ContrastConfig = field(default_factory=ContrastConfig)
    standardise: Literal["each", "together", "none"] = "together"
    settle: bool = True
    pseudo_share: float = 0.5
    memory: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.pseudo_share <= 1.0:
            raise ConfigError(f"pseudo_share is {self.pseudo_share}; give a number from 0 to 1")
        if self.memory is not None and not self.memory > 0.0:
            raise ConfigError(f"memory must be positive, got {self.memory}")


class PretrainTask:
    """The task of expression pre-training.

    Args:
        clips: decoded training frames, all of them or a window on them.
        pseudo: decoded frames of pseudo-clips.
        val: decoded frames of the validation split, for metrics and sheets; None: there is none.
    """

    def __init__(
        self,
        config: PretrainConfig,
        clips: FrameStore | Rotation,
        pseudo: Sequence[FrameStore] = (),
        val: FrameStore | None = None,
    ) -> None:
        if config.model.expression.frozen or not config.model.expression.basis:
            raise ConfigError(
                "pre-training trains an encoder with a basis, and not a frozen one; change basis or frozen"
            )
        expression = replace(config.model.expression, inputs=clips.expression.shape[1])
        config = replace(config, model=replace(config.model, expression=expression))
        self.settings = config
        self.config: Mapping[str, Any] = {"pretrain": asdict(config)}
        for store in (*pseudo, *([val] if val else [])):
            if store.space != clips.space:
                raise InputError(f"clips in {clips.space} and in {store.space} cannot be mixed; prepare them alike")
        self.clips, self.pseudo = clips, list(pseudo)
        self.sampler = self._sampler()
        torch.manual_seed(0)
        self.clebs = CLeBS(config.model)
        seen = videos(clips if isinstance(clips, FrameStore) else clips.store)
        deviation = seen.std(0, correction=0)
        if config.standardise == "together":
            deviation = deviation.square().mean().sqrt().expand_as(deviation)
        if config.standardise != "none":
            self.clebs.expression.standardise(seen.mean(0), deviation)
        self.module: nn.Module = self.clebs
        self.val = val

    def prepare(self, device: torch.device) -> None:
        """Move all frames, or the window on them, to the training device."""
        self.clips, self.pseudo = self.clips.to(device), [store.to(device) for store in self.pseudo]
        self.sampler = self._sampler()

    def _sampler(self) -> ContrastSampler | RotatingContrast:
        frames, share, count = self.settings.frames, self.settings.pseudo_share, len(self.pseudo)
        if isinstance(self.clips, Rotation):
            return RotatingContrast(self.clips, frames)
        shares = [1.0 - share, *([share / count] * count)] if count else []
        return ContrastSampler([self.clips, *self.pseudo], frames, shares)

    def compile(self) -> None:
        """Compile both towers."""
        self.module.compile()

    def batch(self, images_seen: int, batch_size: int, rank: int, world: int) -> Mapping[str, Any]:
        """Groups of clips."""
        return {"groups": self.sampler.batch(images_seen, batch_size, rank, world)}

    def losses(self, batch: Mapping[str, Any], images_seen: int) -> Mapping[str, Tensor]:
        """The contrastive loss and the top-5 retrieval accuracy, means over clips."""
        model = self.settings.model
        device = next(self.module.parameters()).device
        total, top5, clips = torch.zeros((), device=device), torch.zeros((), device=device), 0
        for group in batch["groups"]:
            image, expression = self.clebs(group["image"], group["expression"])
            count = len(image)
            total = total + count * contrastive_loss(
                image, expression, model.temperature, model.objective, group["same"], group.get("positive")
            )
            with torch.no_grad():
                top5 += sum(retrieval_accuracy(i, e, 5) for i, e in zip(image, expression))
            clips += count
        return {"total": total / clips, "top5": top5 / clips}

    def end_step(self) -> None:
        """Nothing to do."""

    def validate(self, ema: nn.Module) -> Mapping[str, float]:
        """Loss and retrieval accuracy on evenly spread frames of held-out clips, without augmentation."""
        if self.val is None:
            return {}
        model, frames = self.settings.model, self.settings.frames
        losses, top1, top5 = [], [], []
        for rows in held_out(self.val, frames.frames):
            image, expression = self._embed(ema, self.val, rows)
            losses.append(float(contrastive_loss(image[None], expression[None], model.temperature, model.objective)))
            top1.append(retrieval_accuracy(image, expression, 1))
            top5.append(retrieval_accuracy(image, expression, 5))
        if not losses:
            return {}
        return {"loss": float(np.mean(losses)), "top1": float(np.mean(top1)), "top5": float(np.mean(top5))}

    def sheet(self, ema: nn.Module) -> NDArray[np.uint8]:
        """Rows of eight frames of a held-out clip; below each, the frame whose beta' is nearest to the image."""
        frames = self.settings.frames.frames
        store = self.clips if isinstance(self.clips, FrameStore) else self.clips.store
        store = self.val if self.val and held_out(self.val, frames) else store
        rows_of_images = []
        for rows in (held_out(store, frames) or held_out(store, 2))[:6]:
            image, expression = self._embed(ema, store, rows)
            nearest = (image @ expression.mT).argmax(1)
            shown = np.linspace(0, len(rows) - 1, 8).astype(int)
            crops = to_uint8(cropped(store, torch.from_numpy(rows), 96, self.settings.frames.crop).cpu())
            rows_of_images += [[crops[i] for i in shown], [crops[int(nearest[i])] for i in shown]]
        return contact_sheet(rows_of_images)

    def _embed(self, ema: nn.Module, store: FrameStore, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Unit embeddings (T, d) of images and expressions, on the CPU."""
        device = next(ema.parameters()).device
        at = torch.from_numpy(rows)
        drawn = self.settings.frames
        crops = cropped(store, at.to(store.device), drawn.size, drawn.crop).to(device)
        image, expression = ema(crops[None], store.expression[at].to(device)[None])
        return nn.functional.normalize(image[0].float(), dim=1).cpu(), nn.functional.normalize(
            expression[0], dim=1
        ).cpu()


def run(
    data: Path | str,
    out: Path,
    config: PretrainConfig,
    loop: LoopConfig,
    *,
    pseudo: Sequence[Path | str] = (),
    resume: bool = True,
    cache: Path | None = None,
) -> Result:
    """Pre-train on a prepared folder (with `train` and, where there is one, `val`) into the run folder `out`.

    At the end the averaged expression encoder is written to `out/clebs.safetensors`, by default with its directions
    settled on the training videos, and the image encoder to `out/reader.safetensors`.

    Args:
        data: the folder or its URL.
        pseudo: splits of pseudo-clips (`export3d pseudo-clips`), folders or URLs, to train on beside the real clips.
        cache: folder that keeps decoded frames between runs.
    """
    place = as_place(data)
    if not has_split(place, "train"):
        raise InputError(f"{data} has no folder 'train'; make one with: export3d prepare CLIPS -o DIR")

    size = config.frames.size if config.frames.crop == "whole" else FRAMES_PX

    def frames(split: Path | str, name: str) -> FrameStore:
        if cache is None:
            return FrameStore.load(split, size)
        return FrameStore.load(split, size, cache=make_folder(cache) / f"{name}-{size}.safetensors")

    split, rows = inside(place, "train"), None
    if config.memory is not None:
        if cache is not None or pseudo:
            raise ConfigError("data.memory moves a window through the clips alone; leave --cache and --pseudo out")
        rows = rows_of_block(config.memory, [split], size)
    clips = frames(split, "train") if rows is None else Rotation([split], size, rows)
    val = frames(inside(place, "val"), "val") if has_split(place, "val") else None
    made = [frames(folder, f"pseudo{number}") for number, folder in enumerate(pseudo)]
    result = train(PretrainTask(config, clips, made, val), out, loop, resume=resume)
    if not distributed.is_initialized() or distributed.get_rank() == 0:
        first = clips if isinstance(clips, FrameStore) else clips.to("cpu").at(0)
        export(result, out / "clebs.safetensors", first)
        export_reader(result.checkpoint, out / "reader.safetensors")
    return result


def export(result: Result, path: Path, clips: FrameStore) -> Path:
    """Write the averaged expression encoder of a run for `load_encoder`; its directions are measured on `clips`."""
    state = load_state(result.checkpoint)
    encoder = ExpressionEncoder(ExpressionConfig(**state.config["task"]["pretrain"]["model"]["expression"]))
    load_into(encoder, _part(state.ema, "expression."), what=str(result.checkpoint))
    finish = settle if state.config["task"]["pretrain"].get("settle", True) else measure_ranges
    finish(encoder, videos(clips))
    info = {"clips_seen": state.counters["images_seen"], "validation": result.validation}
    return save_encoder(encoder, path, info)


def export_reader(checkpoint: Path, path: Path) -> Path:
    """Write the averaged image encoder of a training state, for `regularisers.ExpressionError.load`."""
    state = load_state(checkpoint)
    settings = state.config["task"]["pretrain"]
    model = settings["model"]
    sizes = ReaderConfig(
        width=model["width"],
        d=model["expression"]["d"],
        groups=model["groups"],
        size=settings["frames"]["size"],
        crop=settings["frames"].get("crop", "face"),
    )
    reader = ResNetSE18(sizes.width, sizes.d, sizes.groups)
    load_into(reader, _part(state.ema, "image."), what=str(checkpoint))
    return save_reader(reader, sizes, path)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def videos(store: FrameStore) -> Tensor:
    """(N, E) coefficients of the video frames in which a face was found."""
    moving = torch.tensor([clip.kind == "video" for clip in store.clips], device=store.device)
    return store.expression[moving[store.clip] & store.found]


def held_out(store: FrameStore, frames: int) -> list[NDArray[np.int64]]:
    """Rows (T,) of evenly spread frames of each video clip with a face in at least `frames` frames."""
    found = store.found.cpu().numpy()
    clips = [clip for clip in store.clips if clip.kind == "video" and found[clip.rows].sum() >= frames]
    return [clip.start + spread_frames(found[clip.rows], frames) for clip in clips]
