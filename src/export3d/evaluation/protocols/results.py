"""The files of an evaluation, in a folder or at a URL: a folder per clip, so that a stopped run continues; the report.

    OUT/report.html, report.md, report.json, sheet.png
    OUT/clips/KEY/scores.json, strip.webp, features.safetensors; case.safetensors if the sheet may show it

`scores.json` is written last, so a folder that has it is complete. It names the settings it was made with and is used
only by a run with the same settings.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from export3d.animate.export import check_output, encode_webp, write_sheet
from export3d.errors import InputError
from export3d.evaluation.measures.frechet import Moments, frechet_distance
from export3d.evaluation.measures.image import Measure
from export3d.evaluation.protocols.scoring import ClipScores
from export3d.evaluation.reports.clips import ClipResult, clip_result
from export3d.evaluation.reports.figures import Case, Gallery, sheet_rows
from export3d.evaluation.reports.html.clips import WORST
from export3d.evaluation.reports.html.page import page
from export3d.evaluation.reports.report import Report
from export3d.evaluation.reports.tables import strict
from export3d.locations import Place, as_place, inside, make_place, read, remove, upload, write

Picture = NDArray[np.uint8]
R = TypeVar("R", bound=Report)

_CASE, _PICTURES = "case.safetensors", ("source", "driving", "ours")
"""The images that the sheet shows of a clip: their file, and their names in it."""

REPORTS = ("report.html", "report.json", "report.md", "sheet.png")


class Shown(NamedTuple):
    """The images of a clip that a contact sheet may show, uint8 (R, R, 3) each, and how far the clip moves."""

    movement: float
    frame: int
    source: Picture
    driving: Picture
    ours: Picture


class Results:
    """The results of one evaluation in its folder.

    Args:
        out: the folder, created if missing, or its URL.
        settings: everything that decides the figures; clips scored with other settings are scored again.

    Raises:
        OutputError: the folder cannot be written.
    """

    def __init__(self, out: Path | str, settings: Mapping[str, Any]) -> None:
        self.out = make_place(as_place(out))
        for name in REPORTS if isinstance(self.out, Path) else ():
            check_output(inside(self.out, name))
        text = json.dumps(strict(dict(settings)), sort_keys=True, default=str)
        self.digest = hashlib.sha256(text.encode()).hexdigest()[:16]

    def has(self, key: str) -> bool:
        """Whether a clip has been scored with these settings."""
        return self._read(key) is not None

    def write(self, result: ClipResult, scores: ClipScores, shown: Shown | None) -> None:
        """Keep one clip."""
        folder = self._folder(result.key)
        remove(folder)
        write(inside(folder, "strip.webp"), encode_webp(scores.strip))
        from safetensors.numpy import save

        arrays = {f"{measure}/{m}": values for measure, by in scores.features.items() for m, values in by.items()}
        write(inside(folder, "features.safetensors"), save(arrays))
        value: dict[str, Any] = {"settings": self.digest, "result": asdict(result)}
        if shown is not None:
            pictures = {name: getattr(shown, name) for name in _PICTURES}
            write(inside(folder, _CASE), save(pictures))  # without marks, since the sheet is marked as a whole
            value["shown"] = {"movement": shown.movement, "frame": shown.frame}
        write(inside(folder, "scores.json"), (json.dumps(strict(value), indent=1) + "\n").encode())

    def result(self, key: str) -> ClipResult:
        """One clip's figures."""
        value = self._read(key)
        if value is None:
            raise InputError(f"{self._folder(key)} does not hold the scores of this evaluation; evaluate again")
        return clip_result(value["result"])

    def strip(self, key: str) -> bytes:
        """One clip's strip, a WebP file."""
        return self._kept(key, "strip.webp")

    def clips(self, keys: Sequence[str]) -> tuple[ClipResult, ...]:
        """The figures of some clips.

        Raises:
            InputError: one of them is not there.
        """
        return tuple(self.result(key) for key in keys)

    def distances(self, keys: Sequence[str], overall: Sequence[Measure]) -> dict[str, dict[str, float]]:
        """Method to Fréchet distances (those in `overall`), from the sampled frames of all clips."""
        from safetensors.torch import load

        moments: dict[str, Moments] = {}
        for key in keys:
            for name, values in load(self._kept(key, "features.safetensors")).items():
                moments.setdefault(name, Moments(values.shape[1])).add(values)
        out: dict[str, dict[str, float]] = {}
        for name, found in moments.items():
            measure, method = name.split("/", 1)
            if method != "target":
                out.setdefault(method, {})[measure] = frechet_distance(found, moments[f"{measure}/target"])
        known = {measure.name for measure in overall}
        return {method: {m: value for m, value in by.items() if m in known} for method, by in out.items()}

    def write_report(self, report: R, previous: Report | None = None) -> R:
        """Write the contact sheet and the report in all its forms.

        Args:
            report: of clips that are kept here, without credits.
            previous: an earlier run that the page compares this one with.

        Returns:
            The report with the sheet's credits.
        """
        gallery = Gallery(publishable_only=False)  # clips that may not be published have left no case
        for clip in report.clips:
            self._offer(gallery, clip)
        report = replace(report, credits=tuple(case.credit for case in gallery.cases))
        strips = {clip.key: self.strip(clip.key) for clip in report.worst_first()[:WORST]}
        remove(inside(self.out, "sheet.png"))
        if gallery.cases:
            self._write_sheet(gallery)
        write(inside(self.out, "report.html"), page(report, strips, previous=previous).encode())
        write(inside(self.out, "report.md"), report.markdown().encode())
        write(inside(self.out, "report.json"), report.to_json().encode())
        return report

    def _write_sheet(self, gallery: Gallery) -> None:
        with tempfile.TemporaryDirectory(prefix="export3d-") as folder:
            sheet = write_sheet(Path(folder, "sheet.png"), *sheet_rows(gallery.cases))
            upload(sheet, inside(self.out, sheet.name))

    def _folder(self, key: str) -> Place:
        return inside(self.out, f"clips/{key}")

    def _kept(self, key: str, name: str) -> bytes:
        """A file of a clip."""
        data = read(inside(self._folder(key), name))
        if data is None:
            raise InputError(f"{self._folder(key)} lacks {name}; delete {self._folder(key)} and evaluate again")
        return data

    def _read(self, key: str) -> dict[str, Any] | None:
        try:
            value = json.loads(read(inside(self._folder(key), "scores.json")) or b"")
            return dict(value) if value["settings"] == self.digest else None
        except (ValueError, KeyError, TypeError):
            return None

    def _offer(self, gallery: Gallery, clip: ClipResult) -> None:
        shown = (self._read(clip.key) or {}).get("shown")
        case = None if shown is None else read(inside(self._folder(clip.key), _CASE))
        if shown is None or case is None:
            return
        from safetensors.numpy import load

        pictures = load(case)
        gallery.offer(
            Case(
                clip.key,
                clip.person,
                clip.terms,
                clip.origin,
                float(shown["movement"]),
                int(shown["frame"]),
                *(pictures[name] for name in _PICTURES),
            )
        )
