"""What `animate`, `edit` and `orbit` have in common: which face moves, and what the frames show."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from export3d.errors import ConfigError

if TYPE_CHECKING:
    from export3d.animate.animator import Animator, Source


@dataclass(frozen=True)
class Framing:
    """Which face moves, and what the frames show.

    Attributes:
        face: of several: largest, left, right, a number counted from the left, or all.
        frame: photo shows the whole photo with the face moving in it (the default), crop the square around the face
            (the default with --pure, and with animate --absolute).
        size: pixels across the face crop, 256 to 1024, or native, the photo's own (the default; the frames of a video
            have at most 1920 pixels a side).
        background: keep, blur, a colour such as #00ff00, or an image file.
    """

    face: str = "largest"
    frame: Literal["photo", "crop"] | None = None
    size: str | None = None
    background: str = "keep"

    def cells(self) -> dict[str, str | None]:
        """As cells of a list of animations."""
        return {"face": self.face, "frame": self.frame, "size": self.size, "background": self.background}

    def check(self, relative: bool = True) -> list[Path]:
        """Report what cannot be before any work starts; returns the files that are read."""
        from export3d.face.tracker import face_choice
        from export3d.photo.options import check_background, parse_size

        if self.frame == "photo" and not relative:
            raise ConfigError(
                "--absolute takes over the driver's framing, which only a crop can show; use --frame crop"
            )
        if self.face != "all":
            face_choice(self.face)
        if self.size is not None:
            parse_size(self.size)
        image = check_background(self.background)
        return [] if image is None else [image]

    def sources(self, animator: Animator, portrait: Path) -> Source | list[Source]:
        """The face or faces that move."""
        if self.face == "all":
            return animator.encode_all(portrait)
        return animator.encode(portrait, self.face)

    def options(self, animator: Animator, relative: bool = True) -> dict[str, Any]:
        """Keyword arguments of `Animator.animate`, `edit` and `orbit`."""
        return animator.framing(self.frame, self.size, self.background, relative)
