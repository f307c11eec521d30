"""Phase two for the inside of mouths alone (`warping.inner_mouth`; not in the paper).

No image is rendered. The network sees frames without what lies between their lips, draws that, and is compared with the
frame: by absolute error, LPIPS, a discriminator that scores patches of the square, and the discriminator's features. Of
every other frame it sees the upper teeth too, as of a source that smiles. It never sees another frame of the person:
the closed lips of a source would tell it nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export3d.data.frame_window import Rotation
from export3d.data.frames import FrameStore
from export3d.data.pairs import Draw, PairSampler
from export3d.losses import adversarial, discrimination, r1_penalty
from export3d.model import Export3D
from export3d.training.pairs import PairConfig, PairTask, words
from export3d.training.task import OpponentConfig
from export3d.warping.inner_mouth import SIDE, InnerMouth, Square, opening
from export3d.warping.teeth import lip_gap, upper_row

_L1, _LPIPS, _ADVERSARIAL, _FEATURES = 0.6, 2.0, 0.1, 0.3
"""Weights of the losses."""
_R1, _R1_EVERY = 0.02, 8
"""Gamma of R1, and steps between two in which it is taken, with so many times its weight."""
_RAMP = 10_000
"""Images over which those of the discriminator grow to theirs."""
_LEAST = 0.008
"""Share of the square from which a mouth counts as open."""
_OPEN, _WIDE = 0.06, 0.22
"""Gap between the lips from which a frame is sampled, and from which it is wide, in distances of the outer eye
corners."""
_WIDE_SHARE = 2, 5
"""So many of so many frames are wide ones. They are rare; without them wide mouths are streaks below their teeth."""
_PATCH = 8
"""Pixels of the square per score of the discriminator, along each axis."""
_FINE = 4.0
"""How far the discriminator's input enlarges details: they are small, and tell most of what is drawn."""


def _nothing(module: nn.Module) -> Tensor:
    """The loss of a batch without open mouths, 0, with a gradient for each parameter, 0 too."""
    return torch.stack([parameter.sum() for parameter in module.parameters()]).sum() * 0.0


class PatchDiscriminator(nn.Module):
    """Scores patches of a square: real or drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            (
                nn.Conv2d(3 + 3 + 1, 48, 4, 2, 1),
                nn.Conv2d(48, 96, 4, 2, 1),
                nn.Conv2d(96, 160, 4, 2, 1),
                nn.Conv2d(160, 160, 3, 1, 1),
            )
        )
        for layer in self.layers:
            assert isinstance(layer, nn.Conv2d)
            nn.init.kaiming_normal_(layer.weight, 0.2)
        self.score = nn.Conv2d(160, 1, 3, 1, 1)

    def forward(self, square: Tensor, hole: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Squares (B, 3, s, s) and holes (B, 1, s, s) to the scores of the patches in the holes (N,), and features."""
        means = F.avg_pool2d(F.pad(square, (1, 1, 1, 1), "replicate"), 3, 1)
        x, features = torch.cat([square, _FINE * (square - means), 2.0 * hole - 1.0], dim=1), []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.score(x)[F.max_pool2d(hole, _PATCH) > 0.0], features


class MouthSampler(PairSampler):
    """Frames with open mouths, and some of those of `wide`."""

    wide: PairSampler | None = None

    def _draw(self, number: int) -> Draw:
        some, of = _WIDE_SHARE
        if self.wide is not None and number % of < some:
            return self.wide._draw(number)
        return super()._draw(number)


class MouthSide:
    """The opponent: a discriminator of drawn mouths."""

    def __init__(self, settings: OpponentConfig) -> None:
        self.module: nn.Module = PatchDiscriminator()
        self.settings = settings
        self.shown: tuple[Tensor, Tensor, Tensor] | None = None  # None: no mouth of the batch is open

    def losses(self, batch: Mapping[str, Any], step: int) -> Mapping[str, Tensor]:
        """Both logistic losses on what the task has just seen and drawn, and R1, per patch, when due."""
        due = step % _R1_EVERY == 0
        if self.shown is None:
            return dict.fromkeys(("real", "fake", *(["r1"] if due else []), "total"), _nothing(self.module))
        (seen, drawn, hole), self.shown = self.shown, None
        seen = seen.detach().requires_grad_(due)
        full = torch.autocast(seen.device.type, enabled=False) if due else contextlib.nullcontext()
        with full:  # second-order gradients need float32
            real = self.module(seen, hole)[0]
        terms = discrimination(real, self.module(drawn, hole)[0])
        total = terms["real"] + terms["fake"]
        if due:
            terms["r1"] = 0.5 * _R1 * r1_penalty(real, [seen]) * len(seen) / len(real)
            total = total + _R1_EVERY * terms["r1"]
        return {**terms, "total": total}


