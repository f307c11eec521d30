"""Settings of the training loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from export3d.errors import ConfigError

_MOST_AT_ONCE = 10**6
"""Largest batch: seeds and pairs of a step are drawn in one go."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Settings of the loop. Everything periodic is counted in images; 0 means never.

    Attributes:
        batch_size: images a step over all processes and accumulated parts together.
        accumulate: parts a step is computed in, one after another, to save memory.
        max_images: stop there; None: no limit.
        max_minutes: stop this start of the run after so many minutes and save; None: no limit.
        log_every, sheet_every, validate_every, save_every: images between log lines, sheets, validations and states.
        keep: how many states stay on disk.
        weights_part_mb: with every state, also write the averaged weights to `weights.safetensors`, in half precision
            and in parts of at most this many MB (10^6 bytes); None: only at the end, whole.
        seed: with the same seed and the same settings a run on a CPU repeats bit for bit.
        lr, betas, weight_decay: AdamW; weight decay acts on matrices and kernels only.
        warmup_images: linear warm-up of the learning rate.
        decay: cosine decay of the learning rate "images": over max_images, "clock": over max_minutes of this start
            (then a resumed run is not bit-exact), or "none".
        decay_from: the part of the run, 0..1, after which the cosine begins.
        final_lr_ratio: what remains of the learning rate at the end of the decay.
        grad_clip: largest norm of the gradient over all parameters; None: not clipped.
        ema_halflife_images: half-life of the weights EMA; 0: no averaging, the EMA is the weights.
        ema_rampup: the half-life is at most this part of the images seen.
        precision: "fp32", "bf16" (autocast) or "auto": bf16 on a GPU that has it.
        channels_last: store kernels and images in that memory format.
        compile: `Task.compile`: torch.compile for what runs in every step.
        cpu: stay on the CPU even where there is a GPU (several processes included).
        tensorboard: write TensorBoard events too.
        progress: show a progress bar.
    """

    batch_size: int = 16
    accumulate: int = 1
    max_images: int | None = None
    max_minutes: float | None = None
    log_every: int = 1_000
    sheet_every: int = 20_000
    validate_every: int = 50_000
    save_every: int = 20_000
    keep: int = 2
    weights_part_mb: float | None = None
    seed: int = 0
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    warmup_images: int = 10_000
    decay: Literal["none", "images", "clock"] = "none"
    decay_from: float = 0.0
    final_lr_ratio: float = 0.0
    grad_clip: float | None = 1.0
    ema_halflife_images: float = 10_000
    ema_rampup: float = 0.05
    precision: Literal["fp32", "bf16", "auto"] = "auto"
    channels_last: bool = False
    compile: bool = False
    cpu: bool = False
    tensorboard: bool = True
    progress: bool = True

    def __post_init__(self) -> None:
        if self.batch_size > _MOST_AT_ONCE:
            raise ConfigError(f"batch_size {self.batch_size} is more than {_MOST_AT_ONCE}; use a smaller batch")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed {self.seed} must lie between 0 and 2**32 - 1")
        if self.batch_size < 1 or self.accumulate < 1 or self.batch_size % self.accumulate:
            raise ConfigError(
                f"batch_size {self.batch_size} must be a positive multiple of accumulate {self.accumulate}; change one"
            )
        periods = ("log_every", "sheet_every", "validate_every", "save_every")
        for name in (*periods, "warmup_images", "ema_halflife_images", "ema_rampup", "weight_decay"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}; 0 switches it off")
        for name in ("max_images", "max_minutes", "grad_clip", "weights_part_mb"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be positive or none, got {value}; none sets no limit")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas {self.betas} must lie in [0, 1)")
        if not self.lr > 0 or self.keep < 1:
            raise ConfigError(f"lr {self.lr} must be positive and keep {self.keep} at least 1")
        if not 0 <= self.decay_from < 1 or not 0 <= self.final_lr_ratio <= 1:
            raise ConfigError(
                f"decay_from {self.decay_from} must lie in [0, 1) and final_lr_ratio {self.final_lr_ratio} in [0, 1]"
            )
        if self.decay == "images" and self.max_images is None:
            raise ConfigError("decay over images needs an end; set max_images, or decay to 'clock' or 'none'")
        if self.decay == "clock" and self.max_minutes is None:
            raise ConfigError("decay by the clock needs an end; set max_minutes, or decay to 'images' or 'none'")
