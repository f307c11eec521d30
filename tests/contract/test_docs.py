"""Links, commands and file names in the documentation exist, and the site builds strictly and offline."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from export3d.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
ROOT_PAGES = [ROOT / name for name in ("README", "MODEL_CARD", "CHANGELOG", "CONTRIBUTING", "ACKNOWLEDGEMENTS")]
PAGES = sorted([path.with_suffix(".md") for path in ROOT_PAGES] + list((ROOT / "docs").glob("*.md")))
CODE = re.compile(r"^ *```.*?^ *```$|`[^`\n]+(?:\n[^`\n]+)?`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)|\bsrc=\"([^\"]+)\"")
COMMAND = re.compile(r"(?<!from )(?<!import )\bexport3d ([a-z][a-z-]*)(?: ([a-z]+))?")


def anchors(page: Path) -> set[str]:
    """What headings are called in links, as GitHub does it."""
    found = re.findall(r"^#+ (.+)$", CODE.sub(_span, page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in found}


def _span(code: re.Match[str]) -> str:
    """Keeps the words of inline code, and nothing of a fence, where # is a comment."""
    return "" if code[0].lstrip().startswith("```") else code[0].strip("`")


def broken_links(page: Path) -> list[str]:
    broken = []
    for match in LINK.finditer(CODE.sub("", page.read_text("utf-8"))):
        link = match[1] or match[2]
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(f"{page.relative_to(ROOT)}: {link}")
    return broken


def commands_in(page: Path) -> set[str]:
    """Commands after `export3d` in code: two words where they name one, else the first word."""
    found = {words for code in CODE.findall(page.read_text("utf-8")) for words in COMMAND.findall(code)}
    return {" ".join(words) if " ".join(words) in COMMANDS else words[0] for words in found}


def test_every_link_leads_to_a_file_and_a_heading() -> None:
    assert len(PAGES) > 10
    assert [link for page in PAGES for link in broken_links(page)] == []


def test_a_broken_link_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    page = tmp_path / "page.md"
    fence = "```\n# Three [d](d.md)\n```\n"
    page.write_text(f"# One `two`\n[a](page.md#one-two) [b](#one) [c](other.md)\n{fence}[e](#three)\n", "utf-8")
    assert broken_links(page) == ["page.md: #one", "page.md: other.md", "page.md: #three"]


def test_every_command_in_the_pages_exists() -> None:
    known = {*COMMANDS, *(name.split()[0] for name in COMMANDS)}
    unknown = {f"{page.name}: {name}" for page in PAGES for name in commands_in(page) - known}
    assert unknown == set()


def test_every_command_is_documented() -> None:
    assert set(COMMANDS) - commands_in(ROOT / "docs" / "commands.md") == set()


def test_every_import_in_the_pages_works() -> None:
    imports = re.compile(r"^from (export3d[\w.]*) import ([\w, ]+)$", re.MULTILINE)
    shown = {(page.name, *found) for page in PAGES for found in imports.findall(page.read_text("utf-8"))}
    assert len(shown) > 5
    missing = [
        f"{page}: {module}.{name}"
        for page, module, names in sorted(shown)
        for name in names.replace(" ", "").split(",")
        if not hasattr(importlib.import_module(module), name)
    ]
    assert missing == []


def test_every_file_that_the_architecture_names_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    named = set(re.findall(r"`([\w/]+\.py)`", text))
    assert len(named) > 15
    homes = (ROOT / "src" / "export3d", ROOT)
    assert sorted(name for name in named if not any((home / name).is_file() for home in homes)) == []


@pytest.mark.slow
def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > len(PAGES)
    loads = re.compile(r"<(?:script|img|link|iframe|source)\b[^>]*?(?:src|href)=[\"']?((?:https?:)?//[^\"'\s>]+)")
    assert [(page.name, url) for page in pages for url in loads.findall(page.read_text("utf-8"))] == []
    styles = re.compile(r"url\([\"']?(?:https?:)?//|@import [\"'](?:https?:)?//")
    assert [path.name for path in tmp_path.rglob("*.css") if styles.search(path.read_text("utf-8"))] == []
