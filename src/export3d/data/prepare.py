"""Prepares videos and portraits: converts them to shards, and reports what was rejected and why.

Every source file is one job of one process. A finished job writes a part to `OUT/SPLIT/parts`: its records, then a
small JSON file that marks them complete. When all jobs of a split are done, its parts become shards. An interrupted run
therefore continues where it stopped. A file that was already prepared with the same settings is skipped. If the
contents, person or split of a file has changed, its new records replace the old ones.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any

from export3d.data.clips import Limits, Refusal, records_of
from export3d.data.manifest import (
    PARTS_FOLDER,
    VERSION,
    Job,
    find_files,
    make_jobs,
    parts_of,
    read_manifest,
    split_folders,
)
from export3d.data.shard_writer import update, write_tar
from export3d.data.shards import INDEX_NAME, Entry, Index, Record, Reject, read_index, read_tar
from export3d.errors import ConfigError, Export3DError, InputError, MissingExtra, OutputError, counted
from export3d.face.tracker import Tracker
from export3d.files import kind_at
from export3d.locations import (
    Place,
    as_place,
    exists,
    inside,
    local_copy,
    make_place,
    name_of,
    names,
    read,
    remove,
    write,
)
from export3d.workers.messages import caught_log
from export3d.workers.outcome import Crash
from export3d.workers.run import Workers, run_jobs

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]

REPORT_JSON, REPORT_CSV = "report.json", "report.csv"
_MOST_LOST = 5
"""When so many URLs in a row cannot be read, the connection is lost and the run ends."""


@dataclass(frozen=True)
class Report:
    """The result of `prepare`.

    Attributes:
        out: the output folder or its URL.
        splits: figures of each split: records, videos, images, frames, minutes, people, bytes.
        rejects: every file or stretch that was rejected, in this run or an earlier one.
        done: number of files processed in this run.
        skipped: number of files that earlier runs had finished.
        ignored: number of files in the given folders that are neither videos nor images.
        seconds: duration of this run.
    """

    out: Place
    splits: dict[str, dict[str, Any]]
    rejects: tuple[Reject, ...]
    done: int
    skipped: int
    ignored: int
    seconds: float

    @property
    def reasons(self) -> dict[str, int]:
        """Number of rejects per reason, the most frequent first."""
        return dict(Counter(reject.reason for reject in self.rejects).most_common())

    def summary(self) -> str:
        """A readable summary of a few lines."""
        lines = [
            f"{name}: {counted(figures['videos'], 'clip')} ({figures['minutes']:.1f} min) and "
            f"{counted(figures['images'], 'portrait')}"
            + (f" ({figures['paired']} of them in sittings of several)" if figures["paired"] else "")
            + f" of {counted(figures['people'], 'person', 'people')}, {figures['bytes'] / 1e6:.0f} MB"
            for name, figures in self.splits.items()
        ]
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.reasons.items())
        lines.append(f"refused: {reasons} (see {inside(self.out, REPORT_CSV)})" if reasons else "nothing was refused")
        lines.append(f"{counted(self.done, 'file')} in {self.seconds:.0f} s, {self.skipped} already done")
        return "\n".join(lines)


def prepare(
    inputs: Iterable[Path | str],
    out: Path | str,
    manifest: Path | str | None = None,
    workers: Workers | None = None,
    resume: bool = True,
    val_fraction: float | None = None,
    limits: Limits | None = None,
    progress: Progress | None = None,
    coefficients: Path | str | None = None,
) -> Report:
    """Prepare videos and still portraits.

    Args:
        inputs: files, and folders to search recursively, or their URLs (`locations`; web servers list no folders). With
            a manifest, an empty list means all of its files.
        out: output folder or URL; receives one folder of shards per split, `report.json` and `report.csv`.
        manifest: CSV with the columns file (relative to the CSV, or a URL), person, split, and optionally terms,
            sitting (see `shards.Entry`) and others, which are kept as provenance. Without a manifest, the person is the
            stem of the file name, and the split is `val` for held-out videos and `train` otherwise.
        workers: number of processes (default: one per core), 0 for this one, or a `Cluster`. Processes are spawned, so
            a script that calls this function needs `if __name__ == "__main__":`.
        resume: keep finished files; False prepares the given files again.
        val_fraction: without a manifest, the share of the videos to hold out, chosen by file name. By default a tenth,
            and at least one if there are four or more. Of a share that is given and not 0, at least one of two or more
            is held out, and at least one is left to train on. Adding videos never moves a video to another split.
        limits: requirements on a clip.
        progress: called with (files done, files, name of the last).
        coefficients: folder of Deep3DFaceRecon coefficients (`manifest.coefficients_of`); they become the expression,
            and the records are in the space bfm64.

    Returns:
        Figures and rejects of everything in `out`.

    Raises:
        InputError: an input does not exist, the manifest is invalid, or `out` holds expressions of another space; or
            one URL after another cannot be read.
        OutputError: `out` cannot be written; finished files are kept.
        ConfigError: invalid settings.
    """
    began = time.monotonic()
    out, limits = as_place(out), limits or Limits()
    workers = (os.cpu_count() or 1) if workers is None else workers
    if not 0.0 <= (val_fraction or 0.0) < 1.0:
        raise ConfigError(f"the fraction of people for val must be at least 0 and below 1, got {val_fraction:g}")
    if isinstance(workers, int) and workers < 0:
        raise ConfigError(f"workers must not be negative, got {workers}")
    if manifest is not None and val_fraction:
        raise ConfigError("the manifest already assigns the splits; leave val_fraction out")
    rows = None if manifest is None else read_manifest(as_place(manifest))
    paths = [as_place(path) for path in inputs]
    files, ignored = find_files(paths, rows)
    fitted = None if coefficients is None else _folder(Path(coefficients))
    space = "arkit52" if fitted is None else "bfm64"
    out = make_place(out)
    for name in (REPORT_JSON, REPORT_CSV):
        if isinstance(out, Path) and kind_at(out / name, OutputError) == "folder":
            raise OutputError(f"{out / name} is a folder, and the report has that name; move it away")
    _check_space(out, space)
    jobs, outside = make_jobs(files, rows, out, limits, val_fraction, fitted)
    finished = _finished(out, jobs) if resume else set()
    todo = [job for job in jobs if job.fingerprint not in finished]
    done = lost = 0
    unfinished: list[Reject] = []
    # The smallest split first, so that validation data is ready long before the training data.
    sizes = Counter(job.split for job in jobs)
    for split in sorted(sizes, key=lambda name: (sizes[name], name)):
        mine = [job for job in jobs if job.split == split]
        work = [job for job in todo if job.split == split]
        _clean(parts_of(out, split), () if not resume else mine)
        work.sort(key=lambda job: (-job.size, job.key))
        for job, outcome in run_jobs(work, functools.partial(_start, limits), workers):
            done += 1
            if isinstance(outcome, Crash):
                detail = f"the process that prepared it died (exit code {outcome.exit_code}); the next run tries again"
                unfinished.append(Reject(job.file, split, "crashed", detail, job.fingerprint, job.place))
            elif isinstance(outcome, Reject):
                unfinished.append(outcome)
            else:
                for message in outcome:
                    logger.info("%s", message)
            if progress is not None:
                progress(done, len(todo), job.file)
            lost = lost + 1 if isinstance(outcome, Reject) else 0
            if isinstance(outcome, Reject) and lost == _MOST_LOST:
                raise InputError(outcome.detail)
        _pack(inside(out, split), mine, space)
        if rows is None and split == "val" and _all_refused(inside(out, split), mine):  # hold out other videos instead
            return prepare(paths, out, None, workers, resume, val_fraction, limits, progress, fitted)
    _forget_moved(out, jobs)
    report = _report(out, [*outside, *unfinished], done, len(jobs) - len(todo), ignored, time.monotonic() - began)
    _write_report(report, limits, _folders(out, paths, manifest))
    return report


def _folder(path: Path) -> Path:
    if kind_at(path) != "folder":
        raise InputError(f"{path} is not a folder; give the folder of Deep3DFaceRecon's coefficients")
    return path


def _check_space(out: Place, space: str) -> None:
    """`InputError` if a split in `out` holds expressions of another space."""
    for folder in split_folders(out):
        index = read_index(folder)
        if index.entries and index.space != space:
            raise InputError(
                f"{folder} holds expressions in {index.space}, and {space} cannot be added; choose another folder"
            )


# --- one job, in a worker ---------------------------------------------------------------------------------------------


def _start(limits: Limits) -> Callable[[Job], list[str] | Reject]:
    """Load the tracker of a process; returns the function that processes one job."""
    tracker = Tracker()
    return functools.partial(_do, tracker, limits)


def _do(tracker: Tracker, limits: Limits, job: Job) -> list[str] | Reject:
    """Prepare one file and write its part; returns the messages that were logged.

    A failure to write the output ends the run, and so does a package that is not installed. Any failure caused by the
    input becomes a reject. That of a URL which cannot be read now is returned and not kept.
    """
    try:
        with local_copy(job.path) as path:
            return _do_local(tracker, limits, job, path)
    except InputError as error:
        return Reject(job.file, job.split, "not read", f"{error}; run again", job.fingerprint, job.place)


def _do_local(tracker: Tracker, limits: Limits, job: Job, path: Path) -> list[str]:
    records: list[Record] = []
    refusals: list[Refusal] = []
    with caught_log() as messages:
        try:
            records, refusals = records_of(path, job.key, _provenance(job), tracker, limits, job.coefficients)
        except Refusal as refusal:
            refusals = [refusal]
        except (OutputError, MissingExtra):
            raise
        except Export3DError as error:
            refusals = [Refusal("failed", str(error))]
        except Exception as error:  # decoders and networks may raise anything on an unusual file
            logger.exception("%s", job.file)
            refusals = [Refusal("failed", f"{type(error).__name__}: {error}")]
    shown = job.file if isinstance(job.path, Path) else job.path
    rejects = [
        Reject(job.file, job.split, r.reason, r.detail.replace(str(path), shown), job.fingerprint, job.place)
        for r in refusals
    ]
    if records:
        write_tar(inside(job.parts, f"{job.fingerprint}.tar"), records)
    marker = {"keys": [record.key for record in records], "rejects": [asdict(reject) for reject in rejects]}
    write(inside(job.parts, f"{job.fingerprint}.json"), json.dumps(marker).encode())
    return messages


def _provenance(job: Job) -> dict[str, Any]:
    try:
        version = metadata.version("export3d")
    except metadata.PackageNotFoundError:
        version = "unknown"
    return {
        "file": job.file,
        "person": job.person,
        "split": job.split,
        "terms": job.terms,
        "origin": job.origin,
        "fingerprint": job.fingerprint,
        "place": job.place,
        **({} if job.coefficients is None else {"coefficients": job.coefficients.name}),
        "tool": f"export3d {version}, preparation {VERSION}, MediaPipe Face Landmarker",
    }


# --- parts, shards, report --------------------------------------------------------------------------------------------


def _lines(index: Index) -> list[Entry | Reject]:
    return [*index.entries, *index.rejects]


def _finished(out: Place, jobs: Sequence[Job]) -> set[str]:
    """Fingerprints of finished files: in an index, or as a complete part."""
    done = {print for parts in {job.parts for job in jobs} for print in _complete(parts)}
    for folder in split_folders(out):
        done |= {line.fingerprint for line in _lines(read_index(folder))}
    return done


def _complete(parts: Place) -> set[str]:
    """Fingerprints of the complete parts."""
    return {name.removesuffix(".json") for name in names(parts) if name.endswith(".json") and name[0] != "."}


def _clean(parts: Place, jobs: Sequence[Job]) -> None:
    """Delete parts that are incomplete or belong to none of the jobs."""
    keep = _complete(parts) & {job.fingerprint for job in jobs}
    for name in names(parts):
        if PurePath(name).stem not in keep:
            remove(inside(parts, name))


def _pack(split: Place, jobs: Sequence[Job], space: str) -> None:
    """Convert the parts of a split's jobs to shards and drop old records of the same files."""
    parts = inside(split, PARTS_FOLDER)
    there = set(names(parts))
    complete = [job for job in jobs if f"{job.fingerprint}.json" in there]
    index = read_index(split) if exists(inside(split, INDEX_NAME)) else Index(space, 0)
    current = {job.place: job.fingerprint for job in jobs}
    anew = {job.fingerprint for job in complete}
    stale = {
        line.fingerprint
        for line in _lines(index)
        if line.fingerprint in anew or current.get(line.place, line.fingerprint) != line.fingerprint
    }
    if not complete and not stale:
        return
    rejects = []
    for job in complete:
        marker = json.loads(read(inside(parts, f"{job.fingerprint}.json")) or b"")
        rejects += [Reject(**reject) for reject in marker["rejects"]]

    def records() -> Iterator[Record]:
        for job in complete:
            if f"{job.fingerprint}.tar" in there:
                yield from read_tar(inside(parts, f"{job.fingerprint}.tar"))

    update(split, records(), rejects, drop=stale, space=space)
    with contextlib.suppress(OutputError):  # the next run removes them
        remove(parts)


