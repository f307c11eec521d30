"""Scores clips in one process or several. A run that was stopped continues where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import torch

from export3d.data.shards import Entry
from export3d.errors import InputError
from export3d.evaluation.protocols.prediction_writer import PredictionWriter
from export3d.evaluation.protocols.results import Results
from export3d.workers.outcome import Crash
from export3d.workers.run import Workers, run_jobs

Progress = Callable[[int, int], None]


def finished_clips(results: Results, save: Path | None, folders: Mapping[str, str]) -> set[str]:
    """The clips that an earlier run has scored and, if images are saved, saved.

    Args:
        results: of the run.
        save: folder of saved images.
        folders: key of each clip to the folder in `save` that its images go to.

    Raises:
        InputError: there are images of a clip that was not scored; they belong to another run.
    """
    scored = {key for key in folders if results.has(key)}
    if save is None:
        return scored
    writer = PredictionWriter(save)
    saved = {key for key, folder in folders.items() if writer.has(folder)}
    foreign = next((folders[key] for key in folders if key in saved - scored), None)
    if foreign is not None:
        raise InputError(f"{save} already holds images of {foreign} from another run; save into another folder")
    return scored & saved


def score_all(
    jobs: Sequence[Any],
    kept: Set[str],
    start: Callable[[], Callable[[Any], str]],
    frames: Mapping[str, int],
    workers: Workers,
    progress: Progress | None,
) -> tuple[list[str], dict[str, str]]:
    """Score all clips but those that an earlier run has finished.

    Args:
        jobs: each with a `key` (an `Entry`) or a `name`.
        kept: names of the jobs that are finished.
        start: see `run_jobs`; a job returns why it could not be scored, or an empty string.
        frames: number per job, for `progress`.
        workers: processes, 0 for this one, or a cluster.
        progress: called with (frames done, frames).

    Returns:
        Keys of the scored clips, in order, and the reason for each of the others.
    """
    names = [_name(job) for job in jobs]
    waiting = [job for job in jobs if _name(job) not in kept]
    total = sum(frames.values())
    done = total - sum(frames[_name(job)] for job in waiting)
    skipped: dict[str, str] = {}
    if progress is not None:
        progress(done, total)
    for job, outcome in run_jobs(waiting, start, workers):
        if isinstance(outcome, Crash):
            skipped[_name(job)] = f"the process that scored it died (exit code {outcome.exit_code})"
        elif outcome:
            skipped[_name(job)] = outcome
        done += frames[_name(job)]
        if progress is not None:
            progress(done, total)
    return [name for name in names if name not in skipped], skipped


def share_threads(workers: Workers) -> None:
    """Divide the processor's threads among worker processes; each would otherwise use all of them. Ray divides them."""
    if isinstance(workers, int) and workers > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))


def _name(job: Any) -> str:
    return str(job.key if isinstance(job, Entry) else job.name)
