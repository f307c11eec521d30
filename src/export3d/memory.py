"""What becomes of memory that is freed: glibc keeps it or returns it, and Python looks for cycles."""

from __future__ import annotations

import atexit
import ctypes
import gc
import sys
from contextlib import suppress
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Parameters of mallopt(3)."""
SPARED_BLOCK = 2**22
"""Bytes; a decoded frame of 1920 x 1080 is larger, one of 1280 x 720 smaller."""
_LARGEST = 2**31 - 1
_LARGEST_MMAP = 2**25
"""glibc's DEFAULT_MMAP_THRESHOLD_MAX; versions of it refuse more."""


def keep_freed_memory(largest_block: int = _LARGEST) -> None:
    """Keep freed blocks of up to so many bytes for the next ones; glibc alone, elsewhere nothing happens.

    By default glibc returns large blocks to the system, which clears every page anew for the next frame's tensors: a
    fifth of the time of super-resolution in PyTorch. The process stays as large as its largest batch.
    """
    mallopt = _mallopt()
    if mallopt is None:
        return
    # alone, the threshold of trimming would keep that of mapping at 128 kB
    if any(mallopt(_MMAP_THRESHOLD, size) == 1 for size in (largest_block, min(largest_block, _LARGEST_MMAP))):
        mallopt(_TRIM_THRESHOLD, _LARGEST)
    mallopt(_ARENA_MAX, 1)


def seldom_look_for_cycles() -> None:
    """Let Python look for cycles of objects after 20,000 new ones, not 700 to 2,000, and no more at the end.

    Importing PyTorch alone makes half a million that stay. Looking at them again and again, and once more at exit, took
    two seconds of each `animate`.
    """
    gc.set_threshold(20_000)
    atexit.register(gc.freeze)


def spare_memory() -> None:
    """Return freed blocks of more than 4 MiB at once, and let all threads share one arena; glibc alone.

    Decoded frames would otherwise leave gaps between what is kept, and each thread would keep what it has freed for
    itself: 150 MB while `animate` tracks 1080p. Call it before threads are started: an arena that exists stays.
    """
    mallopt = _mallopt()
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, SPARED_BLOCK)
        mallopt(_ARENA_MAX, 1)


def _mallopt() -> Any:
    """glibc's function; None elsewhere."""
    if sys.platform != "linux":
        return None
    with suppress(OSError, AttributeError):  # another C library
        return ctypes.CDLL(None).mallopt
    return None


def give_back_memory() -> None:
    """Return freed memory to the system, where the C library can (glibc); else freed frames stay with this process."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
