"""A report as one HTML file: tables, standings, plots, the worst cases, the paper's figures, settings.

The file is self-contained: style, script and images are inside it, and its content policy forbids every request. It can
be read without its script, which only sorts, filters and switches. It is made of what `Report.to_json` holds, so a page
of a report read back is equal byte for byte.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from pathlib import Path

from export3d.evaluation.reports.clips import BASELINE
from export3d.evaluation.reports.html.clips import WORST, clip_figures_json, clips_section, worst_section
from export3d.evaluation.reports.html.elements import (
    bounds_html,
    count_of,
    folded,
    measure_title,
    number_html,
    term_list,
)
from export3d.evaluation.reports.html.plots import plots_section
from export3d.evaluation.reports.html.tables import earlier_section, figures_section, paper_section, standing_section
from export3d.evaluation.reports.report import Report
from export3d.evaluation.reports.standing import BEHIND, LEVEL, LEVEL_WITH_ORACLE
from export3d.evaluation.reports.tables import in_words, strict

_STYLE, _SCRIPT = "page.css", "page.js"
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page(
    report: Report,
    strips: Mapping[str, bytes] | None = None,
    *,
    previous: Report | None = None,
    embedded: int | None = WORST,
) -> str:
    """The report as an HTML document.

    Args:
        report: of one method or more, with or without a copy.
        strips: clip key to a WebP, JPEG or PNG image of the case; may lack clips.
        previous: an earlier report; ours is compared with its first method on common clips.
        embedded: number of worst clips whose strips are put into the page (each is a third larger than its image);
            None for all.

    Returns:
        The document; equal reports and strips give equal documents.

    Raises:
        InputError: a strip is not an image of these kinds.
    """
    shown = [clip for clip in report.worst_first() if clip.key in (strips or {})][:embedded]
    sections = [
        ("figures", "Figures", figures_section(report)),
        ("standing", "Between the references", standing_section(report)),
        ("plots", "Clip by clip", plots_section(report)),
        ("clips", "Clips", clips_section(report, [clip.key for clip in shown])),
        ("worst", "Worst cases", worst_section(report, shown, strips or {})),
        ("earlier", "Against the earlier run", "" if previous is None else earlier_section(report, previous)),
        ("paper", "The paper's tables", paper_section(report)),
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
        clip_figures_json(report),
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
    facts |= {name: in_words(report.settings[name]) for name in ("weights", "split") if name in report.settings}
    terms = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    lead = _lead(report)
    return (
        f"<header>\n<h1>{escape(report.title)}</h1>\n"
        + (f'<p class="lead">{lead}</p>\n' if lead else "")
        + f'<dl class="facts">{terms}</dl>\n</header>'
    )


def _lead(report: Report) -> str:
    """The result in one or two sentences."""
    group, ours = report.groups[0], report.methods[0]
    sentences = []
    psnr = next((m for m in report.measures if m.name == "psnr"), None)
    where = f"On the {count_of(report, group)}"
    if psnr is not None and ours != BASELINE and BASELINE in report.methods:
        gain = report.gain(group, ours, psnr)
        if not math.isnan(gain.mean):
            sentences.append(
                f"{where}, {escape(ours)} scores {number_html(report.mean(group, ours, 'psnr').mean, 2)} dB, "
                f"{number_html(gain.mean, 2, '+')} {bounds_html(gain, 2, '+')} against a copy of the source frame."
            )
    rows = report.standing(group)
    both = [row for row in rows if row.simple is not None and row.oracle is not None]
    if both:
        behind = [row.measure.title for row in both if row.place == BEHIND]
        between = sum(row.place == "between" for row in both)
        level = [row.measure.title for row in both if row.place in (LEVEL, LEVEL_WITH_ORACLE)]
        beyond = len(both) - len(behind) - len(level) - between
        parts = [f"{between} lie between the best simple reference and the oracle"]
        parts += [f"{beyond} beyond the oracle"] if beyond else []
        parts += [f"{len(level)} level with one of them ({escape(', '.join(level))})"] if level else []
        parts += [f"{len(behind)} behind the best simple reference ({escape(', '.join(behind))})"] if behind else []
        listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
        sentences.append(f"Of {len(both)} measures {listed}.")
    return " ".join(sentences)


def _definitions(report: Report) -> str:
    parts = [term_list([(measure_title(m), m.definition) for m in (*report.measures, *report.overall_measures)])]
    settings = strict(report.settings)
    if settings:
        shown = [(name.replace("_", " "), in_words(value)) for name, value in settings.items()]
        parts.append(f"<details open><summary>Settings</summary>{term_list(shown)}</details>")
    if report.skipped:
        parts.append(
            folded(
                f"{len(report.skipped):,} clip{'s' if len(report.skipped) > 1 else ''} left out",
                [f"{escape(key)}: {escape(reason)}" for key, reason in report.skipped.items()],
            )
        )
    notes = [f"{escape(clip.key)}: {escape(clip.note)}" for clip in report.clips if clip.note]
    if notes:
        parts.append(folded(f"{len(notes):,} remark{'s' if len(notes) > 1 else ''} on clips", notes))
    if report.credits:
        credited = [
            escape(", ".join(f"{value}" for name, value in credit.items() if value and name != "frame"))
            for credit in report.credits
        ]
        parts.append(folded("Sources of the contact sheet's images, left to right, top to bottom", credited))
    return "\n".join(parts)
