"""MediaPipe's import and the life of its tasks: imported without OpenCV, quiet when opened, closed without errors."""

from __future__ import annotations

import atexit
import importlib
import sys
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from export3d.errors import Export3DError, MissingExtra
from export3d.workers.messages import quiet_stderr


class Task:
    """A MediaPipe task, opened quietly; closed by `close`, by the garbage collector or at exit.

    Create one per process: it does not survive a fork.

    Args:
        create: makes the task from the module mediapipe.
        call: name of its method that takes an image.
        model: what it is called in messages.

    Raises:
        MissingExtra: mediapipe is not installed.
        Export3DError: mediapipe is installed but cannot be loaded (it needs libEGL and libGLESv2 on Linux), or the
            model is damaged.
    """

    def __init__(self, create: Callable[[Any], Any], call: str, model: str) -> None:
        self._mediapipe = _import_mediapipe()
        try:
            with quiet_stderr("mediapipe"):
                self._native = create(self._mediapipe)
                # The first call writes to stderr.
                getattr(self._native, call)(self._picture(np.zeros((64, 64, 3), np.uint8)))
        except OSError as error:
            raise Export3DError(
                f"mediapipe cannot be loaded ({error}); install the system's libEGL and libGLESv2 (Debian and Ubuntu: "
                "apt install libegl1 libgles2)"
            ) from error
        except (RuntimeError, ValueError) as error:
            raise Export3DError(f"the {model} cannot be opened ({error}); reinstall export3d") from error
        # Without this, MediaPipe's __del__ prints a TypeError when the interpreter shuts down.
        self._finalizer = weakref.finalize(self, _close_elsewhere, self._native)
        self._finalizer.atexit = False
        _open.add(self._native)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the networks; may be called more than once."""
        if self._finalizer.detach():
            _close(self._native)

    def _check_open(self, name: str) -> None:
        if not self._finalizer.alive:
            raise Export3DError(f"the {name} is closed; create another")

    def _picture(self, image: NDArray[np.uint8]) -> Any:
        """A uint8 (H, W, 3) RGB image as the task takes it."""
        data = np.ascontiguousarray(image)
        return self._mediapipe.Image(image_format=self._mediapipe.ImageFormat.SRGB, data=data)


_UNUSED = ("cv2", "matplotlib", "matplotlib.pyplot", "sounddevice")


def _import_mediapipe() -> Any:
    """Import mediapipe without what only drawing and recording need: 70 MB, 0.1 s, and libGL, which may be missing."""
    stand_ins = {name: types.ModuleType(name) for name in _UNUSED if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        return importlib.import_module("mediapipe")
    except ModuleNotFoundError as error:
        if error.name == "mediapipe":
            raise MissingExtra("face", "mediapipe") from error
        raise
    finally:
        for name, stand_in in stand_ins.items():
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]


_open: weakref.WeakSet[Any] = weakref.WeakSet()
"""MediaPipe's detectors that may still be open."""


def _close(native: Any) -> None:
    try:
        native.close()
    except RuntimeError:  # the interpreter is shutting down and MediaPipe's thread has ended; the process frees memory
        native._handle = None


def _close_elsewhere(native: Any) -> None:
    """Close a detector that nobody closed, in a thread of its own.

    The garbage collector may run inside a thread pool that holds its lock. Closing waits for that lock.
    """
    try:
        threading.Thread(target=_close, args=(native,), daemon=True).start()
    except RuntimeError:  # no thread can be started any more: the interpreter is shutting down
        native._handle = None


@atexit.register
def _forget_open_ones() -> None:
    for native in _open:  # the process frees their memory; MediaPipe's thread has ended
        native._handle = None
