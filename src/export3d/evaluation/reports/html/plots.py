"""Plots of a page, as SVG: every clip by method, and where ours stands between the references."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from export3d.evaluation.measures.image import Measure
from export3d.evaluation.reports.html.elements import DASH, count_of, measure_title, number_html, role_of
from export3d.evaluation.reports.report import Report
from export3d.evaluation.reports.standing import Standing

_MANY_POINTS = 120
"""Most points of a method; with more clips, evenly spaced ranks are shown."""
_LONG_NAME = 13
"""Most letters of a method's name."""


def plots_section(report: Report) -> str:
    """A plot per measure."""
    figures = [_plot(report, m) for m in report.measures]
    figures = [figure for figure in figures if figure]
    if not figures:
        return ""
    words = [
        f"A point is a clip; line and band are the mean of the {count_of(report, report.groups[0])} and its interval."
    ]
    if report.group("moving") and report.group("still"):
        words.append('<span class="key"></span>moves, <span class="key open"></span>still.')
    if any(
        not math.isfinite(clip.value(method, m.name))
        for clip in report.clips
        for method in report.methods
        for m in report.measures
    ):
        words.append("Undefined and infinite values are not shown.")
    if len(report.clips) > _MANY_POINTS:
        words.append(f"{_MANY_POINTS} clips per method are shown, evenly spaced by rank.")
    words.append("Point at a clip to find it in every plot.")
    return f'<p class="soft">{" ".join(words)}</p>\n<div class="plots">{"".join(figures)}</div>'


def _plot(report: Report, m: Measure) -> str:
    """One measure: a row per method that has values, a point per clip."""
    values = {method: [clip.value(method, m.name) for clip in report.clips] for method in report.methods}
    values = {method: column for method, column in values.items() if any(map(math.isfinite, column))}
    finite = [value for column in values.values() for value in column if math.isfinite(value)]
    if not finite:
        return ""
    width, margin, row_height = 360.0, 10.0, 26.0
    gutter = max(58.0, 6.3 * min(_LONG_NAME, max(map(len, values))))
    low, high = min(finite), max(finite)
    spare = 0.04 * (high - low) or max(abs(high) * 0.05, 0.5 * 10.0**-m.digits)
    low, high = low - spare, high + spare
    bottom = row_height * len(values)

    def at(value: float) -> float:
        return gutter + (value - low) / (high - low) * (width - gutter - margin)

    ticks = [(at(tick), text) for tick, text in _ticks(low, high)]
    parts = [
        f'<line class="grid" x1="{_coordinate(x)}" x2="{_coordinate(x)}" y1="0" y2="{bottom:g}"/>' for x, _ in ticks
    ]
    parts.append(f'<line class="axis" x1="{gutter:g}" x2="{width - margin:g}" y1="{bottom:g}" y2="{bottom:g}"/>')
    parts += [f'<text x="{_coordinate(x)}" y="{bottom + 14:g}" text-anchor="middle">{text}</text>' for x, text in ticks]
    for i, method in enumerate(values):
        middle, role = row_height * (i + 0.5), role_of(report, method)
        parts.append(
            f'<text class="{role}" x="{gutter - 8:g}" y="{middle + 4:g}" text-anchor="end">'
            f"{escape(_shortened(method, _LONG_NAME))}</text>"
        )
        parts.append(_points(report, m, values[method], at, middle, role))
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
    remark = f' <span class="soft">{missing:,} not shown</span>' if missing else ""
    return (
        f"<figure><h3>{escape(measure_title(m))}{remark}</h3>"
        f'<svg viewBox="0 0 {width:g} {bottom + 20:g}" role="img" '
        f'aria-label="{escape(m.title, quote=True)} of every clip, by method">{"".join(parts)}</svg></figure>'
    )


def _points(
    report: Report,
    m: Measure,
    values: Sequence[float],
    at: Callable[[float], float],
    middle: float,
    role: str,
) -> str:
    """The clips of one row; those that would overlap are stacked."""
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
                f"<title>{escape(clip.key)}: {number_html(values[i], m.digits)}</title></circle>"
            )
    return f'<g class="points {role}">{"".join(dots)}</g>'


def standing_scale(row: Standing) -> str:
    """A line from the best simple reference to the oracle, with ours on it."""
    way = row.way
    if math.isnan(way) or row.margin is None or row.simple is None or row.oracle is None:
        return DASH
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


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _coordinate(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Two to six round values of an axis, with their labels."""
    power = 10.0 ** math.floor(math.log10((high - low) / 6.0))
    for step in (power, 2.0 * power, 5.0 * power, 10.0 * power):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < 6:
            break
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(k * step, number_html(k * step, digits)) for k in range(first, last + 1)]
