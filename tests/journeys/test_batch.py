"""Lists of animations with random weights: a run that is killed, and a cluster that loses a process and a node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from PIL import Image

from export3d.animate.batch import animate_batch
from export3d.workers.cluster import Cluster
from tests.ray_cluster import Nodes, processes_of

pytestmark = pytest.mark.slow

ROWS = 6
PORTRAITS, MOTIONS = 4, 10


def files(folder: Path) -> dict[str, bytes]:
    """What a run has made, without its report, which tells the time."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.stem != "report"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


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

    assert files(tmp_path / "stopped") == files(tmp_path / "whole")
    assert len(files(tmp_path / "whole")) == ROWS


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::ResourceWarning", "ignore::FutureWarning:ray")
def test_a_cluster_makes_the_same_videos_although_a_process_and_a_node_are_lost(
    tmp_path: Path, astronaut_path: Path, rigid_weights: Path
) -> None:
    photo = Image.open(astronaut_path).convert("RGB")
    lines = ["portrait,motion,output,start,seconds"]
    for number in range(PORTRAITS):
        photo.crop((8 * number, 0, 512 - 8 * number, 448)).save(tmp_path / f"{number}.png")
        lines += [f"{number}.png,speech,{number}/{turn}.mp4,{turn / 5},0.08" for turn in range(MOTIONS)]
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    shared = {"no_mark": "yes", "frame": "crop", "size": "256"}
    lost: list[str] = []

    with TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        with Nodes(3, folder) as nodes:

            def disturb(done: int, total: int, name: str) -> None:
                if done == 6:
                    os.kill(min(nodes.actors()), signal.SIGKILL)
                    lost.append("process")
                if done == 14:
                    nodes.remove_one()
                    lost.append("node")

            report = animate_batch(
                tmp_path / "list.csv",
                tmp_path / "ray",
                shared,
                weights=rigid_weights,
                workers=Cluster(nodes.address),
                engine="torch",
                progress=disturb,
            )
        end = time.monotonic() + 20.0
        while left := processes_of(folder):
            assert time.monotonic() < end, f"{left} still run"
            time.sleep(0.2)
    assert lost == ["process", "node"]
    assert (len(report.rows), report.refused) == (PORTRAITS * MOTIONS, ())
    listed = tmp_path / "list.csv"
    animate_batch(listed, tmp_path / "plain", shared, weights=rigid_weights, workers=0, engine="torch")
    assert files(tmp_path / "ray") == files(tmp_path / "plain")
    assert len(files(tmp_path / "plain")) == PORTRAITS * MOTIONS
