"""The engine's child process: one loop over a pipe; heads are answered first, then the running job goes on.

Messages are dicts of plain values. To the child:

- `{"op": "head", "call", "key", "portrait", …}`: see `work.Work.head`. A newer one of the same `key` replaces it.
- `{"op": "encode", "call", "portrait", "face"}`: see `work.Work.encode`.
- `{"op": "drop", "call"}`: nobody waits for this head or portrait any more.
- `{"op": "job", "id", "verb", …}`: see `work.Work.job`; jobs run one after the other.
- `{"op": "cancel", "id"}`, `{"op": "forget", "id"}` (a portrait's), `{"op": "stop"}`.

From the child: `{"op": "ready", "info"}` or `{"op": "broken", "error", "kind"}` once; `{"op": "answer", "call", …}`;
`{"op": "progress" | "done" | "failed" | "cancelled", "id", …}`. An error is a sentence with the name of its class.

The child ends when its parent does: the pipe then says so. It holds all that renders, and no other process does.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export3d.errors import ConfigError, Export3DError
from export3d.files import home

if TYPE_CHECKING:
    from export3d.studio.work import Work

log = logging.getLogger(__name__)

Message = dict[str, Any]

_MOTIONS = Path(__file__).resolve().parents[1] / "assets" / "motions"
_PAUSE_S = 0.2
"""A job pauses for so long after each frame at most, while heads are dragged."""
_NEXT_S = 0.02
"""Whoever drags a head asks for the next image within this time after the last one."""


class Cancelled(Exception):
    """The running job is no longer wanted."""


class _Gone(Exception):
    """The parent has ended."""


def main(pipe: Connection, settings: Message) -> None:
    """The child's life.

    Args:
        pipe: to the parent.
        settings: `policy`, the policy file that applies; `weights`, `pure`, `device` and `engine`, see `Animator`.
    """
    for name in ("SIGINT", "SIGHUP"):  # a terminal sends them to both processes; the parent says when to stop
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    logging.basicConfig(format="engine: %(message)s")
    if settings["policy"] is not None:
        os.environ["EXPORT3D_POLICY"] = str(settings["policy"])
    try:
        try:
            from export3d.studio.work import Work

            work = Work(settings)
        except Exception as problem:
            _send(pipe, {"op": "broken", **failure(problem, {})})
            return
        _send(pipe, {"op": "ready", "info": work.info})
        _Loop(pipe, work).run()
    except _Gone:
        return


def _send(pipe: Connection, message: Message) -> None:
    try:
        pipe.send(message)
    except OSError as problem:
        raise _Gone from problem


class _Loop:
    def __init__(self, pipe: Connection, work: Work) -> None:
        self._pipe, self._work = pipe, work
        self._waiting: dict[Any, Message] = {}
        self._jobs: deque[Message] = deque()
        self._cancelled: set[str] = set()
        self._stopped = False

    def run(self) -> None:
        """Until the parent says stop, or has gone (`_Gone`)."""
        while not self._stopped:
            self._receive(wait=not self._waiting and not self._jobs)
            if self._waiting:
                self._answer()
            elif self._jobs:
                self._run(self._jobs.popleft())

    def _receive(self, wait: bool) -> None:
        while wait or self._pipe.poll():
            wait = False
            try:
                message = self._pipe.recv()
            except (EOFError, OSError) as problem:
                raise _Gone from problem
            op = message["op"]
            if op in ("head", "encode"):
                key = ("head", message["key"]) if op == "head" else ("encode", message["call"])
                older = self._waiting.get(key)
                if older is not None:
                    _send(self._pipe, {"op": "answer", "call": older["call"], "replaced": True})
                self._waiting[key] = message
            elif op == "drop":
                self._waiting = {key: one for key, one in self._waiting.items() if one["call"] != message["call"]}
            elif op == "job":
                self._jobs.append(message)
            elif op == "cancel":
                self._cancel(message["id"])
            elif op == "forget":
                self._work.forget(message["id"])
            elif op == "stop":
                self._stopped = True

    def _cancel(self, job: str) -> None:
        waiting = [one for one in self._jobs if one["id"] == job]
        for one in waiting:
            self._jobs.remove(one)
            _send(self._pipe, {"op": "cancelled", "id": job})
        if not waiting:
            self._cancelled.add(job)

    def _answer(self) -> None:
        """Answer the request that has waited longest."""
        message = self._waiting.pop(next(iter(self._waiting)))
        does = self._work.head if message["op"] == "head" else self._work.encode
        _send(self._pipe, {"op": "answer", "call": message["call"], **attempt(does, message)})

    def _run(self, job: Message) -> None:
        self._cancelled.clear()  # of jobs that had ended

        def between() -> None:
            """Between two frames of a job: answers requests, but for no longer than `_PAUSE_S`."""
            end = time.monotonic() + _PAUSE_S
            self._receive(wait=False)
            while self._waiting and time.monotonic() < end:
                self._answer()
                self._pipe.poll(_NEXT_S)
                self._receive(wait=False)
            if self._stopped or job["id"] in self._cancelled:
                raise Cancelled

        def tell(stage: str, done: int, total: int, preview: bytes | None = None) -> None:
            progress = {"stage": stage, "done": done, "total": total, "preview": preview}
            _send(self._pipe, {"op": "progress", "id": job["id"], **progress})

        try:
            made = attempt(lambda wanted: self._work.job(wanted, between, tell), job)
        except Cancelled:
            _send(self._pipe, {"op": "cancelled", "id": job["id"]})
            return
        _send(self._pipe, {"op": "failed" if "error" in made else "done", "id": job["id"], **made})


def attempt(does: Callable[[Message], Message], message: Message) -> Message:
    """The result of a request, or its error and kind; in warnings the user's names stand for our paths."""
    try:
        made = does(message)
    except (Cancelled, _Gone):
        raise
    except Exception as problem:
        return failure(problem, message)
    if "warnings" in made:
        made["warnings"] = [_with_names(warning, message) for warning in made["warnings"]]
    return made


def failure(problem: Exception, message: Message) -> Message:
    """`error`, a sentence in which the user's names stand for our paths, and `kind`, the name of its class."""
    if not isinstance(problem, Export3DError):
        log.exception("a request failed: %s", message.get("op"))
        what = "memory is short" if isinstance(problem, MemoryError) else type(problem).__name__
        sentence = f"the engine could not do this ({what}); try another portrait, a smaller size or a shorter motion"
        return {"error": sentence, "kind": "Export3DError"}
    return {"error": _with_names(str(problem), message), "kind": type(problem).__name__}


def _with_names(sentence: str, message: Message) -> str:
    for path, name in _names(message).items():
        sentence = sentence.replace(path, name)
    return sentence


def _names(message: Message) -> dict[str, str]:
    """What the user calls the files of a request, longest path first; our folders are left out."""
    names = {str(path): str(name) for path, name in message.get("names", {}).items()}
    portrait = message.get("portrait")
    if portrait is not None:
        names[str(portrait["path"])] = str(portrait["name"])
    if message.get("out") is not None:
        names[f"{message['out']}{os.sep}"] = ""
    names[f"{_MOTIONS}{os.sep}"] = ""
    with suppress(ConfigError):  # the register of consent
        names[f"{home()}{os.sep}"] = ""
    return dict(sorted(names.items(), key=lambda item: -len(item[0])))
