"""Schedules, as functions of the images seen (not of steps, since the batch size may change)."""

from __future__ import annotations

import math


def learning_rate(
    images_seen: float,
    *,
    lr: float,
    warmup_images: float = 0.0,
    progress: float = 0.0,
    decay_from: float = 0.0,
    final_ratio: float = 0.0,
) -> float:
    """Linear warm-up, then constant, then half a cosine from `lr` to `final_ratio * lr`.

    Args:
        images_seen: images before this step.
        lr: the peak.
        warmup_images: length of the linear warm-up; the rate of the first step is already above 0.
        progress: completed fraction of the run, 0..1 (by images or by the clock); 0 means no decay.
        decay_from: the progress at which the cosine begins.
        final_ratio: the rate at progress 1, relative to `lr`.

    >>> learning_rate(0, lr=1.0)
    1.0
    >>> learning_rate(50, lr=1.0, warmup_images=100)
    0.5
    >>> round(learning_rate(1000, lr=1.0, progress=0.75, decay_from=0.5, final_ratio=0.1), 6)
    0.55
    """
    value = lr
    if images_seen < warmup_images:
        value *= max(images_seen / warmup_images, 1e-3)
    if progress > decay_from:
        part = min((progress - decay_from) / (1.0 - decay_from), 1.0)
        value *= final_ratio + (1.0 - final_ratio) * 0.5 * (1.0 + math.cos(math.pi * part))
    return value


def ema_decay(images_seen: float, batch_size: int, *, halflife_images: float, rampup: float = 0.05) -> float:
    """Weight of the old average in one update: 0.5 ** (batch / half-life), as in EG3D.

    The half-life grows with training, min(halflife_images, rampup * images_seen), so that the average forgets the
    random initial weights; after the first step the average equals the weights.

    >>> ema_decay(0, 4, halflife_images=100)
    0.0
    >>> ema_decay(10_000, 100, halflife_images=100)
    0.5
    """
    halflife = min(halflife_images, images_seen * rampup)
    return 0.5 ** (batch_size / halflife) if halflife > 0.0 else 0.0


def is_due(every_images: int, before: int, after: int) -> bool:
    """Whether a multiple of `every_images` lies in (before, after]; never if it is 0.

    >>> is_due(10, 8, 12), is_due(10, 10, 14), is_due(0, 8, 12)
    (True, False, False)
    """
    return every_images > 0 and after // every_images > before // every_images
