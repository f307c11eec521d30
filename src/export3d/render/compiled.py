"""Passes that Numba compiles (extra `fast`), each tried on a small input before it is used.

Numba reads and writes its cache when a function is first called: a full disk or a damaged file fails there. The cache
looks at the date and size of the file of a function alone: after a change in what that file imports (`lanes`,
constants of other modules), delete the cached files.
"""

from __future__ import annotations

import importlib
import logging
import sys
import threading
from functools import cache
from types import ModuleType
from typing import Any

import torch

from export3d.files import reason

log = logging.getLogger(__name__)
_cached = True
"""Whether passes that are imported use Numba's cache."""
_one_at_a_time = threading.Lock()


def compiled(function: Any, **options: Any) -> Any:
    """`numba.njit` as all passes need it: without Python's lock, division as NumPy's."""
    from numba import njit

    return njit(cache=_cached, nogil=True, error_model="numpy", **options)(function)


def compiled_pass(name: str) -> ModuleType | None:
    """Import a module of functions that are `compiled`, and call its `trial()`, which must compile all of them.

    Where Numba's cache fails, the module is compiled in memory. A warning says so once, as it does when compiling
    takes its time. Threads that come here together wait for each other.

    Returns:
        the module; None, with a warning, where it does not run.
    """
    try:
        from numba import config

        if config.DISABLE_JIT:
            raise ImportError("NUMBA_DISABLE_JIT is set")
        with _one_at_a_time:
            return _loaded(name)
    except Exception as error:
        _warn(f"Numba cannot be used ({reason(error)}); rendering continues in PyTorch, slower")
        return None


def _loaded(name: str) -> ModuleType:
    try:
        return _tried(name, cached=True)
    except ImportError:
        raise
    except Exception as error:  # whatever a damaged file makes of unpickling
        made = _tried(name, cached=False)
        _warn(
            f"Numba's cache cannot be used ({reason(error)}); each start takes some seconds longer; free some "
            "space, delete the cache's files (*.nbi, *.nbc), or set NUMBA_CACHE_DIR to another folder"
        )
        return made


def _tried(name: str, cached: bool) -> ModuleType:
    from numba.core import event

    class Told(event.Listener):  # type: ignore[misc]
        def on_start(self, event: Any) -> None:
            if cached:
                _warn("Numba compiles the renderer for this processor, once; this takes some seconds")

        def on_end(self, event: Any) -> None:
            pass

    global _cached
    _cached = cached
    sys.modules.pop(name, None)
    with event.install_listener("numba:compile", Told()), torch.random.fork_rng(devices=[]):
        module = importlib.import_module(name)
        module.trial()
    return module


@cache
def _warn(sentence: str) -> None:
    """Log a warning, once per process."""
    log.warning(sentence)
