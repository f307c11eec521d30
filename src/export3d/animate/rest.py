"""What a portrait's face adds to the motion of another one.

It is the face at rest, where the photo caught it in the middle of a word or of a blink.

Relative motion adds to the source's expression. If that holds an open mouth or closed eyes, they would stay so in every
frame: driving faces hardly close a mouth further than theirs is in the reference frame. So motion is added to the
expression that the source would have at rest. What people hold in a photo, a smile above all, stays, until a jaw opens
wider than those of people who smile.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from export3d.motion.arkit import columns_of

_USUAL: dict[str, tuple[float, float]] = {
    "jawOpen": (0.02, 0.13),
    "mouthFunnel": (0.0, 0.1),
    "mouthPucker": (0.0, 0.6),
    "mouthLowerDown": (0.01, 0.2),
    "mouthUpperUp": (0.0, 0.1),
    "eyeBlink": (0.15, 0.35),
}
"""Median score of posed portraits and a limit that 95 % do not exceed (431 portraits)."""
_WIDE = 0.45, 0.85
"""jawOpen from which a smile gives way, and at which nothing of it is left. Where it is above 0.6 in the training data,
97 % of the frames have smiles below 0.17; between 0.4 and 0.5, below 0.76."""


def at_rest(expression: NDArray[np.floating]) -> NDArray[np.floating]:
    """The expression (52,) of ARKit scores with jaw, lips and eyelids at rest.

    A score up to its usual limit stays. From there to twice the limit it passes over to the median of posed portraits.
    A smile raises the upper lip; that does not count.
    """
    rest = np.array(expression)
    smile = rest[columns_of("mouthSmile")]
    for name, (median, limit) in _USUAL.items():
        columns = columns_of(name)
        score = rest[columns]
        allowed = np.maximum(limit, smile) if name == "mouthUpperUp" else limit
        rest[columns] = score + (median - score) * (score / allowed - 1.0).clip(0.0, 1.0)
    return rest


def giving_way(own: NDArray[np.floating], moved: NDArray[np.floating]) -> NDArray[np.floating]:
    """Expressions (T, 52) of ARKit scores in which the portrait's own smile (of `own`, 52) gives way to a wide jaw."""
    out = np.array(moved)
    smile, jaw = columns_of("mouthSmile"), columns_of("jawOpen")
    first, last = _WIDE
    out[..., smile] -= own[smile] * ((out[..., jaw] - first) / (last - first)).clip(0.0, 1.0)
    return out
