"""Scores of images that any model saved (`predictions`)."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from export3d.animate.animator import pick_device
from export3d.errors import ConfigError, InputError
from export3d.evaluation.protocols.predictions import SavedClip, read_predictions
from export3d.evaluation.protocols.provenance import package_version, predictions_digest
from export3d.evaluation.protocols.results import Results
from export3d.evaluation.protocols.runner import Progress, score_all, share_threads
from export3d.evaluation.protocols.scoring import CHUNK, Chunk, ClipScorer
from export3d.evaluation.protocols.settings import Scoring
from export3d.evaluation.reports.clips import BASELINE, MOVING_DB, ClipResult
from export3d.evaluation.reports.report import Report

PREDICTION = "prediction"


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
    """Score frames that any model wrote, with the code that scores ours, and the copied source beside them.

    Args:
        folder: CLIP/source.png, CLIP/target/00000.png…, CLIP/prediction/00000.png….
        out: folder for the results; created if missing.
        truth: whether the targets show the source's person and so are the ground truth; without it only measures that
            need no ground truth are computed (identity, expression, pose, movement), as across identities.
        scoring, workers, device, progress: see `same.same_identity` and `RunSettings`.

    Raises:
        InputError: the folder has missing, surplus, wrong or unreadable images: all are listed, none is scored.
        The rest as `same_identity`.
    """
    if workers < 0:
        raise ConfigError("workers must be at least 0")
    folder, chosen = Path(folder), pick_device(device)
    with ClipScorer(scoring, chosen, truth=truth) as scorer:
        measures, overall, networks = scorer.measures, scorer.overall_measures, scorer.description
    clips = {clip.name: clip for clip in read_predictions(folder)}
    methods = (PREDICTION, BASELINE) if truth else (PREDICTION,)
    settings = {
        "predictions": f"{folder.resolve().name}, {len(clips)} clips, {predictions_digest(clips.values())}",
        "export3d": package_version(),
        "image_size": ", ".join(sorted({str(clip.size) for clip in clips.values()}, key=int)),
        **({"moving": f"copy under {MOVING_DB:g} dB"} if truth else {}),
        **networks,
    }
    results = Results(
        Path(out), {**settings, "methods": methods, "measures": [(m.name, m.definition) for m in measures]}
    )
    work = functools.partial(_SavedWork, scoring, truth, str(chosen), results, workers)
    frames = {clip.name: clip.count for clip in clips.values()}
    finished = {name for name in clips if results.has(name)}
    scored, skipped = score_all(list(clips.values()), finished, work, frames, workers, progress)
    if not scored:
        raise InputError(f"nothing in {folder} could be scored: {next(iter(skipped.values()))}")
    report = Report(
        title=f"Predictions in {folder.resolve().name}",
        settings=settings,
        methods=methods,
        measures=measures,
        clips=results.clips(scored),
        overall=results.distances(scored, overall),
        overall_measures=overall,
        skipped=skipped,
    )
    return results.write_report(report)


class _SavedWork:
    """Scores saved predictions, one clip at a time."""

    def __init__(self, scoring: Scoring, truth: bool, device: str, results: Results, workers: int) -> None:
        share_threads(workers)
        self._scorer = ClipScorer(scoring, device, truth=truth)
        self._results, self._truth = results, truth

    def __call__(self, clip: SavedClip) -> str:
        source = clip.source()

        def chunks() -> Iterator[Chunk]:
            for start in range(0, clip.count, CHUNK):
                targets, predictions = clip.frames(start, min(start + CHUNK, clip.count))
                made = {PREDICTION: predictions}
                if self._truth:
                    made[BASELINE] = np.broadcast_to(source, targets.shape)
                yield Chunk(start + np.arange(len(targets)), targets, made)

        scores = self._scorer.score(clip.name, source, chunks(), clip.count)
        result = ClipResult(
            key=clip.name,
            person="",
            terms="",
            origin="",
            frames=scores.frames,
            source_frame=None,
            identical_frames=0,
            scores=scores.scores,
            worst_frame=scores.worst,
            note=scores.note,
        )
        self._results.write(result, scores, None)
        return ""
