"""Settings to go on from trained weights on a few videos of one's own: minutes on a laptop, not days.

docs/fine-tuning.md tells how they were chosen.
"""

from __future__ import annotations

from export3d.losses import ReconstructionWeights
from export3d.training.loop_config import LoopConfig
from export3d.training.reconstruction import ReconstructionConfig

PAIRS = ReconstructionConfig(
    preset=None,
    backbone="auto",
    weights=ReconstructionWeights(l2=2.0, lpips=2.0, lpips_raw=0.0),
    face_emphasis=20.0,
    hard_fraction=0.6,
)
"""The model is that of the weights to begin with; the losses are those that the packaged weights were trained with,
but for the mouth's (docs/fine-tuning.md)."""

LOOP = LoopConfig(
    batch_size=8,
    max_images=800,
    lr=2e-4,
    warmup_images=80,
    decay="images",
    decay_from=0.3,
    final_lr_ratio=0.05,
    ema_halflife_images=100,
    ema_rampup=0.5,
    log_every=80,
    validate_every=200,
    sheet_every=200,
    save_every=200,
    channels_last=True,
)
"""Ends after so many images, with a learning rate that falls."""
