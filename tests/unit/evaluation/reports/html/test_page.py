"""The report as a page: whole in itself, safe with any name, and alive in a real browser."""

from __future__ import annotations

import html.parser
import io
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export3d.errors import InputError
from export3d.evaluation.measures.image import Measure
from export3d.evaluation.reports import paper_tables
from export3d.evaluation.reports.clips import ClipResult
from export3d.evaluation.reports.html.page import page
from export3d.evaluation.reports.report import Report

PSNR = Measure("psnr", "PSNR (dB)", True, 2, "10 log10(1 / MSE)")
LPIPS = Measure("lpips", "LPIPS", False, 4, "a distance")
CSIM = Measure("csim_x", "CSIM x", True, 3, "a cosine")
APD6 = Measure("apd6", "APD (six numbers)", False, 4, "angles and position")
FLICKER = Measure("flicker_face", "flicker", None, 2, "1 is ideal")
MEASURES = (PSNR, LPIPS, CSIM, APD6, FLICKER)
METHODS = ("ours", "copy", "warp", "mesh", "oracle")
CENTRES = {"ours": 20.0, "copy": 17.0, "warp": 19.0, "mesh": 16.0, "oracle": 25.0}
VOID = {"meta", "input", "img", "link", "br", "hr"}


def made(
    clips: int = 16, methods: tuple[str, ...] = METHODS, measures: tuple[Measure, ...] = MEASURES, seed: int = 0
) -> Report:
    """A report of invented figures: two clips in three move, the first one's identity is not defined."""
    rng = np.random.default_rng(seed)
    results = []
    for i in range(clips):
        still, scores = i % 3 == 2, {}
        for method in methods:
            db = CENTRES[method] + rng.normal(0, 0.8) + 12.0 * still
            values = {"psnr": db, "lpips": 4 / db, "csim_x": 0.9 + db / 500, "apd6": 1 / db, "flicker_face": db / 20}
            scores[method] = {m.name: float(values[m.name]) for m in measures}
            if i == 0 and "csim_x" in scores[method]:
                scores[method]["csim_x"] = math.nan
        results.append(ClipResult(f"clip{i:04d}", f"p{i}", "open", "somewhere", 100 + i, i, 0, scores, 5 + i))
    return Report("Some <title>", {"weights": "w", "split": "val"}, methods, measures, tuple(results))


def strips(report: Report) -> dict[str, bytes]:
    """A small picture for each clip, in turn WebP, JPEG and PNG."""
    found = {}
    for i, clip in enumerate(report.clips):
        buffer = io.BytesIO()
        Image.new("RGB", (70, 20), (10 * i % 255, 90, 120)).save(buffer, ("WEBP", "JPEG", "PNG")[i % 3])
        found[clip.key] = buffer.getvalue()
    return found


