"""`export3d sheet`: shared by its two subcommands."""

from __future__ import annotations

from collections.abc import Sequence


def subcommand_for(argv: Sequence[str]) -> str:
    """The subcommand that options without one belong to."""
    return "views" if any(word.partition("=")[0] in ("--motion", "--set") for word in argv) else "basis"
