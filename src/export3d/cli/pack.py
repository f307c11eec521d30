"""`export3d pack`: packs prepared splits as JPEG frames for a machine without a video decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from export3d.cli.terminal import job_progress


def command(
    data: tyro.conf.Positional[str],
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    size: int = 256,
    every: int = 1,
    quality: int = 92,
) -> int:
    """Pack prepared data as JPEG frames in parts of at most 50 MB, to train on another machine.

    The folder can stand in place of DATA for `train`, `refine` and `python -m export3d.training`. It is read without a
    video decoder. With MediaPipe installed, masks of the people come along, which training `base` needs.

    Args:
        data: folder of prepared shards, or its URL: its splits train, val and pseudo/train are packed; or one split.
        output: folder for the packed frames.
        size: side of the frames, pixels; training can use them at this size or smaller.
        every: keep one of so many frames of each video, as neighbouring frames are near-duplicates.
        quality: of the JPEG images, 1 to 100.
    """
    from export3d.data.packing import pack

    with job_progress("packing", unit="clip") as progress:
        packed = pack(data, output, size, every=every, quality=quality, progress=progress)
    for name, (frames, size_bytes) in packed.items():
        print(f"{name}: {frames} frames, {size_bytes / 1e6:.1f} MB")
    return 0
