"""Evaluations: weights on a prepared split, driven by the same person's frames, and pictures that other models made.

A figure is a mean over a clip's frames, then over clips (`report`). Clips on which copying the source scores under 20
dB move; on the others a copy is nearly perfect. Clips are read, driven and forgotten one at a time, in one process or
in several, and what is done stays done (`results`).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export3d.animate.animator import pick_device
from export3d.data.shards import Entry, Record, read_index, read_tar
from export3d.errors import ConfigError, InputError, NoFaceFound
from export3d.evaluation.measures.image import PSNR, Measure
from export3d.evaluation.protocols.driven import BATCH, DrivenClip, Method, Reenactment, driven_chunks, driven_clip
from export3d.evaluation.protocols.predictions import PredictionWriter
from export3d.evaluation.protocols.references import REFERENCES
from export3d.evaluation.protocols.results import Results, Shown, threads_for
from export3d.evaluation.protocols.runner import (
    Plan,
    Progress,
    kept_from_before,
    origin_of,
    score_all,
    what_was_scored,
)
from export3d.evaluation.protocols.scoring import Chunk, ClipScorer, ClipScores, Scoring
from export3d.evaluation.reports.figures import publishable
from export3d.evaluation.reports.report import BASELINE, MOVING_DB, ClipResult, Report
from export3d.image import to_uint8
from export3d.pretrained import load_pretrained

Picture = NDArray[np.uint8]

OURS = "ours"


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
    plan = Plan(
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
    return make_report(results, scored, title, settings, methods, measures, overall, skipped)


def _methods(references: Sequence[str]) -> tuple[str, ...]:
    unknown = [name for name in references if name not in REFERENCES]
    if unknown:
        raise ConfigError(f"unknown reference {unknown[0]!r}; choose from {', '.join(REFERENCES)}")
    return (OURS, *(name for name in REFERENCES if name in references or name == BASELINE))


def _score_videos(plan: Plan, videos: Sequence[Entry], progress: Progress | None) -> tuple[list[str], dict[str, str]]:
    """See `score_all`; raises `InputError` where nothing could be scored."""
    kept = kept_from_before(plan.results, plan.save, {entry.key: entry.key for entry in videos})
    frames = {entry.key: max(1, -(-(entry.frames - 1) // plan.every)) for entry in videos}
    scored, skipped = score_all(videos, kept, functools.partial(_Work, plan), frames, plan.workers, progress)
    if not scored:
        reason = next(iter(skipped.values()), "it holds no video")
        raise InputError(f"nothing in {plan.split} can be scored: {reason}; name a prepared split with clips")
    return scored, skipped


def make_report(
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


class _Work:
    """Scores clips of a split, one at a time; a call returns why a clip could not be scored, or nothing."""

    def __init__(self, plan: Plan) -> None:
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
