"""Memory that stays with the process."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from export3d.memory import keep_freed_memory

FAULTS = """
import resource
import torch
from export3d.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
keep_freed_memory()
for _ in range(5):
    faults()
print(before, faults())
"""

AT_EXIT = """
import atexit, gc
from export3d.memory import seldom_look_for_cycles

atexit.register(lambda: print(gc.get_threshold()[0], gc.get_freeze_count() > 1000))
seldom_look_for_cycles()
"""


def test_python_looks_seldom_for_cycles_and_not_at_exit() -> None:
    """What is frozen is not looked at."""
    run = subprocess.run([sys.executable, "-c", AT_EXIT], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["20000", "True"]


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_a_block_that_was_freed_is_used_again() -> None:
    """Without it, each of five tensors of 64 MiB has pages of its own."""
    run = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    before, after = map(int, run.stdout.split())
    assert before > 100
    assert after < 0.5 * before


@pytest.mark.parametrize(("refused", "expected"), [((), [-3, -1, -8]), ((2**31 - 1,), [-3, -3, -1, -8])])
def test_trimming_is_changed_only_with_mapping(
    refused: tuple[int, ...], expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert asked(refused, monkeypatch) == expected


def test_what_mallopt_refuses_changes_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, a threshold of trimming keeps that of mapping at 128 kB."""
    assert asked((2**31 - 1, 2**25), monkeypatch) == [-3, -3, -8]


def asked(refused: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The parameters that a C library is asked to change if it refuses thresholds of mapping."""
    parameters: list[int] = []

    def mallopt(parameter: int, value: int) -> int:
        parameters.append(parameter)
        return int(parameter != -3 or value not in refused)

    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    keep_freed_memory()
    return parameters
