"""Preparation: a heap of videos and portraits becomes shards, with a report of what was refused and why.

Every source file is one job of one process. A finished job leaves a part (its records, then a small JSON file that says
it is complete) in `OUT/SPLIT/parts`; when a split's jobs are done its parts become shards. An interrupted run therefore
goes on where it stopped, a file that was prepared before with the same settings is not touched again, and one whose
contents, person or split changed replaces its former records.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import io
import json
import logging
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from export3d.data.clips import Limits, Refusal, media_kind, records_of
from export3d.data.shards import INDEX_NAME, Entry, Index, Record, Reject, read_index, read_tar, update, write_tar
from export3d.data.workers import Crash, run_jobs
from export3d.errors import ConfigError, Export3DError, InputError, OutputError
from export3d.face.tracker import Tracker
from export3d.files import write_bytes, write_failure

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]

VERSION = 1
"""Of the way clips are prepared; part of each fingerprint, so raising it prepares everything anew."""
REPORT_JSON, REPORT_CSV = "report.json", "report.csv"
_PARTS = "parts"
_PROBE_BYTES = 1 << 20
_VIDEO_SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".gif", ".flv"}
_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
_SPLIT_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_VAL_FRACTION = 0.1
_FEW = 4
"""Of fewer videos none is held out: training needs them all."""


@dataclass(frozen=True)
class Job:
    """One source file to prepare.

    Attributes:
        path: where it lies.
        file: how the report calls it.
        split, person, terms: from the manifest, or the defaults.
        origin: further provenance for the record.
        key: name of its record.
        fingerprint, place: see `shards.Entry`.
        parts: folder for its part.
    """

    path: Path
    file: str
    split: str
    person: str
    terms: str
    origin: dict[str, str] = field(default_factory=dict)
    key: str = ""
    fingerprint: str = ""
    place: str = ""
    parts: Path = Path()


@dataclass(frozen=True)
class Report:
    """What a run of `prepare` left.

    Attributes:
        out: the folder.
        splits: figures of each split: records, videos, images, frames, minutes, people, bytes.
        rejects: every file and stretch that was refused, in this run or before.
        done: files worked on in this run.
        skipped: files that had been finished before.
        ignored: files in the given folders that are neither videos nor pictures.
        seconds: duration of this run.
    """

    out: Path
    splits: dict[str, dict[str, Any]]
    rejects: tuple[Reject, ...]
    done: int
    skipped: int
    ignored: int
    seconds: float

    @property
    def reasons(self) -> dict[str, int]:
        """How many rejects have each reason, the most frequent first."""
        return dict(Counter(reject.reason for reject in self.rejects).most_common())

    def summary(self) -> str:
        """A few lines for people."""
        lines = [
            f"{name}: {figures['videos']} clips ({figures['minutes']:.1f} min) and {figures['images']} portraits of "
            f"{figures['people']} people, {figures['bytes'] / 1e6:.0f} MB"
            for name, figures in self.splits.items()
        ]
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.reasons.items())
        lines.append(f"refused: {reasons} (see {self.out / REPORT_CSV})" if reasons else "nothing was refused")
        lines.append(f"{self.done} files in {self.seconds:.0f} s, {self.skipped} were done before")
        return "\n".join(lines)


def prepare(
    inputs: Iterable[Path | str],
    out: Path | str,
    manifest: Path | str | None = None,
    workers: int | None = None,
    resume: bool = True,
    val_fraction: float | None = None,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Report:
    """Prepare videos and still portraits.

    Args:
        inputs: files, and folders that are searched to the bottom. With a manifest none means all of its files.
        out: gets one folder of shards for each split, `report.json` and `report.csv`.
        manifest: CSV with columns file (relative to the CSV), person, split, and optionally terms and others, which are
            kept as provenance. Without one each file's person is its stem, and its split `train` or, of the videos that
            are held out, `val`.
        workers: processes (default: one a core); 0 works in this process. Processes are spawned: a script that calls
            this needs `if __name__ == "__main__":`.
        resume: keep what was finished before; False prepares the given files anew.
        val_fraction: without a manifest, the share of the videos to hold out, whole videos chosen by their names: by
            default a tenth, at least one of four or more. Further videos move none from one split to the other.
        limits: what a clip must be.
        progress: called with (files done, files, name of the last).

    Returns:
        Figures and rejects of everything in `out`.

    Raises:
        InputError: no such input, or a manifest that cannot be used.
        OutputError: `out` cannot be written; what was finished is kept.
        ConfigError: settings that cannot work.
    """
    began = time.monotonic()
    out, limits = Path(out), limits or Limits()
    workers = (os.cpu_count() or 1) if workers is None else workers
    if not 0.0 <= (val_fraction or 0.0) < 1.0 or workers < 0:
        raise ConfigError("val_fraction must be at least 0 and below 1, and workers not negative")
    if manifest is not None and val_fraction:
        raise ConfigError("the manifest says who is in which split; leave val_fraction out")
    rows = None if manifest is None else _read_manifest(Path(manifest))
    paths = [Path(path) for path in inputs]
    files, ignored = _collect(paths, rows)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_failure(out, error) from error
    jobs, outside = _jobs(files, rows, out, limits, val_fraction)
    finished = _finished(out) if resume else set()
    todo = [job for job in jobs if job.fingerprint not in finished]
    done = 0
    crashed: list[Reject] = []
    # The smallest split first: validation data is at hand long before the training data is.
    sizes = Counter(job.split for job in jobs)
    for split in sorted(sizes, key=lambda name: (sizes[name], name)):
        mine = [job for job in jobs if job.split == split]
        work = [job for job in todo if job.split == split]
        _clean(out / split / _PARTS, () if not resume else mine)
        work.sort(key=lambda job: (-job.path.stat().st_size, job.key))
        for job, outcome in run_jobs(work, functools.partial(_start, limits), min(workers, len(work))):
            done += 1
            if isinstance(outcome, Crash):
                detail = f"the process that worked on it died (exit code {outcome.exit_code}); the next run tries again"
                crashed.append(Reject(job.file, split, "crashed", detail, job.fingerprint, job.place))
            else:
                for message in outcome:
                    logger.info("%s", message)
            if progress is not None:
                progress(done, len(todo), job.file)
        _pack(out / split, mine)
        if rows is None and split == "val" and _all_refused(out / split, mine):  # others take their place
            return prepare(paths, out, None, workers, resume, val_fraction, limits, progress)
    _forget_moved(out, jobs)
    report = _report(out, [*outside, *crashed], done, len(jobs) - len(todo), ignored, time.monotonic() - began)
    _write_report(report, limits)
    return report


# --- what to do -------------------------------------------------------------------------------------------------------


def _read_manifest(path: Path) -> dict[Path, dict[str, str]]:
    """Rows by the resolved path of their file; `InputError` unless it can be used as it is."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            missing = {"file", "person", "split"} - set(reader.fieldnames or ())
            if missing:
                raise InputError(f"{path} lacks the columns {', '.join(sorted(missing))}; add them to its first line")
            rows = [{key: value or "" for key, value in row.items() if key is not None} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read the manifest {path} ({error}); give a CSV file in UTF-8") from error
    split_of: dict[str, str] = {}
    for number, row in enumerate(rows, 2):
        if not row["file"] or not row["person"] or not _SPLIT_NAME.fullmatch(row["split"]):
            raise InputError(f"{path} line {number} needs a file, a person and a split (letters, digits, _ and -)")
        if split_of.setdefault(row["person"], row["split"]) != row["split"]:
            raise InputError(
                f"{path} line {number} puts {row['person']} into {row['split']} and into {split_of[row['person']]}; "
                "a person belongs to one split"
            )
    return {(path.parent / row["file"]).resolve(): row for row in rows}


def _collect(inputs: list[Path], rows: dict[Path, dict[str, str]] | None) -> tuple[list[tuple[Path, str]], int]:
    """(path, name in the report) of each file to prepare, and how many others the folders hold."""
    files: dict[Path, str] = {}
    ignored = 0
    if not inputs and rows:
        files = {path: row["file"] for path, row in rows.items()}
    for given in inputs:
        if given.is_file():
            files.setdefault(given.resolve(), given.name)
        elif given.is_dir():
            for path in sorted(given.rglob("*")):
                if not path.is_file() or any(part.startswith(".") for part in path.relative_to(given).parts):
                    continue
                if path.suffix.lower() in _VIDEO_SUFFIXES | _IMAGE_SUFFIXES or _kind(path) is not None:
                    files.setdefault(path.resolve(), path.relative_to(given).as_posix())
                else:
                    ignored += 1
        else:
            raise InputError(f"{given} does not exist; give videos, pictures or folders of them")
    if not files:
        raise InputError("there is nothing to prepare; give videos, pictures or folders that hold some")
    return list(files.items()), ignored


def _jobs(
    files: list[tuple[Path, str]],
    rows: dict[Path, dict[str, str]] | None,
    out: Path,
    limits: Limits,
    val_fraction: float | None,
) -> tuple[list[Job], list[Reject]]:
    """Jobs with unique keys and fingerprints, and the files that cannot be one."""
    held_out = _held_out(files, out, _VAL_FRACTION if val_fraction is None else val_fraction) if rows is None else set()
    drafts: list[Job] = []
    rejects: list[Reject] = []
    contents: dict[str, str] = {}
    for path, name in files:
        if rows is None:
            split = "val" if path.stem in held_out else "train"
            job = Job(path, name, split, path.stem, "unstated")
        elif path in rows:
            row = dict(rows[path])
            job = Job(path, row.pop("file"), row.pop("split"), row.pop("person"), row.pop("terms", ""), row)
        else:
            rejects.append(Reject(name, "", "not in the manifest", f"{name} has no line in the manifest"))
            continue
        try:
            content = _content(path)
        except OSError as error:
            rejects.append(Reject(job.file, job.split, "unreadable", f"{job.file} cannot be opened ({error.strerror})"))
            continue
        first = contents.setdefault(content, job.file)
        if first != job.file:
            rejects.append(Reject(job.file, job.split, "duplicate", f"{job.file} has the same contents as {first}"))
            continue
        facts = [VERSION, content, job.split, job.person, job.terms, job.origin, asdict(limits)]
        fingerprint = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
        place = _place(path)
        drafts.append(replace(job, fingerprint=fingerprint, place=place, parts=out / job.split / _PARTS))
    return _with_keys(drafts, out), rejects


def _held_out(files: list[tuple[Path, str]], out: Path, share: float) -> set[str]:
    """Stems of the videos that are for validation; pictures have no second frame to validate with."""
    indices = {folder.name: read_index(folder) for folder in _splits(out)}
    used = {entry.place for index in indices.values() for entry in index.entries}
    refused = {reject.place for index in indices.values() for reject in index.rejects} - used
    stems = {path.stem for path, _ in files if _place(path) not in refused and _kind(path) == "video"}
    if not share or len(stems) < _FEW:
        return set()
    before = {entry.person: name for name, index in indices.items() for entry in index.entries}
    held = {stem for stem in stems if before.get(stem) == "val"}
    missing = max(1, round(share * len(stems))) - len(held)
    others = sorted(stems - held, key=lambda stem: (stem in before, _unit(stem)))
    return held | set(others[: max(0, missing)])


def _with_keys(jobs: list[Job], out: Path) -> list[Job]:
    """Name each job's record after its file; two files of one name get a bit of their fingerprint added."""
    wanted = [re.sub(r"[^A-Za-z0-9_-]+", "_", job.path.stem)[:100] or "clip" for job in jobs]
    counts = Counter((job.split, name.lower()) for job, name in zip(jobs, wanted))
    taken = {
        (folder.name, re.sub(r"-\d\d$", "", entry.key).lower()): entry.place
        for folder in _splits(out)
        for entry in read_index(folder).entries
    }
    named = []
    for job, name in zip(jobs, wanted):
        slot = (job.split, name.lower())
        if counts[slot] > 1 or taken.get(slot, job.place) != job.place:
            name = f"{name}-{job.fingerprint[:8]}"
        named.append(replace(job, key=name))
    return named


def _place(path: Path) -> str:
    return hashlib.sha256(str(path).encode()).hexdigest()[:16]


def _kind(path: Path) -> str | None:
    try:
        return media_kind(path)
    except OSError:
        return None


def _content(path: Path) -> str:
    """A digest of a file's size, beginning and end: enough to tell files apart without reading terabytes."""
    digest = hashlib.sha256()
    size = path.stat().st_size
    digest.update(size.to_bytes(8, "little"))
    with path.open("rb") as stream:
        digest.update(stream.read(_PROBE_BYTES))
        stream.seek(max(0, size - _PROBE_BYTES))
        digest.update(stream.read(_PROBE_BYTES))
    return digest.hexdigest()


def _unit(name: str) -> float:
    """A number in 0..1 that depends on a name and nothing else."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


# --- one job, in a worker ---------------------------------------------------------------------------------------------


def _start(limits: Limits) -> Callable[[Job], list[str]]:
    """What a process does first; the result does jobs."""
    tracker = Tracker()
    return functools.partial(_do, tracker, limits)


def _do(tracker: Tracker, limits: Limits, job: Job) -> list[str]:
    """Prepare one file and leave its part; returns what was logged meanwhile.

    Only trouble with the output ends the batch; anything an input can cause is a reject.
    """
    records: list[Record] = []
    refusals: list[Refusal] = []
    with _caught_log() as messages:
        try:
            records, refusals = records_of(job.path, job.key, _provenance(job), tracker, limits)
        except Refusal as refusal:
            refusals = [refusal]
        except OutputError:
            raise
        except Export3DError as error:
            refusals = [Refusal("failed", str(error))]
        except Exception as error:  # a decoder's or a network's own surprise with an odd file
            logger.exception("%s", job.file)
            refusals = [Refusal("failed", f"{type(error).__name__}: {error}")]
    rejects = [Reject(job.file, job.split, r.reason, r.detail, job.fingerprint, job.place) for r in refusals]
    try:
        job.parts.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_failure(job.parts, error) from error
    if records:
        write_tar(job.parts / f"{job.fingerprint}.tar", records)
    marker = {"keys": [record.key for record in records], "rejects": [asdict(reject) for reject in rejects]}
    write_bytes(job.parts / f"{job.fingerprint}.json", json.dumps(marker).encode())
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
        "tool": f"export3d {version}, preparation {VERSION}, MediaPipe Face Landmarker",
    }


@contextlib.contextmanager
def _caught_log() -> Iterator[list[str]]:
    """Collect the package's log messages instead of printing them: a worker's terminal belongs to a progress bar."""
    package, stream, messages = logging.getLogger("export3d"), io.StringIO(), list[str]()
    handler, propagate = logging.StreamHandler(stream), package.propagate
    package.addHandler(handler)
    package.propagate = False
    try:
        yield messages
    finally:
        package.removeHandler(handler)
        package.propagate = propagate
        messages += stream.getvalue().splitlines()


# --- parts, shards, report --------------------------------------------------------------------------------------------


def _splits(out: Path) -> list[Path]:
    return [path.parent for path in sorted(out.glob(f"*/{INDEX_NAME}"))]


def _lines(index: Index) -> list[Entry | Reject]:
    return [*index.entries, *index.rejects]


def _finished(out: Path) -> set[str]:
    """Fingerprints that need no more work: in an index, or as a complete part."""
    done = {path.stem for path in out.glob(f"*/{_PARTS}/*.json") if not path.name.startswith(".")}
    for folder in _splits(out):
        done |= {line.fingerprint for line in _lines(read_index(folder))}
    return done


def _clean(parts: Path, jobs: Sequence[Job]) -> None:
    """Delete parts that are unfinished, or of no job."""
    keep = {job.fingerprint for job in jobs if (parts / f"{job.fingerprint}.json").exists()}
    for path in parts.glob("*") if parts.is_dir() else ():
        if path.stem not in keep:
            path.unlink(missing_ok=True)


def _pack(split: Path, jobs: Sequence[Job]) -> None:
    """Turn the parts of a split's jobs into shards and forget former records of the same files."""
    parts = split / _PARTS
    complete = [job for job in jobs if (parts / f"{job.fingerprint}.json").exists()]
    index = read_index(split) if (split / INDEX_NAME).exists() else Index("arkit52", 0)
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
        marker = json.loads((parts / f"{job.fingerprint}.json").read_text(encoding="utf-8"))
        rejects += [Reject(**reject) for reject in marker["rejects"]]

    def records() -> Iterator[Record]:
        for job in complete:
            path = parts / f"{job.fingerprint}.tar"
            if path.exists():
                yield from read_tar(path)

    update(split, records(), rejects, drop=stale)
    shutil.rmtree(parts, ignore_errors=True)


def _all_refused(split: Path, jobs: Sequence[Job]) -> bool:
    index = read_index(split)
    return not index.entries and {job.place for job in jobs} <= {reject.place for reject in index.rejects}


def _forget_moved(out: Path, jobs: Sequence[Job]) -> None:
    """Take files that are now in another split out of the one they were in: a person must never be in two.

    A split of which nothing is left goes.
    """
    home = {job.place: job.split for job in jobs}
    for folder in _splits(out):
        index = read_index(folder)
        gone = {line.fingerprint for line in _lines(index) if home.get(line.place, folder.name) != folder.name}
        if gone:
            update(folder, [], drop=gone)
            if not _lines(read_index(folder)):
                shutil.rmtree(folder)


def _report(out: Path, more_rejects: list[Reject], done: int, skipped: int, ignored: int, seconds: float) -> Report:
    splits: dict[str, dict[str, Any]] = {}
    rejects: list[Reject] = []
    for folder in _splits(out):
        index = read_index(folder)
        videos = [entry for entry in index.entries if entry.kind == "video"]
        frames = sum(entry.frames for entry in videos)
        splits[folder.name] = {
            "records": len(index.entries),
            "videos": len(videos),
            "images": len(index.entries) - len(videos),
            "frames": index.frames,
            "minutes": round(frames / 25.0 / 60.0, 2),
            "people": len({entry.person for entry in index.entries}),
            "bytes": sum(shard.bytes for shard in index.shards),
            "terms": dict(sorted(Counter(entry.terms for entry in index.entries).items())),
        }
        rejects += index.rejects
    return Report(out, splits, (*rejects, *more_rejects), done, skipped, ignored, seconds)


def _write_report(report: Report, limits: Limits) -> None:
    value = {
        "splits": report.splits,
        "reasons": report.reasons,
        "files_done": report.done,
        "files_skipped": report.skipped,
        "files_ignored": report.ignored,
        "seconds": round(report.seconds, 1),
        "limits": asdict(limits),
        "rejects": [_public(reject) for reject in report.rejects],
    }
    table = io.StringIO()
    writer = csv.DictWriter(table, ["file", "split", "reason", "detail"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(_public(reject) for reject in report.rejects)
    write_bytes(report.out / REPORT_CSV, table.getvalue().encode())
    write_bytes(report.out / REPORT_JSON, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def _public(reject: Reject) -> dict[str, str]:
    return {"file": reject.file, "split": reject.split, "reason": reject.reason, "detail": reject.detail}
