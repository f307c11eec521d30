"""Exponential moving average of the tri-plane (supplement 6.2, Eq. 14)."""

from __future__ import annotations

import torch
import torch.distributed as distributed
from torch import Tensor, nn


class PlaneAverage(nn.Module):
    """T_EMA: the moving average that is added to every generated tri-plane (Eq. 14).

    T_EMA^j = delta * T_EMA^(j-1) + (1 - delta) * mean over the global batch of T^j, starting at 0; T^j += T_EMA^(j-1).
    The mean is taken before the addition, in the order of the paper's formula. `forward` adds T_EMA and never changes
    the module. A training step calls `collect` for each part of its batch and `update` once at its end: all parts and
    processes see the same average, and each step updates it once. At inference the average is frozen.

    Args:
        shape: (3, C, H, W) of one tri-plane.
        delta: decay, 0.998 in the paper; 1 switches the average off.
    """

    value: Tensor

    def __init__(self, shape: tuple[int, int, int, int], delta: float) -> None:
        super().__init__()
        self.delta = delta
        self.register_buffer("value", torch.zeros(shape))
        self._sum: Tensor | None = None
        self._parts = 0

    def forward(self, planes: Tensor) -> Tensor:
        """(B, 3, C, H, W) to the same: T + T_EMA."""
        return planes + self.value.to(planes.dtype)

    @torch.no_grad()
    def collect(self, planes: Tensor) -> None:
        """Collect the planes (B, 3, C, H, W) generated for one part of the batch; all parts have the same B."""
        mean = planes.detach().float().mean(dim=0)
        self._sum = mean if self._sum is None else self._sum.add_(mean)
        self._parts += 1

    @torch.no_grad()
    def update(self) -> None:
        """Update T_EMA with the mean of what was collected, over parts and processes; no effect if nothing was."""
        if self._sum is None:
            return
        mean = self._sum / self._parts
        self._sum, self._parts = None, 0
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(mean)
            mean /= distributed.get_world_size()
        self.value.lerp_(mean, 1.0 - self.delta)
