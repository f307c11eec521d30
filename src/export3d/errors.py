"""Every failure that export3d raises on purpose.

    Export3DError
    ├── InputError            an input of the user cannot be used
    │   ├── BadImage
    │   ├── BadVideo
    │   ├── BadMotionFile
    │   └── NoFaceFound
    ├── ConsentRefused        the policy asks for consent, and the register has none for a face
    ├── OutputError           an output cannot be written
    ├── ShapeError            a tensor has the wrong shape (a programming mistake)
    ├── ConfigError           settings that cannot work together
    ├── CheckpointError       weights or a training state that cannot be loaded
    ├── TrainingError         training stopped: it diverged, or has no data
    ├── PolicyError           the policy cannot be read, or forbids what was asked
    └── MissingExtra          an optional dependency is not installed

A message is one sentence: what is wrong, where, and what to do about it.
"""

from __future__ import annotations

from typing import Any


class Export3DError(Exception):
    """Base of all deliberate failures; the command line turns it into one sentence and exit code 2."""


class InputError(Export3DError):
    """An input cannot be used."""


class BadImage(InputError):
    """An image file cannot be read, or is outside the limits."""


class BadVideo(InputError):
    """A video file cannot be read, or holds no usable frames."""


class BadMotionFile(InputError):
    """A motion file is not what it should be."""


class NoFaceFound(InputError):
    """No face where one is needed."""


class ConsentRefused(Export3DError):
    """A face may not be animated: the policy asks for consent, and the register holds none."""


class OutputError(Export3DError):
    """An output cannot be written (folder missing, no permission, disk full)."""


class ShapeError(Export3DError, ValueError):
    """A tensor does not have the documented shape."""


class ConfigError(Export3DError, ValueError):
    """Settings that cannot work; the message names the remedy."""


class CheckpointError(Export3DError):
    """Weights or a training state that are missing, damaged or of another architecture."""


class TrainingError(Export3DError):
    """Training stopped: diverged, or was given nothing to learn from."""


class PolicyError(Export3DError):
    """The policy file cannot be used, or the policy forbids what was asked."""


class MissingExtra(Export3DError, ImportError):
    """An optional dependency is missing.

    >>> str(MissingExtra("face", "mediapipe"))
    "mediapipe is not installed; run: pip install -c constraints.txt '.[face]'"
    """

    def __init__(self, extra: str, package: str, remedy: str | None = None) -> None:
        remedy = remedy or f"run: pip install -c constraints.txt '.[{extra}]'"
        super().__init__(f"{package} is not installed; {remedy}")
        self.extra = extra


def check_shape(array: Any, pattern: str, name: str = "tensor") -> None:
    """Raise `ShapeError` unless `array.shape` fits `pattern`.

    Args:
        array: anything with a `.shape`.
        pattern: one token per axis; a number must match exactly, a letter stands for any size (the same letter for the
            same size).
        name: name of the array in the message.

    >>> import numpy
    >>> check_shape(numpy.zeros((2, 3, 8, 8)), "B 3 H H", "image")
    >>> check_shape(numpy.zeros((2, 8, 8)), "B 3 H W", "image")
    Traceback (most recent call last):
    ...
    export3d.errors.ShapeError: image must have shape (B, 3, H, W), got (2, 8, 8)
    """
    shape = tuple(array.shape)  # as they are: int() would fix the batch of an exported model
    tokens = pattern.split()
    seen: dict[str, int] = {}
    fits = len(tokens) == len(shape)
    for token, size in zip(tokens, shape):
        fits = fits and bool(size == (int(token) if token.isdigit() else seen.setdefault(token, size)))
    if not fits:
        raise ShapeError(f"{name} must have shape ({', '.join(tokens)}), got {shape}")


def counted(number: int, one: str, several: str = "") -> str:
    """A number and its noun, for messages.

    >>> counted(1, "photo"), counted(0, "photo"), counted(2, "person", "people")
    ('1 photo', '0 photos', '2 people')
    """
    return f"{number} {one if number == 1 else several or f'{one}s'}"
