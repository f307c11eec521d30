"""What must be faster than what, in processor time within one run; never absolute times.

The margins are wide enough for a busy machine of two cores. The wrong number format costs a factor of three; an orbit
that computes its planes again costs as much as driven frames.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from export3d.animate.animator import Animator
from export3d.animate.drive import FPS, bundled_motion
from export3d.motion.motion import Motion

BATCH, FRAMES, ROUNDS, WARM_UP = 2, 6, 5, 1


@pytest.fixture(scope="module")
def seconds(astronaut_path: Path) -> dict[str, float]:
    """Median processor seconds per frame, in rounds that take turns; packaged weights, 256 pixels."""
    pytest.importorskip("mediapipe")
    plain, fast = (Animator.from_pretrained(device="cpu", engine=name) for name in ("reference", "auto"))
    source, motion = plain.encode(astronaut_path), Motion.load(bundled_motion("speech"))[:FRAMES]
    animations: dict[str, Callable[[], Iterator[np.ndarray]]] = {
        "reference": lambda: plain.animate(source, motion, batch=BATCH),
        "auto": lambda: fast.animate(source, motion, batch=BATCH),
        "one by one": lambda: fast.animate(source, motion, batch=1),
        "orbit": lambda: fast.orbit(source, seconds=FRAMES / FPS, batch=BATCH),
    }
    spent: dict[str, list[float]] = {name: [] for name in animations}
    for number in range(WARM_UP + ROUNDS):
        for name, frames in animations.items():
            start = time.process_time()
            assert len(list(frames())) == FRAMES  # whole: one that is left half-way goes on in its threads
            if number >= WARM_UP:
                spent[name].append((time.process_time() - start) / FRAMES)
    return {name: float(np.median(values)) for name, values in spent.items()}


@pytest.mark.slow
def test_the_engine_that_is_chosen_is_not_slower_than_the_reference(seconds: dict[str, float]) -> None:
    assert seconds["auto"] < 1.15 * seconds["reference"], seconds


@pytest.mark.slow
def test_frames_rendered_together_are_not_slower_than_one_by_one(seconds: dict[str, float]) -> None:
    assert seconds["auto"] < 1.25 * seconds["one by one"], seconds


@pytest.mark.slow
def test_an_orbit_is_faster_than_driven_frames_because_the_planes_stay(seconds: dict[str, float]) -> None:
    assert seconds["orbit"] < 0.95 * seconds["auto"], seconds
