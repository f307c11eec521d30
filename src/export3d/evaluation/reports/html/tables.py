"""Tables of a page: means, standings, the comparison with an earlier run, and the paper's figures."""

from __future__ import annotations

import math
from html import escape

from export3d.evaluation.measures.image import Measure
from export3d.evaluation.reports import paper_tables
from export3d.evaluation.reports.clips import BASELINE, MOVING_DB, ORACLE
from export3d.evaluation.reports.html.elements import (
    DASH,
    GROUP_WORDS,
    best_methods,
    bold_methods,
    contenders,
    count_of,
    estimate_cell,
    for_group,
    gain_html,
    group_switch,
    has_gain,
    head,
    interval_html,
    measure_title,
    number_html,
    role_of,
    row_head,
    scrolling,
    sortable_head,
    strong_html,
    table_html,
    tone_of,
)
from export3d.evaluation.reports.html.plots import standing_scale
from export3d.evaluation.reports.report import Report
from export3d.evaluation.reports.standing import Standing
from export3d.evaluation.reports.statistics import paired_difference
from export3d.evaluation.reports.tables import in_words


def figures_section(report: Report) -> str:
    """Means per group, and figures of all clips together."""
    parts = [group_switch(report)]
    for group in report.groups:
        parts.append(for_group(group, _summary_table(report, group)))
    if report.overall_measures:
        parts.append(_overall_table(report))
    return "\n".join(parts)


def _summary_table(report: Report, group: str) -> str:
    ours, compared = report.methods[0], has_gain(report)
    heads = [head("measure", "first"), head(ours, "ours")]
    heads += [head(f"against {BASELINE}", "ours")] if compared else []
    heads += [head(method, role_of(report, method)) for method in report.methods[1:]]
    rows = []
    for m in report.measures:
        best = best_methods(report, group, m)
        cells = []
        for method in report.methods:
            cells.append(
                estimate_cell(
                    report.mean(group, method, m.name),
                    m.digits,
                    role=role_of(report, method),
                    strong=method in best,
                    count=report.defined(group, method, m.name),
                    of=len(report.group(group)),
                )
            )
            if method == ours and compared:
                cells.append(gain_html(report.gain(group, ours, m), m))
        rows.append(f"<tr>{row_head(measure_title(m), m.definition)}{''.join(cells)}</tr>")
    words = [f"Means over the {count_of(report, group)}, with 95 % bootstrap intervals over clips below."]
    if len(report.group(group)) == 1:
        words = [f"The {count_of(report, group)}: there is no interval."]
    if report.groups != ("all",):
        words.append(f"A clip moves if copying its source frame scores under {MOVING_DB:g} dB.")
    if group == "still":
        words.append("On still clips a copy is nearly perfect and proves nothing.")
    if len(contenders(report)) > 1:
        words.append("Bold: the best of a row" + (", the oracle aside." if ORACLE in report.methods else "."))
    if compared:
        words.append(
            "Against the copy: the difference of the means, for distances (↓) in per cent; in colour if the interval "
            "excludes zero."
        )
    words.append(escape(report.remark))
    return table_html(heads, rows, _width(report), " ".join(words).strip(), f"means, {GROUP_WORDS[group]}")


def _width(report: Report) -> str:
    """A table of one column of figures does not fill the page."""
    return "measures" if len(report.methods) < 3 else "wide measures"


def _overall_table(report: Report) -> str:
    heads = [head("all clips together", "first")]
    heads += [head(method, role_of(report, method)) for method in report.methods]
    rows = []
    for m in report.overall_measures:
        found = {method: report.overall.get(method, {}).get(m.name, math.nan) for method in report.methods}
        best = bold_methods(m, {method: found[method] for method in contenders(report)})
        cells = "".join(
            f'<td class="{role_of(report, method)}">{strong_html(number_html(value, m.digits), method in best)}</td>'
            for method, value in found.items()
        )
        rows.append(f"<tr>{row_head(measure_title(m), m.definition)}{cells}</tr>")
    return table_html(heads, rows, "measures", "One figure of all frames; it has no interval.", "all clips together")


def standing_section(report: Report) -> str:
    """Where ours stands between the references; empty without references."""
    parts = []
    for group in report.groups:
        rows = [_standing_row(row) for row in report.standing(group)]
        if rows:
            heads = [
                head("measure", "first"),
                head("best simple"),
                head("", "words"),
                head("from it to the oracle", "scale"),
                head(ORACLE, "oracle"),
                head(report.methods[0], "ours"),
                head("over the best simple", "ours"),
                head("stands", "words"),
            ]
            caption = (
                f"The {count_of(report, group)}; per measure, those where every compared method has a value. The line "
                "runs from the best reference without a network (left) to the oracle, the true frame rendered by the "
                "same representation (right); it is missing if the oracle is not the better of the two. The band is "
                "the interval of the difference; positive is better."
            )
            table = table_html(heads, rows, "wide measures", caption, f"standing, {GROUP_WORDS[group]}")
            parts.append(for_group(group, table))
    return "\n".join([group_switch(report), *parts]) if parts else ""


