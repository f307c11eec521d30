"""`export3d evaluate`: shared by its three subcommands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import tyro

from export3d.errors import InputError
from export3d.evaluation.protocols.settings import Scoring
from export3d.files import check_folder, kind_at


@dataclass(frozen=True, kw_only=True)
class ScoringOptions(Scoring):
    """`Scoring` with a repeatable option for the descriptors: `--identity dlib --identity arcface.onnx`."""

    identity: tyro.conf.UseAppendAction[tuple[str, ...]] = ()

    def scoring(self) -> Scoring:
        """The settings, with the default descriptor if none is given."""
        return replace(self, identity=self.identity or Scoring.identity)


def split_folder(data: Path, split: str, clips: Path | None, output: Path) -> Path:
    """The folder of shards to score; videos given with `--clips` are prepared first.

    Raises:
        InputError: `data` has no such split.  OutputError: `output` cannot be a folder.
    """
    check_folder(output)
    if clips is not None:
        from export3d.evaluation.protocols.user_clips import prepare_clips

        return prepare_clips(clips, output / "prepared")
    if kind_at(data / "index.json") == "file":
        return data
    if kind_at(data / split) != "folder":
        raise InputError(
            f"{data} has no split {split!r}; prepare clips for it (export3d prepare), or give a folder of videos "
            "with --clips"
        )
    return data / split


def subcommand_for(argv: Sequence[str]) -> str:
    """The subcommand that replaces a plain `evaluate` with the former options `--protocol` and `--predictions`."""
    crossed = "--protocol=cross" in argv or ("--protocol", "cross") in pairwise(argv)
    if any(word.partition("=")[0] == "--predictions" for word in argv):
        return "predictions --no-truth" if crossed else "predictions"
    return "cross" if crossed else "same"
