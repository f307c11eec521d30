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
from torch import Tensor

from export3d.checkpoint import latest_state, load_into
from export3d.config import ModelConfig, preset, variant
from export3d.data.frames import FrameStore
from export3d.errors import ConfigError
from export3d.expression.encoder import ExpressionEncoder
from export3d.losses import flow_error
from export3d.model import Export3D
from export3d.pretrained import inherit, load_encoder, load_pretrained
from export3d.training.loop import LoopConfig, Result, train
from export3d.training.pairs import PairConfig, PairTask, export, load_frames, words

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig(PairConfig):
    """Settings of phase one, beside the loop's and those of `PairConfig`.

    Attributes:
        preset: model preset.
        variants: changes to the preset by name, see `export3d.config.VARIANTS`; "clebs" needs a pre-trained encoder.
        expression: the pre-trained encoder's file for "clebs"; None takes the packaged one.
        superres: train the super-resolution too; without it only the raw image is compared.
        flow_steps: steps in which a fresh run first fits the flow's field to 256 pairs of landmarks each, without
            pictures: a minute that saves many thousand images.
    """

    preset: str = "base"
    variants: tuple[str, ...] = ()
    expression: Path | None = None
    superres: bool = True
    flow_steps: int = 1000

    def model_config(self) -> ModelConfig:
        """The preset with this run's variants, image size and samples a ray."""
        config = preset(self.preset)
        for name in self.variants:
            config = variant(config, name)
        return self.sized(config)


class ReconstructionTask(PairTask):
    """What `training.loop` trains in phase one.

    Args:
        train_frames: decoded training frames at the model's image size.
        val_frames: the same of the validation split, for figures and sheets; may be None.

    `config` holds, as JSON, what rebuilds the module and this run's settings.
    """

    settings: ReconstructionConfig

    def __init__(
        self, config: ReconstructionConfig, train_frames: FrameStore, val_frames: FrameStore | None = None
    ) -> None:
        self.model_config = config.model_config()
        self.config: Mapping[str, Any] = {"model": self.model_config.to_dict(), "reconstruction": words(config)}
        torch.manual_seed(0)
        super().__init__(config, Export3D(self.model_config), train_frames, val_frames)
        if self.model_config.expression.frozen:
            self._take_encoder(load_encoder(config.expression), config.expression)
        else:
            seen = train_frames.expression
            self.model.expression.standardise(seen.mean(0), seen.std(0, correction=0))
        if self.model_config.expression.frozen and self.model.generator.flow_field is not None:
            # What the field sees will not change any more, and the small batches of the loop only blur its fit.
            self.model.generator.flow_field.requires_grad_(False)

    def _take_encoder(self, encoder: ExpressionEncoder, path: Path | None) -> None:
        """Put a pre-trained encoder into the model; it is never trained again."""
        wanted, given = self.model_config.expression, replace(encoder.config, frozen=True)
        if given != wanted:
            raise ConfigError(
                f"the encoder {path or 'in the package'} has n {given.n}, d {given.d} and {given.inputs} inputs, the "
                f"model wants n {wanted.n}, d {wanted.d} and {wanted.inputs}; pre-train one of these sizes"
            )
        load_into(self.model.expression, encoder.state_dict(), what=str(path or "the packaged encoder"))

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

    def losses(self, batch: Mapping[str, Any], images_seen: int) -> Mapping[str, Tensor]:
        """Eq. 11 on one batch; also folds the generated planes into the tri-plane EMA (Eq. 14)."""
        output = self.draw(batch, superres=self.settings.superres)
        terms = self.compare(output, batch)
        self.model.generator.average.update(output.generated)
        return terms


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
    clips, val = load_frames(data, config.model_config().image_size, pseudo, cache)
    task = ReconstructionTask(config, clips, val)
    if init_from is not None:
        seen = task.sampler.store.expression
        inherit(task.model, load_pretrained(init_from), seen[:: max(1, len(seen) // 5000)])
    if latest_state(out / "checkpoints") is None:
        task.fit_flow()
    result = train(task, out, loop, resume=resume)
    if not distributed.is_initialized() or distributed.get_rank() == 0:
        export(result.checkpoint, out / "weights.safetensors", "reconstruction")
    return result
