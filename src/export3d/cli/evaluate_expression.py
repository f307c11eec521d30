"""`export3d evaluate-expression`: measures how much appearance is left in expressions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from export3d.cli.terminal import tell


def command(
    data: tyro.conf.Positional[Path],
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    encoder: tuple[Path, ...] = (),
    pairs: Path | None = None,
    people: tuple[str, ...] = (),
) -> int:
    """Measure how much of a person's appearance expressions encode, raw and through expression encoders.

    Args:
        data: folder with the splits train and val, made by `export3d prepare`.
        output: folder for expression.json, expression.md and tsne.png; created if missing.
        encoder: .safetensors files of expression encoders or of whole models; each becomes a row.
        pairs: CSV of portraits with the columns person, neutral, smiling (keys of records); without it, the test of the
            held expression is skipped.
        people: people whose clips the probes use; by default everyone with a clip in val.
    """
    from export3d.evaluation.appearance.expression_report import evaluate_expression

    report = evaluate_expression(data, output, encoder, pairs=pairs, people=people)
    print(report.markdown())
    tell(f"wrote {output / 'expression.json'}")
    return 0
