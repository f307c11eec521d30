"""Names of files: which are ignored, and how they can be printed."""

from __future__ import annotations

import unicodedata

_LITTER = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin", "lost+found"}
"""Files and folders that operating systems create by themselves."""


def hidden(name: str) -> bool:
    """Whether a name is ignored: it begins with a dot, or an operating system created it.

    >>> [hidden(name) for name in (".DS_Store", "Thumbs.db", "00000.png")]
    [True, True, False]
    """
    return name.startswith(".") or name.lower() in _LITTER


def unprintable(name: str) -> bool:
    """Whether a name cannot stand in a report (lines of UTF-8): it has control characters or undecodable bytes.

    >>> [unprintable(name) for name in ("Zoë and her dog", "two\\nlines", "\\udcff")]
    [False, True, True]
    """
    return any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in name)


def printable(name: str) -> str:
    """The name, escaped if it cannot be printed."""
    return ascii(name) if unprintable(name) else name
