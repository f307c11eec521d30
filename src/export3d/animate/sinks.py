"""Where live frames go: a window, a virtual camera, or a video file with their real times.

A sink is opened by the first frame, which tells its size, and closed at the end of its `with` block.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from export3d.errors import ConfigError, MissingExtra, OutputError
from export3d.provenance.writing import MARKED, Marks, Painter, painter, video_writer
from export3d.video.reading import FPS
from export3d.video.view import Pixels

QUIT = "q"
"""The key that ends a run; what `Sink.show` returns once the window is closed."""
_SMALLEST_WINDOW = 512
"""Smaller frames are shown enlarged by a whole factor, pixels."""
_DEVICES = {
    "darwin": "install OBS 30 or newer and start its virtual camera once",
    "win32": "install OBS, which brings one",
}
_LINUX_DEVICE = "install v4l2loopback and run: sudo modprobe v4l2loopback"


class Sink(Protocol):
    """Takes live frames.

    Attributes:
        marks: how they are marked; may be changed before the first one.
    """

    marks: Marks

    def __enter__(self) -> Sink: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, frame: Pixels, time_s: float, text: str = "") -> str:
        """Show a frame, uint8 (H, W, 3) RGB, all of one size.

        Args:
            frame: the frame; the one before again if there is no newer one.
            time_s: seconds since the first frame.
            text: what a window shows in its title.

        Returns:
            the keys pressed since the last call, `QUIT` among them once the window is closed.
        """
        ...


def sink(where: str, marks: Marks = MARKED) -> Sink:
    """The sink "window", "virtual", or a file; frames are marked in all of them.

    Raises:
        OutputError: there is no display.
        MissingExtra: pyvirtualcam or tkinter is missing.
        ConfigError: a file that is no .mp4.
    """
    if where == "window":
        return Window(marks)
    return VirtualCamera(marks) if where == "virtual" else File(where, marks)


class _Painting:
    """Marks frames that are shown; a frame that is shown again is not marked again."""

    def __init__(self, marks: Marks) -> None:
        self.marks = marks
        self._paint: Painter | None = None
        self._last: tuple[Pixels, Pixels] | None = None

    def _painted(self, frame: Pixels) -> Pixels:
        if self._last is None or self._last[0] is not frame:
            if self._paint is None:
                self._paint = painter(self.marks) or (lambda shown: shown)
            self._last = (frame, self._paint(frame))
        return self._last[1]


class Window(_Painting):
    """A window; raises `OutputError` where there is no display, and `MissingExtra` without tkinter."""

    def __init__(self, marks: Marks = MARKED, title: str = "export3d live") -> None:
        super().__init__(marks)
        try:
            import tkinter
        except ImportError as problem:
            raise MissingExtra("live", "tkinter", "install your system's package, such as python3-tk") from problem
        try:
            self._root = tkinter.Tk()
        except tkinter.TclError as problem:
            raise OutputError(
                "there is no display for a window; use --sink virtual, or --sink FILE.mp4 to write a video"
            ) from problem
        self._title, self._keys, self._open = title, "", True
        self._root.withdraw()  # until there is something to show
        self._root.resizable(False, False)
        self._root.protocol("WM_DELETE_WINDOW", self._close)
        self._root.bind("<Key>", self._press)
        self._label = tkinter.Label(self._root, borderwidth=0)
        self._label.pack()
        self._image: Any = None

    def __enter__(self) -> Window:
        return self

    def __exit__(self, *exception: object) -> None:
        import tkinter

        with suppress(tkinter.TclError):
            self._root.destroy()

    def show(self, frame: Pixels, time_s: float, text: str = "") -> str:
        """See `Sink.show`."""
        from PIL import Image, ImageTk

        if not self._open:
            return QUIT
        factor = max(1, -(-_SMALLEST_WINDOW // max(frame.shape[:2])))
        image = Image.fromarray(self._painted(frame))
        if factor > 1:
            image = image.resize((factor * image.width, factor * image.height), Image.Resampling.BILINEAR)
        if self._image is None:
            self._image = ImageTk.PhotoImage(image, master=self._root)
            self._label.configure(image=self._image)
            self._root.deiconify()
        else:
            self._image.paste(image)
        self._root.title(f"{self._title}: {text}" if text else self._title)
        self._root.update()
        keys, self._keys = self._keys, ""
        return keys if self._open else QUIT

    def _press(self, event: Any) -> None:
        if event.keysym == "Escape":
            self._close()
        else:
            self._keys += event.char

    def _close(self) -> None:
        self._open = False


class VirtualCamera(_Painting):
    """A virtual camera that video calls can choose.

    Raises:
        MissingExtra: pyvirtualcam is not installed.
        OutputError: on the first frame, if there is no virtual camera.
    """

    def __init__(self, marks: Marks = MARKED) -> None:
        super().__init__(marks)
        try:
            import pyvirtualcam
        except ImportError as problem:
            raise MissingExtra("live", "pyvirtualcam") from problem
        self._open_camera = pyvirtualcam.Camera
        self._camera: Any = None

    def __enter__(self) -> VirtualCamera:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._camera is not None:
            self._camera.close()

    def show(self, frame: Pixels, time_s: float, text: str = "") -> str:
        """See `Sink.show`."""
        if self._camera is None:
            height, width = frame.shape[:2]
            try:
                self._camera = self._open_camera(width, height, FPS)
            except RuntimeError as problem:
                remedy = _DEVICES.get(sys.platform, _LINUX_DEVICE)
                raise OutputError(f"there is no virtual camera that is free; {remedy}") from problem
        self._camera.send(np.ascontiguousarray(self._painted(frame)))
        return ""


class File:
    """An .mp4 whose frames have their real times; it appears when the block ends, and not if it fails.

    Raises:
        ConfigError: another ending.
        OutputError: the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], marks: Marks = MARKED) -> None:
        self._path = Path(path)
        self.marks = marks
        if self._path.suffix.lower() != ".mp4":
            raise ConfigError(f"there is no sink {str(path)!r}; use window, virtual, or a file that ends in .mp4")
        self._stack = ExitStack()
        self._write: Callable[[Pixels, int], None] | None = None
        self._last: tuple[Pixels, int] | None = None
        self._end_ms = 0

    def __enter__(self) -> File:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def show(self, frame: Pixels, time_s: float, text: str = "") -> str:
        """See `Sink.show`; a frame that is not newer than the last one is left out, except at the end."""
        self._end_ms = time_ms = round(1000.0 * time_s)
        if self._write is None:
            height, width = frame.shape[:2]
            writer = video_writer(self._path, FPS, (width, height), timed=True, marks=self.marks)
            self._write = self._stack.enter_context(writer).write
            self._stack.push(self._repeat_last)
        elif self._last is not None and (frame is self._last[0] or time_ms <= self._last[1]):
            return ""
        self._write(frame, time_ms)
        self._last = (frame, time_ms)
        return ""

    def _repeat_last(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write the last frame once more, at the end: without it the file would end with the last change."""
        if kind is None and self._write is not None and self._last is not None and self._end_ms > self._last[1]:
            self._write(self._last[0], self._end_ms)
