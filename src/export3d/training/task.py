"""What the training loop trains: a task and, optionally, an opponent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export3d.errors import ConfigError


class Task(Protocol):
    """What is trained. The loop calls these and nothing else.

    Attributes:
        module: the network; parameters that require a gradient are trained; all parameters and buffers are saved.
        config: JSON-able configuration that rebuilds `module`; stored with every state.
    """

    module: nn.Module
    config: Mapping[str, Any]

    def prepare(self, device: torch.device) -> None:
        """Move everything but `module` (perceptual networks, frames) to `device`; called once, before the first step.

        `module` is already there, with the weights from which the run starts.
        """

    def compile(self) -> None:
        """Compile what runs in every step (`torch.compile`); called once, after `prepare`, if the run asks for it."""

    def batch(self, images_seen: int, batch_size: int, rank: int, world: int) -> Mapping[str, Any]:
        """The share of process `rank` of `world` in the batch of `batch_size` images that starts at `images_seen`.

        Depends on its arguments alone; together, the shares are the batch of a single process. The loop moves tensors
        to the module's device.
        """

    def losses(self, batch: Mapping[str, Any], images_seen: int) -> Mapping[str, Tensor]:
        """Scalars to log; `total` is minimised. Called under autocast if the precision is bf16."""

    def end_step(self) -> None:
        """Called once per step in every process, after the weights are updated, to update buffers.

        The weights EMA copies the buffers right after.
        """

    def validate(self, ema: nn.Module) -> Mapping[str, float]:
        """Metrics of the averaged network (in eval mode, without gradients, on the main process); may be empty."""

    def sheet(self, ema: nn.Module) -> NDArray[np.uint8]:
        """An image (H, W, 3) uint8 RGB that shows results of the averaged network."""


@dataclass(frozen=True, kw_only=True)
class OpponentConfig:
    """Adam of the second network; warm-up, decay and gradient clipping are the loop's."""

    lr: float
    betas: tuple[float, float]
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ConfigError(f"the second network's learning rate {self.lr} must be positive")


class Opponent(Protocol):
    """A second network, trained in the same steps against the task's network.

    Its parameters require a gradient during its own `losses` only, so the task's gradient can pass through it without
    accumulating in it. Both networks are updated at the end of the step, from losses computed before the update.

    Attributes:
        module: the network; all its parameters are trained. It is saved with the run, but not averaged.
        settings: those of its optimiser.
    """

    module: nn.Module
    settings: OpponentConfig

    def losses(self, batch: Mapping[str, Any], step: int) -> Mapping[str, Tensor]:
        """Scalars to log; `total` is minimised. Called right after `Task.losses` with the same batch.

        Args:
            batch: the task's batch.
            step: number of steps before this one, over all starts of the run.
        """
