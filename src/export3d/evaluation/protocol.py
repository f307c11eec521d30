"""Evaluations: weights on a prepared split, driven by the same person's frames, and pictures that other models made.

A figure is a mean over a clip's frames, then over clips (`report`). Clips on which copying the source scores under 20
dB move; on the others a copy is nearly perfect. Clips are read, driven and forgotten one at a time, in one process or
in several, and what is done stays done (`results`).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export3d.animate.animator import pick_device
from export3d.checkpoint import load_weights
from export3d.data.shards import Entry, Record, read_index, read_tar
from export3d.data.workers import Crash, run_jobs
from export3d.errors import ConfigError, InputError, NoFaceFound
from export3d.evaluation.driven import BATCH, DrivenClip, Method, Reenactment, driven_chunks, driven_clip
from export3d.evaluation.figures import publishable
from export3d.evaluation.metrics import PSNR, Measure
from export3d.evaluation.predictions import PredictionWriter, SavedClip, read_predictions
from export3d.evaluation.references import REFERENCES
from export3d.evaluation.report import BASELINE, MOVING_DB, ClipResult, Report
from export3d.evaluation.results import Results, Shown, threads_for
from export3d.evaluation.scoring import CHUNK, Chunk, ClipScorer, ClipScores, Scoring
from export3d.image import to_uint8
from export3d.model import Export3D
from export3d.pretrained import load_pretrained
from export3d.weights import PACKAGED, find, title

Picture = NDArray[np.uint8]
Progress = Callable[[int, int], None]

OURS = "ours"
PREDICTION = "prediction"


@dataclass(frozen=True, kw_only=True)
class _Plan:
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


def same_identity(
    split: Path | str,
    out: Path | str,
    *,
    weights: Path | str | None = None,
    references: Sequence[str] = tuple(REFERENCES),
    scoring: Scoring = Scoring(),  # noqa: B008 - frozen
    every: int = 1,
    save: Path | str | None = None,
    workers: int = 0,
    publishable_only: bool = True,
    max_clips: int | None = None,
    device: str | torch.device = "auto",
    batch: int = BATCH,
    progress: Progress | None = None,
) -> Report:
    """Score weights and the references on a prepared split and write the report (`results`).

    A run that was cut goes on where it stopped, if it is repeated with the same settings into the same folder.

    Args:
        split: a folder of shards (`export3d prepare` makes one for each split); its still portraits are passed over.
        out: folder for the results, made if missing.
        weights: by default those inside the package.
        references: other methods that are scored alike, keys of `references.REFERENCES`; the copy always is, since it
            decides which clips move.
        scoring: what is measured, and by which networks.
        every: drive every N-th of the further frames; flicker is only defined for N = 1.
        save: folder for the pictures, in the layout of `predictions`.
        workers: processes; 0 scores in this one.
        publishable_only: show only people on the sheet whose pictures may be published (`figures.publishable`).
        max_clips: only the first clips of the split.
        device: "auto" (a CUDA device if there is one), or what `torch.device` takes.
        batch: frames driven together.
        progress: called with (frames done, frames), the latter an estimate.

    Raises:
        InputError: not a prepared split, no clip in it, or another expression space than the weights'.
        CheckpointError: no such weights.  MissingExtra: no tracker.
        OutputError: `out` cannot be written.  ConfigError: settings that cannot work, or no weights for LPIPS.
    """
    split = Path(split)
    if min(every, batch, 1 if max_clips is None else max_clips) < 1 or workers < 0:
        raise ConfigError("every, batch and the number of clips must be at least 1, workers at least 0")
    methods = _methods(references)
    chosen = pick_device(device)
    index = read_index(split)
    model = load_pretrained(weights)
    if index.space != model.config.space:
        raise InputError(
            f"{split} holds expressions in {index.space} but the weights were trained on {model.config.space}; "
            "prepare the clips in that space or use other weights"
        )
    with ClipScorer(scoring, chosen) as scorer:  # also: fail now where networks are missing
        measures, overall, networks = scorer.measures, scorer.overall_measures, scorer.description
    settings = {
        **what_was_scored(model, weights, split),
        "source": "most frontal found frame (smallest |yaw| + |pitch| + |roll|)",
        "driven": "every further found frame" if every == 1 else f"one in {every} of the further found frames",
        "moving": f"copy under {MOVING_DB:g} dB",
        **networks,
    }
    results = Results(
        Path(out),
        {
            **settings,
            "methods": methods,
            "measures": [(m.name, m.definition) for m in measures],
            "publishable_only": publishable_only,
        },
    )
    plan = _Plan(
        split=split,
        weights=None if weights is None else Path(weights),
        methods=methods,
        scoring=scoring,
        every=every,
        device=str(chosen),
        batch=batch,
        publishable_only=publishable_only,
        results=results,
        save=None if save is None else Path(save),
        workers=workers,
    )
    videos = [entry for entry in index.entries if entry.kind == "video"][:max_clips]
    scored, skipped = _score_videos(plan, videos, progress)
    title = f"Same-identity reenactment on {split.resolve().name}"
    return _report(results, scored, title, settings, methods, measures, overall, skipped)


def _methods(references: Sequence[str]) -> tuple[str, ...]:
    unknown = [name for name in references if name not in REFERENCES]
    if unknown:
        raise ConfigError(f"unknown reference {unknown[0]!r}; choose from {', '.join(REFERENCES)}")
    return (OURS, *(name for name in REFERENCES if name in references or name == BASELINE))


def _score_videos(plan: _Plan, videos: Sequence[Entry], progress: Progress | None) -> tuple[list[str], dict[str, str]]:
    """See `score_all`; raises `InputError` where nothing could be scored."""
    kept = kept_from_before(plan.results, plan.save, {entry.key: entry.key for entry in videos})
    frames = {entry.key: max(1, -(-(entry.frames - 1) // plan.every)) for entry in videos}
    scored, skipped = score_all(videos, kept, functools.partial(_Work, plan), frames, plan.workers, progress)
    if not scored:
        reason = next(iter(skipped.values()), "it holds no video")
        raise InputError(f"nothing in {plan.split} can be scored: {reason}; name a prepared split with clips")
    return scored, skipped


def score_predictions(
    folder: Path | str,
    out: Path | str,
    *,
    truth: bool = True,
    scoring: Scoring = Scoring(),  # noqa: B008 - frozen
    workers: int = 0,
    device: str | torch.device = "auto",
    progress: Progress | None = None,
) -> Report:
    """Score frames that any model wrote (`predictions`), with the same code and the copy beside them.

    Args:
        folder: CLIP/source.png, CLIP/target/00000.png…, CLIP/prediction/00000.png….
        truth: whether the targets show the source's person, and so are the true pictures; without it only what needs no
            truth is measured (identity, expression, pose, movement), as across identities.
        out, scoring, workers, device, progress: see `same_identity`.

    Raises:
        InputError: the folder has missing, superfluous, wrong or unreadable pictures: all are listed, none is scored.
        The rest as `same_identity`.
    """
    if workers < 0:
        raise ConfigError("workers must be at least 0")
    folder, chosen = Path(folder), pick_device(device)
    scoring = replace(scoring, truth=truth)
    with ClipScorer(scoring, chosen) as scorer:
        measures, overall, networks = scorer.measures, scorer.overall_measures, scorer.description
    clips = {clip.name: clip for clip in read_predictions(folder)}
    methods = (PREDICTION, BASELINE) if truth else (PREDICTION,)
    settings = {
        "predictions": f"{folder.resolve().name}, {len(clips)} clips, {_pictures_digest(clips.values())}",
        "export3d": _version(),
        "image_size": ", ".join(sorted({str(clip.size) for clip in clips.values()}, key=int)),
        **({"moving": f"copy under {MOVING_DB:g} dB"} if truth else {}),
        **networks,
    }
    results = Results(
        Path(out), {**settings, "methods": methods, "measures": [(m.name, m.definition) for m in measures]}
    )
    work = functools.partial(_SavedWork, scoring, str(chosen), results, workers, methods)
    frames = {clip.name: clip.count for clip in clips.values()}
    kept = {name for name in clips if results.has(name)}
    scored, skipped = score_all(list(clips.values()), kept, work, frames, workers, progress)
    if not scored:
        raise InputError(f"nothing in {folder} could be scored: {next(iter(skipped.values()))}")

    title = f"Predictions in {folder.resolve().name}"
    return _report(results, scored, title, settings, methods, measures, overall, skipped)


def _report(
    results: Results,
    scored: Sequence[str],
    title: str,
    settings: dict[str, Any],
    methods: tuple[str, ...],
    measures: tuple[Measure, ...],
    overall: tuple[Measure, ...],
    skipped: dict[str, str],
) -> Report:
    def build(
        clips: tuple[ClipResult, ...], distances: dict[str, dict[str, float]], credits: tuple[dict[str, str], ...]
    ) -> Report:
        return Report(title, settings, methods, measures, clips, distances, overall, skipped, credits)

    return results.finish(scored, build, overall)


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


class _Work:
    """Scores clips of a split, one at a time; a call returns why a clip could not be scored, or nothing."""

    def __init__(self, plan: _Plan) -> None:
        threads_for(plan.workers)
        self._plan = plan
        self._device = torch.device(plan.device)
        self._scorer = ClipScorer(plan.scoring, plan.device)
        model = load_pretrained(plan.weights).to(self._device)
        self._size = model.config.image_size
        self._methods: dict[str, Method] = {
            name: Reenactment(model) if name == OURS else REFERENCES[name](model) for name in plan.methods
        }
        self._space = model.config.space

    def __call__(self, entry: Entry) -> str:
        plan = self._plan
        record = next(r for r in read_tar(plan.split / entry.shard) if r.key == entry.key)
        try:
            clip = driven_clip(record, self._space, self._size, plan.every)
        except NoFaceFound as error:
            return str(error)
        farthest = clip.farthest
        shown: list[Picture] = []
        source = to_uint8(clip.images([clip.source]))[0]
        with contextlib.ExitStack() as stack:
            saved = None
            if plan.save is not None:
                saved = stack.enter_context(PredictionWriter(plan.save).clip(entry.key, source))

            def chunks() -> Iterator[Chunk]:
                for chunk in driven_chunks(clip, self._methods, self._device, plan.batch):
                    if saved is not None:
                        saved.add(chunk.targets, chunk.predictions[OURS])
                    at = np.flatnonzero(chunk.rows == farthest)
                    if len(at):
                        shown.extend((chunk.targets[at[0]], chunk.predictions[OURS][at[0]]))
                    yield chunk

            scores = self._scorer.score(entry.key, source, chunks(), len(clip.driven))
            result = _result(record, clip, scores)
            case = None
            if not plan.publishable_only or publishable(result.terms, result.origin):
                case = Shown(-result.value(BASELINE, PSNR.name), farthest, source, shown[0], shown[1])
            # Before the pictures get their name: a cut in between scores the clip again and loses nothing.
            plan.results.write(result, scores, case)
        return ""


def _result(record: Record, clip: DrivenClip, scores: ClipScores) -> ClipResult:
    info = record.info
    return ClipResult(
        record.key,
        str(info.get("person", record.key)),
        str(info.get("terms", "")),
        origin_of(info),
        scores.frames,
        clip.source,
        clip.identical,
        scores.scores,
        scores.worst,
        scores.note,
    )


class _SavedWork:
    """Scores saved predictions, one clip at a time."""

    def __init__(self, scoring: Scoring, device: str, results: Results, workers: int, methods: tuple[str, ...]) -> None:
        threads_for(workers)
        self._scorer = ClipScorer(scoring, device)
        self._results, self._methods = results, methods

    def __call__(self, clip: SavedClip) -> str:
        source = clip.source()

        def chunks() -> Iterator[Chunk]:
            for start in range(0, clip.count, CHUNK):
                targets, predictions = clip.frames(start, min(start + CHUNK, clip.count))
                made = {PREDICTION: predictions}
                if BASELINE in self._methods:
                    made[BASELINE] = np.broadcast_to(source, targets.shape)
                yield Chunk(start + np.arange(len(targets)), targets, made)

        scores = self._scorer.score(clip.name, source, chunks(), clip.count)
        result = ClipResult(clip.name, "", "", "", scores.frames, None, 0, scores.scores, scores.worst, scores.note)
        self._results.write(result, scores, None)
        return ""


def what_was_scored(model: Export3D, weights: Path | str | None, split: Path) -> dict[str, Any]:
    """The settings that every protocol reports: weights, how they were trained, version, split and image size."""
    file = find(weights)
    return {
        "weights": f"{'packaged' if file == PACKAGED else title(file)}, tensors {_tensors_digest(model)}",
        "trained": load_weights(file)[2],
        "export3d": _version(),
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


def _version() -> str:
    try:
        return metadata.version("export3d")
    except metadata.PackageNotFoundError:
        return "unknown"


def _pictures_digest(clips: Iterable[SavedClip]) -> str:
    """Identifies saved pictures by names, sizes and times, without reading them again."""
    digest = hashlib.sha256()
    for clip in clips:
        for path in sorted(clip.folder.rglob("*.png")):
            stat = path.stat()
            digest.update(f"{clip.name} {path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return f"files sha256 {digest.hexdigest()[:12]}"
