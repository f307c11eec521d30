"""Eyes close as far as their blink scores say, each on its own, and sliders move their own part of the face.

None of this is in the paper.

In videos a blink comes with eyeLookDown: the upper eyelid and the gaze go down together, and that is what the model
has learned. A score of eyeBlink alone closes an eye half, and wide eyes less. The ten directions also tie the eyes
together: one that winks draws the other along.

Here each eye moves as if both did what its own scores say. Where its landmarks then stay more open than eyes with such
a score are in videos, eyeLookDown is raised until they do not, and after that eyeBlink beyond 1. The generator gets
what both eyes need. Below a blink of 0.3 nothing changes; up to 0.6 it fades in.

In videos the scores of jaw and mouth also come with a motion of eyes and brows, and those of the eyes with one of the
lips: it makes up for errors of the tracked pose. A portrait that is edited has no such errors. There brows move by
their own scores alone, eyes by theirs and those of the brows, and all below by the others.

Letters: B frames, E = 52 scores, K steps, s the step along the path: up to 1 of eyeLookDown, then of eyeBlink.
"""

from __future__ import annotations

import torch
from torch import Tensor

from export3d.expression.encoder import ExpressionEncoder
from export3d.layers import constant, smooth_step
from export3d.model import Encoded, Export3D
from export3d.motion.arkit import ARKIT52
from export3d.warping.landmark_motion import Face, LandmarkMotion, Regions
from export3d.warping.source_warp import SourceView

_SIDES = ("Right", "Left")
_BLINK = tuple(ARKIT52.index(f"eyeBlink{side}") for side in _SIDES)
_DOWN = tuple(ARKIT52.index(f"eyeLookDown{side}") for side in _SIDES)
_BROWS, _EYES = (tuple(name.startswith(names) for name in ARKIT52) for names in ("brow", ("brow", "eye")))
"""Whether a score moves the brows of an edited portrait, and whether its eyes; the others move all below them."""
_UPPER = ((158, 159, 160), (385, 386, 387))
_LOWER = ((153, 145, 144), (380, 374, 373))
"""Landmarks in the middle of the eyelids, in the order of `_SIDES`."""
_FADE = (0.3, 0.6)
"""Blink scores between which the closing fades in."""
_BLINKS = (0.0, 0.1, 0.15, 0.27, 0.42, 0.52, 0.62, 0.72, 0.85, 1.0)
_OPEN = (1.0, 1.0, 0.92, 0.66, 0.4, 0.25, 0.14, 0.03, -0.1, -0.15)
"""The opening of eyes by their blink score, relative to their usual opening.

Up to a score of 0.72 the medians of 16 videos of `val` (4,230 eyes); then the lids press on each other.
"""
_LEAST = 0.3
"""Openings are measured from a source whose eyes are open at least so far."""
_LONGEST, _STEPS = 2.5, 26


def closing_eyes(
    model: Export3D,
    source: Encoded,
    own: Tensor,
    expression: Tensor,
    shift: Tensor | None = None,
    edited: bool = False,
) -> tuple[Tensor, Regions | None]:
    """What closing eyes add to an expression.

    Args:
        model: if it does not move landmarks (`paper`, --pure) or has another expression space, nothing is added.
        source: one encoded source.
        own: (E,) its scores.
        expression: (B, E) driving scores.
        shift: (B, n) or (1, n), added to lambda.
        edited: whether the scores are the source's own but for some that were set, not tracked ones.

    Returns:
        (B, E) the scores for the model, and how regions of the face move on their own; None where none does.
    """
    motion = None if model.warp is None else model.warp.motion
    if motion is None or source.view is None or model.config.space != "arkit52":
        return expression, None
    if not edited and not bool(_share(expression).any()):
        return expression, None
    return closed(model.expression, motion, source.view, own[None], expression, shift, edited)


