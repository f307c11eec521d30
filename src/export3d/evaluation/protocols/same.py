"""Same-identity reenactment: a clip's most frontal frame is driven by the clip's other frames (`driven`).

A figure is a mean over a clip's frames, then over clips (`reports.report`). A clip counts as moving if copying the
source scores under 20 dB; on still clips a copy is nearly perfect. Clips are read, driven and released one at a time,
in one process or in several, and finished clips are kept (`results`).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from export3d.animate.animator import pick_device
from export3d.data.shards import Entry, Index, Record, read_index, read_record
from export3d.engines.choice import pick_engine
from export3d.errors import ConfigError, InputError, NoFaceFound
from export3d.evaluation.measures.image import PSNR
from export3d.evaluation.measures.rendered import MEASURES as RENDERED
from export3d.evaluation.protocols.driven import DrivenClip, Method, Reenactment, driven_chunks, driven_clip
from export3d.evaluation.protocols.originals import check_size, folders_of, resized, with_pixels
from export3d.evaluation.protocols.prediction_writer import PredictionWriter
from export3d.evaluation.protocols.provenance import (
    engine_of_run,
    inputs_of_run,
    name_of_split,
    origin_of,
    sizes_of_run,
)
from export3d.evaluation.protocols.references import REFERENCES
from export3d.evaluation.protocols.results import Results, Shown
from export3d.evaluation.protocols.runner import Progress, finished_clips, score_all, share_threads
from export3d.evaluation.protocols.scoring import Chunk, ClipScorer, ClipScores
from export3d.evaluation.protocols.settings import RunSettings, Scoring
from export3d.evaluation.reports.clips import BASELINE, ENLARGED, MOVING_DB, ORACLE, OURS, ClipResult
from export3d.evaluation.reports.figures import publishable
from export3d.evaluation.reports.report import Report
from export3d.face.crop import CROP_SIZE
from export3d.locations import Place, as_place
from export3d.model import Export3D
from export3d.pretrained import load_pretrained

Picture = NDArray[np.uint8]


def same_identity(
    split: Path | str,
    out: Path | str,
    *,
    weights: Path | str | None = None,
    references: Sequence[str] = tuple(REFERENCES),
    scoring: Scoring = Scoring(),  # noqa: B008 - frozen
    every: int = 1,
    max_clips: int | None = None,
    size: int | None = None,
    originals: Path | str | None = None,
    publishable_only: bool = True,
    run: RunSettings = RunSettings(),  # noqa: B008 - frozen
    progress: Progress | None = None,
) -> Report:
    """Score weights and references on a prepared split and write the report (`results`).

    A run that was stopped continues if it is repeated with the same settings into the same folder.

    Args:
        split: a folder of shards (`export3d prepare` makes one per split) or its URL; still portraits are skipped.
        out: folder for the results, created if missing, or its URL.
        weights: by default those inside the package.
        references: other methods to score, keys of `references.REFERENCES`; the copy is always scored because it
            decides which clips move.
        scoring: measures and their networks.
        every: drive every N-th of the other frames; flicker is only defined for N = 1.
        max_clips: only the first clips of the split.
        size: of the frames, pixels across the face crop; by default the model's. At another size the pixels come from
            the files that the clips were prepared from, clips whose crop has fewer are left out, and so is the oracle,
            which would show the driving frame's own pixels.
        originals: at another size, a folder in which those files are looked for first, see `originals.folders_of`.
        publishable_only: show on the sheet only people whose images may be published (`figures.publishable`).
        run: device, processes, batch, engine, and where images are saved.
        progress: called with (frames done, frames); the latter is an estimate.

    Raises:
        InputError: not a prepared split, no clip in it, none with enough pixels, or another expression space than the
            weights'.
        CheckpointError: no such weights.  MissingExtra: no tracker.
        OutputError: `out` cannot be written.  ConfigError: invalid settings, or no weights for LPIPS.
    """
    split = as_place(split)
    if min(every, 1 if max_clips is None else max_clips) < 1:
        raise ConfigError("every and the number of clips must be at least 1")
    methods = _methods(references, size)
    device = pick_device(run.device_of_crew)
    index, model = _matching(split, weights)
    check_size(size, model)
    folders = () if size is None else folders_of(split, originals)
    videos, small = [entry for entry in index.entries if entry.kind == "video"], dict[str, str]()
    if size is not None:
        videos, small = with_pixels(split, videos, size, folders)
    videos = videos[:max_clips]
    shares = () if size is not None else RENDERED if scoring.faces else RENDERED[:1]
    with ClipScorer(
        scoring, device, resized=size is not None
    ) as scorer:  # missing networks are reported before anything is scored
        measures, overall, networks = (*scorer.measures, *shares), scorer.overall_measures, scorer.description
    settings = {
        **inputs_of_run(model, weights, split),
        **sizes_of_run(size),
        **engine_of_run(model.to(device), run),
        "source": "most frontal found frame (smallest |yaw| + |pitch| + |roll|)",
        "driven": "every further found frame" if every == 1 else f"one in {every} of the further found frames",
        "moving": f"copy under {MOVING_DB:g} dB",
        **networks,
    }
    deciding = {"methods": methods, "publishable_only": publishable_only}
    results = Results(out, settings | deciding | {"measures": [(m.name, m.definition) for m in measures]})
    plan = _Plan(
        split=split,
        weights=None if weights is None else Path(weights),
        methods=methods,
        scoring=scoring,
        every=every,
        size=size,
        folders=folders,
        device=str(device),
        publishable_only=publishable_only,
        run=run,
        results=results,
    )
    scored, skipped = _score_videos(plan, videos, progress)
    report = Report(
        title=f"Same-identity reenactment on {name_of_split(split)}" + ("" if size is None else f", {size} px"),
        settings=settings,
        methods=methods,
        measures=measures,
        clips=results.clips(scored),
        overall=results.distances(scored, overall),
        overall_measures=overall,
        skipped=small | skipped,
    )
    return results.write_report(report)


def _matching(split: Place, weights: Path | str | None) -> tuple[Index, Export3D]:
    """The split's index and the model; `InputError` if their expression spaces differ."""
    index, model = read_index(split), load_pretrained(weights)
    if index.space != model.config.space:
        raise InputError(
            f"{split} holds expressions in {index.space} but the weights were trained on {model.config.space}; "
            "prepare the clips in that space or use other weights"
        )
    return index, model


