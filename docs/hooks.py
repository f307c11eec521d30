"""Site builder hooks: pages from outside docs/, and links that work on GitHub and on the site.

README.md becomes the home page and the other root pages join the site without a copy in docs/. Relative links are
resolved from where a page lies in the repository. A link to a page leads to that page; a link to any other file of the
repository leads to a copy of it under `files/`.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "MODEL_CARD.md": "model-card.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "ACKNOWLEDGEMENTS.md": "acknowledgements.md",
    "src/export3d/assets/LICENSES.md": "third-party-files.md",
}
"""File of the repository to its page on the site."""

_LINK = re.compile(r"(\]\(|\bsrc=\")([^)\s\"#:]+)(?=[)#\"])")
_CODE = re.compile(r"^```.*?^```$|`[^`\n]+(?:\n[^`\n]+)?`", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that live outside docs/."""
    for name, page in PAGES.items():
        text = (ROOT / name).read_text("utf-8")
        files.append(File.generated(config, page, content=re.sub(r"\A---\n.*?\n---\n+", "", text, flags=re.DOTALL)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites relative links outside code. A page without neighbours in the navigation needs no left column."""
    if page.parent is None:
        page.meta.setdefault("hide", ["navigation"])
    sources = {page: name for name, page in PAGES.items()}
    home = posixpath.dirname(sources.get(page.file.src_uri, f"docs/{page.file.src_uri}"))

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(home, link[2]))
        if target in PAGES:
            uri = PAGES[target]
        elif target.startswith("docs/"):
            uri = target.removeprefix("docs/")
        elif (ROOT / target).is_file():
            uri = f"files/{target}"
            if files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, abs_src_path=str(ROOT / target)))
        else:
            return link[0]  # the strict build reports it
        return link[1] + posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or ".")

    parts, end = [], 0
    for code in _CODE.finditer(markdown):
        literal = code[0] if code[0].startswith("```") else code[0].replace("\\|", "|")  # GitHub needs \| in tables
        parts += [_LINK.sub(moved, markdown[end : code.start()]), literal]
        end = code.end()
    return "".join([*parts, _LINK.sub(moved, markdown[end:])])
