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

from export3d.motion.arkit import ARKIT52, columns_of

_USUAL: dict[str, tuple[float, float, float]] = {
    "jawOpen": (0.01, 0.04, 0.13),
    "mouthFunnel": (0.0, 0.1, 0.1),
    "mouthPucker": (0.0, 0.6, 0.6),
    "mouthLowerDown": (0.0, 0.01, 0.2),
    "mouthUpperUp": (0.0, 0.02, 0.1),
    "eyeBlink": (0.15, 0.35, 0.35),
}
"""Median score of posed portraits, a limit for serious ones and one for those that smile. 95 % of 220 serious portraits
with closed lips stay below the first (mouthLowerDown and mouthUpperUp: with 0.01 to spare), 95 % of 431 portraits below
the second."""
_SMILING = 0.2, 0.5
"""mouthSmile up to which a portrait counts as serious, and from which it smiles."""
_OPPOSITE = (
    ("eyeLookInLeft", "eyeLookOutLeft"),
    ("eyeLookInRight", "eyeLookOutRight"),
    ("eyeLookUpLeft", "eyeLookDownLeft"),
    ("eyeLookUpRight", "eyeLookDownRight"),
    ("jawLeft", "jawRight"),
    ("mouthLeft", "mouthRight"),
)
"""Scores of one motion to both sides."""
_WIDE = 0.45, 0.85
"""jawOpen from which a smile gives way, and at which nothing of it is left. Where it is above 0.6 in the training data,
97 % of the frames have smiles below 0.17; between 0.4 and 0.5, below 0.76."""


def at_rest(expression: NDArray[np.floating]) -> NDArray[np.floating]:
    """The expression (52,) of ARKit scores with jaw, lips and eyelids at rest.

    A score up to its usual limit stays. From there to twice the limit it passes over to the median of posed portraits.
    A smile parts the lips and raises the upper one; that does not count.
    """
    rest = np.array(expression)
    smile = rest[columns_of("mouthSmile")]
    first, last = _SMILING
    smiling = ((smile.mean() - first) / (last - first)).clip(0.0, 1.0)
    for name, (median, serious, happy) in _USUAL.items():
        columns = columns_of(name)
        score = rest[columns]
        limit = serious + smiling * ((np.maximum(happy, smile) if name == "mouthUpperUp" else happy) - serious)
        rest[columns] = score + (median - score) * (score / limit - 1.0).clip(0.0, 1.0)
    return rest


def changed(own: NDArray[np.floating], change: NDArray[np.floating]) -> NDArray[np.floating]:
    """A portrait's expression (52,) of ARKit scores with the change (T, 52) of another face: (T, 52), within 0..1.

    Of two opposite scores, such as looks to the left and right, one goes on where the other has reached 0. The
    portrait's own smile gives way to a jaw that opens wide.
    """
    out = own + change
    for pair in _OPPOSITE:
        one, other = (ARKIT52.index(name) for name in pair)
        past = np.minimum(out[..., [one, other]], 0.0)
        out[..., [other, one]] -= past
    smile, jaw = columns_of("mouthSmile"), columns_of("jawOpen")
    first, last = _WIDE
    out[..., smile] -= own[smile] * ((out[..., jaw] - first) / (last - first)).clip(0.0, 1.0)
    return np.asarray(out.clip(0.0, 1.0))
