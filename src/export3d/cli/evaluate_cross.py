"""`export3d evaluate cross`: scores weights on people driven by other people's clips."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from export3d.cli.evaluate import scored, told
from export3d.cli.terminal import job_progress, tell
from export3d.evaluation.protocols.settings import RunSettings


def command(
    data: tyro.conf.Positional[str | None] = None,
    run: RunSettings = RunSettings(),  # noqa: B008 - frozen
    *,
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])] = "evaluation",
    split: str = "val",
    clips: Path | None = None,
    weights: Path | None = None,
    pairs: Path | None = None,
    identity: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    expression: str = "arkit52",
    motion: Literal["absolute", "relative"] = "absolute",
    frames: int = 40,
    against: Path | None = None,
    max_pairs: int | None = None,
    size: int | None = None,
) -> int:
    """Score weights on pairs of people, one driven by the other's clip: identity, leaked appearance and motion.

    Writes report.html, report.md, report.json and sheet.png. Repeating the command continues an interrupted run.

    Args:
        data: folder that `export3d prepare` made, or one split in it; or its URL (s3, http, …); by default
            the folder data.
        run: how the clips are rendered.
        output: folder for the results, created if missing, or its URL (s3, …).
        split: name of the split.
        clips: folder of your own videos, instead of DATA; with DATA and --size, the folder that it was prepared from.
        weights: a name that `export3d weights` lists, or a .safetensors file; by default the packaged weights.
        pairs: CSV file of sources and drivers; by default every clip drives the next two people.
        identity: face descriptor for CSIM: dlib, or an ArcFace .onnx file; may be repeated; by default dlib.
        expression: reader of expression and pose for AED and APD: arkit52, or a Deep3DFaceRecon .onnx file.
        motion: absolute uses the driver's expression and head angles, relative uses their change.
        frames: maximum number of frames per driving clip, evenly spaced.
        against: report.json of another run; adds the differences for each pair.
        max_pairs: use only the first pairs.
        size: pixels across the face crop of the results, 256 to 1024; sources with fewer are left out.
    """
    from export3d.evaluation.protocols.cross import cross_identity

    shown = scored(data, split, clips, output, size)
    with job_progress("scoring", unit="frame") as progress:
        report = cross_identity(
            shown.split,
            output,
            weights=weights,
            pairs=pairs,
            identity=identity or ("dlib",),
            expression=expression,
            motion=motion,
            frames=frames,
            against=against,
            max_pairs=max_pairs,
            size=size,
            originals=shown.originals,
            publishable_only=not shown.own,
            run=run,
            progress=progress,
        )
    print(report.markdown())
    tell(told(output, report.credits, not shown.own))
    return 0
