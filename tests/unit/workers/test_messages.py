"""What is told while something works."""

from __future__ import annotations

import logging
import threading

from export3d.workers.messages import caught_warnings

log = logging.getLogger("export3d.face.tracker")


def test_the_warnings_of_one_thread_are_kept_each_once() -> None:
    other = threading.Thread(target=log.warning, args=("of another thread",))
    with caught_warnings() as warnings:
        log.info("nothing to worry about")
        log.warning("%s is small", "the face")
        log.warning("%s is small", "the face")
        other.start()
        other.join()
        log.error("worse")
    log.warning("too late")
    assert warnings == ["the face is small", "worse"]
