"""`export3d prepare`: converts videos and portraits to training shards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from export3d.cli.terminal import job_progress, tell
from export3d.cli.working import who_works
from export3d.errors import ConfigError, InputError, counted
from export3d.locations import as_place, inside

if TYPE_CHECKING:
    from export3d.data.prepare import Report
    from export3d.workers.run import Workers

_TOLD = 10
"""Number of skipped files that are printed one by one; the report lists all of them."""


def command(
    clips: tyro.conf.Positional[tuple[str, ...]] = (),
    *,
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])],
    manifest: str | None = None,
    coefficients: Path | None = None,
    workers: int | None = None,
    ray: str | None = None,
    val_fraction: float | None = None,
    resume: bool = True,
    pseudo_clips: bool = False,
    face_model: Path | None = None,
    landmark_map: Path | None = None,
) -> int:
    """Turn videos and still portraits into training shards: track, crop, 256 x 256 at 25 fps.

    report.csv lists skipped files with the reason. Repeating the command continues an interrupted run.

    Args:
        clips: videos, portraits, and folders of them, or their URLs (s3, http, …); with a manifest, by default all of
            its files.
        output: folder or URL (s3, …) for the shards, one subfolder per split, and the report.
        manifest: CSV with the columns file, person, split, and optionally terms and sitting; paths are relative to it.
        coefficients: folder of Deep3DFaceRecon files named like the clips, a frame for each of theirs at 25 fps; they
            replace the tracked expression scores.
        workers: number of processes; by default one per core; 0 uses this process.
        ray: prepare on a Ray cluster instead (extra cluster): its address, HOST:PORT or auto; without one, the
            processors of this machine.
        val_fraction: without a manifest, the share of the videos to hold out (split val), rounded, at least one of two
            or more; by default a tenth, and at least one of four or more; 0 holds out none.
        resume: by default finished files are kept; --no-resume prepares everything again.
        pseudo_clips: also make clips from the portraits of split train, in pseudo/train (see `export3d pseudo-clips`).
        face_model: morphable face model for --pseudo-clips, ict_face.npz.
        landmark_map: positions of MediaPipe's landmarks on that model, mediapipe_to_ict.npz.
    """
    if not pseudo_clips and (face_model or landmark_map):
        raise ConfigError("--face-model and --landmark-map are for --pseudo-clips; add it, or leave them out")
    if pseudo_clips and (face_model is None or landmark_map is None):
        raise ConfigError("--pseudo-clips needs a morphable face; give its files with --face-model and --landmark-map")
    if pseudo_clips and coefficients is not None:
        raise ConfigError("pseudo-clips have tracked scores and cannot join --coefficients; leave one of them out")
    crew = who_works(workers, ray)
    from export3d.data.prepare import prepare

    with job_progress("preparing", unit="file") as progress:
        report = prepare(clips, output, manifest, crew, resume, val_fraction, None, progress, coefficients)
    _tell_skipped(report)
    print(report.summary())
    if manifest is None:
        _tell_held_out(report)
    if face_model is not None and landmark_map is not None:
        _make_pseudo_clips(output, face_model, landmark_map, crew)
    return 0


def _tell_skipped(report: Report) -> None:
    """Print a sentence for each file or stretch that was skipped; `InputError` if no file can be used."""
    if not any(figures["records"] for figures in report.splits.values()):
        if len(report.reasons) == 1:
            count = len(report.rejects)
            raise InputError(f"none of {counted(count, 'file')} can be used; the first: {report.rejects[0].detail}")
        reasons = ", ".join(f"{count} {reason}" for reason, count in report.reasons.items())
        raise InputError(
            f"none of the files can be used ({reasons}; see {inside(report.out, 'report.csv')}); give videos or "
            "portraits of one face that is close, well lit and not turned away"
        )
    for reject in report.rejects[:_TOLD]:
        tell(f"skipped ({reject.reason}): {reject.detail}")
    if len(report.rejects) > _TOLD:
        tell(f"skipped: {len(report.rejects) - _TOLD} more")


def _tell_held_out(report: Report) -> None:
    counts = {name: figures["videos"] for name, figures in report.splits.items()}
    held_out, train = counts.get("val", 0), counts.get("train", 0)
    if held_out:
        tell(
            f"held out for validation (split val): {held_out} of {counted(held_out + train, 'video')}; if all "
            "videos show one person, the validation figures are for a face seen in training"
        )
    elif train:
        tell("no video is held out, so training reports no figures on unseen videos")


def _make_pseudo_clips(output: str, face_model: Path, landmark_map: Path, crew: Workers | None) -> None:
    import os

    from export3d.data.pseudo_clips import pseudo_clips

    workers = (os.cpu_count() or 1) if crew is None else crew
    split, made = (inside(as_place(output), name) for name in ("train", "pseudo/train"))
    with job_progress("reposing", unit="portrait") as progress:
        report = pseudo_clips(split, made, face_model, landmark_map, workers=workers, progress=progress)
    print(report.summary())
    tell(f"to train on them too: export3d train {output} --pseudo {made}")
