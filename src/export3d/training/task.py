"""What the training loop trains: a task, and perhaps an opponent."""

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
        module: the network; its parameters that require a gradient are trained, its parameters and buffers are saved.
        config: JSON-able configuration that rebuilds `module`; stored with every state.
    """

    module: nn.Module
    config: Mapping[str, Any]

    def prepare(self, device: torch.device) -> None:
        """Move everything but `module` (perceptual networks, frames) to `device`; called once, before the first step.

        `module` is already there; its weights are those the run starts from.
        """

    def batch(self, images_seen: int, batch_size: int, rank: int, world: int) -> Mapping[str, Any]:
        """The share of process `rank` of `world` in the `batch_size` images of all, which start at `images_seen`.

        A function of its arguments alone; the shares together are the batch that one process would get. Tensors in it
        are moved to the module's device by the loop.
        """

    def losses(self, batch: Mapping[str, Any], images_seen: int) -> Mapping[str, Tensor]:
        """Scalars to log; `total` is minimised. Called under autocast if the precision is bf16."""

    def end_step(self) -> None:
        """Called once a step by all processes, when all its parts are done and the weights have moved: for buffers.

        The weights EMA copies them right after.
        """

    def validate(self, ema: nn.Module) -> Mapping[str, float]:
        """Figures of the averaged network (in eval mode, without gradients, on the main process); may be empty."""

    def sheet(self, ema: nn.Module) -> NDArray[np.uint8]:
        """An image (H, W, 3) uint8 RGB that shows what the averaged network does."""


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
    """A second network, trained in the same steps against what the task's network does.

    Its parameters require a gradient during its own `losses` alone, so that the task may send its own gradient through
    it and leave none there. Both networks move at the end of the step, from the weights they had at its beginning.

    Attributes:
        module: the network; all its parameters are trained. It is saved with the run, but not averaged.
        settings: of its optimiser.
    """

    module: nn.Module
    settings: OpponentConfig

    def losses(self, batch: Mapping[str, Any], step: int) -> Mapping[str, Tensor]:
        """Scalars to log; `total` is minimised. Called right after `Task.losses` with the same batch.

        Args:
            batch: as the task got it.
            step: steps before this one, in all starts of the run.
        """
