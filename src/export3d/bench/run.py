"""Times every stage, and the machine's ceilings, in one run."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from export3d.animate.animator import Animator
from export3d.bench.machine import Ceilings, ceilings, machine
from export3d.bench.report import Report, Row
from export3d.bench.stages import Stage, stages

ROUNDS = 25
WARM_UP = 3
_LEAST = 1e-9
"""Seconds; a difference of two measurements is not below it."""


def bench(
    animator: Animator,
    weights: str,
    batch: int,
    threads: int,
    rounds: int | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> Report:
    """Measure all stages.

    A round runs every stage once, so that other programs on the machine disturb all of them alike. The ceilings are
    measured before the first round and after the last one, and the better values count.

    Args:
        animator: model, device and engine.
        weights: their name in the report.
        batch: frames rendered together.
        threads: threads of PyTorch during the run.
        rounds: measured rounds, by default `ROUNDS`; `WARM_UP` more come before them.
        progress: called with (rounds done, their number, what is measured next).
    """
    device, before = animator.device, torch.get_num_threads()
    rounds = ROUNDS if rounds is None else rounds
    torch.set_num_threads(threads)
    try:
        about = machine(device)
        progress(0, WARM_UP + rounds, "the fastest matrix product and copy")
        limits = ceilings(device)
        progress(0, WARM_UP + rounds, "the portrait, the clip and their FLOP")
        with tempfile.TemporaryDirectory() as folder:
            parts = stages(animator, batch, Path(folder))
            last: dict[str, NDArray[np.float64]] = {}
            spent: dict[str, list[NDArray[np.float64]]] = {name: [] for name in parts}
            for number in range(WARM_UP + rounds):
                progress(number, WARM_UP + rounds, "warm-up" if number < WARM_UP else f"{rounds} rounds of all stages")
                for name, stage in parts.items():
                    seconds = _timed(stage.run) / stage.units
                    if stage.contains is not None:
                        seconds = np.maximum(seconds - last[stage.contains], _LEAST)
                    last[name] = seconds
                if number >= WARM_UP:
                    for name, seconds in last.items():
                        spent[name].append(seconds)
            progress(WARM_UP + rounds, WARM_UP + rounds, "the fastest matrix product and copy again")
        limits = limits.better(ceilings(device))
    finally:
        torch.set_num_threads(before)
    return Report(
        machine=about,
        settings={
            "weights": weights,
            "engine": animator.engine.description,
            "image_size": animator.size,
            "batch": batch,
            "threads": threads,
            "rounds": rounds,
            "warm_up": WARM_UP,
        },
        matmul=limits.matmul,
        copy=limits.copy,
        stages={
            name: _row(stage, np.array(spent[name]), limits, 0 if device.type == "cuda" else threads)
            for name, stage in parts.items()
        },
    )


def shares(row: Row, limits: Ceilings, threads: int) -> tuple[float | None, float | None]:
    """Shares 0..1 of the fastest matrix product and of the fastest copy.

    On a processor, of what its threads reach in the same time of the processor: other programs and threads that a stage
    leaves idle do not lower it. On a GPU (`threads` 0), of what it reaches in the time p50.
    """
    seconds = row.processor / threads if threads else row.p50
    of_matmul = None
    if row.flop is not None and row.precision in limits.matmul:  # no product of 8-bit integers is measured
        of_matmul = row.flop / seconds / limits.matmul[row.precision]
    return of_matmul, None if row.traffic is None else row.traffic / seconds / limits.copy


def _timed(run: Callable[[], object]) -> NDArray[np.float64]:
    """Wall and processor seconds of one call."""
    wall, own = time.perf_counter(), time.process_time()
    run()
    return np.array([time.perf_counter() - wall, time.process_time() - own])


def _row(stage: Stage, spent: NDArray[np.float64], limits: Ceilings, threads: int) -> Row:
    """A stage's line; `spent` (rounds, 2) holds wall and processor seconds per unit."""
    p50, p95 = (float(value) for value in np.percentile(spent[:, 0], [50, 95]))
    row = Row(
        unit=stage.unit,
        precision=stage.precision,
        flop=stage.flop,
        traffic=stage.traffic,
        p50=p50,
        p95=p95,
        processor=float(np.median(spent[:, 1])),
        of_matmul=None,
        of_copy=None,
    )
    of_matmul, of_copy = shares(row, limits, threads)
    return replace(row, of_matmul=of_matmul, of_copy=of_copy)
