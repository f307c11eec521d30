"""The descriptor of a face in the register of consent: the packaged identity network on the face and its mirror image.

d = (f(x) + f(x mirrored)) / |f(x) + f(x mirrored)|, with f the network's output.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from export3d.face.crop import upright
from export3d.face.identity import FILE, DlibIdentity, unit

if TYPE_CHECKING:
    from export3d.face.tracker import Track

Vector = NDArray[np.float32]


def describe(photo: NDArray[np.uint8], track: Track) -> Vector:
    """The descriptor of a tracked face.

    Args:
        photo: uint8 (H, W, 3) RGB, the photo that was tracked.
        track: of one face in it, from `Tracker.track_image` or `track_faces`.

    Returns:
        float32 (128,) of length 1.
    """
    photo = upright(photo, track.quarter_turns)
    chip = _network().chip(photo, track.crop.from_crop(track.landmarks[0]))
    return np.asarray(of_chips([chip])[0])


def of_chips(chips: Sequence[torch.Tensor]) -> Vector:
    """Descriptors (N, 128) of chips (3, 150, 150), RGB 0 to 255, as `DlibIdentity.chip` cuts them."""
    with torch.inference_mode():
        both = [_network().vectors(torch.stack([chip, chip.flip(-1)])).sum(dim=0) for chip in chips]
    return unit(torch.stack(both).numpy())


@cache
def network() -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the network's file."""
    return hashlib.sha256(FILE.read_bytes()).hexdigest()[:16]


@cache
def _network() -> DlibIdentity:
    return DlibIdentity()
