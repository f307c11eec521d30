"""Phase two: training against a camera-conditioned discriminator, from phase one's weights (Sec. 3.4, Eq. 12).

L_total = lambda_rec L_rec + lambda_adv L_adv. The paper trains the whole model. Others found that the discriminator
then damages the tri-plane (darkened faces, mouths that no longer follow) and trained the super-resolution only, which
is the default here. It can change the sharpness of an image and, with `warping.detail`, which pixels come from the
source, but not the volume or the flow that moves the source.

In each step both networks see the same pairs: the generator gets its gradient through the discriminator, and the
discriminator compares the driving frames with the images just rendered.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from export3d.config import variant
from export3d.data.frame_window import Rotation
from export3d.data.frames import FrameStore, space_of
from export3d.data.training_frames import load_frames
from export3d.discriminator import Discriminator, discriminator_config
from export3d.errors import ConfigError
from export3d.image import resize
from export3d.locations import as_place
from export3d.losses import adversarial, discrimination, r1_penalty
from export3d.model import Export3D, Output
from export3d.pretrained import adapt_resolution, load_pretrained
from export3d.training.loop import Result, train
from export3d.training.loop_config import LoopConfig
from export3d.training.mouths import MouthTask
from export3d.training.pairs import Drawn, PairConfig, PairTask, check_space, export, words
from export3d.training.task import OpponentConfig
from export3d.weights.file import load_into
from export3d.weights.hub import locate


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig(PairConfig):
    """Settings of phase two, beside the loop's and those of `PairConfig`.

    Attributes:
        adv_trainable: "sr": the super-resolution alone is trained, all else stays as it is, bit for bit; "all": the
            whole model, as in the paper (a pre-trained expression encoder stays frozen); "mouth": what draws the inside
            of mouths alone, which weights without it get (`training.mouths`, with losses and a discriminator of its
            own: of the settings of both only `backbone`, its files, `d_lr` and `d_betas` count).
        lambda_rec: weight of the reconstruction in Eq. 12; the paper's.
        lambda_adv: weight of the adversarial loss; the paper's.
        discriminator: its size, see `export3d.discriminator.PRESETS`.
        dual: it also looks at the raw image, as EG3D's; the paper's looks at the final image alone.
        d_lr: learning rate of the discriminator; the paper's.
        d_betas: of its Adam; those of StyleGAN2-ADA and EG3D.
        r1_gamma: gamma of R1; EG3D's. 0 leaves R1 out.
        r1_every: steps between two in which R1 is taken, with so many times its weight.
    """

    adv_trainable: Literal["sr", "all", "mouth"] = "sr"
    lambda_rec: float = 1.0
    lambda_adv: float = 0.01
    discriminator: Literal["full", "small", "tiny"] = "full"
    dual: bool = True
    d_lr: float = 1e-5
    d_betas: tuple[float, float] = (0.0, 0.99)
    r1_gamma: float = 1.0
    r1_every: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.d_lr > 0 or not all(0 <= beta < 1 for beta in self.d_betas):
            raise ConfigError(f"d_lr {self.d_lr} must be positive and d_betas {self.d_betas} lie in [0, 1)")
        if min(self.lambda_rec, self.lambda_adv, self.r1_gamma) < 0.0 or self.r1_every < 1:
            raise ConfigError("lambda_rec, lambda_adv and r1_gamma must not be negative, and r1_every at least 1")


@dataclass(frozen=True)
class Shown:
    """The discriminator's inputs in one step, detached from the generator.

    Attributes:
        real, fake: final images (B, 3, H, H) and raw images (B, 3, R, R): driving frames, and rendered images.
        camera: (B, 25) of both.
    """

    real: tuple[Tensor, Tensor]
    fake: tuple[Tensor, Tensor]
    camera: Tensor


class DiscriminatorSide:
    """The opponent: a discriminator trained against the generator."""

    def __init__(self, config: AdversarialConfig, image_size: int) -> None:
        self.config = config
        self.sizes = replace(discriminator_config(config.discriminator, image_size), dual=config.dual)
        self.module: nn.Module = Discriminator(self.sizes)
        self.settings = OpponentConfig(lr=config.d_lr, betas=config.d_betas)
        self.shown: Shown | None = None

    def losses(self, batch: Mapping[str, Any], step: int) -> Mapping[str, Tensor]:
        """Both logistic losses on the images that the task has just rendered, R1 when due, and the mean scores.

        `r1` is gamma / 2 |grad D|^2; `total` contains it times `r1_every`.
        """
        assert self.shown is not None, "the losses of the task come first"
        shown, self.shown = self.shown, None
        due = self.config.r1_gamma > 0.0 and step % self.config.r1_every == 0
        real_images = [image.detach().requires_grad_(due) for image in shown.real]
        full = torch.autocast(shown.camera.device.type, enabled=False) if due else contextlib.nullcontext()
        with full:  # second-order gradients need float32
            real = self.module(*real_images, shown.camera)
        fake = self.module(*shown.fake, shown.camera)
        terms = discrimination(real, fake)
        total = terms["real"] + terms["fake"]
        if due:
            seen = real_images if self.config.dual else real_images[:1]
            terms["r1"] = 0.5 * self.config.r1_gamma * r1_penalty(real, seen)
            total = total + self.config.r1_every * terms["r1"]
        return {**terms, "score_real": real.mean(), "score_fake": fake.mean(), "total": total}


class AdversarialTask(PairTask):
    """The task of phase two, trained together with `opponent`.

    Args:
        former: the model of phase one; it is copied and adapted to this run's image size.
        train_frames, val_frames: see `PairTask`.
        seed: of the pairs and of the discriminator's initial weights.

    `config` contains, JSON-able, what rebuilds the module and this run's settings.
    """

    settings: AdversarialConfig

    def __init__(
        self,
        config: AdversarialConfig,
        former: Export3D,
        train_frames: FrameStore | Rotation,
        val_frames: FrameStore | None = None,
        seed: int = 0,
    ) -> None:
        torch.manual_seed(seed)
        model = Export3D(config.sized(former.config))
        load_into(model, adapt_resolution(former.state_dict(), model), what="the weights of phase one")
        super().__init__(config, model, train_frames, val_frames, seed)
        if config.adv_trainable == "sr":
            model.requires_grad_(False)
            model.superres.requires_grad_(True)
            if model.warp is not None and model.warp.detail is not None:
                model.warp.detail.requires_grad_(True)
        elif model.config.expression.frozen and model.warp is not None and model.warp.motion is not None:
            model.warp.motion.requires_grad_(False)  # as in phase one
        self.keep_frozen()
        self.opponent = DiscriminatorSide(config, model.config.image_size)
        self.config: Mapping[str, Any] = {
            "model": model.config.to_dict(),
            "adversarial": words(config),
            "discriminator": asdict(self.opponent.sizes),
        }

    def losses(self, batch: Mapping[str, Any], images_seen: int) -> Mapping[str, Tensor]:
        """Eq. 12 on one batch, each term with its weight; with "all" the tri-plane EMA is updated too (Eq. 14)."""
        output = self._forward(batch)
        assert output.image is not None
        weights = self.settings.weights
        if self.settings.adv_trainable == "sr":  # the raw image cannot change
            weights = replace(weights, lpips_raw=0.0)
        terms = {name: self.settings.lambda_rec * term for name, term in self.compare(output, batch, weights).items()}
        fake, camera = (output.image, output.rendered.raw), batch["camera"]
        terms["adversarial"] = self.settings.lambda_adv * adversarial(self.opponent.module(*fake, camera))
        terms["total"] = terms["total"] + terms["adversarial"]
        self.opponent.shown = Shown(self._real(batch, output), (fake[0].detach(), fake[1].detach()), camera)
        if self.settings.adv_trainable == "all":
            self.collect(output)
        return terms

    def figures(self, drawn: Drawn) -> dict[str, Tensor]:
        """As `PairTask.figures`, and the discriminator's scores of driving and rendered images."""
        found = super().figures(drawn)
        target, raw = drawn.pair["driving"], drawn.rendered.raw
        discriminator, camera = self.opponent.module, drawn.pair["camera"]
        found["score_real"] = discriminator(target, resize(target, raw.shape[-1]), camera)
        found["score_fake"] = discriminator(drawn.image, raw, camera)
        return found

    def _forward(self, batch: Mapping[str, Any]) -> Output:
        """The model's output; with "sr" only the super-resolution records what a gradient needs."""
        if self.settings.adv_trainable == "all":
            return self.draw(batch)
        with torch.no_grad():
            output = self.draw(batch, superres=False)
        image = self.model.finish(output.planes, batch["camera"], output.rendered)
        return replace(output, image=image)

    @staticmethod
    def _real(batch: Mapping[str, Any], output: Output) -> tuple[Tensor, Tensor]:
        assert output.image is not None
        target: Tensor = batch["driving"]
        return resize(target, output.image.shape[-1]), resize(target, output.rendered.raw.shape[-1])


def check_mouth(config: AdversarialConfig, former: Export3D) -> None:
    """Raise `ConfigError` unless what draws the inside of mouths can be trained for this model."""
    if former.config.warp is None or not former.config.warp.teeth:
        raise ConfigError(
            "model.trainable is mouth, but these weights have no warp that keeps teeth; start from weights such as base"
        )
    if "warp" in config.freeze:
        raise ConfigError("model.trainable is mouth, a part of the warp, but model.freeze names warp; leave one out")


def mouth_task(
    config: AdversarialConfig,
    former: Export3D,
    train_frames: FrameStore | Rotation,
    val_frames: FrameStore | None,
    seed: int,
) -> MouthTask:
    """The task of phase two for the inside of mouths; arguments as of `AdversarialTask`, errors of `check_mouth`."""
    check_mouth(config, former)
    torch.manual_seed(seed)
    model = Export3D(config.sized(variant(former.config, "inside")))
    known = adapt_resolution(former.state_dict(), model)
    load_into(model, {**model.state_dict(), **known}, what="the weights of phase one")
    settings = OpponentConfig(lr=config.d_lr, betas=config.d_betas)
    return MouthTask(config, model, train_frames, val_frames, seed, settings)


def run(
    data: Path | str,
    out: Path,
    config: AdversarialConfig,
    loop: LoopConfig,
    *,
    from_pretrained: Path | str,
    resume: bool = True,
    pseudo: Sequence[Path | str] = (),
    cache: Path | None = None,
) -> Result:
    """Train phase two on a prepared folder (with `train` and, where there is one, `val`) into the run folder `out`.

    The averaged weights are written to `out/weights.safetensors` at the end.

    Args:
        data: the folder or its URL.
        from_pretrained: phase one's weights (see `weights.hub.locate`), which also determine the architecture. A
            resumed run loads its own state instead.
        pseudo: splits of pseudo-clips (`export3d pseudo-clips`), folders or URLs, to train on beside the real clips.
        cache: folder that keeps decoded frames between runs.
    """
    former = load_pretrained(locate(from_pretrained)[0])
    check_space(space_of(as_place(data)), former.config)
    size = config.sized(former.config).image_size
    if config.adv_trainable == "mouth":  # both refuse before minutes of decoding
        check_mouth(config, former)
    else:
        discriminator_config(config.discriminator, size)
    clips, val = load_frames(data, size, pseudo, cache, config.memory)
    task: AdversarialTask | MouthTask
    if config.adv_trainable == "mouth":
        task = mouth_task(config, former, clips, val, loop.seed)
    else:
        task = AdversarialTask(config, former, clips, val, loop.seed)
    result = train(task, out, loop, opponent=task.opponent, resume=resume)
    if not distributed.is_initialized() or distributed.get_rank() == 0:
        export(result.checkpoint, out / "weights.safetensors", "adversarial", loop.weights_part_mb)
    return result
