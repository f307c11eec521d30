"""The parts that the sections of a page are made of: table cells, heads, numbers and lists."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from export3d.evaluation.measures.image import Measure
from export3d.evaluation.reports.clips import BASELINE, ORACLE, REAL
from export3d.evaluation.reports.report import Report
from export3d.evaluation.reports.statistics import Estimate
from export3d.evaluation.reports.tables import gain_cell, number, titled

DASH = "–"
GROUP_WORDS = {"moving": "clips that move", "still": "still clips", "all": "all clips"}


def group_switch(report: Report) -> str:
    """Buttons that choose a group of clips; empty if there is only one group."""
    if len(report.groups) == 1:
        return ""
    buttons = "".join(
        f'<button type="button" value="{group}" aria-pressed="false">{count_of(report, group)}</button>'
        for group in report.groups
    )
    return f'<div class="bar" hidden><span class="switch" role="group" aria-label="clips">{buttons}</span></div>'


def for_group(group: str, body: str) -> str:
    """A part of the page that belongs to one group of clips."""
    return f'<div data-group="{group}">{body}</div>'


def count_of(report: Report, group: str) -> str:
    """The size of a group in words, as "11 clips that move"."""
    count = len(report.group(group))
    if count == 1:
        return {"moving": "one clip that moves", "still": "one still clip", "all": "one clip"}[group]
    words = GROUP_WORDS[group]
    return f"{count:,} {'clips' if group == 'all' else words}"


def table_html(
    heads: Sequence[str],
    rows: Sequence[str],
    kind: str,
    caption: str,
    label: str,
    *,
    tall: bool = False,
    more: str = "",
) -> str:
    """A table that scrolls inside itself, with its caption."""
    body = f"<thead><tr>{''.join(heads)}</tr></thead>\n<tbody>{chr(10).join(rows)}</tbody>"
    return scrolling(f'<table class="{kind}"{more}>{body}</table>', label, tall) + f'\n<p class="caption">{caption}</p>'


def scrolling(body: str, label: str, tall: bool = False) -> str:
    """A part that scrolls inside itself if the page is too narrow, by keyboard too."""
    kind = "scroll tall" if tall else "scroll"
    return f'<div class="{kind}" role="region" tabindex="0" aria-label="{escape(label)}">{body}</div>'


def measure_title(m: Measure) -> str:
    """The title, its arrow on the same line as its last word."""
    return "\u00a0".join(titled(m).rsplit(" ", 1)) if m.higher_is_better is not None else m.title


def head(text: str, kind: str = "") -> str:
    """A column's head."""
    return f'<th scope="col" class="{kind}">{escape(text)}</th>'


def sortable_head(text: str, kind: str = "") -> str:
    """A column's head that sorts the table."""
    return f'<th scope="col" class="{kind}" aria-sort="none"><button type="button">{escape(text)}</button></th>'


def row_head(title: str, definition: str) -> str:
    """A row's head; the definition appears on hover."""
    return f'<th scope="row" class="first" title="{escape(definition)}">{escape(title)}</th>'


def role_of(report: Report, method: str) -> str:
    """The style of a method: ours, oracle or reference."""
    return "ours" if method == report.methods[0] else "oracle" if method == ORACLE else "reference"


def has_gain(report: Report) -> bool:
    """Whether the first method can be compared with the copy."""
    return report.methods[0] != BASELINE and BASELINE in report.methods


def contenders(report: Report) -> list[str]:
    """The methods that compete: the oracle and the real frames have the ground truth as input and do not."""
    return [method for method in report.methods if method not in (ORACLE, REAL) or method == report.methods[0]]


def best_methods(report: Report, group: str, m: Measure) -> set[str]:
    """The methods with the best mean of a group."""
    return bold_methods(m, {method: report.mean(group, method, m.name).mean for method in contenders(report)})


def bold_methods(m: Measure, values: Mapping[str, float]) -> set[str]:
    """The best methods at the digits shown; empty if there is nothing to compare."""
    known = {method: value for method, value in values.items() if not math.isnan(value)}
    if m.higher_is_better is None or len(known) < 2:
        return set()
    best = (max if m.higher_is_better else min)(known.values())
    return {method for method, value in known.items() if number(value, m.digits) == number(best, m.digits)}


def estimate_cell(estimate: Estimate, digits: int, *, role: str, strong: bool, count: int, of: int) -> str:
    """A cell with a mean, its interval, and the number of clips behind it if some lack a value."""
    if math.isnan(estimate.mean):
        return f'<td class="{role}">{DASH}</td>'
    few = f'<span class="count" title="clips with a value">{count:,}/{of:,}</span>' if count < of else ""
    mean = strong_html(number_html(estimate.mean, digits), strong)
    return f'<td class="{role}">{mean}{few}{bounds_html(estimate, digits)}</td>'


def gain_html(gain: Estimate, m: Measure) -> str:
    """A cell with the gain over the copy."""
    tone = "" if m.higher_is_better is None else tone_of(gain)
    mean, _, bounds = gain_cell(gain, m).replace("-", "−").partition(" [")
    rest = f"<small>[{bounds}</small>" if bounds and has_width(gain) else ""
    return f'<td class="ours {tone}">{mean}{rest}</td>'


def has_width(estimate: Estimate) -> bool:
    """Whether there is an interval to show; one clip, or equal ones, have none."""
    return estimate.low < estimate.high and not math.isclose(estimate.low, estimate.high, rel_tol=1e-9)


def tone_of(gain: Estimate, flip: bool = False) -> str:
    """Style "good" or "bad" if the interval excludes zero, else empty."""
    if has_width(gain) and (gain.low > 0.0 or gain.high < 0.0):
        return "good" if (gain.low > 0.0) != flip else "bad"
    return ""


def interval_html(estimate: Estimate, digits: int, sign: str = "") -> str:
    """A mean and its interval."""
    if math.isnan(estimate.mean):
        return DASH
    return f"{number_html(estimate.mean, digits, sign)}{bounds_html(estimate, digits, sign)}"


def bounds_html(estimate: Estimate, digits: int, sign: str = "") -> str:
    """An interval in brackets; empty if it has no width."""
    if not has_width(estimate):
        return ""
    return f"<small>[{number_html(estimate.low, digits, sign)}, {number_html(estimate.high, digits, sign)}]</small>"


def number_html(value: float, digits: int, sign: str = "") -> str:
    """A number with a proper minus sign."""
    return number(value, digits, sign).replace("-", "−")


def strong_html(text: str, strong: bool) -> str:
    """The text, bold if wanted."""
    return f"<b>{text}</b>" if strong and text != DASH else text


def term_list(terms: Iterable[tuple[str, str]]) -> str:
    """Terms and their explanations."""
    return (
        '<dl class="terms">'
        + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in terms)
        + "</dl>"
    )


def folded(title: str, items: Iterable[str]) -> str:
    """A list that is folded until it is clicked."""
    return (
        f"<details><summary>{escape(title)}</summary><ul>{''.join(f'<li>{item}</li>' for item in items)}</ul></details>"
    )
