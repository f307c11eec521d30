"""The comparison with another commit, `benchmarks/against_commit.py`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def run(*given: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "against_commit.py"), *given]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})


@pytest.mark.slow
def test_a_tree_is_about_as_fast_as_itself() -> None:
    pytest.importorskip("mediapipe")
    done = run(str(ROOT), "--what", "driven", "--rounds", "1", "--threads", "1", "--engine", "reference")
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("| driven | 1 | ")
    ratios = [float(found) for found in re.findall(r"\*\*([\d.]+)\*\*", last)]
    assert len(ratios) == 2
    assert 0.5 < ratios[1] < 2.0, "in processor time"


def test_what_is_no_checkout_is_refused_in_a_sentence(tmp_path: Path) -> None:
    for place, sentence in ((tmp_path, "has no src/export3d"), (tmp_path / "none", "does not exist")):
        done = run(str(place))
        assert done.returncode == 1
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr
