"""Detects losses far above their usual value, and training that does not recover from them."""

from __future__ import annotations

import math
import statistics
from collections import deque

FACTOR = 3.0
"""A loss above this multiple of its usual value is a spike."""
WINDOW = 100
"""The usual value is the median over this many steps, without spikes."""
SETTLED = 20
"""Steps before a loss can be a spike."""
PATIENCE = 50
"""After this many consecutive spikes training has diverged."""


class SpikeWatch:
    """Compares each step's loss with the steps before it.

    Attributes:
        streak: consecutive spikes, this step included; 0 after an ordinary step.
        usual: median of the last ordinary losses; nan until there are enough.
    """

    def __init__(self) -> None:
        self.streak, self.usual = 0, math.nan
        self._ordinary: deque[float] = deque(maxlen=WINDOW)

    def see(self, loss: float) -> bool:
        """Whether the loss of this step is a spike.

        >>> watch = SpikeWatch()
        >>> [watch.see(loss) for loss in [1.0] * 20 + [2.9, 3.1, 50.0, 1.0]][-4:]
        [False, True, True, False]
        """
        settled = len(self._ordinary) >= SETTLED
        self.usual = statistics.median(self._ordinary) if settled else math.nan
        if settled and self.usual > 0.0 and loss > FACTOR * self.usual:
            self.streak += 1
            return True
        self.streak = 0
        self._ordinary.append(loss)
        return False

    @property
    def diverged(self) -> bool:
        """Whether the last `PATIENCE` losses were all spikes."""
        return self.streak >= PATIENCE
