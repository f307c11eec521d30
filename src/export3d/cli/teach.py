"""`export3d teach`: a trained model renders training data for another one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from export3d.cli.terminal import job_progress, tell


def command(
    data: tyro.conf.Positional[str],
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    split: str = "train",
    weights: Path | None = None,
    expressions: int = 8,
    cameras: int = 1,
    seed: int = 0,
    limit: int | None = None,
    device: str = "auto",
) -> int:
    """Render the people of a split under each other's expressions, for another model to learn from.

    The output holds shards like any other. Repeating the command continues an interrupted run.

    Args:
        data: folder of prepared shards, or its URL (http, https, s3, …).
        output: folder of the taught shards, with one subfolder per split.
        split: split whose portraits and clips are rendered; its clips also provide the expressions.
        weights: the teacher: a name that `export3d weights` lists, a .safetensors file, or a Hugging Face repository
            owner/name; by default base. It must move landmarks, as base does.
        expressions: images rendered of a source at one camera.
        cameras: groups of images per portrait or clip, each at a camera of its own.
        seed: determines source frames, expressions and cameras.
        limit: use at most this many portraits and clips.
        device: cpu, cuda, or auto.
    """
    from export3d.animate.animator import pick_device
    from export3d.data.teacher import teach

    with job_progress("teaching", unit="group") as progress:
        report = teach(
            data,
            output,
            weights,
            split=split,
            expressions=expressions,
            cameras=cameras,
            seed=seed,
            limit=limit,
            device=pick_device(device),
            progress=progress,
        )
    print(report.summary())
    if split == "train":
        tell(f"to train on them too: export3d train {data} --recipe core --set data.taught={output}")
    return 0
