"""A value that betrays whoever unpickles it."""

from __future__ import annotations

from pathlib import Path


class Bomb:
    """Unpickling this writes a file: the proof that something was unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = str(proof)

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return (open, (self.proof, "w"))
