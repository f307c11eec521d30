"""Losses far above the usual: noticed, told in the log, and the end of a run that does not come back from them."""

from __future__ import annotations

import math
import statistics
from collections import deque

FACTOR = 3.0
"""A loss above this many times the usual is a spike."""
WINDOW = 100
"""The usual is the median of so many steps, spikes left out."""
SETTLED = 20
"""Steps before anything is judged."""
PATIENCE = 50
"""So many spikes in a row, and training has diverged."""


class SpikeWatch:
    """Compares each step's loss with the steps before it.

    Attributes:
        streak: spikes in a row, this step included; 0 after an ordinary step.
        usual: median of the last ordinary losses; nan before there are enough.
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
        """Whether the loss has stayed above the usual for too long."""
        return self.streak >= PATIENCE