def _all_refused(split: Place, jobs: Sequence[Job]) -> bool:
    index = read_index(split)
    return not index.entries and {job.place for job in jobs} <= {reject.place for reject in index.rejects}


def _forget_moved(out: Place, jobs: Sequence[Job]) -> None:
    """Remove records of files that have moved to another split: a person must never be in two splits.

    Splits that become empty are deleted.
    """
    home = {job.place: job.split for job in jobs}
    for folder in split_folders(out):
        index = read_index(folder)
        gone = {line.fingerprint for line in _lines(index) if home.get(line.place, name_of(folder)) != name_of(folder)}
        if gone:
            update(folder, [], drop=gone, space=index.space)
            if not _lines(read_index(folder)):
                remove(folder)


def _report(out: Place, more_rejects: list[Reject], done: int, skipped: int, ignored: int, seconds: float) -> Report:
    splits: dict[str, dict[str, Any]] = {}
    rejects: list[Reject] = []
    for folder in split_folders(out):
        index = read_index(folder)
        videos = [entry for entry in index.entries if entry.kind == "video"]
        frames = sum(entry.frames for entry in videos)
        sittings = Counter((entry.person, entry.sitting) for entry in index.entries if entry.sitting)
        splits[name_of(folder)] = {
            "records": len(index.entries),
            "videos": len(videos),
            "images": len(index.entries) - len(videos),
            "paired": sum(count for count in sittings.values() if count > 1),
            "frames": index.frames,
            "minutes": round(frames / 25.0 / 60.0, 2),
            "people": len({entry.person for entry in index.entries}),
            "bytes": sum(shard.bytes for shard in index.shards),
            "terms": dict(sorted(Counter(entry.terms for entry in index.entries).items())),
        }
        rejects += index.rejects
    return Report(out, splits, (*rejects, *more_rejects), done, skipped, ignored, seconds)