def closed(
    encoder: ExpressionEncoder,
    motion: LandmarkMotion,
    view: SourceView,
    own: Tensor,
    expression: Tensor,
    shift: Tensor | None = None,
    edited: bool = False,
) -> tuple[Tensor, Regions]:
    """As `closing_eyes`, for S = 1 or B sources, whether an eye closes or not.

    Args:
        view: of S sources.
        own: (S, E) their scores.
    """
    share = _share(expression)
    blink = expression[:, _BLINK]
    steps = torch.linspace(0.0, _LONGEST, _STEPS, device=blink.device)[None, :, None].expand(blink.shape[0], -1, 2)

    def asked(scores: Tensor, shift: Tensor | None) -> Tensor:
        """(S, K, 2, E) to what landmarks move by, (S, K, 2, m)."""
        coefficients = encoder.coefficients(scores.flatten(0, 2)).view(*scores.shape[:3], -1)
        moved = None if shift is None else shift[:, None, None]
        return motion.input(encoder.embed(coefficients if moved is None else coefficients + moved), scores, moved)

    brows, around_eyes = (constant(which, own.device) for which in (_BROWS, _EYES))
    looking = torch.where(around_eyes, expression, own) if edited else expression
    at_rest = asked(_as_both(own, torch.zeros_like(own[:, None, :2])), None)[:, 0]
    opened = _openings(motion, view, asked(_as_both(looking, steps), shift), at_rest)
    usual = _usual(own[:, _BLINK])
    wanted = 1.0 - (usual - _usual(blink)) / usual.clamp_min(_LEAST)
    step = _first_below(opened, torch.minimum(wanted, opened[:, 0]))
    needed = step.amin(dim=1, keepdim=True).expand(-1, 2)
    closing = torch.lerp(expression, _along(expression, needed), share[:, None])
    above = below = closing
    if edited:
        above, below = torch.where(brows, expression, own), torch.where(around_eyes, own, expression)
        step, share = step * share[:, None], torch.ones_like(share)
    rest = torch.stack([above, below], dim=1)
    at_last, rest = asked(_as_both(looking, step[:, None]), shift)[:, 0], asked(rest[:, None], shift)[:, 0]
    whole = asked(own[:, None, None], None)[:, 0].expand(-1, 2, -1)
    both = torch.cat([at_rest, whole], dim=1).expand(blink.shape[0], -1, -1)
    return closing, Regions(torch.cat([at_last, rest], dim=1), both, share)


def _share(expression: Tensor) -> Tensor:
    """(B,) how far eyes close by their scores (B, E) rather than with the face."""
    return smooth_step((expression[:, _BLINK].amax(dim=1) - _FADE[0]) / (_FADE[1] - _FADE[0]))


def _along(expression: Tensor, step: Tensor) -> Tensor:
    """Scores (..., E) with the right and the left eye closed by steps (..., 2)."""
    out = expression.clone()
    out[..., _DOWN] = torch.maximum(out[..., _DOWN], step.clamp_max(1.0))
    out[..., _BLINK] += (step - 1.0).clamp_min(0.0)
    return out


def _as_both(expression: Tensor, step: Tensor) -> Tensor:
    """(B, E) to (B, K, 2, E): both eyes as the right one, and as the left one, closed by steps (B, K, 2)."""
    out = expression[:, None, None].repeat(1, step.shape[1], 2, 1)
    for eye in (0, 1):
        for scores in (_BLINK, _DOWN):
            out[:, :, eye, scores] = expression[:, None, scores[eye], None]
    return _along(out, step[..., None].expand(-1, -1, -1, 2))


def _openings(motion: LandmarkMotion, view: SourceView, asked: Tensor, own: Tensor) -> Tensor:
    """How far each eye is open, relative to the source's: (B, K, 2).

    Args:
        asked: (B, K, 2, m) what landmarks move by.
        own: (S, 2, m) the same of the source.
    """
    assert view.face is not None
    batch, steps = asked.shape[:2]

    def rows(x: Tensor) -> Tensor:
        return x[:, None].expand(batch, 2 * steps, *x.shape[1:]).flatten(0, 1)

    own = own[:, None].expand(batch, steps, -1, -1).flatten(0, 2)
    face = Face(own, *(rows(x) for x in (view.face.places, view.face.aligned, view.face.points, view.face.code)))
    upper, lower = (constant(lids, asked.device) for lids in (_UPPER, _LOWER))

    def gap(points: Tensor) -> Tensor:
        return (points[:, lower, 1] - points[:, upper, 1]).mean(dim=-1)

    gaps = gap(motion(asked.flatten(0, 2), face)).view(batch, steps, 2, 2).diagonal(dim1=2, dim2=3)
    return gaps / gap(view.face.points)[:, None].clamp_min(1e-4)


def _usual(blink: Tensor) -> Tensor:
    """The usual opening of eyes with these blink scores."""
    blinks, openings = (constant(values, blink.device) for values in (_BLINKS, _OPEN))
    right = torch.searchsorted(blinks, blink.contiguous()).clamp(1, len(blinks) - 1)
    part = ((blink - blinks[right - 1]) / (blinks[right] - blinks[right - 1])).clamp(0.0, 1.0)
    return torch.lerp(openings[right - 1], openings[right], part)


def _first_below(values: Tensor, limit: Tensor) -> Tensor:
    """The step at which values (B, K, 2) first fall to limits (B, 2), linear between steps; the last if they do not."""
    below = values <= limit[:, None]
    number = torch.where(below.any(dim=1), below.int().argmax(dim=1), values.shape[1] - 1)[:, None]
    before = (number - 1).clamp_min(0)
    first, second = values.gather(1, before), values.gather(1, number)
    part = ((first - limit[:, None]) / (first - second).clamp_min(1e-6)).clamp(0.0, 1.0)
    return ((before + part * (number - before)) * (_LONGEST / (_STEPS - 1)))[:, 0]
