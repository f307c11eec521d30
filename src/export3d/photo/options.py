"""What a user can ask of frames, in words: which pixels they have, what is behind the people,
and how many are rendered together.

It imports no PyTorch: commands check what was asked before they load it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from export3d import files
from export3d.errors import BadImage, ConfigError

Frame = Literal["photo", "crop"]
Size = int | Literal["native"]

NATIVE: Literal["native"] = "native"
SMALLEST, LARGEST = 256, 1024
"""Sizes that can be asked for, pixels across the face crop."""


def parse_size(text: str | int) -> Size:
    """A size as it is written: "native", or a number of pixels from 256 to 1024.

    Raises:
        ConfigError: anything else.
    """
    if str(text) == NATIVE:
        return NATIVE
    try:
        size = int(text) if int(text) == float(text) and "_" not in str(text) else 0
    except (ValueError, TypeError, OverflowError):
        size = 0
    if not SMALLEST <= size <= LARGEST:
        raise ConfigError(
            f"the size {text!r} is not possible; give {NATIVE} or a number from {SMALLEST} to {LARGEST}, the pixels "
            "across the face crop"
        )
    return size


def check_batch(batch: int) -> None:
    """`ConfigError` for a number of frames, to render together, that is below 1."""
    if batch < 1:
        raise ConfigError(f"the batch must be at least 1 frame, got {batch}")


def check_background(background: str) -> Path | None:
    """The image file that the text names; None for `keep`, `blur` and a colour `#rrggbb`.

    Raises:
        ConfigError: the text is none of these.
        BadImage: there is no such file.

    >>> check_background("#20a040")
    >>> check_background("#20a04")
    Traceback (most recent call last):
    ...
    export3d.errors.ConfigError: background '#20a04' is no colour; write six hexadecimal digits, such as #20a040
    """
    if background in ("keep", "blur") or colour(background) is not None:
        return None
    if not background or "\0" in background:
        raise ConfigError("the background is empty; give keep, blur, a colour such as #20a040, or an image file")
    if "." not in background and Path(background).name == background and not files.kind_at(background, BadImage):
        raise ConfigError(
            f"background {background!r} is neither keep nor blur, a colour such as #20a040, nor an image file"
        )
    return files.check_input(background, BadImage, "an image")


def colour(text: str) -> tuple[int, int, int] | None:
    """Red, green and blue of `#rrggbb`; None for what does not begin with #."""
    if not text.startswith("#"):
        return None
    if not re.fullmatch("#[0-9a-fA-F]{6}", text):
        raise ConfigError(f"background {text!r} is no colour; write six hexadecimal digits, such as #20a040")
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)
