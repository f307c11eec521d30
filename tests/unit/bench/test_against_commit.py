"""The comparison with another commit, `benchmarks/against_commit.py`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def run(*given: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "against_commit.py"), *given]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_tree_is_about_as_fast_as_itself(tiny_weights: Path) -> None:
    pytest.importorskip("mediapipe")
    options = ["--what", "driven", "orbit", "--rounds", "3", "--threads", "1", "--engine", "reference"]
    done = run(str(ROOT), *options, "--weights", str(tiny_weights))
    assert done.returncode == 0, done.stderr
    for what, line in zip(("driven", "orbit"), done.stdout.splitlines()[-2:], strict=True):
        assert line.startswith(f"| {what} | 3 | ")
        wall, processor = (float(found) for found in re.findall(r"\*\*([\d.]+)\*\*", line))
        assert wall > 0.0
        assert 0.4 < processor < 2.5


def test_what_is_no_checkout_is_refused_in_a_sentence(tmp_path: Path) -> None:
    for place, sentence in ((tmp_path, "has no src/export3d"), (tmp_path / "none", "does not exist")):
        done = run(str(place))
        assert done.returncode == 1
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr
