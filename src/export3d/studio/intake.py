"""Takes in what users send: every file is decoded in a child process of its own, never in the server.

A child (`intake_process`) has limits of memory, time and files, reads nothing but its input and the packages, and has
no network (`sandbox`). It writes to a folder of its own; what it made is moved to its place when it has finished, so
nothing is half-written. Whatever happens to a child becomes one sentence that calls the file by the user's name for it.

Nothing heavy is imported here: neither PyTorch nor a decoder.
"""

from __future__ import annotations

import asyncio
import errno
import importlib.util
import json
import logging
import os
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from export3d import files
from export3d.errors import InputError, OutputError
from export3d.provenance.signing import TRUST
from export3d.studio.intake_process import LIMITS, QUIET_S

log = logging.getLogger(__name__)

AT_ONCE, LONG_AT_ONCE = 2, 1
"""Children at a time, and of them those that take long; others wait in order."""
_LONG = ("track", "verify")
LONGEST_NAME = 60
_PACKAGES = (
    "export3d",
    "numpy",
    "PIL",
    "av",
    "safetensors",
    "mediapipe",
    "torch",
    "pillow_heif",
    "c2pa",
    "cryptography",
)
_LINE = 1 << 20
"""Longest line of a child, bytes."""
_KEPT_VARIABLES = ("LD_LIBRARY_PATH", "PATH", "SYSTEMROOT")


class Intake:
    """Decodes uploads. Every method raises `Export3DError` with a sentence for the user; `name` is the user's name of
    the file, of any length and with any characters. A call that is cancelled ends its child.
    """

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(AT_ONCE)
        self._free_for_long = asyncio.Semaphore(LONG_AT_ONCE)
        self._warned = False

    async def photo(self, path: Path, folder: Path, name: str) -> dict[str, Any]:
        """An image as `folder/photo.png`: upright, sRGB, without metadata, of at most 8 megapixels.

        Returns:
            `width`, `height`, `warnings` (sentences) and `file`. Faces are the engine's subject.
        """
        return {**await self._child("photo", path, folder, name), "file": folder / "photo.png"}

    background = photo
    """An image for behind the person; as `photo`."""

    async def video(self, path: Path, folder: Path, name: str) -> dict[str, Any]:
        """A video's `width`, `height`, `seconds`, `fps`, `sound` (bool) and `filmstrip` (a WebP file in `folder`)."""
        return {**await self._child("video", path, folder, name), "filmstrip": folder / "filmstrip.webp"}

    async def motion(self, path: Path, folder: Path, name: str) -> dict[str, Any]:
        """A motion file, of the kind that the ending of `name` says, as `folder/motion.motion` at 25 fps.

        Returns:
            `frames`, `seconds`, `fps`, `space` and `file`.
        """
        made = await self._child("motion", path, folder, name, suffix=Path(shown_name(name)).suffix)
        return {**made, "file": folder / "motion.motion"}

    async def track(
        self,
        path: Path,
        folder: Path,
        name: str,
        *,
        start: float = 0.0,
        seconds: float | None = None,
        face: str | int = "largest",
        progress: Callable[[int], None] = lambda done: None,
    ) -> dict[str, Any]:
        """The motion of a driving video; at most a minute of it.

        Args:
            path, folder, name: see the class.
            start, seconds, face: see `export3d.animate.drive.driving`.
            progress: called with the number of frames tracked.

        Returns:
            `frames`, `seconds`; `warnings` (sentences); `motion`, a .motion file; `sound`, a file of sound alone that
            begins with the motion, or None; `pictures`, PNG files of the driving face at the frames of
            `export.sheet_frames`.
        """
        made = await self._child("track", path, folder, name, progress, start=start, seconds=seconds, face=face)
        sound = folder / "sound.mp4" if made["sound"] else None
        pictures = [folder / f"driving-{number}.png" for number in range(made["pictures"])]
        return {**made, "motion": folder / "motion.motion", "sound": sound, "pictures": pictures}

    async def verify(self, path: Path, name: str) -> dict[str, Any]:
        """The marks in an image or video: `Report.as_dict` of `export3d.provenance.verify`."""
        return await self._child("verify", path, path.parent, name)

    async def _child(
        self,
        verb: str,
        path: Path,
        folder: Path,
        name: str,
        progress: Callable[[int], None] = lambda done: None,
        **options: Any,
    ) -> dict[str, Any]:
        """What a child answers; the files that it wrote are then in `folder`."""
        async with self._free_for_long if verb in _LONG else nullcontext(), self._free:
            title = Path(shown_name(name))
            try:
                own = Path(tempfile.mkdtemp(prefix=".intake-", dir=folder))
            except OSError as problem:
                raise files.write_failure(title, problem) from problem
            try:
                answer = await self._run(verb, path.absolute(), own, name, progress, options)
                for made in sorted(own.iterdir()):
                    if stat.S_ISREG(made.lstat().st_mode) and not made.name.startswith("."):
                        made.replace(folder / made.name)
                return answer
            except OSError as problem:
                raise files.write_failure(title, problem) from problem
            finally:
                shutil.rmtree(own, ignore_errors=True)

    async def _run(
        self, verb: str, path: Path, own: Path, name: str, progress: Callable[[int], None], options: dict[str, Any]
    ) -> dict[str, Any]:
        packages = _package_folders()
        job = {
            **options,
            "verb": verb,
            "path": str(path),
            "folder": str(own),
            "parent": os.getpid(),
            "readable": [str(each) for each in (*packages, *_python_folders(), files.home() / TRUST)],
        }
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "export3d.studio.intake_process", json.dumps(job)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=_LINE,
            cwd=own,
            env=_environment(packages, own),
            start_new_session=True,
        )
        title = shown_name(name)
        try:
            async with asyncio.timeout(LIMITS[verb].wall_s):
                answer = await _answer(child, progress, str(path), f"{own}{os.sep}", title)
                code = 0 if answer else await child.wait()
        except TimeoutError:
            raise InputError(f"{title} takes too long to read; make it smaller or shorter") from None
        except ValueError as problem:  # no JSON, or a line that is too long
            raise InputError(f"{title} cannot be read; save it again with another program") from problem
        finally:
            await _end(child)
        if answer.get("confined") is False and not self._warned:
            self._warned = True
            log.warning("this system does not confine what decodes uploads: it has no Landlock (Linux 5.13 or later)")
        if "bug" in answer:
            log.error("the intake failed at a file: %s", answer["bug"])
        if "error" in answer:
            if answer.get("errno") in (errno.ENOSPC, errno.EDQUOT):
                raise OutputError(answer["error"]) from OSError(answer["errno"], os.strerror(answer["errno"]))
            raise InputError(answer["error"])
        if "result" not in answer:
            raise InputError(_died(title, code))
        return dict(answer["result"])


def shown_name(name: str) -> str:
    """A user's file name for messages: one line without folders and control characters, of at most 60 characters.

    >>> shown_name("../../etc/pass\\nwd"), shown_name("C:\\\\photos\\\\me.jpg"), shown_name("")
    ('passwd', 'me.jpg', 'the file')
    """
    last = "".join(each for each in name[-4096:].replace("\\", "/").rpartition("/")[2] if each.isprintable()).strip()
    if len(last) > LONGEST_NAME:
        last = f"{last[: LONGEST_NAME - 13]}…{last[-12:]}"
    return last if last.strip(". ") else "the file"


async def _answer(
    child: asyncio.subprocess.Process, progress: Callable[[int], None], path: str, own: str, title: str
) -> dict[str, Any]:
    """The last word of a child, with the user's name in place of paths; {} if it ended without one."""
    assert child.stdout is not None
    while True:
        async with asyncio.timeout(QUIET_S):
            line = (await child.stdout.readline()).decode("ascii", "replace")
        for inside, outside in ((path, title), (own, ""), (own.rstrip(os.sep), "its folder")):
            line = line.replace(json.dumps(inside)[1:-1], json.dumps(outside)[1:-1])
        message = json.loads(line) if line else {}
        if not isinstance(message, dict):
            raise ValueError("not an object")
        if "progress" not in message:
            return message
        progress(int(message["progress"]))


async def _end(child: asyncio.subprocess.Process) -> None:
    """Kill a child and all that it may have started, and wait for it, also where the waiting is cancelled."""
    with suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(child.pid, signal.SIGKILL)
        elif child.returncode is None:
            child.kill()
    ended, cancelled = asyncio.ensure_future(child.wait()), None
    while not ended.done():
        try:
            await asyncio.shield(ended)
        except asyncio.CancelledError as problem:
            cancelled = problem
    if cancelled is not None:
        raise cancelled


def _died(title: str, code: int) -> str:
    """The sentence for a child that ended without an answer."""
    if hasattr(signal, "SIGXCPU") and -code in (signal.SIGXCPU, signal.SIGKILL, signal.SIGALRM):
        return f"{title} takes more time or memory than the studio gives to one file; make it smaller or shorter"
    return f"{title} cannot be read, since its decoder failed; save it again with another program"


def _package_folders() -> list[Path]:
    """The folders that hold the packages a child needs."""
    found = (importlib.util.find_spec(name) for name in _PACKAGES)
    folders = {Path(spec.origin).resolve().parents[1] for spec in found if spec is not None and spec.origin}
    return sorted(folders)


def _python_folders() -> list[Path]:
    """Python itself: its standard library, and the environment's settings."""
    return [Path(sys.prefix, name) for name in ("pyvenv.cfg", "lib", "lib64")] + [
        Path(sys.base_prefix, name) for name in ("lib", "lib64", "Lib", "DLLs")
    ]


def _environment(packages: list[Path], own: Path) -> dict[str, str]:
    """The environment of a child: nothing of the server's but where things are."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(map(str, packages)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "EXPORT3D_HOME": str(files.home()),
        "HOME": str(own),
        "TMPDIR": str(own),
        "LC_ALL": "C.UTF-8",
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    }
