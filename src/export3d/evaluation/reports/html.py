"""A report as one HTML file: tables, standings, plots, the worst cases, the paper's figures, settings.

The file needs nothing else and asks for nothing else: style, script and pictures are inside it, and its content policy
forbids every request. Without its script everything can still be read; the script sorts, filters and switches. It is
made of what `Report.to_json` holds, so that a page of a report read back is the same, byte for byte.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from export3d.errors import InputError
from export3d.evaluation.measures.image import Measure
from export3d.evaluation.reports import paper_tables
from export3d.evaluation.reports.report import BASELINE, MOVING_DB, ORACLE, REAL, ClipResult, Report, Standing
from export3d.evaluation.reports.statistics import Estimate, paired_difference
from export3d.evaluation.reports.tables import gain_cell, number, strict, titled

WORST = 10
"""So many cases are shown open, and their strips embedded unless more are asked for."""

_STYLE, _SCRIPT = "page.css", "page.js"
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_FORMATS = {"WEBP": "image/webp", "JPEG": "image/jpeg", "PNG": "image/png"}
_LONG_TABLE = 25
"""A table of more clips scrolls inside itself."""
_ENLARGED = 1.5
"""How many times its size a strip is shown at most."""
_MANY_POINTS = 120
"""A method with more clips shows so many, evenly spaced by rank."""
_GROUPS = {"moving": "clips that move", "still": "still clips", "all": "all clips"}
_LONG_NAME = 13
"""Letters of a method that a plot has room for."""
_DASH = "–"


def page(
    report: Report,
    strips: Mapping[str, bytes] | None = None,
    *,
    previous: Report | None = None,
    embedded: int | None = WORST,
) -> str:
    """The report as an HTML document.

    Args:
        report: what was found; of one method or more, with or without a copy to compare with.
        strips: clip key to a WebP, JPEG or PNG picture of the case; may lack clips.
        previous: an earlier report; ours is compared with its first method on the clips that both have.
        embedded: strips of so many of the worst clips are put into the page (each weighs a third more than its
            picture); None for all.

    Returns:
        The document; the same report and strips always give the same one.

    Raises:
        InputError: a strip is not a picture of these kinds.
    """
    shown = [clip for clip in report.worst_first() if clip.key in (strips or {})][:embedded]
    sections = [
        ("figures", "Figures", _summary(report)),
        ("standing", "Between the references", _standings(report)),
        ("plots", "Clip by clip", _plots(report)),
        ("clips", "Clips", _clips(report, [clip.key for clip in shown])),
        ("worst", "Worst cases", _worst(report, shown, strips or {})),
        ("earlier", "Against the earlier run", "" if previous is None else _earlier(report, previous)),
        ("paper", "The paper's tables", _paper(report)),
        ("definitions", "Definitions and settings", _definitions(report)),
    ]
    present = [(anchor, title, body) for anchor, title, body in sections if body]
    here = Path(__file__)
    folded = {"paper"}
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(report.title)}</title>",
        f"<style>\n{here.with_name(_STYLE).read_text(encoding='utf-8')}</style>",
        "</head>",
        "<body>",
        _header(report),
        "<nav>"
        + "\n".join(f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title, _ in present)
        + "</nav>\n<main>",
        *(
            f'<details class="section" id="{anchor}"><summary>{escape(title)}</summary>\n{body}\n</details>'
            if anchor in folded
            else f'<section id="{anchor}">\n<h2>{escape(title)}</h2>\n{body}\n</section>'
            for anchor, title, body in present
        ),
        "</main>",
        _clip_figures(report),
        f"<script>\n{here.with_name(_SCRIPT).read_text(encoding='utf-8')}</script>",
        "</body>",
        "</html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _header(report: Report) -> str:
    moving, still = len(report.group("moving")), len(report.group("still"))
    clips = f"{len(report.clips):,}"
    if moving and still:
        clips += f" ({moving:,} {'moves' if moving == 1 else 'move'}, {still:,} {'is' if still == 1 else 'are'} still)"
    facts = {"clips": clips, "frames": f"{sum(clip.frames for clip in report.clips):,}"}
    if report.skipped:
        facts["left out"] = f"{len(report.skipped):,}"
    facts |= {name: _plain(report.settings[name]) for name in ("weights", "split") if name in report.settings}
    terms = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    lead = _lead(report)
    return (
        f"<header>\n<h1>{escape(report.title)}</h1>\n"
        + (f'<p class="lead">{lead}</p>\n' if lead else "")
        + f'<dl class="facts">{terms}</dl>\n</header>'
    )


def _lead(report: Report) -> str:
    """The finding in one or two sentences, made of figures."""
    group, ours = report.groups[0], report.methods[0]
    sentences = []
    psnr = next((m for m in report.measures if m.name == "psnr"), None)
    where = f"On the {_of(report, group)}"
    if psnr is not None and ours != BASELINE and BASELINE in report.methods:
        gain = report.gain(group, ours, psnr)
        if not math.isnan(gain.mean):
            sentences.append(
                f"{where}, {escape(ours)} scores {_number(report.mean(group, ours, 'psnr').mean, 2)} dB, "
                f"{_number(gain.mean, 2, '+')} {_bounds(gain, 2, '+')} against a copy of the source frame."
            )
    rows = report.standing(group)
    both = [row for row in rows if row.simple is not None and row.oracle is not None]
    if both:
        behind = [row.measure.title for row in both if row.place == "behind the best simple"]
        between = sum(row.place == "between" for row in both)
        beyond = len(both) - len(behind) - between
        parts = [f"{between} lie between the best simple reference and the oracle"]
        parts += [f"{beyond} beyond the oracle"] if beyond else []
        parts += [f"{len(behind)} behind the best simple reference ({escape(', '.join(behind))})"] if behind else []
        listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
        sentences.append(f"Of {len(both)} measures {listed}.")
    return " ".join(sentences)


def _summary(report: Report) -> str:
    parts = [_group_switch(report)]
    for group in report.groups:
        parts.append(_for_group(group, _summary_table(report, group)))
    if report.overall_measures:
        parts.append(_overall_table(report))
    return "\n".join(parts)


def _summary_table(report: Report, group: str) -> str:
    ours, compared = report.methods[0], _has_gain(report)
    heads = [_th("measure", "first"), _th(ours, "ours")]
    heads += [_th(f"against {BASELINE}", "ours")] if compared else []
    heads += [_th(method, _role(report, method)) for method in report.methods[1:]]
    rows = []
    for m in report.measures:
        best = _best(report, group, m)
        cells = []
        for method in report.methods:
            cells.append(
                _estimate_cell(
                    report.mean(group, method, m.name),
                    m.digits,
                    role=_role(report, method),
                    strong=method in best,
                    count=report.defined(group, method, m.name),
                    of=len(report.group(group)),
                )
            )
            if method == ours and compared:
                cells.append(_gain(report.gain(group, ours, m), m))
        rows.append(f"<tr>{_row_head(_titled(m), m.definition)}{''.join(cells)}</tr>")
    words = [f"Means over the {_of(report, group)}, beneath them 95 % bootstrap intervals over clips."]
    if len(report.group(group)) == 1:
        words = [f"The {_of(report, group)}: there is no interval."]
    if report.groups != ("all",):
        words.append(f"A clip moves if copying its source frame scores under {MOVING_DB:g} dB.")
    if group == "still":
        words.append("On still clips a copy is nearly perfect and proves nothing.")
    if len(_contenders(report)) > 1:
        words.append("Bold: the best of a row" + (", the oracle aside." if ORACLE in report.methods else "."))
    if compared:
        words.append(
            "Against the copy: the difference of the means, for distances (↓) in per cent; in colour where the "
            "interval leaves out zero."
        )
    words.append(escape(report.remark))
    return _table(heads, rows, _width(report), " ".join(words).strip(), f"means, {_GROUPS[group]}")


def _width(report: Report) -> str:
    """A table of one column of figures does not fill the page."""
    return "measures" if len(report.methods) < 3 else "wide measures"


def _overall_table(report: Report) -> str:
    heads = [_th("all clips together", "first")]
    heads += [_th(method, _role(report, method)) for method in report.methods]
    rows = []
    for m in report.overall_measures:
        found = {method: report.overall.get(method, {}).get(m.name, math.nan) for method in report.methods}
        best = _bold(m, {method: found[method] for method in _contenders(report)})
        cells = "".join(
            f'<td class="{_role(report, method)}">{_strong(_number(value, m.digits), method in best)}</td>'
            for method, value in found.items()
        )
        rows.append(f"<tr>{_row_head(_titled(m), m.definition)}{cells}</tr>")
    return _table(heads, rows, "measures", "One figure of all frames; it has no interval.", "all clips together")


def _standings(report: Report) -> str:
    parts = []
    for group in report.groups:
        rows = [_standing_row(row) for row in report.standing(group)]
        if rows:
            heads = [
                _th("measure", "first"),
                _th("best simple"),
                _th("", "words"),
                _th("from it to the oracle", "scale"),
                _th(ORACLE, "oracle"),
                _th(report.methods[0], "ours"),
                _th("over the best simple", "ours"),
                _th("stands", "words"),
            ]
            caption = (
                f"The {_of(report, group)}; of each measure those on which all that are compared have a value. The "
                "line runs from the best reference that needs no network (left) to the oracle, the truth itself shown "
                "by the same representation (right); it is missing where the oracle is not the better of the two. The "
                "band is the interval of the difference, in which better is positive."
            )
            table = _table(heads, rows, "wide measures", caption, f"standing, {_GROUPS[group]}")
            parts.append(_for_group(group, table))
    return "\n".join([_group_switch(report), *parts]) if parts else ""


def _standing_row(row: Standing) -> str:
    m = row.measure
    simple = _DASH if row.simple is None else _number(row.simple.mean, m.digits)
    oracle = _DASH if row.oracle is None else _number(row.oracle.mean, m.digits)
    if row.margin is None:
        margin = f'<td class="ours">{_DASH}</td>'
    else:
        tone = _tone(row.margin)
        margin = f'<td class="ours {tone}">{_interval(row.margin, m.digits, "+")}</td>'
    surely = row.margin is not None and _tone(row.margin) == "bad"
    return (
        f"<tr>{_row_head(_titled(m), m.definition)}<td>{simple}</td>"
        f'<td class="words soft">{escape(row.simple_name)}</td>'
        f'<td class="scale">{_scale(row)}</td><td class="oracle">{oracle}</td>'
        f'<td class="ours">{_number(row.ours.mean, m.digits)}</td>{margin}'
        f'<td class="words{" bad" if surely else ""}">{escape(row.place)}</td></tr>'
    )


def _scale(row: Standing) -> str:
    """Ours between the best simple reference and the oracle, drawn."""
    way = row.way
    if math.isnan(way) or row.margin is None or row.simple is None or row.oracle is None:
        return _DASH
    left, right, low, high = 40.0, 130.0, 4.0, 166.0
    whole = abs(row.oracle.mean - row.simple.mean)

    def at(share: float) -> str:
        return _coordinate(min(high, max(low, left + share * (right - left))))

    reach = ""
    if not math.isnan(row.margin.low):
        start, end = at(row.margin.low / whole), at(row.margin.high / whole)
        reach = f'<line class="reach" x1="{start}" x2="{end}" y1="12" y2="12"/>'
    kind = " behind" if way < 0 else ""
    return (
        f'<svg viewBox="0 0 170 24" role="img" aria-label="{100 * way:.0f} % of the way">'
        f'<line class="line" x1="{left:g}" x2="{right:g}" y1="12" y2="12"/>'
        f'<line class="line" x1="{left:g}" x2="{left:g}" y1="8" y2="16"/>'
        f'<line class="line" x1="{right:g}" x2="{right:g}" y1="8" y2="16"/>'
        f'{reach}<circle class="dot{kind}" cx="{at(way)}" cy="12" r="4"/></svg>'
    )


def _plots(report: Report) -> str:
    figures = [_plot(report, m) for m in report.measures]
    figures = [figure for figure in figures if figure]
    if not figures:
        return ""
    words = [f"A point is a clip; line and band are the mean of the {_of(report, report.groups[0])} and its interval."]
    if report.group("moving") and report.group("still"):
        words.append('<span class="key"></span>moves, <span class="key open"></span>still.')
    if any(
        not math.isfinite(clip.value(method, m.name))
        for clip in report.clips
        for method in report.methods
        for m in report.measures
    ):
        words.append("Not drawn is what is not defined or infinite.")
    if len(report.clips) > _MANY_POINTS:
        words.append(f"Of each method {_MANY_POINTS} clips are drawn, evenly spaced by rank.")
    words.append("Point at a clip to find it in every plot.")
    return f'<p class="soft">{" ".join(words)}</p>\n<div class="plots">{"".join(figures)}</div>'


def _plot(report: Report, m: Measure) -> str:
    """One measure: a row for each method, a point for each clip."""
    values = {method: [clip.value(method, m.name) for clip in report.clips] for method in report.methods}
    finite = [value for column in values.values() for value in column if math.isfinite(value)]
    if not finite:
        return ""
    width, margin, row_height = 360.0, 10.0, 26.0
    gutter = max(58.0, 6.3 * min(_LONG_NAME, max(map(len, report.methods))))
    low, high = min(finite), max(finite)
    spare = 0.04 * (high - low) or max(abs(high) * 0.05, 0.5 * 10.0**-m.digits)
    low, high = low - spare, high + spare
    bottom = row_height * len(report.methods)

    def at(value: float) -> float:
        return gutter + (value - low) / (high - low) * (width - gutter - margin)

    ticks = [(at(tick), text) for tick, text in _ticks(low, high)]
    parts = [
        f'<line class="grid" x1="{_coordinate(x)}" x2="{_coordinate(x)}" y1="0" y2="{bottom:g}"/>' for x, _ in ticks
    ]
    parts.append(f'<line class="axis" x1="{gutter:g}" x2="{width - margin:g}" y1="{bottom:g}" y2="{bottom:g}"/>')
    parts += [f'<text x="{_coordinate(x)}" y="{bottom + 14:g}" text-anchor="middle">{text}</text>' for x, text in ticks]
    for i, method in enumerate(report.methods):
        middle, role = row_height * (i + 0.5), _role(report, method)
        parts.append(
            f'<text class="{role}" x="{gutter - 8:g}" y="{middle + 4:g}" text-anchor="end">'
            f"{escape(_shortened(method, _LONG_NAME))}</text>"
        )
        parts.append(_points(report, m, method, values[method], at, middle, role))
        mean = report.mean(report.groups[0], method, m.name)
        if math.isfinite(mean.mean):
            if math.isfinite(mean.low) and math.isfinite(mean.high):
                x, span = at(mean.low), at(mean.high) - at(mean.low)
                parts.append(
                    f'<rect class="interval {role}" x="{_coordinate(x)}" y="{middle - 10:g}" '
                    f'width="{_coordinate(max(span, 0.0))}" height="20"/>'
                )
            x = at(mean.mean)
            parts.append(
                f'<line class="mean {role}" x1="{_coordinate(x)}" x2="{_coordinate(x)}" '
                f'y1="{middle - 10:g}" y2="{middle + 10:g}"/>'
            )
    missing = sum(not math.isfinite(value) for column in values.values() for value in column)
    remark = f' <span class="soft">{missing:,} not drawn</span>' if missing else ""
    return (
        f"<figure><h3>{escape(_titled(m))}{remark}</h3>"
        f'<svg viewBox="0 0 {width:g} {bottom + 20:g}" role="img" '
        f'aria-label="{escape(m.title, quote=True)} of every clip, by method">{"".join(parts)}</svg></figure>'
    )


def _points(report: Report, m: Measure, method: str, values: Sequence[float], at: Any, middle: float, role: str) -> str:
    """The clips of one row, side by side where they would lie on each other."""
    order = [i for i in sorted(range(len(values)), key=lambda i: values[i]) if math.isfinite(values[i])]
    if len(order) > _MANY_POINTS:
        order = [order[i] for i in np.linspace(0, len(order) - 1, _MANY_POINTS).round().astype(int)]
    radius, reach = (2.4, 8.0) if len(order) <= 40 else (1.7, 9.0)
    columns: dict[int, list[int]] = {}
    for i in order:
        columns.setdefault(int(at(values[i]) / (2.0 * radius)), []).append(i)
    dots = []
    for column in columns.values():
        step = min(2.0 * radius, 2.0 * reach / max(len(column) - 1, 1))
        for k, i in enumerate(column):
            y = middle + step * (k - (len(column) - 1) / 2.0)
            clip = report.clips[i]
            still = ' class="still"' if clip.group == "still" else ""
            dots.append(
                f'<circle{still} data-i="{i}" cx="{_coordinate(at(values[i]))}" cy="{_coordinate(y)}" r="{radius:g}">'
                f"<title>{escape(clip.key)}: {_number(values[i], m.digits)}</title></circle>"
            )
    return f'<g class="points {role}">{"".join(dots)}</g>'


def _clips(report: Report, linked: Sequence[str]) -> str:
    grouped = any(clip.group for clip in report.clips)
    at = {key: i for i, key in enumerate(linked)}
    plain = {"first": "clip"} | ({"group": "group"} if grouped else {}) | {"frames": "frames", "source": "source frame"}
    heads = [
        _sortable_th(title, "first" if name == "first" else "words" if name == "group" else "")
        for name, title in plain.items()
    ]
    heads += [_sortable_th(_titled(m)) for m in report.measures]
    ours, rows = report.methods[0], []
    for i, clip in enumerate(report.clips):
        name = f'<span class="name" title="{escape(clip.key)}">{escape(clip.key)}</span>'
        if clip.key in at:
            name = f'<a href="#case-{at[clip.key] + 1}">{name}</a>'
        words = escape(" ".join((clip.key, clip.person, clip.origin, clip.terms, clip.note)).lower())
        cells = [f'<th scope="row" class="first">{name}</th>']
        cells += [f'<td class="words">{clip.group or _DASH}</td>'] if grouped else []
        cells += [f"<td>{clip.frames:,}</td><td>{_DASH if clip.source_frame is None else clip.source_frame}</td>"]
        cells += [f"<td>{_number(clip.value(ours, m.name), m.digits)}</td>" for m in report.measures]
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
    return f"{bar}\n" + _table(
        heads,
        rows,
        "wide sortable",
        f"Figures of {escape(ours)} unless another method is chosen. A click on a column's head sorts by it.",
        "clips",
        tall=len(report.clips) > _LONG_TABLE,
        more=f' id="clip-table" data-measures="{len(report.measures)}"',
    )


def _clip_columns(report: Report) -> dict[str, tuple[str, str]]:
    """What the table of clips can show: names, and of which methods the figures or their differences are."""
    columns = {method: (method, "") for method in report.methods}
    if _has_gain(report):
        columns[f"{report.methods[0]} less {BASELINE}"] = (report.methods[0], BASELINE)
    return columns


def _clip_figures(report: Report) -> str:
    """Every method's figures as the table shows them, for the script."""
    figures = {}
    for name, (method, less) in _clip_columns(report).items():
        sign = "+" if less else ""
        figures[name] = [
            [
                _number(clip.value(method, m.name) - (clip.value(less, m.name) if less else 0.0), m.digits, sign)
                for m in report.measures
            ]
            for clip in report.clips
        ]
    text = json.dumps(figures, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="clip-figures">{text}</script>'


def _worst(report: Report, shown: Sequence[ClipResult], strips: Mapping[str, bytes]) -> str:
    if not shown:
        return ""
    by = "PSNR" if any(m.name == "psnr" for m in report.measures) else report.measures[0].title
    figures = [_case(report, clip, i + 1, strips[clip.key]) for i, clip in enumerate(shown)]
    count, left = min(len(shown), WORST), len(report.clips) - len(shown)
    words = f"The {count} clips" if count > 1 else "The clip"
    text = f"{words} on which {escape(report.methods[0])} does worst by {escape(by)}, the worst first."
    if left:
        text += f" Of {left:,} others no pictures are in this page."
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
        known = [f"{_number(value, m.digits)} {escape(method)}" for method, value in scored if not math.isnan(value)]
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
        f"{_scroll(image, f'pictures of {clip.key}')}</figure>\n"
    )


