"""Accelerate, precision, seeds and signals of a training run, in one process or many."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from export3d.errors import MissingExtra


def make_accelerator(cpu: bool) -> Any:
    """Accelerate's view of devices and processes; raises `MissingExtra` if it is not installed."""
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise MissingExtra("train", "accelerate") from error
    # The loop has its own autocast, since bf16 needs no gradient scaling. Without a GPU, processes only find each other
    # if the CPU is requested explicitly.
    return Accelerator(mixed_precision="no", cpu=cpu or not torch.accelerator.is_available())


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The autocast dtype of `LoopConfig.precision`; None: float32 throughout."""
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return torch.bfloat16 if precision == "bf16" else None


def seed_everything(seed: int, rank: int, images_seen: int) -> None:
    """Seed Python, NumPy and torch (all devices) for one position in the run."""
    words = np.random.SeedSequence((seed, rank, images_seen)).generate_state(3, np.uint64)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]) % 2**32)  # noqa: NPY002  third-party code may draw from the global generator
    torch.manual_seed(int(words[2]) % 2**63)


@contextlib.contextmanager
def stop_signals(handler: Any) -> Iterator[None]:
    """Route the first SIGINT, SIGTERM or, unless it is ignored, SIGHUP to `handler`; a second acts as usual.

    No effect outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup asks
        previous[signal.SIGHUP] = signal.getsignal(signal.SIGHUP)

    def once(number: int, frame: object) -> None:
        signal.signal(number, previous[signal.Signals(number)])
        handler(number, frame)

    for number in previous:
        signal.signal(number, once)
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
