"""What a portrait's face adds to the motion of another one.

It is the face at rest, where the photo caught it in the middle of a word or of a blink.

Relative motion adds to the source's expression. If that holds an open mouth or closed eyes, they would stay so in every
frame: driving faces hardly close a mouth further than theirs is in the reference frame. So motion is added to the
expression that the source would have at rest. What people hold in a photo, a smile above all, stays, until a jaw opens
wider than those of people who smile.

While a mouth moves, as in speech, a smile is smaller and does not part the lips by itself: they could not close. Other
scores of the lips are then those of the driving face. Several scores describe closed lips, such as mouthShrug and
mouthPress, and two faces seldom have the same ones. Those that fall when the driver's lips part are often 0 in the
portrait already, and its lips would stay shut.
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
_ASIDE = ("eyeLookInLeft", "eyeLookOutLeft"), ("eyeLookInRight", "eyeLookOutRight")
_ALOFT = ("eyeLookUpLeft", "eyeLookDownLeft"), ("eyeLookUpRight", "eyeLookDownRight")
_OPPOSITE = (*_ASIDE, *_ALOFT, ("jawLeft", "jawRight"), ("mouthLeft", "mouthRight"))
"""Scores of one motion to both sides."""
_WINK = 0.15, 1.25
"""The changes of the two eyeBlink scores may differ by the first number: in a turned head this is an error of tracking.
What exceeds it counts as much as the second number, until the whole difference counts."""
_WIDE = 0.45, 0.85
"""jawOpen from which a smile gives way, and at which nothing of it is left. Where it is above 0.6 in the training data,
97 % of the frames have smiles below 0.17; between 0.4 and 0.5, below 0.76."""
_MOVING = {"jawOpen": (0.06, 0.15), "mouthPucker": (0.2, 0.5), "mouthFunnel": (0.12, 0.3)}
"""Change of a score up to which a driving mouth is still, and from which it moves."""
_PARTED = {"jawOpen": 0.01, "mouthLowerDown": 0.0, "mouthUpperUp": 0.0}
"""Scores of parted lips, and what they are where a smile is closed."""
_LIPS = [
    column
    for part in ("Funnel", "Press", "Pucker", "RollLower", "RollUpper", "ShrugLower", "ShrugUpper", "Stretch")
    for column in columns_of(f"mouth{part}")
]
"""Columns of the other scores by which lips speak; mouthClose goes with jawOpen."""
_LESS = 0.4
"""Share of a smile that is left out while a mouth moves."""
HELD_S, EASED_S = 1.5, 0.6
"""So long before and after a mouth moves it counts as moving, and so long it takes to pass over."""


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


def looking_ahead(rest: NDArray[np.floating], expression: NDArray[np.floating]) -> NDArray[np.floating]:
    """Faces at rest (T, 52) that look where a face usually looks in N frames (N, 52), if that is straighter ahead.

    Drivers look into the camera more often than aside, but in the frame that counts as rest they may do either.
    """
    out = rest.copy()
    for pairs in (_ASIDE, _ALOFT):
        one, other = np.transpose([[ARKIT52.index(name) for name in pair] for pair in pairs])
        usual, looks = np.median(expression[:, one] - expression[:, other], axis=0), rest[:, one] - rest[:, other]
        straighter = np.abs(usual).sum() < np.abs(looks).sum(axis=1, keepdims=True)
        shift = np.where(straighter, usual - looks, 0.0) / 2.0
        out[:, one] += shift
        out[:, other] -= shift
    return out


def moving(change: NDArray[np.floating]) -> NDArray[np.floating]:
    """How far mouths move, as in speech, from changes of scores (..., 52): (...), 0 to 1."""
    steps = []
    for name, (first, last) in _MOVING.items():
        score = change[..., columns_of(name)].mean(axis=-1)
        steps.append(((score - first) / (last - first)).clip(0.0, 1.0))
    return np.asarray(np.max(steps, axis=0))


def around(moves: NDArray[np.floating], fps: float) -> NDArray[np.floating]:
    """`moving` (T,) with the moments before and after, and without jumps: (T,), 0 to 1."""
    held, eased = (max(1, round(seconds * fps)) for seconds in (HELD_S, EASED_S / 2.0))
    window = np.lib.stride_tricks.sliding_window_view
    most = window(np.pad(moves, held + eased), 2 * held + 1).max(axis=-1)
    return np.asarray(window(most, 2 * eased + 1).mean(axis=-1))


def changed(
    own: NDArray[np.floating],
    driving: NDArray[np.floating],
    rest: NDArray[np.floating],
    moves: NDArray[np.floating] | float = 0.0,
) -> NDArray[np.floating]:
    """A portrait's expression (52,) of ARKit scores, changed as another face changes: (T, 52), within 0..1.

    To the portrait's scores is added what tells the driving ones (T, 52) from those of the driver's face at rest, (52,)
    or (T, 52). A small difference between the changes of both eyeBlink
    is dropped. Of two opposite scores, such as looks to the left
    and right, one goes on where the other has reached 0. The portrait's own smile gives way to a jaw that opens wide.

    Where the driving mouth moves (`moves`, (T,) or one number, see `moving`), the smile is smaller and does not part
    the lips, and the other scores of the lips are the driver's.
    """
    change, moves = driving - rest, np.asarray(moves)[..., None]
    lids = columns_of("eyeBlink")
    both, apart = change[..., lids].mean(axis=-1, keepdims=True), np.abs(np.diff(change[..., lids], axis=-1))
    least, share = _WINK
    winks = (share * (1.0 - least / np.maximum(apart, least))).clip(max=1.0)
    change[..., lids] = both + winks * (change[..., lids] - both)
    out = own + change
    for name, closed in _PARTED.items():
        columns = columns_of(name)
        out[..., columns] -= moves * np.maximum(own[columns] - closed, 0.0)
    out[..., _LIPS] += moves * (rest - own)[..., _LIPS]
    for pair in _OPPOSITE:
        one, other = (ARKIT52.index(name) for name in pair)
        past = np.minimum(out[..., [one, other]], 0.0)
        out[..., [other, one]] -= past
    smile, jaw = columns_of("mouthSmile"), columns_of("jawOpen")
    first, last = _WIDE
    wide = ((out[..., jaw] - first) / (last - first)).clip(0.0, 1.0)
    out[..., smile] -= own[smile] * np.maximum(wide, _LESS * moves)
    return np.asarray(out.clip(0.0, 1.0))
