"""Refusals: a sentence with the status of HTTP that fits it."""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from export3d.errors import ConfigError, ConsentRefused, Export3DError, PolicyError
from export3d.files import home
from export3d.studio.engine import EngineStopped

FULL_DISK = "the server's disk is full; try again later, or remove uploads and results that you no longer need"
LEAVING = "the server is shutting down and takes no more work; try again in a minute"
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Refused(Export3DError):
    """A request that is not answered.

    Attributes:
        status: of HTTP: 401 token, 403 origin or consent, 404 gone, 409, 411, 413 too large, 414, 415, 421 wrong host,
            422 no such face, 429 too many, 503 starting or full, 507 disk full.
        retry_s: when it may be asked for again, seconds; 0: that would not help.
    """

    def __init__(self, status: int, sentence: str, retry_s: int = 0) -> None:
        super().__init__(sentence)
        self.status = status
        self.retry_s = retry_s


def gone(what: str) -> Refused:
    """The refusal for an id that names nothing (any more)."""
    return Refused(404, f"there is no such {what} (any more); files are removed after a while, so send it again")


def refusal(problem: BaseException) -> Refused | None:
    """The refusal that a failure means; None for a bug."""
    if isinstance(problem, Refused):
        return problem
    if disk_full(problem):
        return Refused(507, FULL_DISK)
    if isinstance(problem, EngineStopped):
        return Refused(503, str(problem), 5)
    if isinstance(problem, Export3DError):
        status = 403 if isinstance(problem, (ConsentRefused, PolicyError)) else 400
        sentence = " ".join(str(problem).split())
        with suppress(ConfigError):  # the register and the policy lie there
            sentence = sentence.replace(f"{home()}{os.sep}", "")
        return Refused(status, sentence)
    return None


def disk_full(problem: BaseException | None) -> bool:
    """Whether a failure is one of a full disk, or was raised from one."""
    while problem is not None:
        if isinstance(problem, OSError) and problem.errno in _FULL:
            return True
        problem = problem.__cause__
    return False
