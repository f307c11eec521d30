"""`export3d bench`: measures how fast each stage runs on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import tyro

from export3d.cli.terminal import job_progress, tell
from export3d.engines.names import EngineName


def command(
    *,
    weights: Path | None = None,
    device: str = "auto",
    engine: EngineName = "auto",
    batch: int = 6,
    threads: int | None = None,
    output: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    against: Path | None = None,
) -> int:
    """Measure how fast each stage runs on this machine, and what share of the machine's own limits that is.

    Needs no files: it animates the packaged portrait, and decodes and tracks a clip made of it.

    Args:
        weights: a name that `export3d weights` lists, or a .safetensors file; by default the packaged weights.
        device: cpu, cuda, or auto.
        engine: how the network is run: reference (float32), torch (the processor's or GPU's fast number format),
            openvino (extra fast), or auto: openvino on x86 processors where it is installed, else torch.
        batch: number of frames to render together.
        threads: threads of the processor; by default one per core.
        output: also write the figures to this file (.json).
        against: a file that --json wrote; adds how many times as fast this run is, by stage.
    """
    from export3d.animate.export import check_output
    from export3d.bench.report import load_report
    from export3d.errors import ConfigError

    cores = os.cpu_count() or 1
    if threads is not None and not 1 <= threads <= cores:
        raise ConfigError(f"--threads must be 1 to {cores}, the cores of this machine, got {threads}")
    if output is not None:
        check_output(output, (".json",), [file for file in (weights, against) if file is not None])
    former = None if against is None else load_report(against)

    import torch

    from export3d.animate.animator import Animator
    from export3d.bench.run import bench
    from export3d.weights.names import PACKAGED, find, title

    file = find(weights)
    animator = Animator.from_pretrained(weights, device, engine=engine)
    if former is not None and against is not None:
        former.check_size(animator.size, against)
    with job_progress("measuring", unit="round", stages=True) as progress:
        report = bench(
            animator,
            "packaged" if file == PACKAGED else title(file),
            batch,
            threads or torch.get_num_threads(),
            progress=progress,
        )
    print(report.table(former))
    if output is not None:
        report.save(output)
        tell(f"wrote {output}")
    return 0
