"""`export3d evaluate`: shared by its three subcommands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import tyro

from export3d.errors import ConfigError, InputError
from export3d.evaluation.protocols.settings import Scoring
from export3d.files import check_folder
from export3d.locations import Place, as_place, inside, read


@dataclass(frozen=True, kw_only=True)
class ScoringOptions(Scoring):
    """`Scoring` with a repeatable option for the descriptors: `--identity dlib --identity arcface.onnx`."""

    identity: tyro.conf.UseAppendAction[tuple[str, ...]] = ()

    def scoring(self) -> Scoring:
        """The settings, with the default descriptor if none is given."""
        return replace(self, identity=self.identity or Scoring.identity)


def split_folder(data: Path | str, split: str, clips: Path | None, output: Path | str) -> Place:
    """The folder of shards to score, or its URL; videos given with `--clips` are prepared first.

    Raises:
        InputError: `data` has no such split.  OutputError: `output` cannot be a folder.
        ConfigError: `clips` with a URL for the output.
    """
    from export3d.data.shards import INDEX_NAME, has_split

    data, output = as_place(data), as_place(output)
    if isinstance(output, Path):
        check_folder(output)
    if clips is not None:
        from export3d.evaluation.protocols.user_clips import prepare_clips

        if isinstance(output, str):
            raise ConfigError(f"--clips prepares videos beside the results, and {output} is a URL; give a folder")
        return prepare_clips(clips, output / "prepared")
    if read(inside(data, INDEX_NAME)) is not None:
        return data
    if not has_split(data, split):
        raise InputError(
            f"{data} has no split {split!r}; prepare clips for it (export3d prepare), or give a folder of videos "
            "with --clips"
        )
    return inside(data, split)


def told(output: Path | str, credits: Sequence[object], publishable_only: bool) -> str:
    """The last line of a run: where its report is, and why it has no contact sheet.

    Args:
        credits: of the images on the sheet.
        publishable_only: whether the sheet shows only people whose images may be published.
    """
    line = f"wrote {inside(as_place(output), 'report.html')}"
    if not credits and publishable_only:
        line += "; no sheet.png, because nobody's images may be published (column terms of the manifest)"
    return line


def subcommand_for(argv: Sequence[str]) -> str:
    """The subcommand that replaces a plain `evaluate` with the former options `--protocol` and `--predictions`."""
    crossed = "--protocol=cross" in argv or ("--protocol", "cross") in pairwise(argv)
    if any(word.partition("=")[0] == "--predictions" for word in argv):
        return "predictions --no-truth" if crossed else "predictions"
    return "cross" if crossed else "same"
