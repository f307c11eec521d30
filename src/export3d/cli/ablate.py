"""`export3d ablate`: the variants of Table 3 with equal budgets."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any

import tyro

from export3d.ablation.rows import ROWS, Row
from export3d.ablation.scores import ablate
from export3d.cli.terminal import progress_bar, tell
from export3d.training.loop_config import LoopConfig
from export3d.training.reconstruction import ReconstructionConfig


def command(
    data: tyro.conf.Positional[Path],
    config: ReconstructionConfig = ReconstructionConfig(),  # noqa: B008 - frozen
    loop: LoopConfig = LoopConfig(),  # noqa: B008 - frozen
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    rows: tuple[Row, ...] = ROWS,
    from_pretrained: Path | None = None,
    pseudo: tuple[Path, ...] = (),
    cache: Path | None = None,
    pairs: Path | None = None,
    identity: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    frames: int = 40,
    every: int = 5,
) -> int:
    """Train the variants of Table 3 with equal budgets, score them alike, and put them into one table.

    Started again with the same options it goes on where it was stopped; finished rows stay.

    Args:
        data: folder of prepared shards, with `train` and `val` in it.
        config: what is trained, the same for all rows but for the row's own variant.
        loop: how it is trained; --max-images is the budget of each row.
        output: folder for a run a row, ablation.md, ablation.json and sheet.png.
        rows: variants to train and compare; the last one is what the others are compared with.
        from_pretrained: weights that all rows begin with, by name, file or Hugging Face repository; by default the same
            random ones, since weights that were trained with one row's encoder favour that row.
        pseudo: splits of pseudo-clips to train on beside the real ones.
        cache: folder that keeps decoded frames between runs.
        pairs: CSV file of sources and drivers for the cross-identity scores; by default a rule chooses them.
        identity: descriptor behind CSIM: dlib, or an ArcFace .onnx file; may be repeated; dlib by default.
        frames: the cross-identity scores drive by at most so many evenly spaced frames of a clip.
        every: the same-identity scores drive every N-th frame.
    """
    bars: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:

        def progress(title: str, done: int, frames: int) -> None:
            if title not in bars:
                stack.close()
                bars[title] = stack.enter_context(progress_bar(title))
            bars[title].total = frames
            bars[title].update(done - bars[title].n)

        found = ablate(
            data,
            output,
            config,
            loop,
            rows,
            from_pretrained=from_pretrained,
            pseudo=pseudo,
            cache=cache,
            pairs=pairs,
            identity=identity or ("dlib",),
            frames=frames,
            every=every,
            progress=progress,
        )
    if found is not None:
        print(found.markdown())
        tell(f"wrote {output / 'ablation.md'}")
    return 0
