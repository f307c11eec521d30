"""The engines with the packaged weights: frames of a portrait against float32."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export3d.animate.animator import Animator
from export3d.animate.drive import bundled_motion
from export3d.engines.openvino_engine import OpenVinoEngine
from export3d.engines.torch_engine import TorchEngine
from export3d.motion.motion import Motion
from export3d.pretrained import load_pretrained

needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs the extra fast")
LEAST_DB = 54.0
"""Measured: 57.7 dB and more."""
LEAST_INT8_DB = 40.0
"""Measured: 44.3 dB and more over 56 frames of eight portraits, turned by up to 60 degrees."""


def frames_of(name: str, numbers: list[int]) -> Motion:
    motion = Motion.load(bundled_motion(name))
    return replace(
        motion, expression=motion.expression[numbers], camera=motion.camera[numbers], shot=motion.shot[numbers]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "dtype", "least_db"),
    [
        (TorchEngine, torch.bfloat16, LEAST_DB),
        pytest.param(OpenVinoEngine, torch.bfloat16, LEAST_DB, marks=needs_openvino),
        pytest.param(OpenVinoEngine, torch.int8, LEAST_INT8_DB, marks=needs_openvino),
    ],
)
def test_strong_expressions_and_turns_stay_close_to_float32(
    engine: Any, dtype: torch.dtype, least_db: float, astronaut_path: Path
) -> None:
    animator = Animator(load_pretrained(), "cpu", "reference")
    source = animator.encode(astronaut_path)
    expressions, turns = frames_of("expressions", [40, 150, 230]), frames_of("turns", [60, 170])

    def made() -> list[np.ndarray]:
        crops = [*animator.animate(source, expressions, relative=False, batch=2)]
        return [*crops, *animator.animate(source, turns, frame="photo")]

    exact = made()
    animator.engine = engine(animator.model, dtype)
    fast = made()
    for frame, own in zip(fast, exact, strict=True):
        error = np.square(frame.astype(np.float64) - own).mean()
        assert 10.0 * np.log10(255.0**2 / error) > least_db
    assert not all(np.array_equal(frame, own) for frame, own in zip(fast, exact)), "the number format had an effect"
    assert all(np.array_equal(frame, again) for frame, again in zip(fast, made())), "the same bytes twice"
