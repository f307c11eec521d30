from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from export3d.errors import Export3DError, MissingExtra, OutputError
from export3d.workers.outcome import Crash
from export3d.workers.run import run_jobs


def start() -> Callable[[str], str]:
    """Jobs are "VERB:REST"; what they do is said by the verb."""
    process = os.getpid()

    def work(job: str) -> str:
        verb, _, rest = job.partition(":")
        if verb == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if verb == "keep":
            Path(tempfile.mkdtemp(), "kept").touch()
            return tempfile.gettempdir()
        if verb == "die-once" and not Path(rest).exists():
            Path(rest).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if verb == "raise":
            raise {"output": OutputError("disk full"), "odd": ZeroDivisionError("by zero")}[rest]
        if verb == "extra":
            raise MissingExtra("face", "mediapipe")
        return f"{rest} by {process == os.getpid()}"

    return work


def outcomes(jobs: list[str], workers: int) -> dict[str, object]:
    return dict(run_jobs(jobs, start, workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_every_job_is_done_once(workers: int) -> None:
    jobs = [f"do:{i}" for i in range(5)]
    assert outcomes(jobs, workers) == {job: f"{job[3:]} by True" for job in jobs}


def test_no_jobs_start_nothing() -> None:
    assert list(run_jobs([], start, 4)) == []


@pytest.mark.slow
def test_a_killed_process_costs_its_own_job_only() -> None:
    done = outcomes(["do:1", "die:", "do:2", "do:3"], 2)
    assert done.pop("die:") == Crash(-signal.SIGKILL)
    assert done == {"do:1": "1 by True", "do:2": "2 by True", "do:3": "3 by True"}


@pytest.mark.slow
def test_temporary_files_of_processes_that_are_killed_are_removed() -> None:
    done = run_jobs(["keep:", "do:1", "do:2"], start, 1)
    folder = Path(str(next(done)[1]))
    assert list(folder.glob("*/kept"))
    done.close()  # type: ignore[attr-defined]
    assert not folder.exists()


@pytest.mark.slow
def test_a_job_is_tried_again_in_a_fresh_process(tmp_path: Path) -> None:
    job = f"die-once:{tmp_path / 'tried'}"
    assert outcomes([job], 1) == {job: f"{tmp_path / 'tried'} by True"}


@pytest.mark.parametrize(
    ("job", "kind", "words"),
    [
        ("raise:output", OutputError, "disk full"),
        ("raise:odd", Export3DError, "ZeroDivisionError: by zero"),
        ("extra:", MissingExtra, "mediapipe is not installed"),
    ],
)
def test_what_a_job_raises_arrives_with_its_kind_and_words(job: str, kind: type, words: str) -> None:
    with pytest.raises(kind, match=words):
        outcomes([job, "do:1"], 1)


@pytest.mark.skipif(sys.platform == "win32", reason="no signal masks")
def test_ctrl_c_does_not_reach_a_process_that_starts(tmp_path: Path) -> None:
    """It gets one here while it imports the main module, before any code of ours."""
    (tmp_path / "main.py").write_text(
        "import os, signal\n"
        "from export3d.workers.run import run_jobs\n"
        "def start():\n"
        "    return str.upper\n"
        "if __name__ == '__mp_main__':\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "if __name__ == '__main__':\n"
        "    print(list(run_jobs(['a'], start, 1)))\n"
    )
    done = subprocess.run([sys.executable, tmp_path / "main.py"], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[('a', 'A')]\n", "")


class Interrupting:
    """A start that gets this process a Ctrl-C when it is sent to a new one."""

    def __call__(self) -> Callable[[str], str]:
        return start()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        signal.raise_signal(signal.SIGINT)
        return Interrupting, ()


@pytest.mark.skipif(sys.platform == "win32", reason="no signal masks")
def test_ctrl_c_while_a_process_starts_is_not_lost() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with pytest.raises(KeyboardInterrupt):
        list(run_jobs(["do:1"], Interrupting(), 1))
    assert multiprocessing.active_children() == []
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_processes_end_when_the_caller_stops_asking() -> None:
    jobs = run_jobs([f"do:{i}" for i in range(4)], start, 2)
    next(jobs)
    jobs.close()
    deadline = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert multiprocessing.active_children() == []
