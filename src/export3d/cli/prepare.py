"""`export3d prepare`: videos and portraits to training shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from export3d.cli.terminal import progress_bar


def command(
    clips: tyro.conf.Positional[tuple[Path, ...]] = (),
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    manifest: Path | None = None,
    workers: int | None = None,
    val_fraction: float = 0.0,
    resume: bool = True,
) -> int:
    """Turn videos and still portraits into training shards: track, crop, 256 x 256 at 25 fps.

    What was refused, and why, stands in report.csv; a run that was stopped goes on where it stopped.

    Args:
        clips: videos, portraits, and folders that are searched for them; with a manifest, none means all of its files.
        output: folder for the shards, one folder for each split, and the report.
        manifest: CSV with the columns file, person, split, and perhaps terms; files are relative to it.
        workers: processes; by default one for each core, 0 works in this process.
        val_fraction: without a manifest, the share of people that go to the split val.
        resume: keep what was finished before; with --no-resume everything given is done again.
    """
    from export3d.data.prepare import prepare

    with progress_bar("preparing", unit="file") as bar:

        def progress(done: int, files: int, name: str) -> None:
            bar.total = files
            bar.set_postfix_str(name, refresh=False)
            bar.update(done - bar.n)

        report = prepare(clips, output, manifest, workers, resume, val_fraction, progress=progress)
    print(report.summary())
    return 0
