"""`export3d verify`: reads the marks in images and videos."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from export3d.cli.terminal import tell
from export3d.errors import ConfigError

CODES = {"marked": 0, "unmarked": 3, "unreadable": 2}
"""Exit codes, from the best result to the worst."""


def command(
    files: tyro.conf.Positional[tuple[Path, ...]],
    *,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> int:
    """Search images and videos for marks of generated media: signed metadata, plain metadata and the invisible mark.

    The exit code is 0 if every file is marked, 3 if one is not, and 2 if one cannot be read.

    Args:
        files: images and videos, of any origin.
        as_json: print a list with one object per file.
    """
    if not files:
        raise ConfigError("verify needs the name of an image or a video")
    import json

    from export3d.provenance.verify import verify

    reports = []
    for path in files:
        report = verify(path, partial(tell, _shown(f"searching {path} for the invisible mark")))
        reports.append(report)
        if not as_json and report.result == "unreadable":
            tell(_shown(report.sentences()[0]))
        elif not as_json:
            print("\n  ".join(map(_shown, [str(path), *report.sentences()])))
    if as_json:
        print(json.dumps([report.as_dict() for report in reports], indent=2))
    worst = max((report.result for report in reports), key=list(CODES).index)
    return CODES[worst]


def _shown(text: str) -> str:
    """A text with names from elsewhere, fit for any terminal: without control characters, in its encoding."""
    encoding = sys.stdout.encoding or "utf-8"
    printable = "".join(each if each.isprintable() else "\ufffd" for each in text)
    return printable.encode(encoding, "replace").decode(encoding)
