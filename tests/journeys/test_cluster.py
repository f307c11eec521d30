"""A Ray cluster of three nodes on this machine: it makes the same files as processes do, and survives losses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from export3d.data.clips import Limits
from export3d.data.prepare import prepare
from export3d.errors import ConfigError, OutputError
from export3d.video import VideoWriter
from export3d.workers.cluster import Cluster
from export3d.workers.outcome import Crash
from export3d.workers.run import run_jobs
from tests.ray_cluster import Nodes, processes_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning:ray", "ignore::ResourceWarning", "ignore::FutureWarning:ray"
    ),
]

CLIPS, FRAMES = 60, 5
LIMITS = Limits(min_frames=FRAMES)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Three nodes of one processor each, this process connected to them; afterwards nothing of them runs."""
    with TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        with Nodes(3, folder) as made:
            yield made
        end = time.monotonic() + 20.0
        while left := processes_of(folder):
            assert time.monotonic() < end, f"{left} still run"
            time.sleep(0.2)


@pytest.fixture(scope="module")
def clips(astronaut_turns: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 clips of five frames, each another part of a head's turn or another shift of it."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(CLIPS):
        first = number % (len(astronaut_turns) - FRAMES)
        with VideoWriter(folder / f"{number:02d}.mp4", 25.0, 256) as writer:
            for frame in astronaut_turns[first : first + FRAMES]:
                writer.write(np.roll(frame, number // 4, axis=1))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of prepared data by its name, without the report, which tells the time."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "report.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_prepared_data_are_the_same_bytes_although_a_process_and_a_node_are_lost(
    nodes: Nodes, clips: Path, tmp_path: Path
) -> None:
    lost: list[str] = []

    def disturb(done: int, total: int, name: str) -> None:
        if done == 8:
            os.kill(min(nodes.actors()), signal.SIGKILL)
            lost.append("process")
        if done == 20:
            nodes.remove_one()
            lost.append("node")

    on_cluster = prepare([clips], tmp_path / "ray", workers=Cluster(nodes.address), limits=LIMITS, progress=disturb)
    assert lost == ["process", "node"]
    assert on_cluster.done == CLIPS
    prepare([clips], tmp_path / "plain", workers=2, limits=LIMITS)
    assert contents(tmp_path / "ray") == contents(tmp_path / "plain")
    assert len(on_cluster.rejects) < CLIPS // 4, "most clips became records"
    again = prepare([clips], tmp_path / "ray", workers=Cluster(nodes.address), limits=LIMITS)
    assert (again.done, again.skipped) == (0, CLIPS)


def start() -> Any:
    """Jobs are "VERB:REST"; what they do is said by the verb."""

    def work(job: str) -> str:
        verb, _, rest = job.partition(":")
        if verb == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if verb == "raise":
            raise OutputError(rest)
        if verb == "where":
            return str(Path(rest).resolve())
        return rest

    return work


def test_a_job_that_kills_its_process_costs_its_own_job_only(nodes: Nodes) -> None:
    jobs = ["die:", *(f"do:{number}" for number in range(12))]
    done = dict(run_jobs(jobs, start, Cluster(nodes.address)))
    assert done.pop("die:") == Crash(None)
    assert done == {job: job[3:] for job in jobs[1:]}


def test_what_a_job_raises_arrives_with_its_kind_and_words(nodes: Nodes) -> None:
    with pytest.raises(OutputError, match=r"^disk full$"):
        list(run_jobs(["do:1", "raise:disk full"], start, Cluster(nodes.address)))


def test_relative_paths_are_those_of_the_command(nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nodes were started in another folder."""
    list(run_jobs(["do:1"], start, Cluster(nodes.address)))  # joined here, where `tests` can be imported
    monkeypatch.chdir(tmp_path)
    jobs = ["where:data", "where:clips"]
    assert dict(run_jobs(jobs, start, Cluster(nodes.address))) == {job: str(tmp_path / job[6:]) for job in jobs}


@pytest.mark.skipif(sys.platform == "win32", reason="no process groups")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_ray_of_this_machine_ends_with_the_command_that_is_stopped(
    name: str, code: int, clips: Path, tmp_path: Path
) -> None:
    number = signal.Signals[name]
    command = [sys.executable, "-m", "export3d", "prepare", str(clips), "-o", str(tmp_path / "data"), "--ray"]
    run = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    ours = f"_{run.pid}/"  # the end of the name of Ray's folder, which all its processes are told
    while run.poll() is None and not list(tmp_path.glob("data/*/parts/*.json")):
        time.sleep(0.05)
    raylets = [process for process in processes_of(ours) if Path(f"/proc/{process}/comm").read_text() == "raylet\n"]
    assert raylets
    for raylet in raylets:  # it may hear a signal to the group first, and where it ends, Ray ends the command
        os.kill(raylet, number)
    time.sleep(1.0)
    os.killpg(run.pid, number)  # as a terminal does with Ctrl-C
    told = run.communicate(timeout=60)[1]
    assert run.returncode == code, told
    assert "Traceback" not in told
    end = time.monotonic() + 20.0
    while left := processes_of(ours):
        assert time.monotonic() < end, f"{left} still run"
        time.sleep(0.2)
    kept = [*tmp_path.glob("data/*/parts/*.json"), *tmp_path.glob("data/*/index.json")]  # the latter if all was done
    assert kept, "what was done is kept for the next run"


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("videos", "videos is not the address of a Ray cluster; give HOST:PORT"),
        ("127.0.0.1:9", "no Ray cluster answers at 127.0.0.1:9 .*; check the address"),
    ],
)
def test_an_address_without_a_cluster_is_named_at_once(address: str, sentence: str) -> None:
    import ray

    if ray.is_initialized():
        ray.shutdown()
    with pytest.raises(ConfigError, match=sentence):
        list(run_jobs(["do:1"], start, Cluster(address)))
