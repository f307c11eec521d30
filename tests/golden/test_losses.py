"""Training cannot change silently: the first losses of both phases are those of `losses.json`."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("accelerate")

HERE = Path(__file__).parent
PHASES = ("one", "one_as_base", "two_sr", "two_all")
RTOL = 1e-3


@pytest.fixture(scope="module")
def losses() -> ModuleType:
    """The script that made the file."""
    spec = importlib.util.spec_from_file_location("golden_losses_made", HERE / "losses.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def flat(value: Any, name: str = "") -> dict[str, float]:
    """Every number under its path."""
    if isinstance(value, dict):
        return {inner: number for key, entry in value.items() for inner, number in flat(entry, f"{name}/{key}").items()}
    return {name: float(value)}


@pytest.mark.parametrize("phase", PHASES)
def test_the_first_losses_are_those_of_the_file(phase: str, losses: ModuleType) -> None:
    golden = json.loads((HERE / "losses.json").read_text(encoding="utf-8"))
    assert set(golden) == set(PHASES) == set(losses.PHASES)
    found, wanted = losses.first_losses(phase), golden[phase]
    assert len(found) == len(wanted) == losses.STEPS
    for step, (here, there) in enumerate(zip(found, wanted)):
        assert flat(here) == pytest.approx(flat(there), rel=RTOL, abs=1e-5), (
            f"step {step} of phase {phase}: on purpose? then run python tests/golden/losses.py and commit losses.json"
        )
