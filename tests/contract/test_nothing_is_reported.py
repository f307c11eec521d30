"""Nothing is reported to the makers of the libraries: no usage statistics, no look-up of their hosts."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import export3d

ARM_LINUX = sys.platform == "linux" and platform.machine() == "aarch64"


def test_libraries_are_told_not_to_report() -> None:
    assert export3d.__version__
    for variable, value in (("ORT_DISABLE_TELEMETRY", "1"), ("RAY_USAGE_STATS_ENABLED", "0")):
        assert os.environ[variable] == value


@pytest.mark.skipif(ARM_LINUX, reason="there, MediaPipe has no release without it (README.md)")
def test_mediapipe_cannot_report() -> None:
    found = importlib.util.find_spec("mediapipe")
    if found is None or found.origin is None:
        pytest.skip("mediapipe is not installed (extra `face`)")
    libraries = [path for path in Path(found.origin).parent.rglob("libmediapipe*") if path.is_file()]
    assert libraries
    for library in libraries:
        assert b"clearcut" not in library.read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(ARM_LINUX or shutil.which("strace") is None, reason="strace is not installed")
def test_an_animation_asks_no_host(tmp_path: Path, astronaut_path: Path) -> None:
    trace, out = tmp_path / "trace", tmp_path / "out.mp4"
    options = f"{astronaut_path} --motion speech --seconds 0.2 --frame crop --size 256 -o {out}"
    command = ["strace", "-f", "-e", "trace=connect,sendto", "-o", str(trace), sys.executable, "-m", "export3d"]
    run = subprocess.run([*command, "animate", *options.split()], capture_output=True, text=True)
    if not out.exists() and "ptrace" in run.stderr:
        pytest.skip("processes cannot be traced here")
    assert run.returncode == 0, run.stderr
    assert "AF_INET" not in trace.read_text()
