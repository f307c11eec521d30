"""`export3d pseudo-clips`: turns a prepared split's still portraits into clips with known changes of expression."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from export3d.cli.terminal import job_progress
from export3d.cli.working import who_works


def command(
    split: tyro.conf.Positional[str],
    *,
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])],
    face_model: Path,
    landmark_map: Path,
    frames: int = 13,
    seed: int = 0,
    limit: int | None = None,
    workers: int | None = None,
    ray: str | None = None,
    exclude: Path | None = None,
) -> int:
    """Make clips from still portraits, so that many people show the same known changes of expression.

    The output is a split like any other. Repeating the command continues an interrupted run.

    Args:
        split: a prepared split with portraits and videos (the folder that holds index.json), or its URL.
        output: folder of the new split, or its URL.
        face_model: morphable face model, ict_face.npz.
        landmark_map: positions of MediaPipe's landmarks on that model, mediapipe_to_ict.npz.
        frames: frames per clip, including the portrait itself.
        seed: determines the expressions and head turns of each portrait.
        limit: use at most this many portraits.
        workers: number of processes; by default 1; 0 uses this process.
        ray: work on a Ray cluster instead (extra cluster): its address, HOST:PORT or auto; without one, the
            processors of this machine.
        exclude: text file with the keys of portraits to leave out, one per line.
    """
    from export3d.data.pseudo_clips import pseudo_clips
    from export3d.errors import InputError
    from export3d.files import check_input, reading

    crew = who_works(workers, ray)
    shut: list[str] = []
    if exclude is not None:
        with reading(check_input(exclude, InputError, "a text file with one key per line")):
            shut = exclude.read_text(encoding="utf-8").split()
    with job_progress("reposing", unit="portrait") as progress:
        report = pseudo_clips(
            split, output, face_model, landmark_map, frames, seed, limit, 1 if crew is None else crew, shut, progress
        )
    print(report.summary())
    return 0
