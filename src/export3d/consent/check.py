"""Compares a face with the register of consent, and refuses portraits of people who are not in it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from export3d.consent import descriptor
from export3d.consent.register import Entry, Register
from export3d.errors import ConsentRefused, InputError
from export3d.policy import Policy, current_policy

if TYPE_CHECKING:
    from export3d.face.tracker import Track

Picture = NDArray[np.uint8]

THRESHOLD = 0.95
"""Similarity from which a face counts as a person of the register.

Of 2.4 million pairs of different people 0.006 % reach it (148), of 488 pairs of one person in different files 7.2 % do
not (of two photos 2.7 %): `benchmarks/consent.py`, docs/consent.md. A false accept animates somebody who did not agree;
a false reject costs another photo.
"""

BUNDLED = "a8c429c18afa7b0fd5673e598d73a21225d94c864a71bbb3885126fdecb41071"
"""SHA-256 of the pixels of the bundled portrait, which needs no entry: an official portrait of NASA, public domain."""


@dataclass(frozen=True)
class Match:
    """The entry of the register that a face resembles most, and their cosine, -1 to 1."""

    entry: Entry
    similarity: float

    @property
    def same_person(self) -> bool:
        """Whether the similarity reaches the threshold."""
        return self.similarity >= THRESHOLD


def nearest(vector: NDArray[np.float32], entries: Sequence[Entry]) -> Match | None:
    """The most similar of the entries that this release's network made; None if there are none.

    Raises:
        InputError: one of them has a descriptor of another length.
    """
    own = [entry for entry in entries if entry.network == descriptor.network()]
    for entry in own:
        if entry.descriptor.shape != vector.shape:
            raise InputError(
                f"the register of consent is damaged: the descriptor of entry {entry.id} has {entry.descriptor.size} "
                f"numbers, not {vector.size}; remove it (export3d consent remove {entry.id}) and add the photo again"
            )
    found = [Match(entry, float(entry.descriptor @ vector)) for entry in own]
    return max(found, key=lambda match: match.similarity, default=None)


def closeness(match: Match | None) -> str:
    """How similar the nearest entry is, in messages that do not name the person."""
    best = "no entry to compare with" if match is None else f"highest similarity {match.similarity:.3f}"
    return f"{best}, threshold {THRESHOLD:.3f}"


def names_matching(faces: Sequence[Entry], entries: Sequence[Entry]) -> list[str]:
    """Names, sorted, of the entries that count today and match one of the faces; no errors for damaged entries."""
    vectors: dict[int, list[NDArray[np.float32]]] = {}
    for face in faces:
        if face.network == descriptor.network():
            vectors.setdefault(face.descriptor.size, []).append(face.descriptor)
    stacks = {size: np.stack(equal) for size, equal in vectors.items()}
    own = [one for one in entries if one.network == descriptor.network() and not one.expired]
    compared = (
        (one.name, stacks[one.descriptor.size] @ one.descriptor) for one in own if one.descriptor.size in stacks
    )
    return sorted({name for name, similarities in compared if similarities.max() >= THRESHOLD})


def require_consent(
    photo: Picture, tracks: Sequence[Track], name: str = "the portrait", policy: Policy | None = None
) -> None:
    """Refuse a photo if the policy is `register` and a face that will be animated is not in the register.

    The policy `open` costs nothing: faces are not described. The bundled portrait always passes.

    Args:
        photo: uint8 (H, W, 3) RGB, as it was tracked.
        tracks: the faces that will be animated; others in the photo are not checked.
        name: of the photo in messages.
        policy: by default `current_policy()`.

    Raises:
        ConsentRefused: a face matches nobody whose consent is valid today.
        PolicyError: the policy cannot be read.  InputError: the register is damaged.
    """
    if (policy or current_policy()).consent == "open" or is_bundled(photo):
        return
    register = Register()
    valid = [entry for entry in register.entries() if not entry.expired]
    for number, track in enumerate(tracks, 1):
        match = nearest(descriptor.describe(photo, track), valid)
        if match is None or not match.same_person:
            which = f"face {number} in {name}" if len(tracks) > 1 else f"the face in {name}"
            raise ConsentRefused(
                f"{which} matches nobody in the register of consent ({register.path}; {closeness(match)}), and "
                "the policy allows nobody else; if the person agrees, add a photo of them: export3d consent add PHOTO "
                "--name NAME"
            )


def is_bundled(photo: Picture) -> bool:
    """Whether these are the pixels of the bundled portrait."""
    return hashlib.sha256(np.ascontiguousarray(photo).tobytes()).hexdigest() == BUNDLED
