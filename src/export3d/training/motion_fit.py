"""Fits the motion of landmarks (`warping.landmark_motion`) without pictures: to landmarks, then to scores.

Pairs of frames of one person tell where landmarks go. They say little of how another face shows the same expression,
and small errors, such as a corner of the mouth one pixel too low, can read as another expression. What landmarks read
as is known: the tracker takes its scores from them (`face.scores`). So moved landmarks are read, those of pairs and
those of faces with another person's expression and camera, and compared with the expression that was asked for. Reading
says little of depth and of landmarks away from lips, eyes and brows: those go on as they were fitted to landmarks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy

import torch
from torch import Tensor
from tqdm import tqdm

from export3d.camera import projected
from export3d.data.frame_window import RotatingSampler
from export3d.data.pairs import PairSampler
from export3d.expression.encoder import ExpressionEncoder
from export3d.face.landmark_sets import BROWS, EYELIDS, IRISES, LIPS
from export3d.face.scores import ScoreReader
from export3d.warping.landmark_motion import LandmarkMotion
from export3d.warping.losses import landmark_error

_PAIRS, _READ_PAIRS = 256, 64
"""Pairs a step: of landmarks alone, and where they are read too, which costs more."""
_LANDMARK_LR, _SCORE_LR = 2e-3, 1.5e-3
_SCORES = 0.15
"""Weight of the mean absolute error of the scores of pairs, and of others; that of landmarks is in image widths."""
_KEPT, _NEAR = 1.0, 0.02
"""Weight of the mean distance from where landmarks went before, and from which distance on to lips, eyes and brows it
counts, scene units."""


class MotionFit:
    """One fit.

    Args:
        motion: what is fitted; its parameters are left as trainable as they are.
        encoder: gives beta' where landmarks move by it; not trained.
        sampler: of pairs; their images are not used.
        half_extent: of the planes, scene units.
        progress: whether to show a bar.
    """

    def __init__(
        self,
        motion: LandmarkMotion,
        encoder: ExpressionEncoder,
        sampler: PairSampler | RotatingSampler,
        half_extent: float,
        progress: bool = False,
    ) -> None:
        self._motion, self._encoder, self._sampler, self._half_extent = motion, encoder, sampler, half_extent
        self._progress = progress

    def to_landmarks(self, steps: int) -> list[float]:
        """Fit to where landmarks are in the driving frame; returns the `landmark_error` of each step."""

        def loss(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
            error = landmark_error(self._moved(batch), batch["landmarks"], batch["camera"])
            return error, error

        return self._fit("landmarks", steps, _PAIRS, _LANDMARK_LR, loss)

    def to_scores(self, steps: int) -> list[float]:
        """Fit to landmarks and to what they read as, see above; returns the `landmark_error` of each step.

        Expressions are in arkit52.
        """
        reader = ScoreReader().to(self._sampler.store.device)
        before, average = deepcopy(self._motion).requires_grad_(False), self._motion.average
        read = [*LIPS, *EYELIDS, *BROWS, *(number for iris in IRISES for number in iris)]
        kept = torch.ones_like(average)
        kept[:, :2] = (torch.cdist(average[:, :2], average[read, :2]).amin(dim=1) > _NEAR).float()[:, None]

        def loss(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
            points = self._moved(batch)
            error = landmark_error(points, batch["landmarks"], batch["camera"])
            other = {**batch, **{name: batch[name].roll(1, dims=0) for name in ("expression", "camera")}}
            total = error
            for moved, asked in ((points, batch), (self._moved(other), other)):
                scores = reader(projected(moved, asked["camera"])[0])
                away = ((moved - self._moved(asked, before)) * kept).abs().sum(dim=-1).mean()
                total = total + _SCORES * (scores - asked["expression"]).abs().mean() + _KEPT * away
            return total, error

        return self._fit("scores", steps, _READ_PAIRS, _SCORE_LR, loss)

    def _moved(self, batch: Mapping[str, Tensor], by: LandmarkMotion | None = None) -> Tensor:
        """(B, L, 3) landmarks of the sources, moved by the driving expressions; `by` another motion."""
        motion = by or self._motion
        with torch.no_grad():
            own, asked = (
                motion.input(self._encoder(batch[name]), batch[name]) for name in ("source_expression", "expression")
            )
        face = motion.face(own, batch["source_landmarks"], batch["source_camera"], self._half_extent)
        moved: Tensor = motion(asked, face)
        return moved

    def _fit(
        self, to: str, steps: int, pairs: int, lr: float, loss: Callable[[Mapping[str, Tensor]], tuple[Tensor, Tensor]]
    ) -> list[float]:
        """The second value of `loss` in each step."""
        trained = [parameter.requires_grad for parameter in self._motion.parameters()]
        optimizer = torch.optim.AdamW(self._motion.requires_grad_(True).parameters(), lr=lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=max(steps, 20), pct_start=0.1)
        errors = []
        what = f"fitting the motion of landmarks to {to}"
        for step in tqdm(range(steps), what, unit="step", dynamic_ncols=True, disable=not self._progress):
            total, error = loss(self._sampler.batch(step * pairs, pairs))
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(total)
            optimizer.step()
            schedule.step()
            errors.append(float(error.detach()))
        for parameter, was in zip(self._motion.parameters(), trained):
            parameter.requires_grad_(was)
        return errors