class Reader(html.parser.HTMLParser):
    """Elements and texts of a page; fails on one that is closed wrongly."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> without its beginning"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def row_of(text: str, title: str) -> str:
    """The first table row with this head."""
    return next(row for row in re.findall(r"<tr.*?</tr>", text, re.S) if f">{title}<" in row.replace("\u00a0", " "))


def test_the_page_is_well_formed_and_needs_nothing_else() -> None:
    report = made()
    text = page(report, strips(report))
    elements = Reader(text).elements
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "srcset", "action", "background", "data", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/")), (tag, name, value)
            if value and value.startswith("#"):
                assert value[1:] in ids
    assert not re.search(r"https?://|@import|url\(|fetch\(|XMLHttpRequest|import\(", text)
    assert "default-src 'none'" in text


def test_names_from_outside_stay_text() -> None:
    evil = "</script><script>alert(1)</script>\"'<img src=x onerror=alert(2)>&amp;"
    measure = Measure("psnr", evil, True, 2, evil)
    other = Measure("fd", evil, False, 2, evil)
    clip = ClipResult(evil, evil, evil, evil, 3, 0, 0, {evil: {"psnr": 20.0}, "copy": {"psnr": 15.0}}, 1, evil)
    report = Report(
        evil, {evil: evil, "weights": evil}, (evil, "copy"), (measure,), (clip,), {evil: {"fd": 1.0}}, (other,),
        {evil: evil}, ({"clip": evil, "terms": evil, "source": evil},),
    )  # fmt: skip
    picture = {evil: next(iter(strips(made(1)).values()))}
    text = page(report, picture, previous=report)
    plain = Reader(page(made(1, ("ours", "copy"), (PSNR,)), strips(made(1))))
    found = Reader(text)
    assert found.count("script") == plain.count("script") == 2
    assert found.count("img") == 1
    assert not any(name.startswith("on") for _, attributes in found.elements for name in attributes)
    assert any(evil in part for part in found.texts)
    assert evil in [a.get("value") for tag, a in found.elements if tag == "option"]
    data = re.search(r'id="clip-figures">(.*?)</script>', text, re.S)
    assert data is not None
    assert json.loads(data[1])[evil] == [["20.00"]]


def test_a_report_read_back_gives_the_same_page() -> None:
    report = replace(
        made(),
        settings={"weights": "w", "identity": ("dlib", "x"), "trained": {"images": 3}, "bad": math.nan, "good": True},
        skipped={"d": "no face"},
        overall={"ours": {"fd": 0.5}, "copy": {"fd": math.inf}},
        overall_measures=(Measure("fd", "Fréchet distance", False, 3, "of what"),),
        credits=({"clip": "a", "terms": "open", "source": "s"},),
    )
    report.clips[1].scores["copy"]["psnr"] = math.inf
    again = Report.from_json(report.to_json())
    assert page(again, strips(report), previous=again) == page(report, strips(report), previous=report)


def test_the_best_is_bold_the_oracle_does_not_compete_and_ours_is_marked() -> None:
    text = page(made())
    psnr, lpips, flicker = (row_of(text, title) for title in ("PSNR (dB) ↑", "LPIPS ↓", "flicker"))
    for row in (psnr, lpips):
        assert row.count("<b>") == 1
        assert re.search(r'<td class="ours"><b>', row)
        assert '<td class="oracle">' in row
    assert "<b>" not in flicker
    ours = made().mean("moving", "ours", "psnr")
    assert f"<b>{ours.mean:.2f}</b><small>[{ours.low:.2f}, {ours.high:.2f}]</small>" in psnr


def test_figures_that_look_the_same_are_both_best() -> None:
    scores = {"ours": {"psnr": 20.001}, "copy": {"psnr": 20.002}, "warp": {"psnr": 10.0}}
    clip = ClipResult("a", "", "", "", 1, None, 0, scores)
    text = page(Report("T", {}, ("ours", "copy", "warp"), (PSNR,), (clip,)))
    assert row_of(text, "PSNR (dB) ↑").count("<b>20.00</b>") == 2


def test_how_many_clips_have_a_value_is_said_where_some_lack_it() -> None:
    row = row_of(page(made()), "CSIM x ↑")
    moving = len(made().group("moving"))
    assert f"{moving - 1}/{moving}" in row
    assert "/" not in re.sub(r"</?\w+[^>]*>", "", row_of(page(made()), "PSNR (dB) ↑"))


def test_a_minus_is_a_minus() -> None:
    worse = made(methods=("mesh", "copy"))
    assert "−" in row_of(page(worse), "PSNR (dB) ↑")
    assert not re.search(r">\[?-\d", page(worse))


def test_standing_and_gain_need_references() -> None:
    assert 'id="standing"' in page(made())
    alone = page(made(methods=("ours",)))
    assert 'id="standing"' not in alone
    assert "against" not in Reader(alone).texts
    assert 'class="switch"' not in alone
    copied = page(made(methods=("ours", "copy")))
    assert "ahead of the best simple" in copied


def test_cross_identity_measures_alone_make_a_page() -> None:
    report = made(methods=("ours",), measures=(CSIM, APD6))
    text = page(report, strips(report))
    Reader(text)
    assert "does worst by CSIM x" in text
    # Ours stands in the paper's columns of cross identity, not in the others.
    last = re.findall(r"<tr>(?:(?!</tr>).)*ours, 16 clips.*?</tr>", text, re.S)[0]
    assert re.findall(r"<td[^>]*>(.*?)</td>", last)[:6] == ["–"] * 6
    csim, aed, apd = re.findall(r"<td[^>]*>(.*?)</td>", last)[6:]
    assert (csim, aed) == (f"{report.mean('all', 'ours', 'csim_x').mean:.3f}", "–")
    assert apd == f"{report.mean('all', 'ours', 'apd6').mean:.3f}"


@pytest.mark.parametrize("clips", [0, 1, 2])
def test_few_clips_make_a_page(clips: int) -> None:
    report = made(clips)
    text = page(report, strips(report), previous=report)
    Reader(text)
    if clips == 1:  # no interval is claimed, and no colour that would need one
        assert "<small>" not in text
        assert not re.search(r'class="[^"]*\b(good|bad)\b[^"]*">[−+]', text)


def test_only_the_worst_strips_are_embedded_unless_more_are_asked_for() -> None:
    report = made(14)
    worst = [clip.key for clip in report.worst_first()]
    text = page(report, strips(report))
    assert re.findall(r'<figure id="case-\d+"><figcaption><b>\d+\. (\w+)</b>', text) == worst[:10]
    assert "The images of 4 other clips are not in this page" in text
    every = page(report, strips(report), embedded=None)
    assert re.findall(r"<b>\d+\. (\w+)</b>", every) == worst
    assert "4 further clips" in every
    assert every.index("4 further clips") < every.index(f"11. {worst[10]}")
    assert f'<a href="#case-1"><span class="name" title="{worst[0]}">' in text
    assert 'id="worst"' not in page(report)


def test_a_strip_that_is_no_picture_is_refused() -> None:
    with pytest.raises(InputError, match="strip of clip0000"):
        page(made(1), {"clip0000": b"GIF89a nothing"})


@pytest.mark.slow
def test_two_thousand_clips_stay_one_page() -> None:
    report = made(2000, ("ours", "copy"), (PSNR,))
    text = page(report, {})
    assert text.count("<tr data-i=") == 2000
    assert text.count("<circle") == 2 * 120
    assert "120 clips per method are shown" in text
    assert 'class="scroll tall"' in text
    assert len(text) < 1_500_000
    # The extremes are among the points that are drawn.
    low = min(report.clips, key=lambda c: c.scores["ours"]["psnr"])
    assert f"<title>{low.key}: {low.scores['ours']['psnr']:.2f}</title>" in text


def test_an_earlier_run_is_compared_clip_by_clip() -> None:
    now = made(12)
    then = replace(
        now,
        clips=tuple(
            replace(
                c, scores={**c.scores, "ours": {**c.scores["ours"], "psnr": c.scores["ours"]["psnr"] - 1.0 - i / 10}}
            )
            for i, c in enumerate(now.clips[:9])
        ),
    )
    text = page(now, previous=then)
    section = text[text.index('id="earlier"') :]
    row = row_of(section, "PSNR (dB) ↑")
    assert "<td>6</td>" in row  # of the nine common clips six move
    steps = [1.0 + i / 10 for i in range(9) if i % 3 != 2]
    assert f'<td class="good">+{np.mean(steps):.2f}<small>' in row
    assert "nothing" not in section
    assert "no clip and measure in common" in page(now, previous=replace(now, clips=()))


def test_infinite_and_missing_values_are_shown_and_not_drawn() -> None:
    report = made(4)
    report.clips[0].scores["ours"]["psnr"] = math.inf
    text = page(report)
    assert ">inf<" in text
    assert "nan" not in re.sub(r"<script.*?</script>", "", text, flags=re.S).lower().replace("finance", "")
    assert 'cx="inf' not in text
    assert "1 not shown" in text


def test_the_paper_stands_beside_ours_with_its_caveat() -> None:
    text = page(made())
    section = text[text.index('id="paper"') :]
    assert section.startswith('id="paper"><summary>')
    assert "Not to be ranked against ours" in section
    for table in paper_tables.TABLES:
        for values in table.rows.values():
            assert len(values) == len(paper_tables.COLUMNS)
            assert all(f"{value:.3f}" in section for value in values)
    dpe = row_of(section, "DPE")
    assert dpe.count("<b>") == 1  # SSIM of Table 1
    assert "<b>0.750</b>" in dpe
    assert f"{made().mean('moving', 'ours', 'psnr').mean:.3f}" in section


PROBE = """
<script>
addEventListener("load", async () => {
  const result = {blocked: []};
  addEventListener("securitypolicyviolation", (event) => result.blocked.push(event.blockedURI));
  const all = (selector) => [...document.querySelectorAll(selector)];
  const visible = (element) => element.checkVisibility();
  const texts = (cells) => cells.map((cell) => cell.textContent);
  const table = document.getElementById("clip-table");
  const column = (k) => texts([...table.tBodies[0].rows].filter(visible).map((row) => row.cells[k]));
  const head = (title) => [...table.tHead.rows[0].cells].find((cell) => cell.textContent.startsWith(title));
  const at = (title) => [...table.tHead.rows[0].cells].indexOf(head(title));
  const change = (id, value, kind) => {
    const field = document.getElementById(id);
    field.value = value;
    field.dispatchEvent(new Event(kind));
  };
  try {
    result.images = [...document.images].map((image) => [image.naturalWidth, image.complete]);
    result.tables = document.querySelectorAll("table").length;
    result.circles = all(".plots circle").filter((dot) => dot.getBoundingClientRect().width > 0).length;
    result.groups = all("#figures [data-group]").map((part) => [part.dataset.group, visible(part)]);
    document.querySelectorAll("#figures .switch button")[1].click();
    result.switched = all("[data-group]").filter(visible).map((part) => part.dataset.group);

    result.unsorted = head("PSNR").getAttribute("aria-sort");
    head("PSNR").querySelector("button").click();
    result.ascending = column(at("PSNR"));
    result.aria = [...table.querySelectorAll("[aria-sort]")].map((cell) => cell.getAttribute("aria-sort"));
    const button = head("PSNR").querySelector("button");
    button.focus();
    result.focused = document.activeElement === button;
    button.click();
    result.descending = column(at("PSNR"));
    head("CSIM").querySelector("button").click();
    result.missing = column(at("CSIM"));
    change("clip-method", "copy", "change");
    result.copy = column(at("CSIM"));
    change("clip-group", "still", "change");
    result.still = column(1);
    change("clip-group", "", "change");
    change("clip-words", "CLIP0003", "input");
    result.found = column(0);
    result.shown = document.getElementById("clip-shown").textContent;

    const dot = document.querySelector('.plots circle[data-i="4"]');
    dot.dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
    result.marked = document.querySelectorAll(".plots circle.on").length;

    result.overflow = document.documentElement.scrollWidth > document.documentElement.clientWidth;
    result.resources = performance.getEntriesByType("resource").map((entry) => entry.name.slice(0, 5));
    await new Promise((done) => {
      const image = new Image();
      image.onload = image.onerror = done;
      image.src = "http://127.0.0.1:9/picture.png";
    });
    await new Promise((done) => setTimeout(done, 50));
  } catch (error) {
    result.error = String(error);
  }
  const out = document.createElement("pre");
  out.id = "probe";
  out.textContent = JSON.stringify(result);
  document.body.append(out);
});
</script>
"""


@pytest.fixture(scope="module")
def browser() -> str:
    """A headless browser; skips where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if shutil.which(name):
            return name
    pytest.skip("no chromium, chromium-browser or google-chrome on the PATH to look at the page with")


