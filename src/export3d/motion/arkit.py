"""The 52 ARKit scores: names, mirror images, and setting them by name."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from export3d.errors import ConfigError, ShapeError

logger = logging.getLogger(__name__)

Array = NDArray[np.floating]

ARKIT52: tuple[str, ...] = (
    "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight",
    "cheekPuff", "cheekSquintLeft", "cheekSquintRight",
    "eyeBlinkLeft", "eyeBlinkRight", "eyeLookDownLeft", "eyeLookDownRight", "eyeLookInLeft", "eyeLookInRight",
    "eyeLookOutLeft", "eyeLookOutRight", "eyeLookUpLeft", "eyeLookUpRight",
    "eyeSquintLeft", "eyeSquintRight", "eyeWideLeft", "eyeWideRight",
    "jawForward", "jawLeft", "jawOpen", "jawRight",
    "mouthClose", "mouthDimpleLeft", "mouthDimpleRight", "mouthFrownLeft", "mouthFrownRight", "mouthFunnel",
    "mouthLeft", "mouthLowerDownLeft", "mouthLowerDownRight", "mouthPressLeft", "mouthPressRight", "mouthPucker",
    "mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper",
    "mouthSmileLeft", "mouthSmileRight", "mouthStretchLeft", "mouthStretchRight",
    "mouthUpperUpLeft", "mouthUpperUpRight", "noseSneerLeft", "noseSneerRight",
    "tongueOut",
)  # fmt: skip
"""Names of the `arkit52` scores: MediaPipe's order without its `_neutral`, then `tongueOut`, the one ARKit score that
MediaPipe does not give (0 from our tracker). Left and right are the person's own."""
ARKIT52_MIRRORED: tuple[int, ...] = tuple(
    ARKIT52.index(re.sub("Left|Right", lambda side: "Right" if side[0] == "Left" else "Left", name)) for name in ARKIT52
)
"""Where each score of a mirrored face comes from: `mirrored = scores[..., ARKIT52_MIRRORED]` (left and right swap)."""
_COLUMNS: dict[str, list[int]] = {name.lower(): [column] for column, name in enumerate(ARKIT52)} | {
    name[:-4].lower(): [ARKIT52.index(name), ARKIT52.index(f"{name[:-4]}Right")]
    for name in ARKIT52
    if name.endswith("Left") and name not in ("jawLeft", "mouthLeft")  # opposites, not two sides of one score
}
"""Columns by lower-case name; a name without its side stands for both."""


def with_scores(expression: ArrayLike, scores: Mapping[str, float]) -> Array:
    """An `arkit52` expression with some scores replaced.

    Args:
        expression: (..., 52), what the other scores keep.
        scores: 0..1 by name, in any case; `eyeBlink` and the like set both sides. Of two that set the same score the
            later one counts.

    Returns:
        (..., 52), a new array.

    Raises:
        ConfigError: an unknown name (the message offers the nearest one), or a value outside 0..1.
        ShapeError: `expression` is not of 52 scores.

    >>> face = with_scores(np.zeros(52), {"jawOpen": 0.8, "eyeBlink": 1})
    >>> {name: float(score) for name, score in zip(ARKIT52, face) if score}
    {'eyeBlinkLeft': 1.0, 'eyeBlinkRight': 1.0, 'jawOpen': 0.8}
    """
    changed = np.array(expression)
    if changed.shape[-1:] != (len(ARKIT52),):
        raise ShapeError(
            f"expression must have {len(ARKIT52)} ARKit scores on its last axis, got shape {changed.shape}"
        )
    if changed.dtype.kind != "f":
        changed = changed.astype(np.float64)
    for name, value in scores.items():
        columns = columns_of(name)
        if not 0.0 <= value <= 1.0:  # NaN neither
            raise ConfigError(f"the ARKit score {name} must be between 0 and 1, got {value:g}")
        changed[..., columns] = value
    return changed


def warn_of_unlearned(scores: Mapping[str, float] | None) -> None:
    """Log a warning if scores set by name have `tongueOut`: trained on the tracker's scores, no weights show it."""
    if any(value > 0.0 and columns_of(name) == [ARKIT52.index("tongueOut")] for name, value in (scores or {}).items()):
        logger.warning(
            "tongueOut shows no tongue: the face tracker does not give this score, so no weights have learned it; "
            "leave it out"
        )


def columns_of(name: str) -> list[int]:
    """The column of an ARKit score, or both columns of a name without its side, in any case.

    Raises `ConfigError` for an unknown name, with the nearest known one.
    """
    if name.lower() not in _COLUMNS:
        known = {known.lower(): known for known in ARKIT52}
        near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.0)[0]
        raise ConfigError(f"there is no ARKit score {name!r}; the nearest name is {known[near]}")
    return _COLUMNS[name.lower()]
