"""The machine: what it is, and its ceilings, the fastest large matrix product and the fastest copy."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from export3d.bench.counting import wait

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_FEATURES = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
_REPEATS = 8
_BLOCK = 12
"""Runs that are timed together: the time of a process is exact only to some milliseconds for each of its threads."""
_CPU_SIZES = (768, 1 << 26)
_GPU_SIZES = (8192, 1 << 30)
"""Side of the matrices, and bytes of the copied block, which is larger than the caches."""


@dataclass(frozen=True)
class Ceilings:
    """The fastest that this machine was seen to compute and to copy.

    Attributes:
        matmul: precision to FLOP per second of a square matrix product.
        copy: bytes per second, each byte counted twice: read and written.
    """

    matmul: dict[str, float]
    copy: float

    def better(self, other: Ceilings) -> Ceilings:
        """The higher of two measurements of the same machine."""
        both = {name: max(rate, other.matmul[name]) for name, rate in self.matmul.items()}
        return Ceilings(both, max(self.copy, other.copy))


def ceilings(device: torch.device, repeats: int = _REPEATS) -> Ceilings:
    """Measure a matrix product in each precision and a copy: the best of many, with the threads that PyTorch has."""
    side, block = _GPU_SIZES if device.type == "cuda" else _CPU_SIZES
    matmul = {}
    for name, kind in PRECISIONS.items():
        a, b = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
        out = torch.empty_like(a)

        def product(a: torch.Tensor = a, b: torch.Tensor = b, out: torch.Tensor = out) -> None:
            torch.matmul(a, b, out=out)

        matmul[name] = 2.0 * side**3 / _best(product, device, repeats)
    read = torch.ones(block // 4, device=device)
    written = torch.zeros_like(read)
    return Ceilings(matmul, 2.0 * block / _best(lambda: written.copy_(read), device, repeats))


def machine(device: torch.device) -> dict[str, Any]:
    """Processor or GPU, cores, instructions, versions and load, for a report."""
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "instructions": [name for name in _FEATURES if able.get(name)],
        "onednn_max_cpu_isa": os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _best(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Seconds per run in the fastest of several blocks of runs, after one that warms up.

    On a processor: its own time divided by the threads, which is the time on an idle machine.
    """

    def now() -> float:
        wait(device)
        return time.perf_counter() if device.type == "cuda" else time.process_time() / torch.get_num_threads()

    run()
    best = float("inf")
    for _ in range(repeats):
        start = now()
        for _ in range(_BLOCK):
            run()
        best = min(best, now() - start)
    return best / _BLOCK


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    try:
        lines = info.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