def prepared_from(out: Path) -> list[str]:
    """The folders whose files were prepared, relative to `out`; empty if its report does not name them."""
    try:
        folders = json.loads((read(out / REPORT_JSON) or b"{}").decode())["folders"]
        return [name for name in folders if isinstance(name, str)]
    except (InputError, ValueError, KeyError, TypeError):
        return []


def _folders(out: Place, inputs: Sequence[Place], manifest: Path | str | None) -> list[str]:
    """The folders that the names of files are relative to, of this run and those before; none of URLs."""
    if not isinstance(out, Path):
        return []
    given = [as_place(manifest)] if manifest is not None else inputs
    folders = [place if kind_at(place) == "folder" else place.parent for place in given if isinstance(place, Path)]
    known = prepared_from(out)
    with contextlib.suppress(ValueError):  # on another drive of Windows
        known += [os.path.relpath(folder.resolve(), out.resolve()) for folder in folders]
    return list(dict.fromkeys(known))


def _write_report(report: Report, limits: Limits, folders: Sequence[str]) -> None:
    value = {
        "splits": report.splits,
        "reasons": report.reasons,
        "files_done": report.done,
        "files_skipped": report.skipped,
        "files_ignored": report.ignored,
        "seconds": round(report.seconds, 1),
        "limits": asdict(limits),
        "folders": list(folders),
        "rejects": [_public(reject) for reject in report.rejects],
    }
    table = io.StringIO()
    writer = csv.DictWriter(table, ["file", "split", "reason", "detail"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(_public(reject) for reject in report.rejects)
    write(inside(report.out, REPORT_CSV), table.getvalue().encode(errors="backslashreplace"))
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    write(inside(report.out, REPORT_JSON), text.encode(errors="backslashreplace"))


def _public(reject: Reject) -> dict[str, str]:
    return {"file": reject.file, "split": reject.split, "reason": reject.reason, "detail": reject.detail}
