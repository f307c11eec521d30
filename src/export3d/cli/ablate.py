"""`export3d ablate`: trains and scores the variants of Table 3 with equal budgets."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import tyro

from export3d.ablation.rows import ROWS, Row
from export3d.ablation.scores import ablate
from export3d.cli.settings import Changes, Data, Output, Recipe, both
from export3d.cli.terminal import progress_bar, tell
from export3d.training.recipes import resolve
from export3d.training.reconstruction import ReconstructionConfig


def command(
    data: tyro.conf.Positional[Data[Path]] = None,
    *,
    output: Output = None,
    rows: tuple[Row, ...] = ROWS,
    recipe: Recipe = "base",
    config: Path | None = None,
    changes: Changes = (),
    from_pretrained: Path | None = None,
    pseudo: tuple[Path, ...] = (),
    cache: Path | None = None,
    pairs: Path | None = None,
    identity: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    frames: int = 40,
    every: int = 5,
    print_config: bool = False,
) -> int:
    """Train the variants of Table 3 with equal budgets, score them alike, and write one table.

    Repeating the command resumes an interrupted run and keeps finished rows. Recipes are those of train without
    model.variants, which each row sets itself.

    Examples:
      export3d ablate data -o ablation --set loop.max_images=3000
      export3d ablate data -o ablation --set loop.max_images=3000 --rows direct_3dmm clebs

    Args:
        data: folder of prepared shards with the splits train and val.
        output: folder for one run per row, ablation.md, ablation.json and sheet.png.
        rows: variants to train and compare; the others are compared with the last one.
        recipe: packaged settings.
        config: TOML file of settings in the form of a recipe; overrides the recipe.
        changes: a setting, such as loop.max_images=3000 (the budget per row); overrides recipe and file; may be
            repeated.
        from_pretrained: initial weights of all rows: a name, a file or a Hugging Face repository. By default all rows
            start from the same random weights, since weights trained with one row's encoder favour that row.
        pseudo: splits of pseudo-clips to train on as well.
        cache: folder that keeps decoded frames between runs.
        pairs: CSV file of sources and drivers for the cross-identity scores; by default a rule chooses them.
        identity: face descriptor for CSIM: dlib, or an ArcFace .onnx file; may be repeated; by default dlib.
        frames: maximum number of driving frames per clip in the cross-identity scores, evenly spaced.
        every: drive every N-th frame in the same-identity scores.
        print_config: print all settings as JSON and exit; needs neither DATA nor -o.
    """
    settings = resolve(ReconstructionConfig, recipe or "base", config, changes, instead={"model.variants": ()})
    if print_config:
        print(settings.to_json())
        return 0
    data, output = both(data, output)
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
            settings.config,
            settings.loop,
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