def probe(browser: str, text: str, folder: Path, width: int = 1280) -> dict[str, Any]:
    """What a script finds that is put into a copy of the page."""
    path = folder / "report.html"
    path.write_text(text.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += [f"--window-size={width},1000", "--virtual-time-budget=5000", "--dump-dom", path.as_uri()]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="probe">(.*?)</pre>', run.stdout, re.S)
    assert found is not None, run.stderr[-500:]
    result: dict[str, Any] = json.loads(html.unescape(found[1]))
    assert "error" not in result, result["error"]
    return result


def as_numbers(texts: list[str]) -> list[float]:
    return [math.nan if text == "–" else float(text.replace("−", "-")) for text in texts]


@pytest.mark.slow
def test_in_a_browser_the_page_works(browser: str, tmp_path: Path) -> None:
    report = made(12)
    found = probe(browser, page(report, strips(report), embedded=None), tmp_path)
    assert found["images"] == [[70, True]] * 12
    assert found["tables"] == 3 * 2 + 1 + 3
    assert found["circles"] == 12 * 5 * 4 + 11 * 5
    assert found["groups"] == [["moving", True], ["still", False], ["all", False]]
    assert found["switched"] == ["still", "still"]

    psnr = sorted(round(clip.scores["ours"]["psnr"], 2) for clip in report.clips)
    assert found["unsorted"] == "none"
    assert as_numbers(found["ascending"]) == psnr
    assert as_numbers(found["descending"]) == psnr[::-1]
    assert found["aria"] == ["none"] * 4 + ["ascending"] + ["none"] * 4
    assert found["focused"]
    csim = as_numbers(found["missing"])
    assert csim[:-1] == sorted(csim[:-1])
    assert math.isnan(csim[-1])  # what is not defined comes last
    copy = sorted(round(clip.scores["copy"]["csim_x"], 3) for clip in report.clips[1:])
    assert as_numbers(found["copy"])[:-1] == copy
    assert found["still"] == ["still"] * 4
    assert found["found"] == ["clip0003"]
    assert found["shown"] == "1 of 12"
    assert found["marked"] == len(METHODS) * len(MEASURES)

    assert not found["overflow"]
    assert set(found["resources"]) <= {"data:"}
    assert found["blocked"] == ["http://127.0.0.1:9/picture.png"]


@pytest.mark.slow
def test_in_a_narrow_browser_only_tables_scroll(browser: str, tmp_path: Path) -> None:
    report = made(12)
    found = probe(browser, page(report, strips(report)), tmp_path, width=500)
    assert not found["overflow"]
