"""Scores of images that any other model saved."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from export3d.animate.animator import pick_device
from export3d.errors import ConfigError, InputError
from export3d.evaluation.protocols.predictions import SavedClip, read_predictions
from export3d.evaluation.protocols.results import Results, threads_for
from export3d.evaluation.protocols.runner import Progress, package_version, pictures_digest, score_all
from export3d.evaluation.protocols.same import make_report
from export3d.evaluation.protocols.scoring import CHUNK, Chunk, ClipScorer, Scoring
from export3d.evaluation.reports.report import BASELINE, MOVING_DB, ClipResult, Report

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
        "predictions": f"{folder.resolve().name}, {len(clips)} clips, {pictures_digest(clips.values())}",
        "export3d": package_version(),
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
    return make_report(results, scored, title, settings, methods, measures, overall, skipped)


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