def _picture(key: str, data: bytes) -> tuple[str, int, int]:
    """Media type, width and height of an encoded picture."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=tuple(_FORMATS)) as image:
            return _FORMATS[str(image.format)], image.width, image.height
    except OSError as error:
        raise InputError(f"the strip of {key} is not a WebP, JPEG or PNG picture; draw it again") from error


def _earlier(report: Report, previous: Report) -> str:
    """Ours less the first method of an earlier report, clip by clip."""
    weights = escape(_plain(previous.settings.get("weights", previous.title)))
    heads = [_th("measure", "first"), _th("clips"), _th("this run", "ours"), _th("earlier"), _th("difference")]
    parts = []
    for group in report.groups:
        rows = [_earlier_row(report, previous, group, m) for m in report.measures]
        if any(rows):
            caption = (
                f"Against {weights}: means over those of the {_of(report, group)} that both runs scored, and the "
                "paired difference with its 95 % interval; in colour where that leaves out zero."
            )
            label = f"against the earlier run, {_GROUPS[group]}"
            parts.append(_for_group(group, _table(heads, [row for row in rows if row], "measures", caption, label)))
    if not parts:
        return '<p class="soft">The two runs have no clip and measure in common.</p>'
    return "\n".join([_group_switch(report), *parts])


def _earlier_row(report: Report, previous: Report, group: str, m: Measure) -> str:
    now = {clip.key: clip.value(report.methods[0], m.name) for clip in report.group(group)}
    then = {clip.key: clip.value(previous.methods[0], m.name) for clip in previous.clips}
    both = [key for key in now if not math.isnan(now[key] + then.get(key, math.nan))]
    if not both:
        return ""
    difference = paired_difference({key: now[key] for key in both}, then)
    tone = "" if m.higher_is_better is None else _tone(difference, flip=not m.higher_is_better)
    means = [sum(run[key] for key in both) / len(both) for run in (now, then)]
    return (
        f"<tr>{_row_head(_titled(m), m.definition)}<td>{len(both):,}</td>"
        f'<td class="ours">{_number(means[0], m.digits)}</td><td>{_number(means[1], m.digits)}</td>'
        f'<td class="{tone}">{_interval(difference, m.digits, "+")}</td></tr>'
    )


def _paper(report: Report) -> str:
    columns = paper_tables.COLUMNS
    measures = [paper_tables.ours_for(column, report.measures) for column in columns]
    parts = [f"<p>{escape(paper_tables.CAVEAT)}</p>"]
    used = {m.name: m for m in measures if m is not None}
    if used:
        meant = "; ".join(f"{escape(m.title)} ({escape(m.definition)})" for m in used.values())
        parts.append(f'<p class="caption">In the last rows: {meant}.</p>')
    settings = [column.setting for column in columns]
    spans = [(name, settings.count(name)) for name in dict.fromkeys(settings)]
    above = '<th class="first"></th>' + "".join(
        f'<th class="across" scope="colgroup" colspan="{count}">{name}</th>' for name, count in spans
    )
    for table in paper_tables.TABLES:
        heads = [_sortable_th("method", "first")]
        heads += [_sortable_th(f"{c.title} {'↑' if c.higher_is_better else '↓'}") for c in columns]
        rows = []
        for method, values in table.rows.items():
            cells = "".join(
                f"<td>{_strong(f'{value:.3f}', value == best)}</td>" for value, best in zip(values, table.best())
            )
            rows.append(f'<tr><th scope="row" class="first">{escape(method)}</th>{cells}</tr>')
        own = []
        for group in report.groups:
            cells = "".join(
                '<td class="ours">'
                + (_DASH if m is None else _number(report.mean(group, report.methods[0], m.name).mean, 3))
                + "</td>"
                for m in measures
            )
            head = f"{escape(report.methods[0])}, {_of(report, group)}"
            own.append(f'<tr><th scope="row" class="first ours">{head}</th>{cells}</tr>')
        text = (
            f'<table class="wide sortable"><thead><tr>{above}</tr><tr>{"".join(heads)}</tr></thead>'
            f"<tbody>{''.join(rows)}</tbody><tbody>{''.join(own)}</tbody></table>"
        )
        parts.append(f"<h3>{escape(table.title)}</h3>\n{_scroll(text, table.title)}")
    parts.append('<p class="caption">† scored on the foreground face only. Bold: the best of the paper\'s rows.</p>')
    return "\n".join(parts)


def _definitions(report: Report) -> str:
    parts = [_terms([(_titled(m), m.definition) for m in (*report.measures, *report.overall_measures)])]
    settings = strict(report.settings)
    if settings:
        shown = [(name.replace("_", " "), _plain(value)) for name, value in settings.items()]
        parts.append(f"<details open><summary>Settings</summary>{_terms(shown)}</details>")
    if report.skipped:
        parts.append(
            _folded(
                f"{len(report.skipped):,} clip{'s' if len(report.skipped) > 1 else ''} left out",
                [f"{escape(key)}: {escape(reason)}" for key, reason in report.skipped.items()],
            )
        )
    notes = [f"{escape(clip.key)}: {escape(clip.note)}" for clip in report.clips if clip.note]
    if notes:
        parts.append(_folded(f"{len(notes):,} remark{'s' if len(notes) > 1 else ''} on clips", notes))
    if report.credits:
        credited = [
            escape(", ".join(f"{value}" for name, value in credit.items() if value and name != "frame"))
            for credit in report.credits
        ]
        parts.append(_folded("Sources of the contact sheet's pictures, left to right, top to bottom", credited))
    return "\n".join(parts)


def _terms(terms: Iterable[tuple[str, str]]) -> str:
    return (
        '<dl class="terms">'
        + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in terms)
        + "</dl>"
    )


def _folded(title: str, items: Iterable[str]) -> str:
    return (
        f"<details><summary>{escape(title)}</summary><ul>{''.join(f'<li>{item}</li>' for item in items)}</ul></details>"
    )


def _group_switch(report: Report) -> str:
    if len(report.groups) == 1:
        return ""
    buttons = "".join(
        f'<button type="button" value="{group}" aria-pressed="false">{_of(report, group)}</button>'
        for group in report.groups
    )
    return f'<div class="bar" hidden><span class="switch" role="group" aria-label="clips">{buttons}</span></div>'


def _for_group(group: str, body: str) -> str:
    return f'<div data-group="{group}">{body}</div>'


def _of(report: Report, group: str) -> str:
    """As in "11 clips that move"."""
    count = len(report.group(group))
    if count == 1:
        return {"moving": "one clip that moves", "still": "one still clip", "all": "one clip"}[group]
    words = _GROUPS[group]
    return f"{count:,} {'clips' if group == 'all' else words}"


def _table(
    heads: Sequence[str],
    rows: Sequence[str],
    kind: str,
    caption: str,
    label: str,
    *,
    tall: bool = False,
    more: str = "",
) -> str:
    """A table that scrolls inside itself, and what stands beneath it."""
    body = f"<thead><tr>{''.join(heads)}</tr></thead>\n<tbody>{chr(10).join(rows)}</tbody>"
    return _scroll(f'<table class="{kind}"{more}>{body}</table>', label, tall) + f'\n<p class="caption">{caption}</p>'


def _scroll(body: str, label: str, tall: bool = False) -> str:
    """What scrolls inside itself where the page is too narrow; by the keyboard too."""
    kind = "scroll tall" if tall else "scroll"
    return f'<div class="{kind}" role="region" tabindex="0" aria-label="{escape(label)}">{body}</div>'


def _titled(m: Measure) -> str:
    """The title, its arrow on the same line as its last word."""
    return "\u00a0".join(titled(m).rsplit(" ", 1)) if m.higher_is_better is not None else m.title


def _th(text: str, kind: str = "") -> str:
    return f'<th scope="col" class="{kind}">{escape(text)}</th>'


def _sortable_th(text: str, kind: str = "") -> str:
    return f'<th scope="col" class="{kind}" aria-sort="none"><button type="button">{escape(text)}</button></th>'


def _row_head(title: str, definition: str) -> str:
    return f'<th scope="row" class="first" title="{escape(definition)}">{escape(title)}</th>'


def _role(report: Report, method: str) -> str:
    """How a method is shown."""
    return "ours" if method == report.methods[0] else "oracle" if method == ORACLE else "reference"


def _has_gain(report: Report) -> bool:
    return report.methods[0] != BASELINE and BASELINE in report.methods


def _contenders(report: Report) -> list[str]:
    """Methods of which one can be best: the oracle and real pictures see the truth and do not compete."""
    return [method for method in report.methods if method not in (ORACLE, REAL) or method == report.methods[0]]


def _best(report: Report, group: str, m: Measure) -> set[str]:
    return _bold(m, {method: report.mean(group, method, m.name).mean for method in _contenders(report)})


def _bold(m: Measure, values: Mapping[str, float]) -> set[str]:
    """The best methods, as far as the digits tell them apart; none where there is nothing to compare."""
    known = {method: value for method, value in values.items() if not math.isnan(value)}
    if m.higher_is_better is None or len(known) < 2:
        return set()
    best = (max if m.higher_is_better else min)(known.values())
    return {method for method, value in known.items() if number(value, m.digits) == number(best, m.digits)}


def _estimate_cell(estimate: Estimate, digits: int, *, role: str, strong: bool, count: int, of: int) -> str:
    if math.isnan(estimate.mean):
        return f'<td class="{role}">{_DASH}</td>'
    few = f'<span class="count" title="clips with a value">{count:,}/{of:,}</span>' if count < of else ""
    return f'<td class="{role}">{_strong(_number(estimate.mean, digits), strong)}{few}{_bounds(estimate, digits)}</td>'


def _gain(gain: Estimate, m: Measure) -> str:
    tone = "" if m.higher_is_better is None else _tone(gain)
    mean, _, bounds = gain_cell(gain, m).replace("-", "−").partition(" [")
    rest = f"<small>[{bounds}</small>" if bounds and _has_width(gain) else ""
    return f'<td class="ours {tone}">{mean}{rest}</td>'


def _has_width(estimate: Estimate) -> bool:
    """Whether there is an interval to show: one clip has none, nor have equal ones."""
    return estimate.low < estimate.high and not math.isclose(estimate.low, estimate.high, rel_tol=1e-9)


def _tone(gain: Estimate, flip: bool = False) -> str:
    """Good or bad if the interval leaves out zero."""
    if _has_width(gain) and (gain.low > 0.0 or gain.high < 0.0):
        return "good" if (gain.low > 0.0) != flip else "bad"
    return ""


def _interval(estimate: Estimate, digits: int, sign: str = "") -> str:
    if math.isnan(estimate.mean):
        return _DASH
    return f"{_number(estimate.mean, digits, sign)}{_bounds(estimate, digits, sign)}"


def _bounds(estimate: Estimate, digits: int, sign: str = "") -> str:
    if not _has_width(estimate):
        return ""
    return f"<small>[{_number(estimate.low, digits, sign)}, {_number(estimate.high, digits, sign)}]</small>"


def _number(value: float, digits: int, sign: str = "") -> str:
    """A number with a true minus."""
    return number(value, digits, sign).replace("-", "−")


def _strong(text: str, strong: bool) -> str:
    return f"<b>{text}</b>" if strong and text != _DASH else text


def _plain(value: Any) -> str:
    """A setting in words."""
    value = strict(value)
    if value is None:
        return _DASH
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_plain(item)}" for name, item in value.items())
    if isinstance(value, list):
        return "; ".join(_plain(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _coordinate(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Two to six round values of an axis, and how they are written."""
    power = 10.0 ** math.floor(math.log10((high - low) / 6.0))
    for step in (power, 2.0 * power, 5.0 * power, 10.0 * power):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < 6:
            break
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(k * step, _number(k * step, digits)) for k in range(first, last + 1)]
