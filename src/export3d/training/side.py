"""One network in training: its optimiser, schedule and gradient clipping."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export3d.errors import CheckpointError, TrainingError


class Side:
    """A network in training and its AdamW optimiser.

    Args:
        module: the network; only parameters that require a gradient are trained.
        lr: learning rate until `begin` sets another.
        betas, eps: see `torch.optim.AdamW`.
        weight_decay: applied to parameters with more than one dimension, not to biases and gains.

    Raises:
        TrainingError: no parameter requires a gradient.
    """

    def __init__(
        self, module: nn.Module, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        self.module, self.lr, self.rate = module, lr, lr
        trained = [p for p in module.parameters() if p.requires_grad]
        if not trained:
            raise TrainingError("no parameter of the module requires a gradient; there is nothing to train")
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)
        self.parameters: list[nn.Parameter] = [p for group in self.optimizer.param_groups for p in group["params"]]

    def begin(self, rate: float) -> None:
        """Prepare a step at learning rate `rate`: sets train mode and clears the gradients."""
        self.rate = rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.module.train()
        self.optimizer.zero_grad(set_to_none=True)

    def clip(self, limit: float | None) -> Tensor:
        """Clip the gradient norm to `limit` (None: no clipping); returns the norm before clipping."""
        return nn.utils.clip_grad_norm_(self.parameters, math.inf if limit is None else limit, foreach=True)

    def require_gradients(self, wanted: bool) -> None:
        """Enable or disable gradients for the trained parameters."""
        for parameter in self.parameters:
            parameter.requires_grad_(wanted)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any], path: Path) -> None:
    """Restore moments and step counts from a training state; keeps the optimiser's own settings (lr, betas, …).

    Raises:
        CheckpointError: the state belongs to other parameters; the message names `path`.
    """
    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state)
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"the optimiser state in {path} belongs to other parameters ({error}); start a new run from its weights"
        ) from error
    for group, own in zip(optimizer.param_groups, settings):
        group.update(own)
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if value.shape == parameter.shape:  # a fused optimiser expects the parameter's memory format
                moments[name] = torch.empty_like(parameter).copy_(value)
