"""Correlations of two motions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from export3d.motion.motion import Motion


def compare(a: Motion, b: Motion) -> dict[str, Any]:
    """How alike two motions are, over the frames that both have (`b` is resampled to `a`'s rate).

    Returns:
        `frames`, and two dictionaries with the same keys: `correlation` (Pearson, NaN where a motion does not move at
        all) and `mean_abs_difference` (degrees for yaw, pitch and roll, score units for jawOpen and eyeBlink, the mean
        of left and right). Spaces without named scores give the three angles only.

    Raises:
        BadMotionFile: the two are in different expression spaces.
    """
    b.require_space(a.space)
    b = b.resampled(a.fps)
    frames = min(len(a), len(b))
    a, b = a[:frames], b[:frames]
    pairs = {name: (a.angles_deg[:, i], b.angles_deg[:, i]) for i, name in enumerate(("yaw", "pitch", "roll"))}
    if a.space == "arkit52":
        pairs |= {name: (a.scores(name), b.scores(name)) for name in ("jawOpen", "eyeBlink")}
    return {
        "frames": frames,
        "correlation": {name: pearson(x, y) for name, (x, y) in pairs.items()},
        "mean_abs_difference": {name: float(np.abs(x - y).mean()) for name, (x, y) in pairs.items()},
    }


def pearson(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson's correlation of two series (T,), float64; NaN when either is constant.

    >>> pearson([1, 2, 3], [2, 4, 6])
    1.0
    """
    u, v = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    u, v = u - u.mean(), v - v.mean()
    scale = math.sqrt(float(u @ u) * float(v @ v))
    return min(1.0, max(-1.0, float(u @ v) / scale)) if scale > 1e-12 else math.nan
