"""Runs a protocol over clips in parallel processes, resumable, with the origin of every score."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from export3d.data.shards import Entry, read_index
from export3d.data.workers import Crash, run_jobs
from export3d.errors import InputError
from export3d.evaluation.protocols.predictions import PredictionWriter, SavedClip
from export3d.evaluation.protocols.results import Results
from export3d.evaluation.protocols.scoring import Scoring
from export3d.model import Export3D
from export3d.weights.file import load_weights
from export3d.weights.names import PACKAGED, find, title

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a process needs to score clips of a split; made of plain values, so that it can be sent to one."""

    split: Path
    weights: Path | None
    methods: tuple[str, ...]
    scoring: Scoring
    every: int
    device: str
    batch: int
    publishable_only: bool
    results: Results
    save: Path | None
    workers: int


def kept_from_before(results: Results, save: Path | None, folders: Mapping[str, str]) -> set[str]:
    """The clips that a former run has scored and, where pictures are wanted, saved.

    Args:
        folders: key of each clip to the folder in `save` that its pictures go to.

    Raises:
        InputError: there are pictures of a clip that was not scored, so they are another run's.
    """
    scored = {key for key in folders if results.has(key)}
    if save is None:
        return scored
    writer = PredictionWriter(save)
    saved = {key for key, folder in folders.items() if writer.has(folder)}
    foreign = next((folders[key] for key in folders if key in saved - scored), None)
    if foreign is not None:
        raise InputError(f"{save} already holds pictures of {foreign} from another run; save into another folder")
    return scored & saved


def score_all(
    jobs: Sequence[Any],
    kept: Set[str],
    start: Callable[[], Callable[[Any], str]],
    frames: Mapping[str, int],
    workers: int,
    progress: Progress | None,
) -> tuple[list[str], dict[str, str]]:
    """Score all but what is kept from a former run: the keys of the clips that could be, and why others could not.

    Args:
        jobs: each with a `key` (an `Entry`) or a `name`.
        kept: those of the jobs that are done.
        start: see `run_jobs`; a job gives the reason why it could not be scored, or an empty string.
        frames: of each job, for `progress`.
    """
    names = [_name(job) for job in jobs]
    waiting = [job for job in jobs if _name(job) not in kept]
    total = sum(frames.values())
    done = total - sum(frames[_name(job)] for job in waiting)
    skipped: dict[str, str] = {}
    if progress is not None:
        progress(done, total)
    for job, outcome in run_jobs(waiting, start, min(workers, len(waiting))):
        if isinstance(outcome, Crash):
            skipped[_name(job)] = f"the process that scored it died (exit code {outcome.exit_code})"
        elif outcome:
            skipped[_name(job)] = outcome
        done += frames[_name(job)]
        if progress is not None:
            progress(done, total)
    return [name for name in names if name not in skipped], skipped


def _name(job: Any) -> str:
    return str(job.key if isinstance(job, Entry) else job.name)


def what_was_scored(model: Export3D, weights: Path | str | None, split: Path) -> dict[str, Any]:
    """The settings that every protocol reports: weights, how they were trained, version, split and image size."""
    file = find(weights)
    return {
        "weights": f"{'packaged' if file == PACKAGED else title(file)}, tensors {_tensors_digest(model)}",
        "trained": load_weights(file)[2],
        "export3d": package_version(),
        "split": f"{split.resolve().name}, {len(read_index(split).entries)} records, {_shards_digest(split)}",
        "image_size": model.config.image_size,
    }


def origin_of(info: dict[str, Any]) -> str:
    """The data set or repository that a record's provenance names, or nothing."""
    origin = info.get("origin", {})
    return str(origin.get("source", "")) if isinstance(origin, dict) else ""


def _tensors_digest(model: Export3D) -> str:
    """Identifies weights by what they are, however the file was written."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return f"sha256 {digest.hexdigest()[:12]}"


def _shards_digest(split: Path) -> str:
    together = "".join(shard.sha256 for shard in read_index(split).shards)
    return f"shards sha256 {hashlib.sha256(together.encode()).hexdigest()[:12]}"


def package_version() -> str:
    try:
        return metadata.version("export3d")
    except metadata.PackageNotFoundError:
        return "unknown"


def pictures_digest(clips: Iterable[SavedClip]) -> str:
    """Identifies saved pictures by names, sizes and times, without reading them again."""
    digest = hashlib.sha256()
    for clip in clips:
        for path in sorted(clip.folder.rglob("*.png")):
            stat = path.stat()
            digest.update(f"{clip.name} {path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return f"files sha256 {digest.hexdigest()[:12]}"