def _standing_row(row: Standing) -> str:
    m = row.measure
    simple = DASH if row.simple is None else number_html(row.simple.mean, m.digits)
    oracle = DASH if row.oracle is None else number_html(row.oracle.mean, m.digits)
    if row.margin is None:
        margin = f'<td class="ours">{DASH}</td>'
    else:
        tone = tone_of(row.margin)
        margin = f'<td class="ours {tone}">{interval_html(row.margin, m.digits, "+")}</td>'
    surely = row.margin is not None and tone_of(row.margin) == "bad"
    return (
        f"<tr>{row_head(measure_title(m), m.definition)}<td>{simple}</td>"
        f'<td class="words soft">{escape(row.simple_name)}</td>'
        f'<td class="scale">{standing_scale(row)}</td><td class="oracle">{oracle}</td>'
        f'<td class="ours">{number_html(row.ours.mean, m.digits)}</td>{margin}'
        f'<td class="words{" bad" if surely else ""}">{escape(row.place)}</td></tr>'
    )


def earlier_section(report: Report, previous: Report) -> str:
    """The difference between ours and the first method of an earlier report, clip by clip."""
    weights = escape(in_words(previous.settings.get("weights", previous.title)))
    heads = [head("measure", "first"), head("clips"), head("this run", "ours"), head("earlier"), head("difference")]
    parts = []
    for group in report.groups:
        rows = [_earlier_row(report, previous, group, m) for m in report.measures]
        if any(rows):
            caption = (
                f"Against {weights}: means over those of the {count_of(report, group)} that both runs scored, and the "
                "paired difference with its 95 % interval; in colour if that excludes zero."
            )
            label = f"against the earlier run, {GROUP_WORDS[group]}"
            parts.append(for_group(group, table_html(heads, [row for row in rows if row], "measures", caption, label)))
    if not parts:
        return '<p class="soft">The two runs have no clip and measure in common.</p>'
    return "\n".join([group_switch(report), *parts])


def _earlier_row(report: Report, previous: Report, group: str, m: Measure) -> str:
    now = {clip.key: clip.value(report.methods[0], m.name) for clip in report.group(group)}
    then = {clip.key: clip.value(previous.methods[0], m.name) for clip in previous.clips}
    both = [key for key in now if not math.isnan(now[key] + then.get(key, math.nan))]
    if not both:
        return ""
    difference = paired_difference({key: now[key] for key in both}, then)
    tone = "" if m.higher_is_better is None else tone_of(difference, flip=not m.higher_is_better)
    means = [sum(run[key] for key in both) / len(both) for run in (now, then)]
    return (
        f"<tr>{row_head(measure_title(m), m.definition)}<td>{len(both):,}</td>"
        f'<td class="ours">{number_html(means[0], m.digits)}</td><td>{number_html(means[1], m.digits)}</td>'
        f'<td class="{tone}">{interval_html(difference, m.digits, "+")}</td></tr>'
    )


def paper_section(report: Report) -> str:
    """The paper's tables with our figures below."""
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
        heads = [sortable_head("method", "first")]
        heads += [sortable_head(f"{c.title} {'↑' if c.higher_is_better else '↓'}") for c in columns]
        rows = []
        for method, values in table.rows.items():
            cells = "".join(
                f"<td>{strong_html(f'{value:.3f}', value == best)}</td>" for value, best in zip(values, table.best())
            )
            rows.append(f'<tr><th scope="row" class="first">{escape(method)}</th>{cells}</tr>')
        own = []
        for group in report.groups:
            cells = "".join(
                '<td class="ours">'
                + (DASH if m is None else number_html(report.mean(group, report.methods[0], m.name).mean, 3))
                + "</td>"
                for m in measures
            )
            head = f"{escape(report.methods[0])}, {count_of(report, group)}"
            own.append(f'<tr><th scope="row" class="first ours">{head}</th>{cells}</tr>')
        text = (
            f'<table class="wide sortable"><thead><tr>{above}</tr><tr>{"".join(heads)}</tr></thead>'
            f"<tbody>{''.join(rows)}</tbody><tbody>{''.join(own)}</tbody></table>"
        )
        parts.append(f"<h3>{escape(table.title)}</h3>\n{scrolling(text, table.title)}")
    parts.append('<p class="caption">† scored on the foreground face only. Bold: the best of the paper\'s rows.</p>')
    return "\n".join(parts)