def _methods(references: Sequence[str], size: int | None) -> tuple[str, ...]:
    unknown = [name for name in references if name not in REFERENCES]
    if unknown:
        raise ConfigError(f"unknown reference {unknown[0]!r}; choose from {', '.join(REFERENCES)}")
    names = [name for name in REFERENCES if name in references or name == BASELINE]
    return (OURS, *names) if size is None else (OURS, ENLARGED, *(name for name in names if name != ORACLE))


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What a process needs to score clips of a split. Its values can be sent to another process."""

    split: Place
    weights: Path | None
    methods: tuple[str, ...]
    scoring: Scoring
    every: int
    size: int | None
    folders: tuple[Path, ...]
    device: str
    publishable_only: bool
    run: RunSettings
    results: Results


def _score_videos(plan: _Plan, videos: Sequence[Entry], progress: Progress | None) -> tuple[list[str], dict[str, str]]:
    """See `score_all`; raises `InputError` if no clip could be scored."""
    finished = finished_clips(plan.results, plan.run.save, {entry.key: entry.key for entry in videos})
    frames = {entry.key: max(1, -(-(entry.frames - 1) // plan.every)) for entry in videos}
    scored, skipped = score_all(videos, finished, functools.partial(_Work, plan), frames, plan.run.crew, progress)
    if not scored:
        reason = next(iter(skipped.values()), "it holds no video")
        advice = "" if ";" in reason else "; name a prepared split with clips"  # some reasons end with their own
        raise InputError(f"nothing in {plan.split} can be scored: {reason}{advice}")
    return scored, skipped


class _Work:
    """Scores clips of a split, one at a time; a call returns why a clip could not be scored, or an empty string."""

    def __init__(self, plan: _Plan) -> None:
        share_threads(plan.run.crew)
        self._plan = plan
        self._device = torch.device(plan.device)
        self._scorer = ClipScorer(plan.scoring, plan.device, resized=plan.size is not None)
        model = load_pretrained(plan.weights).to(self._device)
        self._size = model.config.image_size
        self._methods: dict[str, Method] = {
            name: Reenactment(pick_engine(model, plan.run.engine)) if name == OURS else REFERENCES[name](model)
            for name in plan.methods
            if name != ENLARGED  # comes with ours
        }
        self._space = model.config.space

    def __call__(self, entry: Entry) -> str:
        try:
            self._score(entry)
        except NoFaceFound as error:
            return str(error)
        except InputError as error:
            if self._plan.size is None:
                raise
            return str(error)  # of a file that is not part of the split
        return ""

    def _score(self, entry: Entry) -> None:
        plan = self._plan
        record = read_record(plan.split, entry)
        clip = driven_clip(record, self._space, self._size, plan.every, plan.size, plan.folders)
        farthest = clip.farthest
        shown: list[Picture] = []
        source = clip.source_picture
        with contextlib.ExitStack() as stack:
            saved = None
            if plan.run.save is not None:
                saved = stack.enter_context(PredictionWriter(plan.run.save).clip(entry.key, source))

            def chunks() -> Iterator[Chunk]:
                for chunk in driven_chunks(clip, self._methods, self._device, plan.run.batch):
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
                images = np.stack([source, *shown])
                images = images if plan.size is None else resized(images, CROP_SIZE)
                case = Shown(-result.value(BASELINE, PSNR.name), farthest, *images)
            # Before the saved images get their final name: a stop in between only scores the clip again.
            plan.results.write(result, scores, case)


def _result(record: Record, clip: DrivenClip, scores: ClipScores) -> ClipResult:
    info = record.info
    return ClipResult(
        key=record.key,
        person=str(info.get("person", record.key)),
        terms=str(info.get("terms", "")),
        origin=origin_of(info),
        frames=scores.frames,
        source_frame=clip.source,
        identical_frames=clip.identical,
        scores=scores.scores,
        worst_frame=scores.worst,
        note=scores.note,
    )
