"""`export3d animate --batch`: all animations of a list."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from export3d.cli.terminal import job_progress, tell
from export3d.engines.names import EngineName
from export3d.errors import ConfigError
from export3d.files import kind_at
from export3d.workers.cluster import Cluster

_TOLD = 10
"""Number of refused rows that are printed one by one; the report lists all of them."""


def animate_list(
    listed: str,
    output: str,
    shared: Mapping[str, object],
    crew: int | Cluster | None,
    weights: Path | None,
    pure: bool,
    device: str,
    batch_size: int,
    engine: EngineName,
) -> int:
    """Make the animations of a list; the exit code is 1 if rows were refused. See `animate.batch.animate_batch`."""
    if listed.isdecimal() and not kind_at(listed):
        raise ConfigError("--batch takes a list of animations (.csv); frames rendered together are --batch-size")
    from export3d.animate.batch import animate_batch

    with job_progress("animating", unit="video") as progress:
        report = animate_batch(
            listed,
            output,
            {name: str(value) for name, value in shared.items() if value not in (None, "")},
            weights=weights,
            device=device,
            pure=pure,
            engine=engine,
            batch=batch_size,
            workers=1 if crew is None else crew,
            progress=progress,
        )
    for row in report.refused[:_TOLD]:
        tell(f"row {row.row} ({row.output}) was refused: {row.reason}")
    if len(report.refused) > _TOLD:
        tell(f"refused: {len(report.refused) - _TOLD} more")
    print(report.summary())
    return 1 if report.refused else 0
