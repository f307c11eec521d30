"""The clips of a page: the table of all, and strips of images of the worst."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from html import escape

from export3d.errors import InputError
from export3d.evaluation.reports.clips import BASELINE, REAL, ClipResult
from export3d.evaluation.reports.html.elements import (
    DASH,
    has_gain,
    measure_title,
    number_html,
    scrolling,
    sortable_head,
    table_html,
)
from export3d.evaluation.reports.report import Report

WORST = 10
"""Number of worst cases that are shown unfolded, and by default embedded."""

_FORMATS = {"WEBP": "image/webp", "JPEG": "image/jpeg", "PNG": "image/png"}
_LONG_TABLE = 25
"""A table of more clips scrolls inside itself."""
_ENLARGED = 1.5
"""Largest magnification of a strip."""


def clips_section(report: Report, linked: Sequence[str]) -> str:
    """The table of all clips; `linked` are keys of the worst cases, in order."""
    grouped = any(clip.group for clip in report.clips)
    at = {key: i for i, key in enumerate(linked)}
    plain = {"first": "clip"} | ({"group": "group"} if grouped else {}) | {"frames": "frames", "source": "source frame"}
    heads = [
        sortable_head(title, "first" if name == "first" else "words" if name == "group" else "")
        for name, title in plain.items()
    ]
    heads += [sortable_head(measure_title(m)) for m in report.measures]
    ours, rows = report.methods[0], []
    for i, clip in enumerate(report.clips):
        name = f'<span class="name" title="{escape(clip.key)}">{escape(clip.key)}</span>'
        if clip.key in at:
            name = f'<a href="#case-{at[clip.key] + 1}">{name}</a>'
        words = escape(" ".join((clip.key, clip.person, clip.origin, clip.terms, clip.note)).lower())
        cells = [f'<th scope="row" class="first">{name}</th>']
        cells += [f'<td class="words">{clip.group or DASH}</td>'] if grouped else []
        cells += [f"<td>{clip.frames:,}</td><td>{DASH if clip.source_frame is None else clip.source_frame}</td>"]
        cells += [f"<td>{number_html(clip.value(ours, m.name), m.digits)}</td>" for m in report.measures]
        rows.append(f'<tr data-i="{i}" data-is="{clip.group}" data-words="{words}">{"".join(cells)}</tr>')
    options = "".join(f'<option value="{escape(name)}">{escape(name)}</option>' for name in _clip_columns(report))
    choice = ""
    if len(report.groups) > 1:
        named = "".join(f'<option value="{name}">{name}</option>' for name in report.groups if name != "all")
        choice = f'<label>clips <select id="clip-group"><option value="">all</option>{named}</select></label>'
    bar = (
        '<div class="bar" hidden><label>figures of '
        f'<select id="clip-method" autocomplete="off">{options}</select></label>{choice}'
        '<label>find <input id="clip-words" type="search" size="14" autocomplete="off"></label>'
        '<span id="clip-shown" role="status"></span></div>'
    )
    return f"{bar}\n" + table_html(
        heads,
        rows,
        "wide sortable",
        f"Figures of {escape(ours)} unless another method is chosen. A click on a column's head sorts by it.",
        "clips",
        tall=len(report.clips) > _LONG_TABLE,
        more=f' id="clip-table" data-measures="{len(report.measures)}"',
    )


def _clip_columns(report: Report) -> dict[str, tuple[str, str]]:
    """Choices of the clip table: name to the method, and the method to subtract (or empty)."""
    columns = {method: (method, "") for method in report.methods}
    if has_gain(report):
        columns[f"{report.methods[0]} less {BASELINE}"] = (report.methods[0], BASELINE)
    return columns


def clip_figures_json(report: Report) -> str:
    """Every method's figures as the table shows them, for the script."""
    figures = {}
    for name, (method, less) in _clip_columns(report).items():
        sign = "+" if less else ""
        figures[name] = [
            [
                number_html(clip.value(method, m.name) - (clip.value(less, m.name) if less else 0.0), m.digits, sign)
                for m in report.measures
            ]
            for clip in report.clips
        ]
    text = json.dumps(figures, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="clip-figures">{text}</script>'


def worst_section(report: Report, shown: Sequence[ClipResult], strips: Mapping[str, bytes]) -> str:
    """Strips of the worst clips; empty without any."""
    if not shown:
        return ""
    by = "PSNR" if any(m.name == "psnr" for m in report.measures) else report.measures[0].title
    figures = [_case(report, clip, i + 1, strips[clip.key]) for i, clip in enumerate(shown)]
    count, left = min(len(shown), WORST), len(report.clips) - len(shown)
    words = f"The {count} clips" if count > 1 else "The clip"
    text = f"{words} on which {escape(report.methods[0])} does worst by {escape(by)}, the worst first."
    if left:
        text += f" The images of {left:,} other clips are not in this page."
    body = f'<p class="soft">{text}</p>\n<div class="strips">{"".join(figures[:WORST])}'
    if figures[WORST:]:
        body += (
            f"<details><summary>{len(figures) - WORST:,} further clips</summary>{''.join(figures[WORST:])}</details>"
        )
    return body + "</div>"


def _case(report: Report, clip: ClipResult, rank: int, strip: bytes) -> str:
    kind, width, height = _picture(clip.key, strip)
    facts = [clip.group] if clip.group else []
    facts += [f"worst frame {clip.worst_frame}"] if clip.worst_frame >= 0 else []
    for m in report.measures[:4]:
        scored = [(method, clip.value(method, m.name)) for method in dict.fromkeys([report.methods[0], BASELINE])]
        known = [
            f"{number_html(value, m.digits)} {escape(method)}" for method, value in scored if not math.isnan(value)
        ]
        if known:
            facts.append(f"{escape(m.title)} {', '.join(known)}")
    facts += [escape(", ".join(part for part in (clip.origin, clip.terms) if part))]
    facts += [escape(clip.note)] if clip.note else []
    alt = f"{clip.key}: source, driving frame, {', '.join(m for m in report.methods if m != REAL)}"
    data = base64.b64encode(strip).decode("ascii")
    most = f"max-width:min(70rem,{_ENLARGED * width:.0f}px)"  # few methods make a narrow strip
    image = (
        f'<img alt="{escape(alt)}" width="{width}" height="{height}" style="{most}" src="data:{kind};base64,{data}">'
    )
    caption = f"<b>{rank}. {escape(clip.key)}</b> &ensp;" + " · ".join(fact for fact in facts if fact)
    return (
        f'<figure id="case-{rank}"><figcaption>{caption}</figcaption>'
        f"{scrolling(image, f'pictures of {clip.key}')}</figure>\n"
    )


def _picture(key: str, data: bytes) -> tuple[str, int, int]:
    """Media type, width and height of an encoded image."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=tuple(_FORMATS)) as image:
            return _FORMATS[str(image.format)], image.width, image.height
    except OSError as error:
        raise InputError(f"the strip of {key} is not a WebP, JPEG or PNG image; evaluate again") from error
