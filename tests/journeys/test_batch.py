"""A list of animations whose run is killed in the middle, with random weights."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROWS = 6


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no process groups")
def test_a_run_that_is_killed_continues_and_its_files_are_those_of_one_run(
    tmp_path: Path, astronaut_path: Path, motion_file: Path, rigid_weights: Path
) -> None:
    lines = [f"{astronaut_path},{motion_file},{number}/talk.mp4,0.{number + 1}" for number in range(ROWS)]
    (tmp_path / "list.csv").write_text("\n".join(["portrait,motion,output,seconds", *lines]) + "\n")

    def command(out: str) -> list[str]:
        options = f"--weights {rigid_weights} --device cpu --engine torch --frame crop --size 256 --no-mark --workers 1"
        listed = ["--batch", str(tmp_path / "list.csv"), "-o", str(tmp_path / out)]
        return [sys.executable, "-m", "export3d", "animate", *listed, *options.split()]

    run = subprocess.Popen(command("stopped"), start_new_session=True, stdout=subprocess.DEVNULL)
    while run.poll() is None and not list((tmp_path / "stopped").glob(".batch/*.json")):
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL, "it was killed before its end"
    assert not (tmp_path / "stopped" / "report.json").exists()
    (first,) = (path for path in (tmp_path / "stopped").glob("*/talk.mp4") if path.parent.name == "0")
    made_at = first.stat().st_mtime_ns

    again = subprocess.run(command("stopped"), check=True, capture_output=True, text=True)
    assert f"{ROWS} of {ROWS} videos" in again.stdout
    assert first.stat().st_mtime_ns == made_at, "what was made is kept"
    subprocess.run(command("whole"), check=True, capture_output=True)

    def files(name: str) -> dict[str, bytes]:
        found = [path for path in (tmp_path / name).rglob("*") if path.is_file() and path.stem != "report"]
        return {str(path.relative_to(tmp_path / name)): path.read_bytes() for path in found}

    assert files("stopped") == files("whole")
    assert len(files("whole")) == ROWS