class MouthTask(PairTask):
    """The task, trained together with `opponent`; all but `warp.inner` stays as it is, bit for bit.

    Args:
        config: how pairs are sampled; driving frames alone are looked at.
        model: with `WarpConfig.inside`.
        train_frames, val_frames, seed: see `PairTask`.
        settings: those of the discriminator's optimiser.
    """

    sampler_class = MouthSampler

    def __init__(
        self,
        config: PairConfig,
        model: Export3D,
        train_frames: FrameStore | Rotation,
        val_frames: FrameStore | None,
        seed: int,
        settings: OpponentConfig,
    ) -> None:
        super().__init__(config, model, train_frames, val_frames, seed)
        assert model.warp is not None
        assert model.warp.inner is not None
        self.inner: InnerMouth = model.warp.inner
        model.requires_grad_(False)
        self.inner.requires_grad_(True)
        self.opponent = MouthSide(settings)
        self.config: Mapping[str, Any] = {"model": model.config.to_dict(), "adversarial": words(config)}

    def _pairs(self, frames: FrameStore) -> PairSampler:
        """As for other tasks, but of frames with open mouths, many of them wide; of any frames if none is open."""
        gap = lip_gap(frames.landmarks.float())
        parted, wide = (frames.found & (gap > least) for least in (_OPEN, _WIDE))
        sampler = super()._pairs(replace(frames, found=parted) if parted.any() else frames)
        if wide.any() and isinstance(sampler, MouthSampler):
            sampler.wide = super()._pairs(replace(frames, found=wide))
        return sampler

    def batch(self, images_seen: int, batch_size: int, rank: int, world: int) -> Mapping[str, Any]:
        """Pairs by number, see `PairSampler.batch`; of the source nothing is needed, nor the person's opacity."""
        return self.sampler.batch(images_seen, batch_size, rank, world)

    def losses(self, batch: Mapping[str, Any], images_seen: int) -> Mapping[str, Tensor]:
        """Losses on the frames of a batch whose mouths are open, each with its weight."""
        with torch.no_grad():
            places = batch["landmarks"].float()
            square = Square(places)
            seen, hole = square.seen(batch["driving"]), opening(square, places)
            hole[::2] *= 1.0 - upper_row(seen[::2], hole[::2])
            shown = hole.sum(dim=(1, 2, 3)) > _LEAST * SIDE**2
            seen, hole = seen[shown], hole[shown]
        if not len(hole):
            names = "l1", *([] if self.perceptual is None else ["lpips"]), "adversarial", "features", "total"
            return dict.fromkeys(names, _nothing(self.inner))
        drawn = torch.where(hole > 0.0, self.inner(seen, hole).float(), seen)
        area = hole.sum(dim=(1, 2, 3)).clamp_min(1.0)
        terms = {"l1": _L1 * ((drawn - seen).abs().mean(dim=1).sum(dim=(1, 2)) / area).mean()}
        if self.perceptual is not None:
            terms["lpips"] = _LPIPS * self.perceptual(drawn, seen).mean()
        ramp = min(1.0, images_seen / _RAMP)
        scores, features = self.opponent.module(drawn, hole)
        with torch.no_grad():
            _, wanted = self.opponent.module(seen, hole)
        terms["adversarial"] = ramp * _ADVERSARIAL * adversarial(scores)
        apart = [(one - other).abs().mean() / other.abs().mean() for one, other in zip(features, wanted, strict=True)]
        terms["features"] = ramp * _FEATURES * torch.stack(apart).mean()
        self.opponent.shown = seen, drawn.detach(), hole
        return {**terms, "total": torch.stack(list(terms.values())).sum()}

    def end_step(self) -> None:
        """Nothing to do: no planes are generated."""
