"""`export3d evaluate`: shared by its three subcommands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

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


class Scored(NamedTuple):
    """What is scored: a folder of shards or its URL, and where `--clips` says that its videos are, if it does so."""

    split: Place
    originals: Path | None
    own: bool
    """Whether they are the user's own videos, whose images only the user sees."""


def scored(data: str | None, split: str, clips: Path | None, output: Path | str, size: int | None) -> Scored:
    """The shards to score. Videos given with `--clips` alone are prepared first; beside DATA they are its originals.

    Raises:
        InputError: `data` has no such split, or is packed.  OutputError: `output` cannot be a folder.
        ConfigError: `clips` with a URL for the output, or beside `data` at the size of the shards.
    """
    from export3d.data.packed_frames import is_packed
    from export3d.data.shards import INDEX_NAME, has_split

    output = as_place(output)
    if isinstance(output, Path):
        check_folder(output)
    if clips is not None and data is None:
        from export3d.evaluation.protocols.user_clips import prepare_clips

        if isinstance(output, str):
            raise ConfigError(f"--clips prepares videos beside the results, and {output} is a URL; give a folder")
        return Scored(prepare_clips(clips, output / "prepared"), None, own=True)
    if clips is not None and size is None:
        raise ConfigError(
            f"{data} and --clips {clips} both say what is scored; leave one of them out (with --size, --clips is the "
            "folder of the videos that the data was prepared from)"
        )
    place = as_place("data" if data is None else data)
    if read(inside(place, INDEX_NAME)) is None:
        if any(is_packed(each) for each in (place, inside(place, split), inside(place, "train"))):
            raise InputError(
                f"{place} holds packed frames, which cannot be scored; give the prepared shards they were made from"
            )
        if not has_split(place, split):
            raise InputError(
                f"{place} has no split {split!r}; prepare clips for it (export3d prepare), or give a folder of videos "
                "with --clips"
            )
        place = inside(place, split)
    return Scored(place, clips, own=False)


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
