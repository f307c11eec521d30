"""Chooses the files to prepare: videos and portraits from folders or a manifest, split by person."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
import re
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePath

from export3d.data.clips import Limits, media_kind
from export3d.data.shards import INDEX_NAME, Reject, read_index
from export3d.errors import InputError
from export3d.files import check_input, kind_at, paths_in, reading, reason
from export3d.motion.bfm64 import SUFFIXES

logger = logging.getLogger(__name__)

VERSION = 1
"""Version of the preparation. It is part of every fingerprint: raising it causes every file to be prepared again."""
PARTS_FOLDER = "parts"
"""Folder inside a split for the output of finished jobs."""
_PROBE_BYTES = 1 << 20
_VIDEO_SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".gif", ".flv", ".wmv", ".ogv"}
_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"}
_SPLIT_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_VAL_FRACTION = 0.1
_FEW = 4
"""With fewer videos than this, all are used for training and none is held out."""


@dataclass(frozen=True)
class Job:
    """One source file to prepare.

    Attributes:
        path: the file.
        file: name of the file in the report.
        split, person, terms: from the manifest, or the defaults.
        origin: other columns of the manifest, kept as provenance.
        key: key of the record.
        fingerprint, place: see `shards.Entry`.
        parts: folder for the job's output.
        coefficients: file or folder of the file's expression coefficients; None: expressions are tracked.
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
    coefficients: Path | None = None


def read_manifest(path: Path) -> dict[Path, dict[str, str]]:
    """The rows of a manifest by the resolved path of their file; `InputError` if any row is invalid."""
    check_input(path, InputError, "a CSV file with the columns file, person, split")
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            missing = {"file", "person", "split"} - set(reader.fieldnames or ())
            if missing:
                raise InputError(f"{path} lacks the columns {', '.join(sorted(missing))}; add them to its first line")
            rows = [{key: value or "" for key, value in row.items() if key is not None} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read the manifest {path} ({reason(error)}); give a CSV file in UTF-8") from error
    split_of: dict[str, str] = {}
    for number, row in enumerate(rows, 2):
        if not row["file"] or not row["person"] or not _SPLIT_NAME.fullmatch(row["split"]):
            raise InputError(f"{path} line {number} needs a file, a person and a split (letters, digits, _ and -)")
        if split_of.setdefault(row["person"], row["split"]) != row["split"]:
            raise InputError(
                f"{path} line {number} puts {row['person']} into {row['split']} and into {split_of[row['person']]}; "
                "a person belongs to one split"
            )
    with reading(path):  # a NUL character in a name
        return {Path(os.path.realpath(path.parent / row["file"])): row for row in rows}


def find_files(inputs: list[Path], rows: dict[Path, dict[str, str]] | None) -> tuple[list[tuple[Path, str]], int]:
    """Find the files to prepare: (path, name in the report) of each, and the number of other files in the folders.

    Raises:
        InputError: an input does not exist, or nothing is found.
    """
    files: dict[Path, str] = {}
    ignored = 0
    if not inputs and rows:
        files = {path: row["file"] for path, row in rows.items()}
    for given in inputs:
        kind = kind_at(given)
        if kind == "file":
            files.setdefault(given.resolve(), given.name)
        elif kind == "folder":
            for path in _files_in(given):
                if path.suffix.lower() in _VIDEO_SUFFIXES | _IMAGE_SUFFIXES or _kind(path) is not None:
                    files.setdefault(path.resolve(), path.relative_to(given).as_posix())
                else:
                    ignored += 1
        else:
            problem = "is not a regular file" if kind else "does not exist"
            raise InputError(f"{given} {problem}; give videos, images or folders of them")
    if not files:
        raise InputError("there is nothing to prepare; give videos, images or folders of them")
    return list(files.items()), ignored


def _files_in(folder: Path) -> list[Path]:
    """The files in a folder and its subfolders, sorted, without hidden ones; warns of subfolders that cannot be listed.

    Raises:
        InputError: the folder itself cannot be listed.
    """
    found = []
    for path in paths_in(folder):
        if path.name.startswith("."):
            continue
        try:
            kind = kind_at(path)
            if kind == "file":
                found.append(path)
            elif kind == "folder" and not path.is_symlink():
                found += _files_in(path)
        except InputError as error:
            logger.warning("left out: %s", error)
    return found


def make_jobs(
    files: list[tuple[Path, str]],
    rows: dict[Path, dict[str, str]] | None,
    out: Path,
    limits: Limits,
    val_fraction: float | None,
    coefficients: Path | None = None,
) -> tuple[list[Job], list[Reject]]:
    """Make one job per file, with unique keys and fingerprints; also returns the files that cannot be prepared.

    With a folder of coefficients, a file without its own is one of the latter.
    """
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
            content = _content_digest(path)
        except OSError as error:
            rejects.append(Reject(job.file, job.split, "unreadable", f"{job.file} cannot be opened ({error.strerror})"))
            continue
        first = contents.setdefault(content, job.file)
        if first != job.file:
            rejects.append(Reject(job.file, job.split, "duplicate", f"{job.file} has the same contents as {first}"))
            continue
        facts = [VERSION, content, job.split, job.person, job.terms, job.origin, asdict(limits)]
        if coefficients is not None:
            try:
                own = coefficients_of(coefficients, job.file)
                facts.append(_coefficients_digest(own))
                job = replace(job, coefficients=own)
            except (InputError, OSError) as error:
                rejects.append(Reject(job.file, job.split, "coefficients", str(error)))
                continue
        fingerprint = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
        place = _place(path)
        drafts.append(replace(job, fingerprint=fingerprint, place=place, parts=out / job.split / PARTS_FOLDER))
    return _with_keys(drafts, out), rejects


def coefficients_of(folder: Path, file: str) -> Path:
    """The coefficients of `file` (name in the report) in a folder: NAME.npz, NAME.mat, or a folder NAME of such files.

    NAME is the file's path without its ending; of a path that leads out of the folder, the last part alone.

    Raises:
        InputError: there are none, or several.
    """
    name = PurePath(file)
    if name.is_absolute() or ".." in name.parts:
        name = PurePath(name.name)
    base = folder / name.with_suffix("")
    found = [path for path in (base, *(base.with_name(base.name + suffix) for suffix in SUFFIXES)) if kind_at(path)]
    if len(found) != 1:
        known = ", ".join(path.name for path in found)
        raise InputError(
            f"{file} has several coefficients in {folder} ({known}); keep one of them"
            if found
            else f"{file} has no coefficients; give them as {base}.mat, {base}.npz or a folder {base} of such files"
        )
    return found[0]


def split_folders(out: Path) -> list[Path]:
    """Folders of the splits in `out`, sorted by name."""
    return [path.parent for path in sorted(out.glob(f"*/{INDEX_NAME}"))]


def _held_out(files: list[tuple[Path, str]], out: Path, share: float) -> set[str]:
    """Stems of the videos held out for validation. Images are not held out: they have no second frame."""
    indices = {folder.name: read_index(folder) for folder in split_folders(out)}
    used = {entry.place for index in indices.values() for entry in index.entries}
    refused = {reject.place for index in indices.values() for reject in index.rejects} - used
    stems = {path.stem for path, _ in files if _place(path) not in refused and _kind(path) == "video"}
    if not share or len(stems) < _FEW:
        return set()
    before = {entry.person: name for name, index in indices.items() for entry in index.entries}
    held = {stem for stem in stems if before.get(stem) == "val"}
    missing = max(1, round(share * len(stems))) - len(held)
    others = sorted(stems - held, key=lambda stem: (stem in before, _fraction(stem)))
    return held | set(others[: max(0, missing)])


def _with_keys(jobs: list[Job], out: Path) -> list[Job]:
    """Name each job's record after its file; files of the same name get a part of their fingerprint as a suffix."""
    wanted = [re.sub(r"[^A-Za-z0-9_-]+", "_", job.path.stem)[:100] or "clip" for job in jobs]
    counts = Counter((job.split, name.lower()) for job, name in zip(jobs, wanted))
    taken = {
        (folder.name, re.sub(r"-\d\d$", "", entry.key).lower()): entry.place
        for folder in split_folders(out)
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
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]


def _kind(path: Path) -> str | None:
    try:
        return media_kind(path)
    except OSError:
        return None


def _content_digest(path: Path) -> str:
    """A digest of a file's size, first and last megabyte: enough to distinguish files without reading them whole."""
    digest = hashlib.sha256()
    size = path.stat().st_size
    digest.update(size.to_bytes(8, "little"))
    with path.open("rb") as stream:
        digest.update(stream.read(_PROBE_BYTES))
        stream.seek(max(0, size - _PROBE_BYTES))
        digest.update(stream.read(_PROBE_BYTES))
    return digest.hexdigest()


def _coefficients_digest(path: Path) -> list[str]:
    files = paths_in(path) if kind_at(path) == "folder" else [path]
    return [f"{file.name} {_content_digest(file)}" for file in files if kind_at(file) == "file"]


def _fraction(name: str) -> float:
    """A pseudo-random number in 0..1 that depends only on the name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
